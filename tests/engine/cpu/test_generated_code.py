"""Generated C++ computes what the program does: random graphs, all operations, odd widths, tiny images, every instruction set there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpu_graphs import IMAGES, SANITIZED, TOLERANCE, Case, Graph, answers, case, graphs
from engine_support import only, pictures, small, wrong_answers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import ltcompile as lt
from ltcompile.core.notice import Notice
from ltcompile.engine import cpu, file, host
from ltcompile.engine.cpu import native
from ltcompile.engine.cpu.generate import generate
from ltcompile.errors import Unavailable
from ltcompile.lower.lower import lower
from ltcompile.lower.program import Node, Program, Value
from ltcompile.numerics import largest_error


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The compiler's libraries are kept apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


WARNINGS = ("-Wall", "-Wextra", "-Werror")


def graph(steps: list[str], head: str, channels: int, size: tuple[int, int], seed: int) -> Case:
    model = Graph(channels, steps, head, size, seed)
    return case(model, torch.randn(IMAGES, channels, *size, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases=st.lists(graphs(graph), min_size=5, max_size=5))
def test_random_graphs(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> None:
    found = answers(cases, ["g++", "-O0", "-march=native"], tmp_path_factory.mktemp("graphs"))
    assert [largest_error(y, c.expected) <= TOLERANCE for y, c in zip(found, cases, strict=True)] == [True] * len(cases)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """All operations in a few networks."""
    return [
        graph(["conv3", "residual", "maxpool", "depthwise", "excite", "strided", "attend"], "pooled", 3, (9, 8), 0),
        graph(["in_place", "moved", "dilated", "shuffle", "concat", "groups", "grouped", "padded_pool"], "flat", 2, (7, 5), 1),
        graph(["pad", "norm", "bilinear", "permuted", "arithmetic", "avgpool", "nearest"], "none", 9, (3, 4), 2),
        graph(["adaptive", "softmax", "conv1"], "flat", 1, (4, 1), 3),
    ]


BUILDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "avx-512": (["g++", "-O0", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"], ()),
    "avx2, clang": (["clang++", "-O0", "-mavx2", "-mfma"], ()),
    "avx2, sanitized": (["g++", "-O0", "-mavx2", "-mfma", *SANITIZED], ()),
    "plain": (["g++", "-O0"], ()),
    "neon": (["aarch64-linux-gnu-g++", "-O0", "-static"], ("qemu-aarch64",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", [b if b in ("avx2, clang", "plain") else pytest.param(b, marks=pytest.mark.slow) for b in BUILDS])
def test_every_instruction_set(cases: list[Case], build: str, tmp_path: Path) -> None:
    command, run = BUILDS[build]
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    needed = "avx512bw" if "512" in build else "avx2" if "avx2" in build else ""
    if needed not in flags:
        pytest.skip(f"this processor has no {needed}")
    found = answers(cases, [*command, *WARNINGS], tmp_path, run)
    errors = [largest_error(y, c.expected) for y, c in zip(found, cases, strict=True)]
    assert max(errors) <= TOLERANCE, errors


@pytest.mark.slow
def test_nan_and_infinity_pass_through(tmp_path: Path) -> None:
    """In all steps; the convolutions of the second network are Winograd's."""
    torch.manual_seed(0)
    winograd = nn.Sequential(nn.Conv2d(9, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 8, 3, padding=1), nn.MaxPool2d(2), nn.Tanh())
    cases = []
    for model, channels in ((Graph(3, ["conv3", "maxpool", "depthwise", "arithmetic"], "none", (8, 8), 4), 3), (winograd, 9)):
        images = torch.randn(IMAGES, channels, 12, 10)
        images[0, 1, 2, 3], images[1, 0, 5, 5] = float("nan"), float("inf")
        cases.append(case(model, images))
    assert "Winograd<" in cases[1].unit.body
    for found, expected in zip(answers(cases, ["g++", "-O0", "-march=native"], tmp_path), (c.expected for c in cases), strict=True):
        assert np.isnan(expected).any() and np.isfinite(expected).any()
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_array_equal(found[np.isinf(expected)], expected[np.isinf(expected)])
        rest = np.isfinite(expected)
        assert largest_error(found[rest], expected[rest]) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_images_and_the_work_of_one(threads: int, cases: list[Case]) -> None:
    """One library serves all numbers of threads."""
    first = cases[0]
    library = native.Library(generate(first.program, threads=threads), threads)
    for count in (1, 2, 5):
        images = np.ascontiguousarray(first.images[np.arange(count) % IMAGES])
        found = np.empty((count, *first.expected.shape[1:]), np.float32)
        library.run(images.ctypes.data, found.ctypes.data, count)
        assert largest_error(found, first.expected[np.arange(count) % IMAGES]) <= TOLERANCE


def test_what_cannot_be_generated_is_refused_as_a_whole() -> None:
    with pytest.raises(Unavailable, match=r"\(aten.selu.default\): the compiler does not have aten.selu.default"):
        generate(lower(nn.SELU(), torch.randn(1, 3, 4, 4)).program)


