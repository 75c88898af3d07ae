"""What makes a deployed network of the one that its own code builds: replaced layers, attributes, and weights of other shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ltcompile.core.fields import short
from ltcompile.errors import InvalidFile
from ltcompile.graph.layers import is_settings

LAYERS = {"Conv1d", "Conv2d", "Conv3d", "Linear", "Threshold"}  # that a file may name
ARGUMENTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "in_features",
    "out_features",
    "threshold",
    "value",
)
MOST_PARTS = 8  # layers that stand for one
Changes = dict[str, Any]  # name -> {"layers": [[kind, arguments], ...]} of a layer, else the value of an attribute


def changes(base: nn.Module, small: nn.Module) -> tuple[Changes, str]:
    """What `small` has that `base`, the unpruned network, has not; and why a plain loader cannot make it, "" where it can."""
    found: Changes = {}
    replaced: list[str] = []
    there = dict(small.named_modules())
    for name, layer in base.named_modules():
        if any(name.startswith(f"{other}.") for other in replaced):
            continue
        own = there.get(name)
        if own is None:
            return {}, f"{name!r} is missing"
        if type(own) is type(layer):
            found |= {f"{name}.{attribute}".lstrip("."): value for attribute, value in _attributes(layer, own)}
        elif type(own) is nn.Identity:
            found[name] = {"layers": []}
            replaced.append(name)
        elif type(own) is nn.Threshold:
            found[name] = {"layers": [["Threshold", {"threshold": own.threshold, "value": own.value}]]}
            replaced.append(name)
        elif name and isinstance(own, nn.Sequential) and all(type(part).__name__ in LAYERS for part in own):
            found[name] = {"layers": [_described(part) for part in own]}
            replaced.append(name)
        else:
            return {}, f"{name!r} is a {type(own).__name__} of ltcompile in place of a {type(layer).__name__}"
    return found, ""


def _attributes(layer: nn.Module, own: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, value) of counts that differ, in the layer or in settings that it holds."""
    yield from _counts(vars(layer), vars(own))
    for name, settings in vars(layer).items():
        if is_settings(settings) and name in vars(own):
            yield from ((f"{name}.{inner}", value) for inner, value in _counts(vars(settings), vars(vars(own)[name])))


def _counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in after.items():
        whole = isinstance(value, int) or (isinstance(value, (tuple, list)) and all(isinstance(item, int) for item in value))
        if whole and not name.startswith("__") and name != "training" and before.get(name) != value:
            yield name, list(value) if isinstance(value, (tuple, list)) else value


def _described(layer: Any) -> list[Any]:
    how = {name: getattr(layer, name) for name in ARGUMENTS if hasattr(layer, name)}
    return [type(layer).__name__, {**how, "bias": layer.bias is not None}]


def replace_layers(network: nn.Module, text: str) -> None:
    """Put the layers that `text`, JSON of `changes`, names into `network`, on the meta device. Raises InvalidFile where it names others."""
    try:
        changes = json.loads(text)
        for name, value in changes.items():
            if isinstance(value, dict):
                parent, _, last = name.rpartition(".")
                network.get_submodule(name)
                setattr(network.get_submodule(parent), last, nn.Sequential(*(_made(*part) for part in value["layers"][:MOST_PARTS])))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise InvalidFile(f"it replaces layers that the network does not have, or by others than it may: {short(str(error))}") from error


def _made(kind: str, how: Mapping[str, Any]) -> nn.Module:
    if kind not in LAYERS or not set(how) <= {*ARGUMENTS, "bias"}:
        raise ValueError(f"unknown layer {short(kind)}")
    layer: nn.Module = getattr(nn, kind)(**how, **({} if kind == "Threshold" else {"device": "meta"}))
    return layer


def with_biases(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give layers of `network` the biases that `weights` has and they lack: a folded batch norm leaves one."""
    for name, value in weights.items():
        owner, _, last = name.rpartition(".")
        try:
            layer = network.get_submodule(owner)
        except AttributeError:
            continue
        if last == "bias" and getattr(layer, "bias", value) is None:
            layer.bias = nn.Parameter(value.clone())
