"""Record inputs and PyTorch's answers next to an ONNX file, so that `verify` can repeat them where the file runs."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np

from ltcompile.core.onnx_file import read_onnx
from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower.answers import answers, feeds, of_network, probe, rounded_answers
from ltcompile.lower.inputs import Inputs
from ltcompile.numerics import Items
from ltcompile.paths import write_bytes
from ltcompile.pruned import Pruned

ORDER = 88
ROWS = 4


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The same network; OUTPUT.answers.npz holds the arrays that `ltcompile.verification.answers` describes."""
    if job.output.suffix != ".onnx":
        return pruned, {}
    network = pruned.small.eval()
    inputs = probe(network, pruned.example, ROWS if job.any_batch else Inputs.of(network, pruned.example).batch)
    feed = feeds(inputs, pruned.input_names)
    exact = answers(of_network(network), inputs, inputs.batch)
    rounded = rounded_answers(network, inputs, read_onnx(job.output), feed) or {}
    arrays = {f"input:{name}": value for name, value in feed.items()} | {f"output:{name}": value for name, value in exact.items()}
    arrays |= {f"rounded:{name}": value for name, value in zip(exact, rounded.values(), strict=False)}
    arrays |= {f"items:{name}": np.array([name.axis, name.ranking]) for name in exact if isinstance(name, Items)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, sha256=np.array(hashlib.sha256(job.output.read_bytes()).hexdigest()), **arrays)  # type: ignore[arg-type]
    write_bytes(job.output.with_suffix(".answers.npz"), buffer.getvalue())
    return pruned, {}
