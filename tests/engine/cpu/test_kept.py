"""Compiled networks are read from the user's cache when they are loaded again, and made again where a file there is not what was written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ltcompile.engine.content import content_name, state
from ltcompile.engine.cpu import kept, native
from ltcompile.lower.lower import lower
from ltcompile.lower.program import Program
from ltcompile.numerics import FP32_TOLERANCE, largest_error

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 17, 3, padding=1), nn.Flatten(), nn.Linear(17 * 64, 5)
    return lower(nn.Sequential(*layers).eval(), IMAGE).program


@pytest.fixture(scope="module")
def libraries(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the program's libraries, for one thread and for two."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for threads in (1, 2):
            kept.compiled(program, {}, threads)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With libraries, which take seconds, and no networks."""
    shutil.copytree(libraries, tmp_path, ignore=shutil.ignore_patterns("networks"), dirs_exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def files() -> list[Path]:
    return sorted((native.cache_folder() / "networks").iterdir())


def error(program: Program, made: native.Compiled) -> float:
    outputs = torch.empty(1, 5)
    native.Library(made).run(IMAGE.data_ptr(), outputs.data_ptr(), 1)
    return largest_error(outputs, program.run(IMAGE))


def was_read(made: native.Compiled) -> bool:
    return isinstance(made.weights, np.memmap)


def test_a_second_load_reads_what_the_first_made(program: Program) -> None:
    first, second = (kept.compiled(program, {}, 1) for _ in range(2))
    assert not was_read(first) and was_read(second) and second.weights.ctypes.data % 64 == 0
    np.testing.assert_array_equal(first.weights, second.weights)
    assert first.library == second.library and error(program, second) <= FP32_TOLERANCE
    name, weight = next(iter(program.constants.items()))
    changed = replace(program, constants={**program.constants, name: weight + 1})
    for other in (kept.compiled(changed, {}, 1), kept.compiled(program, {}, 2)):
        assert not was_read(other)
    assert error(changed, kept.compiled(changed, {}, 1)) <= FP32_TOLERANCE < error(program, kept.compiled(changed, {}, 1))
    assert len(files()) == 3


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[:-64],
    lambda data: data + bytes(64),
    lambda data: data[:-4] + b"\0\0\x80\x3f",
    lambda data: b"{}\n" + data,
    lambda data: b"",
    lambda data: data.replace(b'"arena_floats": ', b'"arena_floats": 1'),
]


def test_damaged_files_are_made_again(program: Program) -> None:
    kept.compiled(program, {}, 1)
    [file] = files()
    whole = file.read_bytes()
    for damage in DAMAGES:
        assert damage(whole) != whole
        file.write_bytes(damage(whole))
        again = kept.compiled(program, {}, 1)
        assert not was_read(again) and error(program, again) <= FP32_TOLERANCE
        assert file.read_bytes() == whole and was_read(kept.compiled(program, {}, 1))


def test_names_that_a_file_states_save_hashes_and_keep_nothing_false(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.compiled(program, {}, 1)

    def from_file(change: float = 0.0) -> Program:
        return replace(program, constants={key: state(t + change, content_name(t)) for key, t in program.constants.items()})

    hashed: list[object] = []
    monkeypatch.setattr(kept, "content_name", lambda tensor: hashed.append(tensor) or content_name(tensor))
    assert was_read(kept.compiled(from_file(), {}, 1)) and not hashed, "the key is that of a program whose names are computed"
    lying = from_file(change=1.0)
    made = kept.compiled(lying, {}, 2)
    assert error(lying, made) <= FP32_TOLERANCE and hashed and len(files()) == 1, "what lies is compiled, and not kept"
    with torch.inference_mode():
        assert was_read(kept.compiled(from_file(), {}, 1)), "tensors of inference mode have no versions: they are hashed"
    changed = from_file()
    next(iter(changed.constants.values())).add_(1)
    assert not was_read(again := kept.compiled(changed, {}, 1)) and error(changed, again) <= FP32_TOLERANCE


@pytest.mark.slow
def test_a_missing_library_is_compiled_again(program: Program) -> None:
    kept.compiled(program, {}, 1).library.unlink()
    again = kept.compiled(program, {}, 1)
    assert not was_read(again) and again.library.is_file()


def test_nothing_is_kept_where_nothing_can_be_written(program: Program) -> None:
    (native.cache_folder() / "networks").write_text("not a folder")
    assert error(program, kept.compiled(program, {}, 1)) <= FP32_TOLERANCE


def test_what_was_not_read_for_the_longest_time_goes(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.compiled(program, {}, 1)
    [first] = files()
    monkeypatch.setattr(kept, "MOST_BYTES", first.stat().st_size * 3 // 2)
    kept.compiled(program, {}, 2)
    assert len(files()) == 1 and files() != [first]
