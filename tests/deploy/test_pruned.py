"""Laws of everything right of `Pruned`, over networks of all kinds: inputs, outputs and ranks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kinds
import onnx
import pytest
import torch
from kinds import KINDS, TwoInputs, UNet, one_d, pruned, three_d
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile import registry, runtimes
from ltcompile.cli import app
from ltcompile.deploy import formats, steps
from ltcompile.errors import Disagreement, InvalidData, InvalidFile, InvalidModel, InvalidPlan, InvalidSetting
from ltcompile.graph.examples import read_example
from ltcompile.graph.inputs import Example
from ltcompile.lower import run_onnx
from ltcompile.lower.answers import answers, of_file, of_network, probe
from ltcompile.lower.inputs import Inputs
from ltcompile.pruned import MetricValue, Pruned


@pytest.fixture(scope="module", params=KINDS)
def network(request: pytest.FixtureRequest) -> Pruned:
    return pruned(request.param)


def largest_error(run: Callable[[Inputs], Any], given: Pruned, rows: int = 5) -> float:
    """Over all outputs, in order, for inputs that shrink has not seen."""
    inputs = probe(given.small, given.example, rows)
    expected, found = answers(of_network(given.small), inputs, rows), answers(run, inputs, rows)
    pairs = [(torch.from_numpy(x).double(), torch.from_numpy(y).double()) for x, y in zip(expected.values(), found.values(), strict=True)]
    return max(float((y - x).abs().max() / x.abs().max().clamp_min(1e-12)) for x, y in pairs)


class TestEveryKind:
    def test_onnx_answers_as_the_network(self, network: Pruned, tmp_path: Path) -> None:
        done = lt.shrink(network, tmp_path / "small.onnx")
        assert done.record["equality_error"] <= 1e-9 and done.record["params"] < done.record["dense_params"]
        assert done.record["onnx_error"] <= done.record["tolerance"] == 1e-4
        assert done.record["network_checksum"] == network.checksum and "ticket_checksum" not in done.record
        names = Inputs.of(network.small, network.example).names
        assert tuple(value.name for value in onnx.load(done.path).graph.input) == names
        assert largest_error(of_file(done.path, names), network) < 1e-4

    @pytest.mark.slow
    def test_pt2_and_safetensors(self, network: Pruned, tmp_path: Path) -> None:
        program = lt.shrink(network, tmp_path / "small.pt2")
        assert largest_error(of_network(torch.export.load(program.path).module()), network) < 1e-4
        half = lt.shrink(network, tmp_path / "half.pt2", precision="fp16")
        assert half.record["onnx_error"] <= half.record["tolerance"]
        fractions = all(
            value.is_floating_point() for value in of_network(network.small)(Inputs.of(network.small, network.example)).values()
        )
        assert half.record["tolerance"] < 1e-2 or not fractions, "of whole numbers, one in a hundred may differ"
        held = torch.export.load(half.path).state_dict
        assert {value.dtype for value in held.values() if value.is_floating_point()} == {torch.float16}
        plain = lt.shrink(network, tmp_path / "small.safetensors")
        assert network.dense is not None
        loaded = lt.load_pruned(lambda: network.dense, plain.path)
        assert largest_error(of_network(loaded), network) < 1e-5
        assert plain.record["loader"] == {"file": "small_load.py", "reason": ""}

    def test_the_given_network_stays(self, network: Pruned, tmp_path: Path) -> None:
        before = network.checksum
        network.small.train()
        try:
            lt.shrink(network, tmp_path / "small.safetensors", calibrate=[network.example])
            assert network.checksum == before and all(module.training for module in network.small.modules())
        finally:
            network.small.eval()


def test_a_network_without_its_dense_one(tmp_path: Path) -> None:
    given = pruned("u-net")
    done = lt.shrink(Pruned(given.small, given.example, metric=MetricValue(lt.Metric("mIoU"), 0.5, "test")), tmp_path / "small.safetensors")
    assert done.record["equality_error"] is None and done.record["dense_params"] is None and done.record["target"] is None
    fresh = lt.cut(UNet(), given.plan)  # type: ignore[arg-type]
    assert largest_error(of_network(lt.load_pruned(lambda: fresh, done.path)), given) < 1e-5


@pytest.mark.slow
def test_metric_preprocessing_and_names_travel_in_the_file(tmp_path: Path) -> None:
    given = pruned("two inputs")
    named = Pruned(
        given.small,
        given.example,
        preprocessing={"input": "pixels / 255"},
        metric=MetricValue(lt.Metric("mAP"), 0.5, "test"),
        input_names=("photo", "facts"),
        output_names=("scores", "norm"),
        provenance={"run": "7"},
    )
    model = onnx.load(lt.shrink(named, tmp_path / "small.onnx").path)
    reported = {entry.key: entry.value for entry in model.metadata_props}
    assert reported["input"] == "pixels / 255" and reported["mAP"] == '{"value": 0.5, "split": "test"}' and reported["run"] == "7"
    assert [v.name for v in model.graph.input] == ["photo", "facts"] and [v.name for v in model.graph.output] == ["scores", "norm"]


class TestDynamicAxes:
    def shapes(self, path: Path) -> list[list[int | str]]:
        graph = onnx.load(path).graph
        return [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)]

    @pytest.mark.slow
    def test_sides_of_a_network_that_halves_them(self, tmp_path: Path) -> None:
        given = pruned("u-net")
        path = lt.shrink(given, tmp_path / "small.onnx", dynamic=("batch", "height", "width")).path
        assert self.shapes(path)[0] == ["batch", 3, "height", "width"]
        images = torch.randn(3, 3, 20, 12)
        with torch.no_grad():
            torch.testing.assert_close(run_onnx(path, images), given.small(images), rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    def test_one_axis_and_a_fixed_batch(self, tmp_path: Path) -> None:
        given = pruned("tokens")
        path = lt.shrink(given, tmp_path / "small.onnx", dynamic=("length",)).path
        assert self.shapes(path) == [[2, "length"], [2, "length", 3]]
        tokens = torch.randint(0, 11, (2, 30))
        with torch.no_grad():
            torch.testing.assert_close(run_onnx(path, tokens), given.small(tokens), rtol=1e-4, atol=1e-4)

    def test_what_does_not_vary_is_refused(self, tmp_path: Path) -> None:
        fixed = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 2))
        given = Pruned(fixed, torch.randn(1, 3, 8, 8))
        with pytest.raises(InvalidModel, match="dynamic height"):
            lt.shrink(given, tmp_path / "small.onnx", dynamic=("batch", "height"))
        with pytest.raises(InvalidSetting, match=r"batch, height, input\.1, .* not 'depth'"):
            lt.shrink(given, tmp_path / "small.onnx", dynamic=("batch", "depth"))
        assert not list(tmp_path.iterdir())


class TestInt8:
    """Any inputs calibrate, and any metric judges."""

    @pytest.fixture(autouse=True)
    def minmax(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ltcompile.deploy.int8.METHODS", ("minmax",))

    def batches(self, count: int = 4) -> Iterator[Example]:
        rng = torch.Generator().manual_seed(1)
        for _ in range(count):
            yield {"image": torch.rand(32, 3, 8, 8, generator=rng), "side": torch.randn(32, 5, generator=rng)}

    @pytest.mark.slow
    def test_a_metric_judges_the_file(self, tmp_path: Path) -> None:
        given, seen = pruned("two inputs"), []

        def metric(network: Callable[..., Any]) -> float:
            """The share of the fp32 classes that the file gives."""
            inputs: Any = next(self.batches(1))
            out = network(inputs["image"], side=inputs["side"])
            seen.append(sorted(out))
            with torch.no_grad():
                return float((out["logits"].argmax(1) == given.small(**inputs)["logits"].argmax(1)).double().mean())

        done = lt.shrink(given, tmp_path / "small.onnx", precision="int8", calibrate=self.batches(), metric=metric, max_drop=0.1)
        reported = done.record["int8"]
        assert reported["score"]["fp32"] == 1.0 >= reported["score"]["int8"] >= 0.9 and reported["judged_by"] == "metric"
        assert seen and all(names == ["logits", "size"] for names in seen), "outputs come in the network's own containers"
        assert done.record["onnx_error"] <= done.record["tolerance"] and reported["images"] == {"calibration": 128}

    @pytest.mark.slow
    def test_without_one_the_outputs_do(self, tmp_path: Path) -> None:
        rows = torch.randn(128, 2, 20, generator=torch.Generator().manual_seed(1))
        done = lt.shrink(pruned("1-D"), tmp_path / "small.onnx", precision="int8", calibrate=[rows])
        assert done.record["int8"]["judged_by"] == "outputs" and done.record["int8"]["error"]["max"] <= 0.25

    @pytest.mark.slow
    def test_a_metric_that_int8_fails(self, tmp_path: Path) -> None:
        scores = iter([1.0] + [0.0] * 100)
        with pytest.raises(Disagreement, match=r"int8 reaches 0 by the metric, .* nothing was written"):
            lt.shrink(
                pruned("1-D"),
                tmp_path / "s.onnx",
                precision="int8",
                calibrate=[torch.randn(128, 2, 20)],
                metric=lambda network: next(scores),
            )
        assert not list(tmp_path.iterdir())

    def test_inputs_that_say_nothing(self, tmp_path: Path) -> None:
        given = pruned("1-D")
        for calibrate, reported in (
            ([], "gives no inputs"),
            ([torch.randn(9, 2, 20)], "9 do not show"),
            ([torch.randn(64, 2, 20), torch.randn(64, 2, 24)], "different shapes"),
        ):
            with pytest.raises(InvalidData, match=reported):
                lt.shrink(given, tmp_path / "s.onnx", precision="int8", calibrate=calibrate)
        with pytest.raises(InvalidSetting, match="finetune_epochs trains tickets"):
            lt.shrink(given, tmp_path / "s.onnx", precision="int8", calibrate=[torch.randn(128, 2, 20)], finetune_epochs=1)


@pytest.mark.slow
class TestBench:
    def test_times_of_small_and_dense_for_any_inputs(self) -> None:
        found = lt.bench(pruned("two inputs"), runtimes=["onnxruntime", "eager"], devices=["cpu"], batches=(1, 3), seconds_per_row=0.01)
        assert [(r.subject, r.runtime, r.batch) for r in found.rows] == [
            (subject, runtime, batch) for runtime in ("onnxruntime", "eager") for batch in (1, 3) for subject in ("dense", "small")
        ]
        assert all(row.max_error <= 1e-4 and row.ms_p50 > 0 and (row.speedup is None) == (row.subject == "dense") for row in found.rows)

    def test_a_runtime_that_computes_something_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        honest = runtimes.load

        def wrong(*arguments: Any) -> runtimes.Session:
            session = honest(*arguments)
            run = session.run
            monkeypatch.setattr(session, "run", lambda inputs: {name: value + 1e-2 for name, value in run(inputs).items()})
            return session

        monkeypatch.setattr("ltcompile.benchmark.rows.load_apart", wrong)
        with pytest.raises(Disagreement, match="output 'logits': outputs are off by"):
            lt.bench(pruned("two inputs"), runtimes=["onnxruntime"], devices=["cpu"], batches=(1,))
        with pytest.raises(InvalidSetting, match="belong to tickets and files"):
            lt.bench(pruned("two inputs"), data="digits")


class TestSteps:
    def test_each_offers_what_a_step_must(self) -> None:
        found = steps.steps()
        assert len(found) == len(registry.modules("ltcompile.deploy.steps")) > 5
        assert len({step.ORDER for step in found}) == len(found) and all(callable(step.run) for step in found)
        assert formats.by_suffix().keys() == {
            ".cpp",
            ".html",
            ".mlpackage",
            ".mnn",
            ".onnx",
            ".param",
            ".plan",
            ".pt2",
            ".pte",
            ".safetensors",
            ".so",
            ".tflite",
            ".xml",
        }

    @pytest.mark.parametrize("how", ["up", "down"])
    def test_snap_moves_the_widths_of_any_network(self, tmp_path: Path, how: str) -> None:
        done = lt.shrink(pruned("3-D"), tmp_path / "small.pt2", snap=how)  # type: ignore[arg-type]
        assert done.record["snapped"]["way"] == f"{how} to 16" and done.record["equality_error"] <= 1e-9


class TestRefusals:
    """A `Pruned` checks itself."""

    def test_of_parts_that_do_not_fit(self) -> None:
        given = pruned("1-D")
        with pytest.raises(InvalidModel, match="does not run on the example"):
            Pruned(given.small, torch.randn(1, 7, 20))
        with pytest.raises(InvalidModel, match=r"must be a torch\.nn\.Module"):
            Pruned("resnet20", given.example)  # type: ignore[arg-type]
        with pytest.raises(InvalidSetting, match="pass that as well, dense="):
            Pruned(given.small, given.example, plan=given.plan)
        with pytest.raises(InvalidSetting, match="must be a tensor"):
            Pruned(given.small, 3)  # type: ignore[arg-type]
        with pytest.raises(InvalidSetting, match="map names to texts"):
            Pruned(given.small, given.example, preprocessing={"mean": 3})  # type: ignore[dict-item]
        with pytest.raises(InvalidModel, match="meta device"):
            Pruned(one_d().to("meta"), given.example)

    def test_of_another_network_or_wrong_weights(self, tmp_path: Path) -> None:
        given, other = pruned("1-D"), pruned("1-D", ratio=0.2)
        with pytest.raises(InvalidPlan):
            lt.shrink(Pruned(given.small, given.example, dense=given.dense, plan=other.plan), tmp_path / "s.pt2")
        wrong = lt.cut(given.dense, given.plan)  # type: ignore[arg-type, type-var]
        with torch.no_grad():
            next(iter(wrong.parameters())).add_(0.1)
        lt.shrink(
            Pruned(wrong, given.example, dense=given.dense, plan=given.plan), tmp_path / "s.pt2"
        )  # trained on, it is a cut all the same
        with pytest.raises(InvalidSetting, match="leave model out"):
            lt.shrink(given, tmp_path / "s.pt2", model="pkg:build")


class TestLoading:
    """A cut network comes back, with ltcompile and without it."""

    @pytest.mark.slow
    def test_the_loader_needs_no_ltcompile(self, tmp_path: Path) -> None:
        """In a process where it cannot be imported. The network's code lies in a file of its own."""
        given = pruned("u-net")
        lt.shrink(given, tmp_path / "small.safetensors")
        save_file({"x": torch.as_tensor(given.example), "y": given.small(given.example).detach()}, tmp_path / "expected.safetensors")
        lines = (tmp_path / "small_load.py").read_text().splitlines()
        assert len(lines) <= 10 and not any("ltcompile" in line for line in lines)
        source = Path(kinds.__file__).read_text()
        body = source[source.index("class UNet") : source.index("class TwoInputs")]
        (tmp_path / "unet.py").write_text("import torch\nfrom torch import Tensor, nn\nfrom torch.nn import functional as F\n\n" + body)
        (tmp_path / "main.py").write_text(
            "import sys\nsys.modules['ltcompile'] = None\nimport torch, unet, small_load\nfrom safetensors.torch import load_file\n"
            "reported = load_file('expected.safetensors')\nnetwork = small_load.load(unet.UNet(), 'small.safetensors')\n"
            "torch.testing.assert_close(network(reported['x']), reported['y'], rtol=1e-4, atol=1e-5)\nprint('equal')\n"
        )
        done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stdout == "equal\n", done.stderr

    def test_weights_of_ones_own_training(self, tmp_path: Path) -> None:
        given = pruned("two inputs")
        torch.save(given.small.state_dict(), tmp_path / "small.pth")
        assert given.plan is not None
        given.plan.save(tmp_path / "plan.json")
        loaded = lt.load_pruned(TwoInputs, tmp_path / "small.pth", plan=tmp_path / "plan.json")
        assert largest_error(of_network(loaded), given) == 0
        with pytest.raises(InvalidFile, match=r"no weights that fit|does not hold the weights"):
            lt.load_pruned(TwoInputs, tmp_path / "small.pth")

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        given = pruned("1-D")
        path = lt.shrink(given, tmp_path / "small.safetensors").path
        with pytest.raises(InvalidPlan, match="another network"):
            lt.load_pruned(three_d, path)
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(InvalidFile, match="take a fresh copy"):
            lt.load_pruned(one_d, path)
        for changes in ('{"0": {"layers": [["Bilinear", {}]]}}', '{"nowhere": {"layers": []}}', "[1", '{"0": {"layers": 3}}'):
            save_file(dict(given.small.state_dict()), path, {"changes": changes})
            with pytest.raises(InvalidFile, match="replaces layers"):
                lt.load_pruned(lambda: given.small, path)


