"""What the tests share: small networks of every shape that the surgeon promises to handle, and quick searches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import MICRO
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.core.recipe import Recipe

torch.set_num_threads(1)  # the command-line tests start processes of their own, whose threads would wait for these


class Branches(nn.Module):
    """A concatenation of branches of different widths, behind which the channels are shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 9, 1)
        self.bn = nn.BatchNorm2d(14)
        self.c = nn.Conv2d(14, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(torch.cat([self.a(x), self.b(x)], 1)))
        out: Tensor = self.head(self.c(y).sigmoid().mean((2, 3)))
        return out


class Depthwise(nn.Module):
    """An inverted residual: expand, depthwise, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.bn1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depthwise, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.project = nn.Conv2d(24, 8, 1)
        self.act = nn.PReLU(24)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.act(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        out: Tensor = self.head((x + self.project(y)).mean((2, 3)))
        return out


class Transposed(nn.Module):
    """A small encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 7, 3, stride=2, padding=1), nn.ConvTranspose2d(7, 5, 2, stride=2)
        self.norm = nn.InstanceNorm2d(5, affine=True)
        self.last = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(self.up(F.gelu(self.down(x)))).relu()).mean((2, 3))
        return out


def flattening() -> nn.Module:
    """A flatten that turns each channel into 16 inputs of a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 20), nn.Sigmoid(), nn.Linear(20, 4)
    )


NETWORKS = {
    **{
        name: lambda name=name: lt.build_model(name, classes=4, in_channels=3, image_size=16)
        for name in ("lenet5", "lenet300", "conv2", "resnet20")
    },
    "branches": Branches,
    "depthwise": Depthwise,
    "transposed": Transposed,
    "flattening": flattening,
    **MICRO,
}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` in eval mode with random batch-norm statistics and parameters: nothing is zero or one by luck."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for value, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5), (module.running_var, 0.5)):
                    if value is not None:
                        value.copy_(torch.rand(value.shape, generator=generator) + low)
    return model.eval()


@pytest.fixture(params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return shaken(NETWORKS[request.param]())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


QUICK = Recipe(epochs=2, batch=32, lr=0.02, schedule="cosine", flip=False, crop_pixels=2, precision="fp32", weight_decay=5e-4)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search of LeNet-5 on digits, with two seeds and all controls."""
    folder = tmp_path_factory.mktemp("runs") / "lenet"
    recipe = lt.Recipe(epochs=8, batch=32, lr=0.02, schedule="cosine", warmup_epochs=1, flip=False, crop_pixels=2, weight_decay=0.0)
    config = lt.SearchConfig(rounds=2, rate=0.3, seeds=2, margin_points=2.0)
    lt.find("lenet5", "digits", config, recipe=recipe, image_size=16, folder=folder)
    return folder
