"""The field check: what is true is confirmed, what is exaggerated is not, what cannot be known is said to be, and torch is never needed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from quickly import exported_once, timed_at_once
from readers import READERS, some_ticket, spoil_onnx

import ltcompile as lt
from ltcompile import registry
from ltcompile.cli import main
from ltcompile.core.deployment import DEVICES, MOST_IMAGES, PRECISIONS, Deployment
from ltcompile.core.interval import wilson
from ltcompile.core.network_file import described
from ltcompile.core.onnx_file import domains, external
from ltcompile.core.records import cpu_name
from ltcompile.errors import BadData, BadFile, BadSetting, LtcompileError, StaleTicket
from ltcompile.verification import Check, Value, Verified, read_claims, verify
from ltcompile.verification.images import read_images
from ltcompile.verification.network import open_network
from ltcompile.verification.wire import OPENED, check_self_contained

SHAPE, CLASSES, TICKET = (1, 16, 16), 3, "c0ffee" * 10
QUICK = 0.1
FAST = {"ms_p20": 1e5, "ms_p50": 1e5, "ms_p80": 1e5}  # what anything is faster than
HEAVY = ("torch", "torchvision", "triton", "onnx", "onnxscript", "scipy")


def network(width: int, change: Callable[[Any], object] = lambda model: None, **metadata: str) -> bytes:
    """Two convolutions of `width` channels and a linear layer, as `ltcompile shrink` would write them."""
    chance = np.random.default_rng(width)
    weights = {
        "a": chance.standard_normal((width, SHAPE[0], 3, 3)) / 3,
        "b": chance.standard_normal((width, width, 3, 3)) / (3 * width**0.5),
        "c": chance.standard_normal((width, CLASSES)),
    }
    nodes = [
        helper.make_node("Conv", ["images", "a"], ["x"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Conv", ["y", "b"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["z"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("MatMul", ["f", "c"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    told = {"producer": "ltcompile", "ticket_checksum": TICKET, "precision": "fp32", "recalibrated": "false"} | metadata
    helper.set_model_props(model, told)
    change(model)
    return bytes(model.SerializeToString())


def timing(batch: int = 1, speedup: float | None = 1.0, **fields: Any) -> dict[str, Any]:
    told = {"subject": "small", "runtime": "onnxruntime", "device": "cpu", "dtype": "float32", "batch": batch, **FAST}
    return {**told, "speedup": speedup, "speedup_low": speedup, "speedup_high": speedup, "accuracy": None, **fields}


def report(folder: Path, *timings: dict[str, Any], **fields: Any) -> Path:
    """A report.json in `folder` on the small.onnx that lies there."""
    shrunk = {"output": "small.onnx", "precision": "fp32", "bytes": (folder / "small.onnx").stat().st_size, "recalibrated": False}
    value = {
        "kind": "report",
        "format": 1,
        "ticket": {"seed": 0, "level": 1, "checksum": TICKET},
        "data": {"shape": list(SHAPE), "sizes": {"test": 500}},
        "points": [],
        "shrinks": [{**shrunk, "ticket_checksum": TICKET}],
        "bench": {"subjects": {"dense": {"params": 150_000}}, "rows": [timing(subject="dense"), *timings]},
        "provenance": [{"stage": "bench", "machine": {"cpu": cpu_name()}, "command": "ltcompile bench runs/x/small.onnx"}],
        **fields,
    }
    (folder / "report.json").write_text(json.dumps(value))
    return folder / "report.json"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine counts as idle, and races do not let threads settle."""
    monkeypatch.setattr("ltcompile.verification.checks.busy_share", lambda: 0.0)
    monkeypatch.setattr("ltcompile.core.load.SAMPLE_S", 0.0)
    monkeypatch.setattr("ltcompile.timing.SETTLE_S", 0.0)


