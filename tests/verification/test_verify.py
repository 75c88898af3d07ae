"""The field check: what is true is confirmed, what is exaggerated is not, and what cannot be known is said to be."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from claims import CLASSES, QUICK, SHAPE, TICKET, check, file_of, images_file, kinds, network, report, timed, timing
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from readers import READERS

from ltcompile.core.deployment import Deployment
from ltcompile.core.interval import wilson
from ltcompile.core.records import cpu_name
from ltcompile.errors import InvalidData, InvalidFile, InvalidSetting, TicketMismatch
from ltcompile.verification import Check, Value, Verified, read_claims, verify
from ltcompile.verification.images import read_images


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
    assert check(folder, "speedup", dense=folder / "dense.onnx").verdict == "confirmed", "a benchmark compares anywhere"


def test_what_this_machine_lacks_is_reported(folder: Path) -> None:
    report(folder, timing(device="tpu"), timing(batch=1 << 40), timing(runtime="eager"))
    lacking, huge = (c for c in verify(folder / "small.onnx", seconds=QUICK).checks if c.what == "latency")
    assert lacking.verdict == huge.verdict == "not comparable" and "tpu" in lacking.reason and "bytes" in huge.reason


def test_one_target_is_checked_alone(folder: Path) -> None:
    report(folder, timing(1), timing(4))
    reported = check(folder, "latency", on=Deployment("cpu", batch=4))
    assert reported.on == "cpu:onnxruntime:b4:fp32"
    for target, says in (
        ("cpu:onnxruntime:b3", "b1:fp32, cpu"),
        ("cpu:openvino", "onnxruntime alone"),
        ("cpu:onnxruntime:b1:fp32:t2", "own number of threads"),
        ("cpu:onnxruntime:b1:int8", "fp32"),
    ):
        with pytest.raises(InvalidSetting, match=says):
            verify(folder / "small.onnx", on=Deployment.parse(target))


def test_timings_of_a_file_in_another_precision_say_nothing(folder: Path) -> None:
    (folder / "half.onnx").write_bytes(network(2, precision="fp16"))
    report(folder, timing())
    reported = {c.what: c for c in verify(folder / "half.onnx").checks}
    assert (
        reported["latency"].verdict == reported["size"].verdict == "not comparable"
        and "small.onnx was measured" in reported["latency"].reason
    )


def test_a_file_of_other_bytes_is_not_confirmed(folder: Path) -> None:
    report(folder, timing())
    assert check(folder, "size").verdict == "confirmed"
    (folder / "small.onnx").write_bytes(network(3))
    other = check(folder, "size")
    assert other.verdict == "not confirmed" and other.claimed != other.found


def test_a_record_of_another_format_claims_no_size(folder: Path) -> None:
    """small.so was written next to small.onnx, and small.json is about it."""
    other = {"output": "small.so", "precision": "fp32", "bytes": 7, "recalibrated": False, "ticket_checksum": TICKET}
    report(folder, timing(), shrinks=[other])
    assert check(folder, "size").verdict == "not comparable"


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
    assert other["size"].verdict == "not confirmed" and other["size"].reason.startswith("the same size, different content")
    for what in ("latency", "accuracy"):
        assert other[what].verdict == "not comparable" and "another file was measured: small.onnx (fp32, SHA-256 " in other[what].reason
    assert verify(folder / "small.onnx", path, seconds=QUICK).outcome == "not confirmed"


def test_a_timed_ticket_says_nothing_of_files_that_compute_otherwise(folder: Path) -> None:
    report(folder, bench=timed(folder, timing(), file=None), points=[{"arm": "ticket", "seed": 0, "level": 1, "test_score": 0.8}])
    assert kinds(folder)["latency"].verdict == "confirmed"
    for name, says, reported in (
        ("int8.onnx", "is in int8", {"precision": "int8"}),
        ("again.onnx", "other batch-norm statistics", {"recalibrated": "true"}),
    ):
        (folder / name).write_bytes(network(2, **reported))
        found = kinds(folder, name, data=images_file(folder, 0.8))
        for what in ("latency", "accuracy"):
            assert found[what].verdict == "not comparable" and says in found[what].reason, found[what]
        assert "ticket.pt itself was measured" in found["latency"].reason


def test_a_benchmark_of_another_ticket_is_refused(folder: Path) -> None:
    provenance = {"machine": {}, "command": "Python API"}
    bench = timed(folder, timing(), file=None, ticket_checksum="dead" * 16, provenance=provenance)
    (folder / "bench.json").write_text(json.dumps({"kind": "bench", "format": 1, **bench}))
    with pytest.raises(TicketMismatch, match="is about deaddead"):
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
        with pytest.raises((TicketMismatch, InvalidFile), match=says):
            verify(folder / name, folder / "report.json")
    for name in ("small.onnx", "other.onnx"):  # not what it was cut from: too small, and of another ticket
        with pytest.raises(TicketMismatch):
            verify(folder / "small.onnx", dense=folder / name, seconds=QUICK)
    report(folder, timing(), data={"name": "other", "class_names": [], "shape": [3, 8, 8], "sizes": {}})
    with pytest.raises(TicketMismatch, match="is about"):
        verify(folder / "small.onnx")


def test_score_is_confirmed_unless_it_is_worse(folder: Path) -> None:
    report(folder, timing(accuracy=0.8), provenance=[])
    untold = check(folder, "accuracy")
    assert untold.verdict == "not comparable" and untold.reason == "not repeated: no test images"
    for right, verdict in ((0.2, "not confirmed"), (0.8, "not comparable"), (0.9, "confirmed"), (1.0, "confirmed")):
        reported = check(folder, "accuracy", data=images_file(folder, right))
        assert reported.found is not None and reported.found.value == pytest.approx(right)
        assert reported.verdict == verdict, reported
    few = dict(np.load(folder / "test.npz"))
    np.savez(folder / "few.npz", images=few["images"][:5], labels=few["labels"][:5])
    reported = check(folder, "accuracy", data=folder / "few.npz")
    assert reported.verdict == "not comparable" and "at least 100" in reported.reason, "five images confirm nothing"


def test_the_tickets_own_accuracy_counts_where_no_benchmark_has_one(folder: Path) -> None:
    report(folder, points=[{"arm": "ticket", "seed": 0, "level": 1, "test_score": 0.8}], bench=None)
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
    with pytest.raises((InvalidData, InvalidFile), match=says):
        read_images(tmp_path / "test.npz", SHAPE, CLASSES)


def test_archives_that_are_bombs_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(1 << 22))
    with pytest.raises(InvalidFile, match="would expand"):
        read_images(tmp_path / "bomb.npz", SHAPE, CLASSES)


def test_what_report_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(READERS["claims"].whole())
    reported, value = read_claims(tmp_path / "report.json"), json.loads(READERS["claims"].whole())
    assert reported.checksum == value["ticket"]["checksum"] and [f.output for f in reported.files] == [
        s["output"] for s in value["shrinks"]
    ]
    small = [row for row in value["bench"]["rows"] if row["subject"] != "dense"]
    assert [(t.runtime, t.batch, t.ms_p50) for t in reported.timings] == [(row["runtime"], row["batch"], row["ms_p50"]) for row in small]
    assert reported.machine and reported.timings and reported.files


def test_a_benchmark_is_read_as_its_report_is(folder: Path) -> None:
    path = report(folder, timing(1), timing(4, accuracy=0.5))
    of_report, timed = read_claims(path), json.loads(path.read_text())
    (provenance,) = timed["provenance"]
    bench = {"kind": "bench", "format": 1, **timed["bench"], "provenance": provenance}
    (folder / "bench.json").write_text(json.dumps(bench))
    of_bench = read_claims(folder / "bench.json")
    assert (of_bench.timings, of_bench.machine, of_bench.target) == (of_report.timings, of_report.machine, of_report.target)
    assert of_bench.checksum is None
    path.unlink()
    reported = {c.what: c.verdict for c in verify(folder / "small.onnx", on=Deployment("cpu", batch=4), seconds=QUICK).checks}
    assert reported == {
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
    with pytest.raises(InvalidFile, match="run that again"):
        verify(folder / "small.onnx")


def test_outcomes() -> None:
    """One check that fails decides; a file of the right size is not a repeated claim, and a required claim must be one."""
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
