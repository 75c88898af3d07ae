"""Detection as a task: networks of both kinds are trained and scored, and a search for one ends in a file that is equal and timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectors import faster_rcnn
from pictures import write_coco_parts
from torch import nn

import ltcompile as lt
from ltcompile.benchmark.sweep import sweep
from ltcompile.core.pictures import read_pictures
from ltcompile.core.recipe import Recipe
from ltcompile.data import scenes
from ltcompile.errors import InvalidData, InvalidFile, InvalidModel, InvalidSetting
from ltcompile.reporting import report
from ltcompile.search import SearchConfig
from ltcompile.tasks.detection import Detection, detections

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1, batch=4, lr=0.02, schedule="cosine", precision="fp32", flip=False, crop_pixels=4)
LISTED = pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice")


@pytest.fixture(scope="module")
def task() -> Detection:
    """Scenes, of which each part has few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "COUNTS", {"train": 16, "val": 8, "test": 8})
        return Detection(lt.load_data("scenes"))


@LISTED
def test_a_network_as_torchvisions_is_trained_cut_and_scored(task: Detection) -> None:
    torch.manual_seed(0)
    model = faster_rcnn()
    batch = next(iter(task.batches("val", 4, CPU)))
    for train in (True, False):
        before = {k: v.clone() for k, v in model.train(train).state_dict().items() if "running" in k}
        loss = task.loss(model, batch).value
        assert loss.requires_grad and loss.isfinite() and model.training == train
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items()) != train, "eval mode trains no norm"
    score = task.evaluate(model, "val", CPU)
    assert task.evaluate(model, "val", CPU) == score and score.loss > 0
    found = detections(model.eval(), model(list(batch[0])))
    assert min(int(each["labels"].min()) for each in found if len(each["labels"])) >= 0
    plan = lt.plan(model, task.example, 0.4)
    small = lt.cut(model, plan)
    assert sum(after < before for before, after in plan.widths.values()) >= 2
    assert task.loss(small.train(), batch).value.isfinite() and task.evaluate(small, "val", CPU).loss > 0
    with pytest.raises(InvalidSetting, match=r"distill=0\.5 needs outputs in training"):
        task.loss(model, batch, Recipe(distill=0.5), lambda images: None)


def test_a_teacher_is_followed(task: Detection) -> None:
    """A network that is its own teacher has no difference to it."""
    model, batch = lt.build_model("centernet-small", 10, 3, 64), next(iter(task.batches("val", 4, CPU)))
    with torch.no_grad():
        plain = task.loss(model.eval(), batch).value
        same = task.loss(model, batch, Recipe(distill=0.5), model).value
        other = task.loss(model, batch, Recipe(distill=0.5), lambda images: {k: v + 1 for k, v in model(images).items()}).value
    torch.testing.assert_close(same, 0.5 * plain)
    torch.testing.assert_close(other - same, torch.tensor(0.5 * 3))


def test_other_networks_and_data_are_refused(task: Detection) -> None:
    with pytest.raises(InvalidModel, match="Sequential is not a detector: it needs loss"):
        task.evaluate(nn.Sequential(nn.Conv2d(3, 4, 1)), "val", CPU)
    with pytest.raises(InvalidData, match="digits has labels, and no boxes; choose another task, or other data"):
        Detection(lt.load_data("digits"))


@pytest.mark.slow
def test_a_search_ends_in_a_file(task: Detection, tmp_path: Path) -> None:
    config = SearchConfig(rounds=1, rate=0.5, margin_points=100, controls=False)
    found = lt.find("centernet-small", task, config, recipe=RECIPE, folder=tmp_path / "run", device="cpu")
    summary = json.loads((tmp_path / "run/search.json").read_text())
    assert summary["data"]["task"] == "detection" and [row.arm for row in found.rows] == ["dense", "ticket"]
    assert found.rows[1].macs < 0.7 * found.rows[0].macs and found.verdict.level == 1
    pictures = read_pictures(tmp_path / "run/pictures.json")
    drawn = scenes.draw("test", 8)
    assert [len(picture.truth.boxes) for picture in pictures] == [int((labels >= 0).sum()) for labels in drawn.labels[:4]]
    assert pictures[0].truth.boxes[0].edges == pytest.approx((drawn.boxes[0, 0] / 64).tolist())
    done = lt.shrink(tmp_path / "run/ticket.pt", tmp_path / "run/small.onnx")
    assert done.record["onnx_error"] <= done.record["tolerance"]
    timed = lt.bench(tmp_path / "run/small.onnx", runtimes=["onnxruntime"], devices=["cpu"], batches=[2], seconds_per_row=0.02)
    assert [row.subject for row in timed.rows] == ["dense", "small"] and timed.rows[1].speedup
    written = json.loads((tmp_path / "run/bench.json").read_text())
    assert written["ticket_checksum"] == found.ticket.checksum and written["file"]["output"] == "small.onnx"
    page = report(tmp_path / "run").read_text()
    assert "Answers to test inputs" in page and "mAP" in page
    with pytest.raises(InvalidSetting, match="data= is for classification, and the ticket is for detection"):
        lt.bench(tmp_path / "run/ticket.pt", data="digits")
    swept = sweep(tmp_path / "run", pick="fastest-within 100", batches=(1,), devices=("cpu",), seconds_per_row=0.02)
    assert [point.name for point in swept.points] == [row.subject for row in swept.rows] == ["dense", "ticket-1"]
    assert swept.pick.name == "ticket-1" and "points of validation mAP below dense" in swept.pick.reason
    assert lt.Ticket.load(tmp_path / "run/picked.pt").checksum == swept.pick.checksum
    assert "mAP against latency" in report(tmp_path / "run").read_text()
    with pytest.raises(InvalidSetting, match="data= is for classification, and the ticket is for detection"):
        sweep(tmp_path / "run", data="digits")
    (tmp_path / "small.onnx").write_bytes((tmp_path / "run/small.onnx").read_bytes())
    with pytest.raises(InvalidFile, match="was made for detection of a ticket that is not next to it"):
        lt.bench(tmp_path / "small.onnx")


@pytest.mark.slow
@LISTED
def test_a_search_on_images_of_ones_own(tmp_path: Path) -> None:
    """Two classes in COCO's JSON; the network has them, and the run their names."""
    write_coco_parts(tmp_path / "photos", train=8, valid=4, test=4)
    config = SearchConfig(rounds=1, target_macs=0.5, margin_points=100, controls=False)
    found = lt.find(
        *("centernet-small", f"coco:{tmp_path / 'photos'}", config),
        task="detection",
        image_size=32,
        recipe=RECIPE,
        folder=tmp_path / "run",
        device="cpu",
    )
    assert found.ticket.model["arguments"] == {"classes": 2, "in_channels": 3, "image_size": 32} and found.ticket.metric.name == "mAP"
    assert list(found.ticket.data["class_names"]) == ["red", "blue"] and found.reached is not None and found.reached.missed_by == 0
    assert {box.mark.name for picture in read_pictures(tmp_path / "run/pictures.json") for box in picture.truth.boxes} == {"red", "blue"}