class TestCommand:
    """`ltcompile shrink` of a network that is not a ticket."""

    @pytest.fixture
    def arguments(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        given = pruned("two inputs")
        torch.save(given.small.state_dict(), tmp_path / "cut.pth")
        save_file(dict(given.dense.state_dict()), tmp_path / "dense.safetensors")  # type: ignore[union-attr]
        given.plan.save(tmp_path / "plan.json")  # type: ignore[union-attr]
        return ["shrink", "--model", "kinds:TwoInputs", "--plan", str(tmp_path / "plan.json")]

    @pytest.mark.slow
    def test_weights_before_or_after_the_cut(self, arguments: list[str], tmp_path: Path) -> None:
        example = ["--example", "image=1x3x8x8,side=1x5"]
        for weights in ("cut.pth", "dense.safetensors"):
            out = tmp_path / f"{weights}.pt2"
            done = CliRunner().invoke(app, [*arguments, "--weights", str(tmp_path / weights), *example, "-o", str(out)])
            assert done.exit_code == 0 and "cut = masked to" in done.output and "next:" not in done.output, done.output
            assert largest_error(of_network(torch.export.load(out).module()), pruned("two inputs")) < 1e-4

    @pytest.mark.parametrize(
        ("more", "reported"),
        [
            ([], "--example 1x3x32x32"),
            (["--example", "a cat"], "takes shapes"),
            (["--example", "image=1x3x8x8,1x5"], "name all or none"),
            (["--example", "1x3x8x8:complex"], "float32, int64"),
            (["--example", "none.safetensors"], "there is no file of inputs"),
            (["--example", "image=1x3x8x8,side=1x5", "--calibrate", "digits"], "a file of inputs"),
            (["--example", "image=1x3x8x8,side=1x5", "--target-speedup", "2"], "leave it out where a ticket or --plan"),
        ],
    )
    def test_wrong_words(self, arguments: list[str], tmp_path: Path, more: list[str], reported: str) -> None:
        done = CliRunner().invoke(app, [*arguments, *more, "-o", str(tmp_path / "s.onnx")])
        assert isinstance(done.exception, lt_errors()) and reported in str(done.exception)


def lt_errors() -> type[Exception]:
    from ltcompile.errors import LtcompileError

    return LtcompileError


def test_examples_from_shapes() -> None:
    found: Any = read_example("a=1x2, b=3:int64")
    assert found["a"].shape == (1, 2) and found["b"].dtype == torch.int64
    assert [tuple(t.shape) for t in read_example("1x2,1x3")] == [(1, 2), (1, 3)]
