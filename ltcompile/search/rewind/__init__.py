"""From which weights, and at which rate, a pruned network is trained again: one rewinding a file.

A file offers `restart(sources, plan, inner) -> nn.Module`, the pruned network before its training, `recipe(recipe)`, what it is
trained with, and `first_epoch(epoch)`, where in the schedule it starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import nn

from ltcompile import registry


@dataclass(frozen=True)
class Sources:
    """Where weights can come from: the network just trained (in its own coordinates), and two in the original's, made on demand."""

    trained: nn.Module
    early: Callable[[], nn.Module]
    fresh: Callable[[], nn.Module]


def names() -> list[str]:
    """The rewindings there are."""
    return list(registry.modules(__name__))


def load(name: str) -> ModuleType:
    """The rewinding `name`. Raises UnknownName."""
    return registry.load(__name__, "rewinding", name)