class TestForgedPrograms:
    """A program from a file becomes C++: words and shapes are checked before."""

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls) -> Program:
        return lower(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)), torch.randn(1, 3, 8, 8)).program

    def forged(self, program: Program, **changes: Any) -> Program:
        return replace(program, nodes=(replace(program.nodes[0], **changes), *program.nodes[1:]))

    @pytest.mark.parametrize("word", ['relu(v); } int x = system("reboot"); //', "relu\n#include </etc/passwd>", "a b"])
    def test_words(self, program: Program, word: str) -> None:
        with pytest.raises(Unavailable, match="has the argument"):
            generate(self.forged(program, kwargs={**program.nodes[0].kwargs, "activation": word}))

    def test_shapes(self, program: Program) -> None:
        with pytest.raises(Unavailable, match=r"computes torch.float32 \(1, 5, 6, 6\), not float32 \(1, 5, 60, 60\)"):
            generate(self.forged(program, shape=(1, 5, 60, 60)))
        with pytest.raises(Unavailable, match="cannot be computed"):
            generate(self.forged(program, kwargs={**program.nodes[0].kwargs, "stride": [0, 1]}))

    def test_sizes(self, program: Program) -> None:
        pads, shape = [1 << 20, 0, 1 << 20, 0], (1, 3, 8 + (1 << 20), 8 + (1 << 20))
        gigantic = Node("large", "aten.constant_pad_nd.default", (Value(program.input), pads, 0.0), {}, shape)
        with pytest.raises(Unavailable, match="its activations take"):
            generate(replace(program, nodes=(gigantic,), output="large"))
        with pytest.raises(Unavailable, match="does not have the images as its first dimension"):
            turned = Node("turned", "aten.transpose.int", (Value(program.input), 0, 1), {}, (3, 1, 8, 8))
            generate(replace(program, nodes=(turned,), output="turned"))


class TestCompiler:
    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        native.compiler.cache_clear()
        yield
        native.compiler.cache_clear()

    def test_a_missing_one_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(Unavailable, match="CXX=no-such-compiler is not a program here"):
            native.compiler()
        refused = cpu.candidates("fp32")[1]
        assert "CXX" in refused["generated C++"] and not any(c.runtime == "cpp" for c in cpu.candidates("fp32")[0])
        monkeypatch.setenv("CXX", "g++ -DX=1")
        native.compiler.cache_clear()
        assert native.compiler() == ("g++", "-DX=1")

    def test_what_it_says_is_passed_on(self) -> None:
        with pytest.raises(Unavailable, match=r"failed: .*error: .*nonsense"):
            native.compile_library("int f() { return nonsense; }")

    def test_equal_texts_are_compiled_once(self, tmp_path: Path) -> None:
        first = native.compile_library('extern "C" int f() { return 1; }')
        made = first.stat().st_mtime_ns
        assert native.compile_library('extern "C" int f() { return 1; }') == first and first.stat().st_mtime_ns == made
        assert native.compile_library('extern "C" int f() { return 2; }') != first
        assert sorted(p.suffix for p in first.parent.iterdir()) == [".so", ".so"]


class TestEngine:
    @pytest.fixture(scope="class")
    @classmethod
    def saved(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """An engine that decided for C++; ONNX Runtime came second."""
        path = tmp_path_factory.mktemp("engine") / "small.engine"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host, "candidates", only("cpp"))
            patch.setattr(host, "SCREEN_S", 0.0)
            lt.compile(small(), pictures(), batch=[1, 4], tune_seconds=0).save(path)
        contents = file.load(path)
        variants = [
            replace(v, decision=replace(v.decision, ms={**v.decision.ms, "onnxruntime, 1 thread": 99.0})) for v in contents.variants
        ]
        file.save(replace(contents, variants=tuple(variants)), path)
        return path

    @pytest.mark.parametrize("compiler", [True, False])
    @pytest.mark.slow
    def test_a_file_is_compiled_again_or_another_runtime_runs(
        self, saved: Path, compiler: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        if not compiler:
            monkeypatch.setenv("CXX", "no-such-compiler")
        native.compiler.cache_clear()
        notices = (
            nullcontext() if compiler else pytest.warns(Notice, match="onnxruntime, 1 thread runs batches of . instead of generated C")
        )
        try:
            with notices:
                engine = lt.load_engine(saved)
        finally:
            native.compiler.cache_clear()
        assert all(decision.by.startswith("generated C++") for decision in engine.decisions.values())
        assert bool(list(tmp_path.rglob("*.so"))) == compiler
        with torch.no_grad():
            torch.testing.assert_close(engine(pictures()), small()(pictures()), rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("threads", [2, 8])
    def test_callers_get_their_own_answers(self, saved: Path, threads: int) -> None:
        assert wrong_answers(lt.load_engine(saved), small(), threads, 800 // threads, count=3) == 0
