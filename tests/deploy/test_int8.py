"""Int8: the numbers in the file, who chose them, what stays in float, and what is reported of it."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.cli import main
from ltcompile.cli.inspect import _examine
from ltcompile.data import Dataset, Split
from ltcompile.deploy import Int8, Shrunk, int8, qat
from ltcompile.deploy.job import ShrinkJob
from ltcompile.deploy.judges import judge_for
from ltcompile.errors import Disagreement, InvalidSetting, TicketMismatch, TrainingFailed
from ltcompile.lower import run_onnx
from ltcompile.lower.quantize import METHODS, PRODUCTS, WEIGHT_TOP, Quantizer, Scheme
from ltcompile.tasks import Classification

pytestmark = pytest.mark.usefixtures("cached_exports")
SAMPLE = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return lt.load_data("digits", image_size=16)


@pytest.fixture(scope="module")
def ticket(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the shortest search that int8 has something to lose in."""
    recipe = lt.Recipe(epochs=4, batch=32, lr=0.02, schedule="cosine", warmup_epochs=1, flip=False, crop_pixels=2, weight_decay=0.0)
    folder = tmp_path_factory.mktemp("runs") / "lenet"
    lt.find("lenet5", digits, lt.SearchConfig(rounds=1, rate=0.3, controls=False), recipe=recipe, folder=folder)
    return folder / "ticket.pt"


