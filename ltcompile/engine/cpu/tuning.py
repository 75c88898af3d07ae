"""Which tiling of each dense layer is fastest on this machine, by measuring. Results are kept by processor, compiler and shape.

For each layer the model's best tilings of each kind are compiled, and timed in turns, with the layer's own memory. Where the weights of the
network do not fit into the second cache, memory of its size is read before each run, so that weights come from where they will come from.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcompile import paths
from ltcompile.core.records import cpu_name
from ltcompile.engine.cpu import matrix
from ltcompile.engine.cpu.code import Array, Choice, Code, aligned
from ltcompile.engine.cpu.convolution import Layer, tiled
from ltcompile.engine.cpu.convolution import modelled as modelled_tiling
from ltcompile.engine.cpu.generate import INCLUDE, RULES
from ltcompile.engine.cpu.native import cache_folder, compile_library, compiler, opened, version_of
from ltcompile.engine.cpu.plan import planned
from ltcompile.engine.cpu.quads import SMALL
from ltcompile.engine.cpu.tiles import Geometry, InstructionSet, Tiling, check_choices, instruction_set, ranked, twins
from ltcompile.engine.cpu.tiles import time as modelled
from ltcompile.errors import Unavailable
from ltcompile.lower.program import Program
from ltcompile.processors import processors

CANDIDATES, SLOWER = 6, 1.5  # of a layer, and how many times as slow as the best the model may find them
COMPILING = 0.75  # of the seconds
ROUNDS, RUNS = 5, 4
BETTER = 0.97  # of the time of the model's choice; less is noise
L2_FLOATS = 1 << 18

_TEXT = """
#include <time.h>
static double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}
static volatile float sink;
extern "C" double lt_time(int at, float **arrays, const float *sweep, long floats, int runs, int threads) {
  double least = 1e9;
  for (int n = 0; n < runs; n++) {
    float sum = 0;
    for (long i = 0; i < floats; i += 16) sum += sweep[i];
    sink = sum;
    const double start = now();
    works[at](arrays, threads);
    const double taken = now() - start;
    if (taken < least) least = taken;
  }
  return least;
}
"""


def tune(
    program: Program, seconds: float, threads: int = 1, on_progress: Callable[[str], None] | None = None, portable: bool = False
) -> dict[str, Choice]:
    """The measured choices of a program's dense layers, by name; those that `seconds` did not suffice for, and are not in the cache, are
    left to the model. `portable` code has tilings alone that all processors have.

    Raises:
        Unavailable: an operation cannot be generated.
    """
    isa, end = instruction_set(), time.monotonic() + seconds
    if isa is None:
        return {}
    layers = dict[str, tuple[Layer, list[str]]]()
    steps = planned(program, RULES, {}, threads).steps
    weights = sum(step.layer.op.weight.size for step in steps if step.layer)
    for step in steps:
        if step.layer is not None and tiled(step.layer.op, step.layer.inputs, step.layer.output):
            layers.setdefault(_key(step.layer, threads, weights > L2_FLOATS, portable), (step.layer, []))[1].append(step.name)
    known = {key: choice for key in layers if (choice := _read(key)) is not None}
    found = _measured(
        {key: layer for key, (layer, _) in layers.items() if key not in known},
        isa,
        threads,
        weights > L2_FLOATS,
        portable,
        end,
        on_progress,
    )
    for key, choice in found.items():
        paths.write_text(_file(key), json.dumps(choice))
    return {name: choice for key, choice in (known | found).items() if choice for name in layers[key][1]}


def modelled_choices(program: Program, threads: int = 1) -> dict[str, Choice]:
    """The model's choices of a program's dense layers, by name, so that a file need not hold more than these to be loaded fast."""
    isa, found = instruction_set(), dict[str, Choice]()
    for step in planned(program, RULES, {}, threads).steps if isa is not None else []:
        shape = tiled(step.layer.op, step.layer.inputs, step.layer.output) if step.layer is not None else None
        if isa is not None and shape is not None:
            found[step.name] = {**asdict(modelled_tiling(shape, isa, threads, False, not matrix.refusal())), "lanes": isa.lanes}
    return found


def layer_times(program: Program, choices: Mapping[str, Choice] | None = None) -> list[tuple[str, Layer, float]]:
    """(name, layer, microseconds) of each dense layer by itself, with one thread and warm caches."""
    steps = [step for step in planned(program, RULES, {}).steps if step.layer is not None]
    sweep, found = aligned(16), []
    for step in steps:
        assert step.layer is not None
        trial = _trial(step.layer, [(choices or {}).get(step.name, {})], 1)
        found.append((step.name, step.layer, 1000 * min(trial.ms(0, sweep, 1) for _ in range(ROUNDS))))
    return found


def candidates(geometry: Geometry, isa: InstructionSet, threads: int, portable: bool = True) -> list[Tiling]:
    """Tilings that are worth measuring: the model's first, then the best of each other kind, then the next ones of another size; then,
    in code for this machine alone, twins and tiles of AMX.
    """
    tilings = ranked(geometry, isa, threads)
    least = modelled(geometry, isa, tilings[0], threads)
    close = [tiling for tiling in tilings if modelled(geometry, isa, tiling, threads) <= SLOWER * least]
    kinds = {(t.block, t.parts): t for t in reversed(close)}
    sizes = {(t.block, t.parts, t.vectors, t.height * t.width // 4): t for t in reversed(close)}
    first = [t for t in close if t in kinds.values()]
    found = list(dict.fromkeys([*first, *(t for t in close if t in sizes.values())]))[:CANDIDATES]
    if portable:
        return found
    paired = [replace(tiling, twins=True) for tiling in found if not tiling.block and twins(geometry, isa)]
    return [*found, *paired, *([] if matrix.refusal() else matrix.tilings(geometry, threads))]


@dataclass(frozen=True)
class _Trial:
    """A compiled layer: its choices, the arrays of each, and the function that times them."""

    choices: list[Choice]
    arrays: list[list[NDArray[Any]]]
    function: Any

    def ms(self, at: int, sweep: Array, threads: int) -> float:
        pointers = (ctypes.c_void_p * len(self.arrays[at]))(*(array.ctypes.data for array in self.arrays[at]))
        return float(self.function(at, pointers, sweep.ctypes.data, sweep.size if sweep.size > 16 else 0, RUNS, threads)) * 1000


def _measured(
    layers: Mapping[str, Layer],
    isa: InstructionSet,
    threads: int,
    cold: bool,
    portable: bool,
    end: float,
    on_progress: Callable[[str], None] | None,
) -> dict[str, Choice]:
    """The fastest choice by key; as many layers as there is time for, the slowest by the model first."""
    shapes = {key: tiled(layer.op, layer.inputs, layer.output) for key, layer in layers.items()}
    order = sorted(shapes, key=lambda key: -modelled(shapes[key], isa, ranked(shapes[key], isa, threads)[0], threads))  # type: ignore[arg-type]
    start = time.monotonic()
    last = start + COMPILING * (end - start)

    def compiled(key: str) -> _Trial | None:
        shape = shapes[key]
        if time.monotonic() >= last or shape is None:
            return None
        try:
            tilings = candidates(shape, isa, threads, portable)
            return _trial(layers[key], [{**asdict(t), "lanes": isa.lanes} for t in tilings], threads)
        except Unavailable:
            return None

    with ThreadPoolExecutor(processors()) as pool:
        trials = {key: trial for key, trial in zip(order, pool.map(compiled, order), strict=True) if trial is not None}
    if on_progress and trials:
        on_progress(f"timing tiles of {len(trials)} of {len(layers)} layers with {threads} thread{'s' * (threads > 1)}")
    sweep = aligned(L2_FLOATS * 2 if cold else 16)
    found = dict[str, Choice]()
    for key, trial in trials.items():
        times = [[trial.ms(at, sweep, threads) for at in range(len(trial.choices))] for _ in range(ROUNDS)]
        least = np.min(times, axis=0)
        best = int(least.argmin())
        found[key] = trial.choices[best if least[best] < BETTER * least[0] else 0]
        if time.monotonic() > end:
            break
    return found


def _trial(layer: Layer, choices: Sequence[Choice], threads: int) -> _Trial:
    codes = [layer.code(choice, threads, portable=False) for choice in choices]
    library = opened(compile_library(_source(codes, [b.type for b in (*layer.inputs, layer.output)])))
    library.lt_time.restype = ctypes.c_double
    library.lt_time.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    rng = np.random.default_rng(0)
    buffers = (*layer.inputs, layer.output)
    images = [_filled(rng.standard_normal(buffer.memory, np.float32)) for buffer in buffers]
    starts = [image.view(f"u{b.bytes_each}")[b.origin :] for image, b in zip(images, buffers, strict=True)]
    arrays = [[*starts, aligned(max(code.scratch, 16)), *(_filled(a) for a in code.arrays.values())] for code in codes]
    return _Trial(list(choices), arrays, library.lt_time)


def _filled(values: Array) -> Array:
    memory = aligned(values.size)
    memory[:] = values.reshape(-1)
    return memory


def _source(codes: Sequence[Code], elements: Sequence[str]) -> str:
    """C++ that times each of several codes of one layer on arrays of pointers: inputs and output, of `elements`, scratch and constants."""
    headers = dict.fromkeys(name for code in codes for name in code.headers)
    functions = dict.fromkeys(text for code in codes for text in code.functions)
    works = []
    for at, code in enumerate(codes):
        inputs = ["in0", "in1"] if "$in1" in code.call else ["in0"]
        names = [*inputs, "out", "scratch", *code.arrays]
        types = dict.fromkeys(names, "float") | dict(zip((*inputs, "out"), elements, strict=True))
        parameters = ", ".join(f"{'' if name in ('out', 'scratch') else 'const '}{types[name]} *__restrict {name}" for name in names)
        call = code.call.replace("$", "")
        works += [
            f"static __attribute__((noinline)) void work{at}({parameters}, int begin, int end) {{ (void)scratch; {call} }}",
            f"static void run{at}(float **a, int threads) {{ work{at}({', '.join(f'({types[name]} *)a[{n}]' for n, name in enumerate(names))}, 0, "
            f"({code.items} + threads - 1) / threads); }}",
        ]
    table = f"static void (*const works[])(float **, int) = {{{', '.join(f'run{at}' for at in range(len(codes)))}}};"
    text = ["#include <math.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <string.h>"]
    return "\n".join([*text, *((INCLUDE / name).read_text() for name in headers), *functions, *works, table, _TEXT])


def _key(layer: Layer, threads: int, cold: bool, portable: bool) -> str:
    """What a measurement depends on: the layer's sizes, the machine, and our code."""
    op = layer.op
    sizes = (
        op.weight.shape,
        op.stride,
        op.padding,
        op.dilation,
        op.groups,
        op.activation,
        op.pool,
        op.residual,
        layer.inputs,
        layer.output,
        op.half,
        op.integers and (*op.integers.output, op.integers.zero, bool(op.integers.added), int(np.abs(op.weight).max()) <= SMALL),
    )
    return hashlib.sha256(
        repr((sizes, threads, cold, portable or matrix.refusal(), cpu_name(), version_of(compiler()), _code())).encode()
    ).hexdigest()[:32]


@cache
def _code() -> str:
    return hashlib.sha256(
        "".join(
            (INCLUDE / name).read_text() for name in ("vector.h", "convolution.h", "winograd.h", "bf16.h", "int8.h", "amx.h", "twins.h")
        ).encode()
    ).hexdigest()


def _file(key: str) -> Path:
    folder = cache_folder() / "tiles"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{key}.json"


def _read(key: str) -> Choice | None:
    """A measured choice from the cache; None where there is none that can be used."""
    try:
        choice = json.loads(_file(key).read_text())
        check_choices({key: choice})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return dict(choice)
