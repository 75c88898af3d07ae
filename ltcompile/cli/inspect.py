"""ltcompile inspect: the layers of any ONNX file, and what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ltcompile.cli._terminal import printable, show_table
from ltcompile.core.fields import LARGEST
from ltcompile.core.onnx_file import MOST_DIMENSIONS

SUMMARY = "Print the layers of any ONNX file."
EPILOG = "Examples:  ltcompile inspect small.onnx  ·  ltcompile inspect network.onnx --json"
MULTIPLE = 8  # what tensor cores and vector units like widths to be
CONVOLUTIONS, TRANSPOSED = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}, {"ConvTranspose": 1}
PRODUCTS = {"MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "Gemm": 1}
# Where quantised operations take values; all their other inputs are scales and zero points.
VALUES = {
    "QuantizeLinear": (0,),
    "DequantizeLinear": (0,),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "QLinearConv": (0, 3, 8),
}
# Operations that multiply in ways, or hold graphs, that are not counted here.
UNCOUNTED = {"LSTM", "GRU", "RNN", "Einsum", "Attention", "DeformConv", "If", "Loop", "Scan"}

Shape = list["int | str"]  # an unknown dimension is its name


def inspect(
    file: Path = typer.Argument(..., help="An ONNX file, of ltcompile or not. (`ltcompile show` prints a ticket.)"),
    as_json: bool = typer.Option(False, "--json", help="Print as JSON."),
) -> None:
    """Print the layers of an ONNX file: widths, weights and MACs for one image. Its external weights are not read."""
    report = _examine(file)
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print(report)


def _examine(path: Path) -> dict[str, Any]:
    """The file's properties. Raises InvalidFile."""
    proto = _load(path)
    nodes = list(_Graph(proto.graph).rows())
    unknown = [row["name"] for row in nodes if row["macs"] is None]
    return {
        "file": str(path),
        "opset": {opset.domain or "ai.onnx": opset.version for opset in proto.opset_import},
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "metadata": {entry.key: entry.value for entry in proto.metadata_props},
        "nodes": nodes,
        "operations": len(proto.graph.node),
        "params": sum(row["params"] for row in nodes),
        "macs": sum(row["macs"] or 0 for row in nodes),
        "macs_unknown": unknown,
    }


def _load(path: Path) -> Any:
    """The file with all shapes that can be inferred for one image. Raises InvalidFile."""
    import onnx

    from ltcompile.core.onnx_file import read_onnx
    from ltcompile.errors import InvalidFile

    model = read_onnx(path)
    try:
        _one_image(model.graph)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # onnx raises its own types
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidFile(f"{path} is not valid ONNX, as its shapes contradict each other: {message}; export it again") from error


def _one_image(graph: Any) -> None:
    """Write one for the batch, if it is open: the first dimension of the inputs."""
    weights = {value.name for value in graph.initializer}
    firsts = [list(v.type.tensor_type.shape.dim)[:1] for v in graph.input if v.name not in weights]
    batch = {dims[0].dim_param for dims in firsts if dims and dims[0].dim_param}
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in batch:
                dim.dim_value = 1
    for dims in firsts:
        if dims and not dims[0].WhichOneof("value"):
            dims[0].dim_value = 1


