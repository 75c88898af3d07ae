"""Put signs in place of the binary weights of a multi-prize ticket's file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower.binary_weights import write_binary_weights
from ltcompile.pruned import Pruned

ORDER = 90


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The same network; the line gives the error and what each weight became. Raises InvalidModel, Disagreement."""
    if pruned.method != "biprop" or job.precision != "fp32" or job.output.suffix != ".onnx" or not isinstance(pruned.example, Tensor):
        return pruned, {}
    found = write_binary_weights(job.output, job.output, pruned.example)
    return pruned, {"signs": {"error": found.error, "bytes_before": found.bytes_before, "outcomes": dict(found.outcomes)}}
