"""Tuned tilings compute the same, are kept by shape, and bad numbers are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from ltcompile.engine.cpu import native, tiles, tuning
from ltcompile.engine.cpu.generate import generate
from ltcompile.lower.lower import lower
from ltcompile.numerics import FP32_TOLERANCE, largest_error

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.slow
def test_tuned_networks_equal_the_program_and_are_not_measured_twice() -> None:
    torch.manual_seed(0)
    example = torch.randn(1, 8, 6, 6)
    network = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4)).eval()
    program = lower(network, example).program
    if tuning.instruction_set() is None:
        pytest.skip("the model does not have this processor's instruction set")
    assert tuning.tune(program, seconds=0) == {}
    choices = tuning.tune(program, seconds=60)
    assert choices
    start = os.listdir(native.cache_folder())
    assert tuning.tune(program, seconds=60) == choices
    assert os.listdir(native.cache_folder()) == start
    library, outputs = native.Library(generate(program, choices, threads=1)), torch.empty(1, 4)
    library.run(example.data_ptr(), outputs.data_ptr(), 1)
    assert largest_error(outputs, program.run(example)) <= FP32_TOLERANCE


def test_candidates_begin_with_the_models_choice_and_hold_each_kind_once() -> None:
    shape = tiles.Geometry(32, 32, (3, 3), (1, 1), (1, 1), (1, 1), (16, 16), 16, 16, False)
    for isa in tiles.INSTRUCTION_SETS:
        for threads in (1, 2):
            found = tuning.candidates(shape, isa, threads)
            assert found[0] == tiles.best(shape, isa, threads)
            assert len(set(found)) == len(found) <= tuning.CANDIDATES
            assert len({tiling.block for tiling in found}) > 1


def test_a_model_of_time_prefers_work_for_every_thread() -> None:
    shape = tiles.Geometry(64, 64, (3, 3), (1, 1), (1, 1), (1, 1), (4, 4), 4, 4, False)
    isa = tiles.INSTRUCTION_SETS[0]
    one, two = (tiles.time(shape, isa, tiles.best(shape, isa, threads), threads) for threads in (1, 2))
    assert 0.45 * one <= two <= 0.75 * one


@pytest.mark.parametrize("value", [-1, 1000, 2.5, "8; int x"])
def test_tilings_from_files_are_small_whole_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="not a tiling"):
        tiles.Tiling.of({"vectors": value, "height": 1, "width": 1})
