"""What is written down: one row per trained network, one row per timing, the verdict, and where it all came from."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from ltcompile.core.arm import ArmKind
from ltcompile.core.fields import SchemaError, table
from ltcompile.errors import InvalidFile


@dataclass(frozen=True)
class Record:
    """A row of plain values that goes to JSON and comes back checked."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises InvalidFile where a field is missing, unknown or of another type."""
        known = {f.name for f in dataclasses.fields(cls)}
        try:
            if isinstance(value, Mapping) and (extra := sorted(map(str, set(value) - known))):
                raise SchemaError(f"unknown field {', '.join(extra)}; written by a newer ltcompile?")
            return table(value, cls)
        except SchemaError as error:
            raise InvalidFile(f"{cls.__name__}: {error}") from error


@dataclass(frozen=True)
class Trained(Record):
    """One network after one training: an arm of a search, at a level (round), under a seed.

    `val_score` and `test_score` are values of the metric (an accuracy is a share of one); `test_score` is None for networks that were never
    shown the test set. `train_accuracy` is 0 where an item is not right or wrong.
    `stop_epoch` is the epoch of minimum validation loss; `val_correct` says which validation images were right, as a
    hexadecimal bit string, so that verdicts can pair images; `val_items` holds the metric of each where the metric is their mean.
    `weights` is how many weights (values of matrices and filters) a mask
    left; None where the search was for none. With a mask, `params` counts what is not dropped, and `filters` and `macs` are of the
    network without the channels that the mask made dead.
    """

    seed: int
    arm: ArmKind
    level: int
    filters: int
    params: int
    macs: int
    epochs: int
    seconds: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_score: float
    val_correct: str
    stop_epoch: int
    test_score: float | None = None
    weights: int | None = None
    val_items: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Without `weights` and `val_items` where there are none: the checksums of older tickets stay what they were."""
        absent = {"weights"} if self.weights is None else set()
        absent |= set() if self.val_items else {"val_items"}
        return {k: v for k, v in super().to_json().items() if k not in absent}


@dataclass(frozen=True)
class Verdict(Record):
    """Which level the rule names, and how it stands against the controls.

    `decided`: the rule was a test between trainings, which takes three seeds; otherwise `level` was picked by a descriptive rule that
    claims no confidence. `level` is None where the rule names none. `differences` are in points of validation accuracy, ticket minus
    dense, by level: mean, one-sided lower bound `low` at `confidence`, and the number of samples `n`: seeds if decided, else images.
    `gaps` are ticket minus control at the named (or closest) level, by arm: mean, ends `low` and `high` of the two-sided interval at
    `confidence` (None where not decided), and `seeds`. `flags` are the five conditions of Ma et al. 2021 (None = not tested), each with
    its reason in `flag_reasons`. `seed_rule` says which seed's weights are saved.
    """

    level: int | None
    rule: str
    margin_points: float
    confidence: float
    differences: dict[str, dict[str, float]]
    summary: list[str]
    flags: dict[str, bool | None]
    flag_reasons: dict[str, str]
    decided: bool = False
    gaps: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seed_rule: str = ""

    @property
    def won(self) -> bool:
        """Whether a ticket was shown not inferior, between trainings."""
        return self.decided and self.level is not None

    def includes(self, level: int) -> bool:
        """Whether `level` lies before the first that failed: it passed, or was picked by the descriptive rule."""
        return self.level is not None and 0 < level <= self.level


@dataclass(frozen=True)
class TicketNote:
    """A search's ticket, as its results name it; `won`: by the verdict."""

    seed: int
    level: int
    won: bool
    checksum: str


@dataclass(frozen=True)
class Data:
    """What a search was done on: `shape` (C, H, W) of an image, and the number of images of each split."""

    name: str
    class_names: list[str]
    shape: list[int]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Measurement(Record):
    """One row of a benchmark: a subject on a runtime at a batch size, timed in turns with the dense network.

    Latencies are milliseconds per batch. `speedup` is how many times as long the dense network takes, paired block by block, with its
    95 % interval (`timing.speedup`; None for the dense row itself). `max_error` is the largest difference to eager fp32 outputs,
    relative to their largest magnitude.
    `peak_bytes` is the memory that loading and running took above what the process held before (None: not measured here).
    """

    subject: str
    runtime: str
    device: str
    dtype: str
    batch: int
    ms_p20: float
    ms_p50: float
    ms_p80: float
    runs: int
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    peak_bytes: int | None
    accuracy: float | None
    max_error: float


@dataclass(frozen=True)
class FormatRow(Record):
    """A format's row. `metric` is by the task on its test split through this runtime, `ms` the level of a batch with its 95 % interval,
    `speedup` how many times as long the dense network's file takes in the same runtime, `start_s` the seconds from the file to the first
    answer. `reason` says why nothing was measured; all but the first four are None then.
    """

    format: str
    runtime: str
    precision: str
    threads: int
    bytes: int | None = None
    metric: float | None = None
    max_error: float | None = None
    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    peak_bytes: int | None = None
    start_s: float | None = None
    reason: str = ""

    @property
    def title(self) -> str:
        """What distinguishes it from other rows: of those in one format and precision, the first is the format's own runtime's."""
        return f"{self.format} {self.precision}{' in tract' if self.runtime == 'tract' else ''}"


PACKAGES = ["ltcompile", "torch", "torchvision", "torch-pruning", "onnx", "onnxruntime-gpu", "onnxruntime"]
PACKAGES += ["openvino", "mnn", "ncnn", "pnnx", "tract", "triton"]


@functools.cache
def version_of(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """The versions of everything that can change a result."""
    found = {package: version_of(package) for package in PACKAGES}
    return {"python": platform.python_version(), **{package: version for package, version in found.items() if version is not None}}


def provenance() -> dict[str, Any]:
    """Where a result came from: versions, machine, commit of the source tree (a copy without .git has it from LTCOMPILE_COMMIT), date, command."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": versions(),
        "machine": {
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
            "system": platform.platform(),
            "simd": torch.backends.cpu.get_cpu_capability(),
        },
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["ltcompile", *sys.argv[1:]]) if "ltcompile" in Path(sys.argv[0]).parts[-2:] else "Python API",
    }


def cpu_name() -> str:
    """What the processor calls itself."""
    return next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


@functools.cache
def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return os.environ.get("LTCOMPILE_COMMIT") or None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if dirty else "")
