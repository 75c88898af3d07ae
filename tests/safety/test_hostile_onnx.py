"""ONNX files that lie, never end or reach for other files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import call, refused
from forgery import onnx_file
from onnx import TensorProto, helper

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "link", "."])
def test_onnx_files_that_read_others(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(108))
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")

    def change(model: Any) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)

    target = onnx_file(folder / "net.onnx", change)
    refused("bench", target, says="in another file")
    assert call("inspect", target).returncode == 0, "it looks at the file alone"


def deep(model: Any) -> None:
    """Graphs in graphs, as far as protobuf reads them, and a constant that doubles with each node."""
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(25):
        inner = helper.make_graph([helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner.__class__())], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner))


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("declares the shape", lambda m: m.graph.initializer[0].dims.append(10**9)),
        ("has the shape", lambda m: m.graph.initializer[0].dims.append(-1)),
        ("has the shape", lambda m: m.graph.initializer[0].dims.extend([2**60] * 100)),
        ("declares the shape", lambda m: setattr(m.graph.initializer[0], "raw_data", b"")),
        ("describes an impossible network", lambda m: setattr(m.metadata_props[1], "value", '{"name": "lenet5", "arguments": {}}')),
        ("lacks what", lambda m: setattr(m.metadata_props[1], "value", "[" * 10**5)),
        ("has 0 inputs", lambda m: m.graph.ClearField("input")),
        ("has 1 inputs and 0 outputs", lambda m: m.graph.ClearField("output")),
        ("operators of its own", lambda m: setattr(m.graph.node[0], "domain", "com.evil")),
        ("was not made by", lambda m: m.ClearField("metadata_props")),
    ],
)
def test_onnx_files_that_lie(tmp_path: Path, says: str, change: Callable[[Any], object]) -> None:
    refused("bench", onnx_file(tmp_path / "net.onnx", change), says=says)


def test_onnx_graphs_that_never_end(tmp_path: Path) -> None:
    """Constants that double with every node, that feed themselves, and graphs inside graphs."""

    def doubling(model: Any) -> None:
        model.graph.node.extend(helper.make_node("Add", [f"x{i}"] * 2, [f"x{i + 1}"]) for i in range(60))
        model.graph.initializer.append(helper.make_tensor("x0", TensorProto.FLOAT, [1], [1.0]))
        model.graph.node.append(helper.make_node("MatMul", ["b", "x60"], ["y"]))

    def circular(model: Any) -> None:
        model.graph.node.insert(0, helper.make_node("Relu", ["0.weight"], ["loop"]))
        model.graph.node.insert(1, helper.make_node("Add", ["loop", "loop"], ["loop"]))
        model.graph.node.append(helper.make_node("MatMul", ["b", "loop"], ["y"]))

    for change in (doubling, circular, deep):
        target = onnx_file(tmp_path / "net.onnx", change)
        done = call("inspect", target, timeout=30, memory_bytes=2 << 30)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
