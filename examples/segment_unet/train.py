"""A U-Net of one's own, segmenting handwritten digits, made smaller by a search in one's own training loop.

python train.py [--short] [--seeds 3] [--folder runs/unet]
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
from ltcompile.training import multiplies_bf16

# Chosen by the dense network's validation mIoU alone: with few scenes, what training lacks is steps, so batches are small (LOG.md).
BATCH, LEARNING_RATE = 4, 2e-3
FAST = multiplies_bf16(torch.device("cpu"))
EXAMPLE = torch.zeros(2, 1, SIZE, SIZE)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """(N, 1, H, W) -> scores of background and ten digits for every pixel (N, 11, H, W); H and W are multiples of 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up2, self.up1 = block(6 * width, 2 * width), block(3 * width, width)
        self.head = nn.Conv2d(width, 1 + CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.down1(image)
        middle = self.down2(F.max_pool2d(fine, 2))
        y = self.bottom(F.max_pool2d(middle, 2))
        y = self.up2(torch.cat([F.interpolate(y, scale_factor=2.0), middle], 1))
        y = self.up1(torch.cat([F.interpolate(y, scale_factor=2.0), fine], 1))
        return self.head(y)


def loss_of(scores: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy, and 1 - the F1 score of soft masks averaged over the digits: the background, nine pixels of ten, counts less."""
    shares, truth = scores.softmax(1), F.one_hot(masks, 1 + CLASSES).movedim(3, 1)
    overlap = (2 * (shares * truth).sum((0, 2, 3)) + 1) / (shares.sum((0, 2, 3)) + truth.sum((0, 2, 3)) + 1)
    return F.cross_entropy(scores, masks) + 1 - overlap[1:].mean()


def train(model: nn.Module, epochs: int, seed: int, count: int, checkpoint: Path) -> None:
    """Adam with one cycle of the learning rate. Every epoch draws `count` new scenes of the training digits, and ends with a checkpoint."""
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * (count // BATCH), cycle_momentum=False)
    parts, first = (model, optimizer, schedule), 0
    if checkpoint.exists():
        first, states = torch.load(checkpoint, weights_only=True)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
    for epoch in range(first, epochs):
        drawn = draw("train", count, seed=(seed + epoch) % (1 << 31))
        for images, masks in zip(drawn.images.split(BATCH), drawn.masks.split(BATCH), strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
                scores = model(images.contiguous(memory_format=torch.channels_last))
            loss_of(scores.float(), masks).backward()
            optimizer.step()
            schedule.step()
        torch.save((epoch + 1, [part.state_dict() for part in parts]), checkpoint)


@torch.no_grad()
def mean_iou(model: nn.Module, drawn: Scenes) -> float:
    """Intersection over union of background and each digit over all pixels, averaged over those that occur."""
    model.eval()
    found = torch.cat([model(images).argmax(1) for images in drawn.images.split(64)])
    pairs = torch.bincount(((1 + CLASSES) * drawn.masks + found).flatten(), minlength=(1 + CLASSES) ** 2).view(1 + CLASSES, -1)
    union = pairs.sum(0) + pairs.sum(1) - pairs.diag()
    return float((pairs.diag() / union)[union > 0].mean())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--short", action="store_true", help="seconds instead of minutes; the networks learn little")
    arguments.add_argument("--seeds", type=int, default=1, help="three or more give a verdict with confidence")
    arguments.add_argument("--folder", type=Path, default=Path("runs/unet"), help="run folder; a search in it is continued")
    given = arguments.parse_args()
    width, count, epochs = (4, 32, 2) if given.short else (32, 512, 8)
    # ONNX Runtime computes in blocks of 16 channels: other widths save MACs, and no time.
    goal = {"rounds": 1, "target_macs": 0.22, "align": 1 if given.short else 16}
    val, test = draw("val", count // 2, seed=1), draw("test", count // 2, seed=2)

    metric = lt.Metric("mIoU", "points", 100.0)
    search = lt.Search(lambda: UNet(width), EXAMPLE, given.folder, metric, epochs=epochs, margin=1.0, seeds=given.seeds, **goal)
    for arm in search:  # finished arms are skipped
        train(arm.model, arm.epochs, arm.seed, count, arm.folder / "checkpoint.pt")
        (arm.folder / "test.json").write_text(json.dumps(mean_iou(arm.model, test)))  # for the table below; no decision uses it
        arm.report(mean_iou(arm.model, val))
        print(f"{arm.name}: {arm.epochs} epochs", flush=True)
    found = search.result()
    for row in found.rows:
        name = f"seed{row.seed}/{row.arm}-{row.level}"
        row_test = json.loads((given.folder / name / "test.json").read_text())
        print(f"{name:24} {row.macs:>12,} MACs   mIoU: validation {row.val_score:7.2%}, test {row_test:7.2%}")
    print(*found.verdict.summary, sep="\n")

    shrunk = lt.shrink(found, given.folder / "unet.onnx", dynamic=("batch",))
    print(f"{shrunk.path}: {shrunk.path.stat().st_size / 1e3:.0f} kB, mIoU on test scenes {mean_iou(found.small, test):.2%}")
    pruned = lt.Pruned.of_result(found)
    measured = lt.bench(pruned, runtimes=["onnxruntime"], devices=["cpu"], batches=[1], seconds_per_row=0.2 if given.short else 3.0)
    (given.folder / "bench.json").write_text(json.dumps(measured.to_json(), indent=1))
    small = next(row for row in measured.rows if row.subject == "small")
    print(
        f"ONNX Runtime, batch 1: {small.ms_p50:.3f} ms, {small.speedup:.2f}x faster ({small.speedup_low:.2f} to {small.speedup_high:.2f})"
    )


if __name__ == "__main__":
    main()
