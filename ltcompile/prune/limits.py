"""Where a cut must stop: layers to keep, layers alone to cut, ratios and floors."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ltcompile.core.plan import Group
from ltcompile.core.records import Record
from ltcompile.errors import InvalidSetting
from ltcompile.graph.tied_groups import TiedGroups, tied_groups


@dataclass(frozen=True, kw_only=True)
class Limits(Record):
    """What may be cut, and how far.

    A pattern is a regular expression for the whole name of a layer, of a group, or of a module, which stands for all layers inside:
    "layer1", "layer1.0.conv1", ".*conv1". Layers count where they make channels; what they read may shrink. Tied groups follow the
    strictest among them.

    `keep`: these layers are not cut. `only`: no others are. `ratios`: pattern -> the share of its channels that a layer loses in the
    end, whatever the scope ranks elsewhere; the smallest where several match. `max_layer_ratio`: the largest share of its
    channels that any layer may lose; `min_channels`: the least number that it keeps.

    Raises:
        InvalidSetting: a value outside its range, or a pattern that is no regular expression.
    """

    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    max_layer_ratio: float = 0.95
    min_channels: int = 1

    def __post_init__(self) -> None:
        checks = {
            f"the largest ratio of a layer must be in (0, 1], not {self.max_layer_ratio}": 0 < self.max_layer_ratio <= 1,
            f"a layer keeps at least 1 channel, not {self.min_channels}": self.min_channels >= 1,
            "keep and only take several patterns: write ('layer1',)": not isinstance(self.keep, str) and not isinstance(self.only, str),
        }
        checks |= {
            f"the ratio of {pattern!r} must be in [0, {self.max_layer_ratio:g}] (max_layer_ratio) and below 1, not {ratio}": (
                0 <= ratio <= self.max_layer_ratio and ratio < 1
            )
            for pattern, ratio in self.ratios.items()
        }
        for message, holds in checks.items():
            if not holds:
                raise InvalidSetting(message)
        for pattern in (*self.keep, *self.only, *self.ratios):
            try:
                re.compile(pattern)
            except re.error as error:
                raise InvalidSetting(f"{pattern!r} is no regular expression: {error}") from error

    def freeze(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        """`groups`, frozen where the limits forbid a cut, with the reason.

        Raises:
            InvalidSetting: a pattern matches nothing, or only what cannot be cut anyway; or nothing is left to cut.
        """
        self._check_patterns(groups)
        reasons: dict[str, str] = {}
        for tied in tied_groups(groups):
            why = {g.name: g.frozen or self._forbids(g) for g in tied.groups}
            first = next((name for name, reason in why.items() if reason), "")
            reasons |= {name: reason or (first and f"it is tied to {first!r}: {why[first]}") for name, reason in why.items()}
        frozen = tuple(replace(g, frozen=reasons[g.name]) for g in groups)
        if all(reasons.values()):
            refusals = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise InvalidSetting(f"the limits leave nothing to cut: {refusals}")
        return frozen

    def allows(self, layer: str) -> bool:
        """Whether single weights of this layer may be cut."""
        names = _with_modules(layer)
        return not any(_matches(p, names) for p in self.keep) and (not self.only or any(_matches(p, names) for p in self.only))

    def ratio_of(self, layer: str) -> float | None:
        """The share of its weights that this layer loses in the end, where that is its own; the smallest where several match."""
        return min((ratio for pattern, ratio in self.ratios.items() if _matches(pattern, _with_modules(layer))), default=None)

    def floors(self, groups: tuple[Group, ...]) -> dict[str, int]:
        """Group -> the channels that it keeps at least."""
        return {g.name: min(g.width, max(self.min_channels, math.ceil((1 - self.max_layer_ratio) * g.width - 1e-9))) for g in groups}

    def kept(self, groups: tuple[Group, ...], progress: float = 1.0) -> dict[str, int]:
        """Group -> the channels that it keeps by a ratio of its own, after the part `progress` of the way there; others are left out."""
        found: dict[str, int] = {}
        for tied in tied_groups(groups):
            ratio = self._ratio(tied)
            if ratio is not None:
                share = 1 - (1 - ratio) ** progress
                found |= {g.name: g.width - math.floor(share * g.width + 1e-9) for g in tied.groups}
        return found

    def _ratio(self, tied: TiedGroups) -> float | None:
        made = set().union(*(_made(g) for g in tied.groups))
        return min((ratio for pattern, ratio in self.ratios.items() if _matches(pattern, made)), default=None)

    def _forbids(self, group: Group) -> str:
        """Why this group must not be cut; empty if it may."""
        kept = next((p for p in self.keep if _matches(p, _made(group))), None)
        if kept is not None:
            return f"it is to be kept ({kept!r})"
        makers = [m.layer for m in group.producers] or [group.name]
        others = [layer for layer in makers if not any(_matches(p, {group.name, *_with_modules(layer)}) for p in self.only)]
        return f"{others[0]!r} is not among the layers to cut" if self.only and others else ""

    def check_names(self, layers: Iterable[str]) -> None:
        """Raises InvalidSetting where a pattern matches none of these layers nor a module around them."""
        self._check_matching(sorted(set().union(*(_with_modules(layer) for layer in layers))))

    def _check_matching(self, names: list[str]) -> None:
        for pattern in (*self.keep, *self.only, *self.ratios):
            if not _matches(pattern, names):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
                hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names[:8])}, ..."
                raise InvalidSetting(f"{pattern!r} matches no layer that makes channels; {hint} (a pattern is for the whole name)")

    def _check_patterns(self, groups: tuple[Group, ...]) -> None:
        self._check_matching(sorted(set().union(*(_made(g) for g in groups))))
        for pattern in self.ratios:
            matching = [g for g in groups if _matches(pattern, _made(g))]
            if all(g.frozen for g in matching):
                raise InvalidSetting(f"{pattern!r} has a ratio of its own, but cannot be cut: {matching[0].frozen}")


def _made(group: Group) -> set[str]:
    """The names that a pattern may call this group by: its own, and of the layers that hold its channels and the modules around."""
    return {group.name}.union(*(_with_modules(m.layer) for m in group.members if m.axis != "in"))


def _with_modules(layer: str) -> list[str]:
    """The layer's name and those of the modules around it: a.b.c, a.b, a."""
    parts = layer.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), 0, -1) if layer]


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)
