"""What the tests share: small networks of every shape that the surgeon promises to handle, and quick searches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import NETWORKS, shaken
from torch import Tensor, nn

import ltcompile as lt

torch.set_num_threads(1)  # the command-line tests start processes of their own, whose threads would wait for these


@pytest.fixture(params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return shaken(NETWORKS[request.param]())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search of LeNet-5 on digits, with two seeds and all controls."""
    folder = tmp_path_factory.mktemp("runs") / "lenet"
    recipe = lt.Recipe(epochs=8, batch=32, lr=0.02, schedule="cosine", warmup_epochs=1, flip=False, crop_pixels=2, weight_decay=0.0)
    config = lt.SearchConfig(rounds=2, rate=0.3, seeds=2, margin_points=2.0)
    lt.find("lenet5", "digits", config, recipe=recipe, image_size=16, folder=folder)
    return folder
