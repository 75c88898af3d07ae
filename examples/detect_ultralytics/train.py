"""A YOLO of Ultralytics, trained by Ultralytics' trainer. Four lines, marked with +, let a search train it; outside a search they do nothing.

python train.py --data scenes/data.yaml [--model yolov8n.yaml] [--epochs 20] [--seed 0] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

import ltcompile as lt  # +

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--data", type=Path, required=True)
options.add_argument("--model", default="yolov8n.yaml")
options.add_argument("--image-size", type=int, default=64)
options.add_argument("--batch", type=int, default=16)
options.add_argument("--epochs", type=int, default=20)
options.add_argument("--seed", type=int, default=0)
options.add_argument("--folder", type=Path, default=Path("runs/yolo"))
given = options.parse_args()

settings = {"model": given.model, "data": str(given.data), "imgsz": given.image_size, "batch": given.batch, "epochs": given.epochs}
place = {"project": str(given.folder.resolve()), "name": "ultralytics", "exist_ok": True, "plots": False}
trainer = DetectionTrainer(overrides={**settings, **place, "seed": given.seed})
trainer.model = lt.attach(trainer.get_model(given.model))  # +
trainer.train()
best = YOLO(trainer.best)
print(f"{trainer.best}: mAP {trainer.metrics['metrics/mAP50-95(B)']:.3f}")
trainer.model.load_state_dict(best.model.state_dict())  # + the weights of these metrics
lt.report_metric(trainer.metrics["metrics/mAP50-95(B)"])  # +
