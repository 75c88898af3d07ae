"""Generated C++ as a file: it checks itself, needs nothing, and says how it is called."""

from __future__ import annotations

import ast
import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ltcompile as lt
from ltcompile.engine.cpu import interface, native
from ltcompile.engine.cpu.code import aligned
from ltcompile.errors import InvalidModel, InvalidSetting, Unavailable

CLASSES = '["a cat", "\\u00e9\\"\\\\", "*/ int x;", "??/", "4", "5", "6"]'
TEXTS = {"mean": "[0.5, 0.25, 0.125]", "std": "[1, 2, 4]", "class_names": CLASSES, "origin": "x */ int y; /* \\\nz"}
USE = """#include <stdio.h>
#include "small.h"

static _Alignas(64) unsigned char scratch[SMALL_SCRATCH_BYTES];
static float image[SMALL_INPUT_FLOATS], outputs[SMALL_OUTPUT_FLOATS];

int main(void) {
  small_init(scratch);
  small_run(image, outputs, 1, scratch);
  printf("%s: %g\\n", small_classes[0], (double)outputs[0]);
  return 0;
}
"""


@pytest.fixture(scope="module")
def pruned() -> lt.Pruned:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 7)
    return lt.Pruned(nn.Sequential(*layers), torch.randn(2, 3, 8, 8), preprocessing=TEXTS)


@pytest.fixture(scope="module", autouse=True)
def quickly() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "FLAGS", ("-O0", "-march=native", "-std=c++17"))
        yield


