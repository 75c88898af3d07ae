"""Compile generated C++ with the machine's compiler, once for each text, compiler and processor, and call it without copies."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltcompile import paths
from ltcompile.core.records import cpu_name
from ltcompile.engine.cpu import matrix
from ltcompile.engine.cpu.code import Array, aligned
from ltcompile.errors import Unavailable

if TYPE_CHECKING:
    from ltcompile.engine.cpu.generate import Unit

FLAGS = ("-O3", "-march=native", "-std=c++17")
SHARED = ("-fPIC", "-shared")
TIMEOUT_S = 300.0

_INTERFACE = """
#define LT_EXPORT extern "C" __attribute__((visibility("default")))
enum { STEPS = sizeof SHARED / sizeof *SHARED };
struct Job {
  const float *weights, *images;
  float *outputs, *arena;
  long count;
  int threads;
};
static void some_images(void *argument, int, int n, int thread) {
  const Job &job = *static_cast<const Job *>(argument);
  for (long i = job.count * n / job.threads; i < job.count * (n + 1) / job.threads; i++) {
    image(job.weights, job.images + i * INPUT, job.outputs + i * OUTPUT, job.arena + (size_t)thread * ARENA);
  }
}
static void one_part(void *argument, int step, int n, int thread) {
  const Job &job = *static_cast<const Job *>(argument);
  part(job.weights, job.images, job.outputs, job.arena, job.arena + (size_t)thread * ARENA, step, n, job.threads);
}
LT_EXPORT void lt_clear(float *arena) { clear(arena); }
LT_EXPORT void *lt_team(int threads) { return new Team(threads); }
LT_EXPORT void lt_end(void *team) { delete static_cast<Team *>(team); }
// Threads share images where there are enough of them, and otherwise the steps of each.
LT_EXPORT void lt_run(const float *weights, const float *images, float *outputs, float *arena, long count, void *with, int threads) {
  Team *team = static_cast<Team *>(with);
  if (!team || !team->take()) {
    for (long n = 0; n < count; n++) image(weights, images + n * INPUT, outputs + n * OUTPUT, arena);
    return;
  }
  Job job = {weights, images, outputs, arena, count, threads};
  if (count >= threads) {
    const bool shared = true;
    team->run(some_images, &job, 1, &shared);
  } else {
    for (long n = 0; n < count; n++, job.images += INPUT, job.outputs += OUTPUT) team->run(one_part, &job, STEPS, SHARED);
  }
  team->release();
}
"""


def cache_folder() -> Path:
    """Where compiled networks are kept."""
    return paths.cache_folder() / "cpu"


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


def unavailable() -> str | None:
    """Why nothing can be compiled here and what to do, or None."""
    try:
        version_of(compiler())
    except Unavailable as reason:
        return str(reason)
    return None


def compile_to(source: Path, output: Path, flags: Sequence[str]) -> None:
    """Compile a file. Raises Unavailable with the compiler's first error where that fails or takes minutes."""
    command = [*compiler(), *flags, "-o", str(output), str(source), "-lm"]
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


def opened(library: Path) -> Any:
    """A library that was just compiled here."""
    return ctypes.CDLL(str(library))


@dataclass(frozen=True)
class Compiled:
    """What a `shared` unit needs to run: the library that it was compiled to, its headers, packed weights and sizes."""

    library: Path
    headers: tuple[str, ...]
    weights: Array
    arena_floats: int
    output_shape: tuple[int, ...]


def compiled(unit: Unit) -> Compiled:
    """Raises Unavailable where there is no compiler, or it fails."""
    return Compiled(compile_library(unit.text + _INTERFACE), unit.headers, unit.weights, unit.arena_floats, unit.output_shape)


class Library:
    """A compiled unit, loaded. Any number of threads may call `run`: each has an arena of its own, and one the team of threads.

    Raises:
        Unavailable: the unit has to be compiled, and there is no compiler, or it fails; or this process cannot use AMX, and the unit does.
    """

    def __init__(self, unit: Unit | Compiled, threads: int = 1) -> None:
        if "amx.h" in unit.headers and (reason := matrix.refusal()):
            raise Unavailable(reason)
        self.unit = unit if isinstance(unit, Compiled) else compiled(unit)
        self.threads, self._pointer = threads, self.unit.weights.ctypes.data
        code = opened(self.unit.library)
        self._run, self._clear = code.lt_run, code.lt_clear
        self._run.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long, ctypes.c_void_p, ctypes.c_int]
        self._run.restype = self._clear.restype = None
        self._clear.argtypes = [ctypes.c_void_p]
        self._idle: list[tuple[int, NDArray[np.float32]]] = []
        self._team, self._process = None, os.getpid()
        if threads > 1:
            code.lt_team.restype, code.lt_end.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            self._team = code.lt_team(threads)
            weakref.finalize(self, _end, code, self._team, self._process)

    def run(self, images: int, outputs: int, count: int) -> None:
        """Compute `count` images: addresses of contiguous float32."""
        try:
            arena = self._idle.pop()
        except IndexError:
            memory = aligned(self.threads * self.unit.arena_floats)
            arena = memory.ctypes.data, memory
            for thread in range(self.threads):
                self._clear(arena[0] + 4 * thread * self.unit.arena_floats)
        team = self._team if os.getpid() == self._process else None  # a forked process has no threads
        self._run(self._pointer, images, outputs, arena[0], count, team, self.threads)
        self._idle.append(arena)


def _end(code: Any, team: int, process: int) -> None:
    if os.getpid() == process:
        code.lt_end(team)
