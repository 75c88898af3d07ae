"""Shrink: smaller for real, equal to the masked network, and checked in the file itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from networks import shaken
from torch import nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.data import Dataset
from ltcompile.deploy.equality import check_cut, check_same
from ltcompile.deploy.job import training_inputs
from ltcompile.deploy.steps.recalibrate import BATCH
from ltcompile.errors import Disagreement, InvalidFile, InvalidSetting, TicketMismatch
from ltcompile.graph.running_statistics import take_statistics
from ltcompile.lower import export_onnx, fold_batch_norm, run_onnx
from ltcompile.lower.answers import Run, of_file
from ltcompile.tasks import Classification


@pytest.fixture(scope="module")
def shrunk(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lt.shrink(run / "ticket.pt", tmp_path_factory.mktemp("out") / "small.onnx").path


def test_the_file_holds_the_small_shapes(run: Path, shrunk: Path) -> None:
    ticket = lt.Ticket.load(run / "ticket.pt")
    found = {tuple(i.dims) for i in onnx.load(shrunk).graph.initializer if len(i.dims) == 4}
    assert found == {tuple(v.shape) for k, v in ticket.weights.items() if v.dim() == 4}
    assert all(after < before for name, (before, after) in ticket.plan.widths.items() if name in ("0", "3", "7"))


def test_the_record_holds_the_errors(shrunk: Path) -> None:
    record = json.loads(shrunk.with_suffix(".json").read_text())
    assert record["equality_error"] <= 1e-5 and record["onnx_error"] <= record["tolerance"]
    assert record["macs"] < record["dense_macs"] and record["bytes"] == shrunk.stat().st_size


def test_any_batch_size_runs(run: Path, shrunk: Path) -> None:
    module = lt.shrink(run / "ticket.pt", shrunk.with_name("again.onnx")).module
    for n in (1, 2, 7):
        x = torch.randn(n, 1, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(run_onnx(shrunk, x), module(x), rtol=1e-4, atol=1e-4)


def test_metadata_is_enough_to_deploy(run: Path, shrunk: Path) -> None:
    ticket = lt.Ticket.load(run / "ticket.pt")
    reported = {p.key: p.value for p in onnx.load(shrunk).metadata_props}
    assert reported["ticket_checksum"] == ticket.checksum
    assert json.loads(reported["class_names"]) == [str(d) for d in range(10)]
    assert json.loads(reported["mean"]) == list(ticket.data["mean"]) and json.loads(reported["std"]) == list(ticket.data["std"])
    assert json.loads(reported["accuracy"]) == {"value": ticket.row.test_score, "split": "test"}


@pytest.mark.parametrize("suffix", ["pt2", "safetensors"])
def test_other_endings(run: Path, tmp_path: Path, suffix: str) -> None:
    done = lt.shrink(run / "ticket.pt", tmp_path / f"small.{suffix}")
    assert done.path.stat().st_size > 1000 and done.record["onnx_error"] <= 1e-4
    assert (tmp_path / "small.json").exists()


@pytest.mark.slow
def test_half_precision_is_smaller(run: Path, shrunk: Path, tmp_path: Path) -> None:
    said: list[str] = []
    done = lt.shrink(run / "ticket.pt", tmp_path / "half.onnx", precision="fp16", on_progress=said.append)
    assert said[:2] == ["comparing the cut network with the masked one", "writing half.onnx"]
    for what in ("PyTorch", "half.onnx", "fp16 simulated"):
        assert [line for line in said if what in line][-1] == f"comparing answers: {what}, 112 of 128 inputs"
    dtypes = {i.data_type for i in onnx.load(done.path).graph.initializer if len(i.dims) == 4}
    assert dtypes == {onnx.TensorProto.FLOAT16} and done.path.stat().st_size < shrunk.stat().st_size
    plain = lt.shrink(run / "ticket.pt", tmp_path / "plain.onnx").module.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in done.module.state_dict().items()), (
        "the module that comes back is not rounded"
    )
    assert 0 < done.record["onnx_error"] <= done.record["tolerance"] < 5e-3


def test_recalibration_needs_the_tickets_classes(run: Path, tmp_path: Path) -> None:
    digits = lt.load_data("digits", image_size=16)
    assert lt.shrink(run / "ticket.pt", tmp_path / "r.onnx", calibrate=digits).record["recalibrated"]


class Stochastic(nn.Module):
    """A batch norm behind dropout, one behind a branch that is skipped at random, and one over single values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(F.dropout(x, 0.5, self.training))
        if not self.training:  # half of a residual network, on average
            x = x + self.second(2 * x)
        y: torch.Tensor = self.last(x.mean((2, 3)))
        return y


