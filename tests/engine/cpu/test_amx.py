"""Layers by AMX equal the program: on integers bit by bit, in bf16 up to roundings to the other side, and read nothing outside their memory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cpu_graphs import Case, answers, with_choices
from test_bf16 import _case
from test_integers import _Network

from ltcompile.engine.cpu import matrix, native, tuning
from ltcompile.engine.cpu.convolution import tiled
from ltcompile.engine.cpu.generate import RULES, generate
from ltcompile.engine.cpu.plan import planned
from ltcompile.lower.program import Program
from ltcompile.numerics import KERNEL_TOLERANCES, largest_error

INTEGERS = [  # residuals, pools, several tiles in a row, rows as one, strides, odd widths, a linear layer of an image
    _Network(13, (8, 10), ["conv", "residual", "pooled", "linear"], 0),
    _Network(20, (8, 6), ["conv", "dilated", "strided"], 1),
    _Network(17, (5, 40), ["conv", "conv1"], 2),
]


def with_amx(case: Case, pick: int = 0, threads: int = 1) -> Case:
    return with_choices(case, lambda shape: matrix.tilings(shape, threads), "Matrix<", pick, threads)


pytestmark = pytest.mark.skipif(bool(matrix.refusal()), reason=matrix.refusal())


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", pytest.param("clang++", marks=pytest.mark.slow)])
def test_integers_are_exact_and_bf16_is_rounded(compiler: str, tmp_path: Path) -> None:
    """Each layer in one of its tilings; a page that cannot be touched follows all memory."""
    exact = [with_amx(network.case(), pick) for network, pick in zip(INTEGERS, (0, 1, 3), strict=True)]
    rounded = with_amx(_case("conv3", "residual", "conv1", "maxpool", "in_place", "strided", channels=9, size=(6, 34))[0], 2)
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-unused-const-variable", "-DUSES_AMX"]
    *found, last = answers([*exact, rounded], [compiler, "-O0", "-march=native", *warnings], tmp_path)
    for y, case in zip(found, exact, strict=True):
        assert (y == case.expected).all()
    assert largest_error(last, rounded.expected) <= KERNEL_TOLERANCES["torch.bfloat16"]


def test_two_threads_compute_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case = with_amx(INTEGERS[0].case(), threads=2)
    for threads in (1, 2):
        library, found = native.Library(case.unit, threads), torch.empty(case.expected[:1].shape)
        library.run(case.images.ctypes.data, found.data_ptr(), 1)
        assert (found.numpy() == case.expected[:1]).all()


@pytest.fixture(scope="module")
def program() -> Program:
    return _Network(32, (8, 8), ["conv"], 0).case().program


@pytest.mark.slow
def test_tuning_times_it_and_portable_code_leaves_it_out(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    [name] = [step.name for step in planned(program, RULES, {}).steps if step.layer is not None]
    measured = tuning.tune(program, 60.0)
    assert "Matrix<" not in generate(program, measured).body
    chosen = generate(program, measured, 1).body
    assert ("Matrix<" in chosen) == measured[name]["matrix"]
    assert not tuning.tune(program, 60.0, portable=True)[name]["matrix"]


@pytest.mark.parametrize("changes", [{"width": 17}, {"height": 3, "vectors": 3}, {"parts": 5}, {"parts": 0}])
def test_impossible_tilings_of_a_file_are_not_used(changes: dict[str, int], program: Program) -> None:
    [step] = [step for step in planned(program, RULES, {}).steps if step.layer is not None]
    assert step.layer is not None
    shape = tiled(step.layer.op, step.layer.inputs, step.layer.output)
    assert shape is not None
    first = matrix.tilings(shape, 1)[0]
    usual = generate(program, {}, 1).body
    assert generate(program, {step.name: {**asdict(first), **changes, "lanes": 16}}, 1).body == usual
