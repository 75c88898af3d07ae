"""Trained weights from a file into a network, which may have another number of classes."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ltcompile.core.notice import notify
from ltcompile.core.tensors import check_finite, check_held, read_safetensors, read_torch
from ltcompile.errors import InvalidFile

WHAT = "file of weights"
WRAPPERS = ("state_dict", "model_state_dict", "model", "weights")
PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and torch.compile
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that serve their first training alone
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # the names in torchvision's own files


def load_weights(model: nn.Module, path: Path, classes: int, in_channels: int) -> None:
    """The weights in `path` (.safetensors, or of torch.save; nothing is executed) into `model`, in place.

    A final layer for another number of classes keeps its fresh values, which is said in a notice.

    Raises:
        InvalidFile: the file cannot be read, holds other numbers than weights, or does not fit elsewhere.
    """
    own = model.state_dict()
    there = read_state_dict(path, own)
    wrong = {name for name in own.keys() & there.keys() if _kind(own[name]) != _kind(there[name])}
    head, old_classes = _head(own, there, wrong, classes)
    missing = [name for name in own if name not in there and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in there if name not in own]
    if missing or unexpected or wrong - head:
        raise InvalidFile(
            f"{path} holds no weights that fit this network: {_message(own, there, missing, unexpected, wrong - head, in_channels)}"
        )
    fitting = OrderedDict((name, value) for name, value in there.items() if name not in head)
    fitting._metadata = own._metadata  # type: ignore[attr-defined]  # layers that store their version in it get the present one
    model.load_state_dict(fitting, strict=False)
    if head:
        notify(f"{path}: head swapped: {old_classes} -> {classes} classes ({', '.join(sorted(head))} fresh, all else loaded)")


def read_state_dict(path: Path, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in `path` under the names of `own`, a network's state dict; nothing is executed. Raises InvalidFile."""
    there = _masked(own, _named_as(own, _tensors(_read(path), path)))
    try:
        check_held(there, path.stat().st_size)
        check_finite(there)
    except InvalidFile as error:
        raise InvalidFile(f"{path} holds no weights to start from: {error}") from error
    return there


def _read(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return read_torch(path, WHAT, "write it with torch.save(model.state_dict(), ...)")
    return read_safetensors(path, WHAT)[0]


def _tensors(value: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds: itself, or under one of the names that training scripts give it."""
    for _ in WRAPPERS:  # they may be nested, and a file may hold itself
        if isinstance(value, Mapping) and (inner := [value[w] for w in WRAPPERS if isinstance(value.get(w), Mapping)]):
            value = inner[0]
    if not isinstance(value, Mapping) or not value or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        raise InvalidFile(f"{path} holds no state dict: names with tensors, or that under {', '.join(map(repr, WRAPPERS))}")
    return dict(value)


def _kind(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    """The shape, and whether the numbers are whole: any floats may become others."""
    return tuple(tensor.shape), "floats" if tensor.is_floating_point() else "whole numbers"


def _named_as(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the network's names where only known prefixes or spellings differ, without auxiliary heads that it lacks."""
    named = {}
    for name, value in state.items():
        bare = name if name in own else PREFIXES.sub("", name)
        bare = bare if bare in own else OLD_DENSENET.sub(r"\1\2", bare)
        if bare in own or not bare.startswith(AUXILIARY):
            named[bare] = value
    return named


def _masked(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the products of weights and masks that torch.nn.utils.prune kept apart, for a network without its hooks."""
    whole = dict(state)
    for name in own.keys() - state.keys():
        original, mask = state.get(f"{name}_orig"), state.get(f"{name}_mask")
        if original is not None and mask is not None and original.shape == mask.shape:
            whole[name] = whole.pop(f"{name}_orig") * whole.pop(f"{name}_mask")
    return whole


def _head(own: Mapping[str, Tensor], there: Mapping[str, Tensor], wrong: set[str], classes: int) -> tuple[set[str], int]:
    """Weights and biases whose shapes differ in the number of classes alone, and that number in the file.

    A hidden layer as wide as there are classes is not taken for one: the layer after it would differ in another axis.
    """
    found = {
        name: len(there[name])
        for name in wrong
        if name.rpartition(".")[2] in ("weight", "bias")
        and own[name].shape[0] == classes
        and there[name].dim() == own[name].dim()
        and there[name].shape[1:] == own[name].shape[1:]
    }
    numbers = set(found.values())
    return (set(found), numbers.pop()) if len(numbers) == 1 else (set(), classes)


def _message(
    own: Mapping[str, Tensor], there: Mapping[str, Tensor], missing: list[str], unexpected: list[str], wrong: set[str], in_channels: int
) -> str:
    kinds = [
        (name, found, expected)
        for name in own
        if name in wrong
        for found, expected in zip(_kind(there[name]), _kind(own[name]), strict=True)
    ]
    shapes = [f"{name} {found} instead of {expected}" for name, found, expected in kinds if found != expected]
    parts = [
        f"{kind} {_some(names)}" for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)) if names
    ]
    channels = [there[n].shape[1] for n in wrong if own[n].dim() == there[n].dim() == 4 and own[n].shape[1] == in_channels]
    if len(wrong) == 1 and channels:
        parts.append(f"they are for images of {channels[0]} channels, these have {in_channels}")
    return "; ".join(parts)


def _some(names: Iterable[str]) -> str:
    """How many there are, and the first five."""
    shown = list(names)
    return f"{len(shown)} ({', '.join(shown[:5])}{', ...' if len(shown) > 5 else ''})"
