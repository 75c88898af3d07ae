"""The settings of one call of `shrink`; all steps read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from ltcompile.core.recipe import Recipe
from ltcompile.core.task import Task
from ltcompile.data import Dataset
from ltcompile.errors import InvalidSetting
from ltcompile.graph.inputs import Example
from ltcompile.prune.budget import RelativeTimer

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Snap = Literal["down", "up", "auto"]
Progress = Callable[[str], None]
Calibration = Dataset | Task | Iterable[Example]
Evaluate = Callable[[Callable[..., object]], float]  # a callable network -> its metric; higher is better
MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class Int8:
    """How far int8 may go.

    `max_drop` is in points of validation accuracy (or in units of the metric) below the fp32 file; `finetune_epochs` are trained with rounded
    weights first, at up to three rates.
    """

    max_drop: float = 0.5
    finetune_epochs: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise InvalidSetting(f"max_drop={self.max_drop}: it must be between 0 and 100 points of accuracy, or units of the metric")
        if not 0 <= self.finetune_epochs <= MOST_EPOCHS:
            raise InvalidSetting(f"finetune_epochs={self.finetune_epochs}: it must be between 0 and {MOST_EPOCHS:,}")


@dataclass(frozen=True)
class ShrinkJob:
    """Settings of `shrink` that do not contradict each other; `recipe` and `seed` come from a ticket.

    Raises:
        InvalidSetting: they do.
    """

    output: Path
    precision: Precision = "fp32"
    calibrate: Calibration | None = None
    metric: Evaluate | None = None
    int8: Int8 = Int8()
    snap: Snap | None = None
    timer: RelativeTimer | None = None
    dynamic: tuple[str, ...] = ("batch",)
    opset: int | None = None  # of an ONNX file; None for the exporter's own
    repair: Iterable[Example] | None = None  # inputs without labels
    repair_passes: int = 0  # over these inputs, with gradients
    images: Calibration | None = None  # that a page shows
    tune_seconds: float = 0.0  # of generated C++
    base: nn.Module | None = None  # the network as its own code builds it
    recipe: Recipe | None = None
    seed: int = 0
    on_progress: Progress = lambda message: None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise InvalidSetting(f"precision must be one of {', '.join(get_args(Precision))}, not {self.precision!r}")
        if self.precision != "int8" and self.int8.finetune_epochs:
            raise InvalidSetting(
                f"finetune_epochs= trains for int8, and the precision is {self.precision}; add precision=int8, or leave it out"
            )

        if self.opset is not None and self.output.suffix != ".onnx":
            raise InvalidSetting(f"opset={self.opset} is of .onnx files, and the output is {self.output}; leave it out")

    @property
    def any_batch(self) -> bool:
        return "batch" in self.dynamic


def training_inputs(calibrate: Calibration, size: int) -> Iterator[Example]:
    """The training inputs of a task, `size` at a time; or the inputs as the user hands them over."""
    if isinstance(calibrate, Task):
        return (inputs for inputs, _ in calibrate.batches("train", size, torch.device("cpu")))
    assert not isinstance(calibrate, Dataset), "shrink makes a task of it"
    return iter(calibrate)
