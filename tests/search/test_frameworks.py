"""`attach` and `report_metric` in training loops of other frameworks: at most four lines each, the import included.

Each function below trains in its framework's own form. The tests run it as `find --train` does, once for every arm.
bench/reference_scripts.py does so with the published scripts of timm and torchvision.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Metric
from ltcompile.paths import write_json

pytestmark = [
    pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice"),  # some networks hold widths as attributes
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # which Lightning needs
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # smaller than Lightning's interval of log lines
]
CONFIG = lt.SearchConfig(rounds=1, rate=0.4, controls=False, margin_points=5)
LOSS = Metric("loss", "units", 1.0, higher_is_better=False)


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    """Images with labels as the frameworks' models take them."""

    def __init__(self, labels: Callable[[int], Any], side: int) -> None:
        self.images, self.labels = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0)), labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": self.labels(index)}


def vit() -> Any:
    import transformers as hf

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 4}
    return hf.ViTForImageClassification(hf.ViTConfig(**sizes, image_size=16, patch_size=8))


def segformer() -> Any:
    import transformers as hf

    stages = {"hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]}
    config = {"num_encoder_blocks": 2, "depths": [1, 1], "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "num_labels": 3}
    return hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**stages, **config))


def rt_detr() -> Any:
    import transformers as hf

    stages = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    resnet = hf.RTDetrResNetConfig(**stages, out_features=["stage2", "stage3", "stage4"])
    encoder = {"encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 16], "encoder_ffn_dim": 32, "encoder_attention_heads": 2}
    decoder = {
        "decoder_in_channels": [16] * 3,
        "decoder_ffn_dim": 32,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_n_points": 2,
    }
    config = hf.RTDetrConfig(backbone_config=resnet, **encoder, **decoder, d_model=16, num_queries=4, num_denoising=0, num_labels=3)
    return hf.RTDetrForObjectDetection(config)


def boxes(index: int) -> dict[str, Tensor]:
    return {"class_labels": torch.tensor([index % 3]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}


def batch(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"pixel_values": torch.stack([item["pixel_values"] for item in items]), "labels": [item["labels"] for item in items]}


def hugging_face(model: Any, items: Items, folder: Path, collate: Any = None) -> nn.Module:
    import transformers as hf

    model = lt.attach(model)
    arguments = hf.TrainingArguments(
        str(folder / "checkpoints"), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = hf.Trainer(model, arguments, train_dataset=items, eval_dataset=items, data_collator=collate)
    trainer.train()
    lt.report_metric(trainer.evaluate()["eval_loss"])
    return model


def lightning(model: nn.Module, folder: Path) -> nn.Module:
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = lt.attach(network)

        def step(self, batch: dict[str, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch["pixel_values"]), batch["labels"])

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return self.step(batch)

        def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
            self.log("loss", self.step(batch), batch_size=2)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    loader = torch.utils.data.DataLoader(Items(lambda index: index % 4, 16), 2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer, module = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder, **quiet), Classifier(model)
    trainer.fit(module, loader, loader)
    lt.report_metric(trainer.validate(module, loader, verbose=False)[0]["loss"])
    return module.network


def backbone(width: int) -> Any:
    convolutions = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.Conv2d(8, width, 3, 2, 1, bias=False)
    layers = [layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())]
    found: Any = nn.Sequential(*layers)
    found.out_channels = width
    return found


def torchvision_detection(folder: Path) -> nn.Module:
    """The order of steps of torchvision's detection reference, whose networks return their losses."""
    from torchvision.models import detection

    anchors = detection.anchor_utils.AnchorGenerator(((16,),), ((1.0,),))
    model = detection.FCOS(backbone(32), 3, anchor_generator=anchors, min_size=32, max_size=32)
    model = lt.attach(model)
    model.to("cpu").train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3, momentum=0.9)
    images = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 24.0, 20.0]]), "labels": torch.tensor([i + 1])} for i in range(2)]
    for _ in range(2):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lt.report_metric(loss.item())
    return model


LOOPS: dict[str, tuple[Callable[..., Any], Callable[[Path], nn.Module], str]] = {
    "hf-vit": (hugging_face, lambda folder: hugging_face(vit(), Items(lambda i: i % 4, 16), folder), "pixel_values=1x3x16x16"),
    "hf-segformer": (
        hugging_face,
        lambda folder: hugging_face(segformer(), Items(lambda i: torch.full((32, 32), i % 3), 32), folder),
        "pixel_values=1x3x32x32",
    ),
    "hf-rt_detr": (hugging_face, lambda folder: hugging_face(rt_detr(), Items(boxes, 64), folder, batch), "pixel_values=1x3x64x64"),
    "lightning": (lightning, lambda folder: lightning(backbone_classifier(), folder), "1x3x16x16"),
    "torchvision-detection": (torchvision_detection, torchvision_detection, "1x3x32x32"),
}


def backbone_classifier() -> nn.Module:
    return nn.Sequential(backbone(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_trains_the_arms_of_a_search(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, train, example = LOOPS[name]
    added = [line for line in inspect.getsource(source).splitlines() if "lt." in line]
    assert len(added) == 2, "with the import, three lines"
    run = RunFolder(tmp_path / "run")
    settings = {
        "metric": dataclasses.asdict(LOSS),
        "config": CONFIG.to_json(),
        "epochs": 1,
        "example": example,
        "train": "none",
        "environment": {},
    }
    write_json(run.command, settings)
    monkeypatch.setenv("LTCOMPILE_SEARCH", str(run.command))
    torch.manual_seed(0)
    dense, small = train(tmp_path), train(tmp_path)

    summary = json.loads(run.own_summary.read_text())
    assert [row["arm"] for row in summary["rows"]] == ["dense", "ticket"] and all(row["val_score"] > 0 for row in summary["rows"])
    widths = lt.PruningPlan.load(run.own_plan).widths
    assert sum(after < before for before, after in widths.values()) >= 2, widths
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in dense.parameters())
    assert {k: v.shape for k, v in torch.load(run.own_weights).items()} == {k: v.shape for k, v in small.state_dict().items()}