def timed(folder: Path, *timings: dict[str, Any], file: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
    """What a benchmark tells today, of `file` or of a ticket itself."""
    told = {"target": file["output"] if file else "ticket.pt", "file": file, "ticket_checksum": TICKET}
    return {"subjects": {"dense": {"params": 150_000}}, "rows": [*timings], **told, **fields}


def file_of(data: bytes, name: str = "small.onnx") -> dict[str, Any]:
    told = {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    return dataclasses.asdict(described(name, data, told))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.onnx").write_bytes(network(2))
    (tmp_path / "dense.onnx").write_bytes(network(128))
    return tmp_path


def check(folder: Path, what: str, **options: Any) -> Check:
    """The one check of its kind."""
    verified = verify(folder / "small.onnx", folder / "report.json", seconds=QUICK, **options)
    (found,) = (c for c in verified.checks if c.what == what)
    return found


# Targets


RUNTIMES = [*registry.names("ltcompile.runtimes"), "engine"]


@given(st.sampled_from(DEVICES), st.sampled_from(RUNTIMES), st.integers(1, MOST_IMAGES), st.sampled_from(PRECISIONS), st.integers(0, 64))
def test_targets_are_read_as_they_are_written(device: str, runtime: str, batch: int, precision: str, threads: int) -> None:
    target = Deployment(device, runtime, batch, precision, threads if device == "cpu" else 0)
    assert Deployment.parse(str(target)) == target == Deployment.from_json(target.to_json())
    for parts in range(1, 6):
        begun = Deployment.parse(":".join(str(target).split(":")[:parts]))
        rest = Deployment(device)
        assert begun == Deployment(*[getattr(target if i < parts else rest, name) for i, name in enumerate(target.to_json())])


@given(
    st.lists(st.sampled_from([*DEVICES, *RUNTIMES, *PRECISIONS, "b1", "t2", "t0", "b0", "b-1", "8", "b99999999", "", "cpu "]), max_size=6)
)
def test_targets_are_read_or_refused(parts: list[str]) -> None:
    text = ":".join(parts)
    try:
        target = Deployment.parse(text)
    except BadSetting as error:
        assert "known:" in str(error) or "write" in str(error) or "take" in str(error)
    else:
        assert str(target).startswith(text.strip())


def test_near_misses_are_named() -> None:
    for text, says in (("cup", "did you mean cpu"), ("cpu:onnxruntim", "mean onnxruntime"), ("cpu:eager:1", "as in b1")):
        with pytest.raises(BadSetting, match=says):
            Deployment.parse(text)


# Speed


def test_speedups_are_confirmed_unless_exaggerated(folder: Path) -> None:
    report(folder, timing())
    found = check(folder, "speedup", dense=folder / "dense.onnx").found
    assert found is not None and found.low is not None and found.low <= found.value and found.value > 1
    for factor, verdict in ((0.01, "confirmed"), (100, "not confirmed")):
        report(folder, timing(speedup=factor * found.low))
        again = check(folder, "speedup", dense=folder / "dense.onnx")
        assert again.verdict == verdict, (factor, found, again)


def test_a_network_is_no_faster_than_itself(folder: Path) -> None:
    report(folder, timing(speedup=10.0), bench={"subjects": {}, "rows": [timing(speedup=10.0)]})
    again = check(folder, "speedup", dense=folder / "small.onnx")
    assert again.verdict == "not confirmed" and again.found is not None and again.found.value < 5


@pytest.mark.parametrize(("ms", "verdict"), [(1e5, "confirmed"), (1e-5, "not confirmed")])
def test_latencies_count_on_the_same_machine_alone(folder: Path, ms: float, verdict: str) -> None:
    slow = timing(ms_p20=ms, ms_p50=ms, ms_p80=ms)
    report(folder, slow)
    assert check(folder, "latency").verdict == verdict
    elsewhere = [{"stage": "bench", "machine": {"cpu": "another"}, "command": "x"}]
    report(folder, slow, provenance=elsewhere)
    there = check(folder, "latency")
    assert there.verdict == "not comparable" and "measured on another" in there.reason and there.found is None
    assert check(folder, "speedup", dense=folder / "dense.onnx").verdict == "confirmed", "a race compares anywhere"


def test_what_this_machine_lacks_is_told(folder: Path) -> None:
    report(folder, timing(device="tpu"), timing(batch=1 << 40), timing(runtime="eager"))
    lacking, huge = (c for c in verify(folder / "small.onnx", seconds=QUICK).checks if c.what == "latency")
    assert lacking.verdict == huge.verdict == "not comparable" and "tpu" in lacking.reason and "bytes" in huge.reason


def test_one_target_is_checked_alone(folder: Path) -> None:
    report(folder, timing(1), timing(4))
    told = check(folder, "latency", on=Deployment("cpu", batch=4))
    assert told.on == "cpu:onnxruntime:b4:fp32"
    for target, says in (
        ("cpu:onnxruntime:b3", "b1:fp32, cpu"),
        ("cpu:openvino", "onnxruntime alone"),
        ("cpu:onnxruntime:b1:fp32:t2", "own number of threads"),
        ("cpu:onnxruntime:b1:int8", "fp32"),
    ):
        with pytest.raises(BadSetting, match=says):
            verify(folder / "small.onnx", on=Deployment.parse(target))


def test_timings_of_a_file_in_another_precision_say_nothing(folder: Path) -> None:
    (folder / "half.onnx").write_bytes(network(2, precision="fp16"))
    report(folder, timing())
    told = {c.what: c for c in verify(folder / "half.onnx").checks}
    assert told["latency"].verdict == told["size"].verdict == "not comparable" and "small.onnx was measured" in told["latency"].reason


# The file


def test_a_file_of_other_bytes_is_not_confirmed(folder: Path) -> None:
    report(folder, timing())
    assert check(folder, "size").verdict == "confirmed"
    (folder / "small.onnx").write_bytes(network(3))
    other = check(folder, "size")
    assert other.verdict == "not confirmed" and other.claimed != other.found


def kinds(folder: Path, name: str = "small.onnx", claims: str = "report.json", **options: Any) -> dict[str, Check]:
    """The checks of a file by what they are about, one each."""
    return {c.what: c for c in verify(folder / name, folder / claims, seconds=QUICK, **options).checks}


@pytest.mark.parametrize("kind", ["report", "bench"])
def test_claims_are_of_the_file_that_was_timed_alone(folder: Path, kind: str) -> None:
    """Of these bytes under any name: all is compared. Of other bytes, though as many: the size is not confirmed, and no speed compares."""
    whole = network(2)
    bench = timed(folder, timing(accuracy=0.4), file=file_of(whole))
    path = report(folder, bench=bench)
    if kind == "bench":
        value = {"kind": "bench", "format": 1, **bench, "provenance": {"machine": {"cpu": cpu_name()}, "command": "Python API"}}
        path = folder / "bench.json"
        path.write_text(json.dumps(value))

    (folder / "renamed.onnx").write_bytes(whole)
    for name in ("small.onnx", "renamed.onnx"):
        same = kinds(folder, name, path.name, data=images_file(folder, 0.5))
        assert {what: c.verdict for what, c in same.items()} == dict.fromkeys(same, "confirmed"), same
        assert same["size"].reason == "to the byte, by SHA-256"

    def nudge(model: Any) -> None:
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full((2, CLASSES), 0.5, np.float32), "c"))

    (folder / "small.onnx").write_bytes(network(2, nudge))
    other = kinds(folder, "small.onnx", path.name, data=folder / "test.npz")
    assert other["size"].verdict == "not confirmed" and other["size"].reason.startswith("as many bytes, and others")
    for what in ("latency", "accuracy"):
        assert other[what].verdict == "not comparable" and "another file was measured: small.onnx (fp32, SHA-256 " in other[what].reason
    assert verify(folder / "small.onnx", path, seconds=QUICK).outcome == "not confirmed"


