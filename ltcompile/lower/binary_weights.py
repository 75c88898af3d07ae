"""Signs and scales for the weights of an ONNX file whose values are all -a, 0 or a: a byte a weight instead of four.

    w[k, ...] = scale[k] * float(sign[k, ...])        (one scale for all filters where it is the same)

A filter's values differ only in their signs in a multi-prize ticket, and still do after folding a batch norm, which multiplies each filter
by one number. So nothing is rounded: a file of signs multiplies with the same numbers as the float file, to the bit. The graph holds a Cast
and a Mul, which ONNX Runtime computes once, when it loads the file. With a DequantizeLinear instead, a MatMul or Gemm of ONNX Runtime 1.31
computes as if activations were rounded too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ltcompile.core.onnx_file import read_onnx
from ltcompile.errors import Disagreement, InvalidModel
from ltcompile.lower.export import run_onnx
from ltcompile.lower.quantize import PRODUCTS
from ltcompile.numerics import REWRITE_TOLERANCE, largest_error
from ltcompile.paths import write_bytes

FLOAT = 1  # TensorProto.FLOAT


@dataclass(frozen=True)
class BinaryFile:
    """The outcome of each weight of a file, the bytes of the file before and after, and the error relative to the largest output."""

    outcomes: Mapping[str, str]
    bytes_before: int
    bytes: int
    error: float


def write_binary_weights(path: str | Path, output: str | Path, images: Tensor) -> BinaryFile:
    """Write the float ONNX file `path` to `output`, which may be the same, with signs for its binary weights; both run on `images`.

    Raises:
        InvalidModel: none of its weights is binary. Disagreement: the outputs of the files differ. InvalidFile: one cannot be read or written.
    """
    import onnx

    path, output = Path(path), Path(output)
    model = read_onnx(path)
    before, expected = path.stat().st_size, run_onnx(path, images)
    outcomes = _rewrite(model.graph)
    if not any(outcomes[name].startswith("signs") for name in outcomes):
        reasons = "; ".join(f"{name}: {why}" for name, why in list(outcomes.items())[:3])
        raise InvalidModel(f"{path} holds no weights that differ in sign alone ({reasons}); signs are for tickets of --method biprop")
    onnx.checker.check_model(model, full_check=True)
    write_bytes(output, model.SerializeToString())
    error = largest_error(run_onnx(output, images), expected)
    if not error <= REWRITE_TOLERANCE:
        raise Disagreement(
            f"{output} differs from the float file by {error:.2e} of the largest output, more than {REWRITE_TOLERANCE:.0e}; use fp32"
        )
    return BinaryFile(outcomes, before, output.stat().st_size, error)


def _rewrite(graph: Any) -> dict[str, str]:
    """Replace binary weights by signs, in place; the outcome of each weight of a product."""
    from onnx import helper, numpy_helper

    held = {tensor.name: tensor for tensor in graph.initializer}
    outcomes: dict[str, str] = {}
    for name, axes in _weights(graph, held).items():
        tensor = held[name]
        refusal, scales = _scales(tensor, axes)
        if refusal:
            outcomes[name] = refusal
            continue
        signs = numpy_helper.from_array(np.sign(numpy_helper.to_array(tensor)).astype(np.int8), f"{name}_signs")
        graph.initializer.remove(tensor)
        graph.initializer.extend([signs, numpy_helper.from_array(scales, f"{name}_scale")])
        cast = helper.make_node("Cast", [signs.name], [f"{name}_cast"], name=f"{name}_from_signs", to=FLOAT)
        graph.node.insert(0, helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name], name=f"{name}_scaled"))
        graph.node.insert(0, cast)
        if name not in {value.name for value in graph.value_info}:  # tools look there for the shapes of what is computed
            graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, list(tensor.dims)))
        outcomes[name] = f"signs with {scales.size} scale{'s' if scales.size > 1 else ''}"
    return outcomes


def _weights(graph: Any, held: Mapping[str, Any]) -> dict[str, set[int]]:
    """The names of weights of products, and the axes of their filters in the nodes that read them."""
    found: dict[str, set[int]] = defaultdict(set)
    for node in graph.node:
        if node.op_type in PRODUCTS and len(node.input) > 1 and node.input[1] in held:
            found[node.input[1]].add(_axis(node, held[node.input[1]]))
    return found


def _axis(node: Any, tensor: Any) -> int:
    """The axis of a product's weight that counts its outputs."""
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not attributes.get("transB")):
        return 1
    return len(tensor.dims) - 1 if node.op_type == "MatMul" else 0


def _scales(tensor: Any, axes: set[int]) -> tuple[str, NDArray[np.float32]]:
    """("", the magnitude of a weight's values, one or one for each filter), or the reason why it has none."""
    from onnx import numpy_helper

    none = np.zeros((), np.float32)
    if tensor.data_type != FLOAT:
        return "its values are not in fp32", none
    magnitudes = np.abs(numpy_helper.to_array(tensor))
    scale = magnitudes.max(initial=0.0)
    if not ((magnitudes == 0) | (magnitudes == scale)).all():
        if len(axes) > 1:
            return "its values differ in more than their signs, and products read it along several axes", none
        others = tuple(d for d in range(magnitudes.ndim) if d not in axes)
        each = magnitudes.max(axis=others, keepdims=True, initial=0.0)
        if not ((magnitudes == 0) | (magnitudes == each)).all():
            return "the values of a filter differ in more than their signs", none
        scale = each
    scales = np.where(scale == 0, 1, scale).astype(np.float32)  # a filter of zeros may have any scale
    if magnitudes.size + scales.nbytes >= magnitudes.nbytes:
        return "signs and scales would take as many bytes", none
    return "", scales
