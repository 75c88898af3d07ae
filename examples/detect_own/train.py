"""A detector of one's own: handwritten digits in scenes, by the centres of their boxes. It trains alone, and two lines let a search train it.

python train.py [--short] [--seed 0] [--epochs 20] [--folder FOLDER]    train; weights and the mAP on test scenes go to FOLDER
python train.py --compare RUN                                           the table of a finished search, and the measured speedup
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.data.scenes import CLASSES, SIZE, Scenes, draw

EXAMPLE = torch.zeros(2, 1, SIZE, SIZE)
STRIDE = 4  # pixels of a cell's side
Found = tuple[Tensor, Tensor, Tensor]  # of one scene: boxes (K, 4) in pixels, labels (K,), scores (K,)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Detector(nn.Module):
    """(N, 1, H, W) -> for each cell of 4x4 pixels: `heat` (N, 10, H/4, W/4), logits of a box of each class whose centre lies there; `size`
    (N, 2, ...), its width and height in cells; `offset` (N, 2, ...), where in the cell the centre is. After CenterNet (arXiv:1904.07850).
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(1, width // 2, 2), conv(width // 2, width, 2))
        self.body = nn.Sequential(*[Residual(width) for _ in range(3)])
        self.heat = nn.Sequential(conv(width, width), nn.Conv2d(width, CLASSES, 1))
        self.boxes = nn.Sequential(conv(width, width), nn.Conv2d(width, 4, 1))
        nn.init.constant_(self.heat[1].bias, -3.0)  # few cells hold a centre

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        y = self.body(self.stem(image))
        size, offset = self.boxes(y).split(2, 1)
        return {"heat": self.heat(y), "size": size, "offset": offset}


def build() -> Detector:
    return Detector()


def build_short() -> Detector:
    return Detector(8)


def loss(outputs: dict[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of the heat against Gaussians around the centres, and L1 of size and offset at the centres.

    Args:
        outputs: of the detector.
        boxes: (N, M, 4) in pixels.
        labels: (N, M), -1 where there is no box.
    """
    image, slot = (labels >= 0).nonzero(as_tuple=True)
    kind, box = labels[image, slot], boxes[image, slot] / STRIDE
    centre, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    x, y = centre.long().unbind(1)

    heat = outputs["heat"]
    across = torch.arange(heat.shape[3]) - x[:, None]
    down = torch.arange(heat.shape[2]) - y[:, None]
    spread = (size.mean(1) / 6).clamp(min=0.5)[:, None, None]
    bumps = (-(down[:, :, None] ** 2 + across[:, None, :] ** 2) / (2 * spread**2)).exp()
    wanted = torch.zeros_like(heat)
    for one in slot.unique():  # an image has one box in each
        at = image[slot == one], kind[slot == one]
        wanted[at] = torch.maximum(wanted[at], bumps[slot == one])
    chance, at_centre = heat.sigmoid(), wanted == 1
    focal = torch.where(at_centre, (1 - chance) ** 2 * F.logsigmoid(heat), (1 - wanted) ** 4 * chance**2 * F.logsigmoid(-heat))
    l1 = F.l1_loss(outputs["size"][image, :, y, x], size, reduction="sum") * 0.1
    l1 = l1 + F.l1_loss(outputs["offset"][image, :, y, x], centre - torch.stack([x, y], 1), reduction="sum")
    return (l1 - focal.sum()) / max(len(image), 1)


@torch.no_grad()
def detect(model: nn.Module, images: Tensor, most: int = 20) -> list[Found]:
    """The `most` highest peaks of the heat of each image."""
    model.eval()
    found = []
    for part in images.split(64):
        outputs = model(part)
        heat = outputs["heat"].sigmoid()
        heat = heat * (heat == F.max_pool2d(heat, 3, 1, 1))
        scores, places = heat.flatten(1).topk(most)
        rows, columns = heat.shape[2:]
        kind, y, x = places // (rows * columns), places // columns % rows, places % columns
        image = torch.arange(len(part))[:, None]
        size, offset = (outputs[name][image, :, y, x] for name in ("size", "offset"))
        centre = torch.stack([x, y], 2) + offset
        boxes = torch.cat([centre - size / 2, centre + size / 2], 2) * STRIDE
        found += list(zip(boxes, kind, scores, strict=True))
    return found


def average_precision(found: list[Found], boxes: Tensor, labels: Tensor, overlap: float = 0.5) -> float:
    """AP at an intersection over union of `overlap`, averaged over the classes that occur (Pascal VOC 2010: the area under the precision
    that is made monotone).

    Args:
        found: of each scene.
        boxes: (N, M, 4) in pixels.
        labels: (N, M), -1 where there is no box.
    """
    return sum(values := [_of_class(found, boxes, labels, int(kind), overlap) for kind in labels[labels >= 0].unique()]) / len(values)


def _of_class(found: list[Found], boxes: Tensor, labels: Tensor, kind: int, overlap: float) -> float:
    candidates = [
        (float(score), scene, box)
        for scene, (at, kinds, scores) in enumerate(found)
        for box, score in zip(at[kinds == kind], scores[kinds == kind], strict=True)
    ]
    truth = [boxes[scene][labels[scene] == kind] for scene in range(len(labels))]
    taken = [[False] * len(there) for there in truth]
    correct = []
    for _, scene, box in sorted(candidates, key=lambda candidate: -candidate[0]):
        overlaps = _iou(box, truth[scene]).tolist()
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)
        hit = best is not None and overlaps[best] >= overlap and not taken[scene][best]
        if hit:
            taken[scene][best] = True
        correct.append(hit)
    hits = torch.tensor(correct, dtype=torch.float64).cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    precision = precision.flip(0).cummax(0).values.flip(0)
    return float(precision[torch.tensor(correct, dtype=torch.bool)].sum()) / sum(map(len, truth))


def _iou(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of `box` (4,) and each of `others` (K, 4): (K,)."""
    sides = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0)
    area, areas = (box[2:] - box[:2]).clamp(min=0).prod(), (others[:, 2:] - others[:, :2]).prod(1)
    return sides.prod(1) / (area + areas - sides.prod(1))


def mean_ap(model: nn.Module, drawn: Scenes) -> float:
    return average_precision(detect(model, drawn.images), drawn.boxes, drawn.labels)


def train(model: nn.Module, epochs: int, seed: int, count: int) -> None:
    """Adam with one cycle of the learning rate. Every epoch draws `count` new scenes of the training digits."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (count // 16))
    model.train()
    for _ in range(epochs):
        drawn = draw("train", count, seed=int(torch.randint(1 << 31, (), generator=rng)))
        for images, boxes, labels in zip(drawn.images.split(16), drawn.boxes.split(16), drawn.labels.split(16), strict=True):
            optimizer.zero_grad()
            loss(model(images), boxes, labels).backward()
            optimizer.step()
            schedule.step()


def compare(run: Path, short: bool) -> None:
    """Print the arms of a finished search, and time what it found next to the dense network."""
    summary = json.loads((run / "own-search.json").read_text())
    for row in summary["rows"]:
        name = f"seed{row['seed']}/{row['arm']}-{row['level']}"
        test = json.loads((run / name / "test.json").read_text())
        print(f"{name:24} {row['macs']:>12,} MACs   mAP: validation {row['val_score']:7.2%}, test {test:7.2%}")
    dense = build_short() if short else build()
    small = lt.cut(dense, lt.PruningPlan.load(run / "plan.json"))
    small.load_state_dict(torch.load(run / "small.pt", weights_only=True))
    pruned = lt.Pruned(small.eval(), EXAMPLE, dense=dense.eval())
    measured = lt.bench(pruned, runtimes=["onnxruntime"], devices=["cpu"], batches=[1], seconds_per_row=0.2 if short else 3.0)
    (run / "bench.json").write_text(json.dumps(measured.to_json(), indent=1))
    row = next(row for row in measured.rows if row.subject == "small")
    print(f"ONNX Runtime, batch 1: {row.ms_p50:.3f} ms, {row.speedup:.2f}x faster ({row.speedup_low:.2f} to {row.speedup_high:.2f})")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--short", action="store_true", help="seconds instead of minutes; the networks learn little")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--folder", type=Path, help="where weights and the mAP on test scenes go")
    arguments.add_argument("--compare", type=Path, metavar="RUN", help="folder of a finished search")
    given = arguments.parse_args()
    if given.compare:
        return compare(given.compare, given.short)
    count = 32 if given.short else 480

    torch.manual_seed(given.seed)
    model = lt.attach(build_short() if given.short else build(), EXAMPLE)
    train(model, given.epochs, given.seed, count)
    if given.folder:
        torch.save(model.state_dict(), given.folder / "weights.pt")
        (given.folder / "test.json").write_text(json.dumps(mean_ap(model, draw("test", count, seed=2))))
    value = mean_ap(model, draw("val", count, seed=1))
    print(f"mAP on validation scenes: {value:.2%}")
    lt.report_metric(value)


if __name__ == "__main__":
    main()
