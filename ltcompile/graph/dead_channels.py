"""Remove the dead channels of a network with zeros among its weights: the result is smaller, dense, and the same function.

Two kinds of channels are dead. Removing one can make others dead, so the removal is repeated until none is left:

- unread: all weights that read it are zero. Tracing allows sums over channels only through weights, so nothing else depends on it.
- constant: all weights of a layer that produces it are zero, so its value comes from a bias or a batch norm's shift alone. The value at
  each consumer is measured, not derived, because a sigmoid, a residual or a padded pool may lie between. It is folded into the consumer's
  bias. Where the consumer pads with zeros (sums at its border have fewer taps) or has no bias, one of the group's constant channels stays
  and represents all of them: its weights become sum over j of W[:, j] * value[j] / value[its own], which is exact at borders too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltcompile.core.plan import Group, Member, PruningPlan
from ltcompile.errors import InvalidPlan
from ltcompile.graph._copy import copied
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.layers import place, storage
from ltcompile.graph.surgeon import cut, dropped_weights, zero_
from ltcompile.graph.tied_groups import TiedGroups, tied_groups
from ltcompile.graph.widths import LAYERS

IMAGES = 8  # random ones, over which a constant channel must be constant
ROUNDING = 1e-6  # by which a constant may vary, relative to itself
STRONG = 0.1  # a channel represents others only where its value is at least this fraction of the largest, to limit rounding errors
_MIXING = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.RNNBase)
_MAKING = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
_Seen = dict[str, tuple[Tensor, Tensor]]  # reader -> the least and largest value at each of its inputs


@dataclass(frozen=True)
class Eliminated:
    """A network without its dead channels, in eval mode, and the plan of what was cut, on the groups of the original.

    `constant` channels (a channel of a residual stage is several filters) were folded into their consumers; no weight read the `unread` ones.
    """

    module: nn.Module
    plan: PruningPlan
    constant: int
    unread: int


@torch.no_grad()
def eliminate_dead_channels(model: nn.Module, groups: tuple[Group, ...], example: Example) -> Eliminated:
    """`model` without the channels that zeros among its weights made dead; outputs equal those of `model` in eval mode up to rounding.

    At least one channel of each group stays, and all of the groups that are frozen, that hold bare parameters or share weights
    with another layer, or whose norms mix channels. Groups that are tied keep the same share.

    Args:
        groups: as `trace` finds them in `model`.
        example: what the network is called with; shapes, types, devices and the values of integers matter.

    Raises:
        InvalidPlan: the groups are of another network.
    """
    network = copied(model).eval()
    found = _open(network, groups)
    calls = noise_like(example)
    plan = PruningPlan(groups)
    while _one_round(network, found, calls):
        plan = PruningPlan(groups, {channels.group.name: channels.kept for tied in found for channels in tied})
        zero_(network, dropped_weights(network, plan))  # what only they read, or made, is empty now
    every = [channels for tied in found for channels in tied]
    return Eliminated(cut(network, plan), plan, sum(c.constant for c in every), sum(c.unread for c in every))


def noise_like(example: Example) -> list[Arguments]:
    """Calls of the network with noise: one of `IMAGES` images, or so many calls where there is more than one input."""
    rng = torch.Generator().manual_seed(0)
    if isinstance(example, Tensor):
        return [Arguments.of(torch.randn(IMAGES, *example.shape[1:], generator=rng).to(example))]
    inputs = Arguments.of(example)
    return [inputs.map(lambda t: torch.randn(t.shape, generator=rng).to(t) if t.is_floating_point() else t) for _ in range(IMAGES)]


class _Axis:
    """The weights of a layer that make or read a group's channels: `weight` is a view with that axis first, `index` (C, P) its positions."""

    def __init__(self, network: nn.Module, member: Member) -> None:
        self.name, self.layer = member.layer, network.get_submodule(member.layer)
        self.weight, self.index = _lanes(self.layer, member.axis), torch.tensor(member.index)
        if int(self.index.max()) >= len(self.weight):
            raise InvalidPlan(f"position {int(self.index.max())} of {member.layer!r} is beyond its {len(self.weight)}")

    def empty(self) -> Tensor:
        """Whether all weights of each channel are zero (C,)."""
        return (self.weight == 0).reshape(len(self.weight), -1).all(1).cpu()[self.index].all(1)

    def total(self, channels: Tensor, values: Tensor) -> Tensor:
        """What `channels` of constant `values` (C, P) add to each output, tap by tap (out, ...)."""
        weight = self.weight[self.index[channels]].double()
        return (weight * values[channels].to(weight).view(*weight.shape[:2], *[1] * (weight.dim() - 2))).sum((0, 1))


