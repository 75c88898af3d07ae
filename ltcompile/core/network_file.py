"""A network's file as results name it, with its hash where it is known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkFile:
    """A file that `ltcompile shrink` wrote, called `output`: its making, and of what is in it as much as is known."""

    output: str
    precision: str
    bytes: int
    recalibrated: bool
    ticket_checksum: str
    sha256: str | None = None  # records of shrink have none

    def __str__(self) -> str:
        return self.output if self.sha256 is None else f"{self.output} ({self.precision}, SHA-256 {self.sha256[:12]})"

    @property
    def making(self) -> tuple[str, str, bool]:
        """What two files of one network and one kind have in common."""
        return self.ticket_checksum, self.precision, self.recalibrated


def described(output: str, data: bytes, metadata: Mapping[str, str]) -> NetworkFile:
    """The file `output` that holds `data`, by the `metadata` of an ONNX file."""
    return NetworkFile(
        output,
        metadata.get("precision", "fp32"),
        len(data),
        metadata.get("recalibrated") == "true",
        metadata.get("ticket_checksum", ""),
        hashlib.sha256(data).hexdigest(),
    )
