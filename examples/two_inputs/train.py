"""A network with two inputs, an image and a vector, cut in the middle of its training: plan, cut with the optimizer, fine-tune, ship.

python train.py [--short] [--output reader.onnx]

An image shows two of scikit-learn's handwritten digits side by side; the vector says which of them to read, and how bright it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt

Inputs = dict[str, Tensor]


def pairs(first: int, last: int, count: int) -> tuple[Inputs, Tensor]:
    """`count` pairs of the digits `first` to `last`: images (N, 1, 16, 32) with vectors (N, 3), and the digits to read (N,)."""
    data, rng = load_digits(), torch.Generator().manual_seed(first)
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))[first:last]
    images, labels = torch.tensor(data.images / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]
    chosen = torch.randint(len(order), (2, count), generator=rng)
    side, light = torch.randint(2, (count,), generator=rng), 0.4 + 0.6 * torch.rand(count, generator=rng)
    image = F.interpolate(torch.cat([images[chosen[0]], images[chosen[1]]], 2)[:, None], scale_factor=2.0) * light[:, None, None, None]
    image = image + 0.05 * torch.randn(image.shape, generator=rng)
    return {"image": image, "meta": torch.cat([F.one_hot(side, 2).float(), light[:, None]], 1)}, labels[chosen[side, torch.arange(count)]]


class Reader(nn.Module):
    """An image (N, 1, H, W), whose channels are scaled and shifted by what a vector (N, 3) says -> scores of ten digits (N, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.meta = nn.Sequential(nn.Linear(3, 2 * width), nn.ReLU())
        self.scale, self.shift = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, 2 * width)
        self.middle = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width))
        self.last = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.BatchNorm2d(4 * width), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d((2, 4)), nn.Flatten(), nn.Linear(32 * width, 8 * width), nn.ReLU())
        self.digit = nn.Linear(10 * width, 10)

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        context = self.meta(meta)
        y = self.middle(self.stem(image)) * (1 + self.scale(context)[:, :, None, None]) + self.shift(context)[:, :, None, None]
        return self.digit(torch.cat([self.head(self.last(F.relu(y))), context], 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Inputs, labels: Tensor, epochs: int) -> None:
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32)[:-1]:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs["image"][batch], inputs["meta"][batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Inputs, labels: Tensor) -> float:
    return (model.eval()(**inputs).argmax(1) == labels).float().mean().item()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--short", action="store_true", help="seconds instead of minutes")
    arguments.add_argument("--output", type=Path, default=Path("reader.onnx"))
    given = arguments.parse_args()
    torch.manual_seed(0)
    count, epochs, width = (256, 1, 4) if given.short else (8192, 6, 24)
    seen, test = pairs(0, 1400, count), pairs(1400, 1797, 512)
    model = Reader(width)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    train(model, optimizer, *seen, epochs)
    print(f"dense: accuracy {accuracy(model, *test):.2%}")

    example = {name: value[:2] for name, value in seen[0].items()}
    plan = lt.plan(model, example, target_macs=0.25)
    small = lt.cut(model, plan, optimizer)  # from here on the optimizer trains `small`, with its moments cut alike
    print(f"cut: accuracy {accuracy(small, *test):.2%}, {lt.size(small, example).macs / lt.size(model, example).macs:.1%} of MACs")
    train(small, optimizer, *seen, epochs)
    print(f"fine-tuned: accuracy {accuracy(small, *test):.2%}")

    lt.shrink(lt.Pruned(small.eval(), example), given.output, dynamic=("batch",))
    session = onnxruntime.InferenceSession(given.output, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {name: value.numpy() for name, value in test[0].items()})
    with torch.no_grad():
        np.testing.assert_allclose(answers, small(**test[0]).numpy(), rtol=1e-3, atol=1e-3)
    print(f"{given.output}: inputs {[i.name for i in session.get_inputs()]}; ONNX Runtime and PyTorch agree on {len(test[1])} pairs")


if __name__ == "__main__":
    main()
