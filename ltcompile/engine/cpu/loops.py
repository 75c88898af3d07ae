"""C++ loops over strided memory: elementwise functions of any number of operands, with vectors over the innermost dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Strides = Sequence[int]
WORTH_SHARING = 1 << 14  # floats: some microseconds of work


@dataclass(frozen=True)
class Loops:
    """The loops around an innermost one of `size` elements: `opening` text, the turns of the outermost, and the offset of each operand inside."""

    opening: str
    turns: int
    offsets: list[str]
    size: int
    inner: list[int]  # stride of each operand in the innermost loop


def nest(shape: Sequence[int], strides: Sequence[Strides], innermost: int | None = None) -> Loops:
    """Loops over `shape` in the order of the first operand's strides, neighbouring dimensions merged where all operands allow it.

    `innermost` is the dimension of the innermost loop; it is not merged with others. By default it is that of the smallest stride.
    """
    dims = [(size, [s[d] for s in strides], d == innermost) for d, size in enumerate(shape) if size > 1 or d == innermost]
    dims.sort(key=lambda dim: (dim[2], -dim[1][0]))
    merged: list[tuple[int, list[int], bool]] = []
    for size, steps, fixed in dims:
        if merged and not fixed and all(outer == step * size for outer, step in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps, False)
        else:
            merged.append((size, steps, fixed))
    *outer, (size, inner, _) = merged or [(1, [1] * len(strides), False)]
    opening = "".join(f"for (int i{at} = 0; i{at} < {count}; i{at}++) " for at, (count, _, _) in enumerate(outer))
    offsets = [" + ".join(f"i{at} * {steps[n]}" for at, (_, steps, _) in enumerate(outer) if steps[n]) or "0" for n in range(len(strides))]
    return Loops(opening, outer[0][0] if outer else 1, offsets, size, inner)


def elementwise(
    shape: Sequence[int],
    out: Strides,
    inputs: Sequence[Strides],
    expression: str,
    *,
    innermost: int | None = None,
    padded: int = 0,
    integers: Sequence[bool] | None = None,
) -> tuple[str, str]:
    """out[i] = expression of x0[i], x1[i], ... for all i, on scalars and on vectors, as C++ and the items that threads may share.

    Args:
        shape: of the output; inputs that are broadcast have strides of 0.
        out, inputs: strides in floats.
        expression: C++, of x0, x1, ...
        innermost: the dimension of channels where zeros follow them; then `padded` counts channels and zeros.
        integers: whether the output and each input consist of bytes; in the expression they are int32.
    """
    loops = nest(shape, [out, *inputs], innermost)
    at, *sources = loops.offsets
    values = [f"in{n} + {offset}" for n, offset in enumerate(sources)]
    to_bytes, *are_bytes = integers or [False] * (1 + len(inputs))
    if loops.inner[0] == 1 and all(step in (0, 1) for step in loops.inner[1:]):
        names = [("widen<L>({})", "Ints<L>{{}} + *({})") if b else ("load<L>({})", "all<L>(*({}))") for b in are_bytes]
        loads = [n[0].format(f"{v} + c") if step else n[1].format(v) for n, v, step in zip(names, values, loops.inner[1:], strict=True)]
        body = "".join(f"const auto x{n} = {text}; " for n, text in enumerate(loads))
        store = "narrow" if to_bytes else "store"
        body = f"{{ constexpr int L = decltype(width)::value; {body}{store}<L>(out + {at} + c, {expression}); }}"
        inner = f"sweep<{loops.size}>([&](auto width, int c) {body});"
    else:
        kinds = ["int32_t" if b else "float" for b in are_bytes]
        body = "".join(
            f"const {k} x{n} = *({v} + c * {s}); " for n, (k, v, s) in enumerate(zip(kinds, values, loops.inner[1:], strict=True))
        )
        to = f"out + {at} + c * {loops.inner[0]}"
        store = f"narrow<1>({to}, {expression});" if to_bytes else f"*({to}) = {expression};"
        inner = f"for (int c = 0; c < {loops.size}; c++) {{ enum {{ L = 1 }}; {body}{store} }}"
    if padded > loops.size:
        inner += f" for (int c = {loops.size}; c < {padded}; c++) out[{at} + c] = 0.0f;"
    opening = loops.opening.replace(f"i0 = 0; i0 < {loops.turns};", "i0 = $begin; i0 < $end;", 1)
    return shared(f"{opening}{{ {inner} }}", loops.turns, prod(shape))


def shared(text: str, turns: int, floats: int) -> tuple[str, str]:
    """A loop from `$begin` to `$end`, and its items: one by one where threads gain from sharing it, for it fills many floats."""
    if floats >= WORTH_SHARING and turns > 1:
        return text, str(turns)
    return text.replace("$begin", "0").replace("$end", str(turns)), "1"
