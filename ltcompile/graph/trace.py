"""Dependency groups of a network: which slices of which layers are one channel, found by following labels through one run.

The run uses torch's meta device, which holds no values: it takes neither time nor memory for the weights. A group that cannot be cut
safely is frozen, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from ltcompile.core.plan import Group, PruningPlan
from ltcompile.core.streams import seeded
from ltcompile.errors import InvalidModel, InvalidPlan
from ltcompile.graph._groups import OUTPUT, Owners, groups_of
from ltcompile.graph._ints import settle_quotients, sizes_followed
from ltcompile.graph._labels import Labels
from ltcompile.graph._watch import Calls, Operations
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.layers import storage
from ltcompile.graph.probe import Probes, on_probe, run
from ltcompile.graph.rules import Requests, tensors_in
from ltcompile.graph.surgeon import cut_
from ltcompile.graph.wrappers import unwrap


@seeded(0)  # for networks that draw random numbers
def trace(model: nn.Module, example: Example) -> tuple[Group, ...]:
    """The dependency groups of `model`, run on inputs shaped as `example`: a tensor (N, ...), a tuple of positional or a dict of
    keyword arguments, which may be nested.

    Raises:
        InvalidSetting: `example` is of another kind.
        InvalidModel: the network does not run on `example`, or nothing in it can be cut (with the reason of each group).
    """
    groups = on_probe(unwrap(model), example, _found)
    groups = _divisible(groups)
    check_cuttable(groups)
    return groups


def check_cuttable(groups: tuple[Group, ...]) -> None:
    """Raises InvalidModel, with the reason of each group, where none of `groups` can be cut."""
    if all(g.frozen for g in groups):
        reasons = "; ".join(f"{g.name}: {g.frozen}" for g in groups[:8]) or "it has no convolution or linear layer that torch can trace"
        raise InvalidModel(f"nothing in this network can be cut: {reasons}")


def _divisible(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """`groups`; those whose filters all form one channel are frozen."""
    single = "its channels can only go all together"
    return tuple(replace(g, frozen=single) if g.width == 1 and not (g.frozen or g.tied) else g for g in groups)


def _found(probes: Probes, inputs: Arguments) -> tuple[Group, ...]:
    labels, probe = _labelled(probes, inputs)
    groups = tuple(groups_of(labels, probe, _owners(probe)))
    return _that_run(probe, probes, inputs, groups)


def _labelled(probes: Probes, inputs: Arguments) -> tuple[Labels, nn.Module]:
    """The labels of a run, and its probe. Runs are repeated while they find axes that a mask must not zero; most networks need one run."""
    probe = probes()
    labels = _watched(probe, inputs, frozenset())
    while labels.to_spare:
        spared = labels.spared | _whole_axes(probe, labels.to_spare)
        probe = probes()
        labels = _watched(probe, inputs, spared)
    return labels, probe


def _whole_axes(probe: nn.Module, dims: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """`dims` of parameters, and those that a mask zeroes together with them: a layer's weight and bias."""
    found = set(dims)
    for path, layer in probe.named_modules():
        prefix = f"{path}." if path else ""
        for axis in storage(layer).values():
            together = {(prefix + name, dim) for name, dim in axis.tensors}
            found |= together if together & dims else set()
    return found


def _watched(probe: nn.Module, inputs: Arguments, spared: frozenset[tuple[str, int]]) -> Labels:
    """The labels after a run in eval mode and one in training mode, which may also run other heads, noise and statistics."""
    labels = Labels(spared=spared)
    for name, tensor in [*probe.named_parameters(), *probe.named_buffers()]:
        if tensor.is_floating_point():
            labels.register(name, tensor)
    with sizes_followed(probe, labels):
        _watch(labels, probe.eval(), inputs)
        try:
            _watch(labels, probe.train(), inputs.twice())
        except Exception:
            if inputs.tensors[0].is_meta:  # values may be needed
                raise
    settle_quotients(labels)
    probe.eval()
    return labels


def _watch(labels: Labels, probe: nn.Module, inputs: Arguments) -> None:
    requests = Requests()
    with Calls(labels, requests):
        output = run(probe, inputs, Operations(labels, requests))
    labels.pin_all(tensors_in(plain(output)), OUTPUT)


def plain(output: object) -> object:
    """Named tuples and dataclasses of outputs as plain containers."""
    if isinstance(output, (Tensor, dict, list, tuple)):
        return output
    return list(vars(output).values()) if hasattr(output, "__dict__") else []


def _owners(model: nn.Module) -> Owners:
    """Tensor name -> all (layer, name in that layer) that hold the tensor; a module at two paths counts once."""
    first: dict[int, str] = {}
    owners: Owners = {}
    for path, layer in model.named_modules():
        for name, tensor in [*layer.named_parameters("", recurse=False), *layer.named_buffers("", recurse=False)]:
            full = f"{path}.{name}" if path else name
            owners.setdefault(first.setdefault(id(tensor), full), []).append((path, name))
    return owners


def _that_run(probe: nn.Module, probes: Probes, inputs: Arguments, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """`groups`; those are frozen whose loss of channels stops the network from running, because its code depends on their number."""
    ties: dict[str, set[str]] = {}
    for group in groups:
        if not group.frozen and group.width > 1:
            ties.setdefault(group.tied or group.name, set()).add(group.name)
    sets = list(ties.values())
    if not sets or _error_without(probe, inputs, groups, set().union(*sets)) is None:  # this cuts the probe; _broken makes new ones
        return groups
    broken = dict(_broken(probes, inputs, groups, sets))
    return tuple(replace(g, frozen=broken[g.name], tied="") if g.name in broken else g for g in groups)


def _broken(probes: Probes, inputs: Arguments, groups: tuple[Group, ...], sets: list[set[str]]) -> Iterable[tuple[str, str]]:
    """(group, reason) of the tied groups whose cut makes the network fail, found by bisection."""
    error = _error_without(probes(), inputs, groups, set().union(*sets)) if sets else None
    if error is None:
        return
    if len(sets) == 1:
        yield from ((name, f"the network does not run with fewer of it: {error}") for name in sets[0])
        return
    middle = len(sets) // 2
    yield from _broken(probes, inputs, groups, sets[:middle])
    yield from _broken(probes, inputs, groups, sets[middle:])


def _error_without(probe: nn.Module, inputs: Arguments, groups: tuple[Group, ...], names: set[str]) -> str | None:
    """The error of `probe` after the groups `names` lose half of their channels, in place; None if it runs."""
    try:
        run(cut_(probe, halved(groups, names)), inputs)
    except InvalidPlan as error:
        raise AssertionError("the tracing made groups that the surgeon cannot cut") from error
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def halved(groups: tuple[Group, ...], names: set[str]) -> PruningPlan:
    """The plan by which the groups `names` lose about half of their channels."""
    return PruningPlan(groups, {g.name: tuple(range(_half(g, groups))) for g in groups if g.name in names})


def _half(group: Group, groups: tuple[Group, ...]) -> int:
    """About half of the group's channels, in the same proportion as in all groups that it is tied to."""
    steps = math.gcd(*(g.width for g in groups if g.tied == group.tied)) if group.tied else group.width
    return group.width * max(1, steps // 2) // steps