@pytest.fixture(scope="module")
def shrunk(ticket: Path, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Shrunk:
    path = tmp_path_factory.mktemp("out") / "small.onnx"
    return lt.shrink(ticket, path, precision="int8", calibrate=digits, max_drop=2)


@pytest.fixture(scope="module")
def plain(ticket: Path, tmp_path_factory: pytest.TempPathFactory) -> Shrunk:
    """The same network in fp32."""
    return lt.shrink(ticket, tmp_path_factory.mktemp("plain") / "small.onnx")


@pytest.fixture
def network(plain: Shrunk) -> nn.Module:
    return copy.deepcopy(plain.module)


@pytest.fixture
def quantizer(plain: Shrunk) -> Quantizer:
    return Quantizer(plain.path, SAMPLE)


@pytest.fixture
def minmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other ranges are tried."""
    monkeypatch.setattr(int8, "METHODS", ("minmax",))


def quantised(network: nn.Module, data: Dataset, folder: Path, recipe: lt.Recipe, requested: Int8) -> int8.Quantized:
    job = ShrinkJob(folder / "small.onnx", "int8", Classification(data), int8=requested, recipe=recipe)
    return int8.to_int8(network, judge_for(network, job), job, folder)


def weights(path: Path) -> Iterator[tuple[str, TensorProto, tuple[TensorProto, int] | None]]:
    """Each product's name and weight; where that is an integer, its scales and their axis."""
    graph = onnx.load(path).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type in PRODUCTS:
            if (source := node.input[1]) in held:
                yield node.name, held[source], None
            else:
                integers, scales, _ = made[source].input
                axis = next(a.i for a in made[source].attribute if a.name == "axis")
                yield node.name, held[integers], (held[scales], axis)


def right(path: Path, split: Split) -> float:
    images = torch.cat([x for x, _ in split.batches(256, torch.device("cpu"), None, 0)])
    return float((run_onnx(path, images.contiguous()).argmax(1) == split.labels).double().mean())


class TestFile:
    """What `shrink --precision int8` writes."""

    def test_weights_are_int8_with_one_scale_for_each_filter(self, shrunk: Shrunk) -> None:
        found = {name: (weight, scale) for name, weight, scale in weights(shrunk.path)}
        assert len(found) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in shrunk.module.modules())
        for name, (weight, scale) in found.items():
            if name in shrunk.record["int8"]["float_nodes"]:
                assert scale is None and weight.data_type == TensorProto.FLOAT
                continue
            assert scale is not None and weight.data_type == TensorProto.INT8
            assert list(scale[0].dims) == [weight.dims[scale[1]]]

    def test_score_is_what_it_reports(self, shrunk: Shrunk, digits: Dataset) -> None:
        reported = shrunk.record["int8"]
        assert reported["val_score"]["int8"] == right(shrunk.path, digits.val)
        assert reported["test_score"]["int8"] == right(shrunk.path, digits.test)
        assert 100 * (reported["val_score"]["fp32"] - reported["val_score"]["int8"]) <= reported["max_drop_points"]

    def test_the_float_accuracy_is_the_float_file_s(self, plain: Shrunk, shrunk: Shrunk, digits: Dataset) -> None:
        reported = shrunk.record["int8"]
        assert (reported["val_score"]["fp32"], reported["test_score"]["fp32"]) == (
            right(plain.path, digits.val),
            right(plain.path, digits.test),
        )
        assert shrunk.path.stat().st_size < plain.path.stat().st_size

    def test_record_and_metadata(self, shrunk: Shrunk, digits: Dataset) -> None:
        record = json.loads(shrunk.path.with_suffix(".json").read_text())
        reported = {p.key: p.value for p in onnx.load(shrunk.path).metadata_props}
        assert record["precision"] == reported["precision"] == "int8" and record["recalibrated"] is False
        assert record["bytes"] == shrunk.path.stat().st_size and record["onnx_error"] <= record["tolerance"]
        assert record["equality_error"] <= 1e-5
        assert record["int8"]["images"] == {"calibration": 512, "validation": len(digits.val), "test": len(digits.test)}
        assert json.loads(reported["accuracy"]) == {"value": record["int8"]["test_score"]["int8"], "split": "test"}
        assert json.loads(reported["int8"])["float_nodes"] == record["int8"]["float_nodes"]

    def test_openvino_was_run(self, shrunk: Shrunk) -> None:
        pytest.importorskip("openvino")
        reported = shrunk.record["int8"]["openvino"]
        assert reported["error"] <= reported["allowed"] and reported["same_class"] > 0.95

    def test_its_parameters_are_its_weights(self, shrunk: Shrunk, plain: Shrunk) -> None:
        """As many as in float: a scale or a zero point is none."""
        ours, theirs = _examine(shrunk.path), _examine(plain.path)
        assert (ours["params"], ours["macs"]) == (theirs["params"], theirs["macs"])
        assert ours["params"] == sum(p.numel() for p in shrunk.module.parameters())

    def test_any_batch_size_runs(self, shrunk: Shrunk) -> None:
        torch.testing.assert_close(run_onnx(shrunk.path, SAMPLE[:3]), run_onnx(shrunk.path, SAMPLE)[:3])

    def test_bench_takes_it(self, shrunk: Shrunk, tmp_path: Path) -> None:
        result = lt.bench(
            shrunk.path, runtimes=["onnxruntime"], devices=["cpu"], batches=(2,), seconds_per_row=0.02, output=tmp_path / "bench.json"
        )
        small, dense = (next(row for row in result.rows if row.subject == name) for name in ("small", "dense"))
        assert (small.dtype, dense.dtype) == ("int8", "float32")
        assert small.accuracy == shrunk.record["int8"]["test_score"]["int8"]
        assert small.max_error > 1e-3, "from fp32 by PyTorch, not from ONNX Runtime itself"

    @pytest.mark.slow
    def test_bench_sees_one_filter_of_zeros(self, shrunk: Shrunk, ticket: Path, tmp_path: Path) -> None:
        """In the file: with its ticket, and alone only where a runtime makes it."""
        (tmp_path / "ticket.pt").write_bytes(ticket.read_bytes())
        model = onnx.load(shrunk.path)
        weight = next(t for t in model.graph.initializer if t.name.endswith("weight_quantized") and len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0] = 0
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, tmp_path / "small.onnx")
        with pytest.raises(Disagreement, match="is not the network's"):
            lt.bench(tmp_path / "small.onnx", runtimes=["onnxruntime"], devices=["cpu"], batches=(2,))
        (tmp_path / "ticket.pt").unlink()
        result = tmp_path / "bench.json"
        lt.bench(tmp_path / "small.onnx", runtimes=["onnxruntime"], devices=["cpu"], batches=(2,), seconds_per_row=0.02, output=result)
        assert "the file's own graph" in json.loads(result.read_text())["compared_with"], "what it cannot compare, it says"


