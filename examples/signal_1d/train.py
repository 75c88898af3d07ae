"""A 1-D network, cut in the middle of its training: plan, cut with the optimizer, fine-tune, ship.

python train.py [--short] [--output signal.onnx]

The signals are real: the scan lines of scikit-learn's handwritten digits, one after the other, with noise.
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

LENGTH, TEST = 64, 360


def signals() -> tuple[Tensor, Tensor]:
    """Signals (1797, 1, 64) and the digits (1797,) that they are of; the last 360 are for the test."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    values = torch.tensor(data.data / 16, dtype=torch.float32)[order, None]
    return values + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1)), torch.tensor(data.target)[order]


def build(width: int) -> nn.Sequential:
    """(N, 1, L) -> scores of ten digits (N, 10)."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)):
        layers += [nn.Conv1d(inputs, outputs, 9, stride, padding=4, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(16 * width, 10))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, epochs: int) -> None:
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32)[:-1]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    return (model.eval()(x).argmax(1) == labels).float().mean().item()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--short", action="store_true", help="seconds instead of a minute")
    arguments.add_argument("--output", type=Path, default=Path("signal.onnx"))
    given = arguments.parse_args()
    torch.manual_seed(0)
    x, labels = signals()
    epochs, model = (1, build(4)) if given.short else (15, build(32))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    train(model, optimizer, x[:-TEST], labels[:-TEST], epochs)
    print(f"dense: accuracy {accuracy(model, x[-TEST:], labels[-TEST:]):.2%}")

    plan = lt.plan(model, x[:2], target_macs=0.25)
    small = lt.cut(model, plan, optimizer)  # from here on the optimizer trains `small`, with its moments cut alike
    print(
        f"cut: accuracy {accuracy(small, x[-TEST:], labels[-TEST:]):.2%}, {lt.size(small, x[:2]).macs / lt.size(model, x[:2]).macs:.1%} of MACs"
    )
    train(small, optimizer, x[:-TEST], labels[:-TEST], epochs)
    print(f"fine-tuned: accuracy {accuracy(small, x[-TEST:], labels[-TEST:]):.2%}")

    lt.shrink(lt.Pruned(small.eval(), x[:2]), given.output, dynamic=("batch",))
    session = onnxruntime.InferenceSession(given.output, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {session.get_inputs()[0].name: x[-TEST:].numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(answers, small(x[-TEST:]).numpy(), rtol=1e-3, atol=1e-3)
    print(f"{given.output}: ONNX Runtime and PyTorch agree on {TEST} signals")


if __name__ == "__main__":
    main()
