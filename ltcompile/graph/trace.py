"""Dependency groups of a network: torch-pruning's graph says what hangs together, this turns it into plain data.

A group that cannot be cut safely is kept, frozen, with the reason; nothing is left out silently.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.plan import Axis, Group, Member
from ltcompile.errors import BadModel
from ltcompile.graph.layers import is_depthwise, storage


def trace(model: nn.Module, example: Tensor) -> tuple[Group, ...]:
    """The dependency groups of `model`, run once on `example` (N, C, H, W). The model stays as it is.

    Raises:
        BadModel: the network does not run on `example`, or nothing in it can be cut (with the reason of each group).
    """
    probe = copy.deepcopy(model).eval().requires_grad_(True)
    calls = _count_calls(probe, example)
    graph = _dependency_graph(probe, example)
    names = {module: name for name, module in probe.named_modules()}
    shared = _shared_layers(probe)
    groups = []
    for raw in graph.get_all_groups(root_module_types=list(_root_types())):
        members, reason = _members(graph, raw, names)
        reason = reason or _why_not(graph, raw, members, names, calls, shared)
        width = len(raw[0].idxs)
        if reason:
            members = members or (Member(names[raw[0].dep.target.module], "out", tuple((c,) for c in range(width))),)
        groups.append(Group(members[0].layer, width, members, reason))
    order = {name: i for i, name in enumerate(dict(model.named_modules()))}
    groups = _freeze_overlaps(sorted(groups, key=lambda g: order[g.name]))
    if all(g.frozen for g in groups):
        reasons = "; ".join(f"{g.name}: {g.frozen}" for g in groups) or "it has no convolution or linear layer that torch can trace"
        raise BadModel(f"nothing in this network can be cut: {reasons}")
    return tuple(groups)


def _root_types() -> tuple[type[nn.Module], ...]:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def _count_calls(model: nn.Module, example: Tensor) -> Counter[nn.Module]:
    """How often each leaf runs in one forward pass: a layer that runs twice cannot be cut as if it ran once."""
    calls: Counter[nn.Module] = Counter()
    hooks = [m.register_forward_hook(lambda module, *_: calls.update([module])) for m in model.modules()]
    try:
        with torch.no_grad():
            model(example)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BadModel(f"the network does not run on an input of shape {tuple(example.shape)}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _dependency_graph(model: nn.Module, example: Tensor) -> Any:
    import torch_pruning

    try:
        with torch.enable_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
    except Exception as error:  # whatever it trips over is a network that it cannot trace
        raise BadModel(f"the network's dependencies cannot be traced: {type(error).__name__}: {error}") from error


def _members(graph: Any, raw: Any, names: dict[nn.Module, str]) -> tuple[tuple[Member, ...], str]:
    """The group's members, and a reason if one of them cannot be expressed."""
    width, members = len(raw[0].idxs), []
    for item in raw:
        layer = item.dep.target.module
        if isinstance(layer, nn.Parameter):
            return (), "it reaches a bare parameter of the network"
        if layer not in names:
            continue  # an operation without weights: it follows by itself
        axis = _axis(graph, item.dep.handler, layer)
        if not storage(layer):
            if any(True for _ in layer.parameters(recurse=False)) or hasattr(layer, "num_channels"):
                return (), f"it reaches {names[layer]!r}, a {type(layer).__name__}, which cannot be cut exactly"
            continue
        if axis not in storage(layer):
            return (), f"it reaches {names[layer]!r}, a {type(layer).__name__}, along an axis that cannot be cut"
        rows: list[list[int]] = [[] for _ in range(width)]
        for position, channel in zip(item.idxs, item.root_idxs, strict=True):
            rows[channel].append(int(position))
        if len({len(row) for row in rows}) > 1:
            return (), f"its channels do not map evenly onto {names[layer]!r}"
        members.append(Member(names[layer], axis, tuple(tuple(sorted(row)) for row in rows)))
    return tuple(members), ""


def _axis(graph: Any, handler: Any, layer: nn.Module) -> Axis:
    if "each" in storage(layer) or is_depthwise(layer):
        return "each"
    return "out" if graph.is_out_channel_pruning_fn(handler) else "in"


def _why_not(
    graph: Any, raw: Any, members: tuple[Member, ...], names: dict[nn.Module, str], calls: Counter[nn.Module], shared: set[str]
) -> str:
    """Why this group must be left alone; empty if it may be cut."""
    layers = {name: module for module, name in names.items()}
    if any(_reaches_output(graph.module2node[layers[m.layer]]) for m in members if m.axis in ("out", "each")):
        return "it produces the network's output"
    for member in members:
        layer = layers[member.layer]
        if calls[layer] != 1:
            return f"{member.layer!r} runs {calls[layer]} times in one pass"
        if member.layer in shared:
            return f"{member.layer!r} shares its weights with another layer"
        if nn.utils.parametrize.is_parametrized(layer):
            return f"{member.layer!r} is reparametrised"
    if len({m.layer + m.axis for m in members}) != len(members):
        return "one layer meets its channels twice"
    if len(members[0].index) < 2:
        return "it has a single channel"
    return ""


def _reaches_output(node: Any) -> bool:
    """Whether a layer's channels flow to the network's output without a layer that consumes them."""
    stack, seen = list(node.outputs), set()
    if not stack:
        return True
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        consumes = isinstance(node.module, nn.Module) and "in" in storage(node.module)
        if consumes:
            continue
        if not node.outputs:
            return True
        stack.extend(node.outputs)
    return False


def _shared_layers(model: nn.Module) -> set[str]:
    """The layers that hold a parameter which another layer holds too."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {name for holders in owners.values() if len(holders) > 1 for name in holders}


def _freeze_overlaps(groups: list[Group]) -> list[Group]:
    """Freeze groups that claim the same slice of the same layer: cutting one would break the other."""
    claims: dict[tuple[str, Axis, int], int] = {}
    clash: dict[int, str] = {}
    for i, group in enumerate(groups):
        for member in group.members:
            for position in member.positions(tuple(range(group.width))):
                first = claims.setdefault((member.layer, member.axis, position), i)
                if first != i:
                    clash[i] = clash[first] = f"two groups claim the same channels of {member.layer!r}"
    return [replace(g, frozen=g.frozen or clash.get(i, "")) for i, g in enumerate(groups)]
