"""Limits of a cut: layers that are not cut, the only layers to cut, ratios and minimum widths."""

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

    A pattern is a regular expression that matches the whole name of a layer, of a group, or of a module (and so all layers inside):
    "layer1", "layer1.0.conv1", ".*conv1". Limits apply to the channels that a layer produces; its inputs may shrink. Tied groups follow
    the strictest limit among them.

    Args:
        keep: layers that are not cut.
        only: if given, no other layers are cut.
        ratios: pattern -> the fraction of its channels that a layer loses in the end, independent of the scope's ranking; the smallest
            if several match.
        max_layer_ratio: the largest fraction of its channels that any layer may lose.
        min_channels: the smallest number of channels that a layer keeps.

    Raises:
        InvalidSetting: a value outside its range, or a pattern that is not a regular expression.
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
                raise InvalidSetting(f"{pattern!r} is not a regular expression: {error}") from error

    def freeze(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        """`groups`; those that the limits forbid to cut are frozen, with the reason.

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
        """The fraction of its weights that this layer loses by a ratio of its own, the smallest if several match; None without one."""
        return min((ratio for pattern, ratio in self.ratios.items() if _matches(pattern, _with_modules(layer))), default=None)

    def floors(self, groups: tuple[Group, ...]) -> dict[str, int]:
        """Group -> the smallest number of channels that it keeps."""
        return {g.name: min(g.width, max(self.min_channels, math.ceil((1 - self.max_layer_ratio) * g.width - 1e-9))) for g in groups}

    def kept(self, groups: tuple[Group, ...], progress: float = 1.0) -> dict[str, int]:
        """Group with a ratio of its own -> the number of channels that it keeps after the fraction `progress` of the way to that ratio."""
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
        """The reason why this group must not be cut; empty if it may."""
        kept = next((p for p in self.keep if _matches(p, _made(group))), None)
        if kept is not None:
            return f"it is to be kept ({kept!r})"
        makers = [m.layer for m in group.producers] or [group.name]
        others = [layer for layer in makers if not any(_matches(p, {group.name, *_with_modules(layer)}) for p in self.only)]
        return f"{others[0]!r} is not among the layers to cut" if self.only and others else ""

    def check_names(self, layers: Iterable[str]) -> None:
        """Raises InvalidSetting if a pattern matches neither one of these layers nor a module that contains one."""
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
    """The names that a pattern may match for this group: its own, those of the layers that hold its channels, and of the modules around."""
    return {group.name}.union(*(_with_modules(m.layer) for m in group.members if m.axis != "in"))


def _with_modules(layer: str) -> list[str]:
    """The layer's name and those of the modules around it: a.b.c, a.b, a."""
    parts = layer.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), 0, -1) if layer]


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)
