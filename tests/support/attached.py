"""Small networks with a method attached, and short trainings of them on a few digits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from searches import QUICK
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.recipe import Recipe
from ltcompile.data import Dataset, Split
from ltcompile.models.vgg import VGG
from ltcompile.search import methods
from ltcompile.tasks import Classification
from ltcompile.training import Training, train

CPU = torch.device("cpu")
FROZEN, BASES = ("edge-popup", "biprop"), ("basis", "basis-dct")
RECIPE = dataclasses.replace(QUICK, lr=0.1, weight_decay=1e-4)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet300": lambda: lt.build_model("lenet300", 10, 1, 16),
    "conv2": lambda: _conv2(12),
    "vgg": lambda: VGG([8, "M", 12, "M", 16, 16, "M", 24, "M"], 10, 1),
}
IMAGES = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def _conv2(width: int) -> nn.Module:
    """Conv-2 with fewer filters and units."""
    pair = (nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*pair, nn.Flatten(), nn.Linear(width * 64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def built(network: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[network]()


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def attached(method: str, network: str, share: float = 0.5, seed: int = 3) -> nn.Module:
    model = built(network)
    methods.attach(method, model, share, seed, built(network, 7))
    return model


def answers(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(images)
    return found


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def trained(model: nn.Module, data: Dataset, recipe: Recipe = RECIPE, **more: Any) -> Training:
    return train(model, Classification(data), recipe, 5, CPU, **more)


def first_images(data: Dataset, images: int) -> Split:
    return data.train.part(torch.arange(images))
