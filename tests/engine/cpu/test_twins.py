"""Layers of at most eight filters with two steps of channels side by side equal the program, in fp32, in bf16 and on integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cpu_graphs import TOLERANCE, answers, with_choices
from test_bf16 import _case
from test_generated_code import graph
from test_integers import _Network

from ltcompile.engine.cpu import tiles
from ltcompile.numerics import KERNEL_TOLERANCES, largest_error


def tilings(shape: tiles.Geometry) -> list[tiles.Tiling]:
    isa = tiles.INSTRUCTION_SETS[0]
    direct = [tiling for tiling in tiles.ranked(shape, isa, 1, (0, 1)) if tiles.twins(shape, isa)]
    return [replace(tiling, twins=True) for tiling in direct[:4]]


@pytest.mark.slow
@pytest.mark.skipif(tiles.instruction_set() != tiles.INSTRUCTION_SETS[0], reason="this processor has no AVX-512")
@pytest.mark.parametrize("compiler", ["g++", pytest.param("clang++", marks=pytest.mark.slow)])
def test_every_precision(compiler: str, tmp_path: Path) -> None:
    """Odd channels, residuals, pools, tiny images."""
    made = [
        graph(["residual", "maxpool", "residual", "conv1"], "flat", 3, (9, 8), 4),
        _case("residual", "maxpool", "residual", channels=5, size=(6, 7))[0],
        _Network(7, (6, 3), ["residual", "residual", "linear"], 5).case(),
    ]
    cases = [with_choices(case, tilings, "Twins<", pick) for pick, case in enumerate(made)]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-unused-const-variable"]
    found = answers(cases, [compiler, "-O0", "-march=native", *warnings], tmp_path)
    for y, case, tolerance in zip(found, cases, (TOLERANCE, KERNEL_TOLERANCES["torch.bfloat16"], 0.0), strict=True):
        assert largest_error(y, case.expected) <= tolerance