class _Graph:
    """The nodes of a graph, with the shapes of their tensors and the weights that they take."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.weights = {value.name: value for value in graph.initializer}
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.shapes = {v.name: _shape(v) for v in (*graph.input, *graph.value_info, *graph.output) if v.type.tensor_type.HasField("shape")}
        self.shapes |= {name: list(value.dims) for name, value in self.weights.items()}
        images = [self.shapes.get(v.name, []) for v in graph.input if v.name not in self.weights]
        self.batch = next((dims[0] for dims in images if dims and isinstance(dims[0], int) and dims[0] > 0), 1)
        self.constant: dict[str, bool] = {}
        for node in self.nodes:  # in the order of their running, as ONNX demands
            alone = node.op_type == "Constant" or (any(node.input) and all(self._is_constant(name) for name in node.input))
            self.constant |= dict.fromkeys(node.output, alone)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each node that has weights or multiplies; what only prepares weights counts as part of their user."""
        seen: set[str] = set()
        for number, node in enumerate(self.nodes):
            if all(self.constant[name] for name in node.output):
                continue
            held = self._held(node)
            macs, width_in, width_out = self._cost(node)
            if not held and macs == 0:
                continue
            yield {
                "name": node.name or f"{node.op_type}_{number}",
                "op": node.op_type,
                "in": width_in,
                "out": width_out,
                "odd": any(isinstance(width, int) and width % MULTIPLE for width in (width_in, width_out)),
                "params": sum(count for name, count in held.items() if name not in seen),
                "macs": macs,
            }
            seen |= set(held)

    def _is_constant(self, name: str) -> bool:
        return not name or name in self.weights or self.constant.get(name, False)

    def _held(self, node: Any) -> dict[str, int]:
        """The weights that the node takes, itself or through nodes that only prepare them: name -> count. Scalars, sizes, scales and zero
        points are none."""
        held, seen, waiting = {}, set(), _taken(node)
        while waiting:
            name, quantised = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.weights:
                value = self.weights[name]
                if value.dims and (quantised or value.data_type not in _SIZES):
                    held[name] = math.prod(value.dims)
            elif self.constant.get(name) and name in self.makers:
                waiting += _taken(self.makers[name])
        return held

    def _cost(self, node: Any) -> tuple[int | None, int | str | None, int | str | None]:
        """MACs for one image (None where they are unknown), and the widths of input and output (None where there is none)."""
        kind = node.op_type
        if node.domain not in ("", "ai.onnx") or kind in UNCOUNTED:
            return None, None, None
        if kind in CONVOLUTIONS or kind in TRANSPOSED:
            return self._convolution(node)
        if kind in PRODUCTS:
            return self._product(node)
        return 0, None, None

    def _convolution(self, node: Any) -> tuple[int | None, int | str | None, int | str | None]:
        filters = self._of(node, {**CONVOLUTIONS, **TRANSPOSED}[node.op_type])
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if len(filters) < 3:
            return None, None, None
        transposed = node.op_type in TRANSPOSED
        width_in, width_out = (filters[0], _times(filters[1], groups)) if transposed else (_times(filters[1], groups), filters[0])
        # A filter is applied once for each place of what is made, or of what is read where it spreads.
        places = self._of(node, 0) if transposed else self._made(node)
        return self._macs([*places[:1], *places[2:], *filters]) if len(places) == len(filters) else None, width_in, width_out

    def _product(self, node: Any) -> tuple[int | None, int | str | None, int | str | None]:
        left, right = self._of(node, 0), self._of(node, PRODUCTS[node.op_type])
        if not left or not right:
            return None, None, None
        flipped = {a.name: bool(a.i) for a in node.attribute if a.name in ("transA", "transB")}
        left = left[::-1] if flipped.get("transA") else left
        right = right[::-1] if flipped.get("transB") else right
        made = self._made(node)
        macs = self._macs([*made, left[-1]]) if made else None
        if self._is_constant(node.input[PRODUCTS[node.op_type]]):
            return macs, right[-2] if len(right) > 1 else right[0], right[-1]
        if self._is_constant(node.input[0]):
            return macs, left[-1], left[-2] if len(left) > 1 else 1
        return macs, None, None

    def _of(self, node: Any, position: int) -> Shape:
        return self.shapes.get(node.input[position], []) if position < len(node.input) else []

    def _made(self, node: Any) -> Shape:
        return self.shapes.get(node.output[0], []) if node.output else []

    def _macs(self, dims: Shape) -> int | None:
        """The product of `dims` for one image; None where one of them is unknown, or their product is nonsense."""
        known = [n for n in dims if isinstance(n, int)]
        if len(known) < len(dims) or len(dims) > MOST_DIMENSIONS:
            return None
        macs = math.prod(known) // self.batch
        return macs if 0 <= macs <= LARGEST else None


_SIZES = {6, 7, 12, 13}  # TensorProto's int32, int64, uint32, uint64: shapes, axes and indices


def _taken(node: Any) -> list[tuple[str, bool]]:
    """The inputs of a node that may be weights, and whether they are quantised ones, whose integers are not sizes."""
    if node.op_type not in VALUES:
        return [(name, False) for name in node.input]
    return [(node.input[i], True) for i in VALUES[node.op_type] if i < len(node.input)]


def _shape(value: Any) -> Shape:
    return [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _times(size: int | str, groups: int) -> int | str:
    return size * groups if isinstance(size, int) else size


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    widths = ("" if row[side] is None else str(row[side]) for side in ("in", "out"))
    macs = "unknown" if row["macs"] is None else f"{row['macs']:,}"
    return row["name"], row["op"], *widths, "odd" if row["odd"] else "", f"{row['params']:,}", macs


def _print(report: dict[str, Any]) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in report["opset"].items())
    maker = printable(report["producer"]) or "an unknown producer"
    typer.echo(f"{report['file']}: opset {printable(opsets)}; made by {maker}; {report['operations']} operations")
    show_table(("layer", "operation", "in", "out", "", "params", "MACs"), map(_cells, report["nodes"]))
    typer.echo(f"params {report['params']:,}   MACs {report['macs']:,} for one image")
    if report["macs_unknown"]:
        typer.echo(f"not counted, as their sizes or formulas are unknown: {printable(', '.join(report['macs_unknown']))}")
    if any(row["odd"] for row in report["nodes"]):
        typer.echo(
            f"odd: a width is not a multiple of {MULTIPLE}, which hardware pads; --align rounds what is cut, not the network's inputs and outputs"
        )
    for key, value in report["metadata"].items():
        typer.echo(printable(f"{key}: {value if len(value) <= 100 else value[:97] + '...'}"))
