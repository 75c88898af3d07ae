"""Fold batch norm into the convolution or linear layer before it.

    y = gamma * (w*x + b - mean) / sqrt(var + eps) + beta  =  (s w)*x + (s (b - mean) + beta),   s = gamma / sqrt(var + eps)

Precondition: only that batch norm reads the layer's output, and both run once, by the torch.export graph. So the form of the network's
code does not matter.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ltcompile.graph._copy import copied
from ltcompile.graph.inputs import Example
from ltcompile.graph.wrappers import unwrap
from ltcompile.lower.trace import exported

Module = TypeVar("Module", bound=nn.Module)
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norm(model: Module, example: Example) -> tuple[Module, dict[str, str]]:
    """A copy of `model` in eval mode with its batch norms folded, and for each batch norm "folded into X" or why not.

    Args:
        model: any network; it stays as it is.
        example: a tensor (N, ...), a tuple of arguments or a dict of keyword arguments, on the model's device.

    Raises:
        InvalidModel: torch.export cannot trace it.
    """
    folded = copied(unwrap(model)).eval()
    unknown = "nothing says which layer feeds it"
    outcomes = {name: unknown for name, module in folded.named_modules() if isinstance(module, _BATCH_NORM)}
    pairs = _pairs(folded, example)
    for norm_name, (layer_name, refusal) in pairs.items():
        if refusal:
            outcomes[norm_name] = refusal
            continue
        layer, norm = folded.get_submodule(layer_name), folded.get_submodule(norm_name)
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        _set(folded, layer_name, fuse(layer, norm))
        _set(folded, norm_name, nn.Identity())
        outcomes[norm_name] = f"folded into {layer_name}"
    return folded, outcomes


def _pairs(model: nn.Module, example: Example) -> dict[str, tuple[str, str]]:
    """Batch norm -> (the layer that feeds it, why it may not be folded or "")."""
    graph = exported(model, example).graph
    runs: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_function" and (path := _module_path(node)):
            runs[path] = runs.get(path, 0) + (not any(_module_path(i) == path for i in node.all_input_nodes))
    pairs = {}
    for node in graph.nodes:
        path = _module_path(node)
        if node.op != "call_function" or not path or not isinstance(_get(model, path), _BATCH_NORM):
            continue
        source = node.all_input_nodes[0]
        feeder = _module_path(source)
        layer = _get(model, feeder) if feeder else None
        norm = model.get_submodule(path)
        if path in pairs or runs.get(path, 0) > 1:
            pairs[path] = ("", "it runs more than once")
        elif not isinstance(layer, _FOLDABLE):
            pairs[path] = ("", f"it follows {source.target}, not a convolution or linear layer")
        elif len(source.users) > 1 or runs.get(feeder, 0) > 1:
            pairs[path] = ("", f"the output of {feeder} is used elsewhere too")
        elif norm.running_mean is None:
            pairs[path] = ("", "it keeps no running statistics")
        else:
            pairs[path] = (feeder, "")
    return pairs


def _module_path(node: torch.fx.Node) -> str:
    """The dotted name of the innermost module that a node was traced from."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _get(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
