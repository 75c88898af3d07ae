"""Generated C++ on integers equals its reference in PyTorch bit by bit, and that is what ONNX Runtime computes through the int8 file."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cpu_graphs import IMAGES, SANITIZED, Case, answers, program_text
from engine_support import only, pictures, small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile import runtimes
from ltcompile.core.deployment import Deployment
from ltcompile.engine import host
from ltcompile.engine.cpu.generate import generate
from ltcompile.engine.host import make_source
from ltcompile.errors import Unavailable
from ltcompile.lower.evaluate import evaluator
from ltcompile.lower.program import Node, Program, Value
from ltcompile.lower.quantized_program import integer_program
from ltcompile.numerics import Expected
from ltcompile.runtimes import Subject

WARNINGS = ("-Wall", "-Wextra", "-Werror")
BUILDS: dict[str, tuple[list[str], tuple[str, ...], str]] = {
    "vnni": (["g++", "-O0", "-march=native"], (), "avx512_vnni"),
    "avx-512": (["g++", "-O0", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"], (), "avx512bw"),
    "avx-vnni": (["g++", "-O0", "-mavx2", "-mfma", "-mavxvnni"], (), "avx_vnni"),
    "avx-vnni, clang": (["clang++", "-O0", "-mavx2", "-mfma", "-mavxvnni"], (), "avx_vnni"),
    "avx2, clang": (["clang++", "-O0", "-mavx2", "-mfma"], (), "avx2"),
    "sanitized": (["g++", "-O0", "-mavx2", "-mfma", *SANITIZED], (), "avx2"),
    "plain": (["g++", "-O0"], (), ""),
    "neon": (["aarch64-linux-gnu-g++", "-O0", "-static"], ("qemu-aarch64",), ""),
    "neon, dot product": (["aarch64-linux-gnu-g++", "-O0", "-static", "-march=armv8.2-a+dotprod"], ("qemu-aarch64",), ""),
}


class _Network:
    """A random program on integers, whose outputs fill their range; `steps` are names of STEPS, of which those that do not fit are left out."""

    def __init__(self, channels: int, size: tuple[int, int], steps: list[str], seed: int) -> None:
        self.rng, self.nodes, self.constants = np.random.default_rng(seed), list[Node](), dict[str, Tensor]()
        self.images = torch.from_numpy(self.rng.standard_normal((IMAGES, channels, *size), np.float32))
        self.values: dict[str, Any] = {"images": self.images}
        self.images[0, 0, 0, 0] = float("nan")
        x, self.zero = self.emit("int8.quantize", "images", scale=0.02, zero=120), 120
        for step in steps:
            x, self.zero = self.step(step, x)
        out = self.emit("int8.dequantize", x, scale=0.3, zero=self.zero)
        self.program = Program("images", tuple(self.nodes), out, self.constants, (1, channels, *size))

    def emit(self, target: str, *args: Any, **kwargs: Any) -> str:
        args = tuple(Value(a) if isinstance(a, str) else self._constant(a) if isinstance(a, Tensor) else a for a in args)
        node = Node(f"v{len(self.nodes)}", target, args, kwargs, ())
        found = self.values[node.name] = node.run(self.values)
        self.nodes.append(Node(node.name, target, args, kwargs, (1, *found.shape[1:])))
        return node.name

    def _constant(self, tensor: Tensor) -> Value:
        name = f"c{len(self.constants)}"
        self.constants[name] = self.values[name] = tensor
        return Value(name)

    def output(self) -> list[int]:
        zero = int(self.rng.integers(0, 200))
        low, high = ((zero, 255), (0, 255), (zero, 230))[int(self.rng.integers(3))]
        return [zero, low, high]

    def weights(self, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
        top = (64, 127)[int(self.rng.integers(2))]
        weight = torch.from_numpy(self.rng.integers(-top, top + 1, shape).astype(np.int8))
        scale = 1 / (top * 60 * weight[0].numel() ** 0.5)
        factor = torch.from_numpy((50 * scale * self.rng.uniform(0.5, 2, len(weight))).astype(np.float32))
        return weight, torch.from_numpy(self.rng.integers(-9000, 9000, len(weight)).astype(np.int32)), factor

    def conv(self, x: str, filters: int, kernel: tuple[int, int] = (3, 3), residual: str | None = None, **settings: Any) -> tuple[str, int]:
        sizes = {"stride": [1, 1], "padding": [k // 2 for k in kernel], "dilation": [1, 1], "groups": 1, "pool": False} | settings
        output, weights = self.output(), self.weights(filters, self.values[x].shape[1] // sizes["groups"], *kernel)
        added = [output[0], self.zero, 0.7, 0.6, 30.0, 20.0, 255.0] if residual else []
        made = self.emit("int8.conv2d", x, *weights, residual, zero=self.zero, output=output, added=added, **sizes)
        return made, 30 if residual else output[0]

    def step(self, step: str, x: str) -> tuple[str, int]:  # noqa: PLR0912
        shape = self.values[x].shape
        width, least = int(self.rng.integers(1, 27)), min(shape[2:], default=0)
        match step:
            case "conv" | "conv1" | "dilated":
                kernel, dilation = ((1, 1), [1, 1]) if step == "conv1" else ((3, 3), [2, 2] if step == "dilated" else [1, 1])
                return self.conv(x, width, kernel, dilation=dilation, padding=[d * (k // 2) for d, k in zip(dilation, kernel, strict=True)])
            case "strided" if least > 2:
                return self.conv(x, width, (5, 3), stride=[2, 1])
            case "pooled" if least > 1:
                x, self.zero = (
                    self.emit("aten.slice.Tensor", self.emit("aten.slice.Tensor", x, 2, 0, least // 2 * 2), 3, 0, least // 2 * 2),
                    self.zero,
                )
                return self.conv(x, width, pool=True)
            case "residual":
                return self.conv(x, shape[1], residual=x)
            case "depthwise" | "depthwise5":
                kernel = (3, 3) if step == "depthwise" else (5, 5)
                return self.conv(x, shape[1], kernel, groups=shape[1], stride=[1 + int(least > 4)] * 2)
            case "grouped":
                groups = 2 - shape[1] % 2
                return self.conv(x, 5 * groups, groups=groups)
            case "add":
                other, zero = self.conv(x, shape[1])
                output = self.output()
                return self.emit("int8.add", x, other, zeros=[self.zero, zero], factors=[0.8, 0.7], output=output), output[0]
            case "gate":
                output, gate = (
                    self.output(),
                    self.emit("int8.mean", x, zero=self.zero, factor=1.7 / (shape[2] * shape[3]), output=[90, 0, 255]),
                )
                return self.emit("int8.mul", x, gate, zeros=[self.zero, 90], factor=0.02, output=output), output[0]
            case "lookup":
                return self.emit("int8.lookup", x, torch.from_numpy(self.rng.integers(0, 256, 256).astype(np.uint8)), zero=77), 77
            case "maxpool" if least > 1:
                return self.emit("int8.max_pool2d", x, [3, 3], [2, 2], [1, 1]), self.zero
            case "concat":
                return self.emit("aten.cat.default", [Value(x), Value(self._same_zero(x, 8)), Value(self._same_zero(x, 5))], 1), self.zero
            case "avgpool" if least > 1:
                output, counts = self.output(), bool(self.rng.integers(2))
                settings = {"counts_padding": counts, "zero": self.zero, "factor": 1.6, "output": output}
                return self.emit("int8.avg_pool2d", x, [3, 2], [2, 1], [1, 1], **settings), output[0]
            case "bilinear":
                size = [int(n) for n in self.rng.integers(1, 9, 2)]
                return self.emit("int8.upsample_bilinear2d", x, size, align_corners=bool(self.rng.integers(2))), self.zero
            case "transposed":
                weight, _, _ = self.weights(shape[1], width, 3, 4)
                _, bias, factor = self.weights(width, shape[1], 3, 4)
                sizes = {"stride": [2, 3], "padding": [1, 0], "output_padding": [1, 0], "output": self.output()}
                made = self.emit("int8.conv_transpose2d", x, weight, bias, factor, zero=self.zero, **sizes)
                return made, sizes["output"][0]
            case "nearest":
                return self.emit("aten.upsample_nearest2d.vec", x, [2 * side for side in shape[2:]], None), self.zero
            case "float":
                real = self.emit("aten.tanh.default", self.emit("int8.dequantize", x, scale=0.02, zero=self.zero))
                return self.emit("int8.quantize", real, scale=0.0078, zero=128), 128
            case "linear":
                weights, output = self.weights(7, int(np.prod(shape[1:]))), self.output()
                flat = self.emit("aten.reshape.default", x, [-1, int(np.prod(shape[1:]))])
                made = self.emit("int8.linear", flat, *weights, zero=self.zero, output=output)
                return self.emit("aten.unsqueeze.default", self.emit("aten.unsqueeze.default", made, 2), 3), output[0]
        return x, self.zero

    def _same_zero(self, x: str, filters: int) -> str:
        made, zero = self.conv(x, filters)
        return self.emit("int8.lookup", made, torch.arange(256).sub(zero - self.zero).clamp(0, 255).to(torch.uint8), zero=self.zero)

    def forged(self, node: Node, **changes: Any) -> Program:
        nodes = [replace(n, kwargs={**n.kwargs, **changes}) if n is node else n for n in self.program.nodes]
        return replace(self.program, nodes=tuple(nodes))

    def case(self) -> Case:
        expected = torch.cat([self.program.run(image) for image in self.images.split(1)]).numpy()
        return Case(self.program, generate(self.program), self.images.numpy(), expected)


STEPS = (
    *("conv", "conv1", "dilated", "strided", "pooled", "residual", "depthwise", "depthwise5", "grouped", "add", "gate", "lookup"),
    *("maxpool", "concat", "nearest", "float", "linear", "avgpool", "bilinear", "transposed"),
)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """All steps, over odd widths and tiny images, with weights of seven and of eight bits."""
    return [
        _Network(3, (9, 10), ["conv", "residual", "pooled", "depthwise", "concat", "conv1", "gate", "bilinear"], 0).case(),
        _Network(13, (7, 5), ["depthwise5", "lookup", "grouped", "strided", "add", "maxpool", "linear"], 1).case(),
        _Network(5, (2, 3), ["nearest", "avgpool", "transposed", "dilated", "float", "conv", "linear"], 2).case(),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("build", [b if b in ("vnni", "plain") else pytest.param(b, marks=pytest.mark.slow) for b in BUILDS])
def test_every_instruction_set(cases: list[Case], build: str, tmp_path: Path) -> None:
    command, run, needed = BUILDS[build]
    if needed not in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""):
        pytest.skip(f"this processor has no {needed}")
    cases = cases[:2] if build == "sanitized" else cases  # it compiles slowly
    for found, case in zip(answers(cases, [*command, *WARNINGS], tmp_path, run), cases, strict=True):
        assert len(np.unique(case.expected)) > 5
        np.testing.assert_array_equal(found, case.expected)


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("g++"), reason="there is no g++ for x86")
def test_avx_vnni_is_compiled(cases: list[Case], tmp_path: Path) -> None:
    """Compiled, not run: few processors have the instruction without AVX-512, for which another branch is there."""
    (tmp_path / "case.cpp").write_text(program_text([cases[2].unit]))
    command = ["g++", "-O0", "-mavx2", "-mfma", "-mavxvnni", *WARNINGS, "-std=c++17", "-S", "case.cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    assert "{vex} vpdpbusd" in (tmp_path / "case.s").read_text()


NETWORKS = st.builds(
    _Network,
    st.integers(1, 9),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.sampled_from(STEPS), min_size=1, max_size=5),
    st.integers(0, 99),
)


@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks=st.lists(NETWORKS, min_size=3, max_size=3))
def test_random_graphs(networks: list[_Network], tmp_path_factory: pytest.TempPathFactory) -> None:
    cases = [network.case() for network in networks]
    found = answers(cases, ["g++", "-O0", "-march=native"], tmp_path_factory.mktemp("graphs"))
    for y, case in zip(found, cases, strict=True):
        np.testing.assert_array_equal(y, case.expected)


class _Many(nn.Module):
    """Everything that becomes tables, products, means and concatenations of integers, and some steps in float."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(24, 6, 1)
        self.squeeze, self.up = nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(6, 5, 2, 2)
        self.tokens, self.head = nn.Linear(5, 5, bias=False), nn.Linear(5 * 16, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.a(x))
        y = F.relu6(self.b(x)) + x
        y = y * F.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        y = self.c(F.max_pool2d(torch.cat([F.silu(y), x, F.interpolate(F.avg_pool2d(y, 2), size=x.shape[2:])], 1), 2))
        y = F.interpolate(F.leaky_relu(self.up(y)), size=(5, 6), mode="bilinear")[:, :, :4, :4]
        return self.head(self.tokens(y.permute(0, 2, 3, 1)).flatten(1)).softmax(1)


