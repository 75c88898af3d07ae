"""Compile generated C++ with the machine's compiler, once for each text, compiler and processor, and call it without copies."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcompile.core.records import cpu_name
from ltcompile.engine.cpu.generate import Unit
from ltcompile.errors import Unavailable

FLAGS = ("-O3", "-march=native", "-std=c++17")
SHARED = ("-fPIC", "-shared")
TIMEOUT_S = 300.0

_INTERFACE = """
extern "C" {
__attribute__((visibility("default"))) void lt_clear(float *arena) { clear(arena); }
__attribute__((visibility("default"))) void lt_run(const float *weights, const float *images, float *outputs, float *arena, long count) {
  for (long n = 0; n < count; n++) image(weights, images + n * INPUT, outputs + n * OUTPUT, arena);
}
}
"""


def cache_folder() -> Path:
    """Where compiled networks are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ltcompile" / "cpu"


@cache
def compiler() -> tuple[str, ...]:
    """The C++ compiler as the start of a command: that of the environment variable CXX, g++ or clang++. Raises Unavailable."""
    if named := os.environ.get("CXX"):
        command = tuple(shlex.split(named))
        if command and shutil.which(command[0]):
            return command
        raise Unavailable(f"CXX={named} is not a program here; set it to a C++ compiler, or unset it")
    for name in ("g++", "clang++"):
        if found := shutil.which(name):
            return (found,)
    raise Unavailable("there is no C++ compiler; install g++ (apt install g++), or set CXX to one")


@cache
def version_of(command: tuple[str, ...]) -> str:
    """The first line of a compiler's --version. Raises Unavailable where it does not run."""
    try:
        return subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise Unavailable(f"{shlex.join(command)} does not run: {error}; set CXX to a C++ compiler") from error


def compile_to(source: Path, output: Path, flags: Sequence[str], command: Sequence[str] | None = None) -> None:
    """Compile a file. Raises Unavailable with the compiler's first error where that fails or takes minutes."""
    command = [*(command or compiler()), *flags, "-o", str(output), str(source), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took more than {TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise Unavailable(f"{command[0]} does not run: {error}; set CXX to a C++ compiler") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise Unavailable(f"{command[0]} failed: {next((line for line in lines if 'error' in line), lines[-1])}")


def compile_library(text: str) -> Path:
    """The shared library of a translation unit, from the cache where it is there; atomic, so that several processes may do it at once.

    Raises:
        Unavailable: there is no compiler, or it fails.
    """
    command = compiler()
    key = hashlib.sha256("\0".join([text, version_of(command), cpu_name(), *command, *FLAGS]).encode()).hexdigest()[:32]
    folder = cache_folder()
    library = folder / f"{key}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix="making-", dir=folder) as making:
            source = Path(making) / "network.cpp"
            source.write_text(text)
            compile_to(source, made := Path(making) / "network.so", (*FLAGS, *SHARED))
            os.replace(made, library)
    except OSError as error:
        raise Unavailable(f"cannot write {folder}: {error}; set XDG_CACHE_HOME to a folder that can be written") from error
    return library


class Library:
    """A unit, compiled and loaded; `run` may be called by any number of threads, each of which has an arena of its own."""

    def __init__(self, unit: Unit) -> None:
        sizes = f"enum {{ INPUT = {unit.input_floats}, OUTPUT = {unit.output_floats} }};\n"
        self.unit, self._weights = unit, _aligned(unit.weights.size)
        self._weights[:] = unit.weights
        self._code: Any = ctypes.CDLL(str(compile_library(unit.text + sizes + _INTERFACE)))
        self._code.lt_run.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long]
        self._code.lt_run.restype = self._code.lt_clear.restype = None
        self._code.lt_clear.argtypes = [ctypes.c_void_p]
        self._idle: list[NDArray[np.float32]] = []

    def run(self, images: NDArray[np.float32], outputs: NDArray[np.float32]) -> None:
        """Fill `outputs` for contiguous float32 images."""
        try:
            arena = self._idle.pop()
        except IndexError:
            arena = _aligned(self.unit.arena_floats)
            self._code.lt_clear(arena.ctypes.data)
        self._code.lt_run(self._weights.ctypes.data, images.ctypes.data, outputs.ctypes.data, arena.ctypes.data, len(images))
        self._idle.append(arena)


def _aligned(floats: int) -> NDArray[np.float32]:
    """Memory that starts at a multiple of 64 bytes."""
    memory = np.zeros(floats + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + floats]
