"""How each layer type stores its channels: which tensors and which attributes an axis owns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ltcompile.core.plan import Axis

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True)
class Storage:
    """The tensors (name, dimension) and the integer attributes that shrink with one axis of a layer."""

    tensors: tuple[tuple[str, int], ...]
    attributes: tuple[str, ...]


def is_depthwise(layer: nn.Module) -> bool:
    """One filter per input channel. A convolution from one channel to one is an ordinary one."""
    return isinstance(layer, _CONV) and layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels


def storage(layer: nn.Module) -> dict[Axis, Storage]:
    """Axis -> where its channels are stored; empty for a layer that the surgeon cannot cut."""
    if isinstance(layer, _CONV):
        if is_depthwise(layer):
            return {"each": Storage((("weight", 0), ("bias", 0)), ("in_channels", "out_channels", "groups"))}
        if layer.groups > 1:
            return {}
        return {"out": Storage((("weight", 0), ("bias", 0)), ("out_channels",)), "in": Storage((("weight", 1),), ("in_channels",))}
    if isinstance(layer, _CONV_TRANSPOSED) and layer.groups == 1:
        return {"out": Storage((("weight", 1), ("bias", 0)), ("out_channels",)), "in": Storage((("weight", 0),), ("in_channels",))}
    if type(layer) is nn.Linear:
        return {"out": Storage((("weight", 0), ("bias", 0)), ("out_features",)), "in": Storage((("weight", 1),), ("in_features",))}
    if isinstance(layer, _BATCH_NORM + _INSTANCE_NORM):
        tensors = (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0))
        return {"each": Storage(tensors, ("num_features",))}
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return {"each": Storage((("weight", 0),), ("num_parameters",))}
    return {}


def place(layer: nn.Module, axis: Axis) -> Storage:
    """Where the channels of `axis` of `layer` are stored: see `Member` for the axes. Raises KeyError where there is no such axis."""
    return storage(layer)[axis]
