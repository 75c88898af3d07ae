"""File formats of deployed networks, one file each, found by their ending.

A format offers `SUFFIX`, `write(network, pruned, job)`, and `reader(network, pruned, job) -> Run`, what the written file answers, or, where no
runtime of it exists here, `check_structure(pruned, job)`, which says what was checked instead. Optional are

    PRECISIONS = ("fp32", "fp16")       where it does not hold all of fp32, fp16 and int8
    COMPANIONS = (".bin",)              the endings of files that it writes, or may write, next to the one that is named
    RUNTIME = "x"                       what runs the file
    DEVICE = "cuda"                     where it is a GPU
    ALSO_RUN_BY = ("x",)                others that do in fp32; where one is installed, it has a row of its own in the table of formats
    VENV = "x"                          the environment that it needs (`ltcompile doctor --install x`)
    unavailable() -> str | None         why it cannot be written here and what to do, where nothing above says so
    files(output)                       all files of an output that was written, where they have names of their own
    convert(onnx, output, precision)    writes the file from an ONNX file, for int8
    quantize(onnx, output, feeds, ranges)   writes int8 from an fp32 ONNX file by a quantiser of its own, with each of RANGES
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import cast

from ltcompile import registry, runtimes
from ltcompile.deploy.job import ShrinkJob
from ltcompile.errors import InvalidFile, InvalidSetting, Unavailable
from ltcompile.pruned import Pruned
from ltcompile.runtimes import _venvs

NAMED = ("onnxruntime", "openvino", "mnn")  # runtimes that know the names of inputs; others go by their order


def by_suffix() -> dict[str, ModuleType]:
    """Ending -> format."""
    return {kind.SUFFIX: kind for kind in registry.load_all(__name__)}


def of(output: Path) -> ModuleType:
    """The format of a file, by its ending."""
    return by_suffix()[output.suffix]


def check(job: ShrinkJob) -> None:
    """Raises InvalidSetting where no format has the output's ending, or it does not hold the precision; Unavailable where it cannot be written;
    InvalidFile where it would write over a file of another output.
    """
    if job.output.suffix not in by_suffix():
        suffixes = ", ".join(suffix for suffix in by_suffix() if suffix != ".html")
        raise InvalidSetting(f"{job.output} must end in {suffixes}, or in a slash: a folder for a page that runs in a browser")
    kind = of(job.output)
    if job.precision not in (held := getattr(kind, "PRECISIONS", ("fp32", "fp16", "int8"))):
        raise InvalidSetting(
            f"{job.output.suffix} files compute in {' or '.join(held)}, not {job.precision}; name an output that ends in .onnx"
        )
    if reason := unavailable(kind):
        raise Unavailable(f"{job.output.suffix} files cannot be written here: {reason}")
    for path in (job.output.with_suffix(suffix) for suffix in getattr(kind, "COMPANIONS", ())):
        if owner := _owner(path, kind):
            raise InvalidFile(f"{path} belongs to {owner}, and {job.output.name} needs a file of that name; name another output")


def _owner(path: Path, kind: ModuleType) -> Path | None:
    """The output of a format besides `kind`'s that holds `path`; C++ and its library may share theirs."""
    for suffix, other in by_suffix().items():
        output, family = path.with_suffix(suffix), getattr(other, "files", other)
        if family is not getattr(kind, "files", kind) and hasattr(other, "COMPANIONS") and output.is_file() and path in files(output):
            return output
    return None


def unavailable(kind: ModuleType) -> str | None:
    """Why files of a format cannot be written and read here, and what to do, or None."""
    if hasattr(kind, "unavailable"):
        return cast("str | None", kind.unavailable())
    if hasattr(kind, "VENV"):
        return _venvs.missing(kind.VENV)
    return runtimes.unavailable(kind.RUNTIME, device(kind)) if hasattr(kind, "RUNTIME") else None


def device(kind: ModuleType) -> str:
    """Where files of a format run."""
    return str(getattr(kind, "DEVICE", "cpu"))


def files(output: Path) -> list[Path]:
    """All files of an output that was written."""
    if hasattr(kind := of(output), "files"):
        return cast("list[Path]", kind.files(output))
    companions = [output.with_suffix(suffix) for suffix in getattr(kind, "COMPANIONS", ())]
    return sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output, *companions]


def metadata(pruned: Pruned, job: ShrinkJob) -> dict[str, str]:
    """The texts that travel inside the file: all that a deployment has to know."""
    metric = pruned.metric
    metric_entry = {} if metric is None else {metric.metric.name: json.dumps({"value": metric.value, "split": metric.split})}
    return {"producer": "ltcompile", **pruned.provenance, **pruned.preprocessing, "precision": job.precision, **metric_entry}