@dataclass(eq=False)
class _Channels:
    """The channels of a group: the layers that produce and read them, and which channels remain."""

    group: Group
    makers: list[_Axis]
    readers: list[_Axis]
    alive: Tensor  # (C,)
    constant: int = 0
    unread: int = 0

    @classmethod
    def of(cls, network: nn.Module, group: Group) -> _Channels:
        def makes(member: Member) -> bool:
            layer = network.get_submodule(member.layer)
            return member.axis == "out" or (member.axis == "each" and isinstance(layer, _MAKING) and layer.weight is not None)

        makers = [_Axis(network, member) for member in group.members if makes(member)]
        readers = [_Axis(network, member) for member in group.members if member.axis == "in"]
        return cls(group, makers, readers, torch.ones(group.width, dtype=torch.bool))

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(self.alive.nonzero().flatten().tolist())

    def unread_channels(self) -> Tensor:
        """The remaining channels that no weight reads (C,)."""
        return self.alive & _all(reader.empty() for reader in self.readers) if self.readers else torch.zeros_like(self.alive)

    def zero_weight_channels(self) -> Tensor:
        """The channels that a layer produces with zero weights, and that are read (C,): they may be constant."""
        empty = ~_all(~maker.empty() for maker in self.makers) if self.makers else torch.zeros_like(self.alive)
        return self.alive & empty & ~self.unread_channels()


@dataclass
class _Going:
    """What could go in a round (C,); of the constant ones all, those that stay among them, and what each reader sees of them (C, P)."""

    unread: Tensor
    constant: Tensor
    all_constant: Tensor
    values: list[Tensor]

    def limit(self, count: int) -> None:
        """Selects at most `count` channels to remove; unread ones first."""
        first = torch.cat([self.unread.nonzero(), self.constant.nonzero()]).flatten()[:count]
        chosen = torch.zeros_like(self.unread)
        chosen[first] = True
        self.unread, self.constant = self.unread & chosen, self.constant & chosen


def _all(each: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(each)).all(0)


def _lanes(layer: nn.Module, axis: str) -> Tensor:
    """A view of the layer's weight with `axis` first."""
    name, dim = place(layer, axis).tensors[0]
    weight: Tensor = getattr(layer, name).detach()
    return weight.movedim(dim, 0)


