"""Write the file in fp32 or fp16, read it back, and compare its answers with PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ltcompile.deploy import formats
from ltcompile.deploy.job import ShrinkJob
from ltcompile.engine.cpu.bf16 import in_bf16
from ltcompile.errors import Disagreement
from ltcompile.lower import HalfInside
from ltcompile.lower.answers import Run, answers, of_network, probe
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.lower import lower
from ltcompile.lower.simulate import rounded_network
from ltcompile.numerics import Answers, compare
from ltcompile.pruned import Pruned

ORDER = 80
PROBES, CHECKED, CHUNK = 16, 128, 16  # inputs that a file is compared on in fp32, in half precision, and so many at once


def check(job: ShrinkJob) -> None:
    """Raises InvalidSetting where no format has the output's ending, or it does not hold the precision."""
    formats.check(job)


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The same network, which stays in fp32. Raises Disagreement where the file computes something else."""
    if job.precision == "int8":
        return pruned, {}
    network = pruned.small.eval()
    kind = formats.of(job.output)
    inside = HalfInside(network) if job.precision == "fp16" else network
    job.on_progress(f"writing {job.output.name}")
    kind.write(inside, pruned, job)
    if not hasattr(kind, "reader"):
        return pruned, {"onnx_error": None, "tolerance": None, "not_run": kind.check_structure(pruned, job)}
    inputs = probe(network, pruned.example, PROBES if job.precision == "fp32" else CHECKED)
    size = CHUNK
    if not job.any_batch:
        size = Inputs.of(network, pruned.example).batch
        inputs = inputs.resized(-(-inputs.batch // size) * size)
    exact = answers(_counted(of_network(network), "PyTorch", inputs, job), inputs, size)
    found = answers(_counted(kind.reader(inside, pruned, job), job.output.name, inputs, job), inputs, size)
    compared = compare(found, exact, _rounded(network, job, inputs, size))
    if compared.refusal:
        raise Disagreement(f"{job.output} and torch disagree: {compared.refusal}; please report this with the ticket")
    unmatched = {"unmatched_items": compared.unmatched} if compared.unmatched else {}
    return pruned, {"onnx_error": compared.error, "tolerance": compared.allowed, **unmatched}


def _rounded(network: nn.Module, job: ShrinkJob, inputs: Inputs, size: int) -> Answers | None:
    """What rounding leaves of the answers, None in fp32: in bf16, which generated C++ alone holds, that of its program."""
    if job.precision == "fp32":
        return None
    rounded: Callable[..., Any]
    if job.precision == "bf16":
        rounded, size = in_bf16(lower(network, inputs.tensors[0][:1]).program).run, 1
    else:
        rounded = rounded_network(network, job.precision)
    return answers(_counted(of_network(rounded), f"{job.precision} simulated", inputs, job), inputs, size)


def _counted(run: Run, what: str, inputs: Inputs, job: ShrinkJob) -> Run:
    """`run`, with a message of how many of `inputs` are done before each call."""
    done = 0

    def call(some: Inputs) -> Mapping[str, Tensor]:
        nonlocal done
        job.on_progress(f"comparing answers: {what}, {done} of {inputs.batch} inputs")
        done += some.batch
        return run(some)

    return call


def summary(record: Mapping[str, Any]) -> list[str]:
    cut = "" if record["equality_error"] is None else f"cut = masked to {record['equality_error']:.1e}, "
    if record["onnx_error"] is None:
        return [f"{cut}not run here: {record['not_run']}, {record['folded_batch_norms']} batch norms folded"]
    others = f" but for {record['unmatched_items']:.1%} of ranked items" if "unmatched_items" in record else ""
    agrees = f"file = torch to {record['onnx_error']:.1e}{others} (allowed {record['tolerance']:.0e})"
    return [f"{cut}{agrees}, {record['folded_batch_norms']} batch norms folded"]