def test_scales_of_operations_on_integers_are_no_parameters(tmp_path: Path) -> None:
    """Of those that others write: integers in front of a product, or inside it, count as they would in float."""
    filters, bias = np.ones((4, 3, 3, 3), np.int8), np.ones(4, np.int32)
    scale, zero = np.ones(4, np.float32), np.zeros(4, np.int8)
    held = {"w": filters, "b": bias, "s": scale, "z": zero, "xs": np.ones(1, np.float32), "xz": np.zeros(1, np.uint8)}
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["images", "xs", "xz"], ["x"]),
        onnx.helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "s", "z", "xs", "xz", "b"], ["y"]),
        onnx.helper.make_node("ConvInteger", ["x", "w"], ["c"]),
        onnx.helper.make_node("DequantizeLinear", ["y", "xs", "xz"], ["logits"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("images", [1, 3, 8, 8]), ("logits", None))
    ]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = onnx.helper.make_graph(nodes, "main", ends[:1], ends[1:], tensors)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), tmp_path / "q.onnx")
    reported = _examine(tmp_path / "q.onnx")
    assert [(row["op"], row["params"]) for row in reported["nodes"]] == [("QLinearConv", filters.size + bias.size), ("ConvInteger", 0)]
    assert [row["macs"] for row in reported["nodes"]] == [filters.size * 36] * 2


class TestChoice:
    """By validation images, and by nothing else."""

    def test_the_best_on_validation_images_wins(self, shrunk: Shrunk) -> None:
        reported = shrunk.record["int8"]
        assert {t["ranges"] for t in reported["tried"]} == {*METHODS} and {t["weight_bits"] for t in reported["tried"]} == {*WEIGHT_TOP}
        best = max((t for t in reported["tried"] if t["weight_bits"] == reported["weight_bits"]), key=lambda t: (t["val_score"], -t["rms"]))
        assert reported["ranges"] == best["ranges"]

    def test_weights_have_the_bits_that_disturb_least(self, shrunk: Shrunk) -> None:
        minmax = {t["weight_bits"]: t["rms"] for t in shrunk.record["int8"]["tried"] if t["ranges"] == "minmax"}
        assert shrunk.record["int8"]["weight_bits"] == min(minmax, key=minmax.__getitem__)

    @pytest.mark.slow
    @pytest.mark.usefixtures("minmax")
    def test_test_images_come_last_and_once(self, network: nn.Module, digits: Dataset, tmp_path: Path) -> None:
        looked: list[str] = []
        watched = replace(digits, **{name: Watched(getattr(digits, name), name, looked) for name in ("train", "val", "test")})
        quantised(network, watched, tmp_path, lt.Recipe(), Int8(max_drop=100))
        assert looked[-2:] == ["test", "test"] and looked.count("test") == 2, "fp32 and int8"
        assert looked.count("train") == 1 and looked[0] == "train"


class Watched:
    """A split that records when its images are read."""

    def __init__(self, split: Split, name: str, looked: list[str]) -> None:
        self._split, self._name, self._looked = split, name, looked

    def __len__(self) -> int:
        return len(self._split)

    @property
    def labels(self) -> Tensor:
        return self._split.labels

    def batches(self, *arguments: Any) -> Iterator[tuple[Tensor, Tensor]]:
        self._looked.append(self._name)
        return self._split.batches(*arguments)


