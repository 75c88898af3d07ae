"""From labels to groups: channels with the same slices form one group; channels that must stay form frozen groups with their reasons."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from ltcompile.core.plan import Group, Member
from ltcompile.graph._ints import Source
from ltcompile.graph._labels import Atoms, Labels
from ltcompile.graph.layers import storage, width

Owners = dict[str, list[tuple[str, str]]]  # tensor -> (layer, name in the layer), more than one where it is shared
OUTPUT = "it produces the network's output"


def makes_output(group: Group) -> bool:
    """Whether the group's channels are the network's outputs, such as its classes."""
    return OUTPUT in group.frozen


@dataclass(frozen=True)
class _Place:
    """One axis of one layer, and the channel of each of its positions (-1: none)."""

    layer: str
    axis: str
    channels: Atoms
    masked: bool = True


def groups_of(labels: Labels, model: nn.Module, owners: Owners) -> list[Group]:
    """All groups of `model` in the order of its layers, the frozen ones with their reasons."""
    component = _components(labels)
    places = list(_places(labels, component, model, owners))
    ties = [[component[atoms] for atoms in tie] for tie in labels.ties]
    reasons = _reasons(labels, component)
    sets = _alike([p.channels for p in places] + [width for tie in ties for width in tie], reasons)
    sets = [([p for p in at if p < len(places)], channels) for at, channels in sets]
    for at, channels in sets:  # an attribute alone makes no channels
        if at and all(places[p].axis.startswith("=") for p in at):
            reasons.update(dict.fromkeys(channels.tolist(), "no layer holds what it counts"))
    sets = [(at, channels) for at, channels in sets if not at or channels[0] not in reasons]
    firsts, stuck = _ties(ties, [channels for _, channels in sets])
    for i in stuck:
        reasons.update(dict.fromkeys(sets[i][1].tolist(), "its width must keep its ratio to one that cannot be cut"))
    found = {i: _group(channels, [places[p] for p in at]) for i, (at, channels) in enumerate(sets) if at and i not in stuck}
    free = [replace(g, tied=found[firsts[i]].name) if firsts.get(i) in found else g for i, g in found.items()]
    order = {name: i for i, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    return sorted([*free, *_frozen(places, reasons, model, labels.used)], key=lambda g: (order[g.members[0].layer], g.name))


def _components(labels: Labels) -> Atoms:
    """Atom -> its channel (n,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [(np.broadcast_to(a, b.shape).ravel(), np.broadcast_to(b, a.shape).ravel()) for a, b in labels.joins]
    rows = np.concatenate([a for a, _ in pairs]) if pairs else np.empty(0, np.int64)
    columns = np.concatenate([b for _, b in pairs]) if pairs else np.empty(0, np.int64)
    graph = coo_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=(labels.count, labels.count))
    component: Atoms = connected_components(graph, directed=False)[1].astype(np.int64)
    return component


