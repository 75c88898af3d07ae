"""From a small network to the program that an engine runs: fold, capture, fuse. A comparison with the network follows each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ltcompile.errors import Disagreement, InvalidSetting
from ltcompile.graph._copy import copied
from ltcompile.graph.wrappers import unwrap
from ltcompile.lower.fold import fold_batch_norm
from ltcompile.lower.passes import PASSES, layout
from ltcompile.lower.passes import precision as precisions
from ltcompile.lower.program import Node, Program, capture
from ltcompile.lower.simulate import HALVES, Rounded
from ltcompile.numerics import REWRITE_TOLERANCE, Expected, largest_error


@dataclass(frozen=True)
class Lowered:
    """The program; the captured nodes, and the outcome of each by name; that of each batch norm; the error after each step."""

    program: Program
    captured: tuple[Node, ...]
    outcomes: Mapping[str, str]
    batch_norms: Mapping[str, str]
    errors: Mapping[str, float]


def lower(model: nn.Module, example: Tensor) -> Lowered:
    """`model` as a program of fused operations, for batches of `example`'s size (N, C, H, W), in fp32 on the CPU; `model` stays as it is.

    Raises:
        InvalidModel: it cannot be captured. Disagreement: a step changed the outputs by more than rounding.
    """
    model, example = copied(unwrap(model)).cpu().eval(), example.cpu()
    with torch.no_grad():
        expected = model(example)
    folded, batch_norms = fold_batch_norm(model, example)
    program = capture(folded, example)
    errors = {"fold_batch_norm": _checked("folding batch norms", program.run(example), expected)}
    captured, outcomes = program.nodes, {node.name: "kept as it is" for node in program.nodes}
    for name, rewrite in PASSES.items():
        program, changed = rewrite(program)
        outcomes |= changed
        errors[name] = _checked(name, program.run(example), expected)
    return Lowered(program, captured, outcomes, batch_norms, errors)


@dataclass(frozen=True)
class LaidOut:
    """A program on our kernels in some precision; the outcome of each node of the fp32 program; the error against that program."""

    program: Program
    outcomes: Mapping[str, str]
    error: float


def to_layout(program: Program, example: Tensor, precision: str) -> LaidOut:
    """A lowered program in `precision` ("fp32", "fp16", "bf16") and in the kernels' layout.

    Raises:
        InvalidSetting: its constants do not fit into the precision. Disagreement: the outputs are too far from fp32's.
    """
    if reason := precisions.refusal(program, precision):
        raise InvalidSetting(f"{precision} does not fit this network: {reason}; use another precision")
    laid_out, outcomes = layout.rewrite(precisions.rewrite(program, precision))
    exact, found = program.run(example), laid_out.run(example)
    rounded = None if precision == "fp32" else _rounded(program, precision, example)
    if reason := Expected(exact.numpy(), None if rounded is None else rounded.numpy()).refusal(found):
        raise Disagreement(f"{precision} in the kernels' layout changed the network: {reason}; please report this network")
    return LaidOut(laid_out, outcomes, largest_error(found, exact))


def _rounded(program: Program, precision: str, example: Tensor) -> Tensor:
    """The outputs of `program`, lowered in fp32, with weights and every operation's result rounded to `precision`."""
    dtype = HALVES[precision]
    placed = precisions.rewrite(program, precision)
    constants = {name: value.float() if value.dtype == dtype else value for name, value in placed.constants.items()}
    with Rounded(dtype):
        return replace(program, constants=constants).run(example.to(dtype).float())


def _checked(step: str, found: Tensor, expected: Tensor) -> float:
    error = largest_error(found, expected)
    if not error <= REWRITE_TOLERANCE:
        raise Disagreement(
            f"{step} changed the outputs by {error:.2e} of the largest, more than {REWRITE_TOLERANCE:.0e}; please report this network"
        )
    return error
