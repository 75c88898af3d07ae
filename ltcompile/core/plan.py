"""Dependency groups and pruning plans: which channels of which layers stay, in the original network's coordinates."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from ltcompile.core.fields import SchemaError, from_json
from ltcompile.errors import InvalidFile, InvalidPlan
from ltcompile.paths import read_json, write_json

MOST_POSITIONS = 1 << 22  # of a layer, and of all blocks together, in a file: a few bytes could claim more than memory holds
Axis = str
Index = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Member:
    """One axis of one layer that shrinks when its group does.

    `axis` is "out" where the layer produces the channels, "in" where it consumes them, "each" where it holds one value per
    channel (batch norm, depthwise convolution), "NAME.DIM" for a dimension of a bare parameter or buffer, and "=NAME" for an
    integer attribute that counts them ("=NAME[i]" for one in a list, "=SETTINGS.NAME" for one of an object there). `index[c]` are the
    positions on that axis which go with the group's channel c: one for a plain layer, 64 for a head of attention, shifted behind a
    concatenation. `masked` is false where a mask leaves the values alone, since the network divides by them; the channels are zero all
    the same.
    """

    layer: str
    axis: Axis
    index: Index
    masked: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"out|in|each|\w+\.\d+|=\w+(\.\w+)?(\[\d+\])?", self.axis):
            raise InvalidPlan(f"layer {self.layer!r}: axis {self.axis!r} is none of out, in, each, NAME.DIM and =NAME")
        positions = list(itertools.chain.from_iterable(self.index))
        if min(positions, default=0) < 0 or len(set(positions)) != len(positions):
            raise InvalidPlan(f"layer {self.layer!r}: positions are negative, or two channels claim the same one")

    def positions(self, channels: tuple[int, ...]) -> list[int]:
        """The positions on this axis that go with `channels`."""
        return [p for c in channels for p in self.index[c]]

    def to_json(self) -> dict[str, Any]:
        start, span = (self.index[0][0], len(self.index[0])) if self.index and self.index[0] else (0, 0)
        place = (
            {"start": start, "span": span}
            if self.index == _block(start, span, len(self.index))
            else {"index": [list(row) for row in self.index]}
        )
        return {"layer": self.layer, "axis": self.axis, **place, **({} if self.masked else {"masked": False})}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], width: int) -> Member:
        if "index" in value:
            index = tuple(_whole(row) for row in value["index"])
        else:
            index = _block(value["start"], value["span"], width)
        masked = from_json(value.get("masked", True), bool, "masked")
        return cls(from_json(value["layer"], str, "layer"), from_json(value["axis"], str, "axis"), index, masked)


def _whole(values: Iterable[Any]) -> tuple[int, ...]:
    """Channels or positions from JSON. Raises SchemaError for what only looks like them, and for what is beyond any layer."""
    numbers = tuple(values)
    if not all(type(number) is int and 0 <= number < MOST_POSITIONS for number in numbers):
        raise SchemaError(f"a channel or position is not a whole number within 0..{MOST_POSITIONS - 1}")
    return numbers


def _block(start: int, span: int, width: int) -> Index:
    return tuple(tuple(range(start + c * span, start + (c + 1) * span)) for c in range(width))


@dataclass(frozen=True)
class Group:
    """All the slices that must go together when one channel goes; named after the first layer that produces it.

    `frozen` is empty for a group that can be cut, else the reason why it is left alone. Groups with the same `tied`, if it
    is not empty, keep the same share of their channels: a width of attention is its heads times their size.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    frozen: str = ""
    tied: str = ""

    def __post_init__(self) -> None:
        if self.width < 1 or not self.members:
            raise InvalidPlan(f"group {self.name!r} is empty")
        for member in self.members:
            if len(member.index) != self.width:
                raise InvalidPlan(f"group {self.name!r}: {member.layer!r} maps {len(member.index)} of {self.width} channels")

    @property
    def producers(self) -> tuple[Member, ...]:
        """The layers whose filters make this group's channels."""
        return tuple(m for m in self.members if m.axis == "out")

    @property
    def makers(self) -> tuple[Member, ...]:
        """The layers that make the group's channels; without one, the first that holds them, as the bare weights of attention do."""
        return self.producers or self.members[:1]

    @property
    def filters_per_channel(self) -> int:
        """How many filters go when one channel goes: one in a chain, several in a residual stage or a head of attention."""
        return sum(len(m.index[0]) for m in self.makers)


