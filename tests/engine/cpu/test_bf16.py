"""Generated C++ with layers in bf16 equals its program up to roundings to the other side, with the processor's instruction and without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cpu_graphs import IMAGES, SANITIZED, Case, Graph, answers, graphs
from engine_support import only, pictures, small, wrong_answers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import ltcompile as lt
from ltcompile.engine import host
from ltcompile.engine.cpu import native, tuning
from ltcompile.engine.cpu.bf16 import in_bf16
from ltcompile.engine.cpu.generate import generate
from ltcompile.lower.lower import lower
from ltcompile.numerics import KERNEL_TOLERANCES, TOLERANCES, largest_error

BUILDS: dict[str, tuple[list[str], tuple[str, ...], str]] = {
    "bf16": (["g++", "-march=native"], (), "avx512_bf16"),
    "bf16, sanitized": (["g++", "-march=native", *SANITIZED], (), "avx512_bf16"),
    "avx2, sanitized": (["g++", "-mavx2", "-mfma", *SANITIZED], (), "avx2"),
    "plain, clang": (["clang++"], (), ""),
    "neon": (["aarch64-linux-gnu-g++", "-static"], ("qemu-aarch64",), ""),
}


def _case(*steps: str, channels: int = 3, size: tuple[int, int] = (9, 10), head: str = "flat", seed: int = 0) -> tuple[Case, torch.Tensor]:
    """A program with layers in bf16, and what the network answers in fp32."""
    model = Graph(channels, steps, head, size, seed).eval()
    return _of(model, torch.randn(IMAGES, channels, *size, generator=torch.Generator().manual_seed(seed)))


def _of(model: nn.Module, images: torch.Tensor) -> tuple[Case, torch.Tensor]:
    plain = lower(model, torch.randn(1, *images.shape[1:])).program
    program = in_bf16(plain)
    exact, rounded = (torch.cat([p.run(image) for image in images.split(1)]) for p in (plain, program))
    return Case(program, generate(program), images.numpy(), rounded.numpy()), exact


@pytest.fixture(scope="module")
def cases() -> list[tuple[Case, torch.Tensor]]:
    """Residuals, fused pools, odd widths, tiny images, layers in fp32 between those in bf16, and readers of both kinds."""
    return [
        _case("conv3", "residual", "depthwise", "conv1", "maxpool", "concat", "strided"),
        _case("conv1", "excite", "grouped", "in_place", "conv3", "permuted", channels=5, size=(3, 2), head="pooled"),
        _case("conv3", "residual", "conv1", size=(3, 4)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_every_instruction_set(cases: list[tuple[Case, torch.Tensor]], build: str, tmp_path: Path) -> None:
    command, run, needed = BUILDS[build]
    if needed not in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""):
        pytest.skip(f"this processor has no {needed}")
    cases = cases[2:] if "sanitized" in build else cases[:2]  # it compiles slowly
    found = answers([case for case, _ in cases], [*command, "-O0", "-Wall", "-Wextra", "-Werror"], tmp_path, run)
    for y, (case, exact) in zip(found, cases, strict=True):
        targets = [node.target for node in case.program.nodes]
        assert targets.count("mixed.conv2d") > 2 and "mixed.linear" in targets
        assert largest_error(y, case.expected) <= KERNEL_TOLERANCES["torch.bfloat16"]
        assert 1e-4 < largest_error(y, exact) <= TOLERANCES["bf16"]


def _drawn(steps: list[str], head: str, channels: int, size: tuple[int, int], seed: int) -> Case:
    return _case(*steps, channels=channels, size=size, head=head, seed=seed)[0]


@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases=st.lists(graphs(_drawn), min_size=4, max_size=4))
def test_random_graphs(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> None:
    found = answers(cases, ["g++", "-O0", "-march=native"], tmp_path_factory.mktemp("graphs"))
    assert max(largest_error(y, c.expected) for y, c in zip(found, cases, strict=True)) <= KERNEL_TOLERANCES["torch.bfloat16"]


def test_nan_and_infinity_pass_through(tmp_path: Path) -> None:
    """Through layers that store bf16, and next to channels that fill no pair."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 20, 3, padding=1), nn.MaxPool2d(2))
    images = torch.randn(IMAGES, 3, 16, 10)
    images[0, 1, 2, 3], images[1, 0, 5, 5] = float("nan"), float("inf")
    case = _of(model, images)[0]
    assert "typedef bf16 Y" in case.unit.body
    [found] = answers([case], ["g++", "-O0", "-march=native"], tmp_path)
    assert np.isnan(case.expected).any() and np.isinf(case.expected).any() and np.isfinite(case.expected).any()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(case.expected))
    np.testing.assert_array_equal(found[np.isinf(case.expected)], case.expected[np.isinf(case.expected)])
    rest = np.isfinite(case.expected)
    assert largest_error(found[rest], case.expected[rest]) <= KERNEL_TOLERANCES["torch.bfloat16"]


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_two_threads_compute_what_one_does(cases: list[tuple[Case, torch.Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case, found = cases[2][0], list[np.ndarray]()
    unit = generate(case.program, threads=2)
    for threads in (1, 2):
        library, outputs = native.Library(unit, threads), np.empty_like(case.expected[:1])
        library.run(case.images.ctypes.data, outputs.ctypes.data, 1)
        found.append(outputs)
    np.testing.assert_array_equal(*found)
    assert largest_error(found[0], case.expected[:1]) <= KERNEL_TOLERANCES["torch.bfloat16"]


@pytest.mark.slow
@pytest.mark.skipif(not host.multiplies_bf16(), reason="this processor has no bfloat16 instructions")
def test_an_engine_in_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(host, "candidates", only("cpp"))
    monkeypatch.setattr(host, "SCREEN_S", 0.0)
    model = small()
    engine = lt.compile(model, pictures(16), batch=[1], precision="bf16", tune_seconds=0)
    assert all(decision.by.startswith("generated C++") for decision in engine.decisions.values())
    assert 1e-5 < largest_error(engine(pictures()), model(pictures()).detach()) <= TOLERANCES["bf16"]
    engine.save(tmp_path / "small.engine")
    loaded = lt.load_engine(tmp_path / "small.engine")
    torch.testing.assert_close(loaded(pictures()), engine(pictures()), rtol=0, atol=0)
    assert wrong_answers(loaded, engine, threads=8, calls=25) == 0


@pytest.mark.slow
def test_tiles_of_layers_in_bf16_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = in_bf16(lower(Graph(8, ["conv3"], "none", (6, 6), 0).eval(), torch.randn(1, 8, 6, 6)).program)
    name = next(node.name for node in program.nodes if node.target == "mixed.conv2d")
    choice = tuning.tune(program, 30.0)[name]
    assert choice["block"] == 0
    generate(program, {name: choice}, 1)
