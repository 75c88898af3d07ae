"""The examples run as they are written, with fewer images and epochs."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from commands import call, call_here, run_script

import ltcompile as lt

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORTER = {
    "photos\n": "photos 150\n",
    "resnet18.pth 6": "resnet18.pth 1",
    "--rounds 2": "--rounds 1",
    "--epochs 4": "--epochs 1 --no-controls",
    "--batch 16 --seconds 1": "--seconds 0.05",
}


@pytest.mark.slow
def test_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = "".join(re.findall(r"```sh\n(.*?)```", (EXAMPLES / "own_images/README.md").read_text(), re.DOTALL))
    for written, shorter in SHORTER.items():
        assert written in script, f"{written!r} is no longer in the tutorial"
        script = script.replace(written, shorter, 1)
    for line in script.replace("\\\n", " ").splitlines():
        command, *words = shlex.split(line)
        if command != "ltcompile":
            example("own_images", monkeypatch, *words[1:], script=words[0])
            continue
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    run = tmp_path / "runs/photos"
    search, shrunk = (json.loads((run / name).read_text()) for name in ("search.json", "small.json"))
    assert search["data"]["sizes"] == {"train": 90, "val": 30, "test": 30} and search["data"]["mean"][0] == 0.485
    assert shrunk["macs"] < 0.2 * shrunk["dense_macs"] and shrunk["equality_error"] < 1e-5
    assert "resnet18" in (run / "report.html").read_text()


def example(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object, script: str = "train.py", main: bool = True) -> dict[str, Any]:
    """Run a script of an example in this process; the names that it defines."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    return runpy.run_path(str(EXAMPLES / name / script), run_name="__main__" if main else name)


@pytest.mark.slow
def test_unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = example("segment_unet", monkeypatch, "--short", "--folder", tmp_path)
    printed = capsys.readouterr().out
    assert re.search(r"seed0/dense-0 .* MACs   mIoU: validation +[\d.]+%, test +[\d.]+%", printed)
    assert re.search(r"ONNX Runtime, batch 1: [\d.]+ ms, [\d.]+x faster \([\d.]+ to [\d.]+\)", printed)
    record = json.loads((tmp_path / "unet.json").read_text())
    assert record["macs"] <= 0.22 * record["dense_macs"]

    masks = torch.tensor([[[0, 0, 1, 1]]])
    scores = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 11).float().permute(0, 3, 1, 2)
    model, drawn = torch.nn.Identity(), names["Scenes"](scores, masks, torch.zeros(1, 4, 4), torch.zeros(1, 4))
    assert names["mean_iou"](model, drawn) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.slow
