"""One network in int8: its float ONNX file, the int8 files that are made of it, and what these have to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ltcompile.core.onnx_file import read_onnx
from ltcompile.errors import InvalidModel
from ltcompile.graph.inputs import Example
from ltcompile.lower.evaluate import evaluator_of_all
from ltcompile.lower.export import export_onnx
from ltcompile.lower.fake_quantize import fake_quantized
from ltcompile.lower.quantize import Quantizer, Scheme
from ltcompile.lower.trace import BATCH

FLOAT, INT8 = "float.onnx", "int8.onnx"


class Int8Network:
    """A folded network in `folder`, as float file and as the int8 file that was written last.

    Args:
        feeds: real inputs, whose ranges activations get: a tensor, or in chunks by the names of the file's inputs.

    Raises:
        InvalidModel: torch cannot export the network, or it has no layer that int8 would compute.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Example,
        feeds: Tensor | Sequence[Mapping[str, Tensor]],
        folder: Path,
        names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
        dynamic: Sequence[str] = (BATCH,),
    ) -> None:
        self.float_file, self.file = folder / FLOAT, folder / INT8
        export_onnx(network, example, self.float_file, input_names=names[0], output_names=names[1], dynamic=dynamic)
        self.quantizer = Quantizer(self.float_file, feeds)
        if not self.quantizer.products:
            raise InvalidModel("this network has no layer that int8 would compute; leave it in fp32 or fp16")

    def write(self, scheme: Scheme = Scheme()) -> None:  # noqa: B008
        """Write the int8 file."""
        self.quantizer.write(scheme, self.file)

    def simulated(self) -> Callable[[Mapping[str, Any]], dict[str, np.ndarray[Any, Any]]]:
        """What the int8 file has to answer, computed without a runtime. Raises Disagreement where it holds other weights."""
        return evaluator_of_all(fake_quantized(self.quantizer.plain, read_onnx(self.file)))
