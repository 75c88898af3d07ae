"""A profile traces, folds and exports a network once for all widths that it times."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.benchmark.profiling import exports, work
from ltcompile.benchmark.profiling.timer import Call, Timing, Variant, open_timer
from ltcompile.core.deployment import Deployment
from ltcompile.graph.widths import LAYERS

TARGET = Deployment("cpu", "onnxruntime", 2, "fp32")


class Constant:
    """Takes a millisecond a layer; what it times is checked as always."""

    settle_s, reads_onnx = 0.0, True

    def __init__(self) -> None:
        self.checked: list[Variant] = []

    def check(self, variant: Variant, images: Any) -> None:
        self.checked.append(variant)
        open_timer(TARGET).check(variant, images)

    def call(self, variant: Variant, images: Any) -> Call:
        return lambda: None

    def time(self, variant: Variant, images: Any, reference: Call) -> Timing:
        layers = {name: 1.0 for name, layer in variant.module.named_modules() if isinstance(layer, LAYERS)}
        return Timing(sum(layers.values()), 1.0, layers, 1.0)


class Flattened(nn.Module):
    """One reshape, which needs no other file to be resized."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 3), nn.Linear(24 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu().flatten(1))


class Shuffled(nn.Module):
    """Counts channels in reshapes, as ShuffleNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        n, c, h, w = y.shape
        return self.c(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).relu()).flatten(1)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "files"), [(Flattened, 1), (Shuffled, 2)])
def test_networks_are_traced_and_exported_once_for_all_widths(
    build: type[nn.Module], files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that is timed is still compared with its cut; a second file shows which axes of reshapes count channels."""
    calls, timer = Counter[str](), Constant()
    for module, name in ((exports, "export_onnx"), (work, "fold_batch_norm"), (work, "trace")):
        monkeypatch.setattr(module, name, functools.partial(counted, calls, name, getattr(module, name)))
    monkeypatch.setattr(work, "open_timer", lambda target, **_: timer)
    found = lt.profile(build().eval(), TARGET, torch.randn(2, 3, 4, 4), output=tmp_path / "p.json")
    assert calls == {"export_onnx": files, "fold_batch_norm": 1, "trace": 1}
    assert len(timer.checked) == len(found.runs) + 1 and len({run.widths["b"] for run in found.runs}) > 5


def counted(calls: Counter[str], name: str, function: Callable[..., Any], *words: Any, **named: Any) -> Any:
    calls[name] += 1
    return function(*words, **named)


@pytest.mark.slow
def test_cuts_share_what_stays_with_the_network() -> None:
    target = Deployment("cpu", "eager", 2, "fp32")
    given = work._work(
        {"name": "resnet20", "arguments": {"classes": 10, "in_channels": 3, "image_size": 32}}, target, open_timer(target), None
    )
    before = {name: value.clone() for name, value in given.folded.state_dict().items()}
    cut = dict(given._cut({next(group.name for group in given.groups if not group.frozen): 1}).named_parameters())
    whole = dict(given.folded.named_parameters())
    assert all((cut[name] is whole[name]) == (cut[name].shape == whole[name].shape) for name in whole)
    assert 0 < sum(cut[name] is not value for name, value in whole.items()) < len(whole)
    assert all(torch.equal(value, before[name]) for name, value in given.folded.state_dict().items())
