"""Generated C++ with layers in bf16 equals its program up to roundings to the other side, with the processor's instruction and without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cpu_graphs import Case, Graph, answers
from engine_support import only, pictures, small

import ltcompile as lt
from ltcompile.engine import host
from ltcompile.engine.cpu import native, tuning
from ltcompile.engine.cpu.bf16 import in_bf16
from ltcompile.engine.cpu.generate import generate
from ltcompile.lower.lower import lower
from ltcompile.numerics import KERNEL_TOLERANCES, TOLERANCES, largest_error

BUILDS: dict[str, tuple[list[str], tuple[str, ...], str]] = {
    "bf16": (["g++", "-march=native"], (), "avx512_bf16"),
    "avx2, clang, sanitized": (["clang++", "-mavx2", "-mfma", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], (), "avx2"),
    "plain": (["g++"], (), ""),
    "neon": (["aarch64-linux-gnu-g++", "-static"], ("qemu-aarch64",), ""),
}


def _case(*steps: str, channels: int = 3, size: tuple[int, int] = (9, 10), head: str = "flat") -> tuple[Case, torch.Tensor]:
    """A program with layers in bf16, and what the network answers in fp32."""
    model, images = Graph(channels, steps, head, size, 0).eval(), torch.randn(2, channels, *size)
    plain = lower(model, images[:1]).program
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


@pytest.mark.skipif(not host.multiplies_bf16(), reason="this processor has no bfloat16 instructions")
def test_an_engine_in_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "FLAGS", ("-O0", "-march=native", "-std=c++17"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(host, "candidates", only("cpp"))
    monkeypatch.setattr(host, "SCREEN_S", 0.0)
    model = small()
    engine = lt.compile(model, pictures(16), batch=[1], precision="bf16", tune_seconds=0)
    assert all(decision.by.startswith("generated C++") for decision in engine.decisions.values())
    assert 1e-5 < largest_error(engine(pictures()), model(pictures()).detach()) <= TOLERANCES["bf16"]
    engine.save(tmp_path / "small.engine")
    torch.testing.assert_close(lt.load_engine(tmp_path / "small.engine")(pictures()), engine(pictures()), rtol=0, atol=0)


def test_tiles_of_layers_in_bf16_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = in_bf16(lower(Graph(8, ["conv3"], "none", (6, 6), 0).eval(), torch.randn(1, 8, 6, 6)).program)
    name = next(node.name for node in program.nodes if node.target == "mixed.conv2d")
    choice = tuning.tune(program, 30.0)[name]
    assert choice["block"] == 0
    generate(program, {name: choice}, 1)