def _open(network: nn.Module, groups: tuple[Group, ...]) -> list[list[_Channels]]:
    """The sets of tied groups whose channels can be removed. Raises InvalidPlan where the groups do not fit the network."""
    try:
        return [[_Channels.of(network, group) for group in tied.groups] for tied in tied_groups(groups) if _is_plain(network, tied)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidPlan(f"the groups are of another network: {error}; trace this one") from error


def _is_plain(network: nn.Module, tied: TiedGroups) -> bool:
    """Whether channels can go, and all that holds them are layers with weights of their own, none of which mixes channels."""
    if tied.frozen or tied.steps == 1 or any("." in member.axis for group in tied.groups for member in group.members):
        return False
    owners = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    layers = [network.get_submodule(m.layer) for g in tied.groups for m in g.members if not m.axis.startswith("=")]
    return not any(isinstance(layer, _MIXING) or any(owners[id(p)] > 1 for p in layer.parameters(recurse=False)) for layer in layers)


def _one_round(network: nn.Module, found: list[list[_Channels]], calls: list[Arguments]) -> bool:
    """Folds and marks the channels that are dead now; returns whether there were any."""
    candidates = any(bool(channels.zero_weight_channels().any()) for tied in found for channels in tied)
    seen = _read(network, {r.name for tied in found for channels in tied for r in channels.readers}, calls) if candidates else {}
    gone = False
    for tied in found:
        going = [_going(channels, seen) for channels in tied]
        _level(tied, going)
        for channels, now in zip(tied, going, strict=True):
            gone |= _remove(channels, now)
    return gone


def _going(channels: _Channels, seen: _Seen) -> _Going:
    unread, constant = channels.unread_channels(), channels.zero_weight_channels()
    if not constant.any() or any(reader.name not in seen for reader in channels.readers):
        return _Going(unread, none := torch.zeros_like(constant), none, [])
    values = []
    for reader in channels.readers:
        low, high = (bound[reader.index] for bound in seen[reader.name])
        constant &= (high - low <= ROUNDING * torch.maximum(low.abs(), high.abs())).all(1)
        values.append(low)
    return _Going(unread, constant & ~_representatives(channels.readers, constant, values), constant, values)


def _representatives(readers: list[_Axis], constant: Tensor, values: list[Tensor]) -> Tensor:
    """The constant channels (C,) that stay and stand for the others: as few as are strong enough for every reader that needs one."""
    strengths = []
    for reader, value in zip(readers, values, strict=True):
        strength = value.abs().amax(1) * constant
        if _wants_one(reader.layer) and bool(reader.weight[reader.index[strength > 0]].any()):
            strengths.append(strength / strength.max())
    chosen = torch.zeros_like(constant)
    while strengths:
        table = torch.stack(strengths)  # (readers, C)
        weakest = torch.where(table >= STRONG, table, 1.0).amin(0)
        best = int(((table >= STRONG).sum(0) + weakest / 2).argmax())  # strong for most readers, then strongest where it is weakest
        chosen[best] = True
        strengths = [strength for strength in strengths if strength[best] < STRONG]
    return chosen


def _wants_one(layer: nn.Module) -> bool:
    """Whether a constant input of `layer` cannot be folded into its bias: it has none, or its border sums fewer taps."""
    if layer.bias is None or isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return True
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return any(size > 1 for size in layer.kernel_size) if layer.padding == "same" else any(layer.padding)  # type: ignore[arg-type, union-attr]


def _level(tied: list[_Channels], going: list[_Going]) -> None:
    """Limits the removals so that tied groups lose the same fraction, and every group keeps a channel."""
    steps = math.gcd(*(channels.group.width for channels in tied))
    pairs = list(zip(tied, going, strict=True))
    gone = [int((~channels.alive | now.unread | now.constant).sum()) * steps // channels.group.width for channels, now in pairs]
    for channels, now in pairs:
        now.limit(min(*gone, steps - 1) * channels.group.width // steps - int((~channels.alive).sum()))


def _remove(channels: _Channels, going: _Going) -> bool:
    """Folds the constants into their consumers and marks what is removed; returns whether anything is."""
    if going.constant.any():
        for reader, value in zip(channels.readers, going.values, strict=True):
            _fold(reader, going.constant, value, going.all_constant & ~going.constant)
    channels.alive &= ~(going.unread | going.constant)
    channels.constant += int(going.constant.sum())
    channels.unread += int(going.unread.sum())
    return bool((going.unread | going.constant).any())


def _fold(reader: _Axis, constant: Tensor, values: Tensor, staying: Tensor) -> None:
    """Add what the `constant` channels give to the reader's bias, or to the strongest of those `staying`; and zero the weights that read them."""
    total = reader.total(constant, values)
    if _wants_one(reader.layer) and total.any():
        strengths = values.abs() * staying[:, None]  # (C, P)
        channel, at = divmod(int(strengths.argmax()), values.shape[1])
        reader.weight[reader.index[channel, at]] += total / values[channel, at].double()
    elif isinstance(reader.layer.bias, Tensor):
        reader.layer.bias += total.reshape(len(total), -1).sum(1)
    reader.weight[reader.index[constant]] = 0


def _read(network: nn.Module, readers: set[str], calls: list[Arguments]) -> _Seen:
    """The least and largest value that each reader sees, as the network is and with everything in it stirred.

    In the type of the network itself: what it reads there is what it will read, to the bit.
    """
    seen: _Seen = {}
    handles = [network.get_submodule(name).register_forward_pre_hook(_Watch(name, seen), with_kwargs=True) for name in sorted(readers)]
    try:
        for call in calls:
            network(*call.args, **call.kwargs)
            with _stirred(network):
                network(*call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@dataclass(frozen=True)
class _Watch:
    """A hook that notes the least and largest input of a layer, over all images, places and calls."""

    name: str
    seen: _Seen

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        lanes = (args[0] if args else kwargs["input"]).movedim(_channel_dim(layer), 0).flatten(1).cpu()
        low, high = lanes.amin(1), lanes.amax(1)
        if self.name in self.seen:
            low, high = torch.minimum(low, self.seen[self.name][0]), torch.maximum(high, self.seen[self.name][1])
        self.seen[self.name] = low, high


def _channel_dim(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)  # type: ignore[arg-type]


@contextmanager
def _stirred(network: nn.Module) -> Iterator[None]:
    """Replaces the outputs of all filters with nonzero weights by noise: inputs that stay constant do not depend on the image."""
    rng = torch.Generator().manual_seed(0)

    def stir(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        rows = (_lanes(layer, "out") != 0).flatten(1).any(1)
        noise = 10 ** (4 * torch.rand(output.shape, generator=rng) - 1)
        noise[1::2] *= -1
        dim = _channel_dim(layer) % output.dim()
        return torch.where(rows.view(-1, *[1] * (output.dim() - dim - 1)), noise.to(output), output)

    layers = [layer for layer in network.modules() if isinstance(layer, LAYERS) and "out" in storage(layer)]
    handles = [layer.register_forward_hook(stir) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