class TestRecalibration:
    def data(self, count: int) -> tuple[torch.Tensor, Dataset]:
        """Images, and digits with these to train on."""
        images = 3 + 2 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))

        class Split:
            def __len__(self) -> int:
                return count

            def batches(self, size: int, *_: object) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
                return ((some, torch.zeros(len(some))) for some in images.split(size))

        return images, replace(lt.load_data("digits"), train=Split())  # type: ignore[arg-type]

    def test_statistics_are_of_all_images_without_dropout(self) -> None:
        """257 of them: the last batch holds one, which has no variance behind the pool."""
        torch.manual_seed(0)
        images, data = self.data(257)
        model = Stochastic()
        momentum = model.first.momentum
        take_statistics(model, training_inputs(Classification(data), BATCH))
        assert not any(m.training for m in model.modules()) and model.first.momentum == momentum
        torch.testing.assert_close(model.first.running_mean, images.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.first.running_var, images.var((0, 2, 3)), rtol=1e-2, atol=0)
        assert model.second.running_mean is not None and not torch.equal(model.second.running_mean, torch.zeros(3)), "its branch has run"
        assert model.last.running_var is not None and bool(model.last.running_var.isfinite().all())

    def test_batches_count_by_their_images(self) -> None:
        images, data = self.data(300)  # of 256 and of 44
        images[256:] += 10
        model = Stochastic()
        take_statistics(model, training_inputs(Classification(data), BATCH))
        torch.testing.assert_close(model.first.running_mean, images.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


class TestEquality:
    """Cut is masked in float64, output by output."""

    def test_depth_is_no_error_and_a_small_output_is_seen(self) -> None:
        """Eighty layers that amplify rounding some 1e5 times; and one output of a millionth of the others, off by a thousandth of itself."""
        torch.manual_seed(0)
        layers = [m for _ in range(80) for m in (nn.Linear(24, 24, bias=False), nn.Tanh())]
        for layer in layers[::2]:
            nn.init.normal_(layer.weight, std=0.5)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 24), *layers, nn.Linear(24, 5, bias=False)).eval()
        with torch.no_grad():
            model[-1].weight[0] *= 1e-6
        images = torch.randn(4, 12, 1, 1, generator=torch.Generator().manual_seed(0))
        plan = lt.plan(model, images, ratio=0.3)
        small = lt.cut(model, plan)
        assert check_cut(small, plan, model, images) < 1e-9
        with torch.no_grad():
            wrong = copy.deepcopy(small)
            wrong[-1].weight[0] *= 1.001
            far = float((wrong(images) - small(images)).abs().max() / small(images).abs().max())
        assert far < 1e-5, "less than fp32 may differ"
        with pytest.raises(Disagreement, match="output's largest value in float64"):
            check_same("they", wrong, small, images)


class TestFold:
    """Batch norm folds where it may, and says why where it may not."""

    def test_folding_changes_nothing(self, network: nn.Module, images: torch.Tensor) -> None:
        folded, reported = fold_batch_norm(network, images)
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)
        norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
        assert sorted(reported) == sorted(norms)

    def test_every_norm_of_a_resnet_folds(self, images: torch.Tensor) -> None:
        model = shaken(lt.build_model("resnet20", 4, 3, 16))
        folded, reported = fold_batch_norm(model, images)
        assert all(t.startswith("folded into") for t in reported.values()) and len(reported) == 21
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())

    def test_refusals(self, images: torch.Tensor) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.shared, self.first, self.twice = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(3), nn.BatchNorm2d(4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.conv(self.first(x))
                z: torch.Tensor = self.twice(F.relu(self.twice(self.shared(y) + y)))
                return z.mean((2, 3))

        model = shaken(Odd())
        folded, reported = fold_batch_norm(model, images)
        assert "used elsewhere" in reported["shared"] and "more than once" in reported["twice"] and "not a convolution" in reported["first"]
        torch.testing.assert_close(folded(images), model(images))


class TestRefusals:
    def test_output_that_cannot_be_written(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for bad in (tmp_path / "file" / "small.onnx", Path("/proc/none/small.onnx")):
            with pytest.raises(InvalidFile, match="cannot write"):
                lt.shrink(run / "ticket.pt", bad)

    def test_unknown_ending_and_precision(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="must end in"):
            lt.shrink(run / "ticket.pt", tmp_path / "small.h5")
        with pytest.raises(InvalidSetting, match="precision"):
            lt.shrink(run / "ticket.pt", tmp_path / "small.onnx", precision="int4")  # type: ignore[arg-type]

    def test_another_model(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(TicketMismatch, match="not for 'vgg16'"):
            lt.shrink(run / "ticket.pt", tmp_path / "small.onnx", model="vgg16")

    def test_a_file_with_the_dense_shapes_is_noticed(self, tmp_path: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        model = lt.build_model("lenet5", 4, 3, 16).eval()
        small = lt.cut(model, lt.plan(model, images))
        batch = torch.export.Dim("batch", min=1)
        dense, honest = torch.export.export(model, (images,), dynamic_shapes=({0: batch},), strict=False), torch.onnx.export
        monkeypatch.setattr(torch.onnx, "export", lambda _, **how: honest(dense, **how))
        with pytest.raises(Disagreement, match="filters of shapes"):
            export_onnx(small, images, tmp_path / "x.onnx")
        assert not list(tmp_path.iterdir()), "nothing half-written stays"

    def test_a_wrong_file_is_noticed(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(*arguments: Any) -> Run:
            run = of_file(*arguments)
            return lambda inputs: {name: value + 1e-2 for name, value in run(inputs).items()}

        monkeypatch.setattr("ltcompile.deploy.formats.onnx.of_file", wrong)
        with pytest.raises(Disagreement, match="outputs are off by"):
            lt.shrink(run / "ticket.pt", tmp_path / "small.onnx")
