"""What a subject's answers are compared with before it is timed: its network by PyTorch in fp32, and with its file's rounding simulated.

Never by what is timed. Where no network of PyTorch stands behind a file, its own graph is evaluated without any runtime
(`lower.evaluate`): that sees a runtime which computes something else, but weights are taken as the file has them, and `what` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from ltcompile.core.onnx_file import read_onnx
from ltcompile.lower import export_onnx
from ltcompile.lower.answers import Run, answers, of_graph, of_network
from ltcompile.lower.export import Flat
from ltcompile.lower.fake_quantize import fake_quantized, in_half, precision_of, unrounded
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.quantize import prepared
from ltcompile.lower.simulate import rounded_network
from ltcompile.numerics import Answers
from ltcompile.pruned import Pruned
from ltcompile.runtimes import Subject

OF_MODULE = "the network in PyTorch, fp32"
OF_FILE = "the file's own graph, evaluated without a runtime: nothing else holds its weights, so these are not compared"


@dataclass(frozen=True)
class Reference:
    """`exact` answers in fp32; `rounded` as the precision's rounding makes them, None in fp32; `what` answers, for the reader."""

    exact: Run
    rounded: Run | None = None
    precision: str = "fp32"
    what: str = OF_MODULE

    def expected(self, inputs: Inputs, size: int) -> tuple[Answers, Answers | None]:
        """The exact and the rounded answers to `inputs`, `size` rows at a time."""
        return answers(self.exact, inputs, size), None if self.rounded is None else answers(self.rounded, inputs, size)


def reference_of(subject: Subject) -> Reference:
    """The reference of a subject: its module, or else its file's own graph."""
    if subject.module is None:
        return file_reference(subject.need_onnx("a reference"))
    return Reference(of_network(subject.module.network if isinstance(subject.module, Flat) else subject.module))


def module_reference(module: nn.Module, pruned: Pruned, file: Path, precision: str, scratch: Path) -> Reference:
    """The reference of `file`, in "fp16" or "int8", that should hold the folded fp32 `module` of `pruned`; files go to the folder `scratch`.

    Raises:
        Disagreement: the int8 file holds other weights than the module's. InvalidModel: the module cannot be exported.
    """
    exact = of_network(module)
    if precision == "fp16":
        return Reference(exact, of_network(rounded_network(module, precision)), precision)
    export_onnx(module, pruned.example, plain := scratch / "plain.onnx", input_names=pruned.input_names, output_names=pruned.output_names)
    return Reference(exact, of_graph(fake_quantized(prepared(plain), read_onnx(file))), precision)


def file_reference(file: Path | bytes) -> Reference:
    """The reference of a file alone, in the precision that its graph has. Raises InvalidModel where it cannot be evaluated."""
    model = onnx.load_from_string(file) if isinstance(file, bytes) else read_onnx(file)
    precision, exact = precision_of(model), unrounded(model)
    rounded = {"fp32": None, "fp16": in_half(exact) if precision == "fp16" else None, "int8": model}[precision]
    return Reference(of_graph(exact), None if rounded is None else of_graph(rounded), precision, OF_FILE)