@pytest.fixture(scope="module")
def quantized() -> Any:
    torch.manual_seed(0)
    return make_source(_Many().eval(), pictures(16), [1], "int8")


def test_a_quantized_file_becomes_a_program_on_integers(quantized: Any) -> None:
    """It answers as the file does without a runtime, up to few roundings to the other side, and as ONNX Runtime does."""
    program, images = quantized.single, pictures(128)
    targets = [node.target for node in program.nodes]
    assert targets.count("int8.conv2d") == 4 and targets.count("int8.linear") == 2
    whole = {f"int8.{name}" for name in ("lookup", "mul", "mean", "avg_pool2d", "conv_transpose2d", "upsample_bilinear2d")}
    assert whole < set(targets) and targets.count("int8.quantize") == 2  # of the images and of the softmax
    found = torch.cat([program.run(image) for image in images.split(1)]).numpy()
    torch.manual_seed(0)
    exact = _Many().eval()
    with torch.no_grad():
        expected = Expected(exact(images).numpy(), evaluator(onnx.load_from_string(quantized.onnx()))(images.numpy()))
    assert not expected.refusal(found)
    session = runtimes.load(Subject("int8", None, quantized.onnx(), "int8"), Deployment("cpu", "onnxruntime", 128, "int8", 1))
    others = next(iter(session.run(images.numpy()).values()))
    assert np.abs(found - others).max() <= 2 * np.abs(found - expected.exact).max()


