"""File formats of deployed networks, one file each, found by their ending.

A format offers `SUFFIX`, `write(network, pruned, job)`, and `reader(network, pruned, job) -> Run`, what the written file answers; and
`PRECISIONS` where it does not hold all of fp32 and fp16.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

from ltcompile import registry
from ltcompile.deploy.job import ShrinkJob
from ltcompile.errors import InvalidSetting
from ltcompile.pruned import Pruned


def by_suffix() -> dict[str, ModuleType]:
    """Ending -> format."""
    return {kind.SUFFIX: kind for kind in registry.load_all(__name__)}


def of(output: Path) -> ModuleType:
    """The format of a file, by its ending."""
    return by_suffix()[output.suffix]


def check(job: ShrinkJob) -> None:
    """Raises InvalidSetting where no format has the output's ending, or it does not hold the precision."""
    if job.output.suffix not in by_suffix():
        raise InvalidSetting(f"{job.output} must end in {', '.join(by_suffix())}")
    if job.precision not in getattr(of(job.output), "PRECISIONS", ("fp32", "fp16", "int8")):
        raise InvalidSetting(f"{job.output.suffix} files compute in fp32, not {job.precision}; name an output that ends in .onnx")


def metadata(pruned: Pruned, job: ShrinkJob) -> dict[str, str]:
    """The texts that travel inside the file: all that a deployment has to know."""
    metric = pruned.metric
    metric_entry = {} if metric is None else {metric.metric.name: json.dumps({"value": metric.value, "split": metric.split})}
    return {"producer": "ltcompile", **pruned.provenance, **pruned.preprocessing, "precision": job.precision, **metric_entry}