def test_a_timed_ticket_says_nothing_of_files_that_compute_otherwise(folder: Path) -> None:
    report(folder, bench=timed(folder, timing(), file=None), points=[{"arm": "ticket", "seed": 0, "level": 1, "test_accuracy": 0.8}])
    assert kinds(folder)["latency"].verdict == "confirmed"
    for name, says, told in (
        ("int8.onnx", "is in int8", {"precision": "int8"}),
        ("anew.onnx", "other batch-norm statistics", {"recalibrated": "true"}),
    ):
        (folder / name).write_bytes(network(2, **told))
        found = kinds(folder, name, data=images_file(folder, 0.8))
        for what in ("latency", "accuracy"):
            assert found[what].verdict == "not comparable" and says in found[what].reason, found[what]
        assert "ticket.pt itself was measured" in found["latency"].reason


def test_a_benchmark_of_another_ticket_is_refused(folder: Path) -> None:
    provenance = {"machine": {}, "command": "Python API"}
    bench = timed(folder, timing(), file=None, ticket_checksum="dead" * 16, provenance=provenance)
    (folder / "bench.json").write_text(json.dumps({"kind": "bench", "format": 1, **bench}))
    with pytest.raises(StaleTicket, match="is about deaddead"):
        verify(folder / "small.onnx")


