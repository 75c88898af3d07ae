"""What the formats of generated C++ share: one input (N, ...) and one output in fp32, for any batch."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ltcompile.deploy.formats import metadata
from ltcompile.deploy.job import ShrinkJob
from ltcompile.engine.cpu import native, tuning
from ltcompile.engine.cpu.bf16 import in_bf16
from ltcompile.engine.cpu.code import aligned
from ltcompile.engine.cpu.generate import Unit, generate
from ltcompile.engine.cpu.interface import BF16_TOLERANCE, TOLERANCE, Recorded, header, identifier, outside, probes, source, symbols
from ltcompile.errors import Disagreement, InvalidModel, InvalidSetting, Unavailable
from ltcompile.lower.answers import Run
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.lower import lower
from ltcompile.lower.program import Program
from ltcompile.paths import write_bytes
from ltcompile.pruned import Pruned


def generated(network: nn.Module, pruned: Pruned, job: ShrinkJob, integers: Program | None = None) -> tuple[Unit, str, str]:
    """The unit of a network, or of its program on integers, and the texts of its C++ file and its header.

    Raises:
        InvalidModel: it has several inputs or outputs, or an operation that cannot be generated. InvalidSetting: more than the batch varies.
    """
    if set(job.dynamic) - {"batch"}:
        raise InvalidSetting(f"generated C++ has fixed shapes, and dynamic={job.dynamic}; write .onnx, or let the batch alone vary")
    inputs = Inputs.of(network, pruned.example).on_cpu()
    if len(inputs.tensors) != 1 or inputs.tensors[0].dtype != torch.float32:
        raise InvalidModel(f"generated C++ takes one input of float32, not {', '.join(inputs.names)}; write .onnx instead")
    example = inputs.tensors[0][:1]
    try:
        program = integers or lower(network, example).program
        program = in_bf16(program) if job.precision == "bf16" else program
        unit = generate(program, tuning.tune(program, job.tune_seconds, portable=True) if job.tune_seconds else None)
    except (InvalidModel, Unavailable) as reason:
        raise InvalidModel(f"no C++ can be generated of this network: {reason}; write .onnx instead") from reason
    low, high = float(inputs.tensors[0].min()), float(inputs.tensors[0].max())
    low, high = (low, high) if low < high else (low - 1.0, high + 1.0)
    images = torch.from_numpy(probes(low, high, unit.input_shape[1:]))
    with torch.no_grad():
        answers = torch.cat([(network if job.precision == "fp32" else program.run)(image) for image in images.split(1)]).numpy()
    name, texts = identifier(job.output.stem), metadata(pruned, job)
    recorded = Recorded(low, high, answers, BF16_TOLERANCE if job.precision == "bf16" else TOLERANCE)
    return unit, source(unit, name, texts, recorded), header(unit, name, texts, symbols(name, texts)[0])


def write_weights(unit: Unit, job: ShrinkJob) -> None:
    """Write weights that are too large for the source next to it."""
    if outside(unit):
        write_bytes(job.output.with_suffix(".bin"), unit.weights.tobytes())


def files(output: Path) -> list[Path]:
    """The C++ file, or the library and its header; and the weights that are next to them."""
    declared = output.with_suffix(".h") if output.suffix == ".so" else output
    apart = f"{identifier(output.stem)}_load(" in declared.read_text(errors="replace") if declared.is_file() else False
    return [*dict.fromkeys((output, declared)), *([output.with_suffix(".bin")] if apart else [])]


def of_library(library: Path, job: ShrinkJob) -> Run:
    """What a library that was just compiled answers through its C interface, whose sizes its header says."""
    text, name = job.output.with_suffix(".h" if job.output.suffix == ".so" else job.output.suffix).read_text(), identifier(job.output.stem)
    sizes = dict(re.findall(r"^#define \w+_(INPUT_FLOATS|OUTPUT_FLOATS|SCRATCH_BYTES) +(\d+)", text, re.MULTILINE))
    shape = [int(n) for n in re.findall(r"\d+", re.findall(r"_OUTPUT_FLOATS .*one image, (.*) \*/", text)[0])]
    code, scratch = native.opened(library), aligned(int(sizes["SCRATCH_BYTES"]) // 4)
    if hasattr(code, f"{name}_load") and getattr(code, f"{name}_load")(str(job.output.with_suffix(".bin")).encode()):
        raise Disagreement(f"{job.output.with_suffix('.bin')} does not hold the weights of {job.output}; please report this network")
    getattr(code, f"{name}_init")(ctypes.c_void_p(scratch.ctypes.data))

    def run(inputs: Inputs) -> Mapping[str, Tensor]:
        images = inputs.tensors[0].contiguous()
        outputs = torch.empty((len(images), *shape))
        addresses = (ctypes.c_void_p(images.data_ptr()), ctypes.c_void_p(outputs.data_ptr()))
        getattr(code, f"{name}_run")(*addresses, ctypes.c_long(len(images)), ctypes.c_void_p(scratch.ctypes.data))
        return {"output": outputs}

    return run
