"""What a network is for. The search, its verdict and its run folder see a task through these nouns alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from ltcompile.errors import InvalidSetting

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ltcompile.core.pictures import Answer
    from ltcompile.core.recipe import Recipe

Part = Literal["train", "val", "test"]
Teacher = Callable[[Any], Any]  # inputs -> outputs


UNITS = "units"  # of a metric that has none of its own: its values may be of any size


@dataclass(frozen=True)
class Metric:
    """One number that says how good a network is.

    Differences are stated in `unit`, of which a value of 1 has `scale`: a share of correct answers in points, an mAP in points, a PSNR in dB.
    """

    name: str = "accuracy"
    unit: str = "points"
    scale: float = 100.0
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidSetting(f"the name of a metric is a text such as 'mAP', not {self.name!r}")
        if not 0 < self.scale < math.inf:
            raise InvalidSetting(f"scale={self.scale} of the metric {self.name!r} must be above 0; higher_is_better= gives its direction")

    @property
    def is_share(self) -> bool:
        """Whether values lie between 0 and 1 and are written in per cent, their differences in points."""
        return (self.unit, self.scale) == ("points", 100.0)

    @property
    def best(self) -> str:
        return "highest" if self.higher_is_better else "lowest"

    def worth(self, value: float) -> float:
        """`value` in units, with its sign turned where lower is better: of two networks, the better one has the larger worth."""
        return self.scale * value if self.higher_is_better else -self.scale * value

    def gain(self, ours: float, theirs: float) -> float:
        """By how many units `ours` is better than `theirs`."""
        return self.scale * (ours - theirs) if self.higher_is_better else self.scale * (theirs - ours)

    def signed(self, gain: float) -> str:
        """By how many units a network is better, as text without the unit; "+" is better, also where lower values are."""
        return f"{gain:+.3g}" if self.unit == UNITS else f"{gain:+.2f}"

    def format(self, value: float) -> str:
        """`value` as text: a share in per cent, any other in its unit."""
        return f"{value:.2%}" if self.is_share else f"{self.scale * value:.2f} {self.unit}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


ACCURACY = Metric()


@dataclass(frozen=True)
class MetricValue:
    """The `value` of a metric (None: not measured) on `split`, as in MetricValue(Metric("mAP"), 0.412, "test")."""

    metric: Metric
    value: float | None
    split: str

    def __str__(self) -> str:
        return f"{self.metric.name} {'unknown' if self.value is None else format(self.value, '.4g')} on {self.split} data"


@dataclass(frozen=True)
class Score:
    """A network on one part of the data: the value of the task's metric, the mean loss, and which items were correct, as hexadecimal bits
    with the first item in the highest bit ("" where the metric is not a share of items); `values` of single items where the metric is their mean.
    """

    value: float
    loss: float
    items: str = ""
    values: tuple[float, ...] = ()


# What a network gets, and what it should make of it. Inputs are those of one call (a tensor, a tuple of positional or a dict of keyword
# arguments); targets may be anything. In both, a tensor has a row for each item and a list an entry for each; tuples and dicts hold more.
Batch = tuple[Any, Any]


@dataclass(frozen=True)
class Shard:
    """Which part of an epoch's batches a process reads: from batch `start` on, of each batch of training the `index`-th of `count` equal parts,
    which are augmented by streams of their own; of an evaluation's, which stay whole, every `count`-th batch from the `index`-th on.
    `epoch` is given where the recipe mirrors images in every other one; without it they are mirrored at random.
    """

    index: int = 0
    count: int = 1
    start: int = 0
    epoch: int | None = None


EVERYTHING = Shard()


class Loss(NamedTuple):
    """The mean loss over the items of a batch, and how many of them were correct (None where an item is not right or wrong)."""

    value: Tensor
    correct: Tensor | None = None


@runtime_checkable
class Task(Protocol):
    """What a network is for: its data, its loss, its metric, and how to evaluate it. One file each in `ltcompile.tasks`.

    A class that inherits from this one may leave out the methods that have a body here.
    """

    if TYPE_CHECKING:  # read-only, and plain attributes do: at runtime a property here would forbid them

        @property
        def metric(self) -> Metric: ...

        @property
        def description(self) -> Any:
            """What a ticket says of task and data, a `core.description.Description`."""

        @property
        def example(self) -> Any:
            """Inputs of two items, on the CPU."""

        @property
        def sizes(self) -> Mapping[Part, int]:
            """How many items a part has; empty where only the caller sees the data."""
            ...

    def batches(self, part: Part, size: int, device: torch.device, recipe: Recipe | None = None, seed: int = 0) -> Iterator[Batch]:
        """Batches of `size` items on `device`.

        With a recipe: shuffled by `seed`, augmented, whole batches only. Without: in order, all items. A method that also takes
        `shard: Shard = EVERYTHING` lets a data-parallel or resumed training read no more than its part.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe | None = None, teacher: Teacher | None = None) -> Loss:
        """What training minimises. Without a recipe it is the plain loss, by which channels are scored; `model` is then in eval mode.

        `teacher` gives the outputs of a trained network for the same inputs, which count `recipe.distill` of the loss. In a training in bf16
        outputs may have that type: `training.in_fp32` converts them.
        """
        ...

    def evaluate(self, model: nn.Module, part: Part, device: torch.device) -> Score:
        """`model` in eval mode over all items of a part; it keeps the modes that it has."""
        ...

    @property
    def fingerprint(self) -> str:
        """A text that changes with the data: a run is not resumed on other data. "" where that is not known."""
        return ""

    def adapt(self, recipe: Recipe) -> Recipe:
        """A network's usual recipe for this data."""
        return recipe

    def answers(self, model: nn.Module | None, part: Part, count: int, device: torch.device) -> list[Answer]:
        """What `model` answers to the first items of a part, as a report shows it; without a model, what it should. [] where nothing can be shown."""
        return []

    def curvature_losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Tensor]:
        """Losses of a batch, summed over its items, whose squared gradients estimate the diagonal of the loss's curvature.

        By default the loss itself, once: the empirical Fisher information. A task whose outputs are a distribution draws targets from it.
        """
        yield self.loss(model, batch).value * items(batch)


def items(batch: Batch) -> int:
    """How many items a batch has: the rows of its first tensor, or the entries of its first list."""
    inputs = batch[0]
    while isinstance(inputs, tuple | Mapping):
        inputs = next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))
    return len(inputs)