def test_what_is_not_in_programs_is_named(quantized: Any) -> None:
    model = onnx.load_from_string(quantized.onnx())
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Hardmax"
    with pytest.raises(Unavailable, match=r"\(Hardmax\): the compiler does not have it"):
        integer_program(model, (1, 3, 8, 8))


def test_sums_beyond_32_bits_and_forged_zero_points_are_refused() -> None:
    network = _Network(3, (4, 4), ["conv"], 0)
    bias = next(name for name, tensor in network.constants.items() if tensor.dtype == torch.int32)
    node = next(node for node in network.program.nodes if node.target == "int8.conv2d")
    for program, match in (
        (replace(network.program, constants={**network.constants, bias: torch.full_like(network.constants[bias], 2**31 - 1)}), "32 bits"),
        (network.forged(node, zero=300), "300 is not between 0 and 255"),
        (network.forged(node, zero="0; abort()"), "has the argument"),
    ):
        with pytest.raises(Unavailable, match=match):
            generate(program)


@pytest.mark.slow
def test_an_engine_in_int8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(host, "candidates", only("cpp"))
    monkeypatch.setattr(host, "SCREEN_S", 0.0)
    engine = lt.compile(small(), pictures(128), batch=[1, 4], precision="int8", max_drop=100.0, tune_seconds=0)
    assert all(decision.by.startswith("generated C++") for decision in engine.decisions.values())
    engine.save(tmp_path / "small.engine")
    torch.testing.assert_close(lt.load_engine(tmp_path / "small.engine")(pictures()), engine(pictures()), rtol=0, atol=0)
