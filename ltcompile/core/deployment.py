"""Where a network is to run, in one word: which device, what runs it there, how many images at once, and in which precision."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ltcompile.core.fields import short
from ltcompile.core.records import Record
from ltcompile.errors import BadSetting

DEVICES = ("cpu", "cuda")
BACKENDS = ("onnxruntime", "openvino", "eager", "engine")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2, "int8": 0.25}  # of the largest output, against the fp32 network
MOST_IMAGES = 1 << 20  # in a batch
FORM = "device:backend:bN:precision"


@dataclass(frozen=True)
class Deployment(Record):
    """A target, as in `cpu:onnxruntime:b1:fp32`; its text and `parse` are inverse to each other.

    `batch` is the number of images in one call. Raises BadSetting where a field is none of those above.
    """

    device: str
    backend: str = "onnxruntime"
    batch: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        _check_known("device", self.device, DEVICES)
        _check_known("backend", self.backend, BACKENDS)
        _check_known("precision", self.precision, PRECISIONS)
        if not 1 <= self.batch <= MOST_IMAGES:
            raise BadSetting(f"a target has no batch of {short(self.batch)}; take 1 to {MOST_IMAGES:,} images, as in b{type(self).batch}")

    def __str__(self) -> str:
        return f"{self.device}:{self.backend}:b{self.batch}:{self.precision}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The target that `text` names; what it leaves out at its end is as in `device:onnxruntime:b1:fp32`.

        Raises:
            BadSetting: it names none.
        """
        parts = text.strip().split(":")
        names = [field.name for field in dataclasses.fields(cls)]
        if len(parts) > len(names):
            raise BadSetting(f"the target {short(text)} has {len(parts)} parts; write {FORM}, as in {cls('cpu')}")
        fields: dict[str, str | int] = dict(zip(names, parts, strict=False))
        if "batch" in fields:
            fields["batch"] = _batch(parts[2], text)
        return cls(**fields)  # type: ignore[arg-type]  # the one number among them is one


def _batch(part: str, text: str) -> int:
    """The N of `bN`."""
    if not re.fullmatch(r"b[0-9]{1,9}", part):
        raise BadSetting(f"the target {short(text)} has the batch {short(part)}; write b and a number, as in b1: {FORM}")
    return int(part[1:])


def _check_known(what: str, name: str, known: Sequence[str]) -> None:
    """Raises BadSetting for a name that is not `known`, near misses first."""
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BadSetting(f"a target ({FORM}) has no {what} {short(name)}; {hint}known: {', '.join(known)}")
