"""From a small network to the program that an engine runs: fold, capture, fuse; each step is followed by a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ltcompile.errors import BadSetting, Disagreement
from ltcompile.graph._copy import copied
from ltcompile.graph.wrappers import unwrap
from ltcompile.lower.fold import fold_batch_norm
from ltcompile.lower.passes import PASSES, layout
from ltcompile.lower.passes import precision as precisions
from ltcompile.lower.program import Node, Program, capture
from ltcompile.lower.simulate import HALVES, Rounded
from ltcompile.numerics import Expected, largest_error

TOLERANCE = 1e-5  # of the largest output


@dataclass(frozen=True)
class Lowered:
    """The program; the nodes as they were captured, and what became of each; batch norms by name; the error after each step."""

    program: Program
    captured: tuple[Node, ...]
    told: Mapping[str, str]
    batch_norms: Mapping[str, str]
    errors: Mapping[str, float]


def lower(model: nn.Module, example: Tensor) -> Lowered:
    """`model` as a program of fused operations, for batches of `example`'s size (N, C, H, W), in fp32 on the CPU; `model` stays as it is.

    Raises:
        BadModel: it cannot be captured. Disagreement: a step changed the outputs by more than rounding.
    """
    model, example = copied(unwrap(model)).cpu().eval(), example.cpu()
    with torch.no_grad():
        expected = model(example)
    folded, batch_norms = fold_batch_norm(model, example)
    program = capture(folded, example)
    errors = {"fold_batch_norm": _checked("folding batch norms", program.run(example), expected)}
    captured, told = program.nodes, {node.name: "kept as it is" for node in program.nodes}
    for name, rewrite in PASSES.items():
        program, news = rewrite(program)
        told |= news
        errors[name] = _checked(name, program.run(example), expected)
    return Lowered(program, captured, told, batch_norms, errors)


@dataclass(frozen=True)
class Placed:
    """A program on our kernels in some precision; what became of each node of the one before; the error against that one."""

    program: Program
    told: Mapping[str, str]
    error: float


def place(program: Program, example: Tensor, precision: str) -> Placed:
    """A lowered program in `precision` ("fp32", "fp16", "bf16") and in the kernels' layout.

    Raises:
        BadSetting: its constants do not fit into the precision. Disagreement: the outputs are too far from fp32's.
    """
    if reason := precisions.refusal(program, precision):
        raise BadSetting(f"{precision} does not fit this network: {reason}; use another precision")
    placed, told = layout.rewrite(precisions.rewrite(program, precision))
    exact, found = program.run(example), placed.run(example)
    rounded = None if precision == "fp32" else _rounded(program, precision, example)
    if reason := Expected(exact.numpy(), None if rounded is None else rounded.numpy()).refusal(found):
        raise Disagreement(f"{precision} in the kernels' layout changed the network: {reason}; please report this network")
    return Placed(placed, told, largest_error(found, exact))


def _rounded(program: Program, precision: str, example: Tensor) -> Tensor:
    """What `program`, lowered in fp32, answers where weights and every operation's result are rounded to `precision`."""
    dtype = HALVES[precision]
    placed = precisions.rewrite(program, precision)
    constants = {name: value.float() if value.dtype == dtype else value for name, value in placed.constants.items()}
    with Rounded(dtype):
        return replace(program, constants=constants).run(example.to(dtype).float())


def _checked(step: str, found: Tensor, expected: Tensor) -> float:
    error = largest_error(found, expected)
    if not error <= TOLERANCE:
        raise Disagreement(
            f"{step} changed the outputs by {error:.2e} of the largest, more than {TOLERANCE:.0e}; please report this network"
        )
    return error