def test_answers_that_are_no_numbers_are_not_confirmed(folder: Path) -> None:
    report(folder, timing())

    def spoil(model: Any) -> None:
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full((2, CLASSES), np.nan, np.float32), "c"))

    (folder / "small.onnx").write_bytes(network(2, spoil))
    assert check(folder, "file").verdict == "not confirmed"


def test_files_of_others_are_refused(folder: Path) -> None:
    report(folder, timing())
    for name, content, says in (
        ("other.onnx", network(2, ticket_checksum="dead"), "made from the ticket dead"),
        ("foreign.onnx", network(2, producer="pytorch"), "was not made by"),
        ("text.onnx", b"hello", "ONNX"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises((StaleTicket, BadFile), match=says):
            verify(folder / name, folder / "report.json")
    for name in ("small.onnx", "other.onnx"):  # not what it was cut from: too small, and of another ticket
        with pytest.raises(StaleTicket):
            verify(folder / "small.onnx", dense=folder / name, seconds=QUICK)
    report(folder, timing(), data={"shape": [3, 8, 8], "sizes": {}})
    with pytest.raises(StaleTicket, match="is about"):
        verify(folder / "small.onnx")


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
    ("change", "says"), [(elsewhere, "in another file"), (of_their_own, "com.evil"), (in_a_branch, "operators of its own")]
)
def test_files_that_reach_outside_are_refused(folder: Path, change: Callable[[Any], object], says: str) -> None:
    report(folder, timing())
    (folder / "small.onnx").write_bytes(network(2, change))
    with pytest.raises(BadFile, match=says):
        verify(folder / "small.onnx")


def reaches_outside(data: bytes) -> bool:
    try:
        check_self_contained(data, Path("net.onnx"))
    except BadFile:
        return True
    return False


def test_bytes_say_what_onnx_says() -> None:
    """Over spoiled files: what onnx itself reads as reaching outside is refused, and nothing else is."""
    told, whole = [], network(2)
    for seed in range(150):
        chance = random.Random(seed)
        model = onnx.load_from_string(whole)
        chance.choice((elsewhere, of_their_own, in_a_branch, lambda m: None, lambda m: None))(model)
        try:
            model = onnx.load_from_string(spoil_onnx(model.SerializeToString(), chance))
        except Exception:  # it is no ONNX any more
            continue
        model.DiscardUnknownFields()  # which ours may refuse
        outside = bool(external(model) or domains(model) - {""}) or not (model.ir_version and model.HasField("graph"))
        assert reaches_outside(model.SerializeToString()) == outside, seed
        told.append(outside)
    assert 25 < sum(told) < len(told) - 25


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


# Accuracy


def images_file(folder: Path, right: float) -> Path:
    """200 images of noise, with labels of which a share `right` is what the network answers."""
    images = np.random.default_rng(1).standard_normal((200, *SHAPE)).astype(np.float32)
    labels = open_network(folder / "small.onnx").logits("cpu", images).argmax(1)
    wrong = np.arange(200) >= 200 * right
    np.savez(folder / "test.npz", images=images, labels=np.where(wrong, (labels + 1) % CLASSES, labels))
    return folder / "test.npz"


def test_accuracy_is_confirmed_unless_it_is_worse(folder: Path) -> None:
    report(folder, timing(accuracy=0.8), provenance=[])
    untold = check(folder, "accuracy")
    assert untold.verdict == "not comparable" and untold.reason == "not repeated: no test images"
    for right, verdict in ((0.2, "not confirmed"), (0.8, "not comparable"), (0.9, "confirmed"), (1.0, "confirmed")):
        told = check(folder, "accuracy", data=images_file(folder, right))
        assert told.found is not None and told.found.value == pytest.approx(right)
        assert told.verdict == verdict, told
    few = dict(np.load(folder / "test.npz"))
    np.savez(folder / "few.npz", images=few["images"][:5], labels=few["labels"][:5])
    told = check(folder, "accuracy", data=folder / "few.npz")
    assert told.verdict == "not comparable" and "at least 100" in told.reason, "five images confirm nothing"


def test_the_tickets_own_accuracy_counts_where_no_benchmark_tells_one(folder: Path) -> None:
    report(folder, points=[{"arm": "ticket", "seed": 0, "level": 1, "test_accuracy": 0.8}], bench=None)
    assert check(folder, "accuracy", data=images_file(folder, 0.9)).verdict == "confirmed"


@given(st.integers(0, 500), st.integers(1, 500))
def test_intervals_hold_their_value(right: int, images: int) -> None:
    share = min(right, images) / images
    low, high = wilson(share, images)
    assert 0 <= low <= share <= high <= 1 and low < high
    assert (low == 0 or share > 0) and (high == 1 or share < 1)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((2, *SHAPE), np.float32)}, "lacks"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.zeros(2, int)}, "float32"),
        ({"images": np.zeros((2, 1, 2, 2), np.float32), "labels": np.zeros(2, int)}, "float32"),
        ({"images": np.zeros((2, *SHAPE), np.float32), "labels": np.zeros(3, int)}, "whole numbers"),
        ({"images": np.zeros((2, *SHAPE), np.float32), "labels": np.full(2, CLASSES)}, "lie between"),
        ({"images": np.full((2, *SHAPE), np.nan, np.float32), "labels": np.zeros(2, int)}, "finite"),
        ({"images": np.array([{}, {}]), "labels": np.zeros(2, int)}, "cannot be read"),
    ],
)
def test_images_that_are_none_are_refused(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "test.npz", **arrays)
    with pytest.raises((BadData, BadFile), match=says):
        read_images(tmp_path / "test.npz", SHAPE, CLASSES)