class TestSensitiveLayers:
    @pytest.mark.parametrize("bits", WEIGHT_TOP)
    def test_float_nodes_keep_float_weights(self, quantizer: Quantizer, tmp_path: Path, bits: int) -> None:
        spared = quantizer.products[1]
        quantizer.write(Scheme("minmax", bits, (spared,)), tmp_path / "int8.onnx")
        for name, weight, scale in weights(tmp_path / "int8.onnx"):
            if name == spared:
                assert weight.data_type == TensorProto.FLOAT and scale is None
            else:
                integers = onnx.numpy_helper.to_array(weight)
                assert integers.dtype == "int8" and abs(integers.astype(int)).max() <= WEIGHT_TOP[bits]

    @pytest.mark.slow
    @pytest.mark.usefixtures("minmax")
    def test_layers_are_spared_until_it_is_good(self, network: nn.Module, digits: Dataset, tmp_path: Path) -> None:
        lopsided = of_very_different_channels(network)
        done = quantised(lopsided, digits, tmp_path, lt.Recipe(), Int8())
        reported = done.record
        best = max(t["val_score"] for t in reported["tried"])
        assert best < reported["val_score"]["fp32"] - 0.005 <= reported["val_score"]["int8"]
        assert {*list(reported["float_nodes"])[:2]} == {"node_conv2d", "node_conv2d_1"}, "which share the channels"
        assert all("alone in int8" in why for why in reported["float_nodes"].values())

    @pytest.mark.slow
    @pytest.mark.usefixtures("minmax")
    def test_what_cannot_be_good_is_refused(self, ticket: Path, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(int8._Goal, "met", lambda *_: False)
        with pytest.raises(Disagreement, match=r"int8 reaches .* nothing was written"):
            lt.shrink(ticket, tmp_path / "small.onnx", precision="int8", calibrate=digits)
        assert not list(tmp_path.iterdir())


def of_very_different_channels(network: nn.Module) -> nn.Module:
    """The same function, but the channels behind the first convolution have scales from 1 to 1e4, which one range cannot hold."""
    changed = copy.deepcopy(network)
    first, second = [m for m in changed.modules() if isinstance(m, nn.Conv2d)][:2]
    scale = torch.logspace(0, 4, first.out_channels)
    with torch.no_grad():
        first.weight *= scale[:, None, None, None]
        first.bias *= scale  # type: ignore[operator]
        second.weight /= scale[None, :, None, None]
    torch.testing.assert_close(changed(SAMPLE), network(SAMPLE), rtol=1e-3, atol=1e-3)
    return changed


@pytest.mark.slow
class TestFineTuning:
    @pytest.mark.parametrize("top", WEIGHT_TOP.values())
    def test_filters_take_few_values_and_learn(self, network: nn.Module, top: int) -> None:
        plain = network(SAMPLE).detach()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with qat.rounded(network, SAMPLE, top):
            layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            assert layers
            for layer in layers:
                assert all(len(row.unique()) <= 2 * top + 1 for row in layer.weight.flatten(1))
            out = network(SAMPLE)
            assert not torch.equal(out, plain)
            out.square().sum().backward()
            assert all(layer.parametrizations.weight.original.grad.abs().sum() > 0 for layer in layers)
        network.zero_grad()
        after = network.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(network(SAMPLE), plain)

    def test_it_computes_what_the_file_does(self, network: nn.Module, quantizer: Quantizer, tmp_path: Path) -> None:
        quantizer.write(Scheme("minmax", 7), tmp_path / "int8.onnx")
        with qat.rounded(network, SAMPLE, WEIGHT_TOP[7]), torch.no_grad():
            rounded = network(SAMPLE)
        with torch.no_grad():
            plain = network(SAMPLE)
        assert (run_onnx(tmp_path / "int8.onnx", SAMPLE) - rounded).abs().max() < 0.05 * plain.abs().max()

    @pytest.mark.parametrize("helps", [True, False])
    @pytest.mark.usefixtures("minmax")
    def test_it_is_kept_only_where_it_helps(
        self, network: nn.Module, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool
    ) -> None:
        """A network that has lost its head is easily helped; one that training wrecks is not."""
        recipe = lt.Recipe(epochs=4, batch=32, lr=0.02 if helps else 10.0, flip=False, crop_pixels=2)
        if helps:
            nn.init.normal_([*network.modules()][-1].weight, std=0.1)
        else:
            monkeypatch.setattr(lt.Recipe, "fine_tuning", lambda recipe: recipe)
            monkeypatch.setattr(int8, "RATE_SHARES", (1.0,))
        before = [p.clone() for p in network.parameters()]
        done = quantised(network, digits, tmp_path, recipe, Int8(max_drop=100, finetune_epochs=1))
        reported = done.record["fine_tuning"]
        assert reported.startswith("kept: " if helps else "thrown away: "), reported
        assert (done.module is network) == (not helps)
        assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)), "the given network stays"

    @pytest.mark.usefixtures("minmax")
    def test_what_fails_is_tried_at_lower_rates(
        self, network: nn.Module, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rates = []

        def fail(module: nn.Module, data: Dataset, images: Tensor, recipe: lt.Recipe, *_: object) -> nn.Module:
            rates.append(recipe.lr)
            raise TrainingFailed("the loss is nan")

        monkeypatch.setattr(int8, "fine_tune", fail)
        requested = Int8(max_drop=100, finetune_epochs=1)
        done = quantised(network, digits, tmp_path, lt.Recipe(), requested)
        assert rates == pytest.approx([1e-2, 1e-3, 1e-4])
        assert "thrown away" in done.record["fine_tuning"] and done.module is network


class TestRefusals:
    def test_settings(self, ticket: Path, digits: Dataset, tmp_path: Path) -> None:
        with pytest.raises(InvalidSetting, match="calibrate="):
            lt.shrink(ticket, tmp_path / "small.onnx", precision="int8")
        for ending in ("pt2", "safetensors"):
            with pytest.raises(InvalidSetting, match=r"must be \.onnx"):
                lt.shrink(ticket, tmp_path / f"small.{ending}", precision="int8", calibrate=digits)
        with pytest.raises(InvalidSetting, match="precision=int8"):
            lt.shrink(ticket, tmp_path / "small.onnx", finetune_epochs=1)
        for wrong in ({"max_drop": -1.0}, {"max_drop": float("nan")}, {"finetune_epochs": -1}, {"finetune_epochs": 10**30}):
            with pytest.raises(InvalidSetting, match=r"(max_drop|finetune_epochs)="):
                lt.shrink(ticket, tmp_path / "small.onnx", precision="int8", calibrate=digits, **wrong)  # type: ignore[arg-type]

    def test_images_of_another_size(self, ticket: Path, tmp_path: Path) -> None:
        with pytest.raises(TicketMismatch, match="has other ones"):
            lt.shrink(ticket, tmp_path / "small.onnx", precision="int8", calibrate=lt.load_data("digits", image_size=8))
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
class TestCommand:
    @pytest.fixture
    def say(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
        """`ltcompile WORDS` in this process: its exit code, and what it said."""

        def run(*words: object) -> tuple[Any, str]:
            monkeypatch.setattr(sys, "argv", ["ltcompile", *map(str, words)])
            with pytest.raises(SystemExit) as stop:
                main()
            reported = capsys.readouterr()
            return stop.value.code, reported.out + reported.err

        return run

    def test_refusals(self, ticket: Path, tmp_path: Path, say: Callable[..., tuple[Any, str]]) -> None:
        requested = ("shrink", ticket, "--precision", "int8", "-o")
        for words, says in {
            (tmp_path / "small.onnx",): "pass --calibrate",
            (tmp_path / "small.pt2", "--calibrate", "digits"): "must be .onnx",
            (tmp_path / "small.onnx", "--calibrate", "digits", "--max-drop", -1): "it must be between 0 and 100 points",
        }.items():
            code, reported = say(*requested, *words)
            assert code == 2 and says in reported, reported
        assert not list(tmp_path.iterdir())

    @pytest.mark.usefixtures("minmax")
    def test_it_shows_what_was_chosen(self, ticket: Path, tmp_path: Path, say: Callable[..., tuple[Any, str]]) -> None:
        path = tmp_path / "small.onnx"
        code, reported = say("shrink", ticket, "--precision", "int8", "--calibrate", "digits", "--max-drop", 5, "-o", path)
        assert code == 0 and f"next: ltcompile bench {path}" in reported, reported
        assert "minmax ranges of 512 training images" in reported and path.is_file()
