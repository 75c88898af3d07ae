"""Files that reach outside are found in their bytes, without onnx."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from claims import network, report, timing
from onnx import TensorProto, helper
from readers import spoil_onnx

from ltcompile.core.onnx_file import domains, external
from ltcompile.errors import InvalidFile
from ltcompile.verification import verify
from ltcompile.verification.wire import OPENED, check_self_contained


def elsewhere(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def of_their_own(model: Any) -> None:
    model.graph.node[1].domain = "com.evil"


def in_a_branch(model: Any) -> None:
    inner = helper.make_graph([helper.make_node("EPContext", [], ["r"], domain="com.microsoft")], "i", [], [])
    model.graph.node.append(helper.make_node("If", ["t"], ["r"], then_branch=inner, else_branch=inner))


@pytest.mark.parametrize(
    ("change", "says"), [(elsewhere, "in another file"), (of_their_own, "com.evil"), (in_a_branch, "custom operators")]
)
def test_files_that_reach_outside_are_refused(folder: Path, change: Callable[[Any], object], says: str) -> None:
    report(folder, timing())
    (folder / "small.onnx").write_bytes(network(2, change))
    with pytest.raises(InvalidFile, match=says):
        verify(folder / "small.onnx")


def reaches_outside(data: bytes) -> bool:
    try:
        check_self_contained(data, Path("net.onnx"))
    except InvalidFile:
        return True
    return False


@pytest.mark.parametrize(("name", "says"), [("small.mnn", "name an .onnx file"), ("small.onnx", "export it again")])
def test_a_file_of_another_format_is_called_so(name: str, says: str) -> None:
    with pytest.raises(InvalidFile, match=says):
        check_self_contained(b"\xff" * 16, Path(name))


def test_bytes_say_what_onnx_says() -> None:
    """Over spoiled files: what onnx itself reads as reaching outside is refused, and nothing else is."""
    reported, whole = [], network(2)
    for seed in range(150):
        chance = random.Random(seed)
        model = onnx.load_from_string(whole)
        chance.choice((elsewhere, of_their_own, in_a_branch, lambda m: None, lambda m: None))(model)
        try:
            model = onnx.load_from_string(spoil_onnx(model.SerializeToString(), chance))
        except Exception:  # it is not ONNX any more
            continue
        model.DiscardUnknownFields()  # which ours may refuse
        outside = bool(external(model) or domains(model) - {""}) or not (model.ir_version and model.HasField("graph"))
        assert reaches_outside(model.SerializeToString()) == outside, seed
        reported.append(outside)
    assert 25 < sum(reported) < len(reported) - 25


def test_all_fields_that_lead_to_nodes_and_tensors_are_known() -> None:
    leads = {"NodeProto", "TensorProto", "FunctionProto"}
    described = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name

    def inside(name: str) -> dict[int, str]:
        return {f.number: f.message_type.name for f in described[name].fields if f.message_type is not None}

    for _ in described:
        leads |= {name for name in described if leads & set(inside(name).values())}
    ours: dict[str, dict[int, str]] = {}
    todo = ["ModelProto"]
    while todo:
        name = todo.pop()
        ours[name] = {number: held for number, held in inside(name).items() if held in leads}
        todo += [held for held in ours[name].values() if held not in ours]
    assert {name: fields for name, fields in ours.items() if fields} == OPENED