@dataclass(frozen=True)
class Branch:
    """A residual branch: what a network computes and adds to a shortcut, named after the last of `layers`.

    `layers` are its outermost modules in the order in which they run. A mask zeroes the weights of the layer `zeroed`, and with them what
    the branch adds; a cut replaces `layers`. Where the branch gives another shape than it gets, `stride` is the step between the places
    that it keeps, else 0. Layers of `pairs` give (output, None), as attention does.
    """

    layers: tuple[str, ...]
    zeroed: str
    stride: int = 0
    pairs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers or "" in self.layers or len(set(self.layers)) != len(self.layers) or not self.holds(self.zeroed):
            raise InvalidPlan(f"a branch of the layers {list(self.layers)} cannot be removed by zeroing {self.zeroed!r}")
        if self.stride < 0 or not set(self.pairs) <= set(self.layers):
            raise InvalidPlan(f"branch {self.name!r}: stride {self.stride} is negative, or a pair is not among its layers")

    @property
    def name(self) -> str:
        return self.layers[-1]

    def holds(self, layer: str) -> bool:
        """Whether the module called `layer` is one of the branch's, or inside one."""
        return any(f"{layer}.".startswith(f"{own}.") for own in self.layers)


@dataclass(frozen=True)
class PruningPlan:
    """What stays of each group of the original network. Plans compose: a plan on a plan is a plan on the original.

    `groups` are the original network's; `kept` names, for every group, the channels that stay, sorted. `removed_branches` go as a whole,
    whatever `kept` says of groups that only they hold.

    Raises:
        InvalidPlan: indices out of range, repeated or unsorted; a frozen group cut, or a group without any channel left; groups unknown
            or missing; tied groups cut by different shares; branches that share a layer.
    """

    groups: tuple[Group, ...]
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    removed_branches: tuple[Branch, ...] = ()

    def __post_init__(self) -> None:
        for branch in self.removed_branches:
            for layer in branch.layers:
                if (other := self.removes(layer)) is not branch or self.removes(layer.rpartition(".")[0]):
                    raise InvalidPlan(f"the branches {branch.name!r} and {other and other.name!r} share {layer!r}: remove one of them")
        names = [g.name for g in self.groups]
        if len(set(names)) != len(names):
            raise InvalidPlan("two groups of the plan have the same name")
        if extra := sorted(set(self.kept) - set(names)):
            raise InvalidPlan(f"the plan keeps channels of {', '.join(extra)}, which the network does not have")
        kept = {g.name: tuple(self.kept.get(g.name, range(g.width))) for g in self.groups}
        for group in self.groups:
            channels = kept[group.name]
            if not channels:
                raise InvalidPlan(f"the plan empties {group.name!r}: at least one channel must stay")
            if channels[0] < 0 or channels[-1] >= group.width or any(a >= b for a, b in itertools.pairwise(channels)):
                raise InvalidPlan(f"the plan's channels of {group.name!r} are not rising within 0..{group.width - 1}")
            if group.frozen and len(channels) < group.width:
                raise InvalidPlan(f"the plan cuts {group.name!r}, which is frozen: {group.frozen}")
        shares: dict[str, tuple[str, Fraction]] = {}
        for group in filter(self.members_left, self.groups):  # tied to what is gone, a group is free
            share = Fraction(len(kept[group.name]), group.width)
            first, expected = shares.setdefault(group.tied, (group.name, share)) if group.tied else (group.name, share)
            if share != expected:
                raise InvalidPlan(f"the plan keeps {share} of {group.name!r} and {expected} of {first!r}, which are tied to the same share")
        object.__setattr__(self, "kept", kept)

    def __iter__(self) -> Iterator[tuple[Group, tuple[int, ...]]]:
        return ((group, self.kept[group.name]) for group in self.groups)

    @property
    def frozen(self) -> dict[str, str]:
        """The groups that are left alone, with the reason why."""
        return {g.name: g.frozen for g in self.groups if g.frozen}

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Group -> (channels before, channels after)."""
        return {g.name: (g.width, len(kept) if self.members_left(g) else 0) for g, kept in self}

    @property
    def filters(self) -> tuple[int, int]:
        """All filters of the groups, before and after."""
        before = sum(g.width * g.filters_per_channel for g in self.groups)
        left = ((replace(g, members=members), kept) for g, kept in self if (members := self.members_left(g)))
        return before, sum(len(kept) * g.filters_per_channel for g, kept in left)

    @property
    def is_identity(self) -> bool:
        return not self.removed_branches and all(before == after for before, after in self.widths.values())

    def removes(self, layer: str) -> Branch | None:
        """The removed branch that holds `layer`, if one does."""
        while layer and layer not in self._branch_of:
            layer = layer.rpartition(".")[0]
        return self._branch_of.get(layer)

    @cached_property
    def _branch_of(self) -> dict[str, Branch]:
        return {layer: branch for branch in self.removed_branches for layer in branch.layers}

    def members_left(self, group: Group) -> tuple[Member, ...]:
        """The members of `group` outside removed branches; where nothing but counters is left, none.

        What stands for a branch that changes the shape counts its channels as "=channels" of the first layer.
        """
        if not self.removed_branches:
            return group.members
        found = [m for m in group.members if self.removes(m.layer) is None]
        if all(m.axis.startswith("=") for m in found):
            return ()
        for member in group.members:
            branch = self.removes(member.layer)
            if branch and branch.stride and member.layer == branch.zeroed and member.axis in ("out", "each"):
                found.append(Member(branch.layers[0], "=channels", member.index))
        return tuple(found)

    def removed(self) -> dict[tuple[str, Axis], list[int]]:
        """(layer, axis) -> the positions that go, sorted: all that a surgeon has to know besides the removed branches."""
        gone: dict[tuple[str, Axis], list[int]] = {}
        for group, kept in self:
            channels = tuple(sorted(set(range(group.width)) - set(kept)))
            for member in self.members_left(group) if channels else ():
                gone.setdefault((member.layer, member.axis), []).extend(member.positions(channels))
        return {key: sorted(positions) for key, positions in gone.items() if positions}

    def unmasked(self) -> set[tuple[str, Axis]]:
        """(layer, axis) whose values a mask leaves alone."""
        return {(m.layer, m.axis) for g in self.groups for m in g.members if not m.masked}

    def remaining(self) -> tuple[Group, ...]:
        """The groups of the cut network, in its own coordinates: no second tracing is needed."""
        gone = self.removed()
        return tuple(
            replace(g, width=len(kept), members=tuple(_renumber(m, kept, gone.get((m.layer, m.axis), [])) for m in members))
            for g, kept in self
            if (members := self.members_left(g))
        )

    def then(self, inner: PruningPlan) -> PruningPlan:
        """The plan on the original that equals this plan, followed by `inner` on the cut network.

        Groups of one channel can lose nothing more, so a tracing of the cut network may know less of them.

        Raises:
            InvalidPlan: `inner` is not a plan of this plan's cut network.
        """
        theirs = {g.members: g.name for g in inner.groups if g.width > 1}  # names may contain positions, which have changed
        ours = {g.members: g.name for g in self.remaining() if g.width > 1}
        if theirs.keys() != ours.keys():
            raise InvalidPlan("the second plan is not a plan of the network that the first one leaves")
        kept = {name: tuple(self.kept[name][c] for c in inner.kept[theirs[key]]) for key, name in ours.items()}
        return PruningPlan(self.groups, {**self.kept, **kept}, (*self.removed_branches, *inner.removed_branches))

    def to_json(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        groups = [
            {"name": g.name, "width": g.width, "frozen": g.frozen, "tied": g.tied, "members": [m.to_json() for m in g.members]}
            for g in self.groups
        ]
        found: dict[str, Any] = {"groups": groups, "kept": {name: list(channels) for name, channels in self.kept.items()}}
        if self.removed_branches:
            found["removed_branches"] = [
                {"layers": list(b.layers), "zeroed": b.zeroed, "stride": b.stride, "pairs": list(b.pairs)} for b in self.removed_branches
            ]
        return found

    @classmethod
    def from_json(cls, value: Any) -> PruningPlan:
        """The plan that `to_json` wrote.

        Raises:
            InvalidPlan: a field is missing, of the wrong type or contradictory.
        """
        try:
            if (claimed := sum(_claim(group) for group in value["groups"])) > MOST_POSITIONS:
                raise InvalidPlan(f"the plan claims {claimed:,} positions, more than the {MOST_POSITIONS:,} that are read")
            groups = tuple(_group(group) for group in value["groups"])
            kept = {from_json(name, str, "kept"): _whole(channels) for name, channels in value["kept"].items()}
            branches = from_json(value.get("removed_branches", []), tuple[Branch, ...], "removed_branches")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            message = str(error) if isinstance(error, SchemaError) else repr(error)
            raise InvalidPlan(f"the plan has a missing or malformed field: {message}") from error
        return cls(groups, kept, branches)

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Raises InvalidFile where there is no valid plan."""
        try:
            return cls.from_json(read_json(path, "pruning plan"))
        except InvalidPlan as error:
            raise InvalidFile(f"{path} is not a valid pruning plan: {error}; write it again with `ltcompile plan`") from error


def _claim(group: Mapping[str, Any]) -> int:
    """How many positions a group in a file claims by blocks. Raises SchemaError where a number is none of a layer."""
    (width,) = _whole([group["width"]])
    return sum(width * _whole([member["start"], member["span"]])[1] for member in group["members"] if "index" not in member)


def _group(value: Mapping[str, Any]) -> Group:
    members = tuple(Member.from_json(member, value["width"]) for member in value["members"])
    name, frozen, tied = (from_json(text, str) for text in (value["name"], value["frozen"], value.get("tied", "")))
    return Group(name, value["width"], members, frozen, tied)


def _renumber(member: Member, kept: tuple[int, ...], gone: list[int]) -> Member:
    """The member after the positions `gone` have left its axis."""
    size = 1 + max((p for row in member.index for p in row), default=-1)
    new_position, lost, next_gone = [0] * size, 0, iter([*gone, math.inf])
    upcoming = next(next_gone)
    for position in range(size):
        if position == upcoming:
            lost, upcoming = lost + 1, next(next_gone)
        new_position[position] = position - lost
    return replace(member, index=tuple(tuple(new_position[p] for p in member.index[c]) for c in kept))
