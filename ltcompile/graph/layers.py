"""How each layer type stores its channels: which tensors and which attributes an axis owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from torch import Tensor, nn

from ltcompile.core.plan import Axis

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_AFFINE = (("weight", 0), ("bias", 0))


@dataclass(frozen=True)
class Storage:
    """The tensors (name, dimension) that shrink with one axis of a layer, and the attributes that shrink in proportion."""

    tensors: tuple[tuple[str, int], ...]
    attributes: tuple[str, ...]


def storage(layer: nn.Module) -> dict[Axis, Storage]:
    """Axis -> where its channels are stored; empty for a layer type that stores none."""
    if isinstance(layer, _CONV) and layer.groups > 1:  # whole groups go
        return {"each": Storage(_AFFINE, ("in_channels", "out_channels", "groups"))}
    if isinstance(layer, _CONV):
        return {"out": Storage(_AFFINE, ("out_channels",)), "in": Storage((("weight", 1),), ("in_channels",))}
    if isinstance(layer, _CONV_TRANSPOSED) and layer.groups > 1:
        return {"each": Storage(_AFFINE, ("in_channels", "out_channels", "groups"))}
    if isinstance(layer, _CONV_TRANSPOSED):
        return {"out": Storage((("weight", 1), ("bias", 0)), ("out_channels",)), "in": Storage((("weight", 0),), ("in_channels",))}
    if isinstance(layer, nn.Bilinear):
        return {"out": Storage(_AFFINE, ("out_features",))}
    if isinstance(layer, nn.Linear):
        return {"out": Storage(_AFFINE, ("out_features",)), "in": Storage((("weight", 1),), ("in_features",))}
    if isinstance(layer, _BATCH_NORM + _INSTANCE_NORM):
        return {"each": Storage((*_AFFINE, ("running_mean", 0), ("running_var", 0)), ("num_features",))}
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and len(layer.normalized_shape) == 1:
        return {"each": Storage(_AFFINE, ("normalized_shape",))}
    if isinstance(layer, nn.GroupNorm) and layer.affine:
        return {"each": Storage(_AFFINE, ("num_channels", "num_groups") if layer.num_groups > 1 else ("num_channels",))}
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return {"each": Storage((("weight", 0),), ("num_parameters",))}
    if isinstance(layer, nn.RNNBase):
        return {"in": Storage((("weight_ih_l0", 1), ("weight_ih_l0_reverse", 1)), ("input_size",))}
    return {}


def place(layer: nn.Module, axis: Axis) -> Storage:
    """Where the channels of `axis` of `layer` are stored: see `Member` for the axes. Raises KeyError where there is no such axis."""
    if axis.startswith("="):
        return Storage((), (axis[1:],))
    if "." in axis:
        name, dim = axis.split(".")
        return Storage(((name, int(dim)),), ())
    return storage(layer)[axis]


def width(layer: nn.Module, axis: Axis) -> int:
    """How many positions `axis` of `layer` has. Raises KeyError, AttributeError or IndexError where there is no such axis."""
    where = place(layer, axis)
    for name, dim in where.tensors:
        if (value := getattr(layer, name)) is not None:
            return int(value.shape[dim])
    return int(_read(layer, where.attributes[0]))


def shrink_attributes(layer: nn.Module, where: Storage, before: int, after: int) -> None:
    """Scale the attributes that count an axis from `before` positions to `after`."""
    for attribute in where.attributes:
        value = _read(layer, attribute)
        if isinstance(value, tuple) and "[" not in attribute:  # normalized_shape
            setattr(layer, attribute, (*value[:-1], value[-1] * after // before))
        else:
            _write(layer, attribute, value * after // before)


def _read(layer: nn.Module, attribute: str) -> int:
    owner, name, item = _attribute(layer, attribute)
    value = getattr(owner, name)
    found: int = value if item is None else value[item]
    return found


def _write(layer: nn.Module, attribute: str, value: int) -> None:
    owner, name, item = _attribute(layer, attribute)
    changed: object = value
    if item is not None:
        values = list(getattr(owner, name))
        values[item] = value
        changed = type(getattr(owner, name))(values)
    if owner is layer:
        setattr(layer, name, changed)
    else:
        vars(owner)[name] = changed  # settings may be frozen, or check what is set


def _attribute(layer: nn.Module, attribute: str) -> tuple[object, str, int | None]:
    """What holds an attribute: "name", "name[i]", "settings.name" or "settings.name[i]"; its name there, and the item."""
    path, _, item = attribute.partition("[")
    settings, _, name = path.rpartition(".")
    owner = getattr(layer, settings) if settings else layer
    if settings and not is_settings(owner):
        raise AttributeError(f"{settings!r} holds no settings")
    return owner, name, int(item[:-1]) if item else None


def is_settings(value: object) -> bool:
    """Whether an attribute of a module is an object of settings, such as a dataclass, a namespace or a transformer's config."""
    plain = not isinstance(value, (nn.Module, Tensor, type, Mapping, Sequence, Set)) and not callable(value)
    return plain and isinstance(getattr(value, "__dict__", None), dict) and not type(value).__module__.startswith(("torch", "numpy"))
