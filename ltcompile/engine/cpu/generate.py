"""A program for one image as one C++ translation unit: a function for each different step, and one that calls them all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ltcompile.engine.cpu import dense, integers, movement, pointwise, pooling, reductions
from ltcompile.engine.cpu.code import Array, Choice, Code, aligned
from ltcompile.engine.cpu.plan import IMAGES, OUTPUTS, Address, Plan, planned
from ltcompile.engine.memory import Buffer as Living
from ltcompile.engine.memory import plan_memory
from ltcompile.errors import Unavailable
from ltcompile.lower.program import Program

RULES = {**dense.RULES, **pointwise.RULES, **pooling.RULES, **reductions.RULES, **movement.RULES, **integers.RULES}
INCLUDE = Path(__file__).parent / "include"
PERSISTENT_BYTES = 1 << 18  # below this all activations have memory of their own, and zeros are written once
ALIGNMENT = 16  # floats
SMALL = 1 << 14  # floats of an array that is compared with others
MOST_FLOATS = 1 << 30  # in an arena: generated code counts in int

PROLOGUE = """#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
"""
HEADERS = ("vector.h", "activations.h", "sweep.h")


@dataclass(frozen=True)
class Unit:
    """A translation unit without its interface.

    `body` defines `image(weights, images, outputs, arena)`, which computes one image; where it is `shared`, `part(..., own, step, part,
    parts)`, a part of one step of that, with an arena of its `own`, and SHARED, whether a step has several parts; `clear(arena)`, which
    prepares an arena once; and the enum INPUT, OUTPUT and ARENA, in floats.
    """

    headers: tuple[str, ...]
    body: str
    weights: Array
    arena_floats: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    shared: bool

    @property
    def text(self) -> str:
        return with_headers(self.headers) + self.body


def with_headers(names: Sequence[str]) -> str:
    """The start of a translation unit: files of include/, in which those of the system come first."""
    return PROLOGUE + "\n".join((INCLUDE / name).read_text() for name in names)


def generate(program: Program, choices: Mapping[str, Choice] | None = None, threads: int = 0) -> Unit:
    """The unit of a lowered program for one image (1, ...), fp32, whose `choices` say by name how a step is computed.

    With `threads`, up to so many may compute one image together, and its tiles are those of this machine.

    Raises:
        Unavailable: an operation cannot be generated; the message names it and says why.
    """
    plan = planned(program, RULES, choices or {}, max(threads, 1), portable=threads == 0)
    if plan.output_shape[:1] != (1,):
        raise Unavailable(f"its output {plan.output_shape} does not have the images as its first dimension")
    codes = [step.code() for step in plan.steps]
    weights, places = _placed_arrays(codes)
    memory = _Memory(plan, codes)
    if memory.floats > MOST_FLOATS:
        raise Unavailable(f"its activations take {4 * memory.floats:,} bytes")
    functions = dict[str, str]()
    calls = [_call(plan.steps[at].addresses, code, functions, places[at], memory, at) for at, code in enumerate(codes)]
    sizes = {"INPUT": prod(program.input_shape), "OUTPUT": prod(plan.output_shape), "ARENA": memory.floats}
    headers = dict.fromkeys([*HEADERS, *(name for code in codes for name in code.headers), *(["threads.h"] if threads else [])])
    texts = [
        f"enum {{ {', '.join(f'{name} = {size}' for name, size in sizes.items())} }};",
        *dict.fromkeys(text for code in codes for text in code.functions),
        *(f"static __attribute__((noinline)) void {name}{text}" for text, name in functions.items()),
        _image(calls),
        *([_part(calls)] if threads else []),
        "\n  ".join(["static void clear(float *arena) {", "memset(arena, 0, ARENA * sizeof(float));", *memory.fills(), "}"]),
    ]
    return Unit(tuple(headers), "\n".join(texts) + "\n", weights, memory.floats, program.input_shape, plan.output_shape, threads > 0)


def _placed_arrays(codes: Sequence[Code]) -> tuple[Array, list[dict[str, int]]]:
    """All arrays in one, each at a multiple of 64 bytes, small ones that are equal once; the offset of each by step and name."""
    parts, places, known, size = dict[int, Array](), list[dict[str, int]](), dict[bytes, int](), 0
    for code in codes:
        places.append({})
        for name, array in code.arrays.items():
            flat = np.ascontiguousarray(array).view(np.float32).reshape(-1)
            key = flat.tobytes() if flat.size <= SMALL else b""
            at = places[-1][name] = known.get(key, size) if key else size
            if at == size:
                parts[at] = flat
                size += -(-max(flat.size, 1) // ALIGNMENT) * ALIGNMENT
                known[key] = at
    weights = aligned(max(size, ALIGNMENT))
    for at, flat in parts.items():
        weights[at : at + flat.size] = flat
    return weights, places


@dataclass(frozen=True)
class _Called:
    """A step as C++: what comes before it, its call as far as the pieces of work, and the number of these."""

    before: list[str]
    call: str
    items: str


def _call(
    addresses: Mapping[str, Address], code: Code, functions: dict[str, str], places: Mapping[str, int], memory: _Memory, step: int
) -> _Called:
    """The call of a step's function, which is added to `functions` (text -> name) where it is new."""
    inputs, shared = [name for name in addresses if name != "out"], code.items != "1"
    parameters = [f"const {memory.type_of(addresses.get(name))} *__restrict {name}" for name in [*inputs, *places]]
    parameters.append(f"{memory.type_of(addresses['out'])} *__restrict out")
    arguments = [
        *(memory.text(addresses[name]) for name in inputs),
        *(f"weights + {at}" for at in places.values()),
        memory.text(addresses["out"]),
    ]
    body = re.sub(r"\$(\w+)", r"\1", code.call).strip()
    if code.scratch:
        parameters.append("float *__restrict scratch")
        arguments.append(f"own + {memory.offsets[f'{step}.scratch']}")
    text = f"({', '.join([*parameters, *(['int begin', 'int end'] if shared else [])])}) {{\n{body}\n}}\n"
    name = functions.setdefault(text, f"step{len(functions)}")
    return _Called(memory.clearing(step), f"{name}({', '.join(arguments)}", code.items)


