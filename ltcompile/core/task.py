"""What a network is for. The search, its verdict and its run folder see a task through these nouns alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ltcompile.core.recipe import Recipe

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Metric:
    """One number that says how good a network is.

    Differences are stated in `unit`, of which a value of 1 has `scale`: a share of correct answers in points, an mAP in points, a PSNR in dB.
    """

    name: str = "accuracy"
    unit: str = "points"
    scale: float = 100.0
    higher_is_better: bool = True

    @property
    def best(self) -> str:
        return "highest" if self.higher_is_better else "lowest"

    def worth(self, value: float) -> float:
        """`value` in units, with its sign turned where lower is better: of two networks, the better one has the larger worth."""
        return self.scale * value if self.higher_is_better else -self.scale * value

    def gain(self, ours: float, theirs: float) -> float:
        """By how many units `ours` is better than `theirs`."""
        return self.scale * (ours - theirs) if self.higher_is_better else self.scale * (theirs - ours)


ACCURACY = Metric()


@dataclass(frozen=True)
class Score:
    """A network on one part of the data: the value of the task's metric, the mean loss, and which items were correct, as hexadecimal bits
    with the first item in the highest bit ("" where the metric is no share of items).
    """

    value: float
    loss: float
    items: str = ""


class Task(Protocol):
    """What a network is for: its data, its metric, and how to evaluate it. One file each in `ltcompile.tasks`."""

    @property
    def metric(self) -> Metric: ...

    @property
    def description(self) -> Any:
        """What a ticket says of the data: has a `name`, the `arguments` of the model's factory, and `to_json`."""

    @property
    def example(self) -> Any:
        """Inputs of two items, on the CPU."""

    @property
    def splits(self) -> Mapping[Part, Any]:
        """Part -> its items: `len`, and `batches(size, device, recipe, seed)` of (inputs, targets), shuffled and augmented by a recipe."""

    def adapt(self, recipe: Recipe) -> Recipe:
        """A network's usual recipe for this data."""

    def evaluate(self, model: nn.Module, part: Part, device: torch.device) -> Score:
        """`model` in eval mode over all items of a part; it keeps the modes that it has."""