def test_archives_that_are_bombs_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(1 << 22))
    with pytest.raises(BadFile, match="would unfold"):
        read_images(tmp_path / "bomb.npz", SHAPE, CLASSES)


# Claims


def test_what_report_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(READERS["claims"].whole())
    told, value = read_claims(tmp_path / "report.json"), json.loads(READERS["claims"].whole())
    assert told.checksum == value["ticket"]["checksum"] and [f.output for f in told.files] == [s["output"] for s in value["shrinks"]]
    small = [row for row in value["bench"]["rows"] if row["subject"] != "dense"]
    assert [(t.runtime, t.batch, t.ms_p50) for t in told.timings] == [(row["runtime"], row["batch"], row["ms_p50"]) for row in small]
    assert told.machine and told.timings and told.files


def test_a_benchmark_is_read_as_its_report_is(folder: Path) -> None:
    path = report(folder, timing(1), timing(4, accuracy=0.5))
    of_report, timed = read_claims(path), json.loads(path.read_text())
    (provenance,) = timed["provenance"]
    bench = {"kind": "bench", "format": 1, "target": "small.onnx", **timed["bench"], "provenance": provenance}
    (folder / "bench.json").write_text(json.dumps(bench))
    of_bench = read_claims(folder / "bench.json")
    assert (of_bench.timings, of_bench.machine, of_bench.target) == (of_report.timings, of_report.machine, of_report.target)
    assert of_bench.checksum is None
    path.unlink()
    told = {c.what: c.verdict for c in verify(folder / "small.onnx", on=Deployment("cpu", batch=4), seconds=QUICK).checks}
    assert told == {
        "file": "confirmed",
        "ticket": "not comparable",
        "size": "not comparable",
        "accuracy": "not comparable",
        "latency": "confirmed",
    }


