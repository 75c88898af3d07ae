"""The networks of the benchmarks of generated C++, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import ltcompile as lt

VGG = {  # name -> widths of its five stages
    "VGG-16 at 0.9 %": ((8, 8), (8, 8), (16, 24, 16), (40, 56, 64), (56, 48, 56)),
    "VGG-16 at 5 %": ((16, 16), (24, 24), (56,) * 3, (112,) * 3, (112,) * 3),
    "VGG-16 at 8 %": ((8, 16), (32, 32), (80, 72, 64), (160, 168, 168), (168, 160, 168)),
    "VGG-16 at 20 %": ((32, 32), (56, 56), (112,) * 3, (216,) * 3, (216,) * 3),
    "odd widths": ((13, 15), (27, 29), (53, 55, 51), (109, 107, 111), (109, 107, 111)),
    "odd widths, rounded to 8": ((16, 16), (32, 32), (56, 56, 56), (112,) * 3, (112,) * 3),
}
ROUNDED = ("odd widths", "odd widths, rounded to 8")
WHOLE, FIFTH = "VGG-16, whole", "VGG-16 at 20 %"
SMALL = (*VGG, "ResNet-20", "MobileNetV2 0.35 at 64")


def networks() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """Builders of all networks by name, with an image each."""
    import torchvision

    return {
        **{name: lambda widths=widths: (_vgg(widths), torch.randn(1, 3, 32, 32)) for name, widths in VGG.items()},
        "ResNet-20": lambda: (lt.build_model("resnet20", classes=10), torch.randn(1, 3, 32, 32)),
        "MobileNetV2 0.35 at 64": lambda: (torchvision.models.MobileNetV2(width_mult=0.35), torch.randn(1, 3, 64, 64)),
        "ResNet-56 at half": lambda: _half(lt.build_model("resnet56", classes=10), 32),
        "U-Net at half, 64": lambda: _half(lt.build_model("unet", classes=3), 64),
        WHOLE: lambda: (_vgg(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)), torch.randn(1, 3, 32, 32)),
        "MobileNetV2 at 224": lambda: (torchvision.models.MobileNetV2(), torch.randn(1, 3, 224, 224)),
        "ResNet-18 at half, 224": lambda: _half(torchvision.models.resnet18(), 224),
        "MobileNetV2 at half, 224": lambda: _half(torchvision.models.mobilenet_v2(), 224),
    }


def _vgg(stages: tuple[tuple[int, ...], ...]) -> nn.Module:
    layers, channels = list[nn.Module](), 3
    for stage in stages:
        for width in stage:
            layers += [conv := nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(conv.weight)
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


def _half(model: nn.Module, side: int) -> tuple[nn.Module, Tensor]:
    example = torch.randn(2, 3, side, side)
    return lt.cut(model, lt.plan(model, example, target_macs=0.5, align=8)), example[:1]
