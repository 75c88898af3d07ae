"""Whatever a function right of `Pruned` is given that is no network, ticket or result, it refuses with an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ltcompile as lt
from ltcompile.errors import LtcompileError
from ltcompile.pruned import pruned_of

ON = "cpu:onnxruntime:b1:fp32"
DOORS: dict[str, Callable[[Any, Path], object]] = {
    "pruned_of": lambda subject, folder: pruned_of(subject),
    "bench": lambda subject, folder: lt.bench(subject),
    "compile": lambda subject, folder: lt.compile(subject),
    "profile": lambda subject, folder: lt.profile(subject, ON, output=folder / "p.json"),
    "report": lambda subject, folder: lt.report(subject, folder / "page.html"),
    "shrink": lambda subject, folder: lt.shrink(subject, folder / "small.onnx"),
    "stopwatch": lambda subject, folder: lt.stopwatch(subject, ON),
    "verify": lambda subject, folder: lt.verify(subject),
}
SUBJECTS: dict[str, Callable[[Path], object]] = {
    "a number": lambda folder: 42,
    "nothing": lambda folder: None,
    "a file that is missing": lambda folder: folder / "none.pt",
    "a file of text": lambda folder: folder / "text.pt",
    "a module without its inputs": lambda folder: nn.Linear(3, 2),
    "a state dict": lambda folder: nn.Linear(3, 2).state_dict(),
    "a tensor": lambda folder: torch.zeros(2),
}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_network_is_refused(door: str, subject: str, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(LtcompileError):
        DOORS[door](SUBJECTS[subject](tmp_path), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"text.pt"}, "nothing is written"