def test_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (copy := tmp_path / "detect_own/train.py").parent.mkdir()
    copy.write_text((EXAMPLES / "detect_own/train.py").read_text())
    script = "".join(re.findall(r"```sh\n(.*?)```", (EXAMPLES / "detect_own/README.md").read_text(), re.DOTALL))
    shorter = {
        '"python train.py --seed': f'"{sys.executable} train.py --short --seed',
        "--epochs 20 --rounds 2": "--epochs 1 --rounds 1 --no-controls",
        "prune.align=8": "prune.align=1",
        "train:build ": "train:build_short ",
        "train.py --compare": "train.py --short --compare",
    }
    for written, replaced in shorter.items():
        assert written in script, f"{written!r} is no longer in the example"
        script = script.replace(written, replaced)
    _, find, shrink, compare = (shlex.split(line) for line in script.replace("\\\n", " ").splitlines())
    monkeypatch.setattr("ltcompile.search.command.call", run_script)
    monkeypatch.syspath_prepend(".")
    for line in (find, shrink):
        done = call_here(*line[line.index("ltcompile") + 1 :], cwd=tmp_path / "detect_own")
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    monkeypatch.chdir(tmp_path / "detect_own")
    example("detect_own", monkeypatch, *compare[2:])
    assert re.search(r"seed0/ticket-1 .*mAP: validation +[\d.]+%, test +[\d.]+%", capsys.readouterr().out)
    session = onnxruntime.InferenceSession("runs/digits/small.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["heat", "size", "offset"]


@pytest.mark.slow
def test_ultralytics(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics", reason="Ultralytics' trainer is licensed under AGPL-3.0 and is not installed by ltcompile")
    folder = EXAMPLES / "detect_ultralytics"
    assert (folder / "train.py").read_text().count("  # +") == 4, "lines that are added to a script"
    runpy.run_path(str(folder / "make_scenes.py"))["write"](tmp_path / "scenes", 8, 4)
    script = "".join(re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL))
    shorter = {
        '"python train.py --data scenes': f'"{sys.executable} {folder / "train.py"} --data {tmp_path / "scenes"}',
        "--epochs 20 --rounds 2": "--epochs 1 --rounds 1 --no-controls",
        "network.py:build": f"{folder / 'network.py'}:build",
    }
    for written, replaced in shorter.items():
        assert written in script, f"{written!r} is no longer in the example"
        script = script.replace(written, replaced)
    _, *commands = (shlex.split(line) for line in script.replace("\\\n", " ").splitlines())
    for command in commands:
        done = call(*command[1:], cwd=tmp_path, PYTHONPATH=str(Path(lt.__file__).parents[1]))
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    plan, saved = lt.PruningPlan.load(tmp_path / "runs/yolo/plan.json"), torch.load(tmp_path / "runs/yolo/small.pt")
    best = tmp_path / "runs/yolo/seed0/ticket-1/ultralytics/weights/best.pt"
    kept = torch.load(best, weights_only=False)["model"].state_dict()  # Ultralytics pickles the network
    assert len(plan.groups) > 50 and {name: value.shape for name, value in kept.items()} == {
        name: value.shape for name, value in saved.items()
    }


class TestAveragePrecision:
    BOXES = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 10, 10], [0, 0, 0, 0]]])
    LABELS = torch.tensor([[7, 7], [7, -1]])

    def found(self, *detections: tuple[int, list[float], float, int]) -> list[tuple[torch.Tensor, ...]]:
        """Of (scene, box, score, label)."""
        scenes = [[d for d in detections if d[0] == scene] for scene in (0, 1)]
        return [
            (torch.tensor([d[1] for d in s]).view(-1, 4), torch.tensor([d[3] for d in s]), torch.tensor([d[2] for d in s])) for s in scenes
        ]

    def test_against_hand_computed_cases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ap = example("detect_own", monkeypatch, main=False)["average_precision"]
        first, second, third = (0, [0.0, 0, 10, 10], 0.9, 7), (0, [20.0, 20, 30, 30], 0.6, 7), (1, [0.0, 0, 10, 10], 0.5, 7)
        cases = [
            ((first, second, third), 1.0),
            ((first,), 1 / 3),
            ((), 0.0),
            ((first, (0, [0.0, 0, 10, 10], 0.8, 7), second, third), (1 + 3 / 4 + 3 / 4) / 3),  # the second find of a box is wrong
            (((0, [40.0, 40, 50, 50], 1.0, 7), first, second), (2 / 3 + 2 / 3) / 3),  # precision 1/2 and 2/3, made monotone
            (((0, [0.0, 0, 10, 5], 0.9, 7),), 1 / 3),  # an overlap of just 0.5
            (((0, [0.0, 0, 10, 4.9], 0.9, 7),), 0.0),
            (((0, [0.0, 0, 10, 10], 0.9, 3),), 0.0),  # of another class
            (((1, [20.0, 20, 30, 30], 0.9, 7),), 0.0),  # in another scene
        ]
        for detections, expected in cases:
            assert ap(self.found(*detections), self.BOXES, self.LABELS) == pytest.approx(expected), detections

    def test_of_outputs_that_say_the_truth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the loss trains is what `detect` reads."""
        names = example("detect_own", monkeypatch, main=False)
        drawn = names["draw"]("val", 8)
        outputs = {
            name: torch.zeros(8, channels, 16, 16, requires_grad=True) for name, channels in (("heat", 10), ("size", 2), ("offset", 2))
        }
        optimizer = torch.optim.Adam(outputs.values(), 0.3)
        for _ in range(120):
            optimizer.zero_grad()
            names["loss"](outputs, drawn.boxes, drawn.labels).backward()
            optimizer.step()

        class Reported(torch.nn.Module):
            def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
                return {name: value.detach() for name, value in outputs.items()}

        assert names["mean_ap"](Reported(), drawn) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("name", "inputs"), [("signal_1d", {"input"}), ("two_inputs", {"image", "meta"})])
def test_cut_in_the_middle_of_a_training(
    name: str, inputs: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example(name, monkeypatch, "--short", "--output", tmp_path / "small.onnx")
    assert "ONNX Runtime and PyTorch agree" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    assert {given.name for given in session.get_inputs()} == inputs
