"""Where a network is to run, in one word: device, runtime, images at once, precision and threads."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ltcompile import registry
from ltcompile.core.fields import short
from ltcompile.core.records import Record
from ltcompile.errors import InvalidSetting

DEVICES = ("cpu", "cuda")
ENGINE = "engine"  # what `lt.compile` makes: the runtime that is fastest
COMPILED = "cpp"  # C++ that the engine generates
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
MOST_IMAGES = 1 << 20  # in a batch
MOST_THREADS = 1024
FORM = "device:runtime:bN:precision:tN"


@dataclass(frozen=True)
class Deployment(Record):
    """A target, as in `cpu:onnxruntime:b1:fp32:t2`; its text and `parse` are inverse to each other.

    `batch` is the number of images in one call. `threads` are those of one operation on a CPU; 0 leaves the number to the runtime, and is
    left out of the text. `runtimes.load` turns it into a session. Raises InvalidSetting where a field is none of those known.
    """

    device: str
    runtime: str = "onnxruntime"
    batch: int = 1
    precision: str = "fp32"
    threads: int = 0

    def __post_init__(self) -> None:
        _check_known("device", self.device, DEVICES)
        _check_known("runtime", self.runtime, (*sorted(registry.names("ltcompile.runtimes")), ENGINE, COMPILED))
        _check_known("precision", self.precision, PRECISIONS)
        if not 1 <= self.batch <= MOST_IMAGES:
            raise InvalidSetting(
                f"a target has no batch of {short(self.batch)}; take 1 to {MOST_IMAGES:,} images, as in b{type(self).batch}"
            )
        if not 0 <= self.threads <= MOST_THREADS or (self.threads and self.device != "cpu"):
            raise InvalidSetting(
                f"a target has no {short(self.threads)} threads on {self.device}; take 1 to {MOST_THREADS:,} on a cpu, or none"
            )

    def __str__(self) -> str:
        threads = f":t{self.threads}" if self.threads else ""
        return f"{self.device}:{self.runtime}:b{self.batch}:{self.precision}{threads}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The target that `text` names; what it leaves out at its end is as in `device:onnxruntime:b1:fp32`.

        Raises:
            InvalidSetting: it names none.
        """
        parts = text.strip().split(":")
        names = [field.name for field in dataclasses.fields(cls)]
        if len(parts) > len(names):
            raise InvalidSetting(f"the target {short(text)} has {len(parts)} parts; write {FORM}, as in {cls('cpu')}")
        fields: dict[str, str | int] = dict(zip(names, parts, strict=False))
        for name in fields.keys() & {"batch", "threads"}:
            fields[name] = _number(name, str(fields[name]), text)
        return cls(**fields)  # type: ignore[arg-type]  # the numbers among them are


def _number(name: str, part: str, text: str) -> int:
    """The N of `bN` or `tN`."""
    if not re.fullmatch(rf"{name[0]}[0-9]{{1,9}}", part) or part == "t0":
        raise InvalidSetting(
            f"the target {short(text)} has the {name} {short(part)}; write {name[0]} and a number, as in {name[0]}1: {FORM}"
        )
    return int(part[1:])


def _check_known(what: str, name: str, known: Sequence[str]) -> None:
    """Raises InvalidSetting for a name that is not `known`, near misses first."""
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InvalidSetting(f"a target ({FORM}) has no {what} {short(name)}; {hint}known: {', '.join(known)}")
