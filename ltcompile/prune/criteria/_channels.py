"""The values that a criterion scores: one row for each channel, from any layers and axes, or one row for each weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ltcompile.core.plan import Group, Member
from ltcompile.errors import InvalidSetting
from ltcompile.graph.layers import place

Reduction = Literal["default", "producers", "filters", "all"]
PART = 2**17  # values that are looked at together


@dataclass(frozen=True)
class Slice:
    """The values of one parameter that go with a group's channels. `index` (C, m) are the positions on its dimension `dim`.

    The m positions of a channel are one row, so that a score covers all that is removed together: a filter or an attention head.
    """

    name: str
    parameter: Tensor
    dim: int
    index: Tensor

    @property
    def values(self) -> Tensor:
        """The weights, in float64: (C, n)."""
        return self._rows(self.parameter)

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The same values of another tensor of the parameter's shape, such as its gradient: (C, n). Raises InvalidSetting."""
        if self.name not in tensors:
            raise InvalidSetting(
                f"the evidence has no values for {self.name!r}: is it left out of training (requires_grad)? "
                "group_reduction=producers scores by the layers that make the channels alone"
            )
        return self._rows(tensors[self.name])

    def parts(self) -> Iterator[Slice]:
        """The same values in parts of some channels each, small enough for a processor's cache."""
        width = self.parameter.numel() // self.parameter.shape[self.dim] * self.index.shape[1]
        for index in self.index.split(max(1, PART // width)):
            yield Slice(self.name, self.parameter, self.dim, index)

    def _rows(self, tensor: Tensor) -> Tensor:
        rows = tensor.reshape(self.parameter.shape).index_select(self.dim, self.index.flatten().to(tensor.device)).movedim(self.dim, 0)
        return rows.reshape(len(self.index), -1).double()


class Scored(ABC):
    """What a criterion scores: the channels of a group, or the weights of a parameter."""

    @property
    @abstractmethod
    def width(self) -> int:
        """C, the number of channels or weights."""

    @property
    @abstractmethod
    def block(self) -> float:
        """The number of filters of a layer that one of them stands for."""

    @property
    @abstractmethod
    def slices(self) -> list[Slice]:
        """The values on which the scores are based."""

    def mean(self, measure: Callable[[Slice], Tensor]) -> Tensor:
        """The mean over the slices of `measure`, which scores each channel separately: (C,)."""
        return self.average([torch.cat([measure(part) for part in piece.parts()]) for piece in self.slices])

    def average(self, scores: list[Tensor]) -> Tensor:
        """The mean over `scores`, one (C,) for each slice; ones if there are none, because the channels do not differ."""
        return torch.stack(scores).mean(0) if scores else torch.ones(self.width)


@dataclass(frozen=True)
class Weights(Scored):
    """The weights of one parameter, each by itself."""

    name: str
    parameter: Tensor

    @property
    def width(self) -> int:
        return self.parameter.numel()

    @property
    def block(self) -> float:
        return 1.0

    @property
    def slices(self) -> list[Slice]:
        return [Slice(self.name, self.parameter.detach().reshape(-1), 0, torch.arange(self.width)[:, None])]


@dataclass(frozen=True)
class Channels(Scored):
    """The channels of one group of a network, and the weights that `reduction` scores them by."""

    group: Group
    model: nn.Module
    reduction: Reduction = "producers"

    @property
    def width(self) -> int:
        """C."""
        return self.group.width

    @property
    def block(self) -> float:
        """The number of filters in one channel, averaged over the layers that produce them: more than 1 for a head of attention.

        A channel's loss divided by this is the loss per filter, which the ranking over whole networks compares.
        """
        return self.group.filters_per_channel / len(self.group.makers)

    @cached_property
    def norms(self) -> tuple[Member, ...]:
        """The group's batch norms."""
        return tuple(m for m in self.group.members if isinstance(self.layer(m), nn.modules.batchnorm._BatchNorm))

    @property
    def readers(self) -> tuple[Member, ...]:
        """The layers that consume the channels."""
        return tuple(m for m in self.group.members if m.axis == "in")

    @cached_property  # type: ignore[override]  # it is the property, kept
    def slices(self) -> list[Slice]:
        """The slices that criteria of weights score. A group without producers is scored by all its members.

        Biases are left out unless there is nothing else: they shift a channel's values and do not change how much these vary.
        """
        members = self.group.producers if self.reduction == "producers" else ()
        found = [piece for member in members or self.group.members for piece in self._slices(member)]
        if self.reduction == "filters":
            found = [s for s in found if s.parameter.dim() > 1] or found  # no scales of norms
        return [s for s in found if not s.name.endswith("bias")] or found

    @property
    def parameters(self) -> list[Slice]:
        """The parameters that a mask zeroes with the channels, of all members."""
        return [piece for member in self.group.members if member.masked for piece in self._slices(member)]

    def mean_of(self, found: Mapping[tuple[str, str], Tensor], *choices: Iterable[Member]) -> Tensor:
        """The scores (C,) by the values in `found` (by layer and axis), averaged over a channel's positions and over members.

        The first of `choices` with values in `found` is used; without any, the norm of each slice relative to the group's largest.
        """
        for members in choices:
            known = [(m, found[m.layer, m.axis]) for m in members if (m.layer, m.axis) in found]
            if known:
                return torch.stack([tensor[positions(m).to(tensor.device)].mean(1) for m, tensor in known]).mean(0)
        lengths = self.mean(lambda s: s.values.norm(dim=1))
        return lengths / lengths.max().clamp_min(1e-30)

    def layer(self, member: Member) -> nn.Module:
        return self.model.get_submodule(member.layer)

    def _slices(self, member: Member) -> list[Slice]:
        index, layer = positions(member), self.layer(member)
        slices: list[Slice] = []
        for name, dim in place(layer, member.axis).tensors:
            value = getattr(layer, name, None)
            if isinstance(value, nn.Parameter):  # no running statistics
                slices.append(Slice(f"{member.layer}.{name}".lstrip("."), value, dim, index))
        return slices


def positions(member: Member) -> Tensor:
    """The positions of a member that go with each channel: (C, m)."""
    return torch.from_numpy(np.asarray(member.index, dtype=np.int64))
