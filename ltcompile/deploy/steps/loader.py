"""Write a loader next to a .safetensors file: ten lines that need PyTorch and safetensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ltcompile.deploy import _load_small
from ltcompile.deploy.changes import changes
from ltcompile.deploy.job import ShrinkJob
from ltcompile.graph._copy import copied
from ltcompile.lower.answers import answers, of_network, probe
from ltcompile.numerics import compare
from ltcompile.paths import write_text
from ltcompile.pruned import Pruned

ORDER = 85
ROWS = 4


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The same network; the line names the loader, or says why the file has none: `lt.load_pruned` loads it in any case."""
    if job.output.suffix != ".safetensors" or job.base is None:
        return pruned, {}
    if reason := _refusal(job.base, pruned, job):
        return pruned, {"loader": {"file": None, "reason": reason}}
    path = job.output.with_name(f"{job.output.stem}_load.py")
    write_text(path, code())
    return pruned, {"loader": {"file": path.name, "reason": ""}}


def code() -> str:
    """The loader's lines."""
    lines = Path(_load_small.__file__).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.partition("  # noqa")[0] for line in lines if line) + "\n"


def _refusal(base: nn.Module, pruned: Pruned, job: ShrinkJob) -> str:
    """Why the loader does not make the network, or "": it is tried, in fp32, within the rounding of the weights."""
    if reason := changes(base, pruned.small)[1]:
        return reason
    try:
        loaded = _load_small.load(copied(base), str(job.output))
        inputs = probe(pruned.small, pruned.example, ROWS).resized(ROWS if job.any_batch else 1)
        found = answers(of_network(loaded), inputs, ROWS)
    except Exception as error:  # the network's own code may need anything
        return f"{type(error).__name__}: {error}"
    expected = copied(pruned.small)
    expected.load_state_dict(loaded.state_dict())
    return compare(found, answers(of_network(expected.eval()), inputs, ROWS)).refusal


def summary(record: Mapping[str, Any]) -> list[str]:
    loader = record.get("loader")
    if loader is None:
        return []
    if loader["file"] is None:
        return [f"no loader is written: {loader['reason']}; ltcompile.load_pruned loads the file"]
    return [f"{loader['file']} loads it without ltcompile:", *code().splitlines()]
