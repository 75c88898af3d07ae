"""`shrink` with unlabelled inputs: the weights behind the cut are solved before the network is written."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.cli.shrink import _unlabelled
from ltcompile.core.preprocessing import Preprocessing
from ltcompile.data._unlabelled import unlabelled
from ltcompile.deploy.steps import summary
from ltcompile.errors import InvalidData, InvalidSetting

X = torch.randn(2, 3, 12, 12)


@pytest.fixture(scope="module")
def cut() -> lt.Pruned:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    return lt.Pruned.of_cut(dense, lt.plan(dense, X, ratio=0.4), X)


def images(count: int = 80) -> torch.Tensor:
    return F.interpolate(torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(0)), 12, mode="bilinear")


def test_the_file_holds_the_repaired_network_and_the_record_its_errors(cut: lt.Pruned, tmp_path: Path) -> None:
    done = lt.shrink(cut, tmp_path / "small.safetensors", repair=images().split(16))
    found = done.record["repair"]
    assert found["repaired"] < 0.8 * found["as_cut"] and found["inputs"] == 80
    assert found["agreement"]["repaired"] >= found["agreement"]["as_cut"]
    assert set(found["layers"]) == {"0.weight", "2.weight", "6.weight"}
    assert any("80 inputs without labels" in line for line in summary(done.record))
    with torch.no_grad():
        expected, x = cut.dense(images(40)), images(40)  # type: ignore[misc]
        repaired, plain = done.module(x), cut.small(x)
    assert (repaired - expected).norm() < 0.8 * (plain - expected).norm()
    loaded = lt.load_pruned(lambda: copy.deepcopy(cut.dense), tmp_path / "small.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), repaired, rtol=1e-4, atol=1e-4)


def test_passes_refine_what_was_solved_and_the_record_says_so(cut: lt.Pruned, tmp_path: Path) -> None:
    done = lt.shrink(cut, tmp_path / "small.safetensors", repair=images().split(16), repair_passes=6)
    solved = lt.shrink(cut, tmp_path / "solved.safetensors", repair=images().split(16))
    assert done.record["repair"]["passes"] == 6 and solved.record["repair"]["passes"] == 0
    assert done.record["repair"]["repaired"] < solved.record["repair"]["repaired"]


def test_what_cannot_be_repaired_is_refused(cut: lt.Pruned, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    with pytest.raises(InvalidSetting, match="leave calibrate= out"):
        lt.shrink(cut, out, repair=[images()], calibrate=[images()])
    with pytest.raises(InvalidSetting, match="on the inputs of repair="):
        lt.shrink(cut, out, repair_passes=2)
    with pytest.raises(InvalidSetting, match="dense network and the plan"):
        lt.shrink(lt.Pruned(cut.small, X), out, repair=[images()])
    trained = lt.cut(cut.dense, cut.plan)  # type: ignore[type-var, arg-type]
    with torch.no_grad():
        next(trained.parameters()).add_(1)  # type: ignore[union-attr]
    with pytest.raises(InvalidSetting, match="as cut"):
        lt.shrink(lt.Pruned(trained, X, cut.dense, cut.plan), out, repair=[images()])  # type: ignore[arg-type]
    assert not out.exists()


def test_a_folder_of_images_needs_no_classes(cut: lt.Pruned, tmp_path: Path) -> None:
    for at in range(3):
        (tmp_path / "inner").mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), (at * 50, 10, 200)).save(tmp_path / "inner" / f"{at}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (batch,) = unlabelled(tmp_path, Preprocessing(12, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    assert batch.shape == (3, 3, 12, 12)
    assert sorted(batch[:, 0, 0, 0].tolist()) == pytest.approx([(at * 50 / 255 - 0.5) / 0.25 for at in range(3)])
    with pytest.raises(InvalidData, match="no readable image"):
        list(unlabelled(tmp_path / "nowhere", Preprocessing(12, (0.5,) * 3, (0.25,) * 3)))
    (from_folder,) = _unlabelled(str(tmp_path), "torchvision:resnet18", cut)
    assert from_folder.shape == (3, 3, 12, 12)
    with pytest.raises(InvalidSetting, match="not known"):
        _unlabelled(str(tmp_path), "my.net:build", cut)
    with pytest.raises(InvalidData, match="no folder"):
        _unlabelled(str(tmp_path / "nowhere"), "torchvision:resnet18", cut)
