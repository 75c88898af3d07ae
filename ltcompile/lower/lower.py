"""From a small network to the program that an engine runs: fold, capture, fuse; each step is followed by a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltcompile.errors import Disagreement
from ltcompile.lower.fold import fold_batch_norm
from ltcompile.lower.passes import PASSES
from ltcompile.lower.program import Node, Program, capture

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
    """`model` as a program of fused operations, for batches of `example`'s size (N, C, H, W), in fp32 on the CPU.

    Raises:
        BadModel: it cannot be captured. Disagreement: a step changed the outputs by more than rounding.
    """
    model = model.cpu().eval()
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


def _checked(step: str, found: Tensor, expected: Tensor) -> float:
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not error <= TOLERANCE:
        raise Disagreement(
            f"{step} changed the outputs by {error:.2e} of the largest, more than {TOLERANCE:.0e}; please report this network"
        )
    return error