@pytest.mark.parametrize(
    "fields", [{"batch": 0}, {"ms_p50": -1.0}, {"speedup": None, "speedup_low": 1.0}, {"accuracy": 1.5}, {"ms_p20": "fast"}, {"batch": 1.5}]
)
def test_impossible_claims_are_refused(folder: Path, fields: dict[str, Any]) -> None:
    report(folder, timing() | fields)
    with pytest.raises(BadFile, match="make it again"):
        verify(folder / "small.onnx")


def test_outcomes() -> None:
    """One check that fails decides; a file of the right size is no repeated claim, and a required claim must be one."""
    verdicts = ("confirmed", "not confirmed", "not comparable")
    for size, speed, accuracy in itertools.product(verdicts, repeat=3):
        checks = [Check("size", "", size, ""), Check("speedup", "", speed, "", Value(1.0)), Check("accuracy", "", accuracy, "")]  # type: ignore[arg-type]
        verified = Verified("x", "", "y", checks, 0.0)
        required = Verified("x", "", "y", checks, 0.0, ["accuracy", "speedup"])
        unclaimed = Verified("x", "", "y", checks, 0.0, ["latency"])
        if "not confirmed" in (size, speed, accuracy):
            assert {one.outcome for one in (verified, required, unclaimed)} == {"not confirmed"}
        else:
            assert verified.outcome == ("confirmed" if "confirmed" in (speed, accuracy) else "not comparable")
            assert required.outcome == ("confirmed" if (speed, accuracy) == ("confirmed", "confirmed") else "not comparable")
            assert unclaimed.outcome == "not comparable" and unclaimed.missing == ["latency"]


