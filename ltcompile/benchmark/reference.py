"""What a subject's answers are compared with before it is timed: its network by PyTorch in fp32, and with its file's rounding simulated.

Never by what is timed. Where no network of PyTorch stands behind a file, its own graph is evaluated without any runtime
(`lower.evaluate`): that sees a runtime which computes something else, but weights are taken as the file has them, and `what` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ltcompile import numerics
from ltcompile.core.onnx_file import read_onnx
from ltcompile.lower import export_classifier
from ltcompile.lower.evaluate import evaluator
from ltcompile.lower.fake_quantize import fake_quantized, in_half, precision_of, unrounded
from ltcompile.lower.quantize import prepared
from ltcompile.lower.simulate import rounded_network
from ltcompile.runtimes import Array, Subject

OF_MODULE = "the network in PyTorch, fp32"
OF_FILE = "the file's own graph, evaluated without a runtime: nothing else holds its weights, so these are not compared"
Answer = Callable[[Array], Array]  # images (N, C, H, W) -> logits (N, classes)


@dataclass(frozen=True)
class Reference:
    """`exact` answers in fp32; `rounded` as the precision's rounding makes them, None in fp32; `what` answers, for the reader."""

    exact: Answer
    rounded: Answer | None = None
    precision: str = "fp32"
    what: str = OF_MODULE

    def expected(self, images: Array) -> numerics.Expected:
        """The answers to `images`, some at a time."""
        rounded = None if self.rounded is None else numerics.in_chunks(self.rounded, images)
        return numerics.Expected(numerics.in_chunks(self.exact, images), rounded)


def reference_of(subject: Subject) -> Reference:
    """The reference of a subject: its module, or else its file's own graph."""
    if subject.module is not None:
        return Reference(_answer(subject.module))
    return file_reference(subject.need_onnx("a reference"))


def module_reference(module: nn.Module, example: Tensor, file: Path, precision: str, scratch: Path) -> Reference:
    """The reference of `file`, in "fp16" or "int8", that should hold the folded fp32 `module`; files go to the folder `scratch`.

    Raises:
        Disagreement: the int8 file holds other weights than the module's. InvalidModel: the module cannot be exported.
    """
    if precision == "fp16":
        return Reference(_answer(module), _answer(rounded_network(module, precision)), precision)
    export_classifier(module, example, plain := scratch / "plain.onnx")
    return Reference(_answer(module), evaluator(fake_quantized(prepared(plain), read_onnx(file))), precision)


def file_reference(file: Path | bytes) -> Reference:
    """The reference of a file alone, in the precision that its graph has. Raises InvalidModel where it cannot be evaluated."""
    model = onnx.load_from_string(file) if isinstance(file, bytes) else read_onnx(file)
    precision, exact = precision_of(model), unrounded(model)
    rounded = {"fp32": None, "fp16": in_half(exact) if precision == "fp16" else None, "int8": model}[precision]
    return Reference(evaluator(exact), None if rounded is None else evaluator(rounded), precision, OF_FILE)


def _answer(network: Callable[[Tensor], Any]) -> Answer:
    """On arrays."""

    @torch.no_grad()
    def answer(images: Array) -> Array:
        logits: Array = network(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return logits

    return answer