def _places(labels: Labels, component: Atoms, model: nn.Module, owners: Owners) -> Iterator[_Place]:
    """All axes that hold channels: named axes of layers, dimensions of bare tensors, and attributes."""
    seen = set()
    axes = {
        layer: {place: axis for axis, s in storage(model.get_submodule(layer)).items() for place in s.tensors} for layer, _ in _flat(owners)
    }
    for slot in labels.slots:
        if slot.tensor not in labels.used:
            continue
        for layer, name in owners[slot.tensor]:
            axis = axes[layer].get((name, slot.dim), f"{name}.{slot.dim}")
            if (layer, axis) not in seen:
                seen.add((layer, axis))
                yield _Place(layer, axis, component[slot.atoms], (slot.tensor, slot.dim) not in labels.spared)
    for source, atoms in labels.attributes.items():
        module = model.get_submodule(source.layer)
        if any(source.name in s.attributes and (source.layer, axis) in seen for axis, s in storage(module).items()):
            continue  # the attribute shrinks with that axis
        yield _Place(source.layer, _attribute_axis(source), component[atoms])
        if isinstance(module, nn.GroupNorm):  # a norm without weights has no other axis
            yield _Place(source.layer, "=num_channels", np.repeat(component[atoms], module.num_channels // len(atoms)))


def _flat(owners: Owners) -> list[tuple[str, str]]:
    return [owner for each in owners.values() for owner in each]


def _attribute_axis(source: Source) -> str:
    return f"={source.name}" if source.item is None else f"={source.name}[{source.item}]"


def _reasons(labels: Labels, component: Atoms) -> dict[int, str]:
    """Channel -> why it must stay: the first reason found."""
    reasons: dict[int, str] = {}
    fixed = [(labels.attributes[s], why) for s, why in labels.fixed_attributes.items() if s in labels.attributes]
    unused = [(slot.atoms, "it does not run") for slot in labels.slots if slot.tensor not in labels.used]
    for atoms, reason in [*labels.pins, *fixed, *unused]:
        for channel in np.unique(component[atoms]).tolist():
            reasons.setdefault(channel, reason)
    return reasons


def _alike(places: list[Atoms], reasons: dict[int, str]) -> list[tuple[list[int], Atoms]]:
    """Sets of channels that lie in the same places, equally often: (indices of the places, channels in the order of the first place)."""
    if not places:
        return []
    channels = np.concatenate(places)
    place = np.repeat(np.arange(len(places)), [len(p) for p in places])
    weight = np.random.default_rng(0).integers(1, 2**62, len(places), dtype=np.uint64)  # sums of these identify sets of places
    signature = np.zeros(int(channels.max()) + 1, np.uint64)
    np.add.at(signature, channels, weight[place])
    first = np.full(len(signature), -1, np.int64)
    first[channels[::-1]] = np.arange(len(channels))[::-1]  # the first position of each channel
    free = first >= 0
    free[[c for c in reasons if c < len(free)]] = False
    alive = np.flatnonzero(free)
    alive = alive[np.argsort(first[alive], kind="stable")]
    which = np.unique(signature[alive], return_inverse=True)[1]
    by_place = np.argsort(channels, kind="stable")
    held_by, low = place[by_place], np.searchsorted(channels[by_place], np.arange(len(signature) + 1))
    order = np.argsort(which, kind="stable")
    sets = [members for members in np.split(alive[order], np.flatnonzero(np.diff(which[order])) + 1) if len(members)]
    sets.sort(key=lambda members: int(first[members[0]]))
    return [(np.unique(held_by[low[m[0]] : low[m[0] + 1]]).tolist(), m) for m in sets]


def _group(channels: Atoms, places: list[_Place]) -> Group:
    members = [Member(p.layer, p.axis, _index(p.channels, channels), p.masked) for p in places]
    members.sort(key=lambda m: m.axis != "out")  # producers first; otherwise in the order of the layers
    return Group(_name(members[0], places), len(channels), tuple(members))


def _index(held: Atoms, channels: Atoms) -> tuple[tuple[int, ...], ...]:
    """The positions of each of `channels` in `held`."""
    order = np.argsort(held, kind="stable")
    low = np.searchsorted(held[order], channels)
    count = int(np.searchsorted(held[order], channels[:1], side="right")[0] - low[0])
    return tuple(map(tuple, order[low[:, None] + np.arange(count)].tolist()))


def _name(member: Member, places: list[_Place]) -> str:
    """The name of the first layer; with ranges of positions if the group holds only some of them."""
    size = next(len(p.channels) for p in places if (p.layer, p.axis) == (member.layer, member.axis))
    positions = sorted(q for row in member.index for q in row)
    axis = "" if member.axis == "out" else member.axis if member.axis[0] == "=" else f".{member.axis}"
    name = f"{member.layer}{axis}".lstrip(".")
    return name if len(positions) == size else f"{name}[{_ranges(positions)}]"


def _ranges(positions: list[int]) -> str:
    """0:5,7:9 - at most three runs, for messages."""
    runs: list[list[int]] = []
    for p in positions:
        if runs and p == runs[-1][1]:
            runs[-1][1] = p + 1
        else:
            runs.append([p, p + 1])
    return ",".join(f"{a}:{b}" for a, b in runs[:3]) + (f",+{len(runs) - 3}" if len(runs) > 3 else "")


def _ties(ties: list[list[Atoms]], sets: list[Atoms]) -> tuple[dict[int, int], set[int]]:
    """Set -> the first set of those whose widths must keep their ratio; and the sets that must stay because one that they are tied to must."""
    owner = {c: i for i, channels in enumerate(sets) for c in channels.tolist()}
    parent, stuck = list(range(len(sets))), set()

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for tie in ties:
        involved = {owner.get(c, -1) for width in tie for c in np.unique(width).tolist()}
        if len(involved) < 2:
            continue
        known = sorted(involved - {-1})
        for i in known[1:]:
            low, high = sorted((root(known[0]), root(i)))
            parent[high] = low
        if -1 in involved:
            stuck.add(known[0])
    stuck = {root(i) for i in stuck}
    roots = [root(i) for i in range(len(sets))]
    sizes = Counter(roots)
    return {i: r for i, r in enumerate(roots) if sizes[r] > 1}, {i for i, r in enumerate(roots) if r in stuck}


def _frozen(places: list[_Place], reasons: dict[int, str], model: nn.Module, used: set[str]) -> list[Group]:
    """Groups of the filters that must stay, one for each layer and reason, and of layers without filters that stay whole."""
    groups = [group for place in places if place.axis == "out" for group in _stuck(place, reasons)]
    named = set(np.concatenate([p.channels for p in places if p.axis == "out"] or [np.empty(0, np.int64)]).tolist())
    for layer, mine in _by_layer(places).items():
        channels = set(np.concatenate([p.channels for p in mine]).tolist())
        makes = isinstance(model.get_submodule(layer), nn.modules.conv._ConvNd)  # filters, by groups
        has_filters = "out" in storage(model.get_submodule(layer))  # none of them a channel: a single one, which is handled below
        if channels <= reasons.keys() and not has_filters and (makes or not channels & named):
            worst = _stuck(mine[0], reasons)
            groups += [replace(g, name=_whole_name(layer, mine[0], at, len(worst))) for at, g in enumerate(worst)]
            named |= channels
    for place in places:  # a bare weight that makes the output, in a module that holds others
        channels = set(place.channels.tolist())
        if "." in place.axis and not channels & named and {reasons.get(c) for c in channels} == {OUTPUT}:
            groups += _stuck(place, reasons)
            named |= channels
    held = {(p.layer, p.axis) for p in places}
    for name, layer in model.named_modules():
        if "out" in storage(layer) and (name, "out") not in held and layer.weight.shape[storage(layer)["out"].tensors[0][1]] == 1:
            groups.append(Group(name, 1, (Member(name, "out", ((0,),)),), "it has a single channel"))
        elif (
            isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)
            and f"{name}.weight".lstrip(".") not in used
            and (name, _made(layer)) not in held
        ):
            axis = _made(layer)
            index = tuple((p,) for p in range(width(layer, axis)))
            groups.append(Group(name, len(index), (Member(name, axis, index),), "it does not run on such an input"))
    return groups


def _made(layer: nn.Module) -> str:
    return "out" if "out" in storage(layer) else "each"


def _by_layer(places: list[_Place]) -> dict[str, list[_Place]]:
    """Layer without an axis of filters -> its places, except input axes and attributes."""
    filters = {p.layer for p in places if p.axis == "out"}
    found: dict[str, list[_Place]] = defaultdict(list)
    for place in places:
        if place.layer not in filters and place.axis != "in" and not place.axis.startswith("="):
            found[place.layer].append(place)
    return found


def _whole_name(layer: str, place: _Place, at: int, count: int) -> str:
    """The layer's name, or its axis if it has none; numbered if there are several reasons."""
    name = layer or place.axis
    return name if count == 1 else f"{name}[{at}]"


def _stuck(place: _Place, reasons: dict[int, str]) -> list[Group]:
    """The positions of a place that must stay, one group for each reason."""
    by_reason: dict[str, list[int]] = defaultdict(list)
    for position, channel in enumerate(place.channels.tolist()):
        if channel in reasons:
            by_reason[reasons[channel]].append(position)
    found = []
    for reason, positions in by_reason.items():
        member = Member(place.layer, place.axis, tuple((p,) for p in positions))
        found.append(Group(_name(member, [place]), len(positions), (member,), reason))
    return found
