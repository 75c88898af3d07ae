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
    shape: Sequence[int], out: Strides, inputs: Sequence[Strides], expression: str, *, innermost: int | None = None, padded: int = 0
) -> tuple[str, str]:
    """out[i] = expression of x0[i], x1[i], ... for all i, on scalars and on vectors, as C++ and the items that threads may share.

    Args:
        shape: of the output; inputs that are broadcast have strides of 0.
        out, inputs: strides in floats.
        expression: C++, of x0, x1, ...
        innermost: the dimension of channels where zeros follow them; then `padded` counts channels and zeros.
    """
    loops = nest(shape, [out, *inputs], innermost)
    at, *sources = loops.offsets
    values = [f"in{n} + {offset}" for n, offset in enumerate(sources)]
    if loops.inner[0] == 1 and all(step in (0, 1) for step in loops.inner[1:]):
        loads = [f"load<L>({v} + c)" if step else f"all<L>(*({v}))" for v, step in zip(values, loops.inner[1:], strict=True)]
        body = "".join(f"const Vector<L> x{n} = {text}; " for n, text in enumerate(loads))
        body = f"{{ constexpr int L = decltype(width)::value; {body}store<L>(out + {at} + c, {expression}); }}"
        inner = f"sweep<{loops.size}>([&](auto width, int c) {body});"
    else:
        body = "".join(f"const float x{n} = *({v} + c * {step}); " for n, (v, step) in enumerate(zip(values, loops.inner[1:], strict=True)))
        inner = f"for (int c = 0; c < {loops.size}; c++) {{ enum {{ L = 1 }}; {body}out[{at} + c * {loops.inner[0]}] = {expression}; }}"
    if padded > loops.size:
        inner += f" for (int c = {loops.size}; c < {padded}; c++) out[{at} + c] = 0.0f;"
    opening = loops.opening.replace(f"i0 = 0; i0 < {loops.turns};", "i0 = $begin; i0 < $end;", 1)
    return shared(f"{opening}{{ {inner} }}", loops.turns, prod(shape))


def shared(text: str, turns: int, floats: int) -> tuple[str, str]:
    """A loop from `$begin` to `$end`, and its items: one by one where threads gain from sharing it, for it fills many floats."""
    if floats >= WORTH_SHARING and turns > 1:
        return text, str(turns)
    return text.replace("$begin", "0").replace("$end", str(turns)), "1"
