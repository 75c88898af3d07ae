"""A program for one image as one C++ translation unit: a function for each different step, and one that calls them all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ltcompile.engine.cpu import dense, movement, pointwise, pooling, reductions
from ltcompile.engine.cpu.code import Array, Choice, Code
from ltcompile.engine.cpu.plan import IMAGES, OUTPUTS, Address, Plan, planned
from ltcompile.engine.memory import Buffer as Living
from ltcompile.engine.memory import plan_memory
from ltcompile.lower.program import Program

RULES = {**dense.RULES, **pointwise.RULES, **pooling.RULES, **reductions.RULES, **movement.RULES}
INCLUDE = Path(__file__).parent / "include"
PERSISTENT_BYTES = 1 << 18  # below this all activations have memory of their own, and zeros are written once
ALIGNMENT = 16  # floats

_PROLOGUE = """#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
"""
_HEADERS = ("vector.h", "activations.h", "sweep.h")


@dataclass(frozen=True)
class Unit:
    """A translation unit without its interface: `image(weights, images, outputs, arena)` computes one image.

    `weights` is what its first argument points to; `arena_floats` is the size of its last, whose contents `clear(arena)` prepares once.
    """

    text: str
    weights: Array
    arena_floats: int
    input_floats: int
    output_floats: int
    program: Program = field(repr=False)

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def generate(program: Program, choices: Mapping[str, Choice] | None = None) -> Unit:
    """The unit of a lowered program for one image (1, ...), fp32.

    Raises:
        Unavailable: an operation cannot be generated; the message names it and says why.
    """
    plan = planned(program, RULES, choices or {})
    codes = [step.code() for step in plan.steps]
    weights, places = _placed_arrays(codes)
    memory = _Memory(plan, codes)
    functions, calls = dict[str, str](), list[str]()
    for step, code in enumerate(codes):
        calls += memory.clearing(step)
        calls.append(_call(plan.steps[step].addresses, code, functions, places[step], memory, step))
    headers = dict.fromkeys(name for names in (_HEADERS, *(code.headers for code in codes)) for name in names)
    texts = [_PROLOGUE, *((INCLUDE / name).read_text() for name in headers), *dict.fromkeys(f for code in codes for f in code.functions)]
    texts += [f"static __attribute__((noinline)) void {name}{text}" for text, name in functions.items()]
    body = "\n".join(f"  {call}" for call in calls)
    texts.append(f"static void image(const float *weights, const float *images, float *outputs, float *arena) {{\n{body}\n}}\n")
    texts.append(f"static void clear(float *arena) {{ memset(arena, 0, {memory.floats} * sizeof(float)); }}\n")
    out = int(np.prod(plan.values[program.output].shape)) if program.output in plan.values else 0
    return Unit("\n".join(texts), weights, memory.floats, int(np.prod(program.input_shape)), out, program)


def _placed_arrays(codes: Sequence[Code]) -> tuple[Array, list[dict[str, int]]]:
    """All arrays in one, each at a multiple of 64 bytes, equal ones once; the offset of each by step and name."""
    parts, places, known, size = list[Array](), list[dict[str, int]](), dict[bytes, int](), 0
    for code in codes:
        places.append({})
        for name, array in code.arrays.items():
            flat = np.ascontiguousarray(array, np.float32).reshape(-1)
            key = flat.tobytes()
            if key not in known:
                known[key] = size
                padded = -(-max(flat.size, 1) // ALIGNMENT) * ALIGNMENT
                parts.append(np.pad(flat, (0, padded - flat.size)))
                size += padded
            places[-1][name] = known[key]
    return np.concatenate(parts) if parts else np.zeros(ALIGNMENT, np.float32), places


def _call(addresses: Mapping[str, Address], code: Code, functions: dict[str, str], places: Mapping[str, int], memory: _Memory, step: int) -> str:
    """The call of a step's function, which is added to `functions` (text -> name) where it is new."""
    inputs = [name for name in addresses if name != "out"]
    parameters = [*(f"const float *__restrict {name}" for name in [*inputs, *places]), "float *__restrict out"]
    arguments = [*(memory.text(addresses[name]) for name in inputs), *(f"weights + {at}" for at in places.values()), memory.text(addresses["out"])]
    body = re.sub(r"\$(\w+)", r"\1", code.call)
    if code.scratch:
        parameters.append("float *__restrict scratch")
        arguments.append(f"arena + {memory.offsets[f'{step}.scratch']}")
    text = f"({', '.join(parameters)}) {{\n{body.strip()}\n}}\n"
    name = functions.setdefault(text, f"step{len(functions)}")
    return f"{name}({', '.join(arguments)});"


class _Memory:
    """The offset of each storage in the arena, in floats, and which of them are cleared before which step."""

    def __init__(self, plan: Plan, codes: Sequence[Code]) -> None:
        lives = dict[str, list[int]]()
        for at, step in enumerate(plan.steps):
            for address in step.addresses.values():
                if address.storage in plan.storages:
                    lives.setdefault(address.storage, [at, at])[1] = at
        sizes = {name: plan.storages[name].floats for name in lives}
        for at, code in enumerate(codes):
            if code.scratch:
                lives[f"{at}.scratch"], sizes[f"{at}.scratch"] = [at, at], code.scratch
        last = len(plan.steps)
        self._plan, self._lives = plan, lives
        self.persistent = 4 * sum(sizes.values()) <= PERSISTENT_BYTES
        placed = plan_memory([Living(n, 4 * sizes[n], 0 if self.persistent else a, last if self.persistent else b) for n, (a, b) in lives.items()])
        self.offsets = {name: offset // 4 for name, offset in placed.offsets.items()}
        self.floats = max(placed.size_bytes // 4, ALIGNMENT)
        shared = {n for n in lives for m in lives if n != m and self.offsets[n] < self.offsets[m] + sizes[m] and self.offsets[m] < self.offsets[n] + sizes[n]}
        self._shared = shared

    def text(self, address: Address) -> str:
        """An address as C++."""
        if address.storage in (IMAGES, OUTPUTS):
            return f"{address.storage} + {address.offset}" if address.offset else address.storage
        return f"arena + {self.offsets[address.storage] + address.offset}"

    def clearing(self, step: int) -> list[str]:
        """What writes zeros around the storages that are filled from this step on, where others have been in their memory."""
        found = []
        for name in sorted(n for n, (first, _) in self._lives.items() if first == step and n in self._shared and n in self._plan.storages):
            b, at = self._plan.storages[name], f"arena + {self.offsets[name]}"
            if name in self._plan.cleared:
                found.append(f"memset({at}, 0, {b.floats} * sizeof(float));")
            elif b.border:
                found.append(f"clear_border({at}, {b.height}, {b.width * b.stride}, {b.border}, {b.border * b.stride});")
        return found

