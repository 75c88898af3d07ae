"""Compiled networks that are kept in the user's cache, so that loading an engine neither generates nor compiles again.

A file is a hash of its header, that header in JSON, filled up to whole pages, and the packed weights, which are mapped into memory. Its name is a
hash of the program with the names of its weights' contents, the choices, the compiler, the processor and our own code. Names that an engine file
states are believed in reading, and checked before anything is kept under them. Weights are compared with their sum, which
finds damage ten times as fast as a hash; the folder is the user's own, as the libraries in it are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from ltcompile.core.records import cpu_name
from ltcompile.engine.content import content_name, stated_name
from ltcompile.engine.cpu import matrix, native
from ltcompile.engine.cpu.code import Array, Choice
from ltcompile.engine.cpu.native import Compiled, cache_folder
from ltcompile.errors import InvalidFile
from ltcompile.lower import serialization
from ltcompile.lower.program import Program
from ltcompile.paths import write_bytes

PAGE = 1 << 12  # bytes
MOST_BYTES = 1 << 30  # of all files; those that were read last stay


def compiled(program: Program, choices: Mapping[str, Choice], threads: int) -> Compiled:
    """The program generated and compiled, from the cache where it is there.

    Raises:
        Unavailable: an operation cannot be generated, there is no compiler, or it fails.
    """
    path = cache_folder() / "networks" / _key(program, choices, threads)
    if (found := _read(path)) is not None:
        return found
    from ltcompile.engine.cpu.generate import generate

    made = native.compiled(generate(program, choices, threads))
    if all(stated_name(tensor) in (None, content_name(tensor)) for tensor in program.constants.values()):
        with contextlib.suppress(InvalidFile, OSError):  # a full disk, or a folder that cannot be written
            _write(path, made)
    return made


def _read(path: Path) -> Compiled | None:
    """None where it is missing or damaged, or its library is gone."""
    try:
        with path.open("rb") as file:
            line = file.readline()
            digest, header = line[:64].decode(), json.loads(line[64:])
            start = -(-file.tell() // PAGE) * PAGE
        weights = np.memmap(path, np.float32, "r", start)
        library = cache_folder() / f"{header['library']}.so"
        if _hash(line[64:]) != digest or _sums(weights) != header["sums"] or not library.is_file():
            return None
        os.utime(path)
        return Compiled(library, tuple(header["headers"]), weights, header["arena_floats"], tuple(header["output_shape"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, made: Compiled) -> None:
    header = {
        "library": made.library.stem,
        "headers": made.headers,
        "arena_floats": made.arena_floats,
        "output_shape": made.output_shape,
        "sums": _sums(made.weights),
    }
    line = json.dumps(header).encode() + b"\n"
    line = _hash(line).encode() + line
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_bytes(path, line + bytes(-len(line) % PAGE) + made.weights.tobytes())
    files = sorted(((file.stat().st_mtime, file) for file in path.parent.glob("[!.]*")), reverse=True)
    total = 0
    for _, file in files:
        total += file.stat().st_size
        if total > MOST_BYTES:
            file.unlink()


def _key(program: Program, choices: Mapping[str, Choice], threads: int) -> str:
    contents = {name: stated_name(tensor) or content_name(tensor) for name, tensor in sorted(program.constants.items())}
    machine = [cpu_name(), bool(matrix.refusal()), *native.compiler(), *native.FLAGS, _code()]
    text = json.dumps([serialization.to_json(program), contents, dict(choices), threads, machine], default=dict, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _sums(weights: Array) -> list[int]:
    """The number of pairs of floats, and their sum as numbers of 64 bits."""
    numbers = weights.view(np.uint64)
    return [numbers.size, int(numbers.sum())]


@cache
def _code() -> str:
    """A hash of what generates: this package, and the plan of memory."""
    files = [
        *sorted(Path(__file__).parent.glob("*.py")),
        *sorted((Path(__file__).parent / "include").iterdir()),
        Path(__file__).parents[1] / "memory.py",
    ]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
