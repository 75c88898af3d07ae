"""A search of every task by name: train, score by its loss, cut, rewind, control, judge; then its ticket, what is shown of it, and its file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from commands import call, refused
from searches import QUICK
from small_pairs import small_pairs, write_pairs
from small_tasks import BATCHES, CASES

import ltcompile as lt
from ltcompile import tasks
from ltcompile.deploy import int8
from ltcompile.deploy.steps.quantize import summary
from ltcompile.errors import InvalidData, InvalidSetting
from ltcompile.tasks.image_to_image import ImageToImage

CONFIG = lt.SearchConfig(rounds=1, rate=0.3, criterion="taylor", margin_points=100)


@pytest.mark.parametrize("name", tasks.names())
@pytest.mark.slow
def test_from_search_to_file(tmp_path: Path, name: str) -> None:
    task, model = CASES[name]()
    recipe = dataclasses.replace(QUICK, epochs=1, batch=4 * BATCHES.get(name, 16))
    config = dataclasses.replace(CONFIG, controls=name == "segmentation")
    found = lt.find(model, task, config, recipe=recipe, folder=tmp_path, device="cpu")
    controls = {"random", "dense_budget"} if config.controls else set()
    assert {row.arm for row in found.rows} == {"dense", "ticket", *controls} and found.verdict.level == 1
    assert f"{task.metric.unit} of validation {task.metric.name}" in found.verdict.summary[1] and task.metric.name in found.verdict.rule
    ticket = lt.Ticket.load(tmp_path / "ticket.pt")
    assert ticket.metric == task.metric and ticket.data["task"] == name and ticket.checksum == found.ticket.checksum
    row = ticket.row
    assert row.test_score is not None and row.filters < ticket.dense_row.filters
    summary = json.loads((tmp_path / "search.json").read_text())
    assert summary["metric"] == task.metric.to_json() and summary["data"]["sizes"] == dict(task.sizes)
    if name != "detection":  # tests/tasks/test_detectors.py deploys these
        shrunk = lt.shrink(ticket, tmp_path / "small.onnx")
        assert task.evaluate(shrunk.module, "test", torch.device("cpu")).value == pytest.approx(row.test_score, rel=1e-3, abs=1e-3)
    shown = call("show", tmp_path / "ticket.pt").stdout
    assert f"{task.metric.name:<8} validation {task.metric.format(row.val_score)}, test {task.metric.format(row.test_score)}" in shown


def test_the_metric_of_a_ticket_is_data(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="scale=0"):
        lt.Metric("mAP", scale=0.0)
    assert lt.Metric("PSNR", "dB", 1.0).format(31.234) == "31.23 dB" and lt.Metric().format(0.5) == "50.00%"


@pytest.mark.slow
def test_data_of_another_task_is_refused() -> None:
    for name, data in (("segmentation", "digits"), ("image-to-image", "digits"), ("detection", "digits"), ("classification", "scenes")):
        with pytest.raises(InvalidData, match=r"choose another task|takes data with boxes"):
            lt.find("unet-small", data, CONFIG, task=name)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """Over a folder of one's own; the names of arguments and errors are those of the command line."""
    write_pairs(tmp_path / "tiles", "masks", count=24)
    given = ("find", "--task", "segmentation", "--data", "folder:tiles", "--model", "unet-small", "--epochs", 1, "--batch", 4)
    done = call(*given, "--rounds", 1, "--rate", 0.4, "--no-controls", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["arm"] for row in rows] == ["dense", "ticket"]
    ticket = tmp_path / "runs/unet-small-folder-tiles-lr/ticket.pt"
    assert "unet-small for segmentation of folder:tiles (3 classes, images (3, 16, 16))" in call("show", ticket).stdout
    refused("find", "--task", "segmentaton", says="Did you mean segmentation", cwd=tmp_path)
    refused("find", "--task", "detection", "--data", "folder:tiles", says="no boxes", cwd=tmp_path)


@pytest.mark.slow
def test_int8_is_judged_by_the_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task that is found by the name in the ticket; the file's own answers give the figures of the record."""
    monkeypatch.setattr(int8, "METHODS", ("minmax",))
    task = ImageToImage(small_pairs("images", 104, 104, 16))
    recipe = dataclasses.replace(QUICK, epochs=1, batch=8)
    lt.find("unet-small", task, dataclasses.replace(CONFIG, controls=False), recipe=recipe, folder=tmp_path, device="cpu")
    shrunk = lt.shrink(tmp_path / "ticket.pt", tmp_path / "int8.onnx", precision="int8", calibrate=task, max_drop=3)
    reported = shrunk.record["int8"]
    assert reported["metric"] == task.metric.to_json() and reported["max_drop_dB"] == 3
    assert task.metric.gain(reported["val_score"]["fp32"], reported["val_score"]["int8"]) <= 3
    for split, key in (("val", "val_score"), ("test", "test_score")):
        assert reported[key]["fp32"] == pytest.approx(task.evaluate(shrunk.module, split, torch.device("cpu")).value, abs=1e-3)
    assert any(" dB → " in line for line in summary(shrunk.record))
