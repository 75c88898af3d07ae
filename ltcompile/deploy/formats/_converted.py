"""What the formats share that are converted: from the ONNX file or program of torch.export that `shrink` would write, and read by their runtimes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ltcompile.core.deployment import Deployment
from ltcompile.deploy import formats
from ltcompile.deploy.formats import onnx
from ltcompile.deploy.job import ShrinkJob
from ltcompile.errors import InvalidModel, InvalidSetting, Unavailable
from ltcompile.graph.outputs import outputs_of
from ltcompile.lower import export_program
from ltcompile.lower.answers import Run
from ltcompile.lower.inputs import Inputs
from ltcompile.paths import writing
from ltcompile.pruned import Pruned
from ltcompile.runtimes import Session, Subject, _venvs, load_apart
from ltcompile.runtimes._convert import Convert, failed, run

Write = Callable[[nn.Module, Pruned, ShrinkJob], None]
Reader = Callable[[nn.Module, Pruned, ShrinkJob], Run]


def check_batch_alone(job: ShrinkJob) -> None:
    """Raises InvalidSetting where more than the batch varies."""
    if set(job.dynamic) - {"batch"}:
        raise InvalidSetting(
            f"{job.output.suffix} files have fixed shapes, and dynamic={job.dynamic}; write .onnx, or let the batch alone vary"
        )


def from_onnx(runtime: str, convert: Convert) -> tuple[Write, Reader]:
    """`write` and `reader` of a format that `convert` makes of the fp32 ONNX file, where fp16 is that of weights.

    `write` raises InvalidModel where the network cannot be exported or converted, InvalidSetting where more than the batch varies.
    """

    def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
        check_batch_alone(job)
        write_from_onnx(pruned.small, pruned, job, convert)

    return write, partial(read_by, runtime)


def from_program(runtime: str, code: str) -> tuple[Write, Reader]:
    """`write` and `reader` of a format for one row that the Python program `code` makes of a program of torch.export, in an environment.

    Its arguments are the two files. `write` raises as that of `from_onnx`.
    """

    def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
        check_batch_alone(job)
        write_from_program(network, pruned, job, code)

    return write, partial(read_by, runtime)


def write_from_onnx(network: nn.Module, pruned: Pruned, job: ShrinkJob, convert: Convert) -> None:
    """Write the ONNX file and convert it. Raises InvalidModel where the converter fails, and as the ONNX format does."""
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        onnx.write(network, pruned, replace(job, output=(path := Path(folder) / f"{job.output.stem}.onnx")))
        converted(path, job, convert)


def converted(path: Path, job: ShrinkJob, convert: Convert) -> None:
    """Convert an ONNX file to the job's output. Raises InvalidModel."""
    try:
        convert(path, job.output, job.precision)
    except Unavailable as reason:
        raise InvalidModel(str(reason)) from reason


def write_from_program(network: nn.Module, pruned: Pruned, job: ShrinkJob, code: str, *settings: str) -> None:
    """Write a program of torch.export for one row, and convert it in the environment of the output's format. Raises InvalidModel."""
    inputs, name = Inputs.of(network, pruned.example).on_cpu(), formats.of(job.output).VENV
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        export_program(network, inputs.resized(1).example, path := Path(folder) / "network.pt2", dynamic=())
        converted(path, job, lambda source, output, _: in_venv(name, code, source, output, *settings))


def in_venv(name: str, code: str, program: Path, output: Path, *settings: str) -> None:
    """Run a converter in its environment; it writes to a place of its own, and what it wrote goes to `output`. Raises Unavailable."""
    with tempfile.TemporaryDirectory(prefix="ltcompile-", dir=output.parent) as folder:
        made = Path(folder) / output.name
        text = run([_venvs.need(name), "-P", "-c", code, program, made, *settings], output.name)
        if not made.exists():
            raise failed(output.name, f"{name}'s converter writes no file", text)
        if output.is_dir():
            shutil.rmtree(output)
        with writing(output):
            made.replace(output)


def names_of(pruned: Pruned) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the record calls the inputs and outputs."""
    example = Inputs.of(pruned.small, pruned.example).on_cpu()
    args, kwargs = example.arguments()
    with torch.no_grad():
        return pruned.input_names or example.names, pruned.output_names or tuple(outputs_of(pruned.small(*args, **kwargs)))


def read_by(runtime: str, network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    """What the job's output answers through `runtime`, on a CPU in a worker process.

    Raises Unavailable where the runtime cannot open it.
    """
    (names, expected), sessions = names_of(pruned), dict[int, Session]()

    def run(inputs: Inputs) -> Mapping[str, Tensor]:
        if inputs.batch not in sessions:
            sessions[inputs.batch] = load_apart(
                Subject(job.output.name, file=job.output), Deployment(formats.device(formats.of(job.output)), runtime, inputs.batch)
            )
        arrays = {name: tensor.contiguous().numpy() for name, tensor in zip(names, inputs.tensors, strict=True)}
        found = sessions[inputs.batch].run(arrays if runtime in formats.NAMED else list(arrays.values()))
        order = expected if set(expected) == set(found) else found
        return {name: torch.from_numpy(found[name]) for name in order}

    return run