@pytest.fixture(scope="module")
def source(pruned: lt.Pruned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if native.unavailable():
        pytest.skip("there is no C++ compiler")
    done = lt.shrink(pruned, tmp_path_factory.mktemp("cpp") / "my-net.v2.cpp")
    assert done.record["onnx_error"] <= 1e-5
    return done.path


def built(command: list[str], source: Path, run: tuple[str, ...] = (), arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    for program in (command[0], *run):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    program = source.with_suffix("")
    line = [*command, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-DMY_NET_V2_MAIN", str(source), "-o", str(program), "-lm"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    return subprocess.run([*run, str(program), *arguments], capture_output=True, text=True, check=False, cwd=source.parent)


@pytest.mark.parametrize(
    ("command", "run"),
    [
        (["g++", "-O2", "-march=native"], ()),
        pytest.param(["clang++", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], (), marks=pytest.mark.slow),
        pytest.param(["aarch64-linux-gnu-g++", "-O0", "-static"], ("qemu-aarch64",), marks=pytest.mark.slow),
    ],
    ids=["g++", "clang++", "aarch64"],
)
def test_it_checks_and_times_itself(command: list[str], run: tuple[str, ...], source: Path, tmp_path: Path) -> None:
    done = built(command, Path(shutil.copy(source, tmp_path)), run)
    assert done.returncode == 0 and "my_net_v2: 4 answers as recorded, off by " in done.stdout and done.stdout.endswith("ms an image\n")
    error = float(done.stdout.split("off by ")[1].split(" ")[0])
    assert error <= 1e-5


def with_first_weight(text: str, changed: Callable[[bytes], bytes]) -> str:
    """A source whose first line of weights is `changed`."""
    head, mark, tail = text.partition("BYTES[] =\n")
    line, rest = tail.split("\n", 1)
    return f"{head}{mark}{interface.quoted_bytes(changed(ast.literal_eval(f'b{line}')))}\n{rest}"


def test_bytes_are_exact() -> None:
    data = bytes(byte for pair in product(range(256), b"0789a?") for byte in pair)
    lines = interface.quoted_bytes(data).split("\n")
    assert b"".join(ast.literal_eval(f"b{line}") for line in lines) == data and "?" not in "".join(lines)


def test_a_wrong_weight_is_seen(source: Path, tmp_path: Path) -> None:
    (wrong := tmp_path / source.name).write_text(with_first_weight(source.read_text(), lambda data: struct.pack("<f", 9) + data[4:]))
    done = built(["g++", "-O0"], wrong)
    assert done.returncode == 1 and "WRONG" in done.stdout


@pytest.mark.slow
def test_large_weights_are_next_to_it(pruned: lt.Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "MOST_INSIDE_BYTES", 100)
    done = lt.shrink(pruned, tmp_path / "my-net.v2.cpp")
    path, weights = done.path, done.path.with_suffix(".bin")
    assert done.record["bytes"] == path.stat().st_size + weights.stat().st_size
    assert weights.stat().st_size > 1000 and path.stat().st_size < 60_000
    assert built(["g++", "-O0"], path, arguments=(str(weights),)).returncode == 0
    for data in (weights.read_bytes() + b"x", weights.read_bytes()[:-4], b""):
        weights.write_bytes(data)
        done = subprocess.run([str(path.with_suffix("")), str(weights)], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "cannot be read" in done.stderr


@pytest.mark.slow
def test_a_library_for_any_language(pruned: lt.Pruned, tmp_path: Path) -> None:
    if native.unavailable():
        pytest.skip("there is no C++ compiler")
    done = lt.shrink(pruned, tmp_path / "small.so")
    path = done.path
    assert done.record["bytes"] == path.stat().st_size + path.with_suffix(".h").stat().st_size
    header = path.with_suffix(".h").read_text()
    sizes = {line.split()[1]: int(line.split()[2]) for line in header.splitlines() if line.startswith("#define") and len(line.split()) > 2}
    assert sizes["SMALL_INPUT_FLOATS"] == 192 and sizes["SMALL_OUTPUT_FLOATS"] == 7
    library = ctypes.CDLL(str(path))
    assert list((ctypes.c_float * 3).in_dll(library, "small_mean")) == [0.5, 0.25, 0.125]
    names = [text.decode() for text in (ctypes.c_char_p * 7).in_dll(library, "small_classes")]
    assert names[:4] == ["a cat", 'é"\\', "*/ int x;", "??/"]

    def caller(seed: int) -> bool:
        """Each with scratch memory of its own."""
        images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        scratch, found = aligned(sizes["SMALL_SCRATCH_BYTES"] // 4), torch.empty(3, 7)
        with torch.no_grad():
            expected = pruned.small(images)
        library.small_init(ctypes.c_void_p(scratch.ctypes.data))
        for _ in range(50):
            run: Callable[..., None] = library.small_run
            run(*(ctypes.c_void_p(t.data_ptr()) for t in (images, found)), ctypes.c_long(3), ctypes.c_void_p(scratch.ctypes.data))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(caller, range(8)))
    (tmp_path / "use.c").write_text(USE)
    line = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", str(tmp_path / "use.c"), str(path), "-o", str(tmp_path / "use")]
    if shutil.which("gcc"):
        assert subprocess.run(line, check=False).returncode == 0 and subprocess.run([str(tmp_path / "use")], check=False).returncode == 0


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Summed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1).relu()


@pytest.mark.slow
def test_refusals(pruned: lt.Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSetting, match=r"\.cpp files compute in fp32 or bf16 or int8, not fp16; name an output that ends in \.onnx"):
        lt.shrink(pruned, tmp_path / "a.cpp", precision="fp16")
    with pytest.raises(InvalidSetting, match="fixed shapes"):
        lt.shrink(pruned, tmp_path / "a.cpp", dynamic=("batch", "height"))
    with pytest.raises(InvalidModel, match=r"takes one input of float32, not x, y; write \.onnx instead"):
        lt.shrink(lt.Pruned(Two(), (torch.randn(2, 3), torch.randn(2, 3))), tmp_path / "a.cpp")
    with pytest.raises(InvalidModel, match=r"uses aten\.cumsum\.default, which programs do not have; write \.onnx instead"):
        lt.shrink(lt.Pruned(Summed(), torch.randn(2, 3, 4, 4)), tmp_path / "a.so")
    assert not list(tmp_path.glob("a*"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.compiler.cache_clear()
    try:
        with pytest.raises(Unavailable, match="CXX=no-such-compiler is not a program here"):
            lt.shrink(pruned, tmp_path / "a.so")
    finally:
        native.compiler.cache_clear()


def test_numbers_are_exact() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.float32([0, -0.0, 1, -1, 0.5, 1e-45, 3.4e38, 16777216])])
    texts = interface.numbers(values).replace("\n", "").split(",")
    assert [np.float32(text.rstrip("f")) for text in texts] == values.tolist()
    assert interface.literal(float("nan")).startswith("__builtin_nan") and interface.literal(float("-inf")) == "-__builtin_inff()"
    assert interface.identifier("2-small.v1") == "n2_small_v1" and interface.identifier("ünet") == "_net"


@pytest.mark.slow
def test_bf16_answers_on_processors_without_its_instructions(pruned: lt.Pruned, tmp_path: Path) -> None:
    done = lt.shrink(pruned, tmp_path / "my-net.v2.cpp", precision="bf16")
    assert 0 < done.record["onnx_error"] <= done.record["tolerance"] and "vdpbf16ps" in done.path.read_text()
    for command, run in ((["g++", "-O0", "-march=native"], ()), (["aarch64-linux-gnu-g++", "-O0", "-static"], ("qemu-aarch64",))):
        answer = built(command, done.path, run)
        assert answer.returncode == 0 and "as recorded" in answer.stdout, answer.stdout + answer.stderr


@pytest.mark.slow
def test_integers_and_tuned_tiles(tmp_path: Path) -> None:
    """A map of 4,096 numbers, whose file checks itself by sums of them; int8 answers are exact on every processor."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    inputs = torch.randn(128, 3, 32, 32)
    done = lt.shrink(lt.Pruned(network, inputs[:2]), tmp_path / "my-net.v2.cpp", precision="int8", calibrate=[inputs], tune_seconds=0.1)
    assert done.path.stat().st_size < 90_000 and done.record["precision"] == "int8"
    assert done.record["onnx_error"] <= done.record["tolerance"]
    for command, run in ((["g++", "-O0", "-march=native"], ()), (["aarch64-linux-gnu-g++", "-O0", "-static"], ("qemu-aarch64",))):
        answer = built(command, done.path, run)
        assert answer.returncode == 0 and "off by 0.0e+00" in answer.stdout, answer.stdout + answer.stderr
    done.path.write_text(with_first_weight(done.path.read_text(), lambda data: bytes([(data[0] + 1) % 256]) + data[1:]))
    assert built(["g++", "-O0"], done.path).returncode == 1