# From a benchmark to its claims


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ticket, what it was shrunk to, benchmarks of both, and the dense network that one of them wrote."""
    folder = tmp_path_factory.mktemp("benched")
    ticket = dataclasses.replace(some_ticket(), data={**some_ticket().data, "name": "nowhere"})
    ticket.save(folder / "ticket.pt")
    own, quick = {"model": "readers:network"}, {"runtimes": ["onnxruntime"], "batches": (1,), "seconds_per_row": 0.02}
    with exported_once(), timed_at_once():
        lt.shrink(ticket, folder / "small.onnx", **own)
        lt.bench(folder / "small.onnx", **own, **quick, output=folder / "of_file.json", write_dense=folder / "dense.onnx")
        lt.bench(folder / "ticket.pt", **own, **quick, output=folder / "of_ticket.json")
    return folder


def test_a_benchmark_names_what_it_timed(benched: Path) -> None:
    of_file, of_ticket = (json.loads((benched / name).read_text()) for name in ("of_file.json", "of_ticket.json"))
    data = (benched / "small.onnx").read_bytes()
    assert of_file["target"] == "small.onnx" and of_file["file"] == file_of(data)
    assert of_file["file"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert of_ticket["target"] == "ticket.pt" and of_ticket["file"] is None
    checksum = lt.Ticket.load(benched / "ticket.pt").checksum
    assert of_file["ticket_checksum"] == of_ticket["ticket_checksum"] == of_file["file"]["ticket_checksum"] == checksum
    for name in ("of_file.json", "of_ticket.json"):
        told = kinds(benched, claims=name)
        assert told["ticket"].verdict == "confirmed" and told["latency"].claimed is not None


def test_the_dense_network_that_bench_writes_races(benched: Path, tmp_path: Path) -> None:
    """It is what was timed, is of the ticket, and is never taken for the small one."""
    dense = open_network(benched / "dense.onnx")
    assert dense.shape == (1, 4, 4) and dense.metadata == {"ticket_checksum": lt.Ticket.load(benched / "ticket.pt").checksum}
    shapes = {tuple(tensor.dims) for tensor in onnx.load(benched / "dense.onnx").graph.initializer}
    assert (3, 1, 3, 3) in shapes, "all filters"
    raced = kinds(benched, claims="of_file.json", dense=benched / "dense.onnx")["speedup"]
    assert raced.claimed is not None and raced.found is not None
    with pytest.raises(BadFile, match="was not made by"):
        verify(benched / "dense.onnx", benched / "of_file.json")
    other = onnx.load(benched / "dense.onnx")
    onnx.helper.set_model_props(other, {"ticket_checksum": "dead"})
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(StaleTicket, match=r"ltcompile bench small\.onnx --write-dense other\.onnx"):
        verify(benched / "small.onnx", benched / "of_file.json", dense=tmp_path / "other.onnx")


@pytest.mark.parametrize("name", ["small.onnx", "dense.pt", "dense"])
def test_the_dense_network_gets_a_file_of_its_own(benched: Path, name: str) -> None:
    before = (benched / "small.onnx").read_bytes()
    with pytest.raises(BadSetting, match="ONNX file of its own"):
        lt.bench(benched / "small.onnx", model="readers:network", write_dense=benched / name)
    assert (benched / "small.onnx").read_bytes() == before


# The command


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`ltcompile verify small.onnx WORDS` in `folder`: exit code, output and errors."""
    monkeypatch.chdir(folder)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ltcompile", "verify", "small.onnx", "--seconds", str(QUICK), *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    return run