_ARGUMENTS = "const float *weights, const float *images, float *outputs, float *arena"


def _image(calls: Sequence[_Called]) -> str:
    """All steps one after the other."""
    lines = [line for c in calls for line in (*c.before, f"{c.call}{'' if c.items == '1' else f', 0, {c.items}'});")]
    own = "  float *const own = arena;\n" if any("own +" in line for line in lines) else ""
    unused = "" if any("weights" in line for line in lines) else "  (void)weights;\n"
    return f"static void image({_ARGUMENTS}) {{\n{own}{unused}" + "".join(f"  {line}\n" for line in lines) + "}"


def _part(calls: Sequence[_Called]) -> str:
    """`part`, which computes one of `parts` of a step; SHARED says which steps have several."""
    steps = list[tuple[list[str], bool]]()
    for c in calls:
        alone = [*c.before, *([f"{c.call});"] if c.items == "1" else [])]
        if alone and steps and not steps[-1][1]:
            steps[-1][0].extend(alone)
        elif alone:
            steps.append((alone, False))
        if c.items != "1":
            steps.append(([f"{c.call}, {c.items} * part / parts, {c.items} * (part + 1) / parts);"], True))
    cases = "".join(f"    case {at}:\n" + "".join(f"      {line}\n" for line in (*lines, "break;")) for at, (lines, _) in enumerate(steps))
    return (
        f"static const bool SHARED[] = {{{', '.join(str(int(shared)) for _, shared in steps)}}};\n"
        f"static void part({_ARGUMENTS}, float *own, int step, int part, int parts) {{\n  (void)weights, (void)own, (void)part, (void)parts;\n"
        f"  switch (step) {{\n{cases}  }}\n}}"
    )


class _Memory:
    """The offset of each storage in the arena, in floats, and which of them are cleared before which step."""

    def __init__(self, plan: Plan, codes: Sequence[Code]) -> None:
        lives = dict[str, list[int]]()
        for at, step in enumerate(plan.steps):
            for address in step.addresses.values():
                if address.storage in plan.storages:
                    lives.setdefault(address.storage, [at, at])[1] = at
        sizes = {name: plan.storages[name].memory for name in lives}
        for at, code in enumerate(codes):
            if code.scratch:
                lives[f"{at}.scratch"], sizes[f"{at}.scratch"] = [at, at], code.scratch
        last = len(plan.steps)
        self._plan, self._lives = plan, lives
        self.persistent = 4 * sum(sizes.values()) <= PERSISTENT_BYTES
        placed = plan_memory(
            [Living(n, 4 * sizes[n], 0 if self.persistent else a, last if self.persistent else b) for n, (a, b) in lives.items()]
        )
        self.offsets = {name: offset // 4 for name, offset in placed.offsets.items()}
        self.floats = max(placed.size_bytes // 4, ALIGNMENT)
        spans = {name: (start, start + sizes[name]) for name, start in self.offsets.items()}
        shared = {n for n, (a, b) in spans.items() if any(a < d and c < b for m, (c, d) in spans.items() if m != n)}
        self._shared = shared

    def text(self, address: Address) -> str:
        """An address as C++."""
        if address.storage in (IMAGES, OUTPUTS):
            return f"{address.storage} + {address.offset}" if address.offset else address.storage
        if address.type != "float":
            return f"({address.type} *)(arena + {self.offsets[address.storage]}) + {address.offset}"
        return f"arena + {self.offsets[address.storage] + address.offset}"

    @staticmethod
    def type_of(address: Address | None) -> str:
        """What an address points to; constants are floats."""
        return address.type if address is not None else "float"

    def fills(self) -> list[str]:
        """What fills the borders that no step clears, and which are not zero."""
        return [
            self._border(name)
            for name in sorted(self._lives)
            if name not in self._shared
            and name in self._plan.storages
            and self._plan.storages[name].zero
            and self._plan.storages[name].border
        ]

    def _border(self, name: str) -> str:
        b, at = self._plan.storages[name], f"arena + {self.offsets[name]}"
        size = b.stride * b.bytes_each
        return f"clear_border({at}, {b.height}, {size * b.width}, {b.border}, {size * b.border}, {b.zero or 0});"

    def clearing(self, step: int) -> list[str]:
        """What writes zeros around the storages that are filled from this step on, where others have been in their memory."""
        found = []
        for name in sorted(n for n, (first, _) in self._lives.items() if first == step and n in self._shared and n in self._plan.storages):
            b, at = self._plan.storages[name], f"arena + {self.offsets[name]}"
            if name in self._plan.cleared:
                found.append(f"memset({at}, 0, {b.memory} * sizeof(float));")
            elif b.border:
                found.append(self._border(name))
        return found
