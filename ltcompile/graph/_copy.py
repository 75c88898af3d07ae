"""Copies of networks."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ltcompile.errors import InvalidModel

Module = TypeVar("Module", bound=nn.Module)


def copied(model: Module, memo: dict[int, Any] | None = None) -> Module:
    """A deep copy of `model`, in half the time: most of a module is empty dictionaries of hooks, which copy.deepcopy takes apart.

    Tensors that a forward pass left in attributes are copied without their graph. `memo` maps the id of an object to what stands for it
    in the copy.

    Raises:
        InvalidModel: an attribute cannot be copied, such as a lock.
    """
    known = {id(v): type(v)() for m in model.modules() for v in vars(m).values() if type(v) in (dict, OrderedDict) and not v}
    known |= {id(t): t.detach().clone() for t in _of_a_graph(model)} | (memo or {})
    try:
        return copy.deepcopy(model, dict(known))
    except Exception as error:
        raise InvalidModel(f"the network cannot be copied: {_culprit(model, known)}{type(error).__name__}: {error}") from error


def _of_a_graph(model: nn.Module) -> list[Tensor]:
    """Tensors in attributes and buffers that were computed with gradients."""
    held = [value for m in model.modules() for name, value in vars(m).items() if name not in ("_parameters", "_modules")]
    return [t for t in tree_leaves(held) if isinstance(t, Tensor) and t.grad_fn is not None]


def _culprit(model: nn.Module, known: dict[int, Any]) -> str:
    """The attribute that cannot be copied, with what to do."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name == "_modules":
                continue
            try:
                copy.deepcopy(value, dict(known))
            except Exception:
                return f"attribute {f'{path}.{name}'.lstrip('.')!r} ({type(value).__name__}); leave it out while planning: "
    return ""