def test_exit_codes(folder: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    report(folder, timing())
    code, told, errors = call("--dense", "dense.onnx", "-o", "out/verified.json")
    assert code == 0 and "confirmed" in told, (told, errors)
    written = json.loads((folder / "out/verified.json").read_text())
    assert written["outcome"] == "confirmed" and {"python", "numpy", "onnxruntime"} <= set(written["versions"])
    assert written["machine"]["cpu"] == cpu_name() and written["date"] and len(written["sha256"]) == 64
    report(folder, timing(speedup=1e6))
    assert call("--dense", "dense.onnx")[0] == 1
    monkeypatch.setattr("ltcompile.verification.checks.busy_share", lambda: 0.9)
    code, told, errors = call("--dense", "dense.onnx", "--json")
    assert code == 3 and json.loads(told)["outcome"] == "not comparable" and "quote no timing" in errors, "being busy refutes nothing"
    assert json.loads(told)["busy_share"] == 0.9
    assert "other work took 90%" in json.loads(told)["checks"][-1]["reason"]


def test_a_file_that_is_only_the_right_one_is_not_confirmed(folder: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    report(folder, timing(accuracy=0.4), provenance=[])
    code, told, errors = call()
    assert code == 3 and "--dense" in errors and "2 not comparable" in told and "3 confirmed" in told
    code, told, errors = call("--data", images_file(folder, 0.9))
    assert code == 0, (told, errors)
    code, told, errors = call("--data", "test.npz", "--require", "accuracy, speedup", "--json")
    assert code == 3 and json.loads(told)["missing"] == ["speedup"] and "required, and not confirmed: speedup" in errors
    code, told, errors = call("--data", "test.npz", "--require", "accuracy,latency,speedup", "--dense", "dense.onnx", "--json")
    assert code == 3 and json.loads(told)["missing"] == ["latency"], "it was measured on a machine without a name"
    report(folder, timing(accuracy=0.4))
    code, told, errors = call("--data", "test.npz", "--require", "accuracy,latency,speedup", "--dense", "dense.onnx", "--json")
    assert code == 0 and json.loads(told)["outcome"] == "confirmed", (told, errors)
    assert call("--data", images_file(folder, 0.2), "--require", "speedup", "--dense", "dense.onnx")[0] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--require", "speed"), "speedup"),
        (("--claims", "none.json"), "none.json"),
        (("--claims", "small.onnx"), "small.onnx"),
        (("--claims", "other.json"), "take the claims that were made with this file"),
        (("--dense", "report.json"), "report.json"),
        (("--data", "report.json"), "report.json"),
        (("--on", "cpu:onyx"), "onnxruntime"),
        (("--on", "cpu:onnxruntime:b7"), "it was timed on"),
        (("-o", "/proc/none/x.json"), "cannot write"),
    ],
)
def test_wrong_words_end_with_2(folder: Path, call: Callable[..., tuple[int, str, str]], words: tuple[str, ...], says: str) -> None:
    report(folder, timing(), ticket={"seed": 0, "level": 1, "checksum": "dead" * 16}).rename(folder / "other.json")
    report(folder, timing())
    code, _, errors = call(*words)
    assert code == 2 and says in errors and "error: " in errors and "Traceback" not in errors


@pytest.mark.parametrize("installed", [True, False])
def test_torch_is_not_needed(folder: Path, installed: bool) -> None:
    """In a process of its own: what is heavy is not imported where it is there, and not missed where it is not."""
    report(folder, timing(accuracy=0.9))
    code = f"""
import importlib.abc, sys
HEAVY = {HEAVY}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ModuleNotFoundError(name)
if not {installed}:
    sys.meta_path.insert(0, Absent())
sys.argv = ["ltcompile", "verify", "small.onnx", "--dense", "dense.onnx", "--data", "test.npz", "--seconds", "0", "-o", "verified.json"]
import ltcompile.cli
try:
    ltcompile.cli.main()
except SystemExit as stop:
    print("ended with", stop.code)
print([name for name in HEAVY if name in sys.modules])
"""
    images_file(folder, 1.0)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["ended with 0", "[]"], (done.stdout, done.stderr)
    assert (folder / "verified.json").is_file()


def test_every_error_is_one_of_ours(folder: Path) -> None:
    """Whatever is in the network's file: it is checked or refused."""
    report(folder, timing(), provenance=[])
    whole = network(2)
    for seed in range(60):
        (folder / "small.onnx").write_bytes(spoil_onnx(whole, random.Random(seed)))
        try:
            verify(folder / "small.onnx", seconds=0)
        except LtcompileError as error:
            assert str(error)


def test_the_workflow(tmp_path: Path) -> None:
    """It runs the command with options that there are, on every push of a model."""
    text = (Path(__file__).parents[2] / "examples/github_actions/verify.yml").read_text()
    command = " ".join(text.split("ltcompile verify", 1)[1].split("\n\n")[0].split())
    for option in ("--claims", "--dense", "--on", "--require", "-o"):
        assert f" {option} " in command
    Deployment.parse(command.split("--on ")[1].split()[0])
    yaml = pytest.importorskip("yaml")
    value = yaml.safe_load(text)
    (job,) = value["jobs"].values()
    assert value[True]["push"]["paths"] and any("ltcompile verify" in step.get("run", "") for step in job["steps"])
