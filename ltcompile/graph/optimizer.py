"""An optimizer that follows its network through a cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.errors import InvalidSetting

Kept = Mapping[str, Mapping[int, Tensor]]  # parameter name -> dimension -> positions that stay


def carry_(optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, kept: Kept, gone: Set[str] = frozenset()) -> None:
    """Let `optimizer`, which trains `model`, train its cut `small`: groups and state refer to the new parameters, without those `gone`.

    Every tensor of the state that has its parameter's shape is sliced as the parameter is: SGD's momentum, the moments of Adam and AdamW,
    RMSprop's averages. Step counts and settings stay. So the next step equals the next step of a masked network whose state is masked too.

    Raises InvalidSetting, and changes nothing, where a parameter is not one of the model's, or a state has another shape.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidSetting(f"optimizer= must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    new = dict(small.named_parameters(remove_duplicate=False))
    groups: list[list[nn.Parameter]] = []
    state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if name is None:
                raise InvalidSetting(
                    f"optimizer: group {number} holds a parameter of shape {tuple(parameter.shape)} that the model does not have; "
                    "pass the optimizer that was built for this model"
                )
            if name in gone:
                continue
            if name not in new:
                raise InvalidSetting(
                    f"optimizer: {name} belongs to a weight that is computed, and the cut makes a plain parameter of it; "
                    "cut without optimizer=, and build a new one"
                )
            if parameter in optimizer.state:
                state[new[name]] = _sliced(optimizer, name, parameter, kept.get(name, {}))
        groups.append([new[name] for parameter in group["params"] if (name := names[id(parameter)]) not in gone])
    for group, parameters in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = parameters
    optimizer.state = state


def _sliced(optimizer: torch.optim.Optimizer, name: str, parameter: Tensor, kept: Mapping[int, Tensor]) -> dict[str, Any]:
    """The state of one parameter, without what is dropped."""
    found: dict[str, Any] = {}
    for key, value in optimizer.state[parameter].items():
        if kept and isinstance(value, Tensor) and value.dim():
            if value.shape != parameter.shape:
                raise InvalidSetting(
                    f"optimizer: {type(optimizer).__name__} keeps {key} of shape {tuple(value.shape)} for {name} of shape "
                    f"{tuple(parameter.shape)}, which cannot be cut; cut without optimizer=, and build a new one"
                )
            found[key] = _selected(value, kept)
            continue
        if kept and not isinstance(value, (Tensor, int, float, bool, type(None))):
            raise InvalidSetting(
                f"optimizer: {type(optimizer).__name__} keeps {key} of type {type(value).__name__} for {name}, which cannot be cut"
            )
        found[key] = value
    return found


def _selected(value: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for dim, positions in kept.items():
        value = value.index_select(dim, positions.to(value.device))
    return value
