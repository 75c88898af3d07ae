"""What the guides for Android and iOS take from a file and its record is there: names, shapes, and how images are prepared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

import ltcompile as lt
from ltcompile.core.deployment import Deployment
from ltcompile.deploy import formats
from ltcompile.runtimes import Subject, load_apart

GUIDE = (Path(__file__).parents[2] / "docs" / "deploying.md").read_text(encoding="utf-8").split("### Android")[1]
NAMED = re.findall(r"`shrink -o small(\.\w+)`", GUIDE)


def test_all_formats_of_phones_are_named() -> None:
    assert set(NAMED) == {".onnx", ".mnn", ".tflite", ".param", ".mlpackage", ".pte"} <= set(formats.by_suffix())
    assert 'mapOf("images" to input)' in GUIDE and "prediction(images: pixels)" in GUIDE and "output.logits" in GUIDE
    assert 'input("in0"' in GUIDE and 'extract("out0"' in GUIDE and "(1, C, H, W)" in GUIDE


@pytest.mark.slow
@pytest.mark.parametrize("suffix", NAMED)
def test_a_file_has_the_names_of_the_guide(suffix: str, run: Path, tmp_path: Path) -> None:
    if reason := formats.unavailable(kind := formats.by_suffix()[suffix]):
        pytest.skip(reason)
    done = lt.shrink(run / "ticket.pt", tmp_path / f"small{suffix}")
    record = json.loads((tmp_path / "small.json").read_text())
    shape, prepared = record["inputs"]["images"], record["preprocessing"]
    assert len(record["inputs"]) == 1 and len(shape) == 3 and len(json.loads(prepared["class_names"])) == 10
    assert [len(json.loads(prepared[name])) for name in ("mean", "std")] == [shape[0]] * 2
    if suffix == ".onnx":
        graph = onnx.load(done.path).graph
        assert ([end.name for end in graph.input], [end.name for end in graph.output]) == (["images"], ["logits"])
    elif suffix == ".param":
        blobs = done.path.read_text().split()
        assert "in0" in blobs and "out0" in blobs and done.path.with_suffix(".bin").is_file()
    elif suffix == ".mnn":
        inputs = lt.load_data("digits").test.images[:1].float().numpy()
        session = load_apart(Subject("small", file=done.path), Deployment("cpu", kind.RUNTIME, 1))
        assert session.run({"images": inputs}).keys() == {"logits"}
    elif suffix == ".mlpackage":
        assert "inputs, outputs" in record["not_run"], "which are those of the record"
