"""What ONNX Runtime's trace says of each operation."""

from __future__ import annotations

from typing import Any

from ltcompile.runtimes._ort import _trace


def node(name: str, start: int) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": 2, "args": {"op_name": "Conv"}}


def test_a_run_may_begin_in_the_microsecond_of_its_first_node() -> None:
    """The file has a run after its nodes, and all times in whole microseconds."""
    runs = [(10, [node("a", 10), node("b", 13)]), (20, [node("a", 21), node("b", 25)])]
    events = [event for start, nodes in runs for event in [*nodes, {"cat": "Session", "name": "model_run", "ts": start, "dur": 9}]]
    trace = _trace(events)
    assert [list(row) for row in trace.us] == [[3, 2], [4, 2]]
