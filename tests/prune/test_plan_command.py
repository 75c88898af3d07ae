"""`ltcompile plan` and `ltcompile inspect`: no training, exact numbers, and bad input reported as such."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import ltcompile as lt
from ltcompile.core.plan import PruningPlan
from ltcompile.lower import export_onnx

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process, as imports take seconds: exit code, output and errors."""
    from ltcompile.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ltcompile", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as stop:
            main()
        reported = capsys.readouterr()
        return int(stop.value.code or 0), reported.out, " ".join(reported.err.split())

    return call


def refused(run: Run, *arguments: object, says: str) -> None:
    code, _, errors = run(*arguments)
    assert code == 2 and says in errors, errors


class TestPlan:
    """What a cut would take."""

    @pytest.mark.slow
    def test_sensitivity(self, run: Run, tmp_path: Path) -> None:
        page = tmp_path / "curves.html"
        code, out, errors = run("plan", "--model", "conv2", "--image-size", 8, "--sensitivity", page, "--only", "0", "--json")
        assert code == 0, errors
        found = json.loads(out.splitlines()[-1])
        assert {row["group"] for row in found["rows"]} == {"0"} and len(found["rows"]) == 9
        assert page.exists() and json.loads(page.with_suffix(".json").read_text()) == found
        refused(run, "plan", "--model", "conv2", "--sensitivity", tmp_path / "curves.png", says="curves.html")

    def test_a_target(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "plan.json"
        code, out, errors = run(
            "plan", "--model", "resnet20", "--target-macs", 0.4, "--keep", "conv", "--layer-ratio", ".*0.conv1=0.5", "-o", file
        )
        assert code == 0, errors
        sizes, wrote, target = out.splitlines()[-3:]
        assert (
            "it is to be kept ('conv')" in out and "fewer" in sizes and wrote == f"wrote {file}" and "0.4 of" in target and "met" in target
        )
        torch.manual_seed(0)
        model, x = lt.build_model("resnet20"), torch.zeros(1, 3, 32, 32)
        plan = PruningPlan.load(file)
        assert plan.widths["blocks.0.conv1"] == (16, 8) and plan.widths["conv"] == (16, 16)
        small = lt.size(lt.cut(model, plan), x)
        assert small.macs <= 0.4 * lt.size(model, x).macs and f"{small.macs:,}" in out

    def test_json(self, run: Run, tmp_path: Path) -> None:
        torch.manual_seed(0)
        trained = lt.build_model("lenet5", 4, 1, 20)
        torch.save(trained.state_dict(), tmp_path / "w.pth")
        sizes = ("--classes", 4, "--in-channels", 1, "--image-size", 20, "--weights", tmp_path / "w.pth")
        code, out, errors = run("plan", "--model", "lenet5", *sizes, "--ratio", 0.3, "--scope", "local", "--min-channels", 5, "--json")
        assert code == 0, errors
        reported, x = json.loads(out), torch.zeros(1, 1, 20, 20)
        plan = lt.plan(trained, x, 0.3, "local", limits=lt.Limits(min_channels=5))
        small = lt.size(lt.cut(trained, plan), x)
        assert {g["name"]: (g["before"], g["after"]) for g in reported["groups"]} == plan.widths
        assert (reported["params"][1], reported["macs"][1]) == (small.params, small.macs)
        assert [g["left_alone"] for g in reported["groups"]][-1] == "it produces the network's output"

    @pytest.mark.slow
    def test_bad_input(self, run: Run, tmp_path: Path) -> None:
        lenet = ("plan", "--model", "lenet5")
        refused(run, "plan", "--model", "lenet6", says="Did you mean lenet5")
        refused(run, *lenet, "--ratio", 1.5, says="between 0 and 1")
        refused(run, *lenet, "--ratio", 0.5, "--target-macs", 0.5, says="not both")
        refused(run, *lenet, "--target-params", 0.001, says="'11' (17% of that) is left alone: it produces the network's output")
        refused(run, *lenet, "--keep", "(", says="not a regular expression")
        refused(run, *lenet, "--only", "77", says="did you mean 7?")
        refused(run, *lenet, "--layer-ratio", "0", says="takes PATTERN=SHARE")
        refused(run, *lenet, "--group-reduction", "some", says="producers, filters, all")
        refused(run, *lenet, "--criterion", "taylor", says="needs gradients")
        refused(run, *lenet, "-o", "/proc/none/plan.json", says="cannot write")
        refused(run, *lenet, "--weights", tmp_path / "none.pth", says="no file of weights at")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as ltcompile exports it, with an open batch."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export_onnx(model, torch.zeros(2, 3, 9, 9), path, {"producer": "ltcompile", "data": "none"})
    return path


def examine(path: Path) -> dict[str, object]:
    from ltcompile.cli.inspect import _examine

    return _examine(path)


class TestInspect:
    """Any ONNX file."""

    def test_an_exported_network(self, run: Run, exported: Path) -> None:
        code, out, errors = run("inspect", exported, "--json")
        assert code == 0, errors
        reported = json.loads(out)
        rows = [(n["op"], n["in"], n["out"], n["odd"], n["params"], n["macs"]) for n in reported["nodes"]]
        assert rows == [
            ("Conv", 3, 8, True, 3 * 8 * 9 + 8, 9 * 9 * 8 * 3 * 9),
            ("Conv", 8, 6, True, 4 * 6 * 9 + 6, 4 * 4 * 6 * 4 * 9),
            ("Gemm", 6, 5, True, 6 * 5 + 5, 6 * 5),
        ]
        assert (
            reported["params"] == sum(r[4] for r in rows) and reported["macs"] == sum(r[5] for r in rows) and not reported["macs_unknown"]
        )
        assert reported["metadata"] == {"producer": "ltcompile", "data": "none"} and reported["opset"]["ai.onnx"] >= 18
        assert "pytorch" in reported["producer"]

    def test_as_a_table(self, run: Run, exported: Path) -> None:
        code, out, _ = run("inspect", exported)
        assert code == 0 and "Conv" in out and "MACs 20,982 for one image" in out and "odd" in out

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["golden_network:build", "lenet300"])
    def test_counts_as_torch_does(self, tmp_path: Path, name: str) -> None:
        model, x = lt.build_model(name).eval(), torch.zeros(2, 3, 32, 32)
        export_onnx(model, x, tmp_path / "net.onnx")
        assert examine(tmp_path / "net.onnx")["macs"] == lt.size(model, x).macs

    def test_other_operations(self, tmp_path: Path) -> None:
        """Transposed filters, products with a prepared weight, a batch of 4, a layer of unknown height, an operation without a formula."""

        def weights(name: str, *dims: int) -> onnx.TensorProto:
            return helper.make_tensor(name, TensorProto.FLOAT, dims, torch.zeros(dims).flatten().tolist())

        nodes = [
            helper.make_node("ConvTranspose", ["x", "up"], ["a"], name="up", group=2, strides=[2, 2]),
            helper.make_node("Flatten", ["a"], ["b"]),
            helper.make_node("Transpose", ["dense"], ["denseT"], perm=[1, 0]),
            helper.make_node("MatMul", ["b", "denseT"], ["c"], name="dense"),
            helper.make_node("Conv", ["y", "up"], ["d"], name="free"),
            helper.make_node("Mystery", ["c", "dense"], ["e"], name="own", domain="mine"),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4, 5, 5]),
                helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 3, "height", 8]),
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "cde"],
            [weights("up", 4, 3, 2, 2), weights("dense", 7, 600)],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets), str(tmp_path / "net.onnx"))
        reported = examine(tmp_path / "net.onnx")
        rows = {n["name"]: (n["in"], n["out"], n["params"], n["macs"]) for n in reported["nodes"]}  # type: ignore[attr-defined]
        assert rows == {
            "up": (4, 6, 48, 5 * 5 * 4 * 3 * 4),
            "dense": (600, 7, 4200, 4200),
            "free": (3, 4, 0, None),  # its weights are counted where they come first
            "own": (None, None, 0, None),
        }
        assert reported["macs_unknown"] == ["free", "own"] and reported["macs"] == 1200 + 4200

    def test_external_weights_are_not_read(self, exported: Path, tmp_path: Path) -> None:
        proto = onnx.load(str(exported))
        onnx.save(proto, str(tmp_path / "net.onnx"), save_as_external_data=True, location="weights", size_threshold=0)
        (tmp_path / "weights").unlink()
        assert examine(tmp_path / "net.onnx")["macs"] == 20_982

    def test_bad_input(self, run: Run, exported: Path, tmp_path: Path) -> None:
        (tmp_path / "text.onnx").write_bytes(b"no protobuf at all")
        (tmp_path / "small.mnn").write_bytes(b"no protobuf at all")
        (tmp_path / "empty.onnx").write_bytes(b"")
        (tmp_path / "half.onnx").write_bytes(exported.read_bytes()[:200])
        refused(run, "inspect", tmp_path / "none.onnx", says="there is no ONNX file")
        refused(run, "inspect", tmp_path / "text.onnx", says="cannot be read as ONNX")
        refused(run, "inspect", tmp_path / "small.mnn", says="name an .onnx file")
        refused(run, "inspect", tmp_path / "empty.onnx", says="which is empty")
        refused(run, "inspect", tmp_path / "half.onnx", says="cannot be read as ONNX")
        refused(run, "inspect", tmp_path, says="is a folder")


@pytest.mark.parametrize("command", ["plan", "inspect"])
def test_help_has_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0 and "Example" in out and f"ltcompile {command}" in out
