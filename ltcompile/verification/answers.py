"""Answers that were recorded when a file was written: next to `small.onnx`, `small.answers.npz` holds inputs and what PyTorch answers to them.

Arrays are called input:NAME, output:NAME (fp32) and, for files in fp16 and int8, rounded:NAME, with the precision's rounding simulated;
items:NAME is the axis of an output along which the network ranks its items, and the number of the ranking (`numerics.Items`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ltcompile.core.fields import short
from ltcompile.errors import InvalidFile
from ltcompile.numerics import Answers, Items
from ltcompile.verification.images import read_arrays
from ltcompile.verification.network import Feed, Network

HINT = "write it again with `ltcompile shrink`"


@dataclass(frozen=True)
class Recorded:
    """Inputs by name, the answers to them, and the same with the precision's rounding simulated, None in fp32."""

    inputs: Feed
    exact: Answers
    rounded: Answers | None


def read_answers(network: Network) -> Recorded | str | None:
    """What was recorded for this file, None where nothing was, or why it is of no use. Raises InvalidFile where what is there does not fit the file."""
    path = network.path.with_suffix(".answers.npz")
    if not path.is_file():
        return None
    arrays = read_arrays(path, HINT)
    if str(arrays.get("sha256")) != network.file.sha256:
        return f"{path.name} was recorded for another file"
    inputs, exact, rounded = (_named(arrays, kind) for kind in ("input", "output", "rounded"))
    for end in network.inputs:
        given = inputs.get(end.name)
        if given is None or given.dtype != end.dtype or not _fits(given.shape, end.shape) or given.size == 0:
            found = "missing" if given is None else f"{given.dtype} {short(given.shape)}"
            raise InvalidFile(f"{path}: input {end.name!r} is {found}, and the network takes {short(end.shape)}; {HINT}")
    if len(exact) != len(network.outputs) or (rounded and rounded.keys() != exact.keys()):
        raise InvalidFile(f"{path} holds answers of {len(exact)} outputs, and the network has {len(network.outputs)}; {HINT}")
    return Recorded(inputs, {_called(name, value, arrays, path): value for name, value in exact.items()}, rounded or None)


def _called(name: str, value: NDArray[Any], arrays: dict[str, NDArray[Any]], path: Path) -> str:
    """The name, as one of `Items` where the file says so."""
    items = arrays.get(f"items:{name}")
    if items is None:
        return name
    if items.shape != (2,) or items.dtype.kind not in "iu" or not 0 < items[0] < value.ndim:
        raise InvalidFile(f"{path}: items:{name} is not an axis behind the first one of {short(value.shape)}, and a number; {HINT}")
    return Items(name, *items.tolist())


def _named(arrays: dict[str, NDArray[Any]], kind: str) -> Feed:
    return {name.removeprefix(f"{kind}:"): array for name, array in arrays.items() if name.startswith(f"{kind}:")}


def _fits(given: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    return len(given) == len(wanted) and all(n == m for n, m in zip(given, wanted, strict=True) if isinstance(m, int))
