"""Proof that two networks are the same function but for rounding: compared in float64 on the CPU, output by output.

In fp32 a deep network's own rounding looks like a wrong cut, and an error in a small output is not seen next to large ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from ltcompile import numerics
from ltcompile.core.plan import PruningPlan
from ltcompile.errors import Disagreement
from ltcompile.graph import embed
from ltcompile.graph.inputs import Example
from ltcompile.graph.wrappers import in_eval_mode
from ltcompile.lower.answers import joined, of_network
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.simulate import in_double
from ltcompile.numerics import Answers

EXACT = 1e-8  # of each output's largest value: float64 rounds at 1e-16, which a network may amplify, by up to a thousand
REWRITTEN = 1e-5  # of the largest output, where weights are computed again in fp32: folded, factorised, or standing for others
ROWS = 4  # of an example: every weight takes part in each


def check_cut(small: nn.Module, plan: PruningPlan, dense: nn.Module, example: Example) -> float:
    """The largest error, output by output, of `small`, which `plan` leaves of `dense`, against the masked network of the dense shape.

    A few rows of `example` are run. Raises Disagreement where the error is more than rounding.
    """
    return check_same("the cut network and the masked one", small, embed(small, plan, dense), example)


def check_same(what: str, found: nn.Module, expected: nn.Module, example: Example) -> float:
    """The largest error of `found` against `expected`, output by output. Raises Disagreement where it is more than rounding."""
    error = _largest(numerics.largest_error_by_output, found, expected, example)
    return _checked(what, error, EXACT, "of an output's largest value")


def check_rewritten(what: str, found: nn.Module, expected: nn.Module, example: Example) -> float:
    """The same of a network whose weights were computed again in fp32, relative to the largest value of an output."""
    return _checked(what, _largest(numerics.largest_error, found, expected, example), REWRITTEN, "of the largest output")


def _largest(error: Callable[[object, object], float], found: nn.Module, expected: nn.Module, example: Example) -> float:
    """The largest error of all outputs; of whole numbers, the share that differs."""
    inputs = Inputs.of(expected, example)
    some = inputs.resized(min(ROWS, inputs.batch))
    with in_eval_mode(found), in_eval_mode(expected):
        y, x = (_in_double(network, some) for network in (found, expected))
    if y.keys() != x.keys():
        return float("inf")
    y = numerics.placed(y, x)
    return max(
        error(y[name], x[name])
        if np.issubdtype(x[name].dtype, np.floating) or y[name].shape != x[name].shape
        else float((y[name] != x[name]).mean())
        for name in x
    )


def _in_double(network: nn.Module, inputs: Inputs) -> Answers:
    """The answers row by row, which takes little memory; all rows at once where the network does not take them apart.

    A run in fp32 comes first: what a network computes once and keeps, such as anchors, has one precision in both networks then.
    """
    run = of_network(partial(in_double, network))
    try:
        of_network(network)(inputs.rows(torch.tensor([0])))
        parts = [run(inputs.rows(torch.tensor([row]))) for row in range(inputs.batch)]
    except Exception:  # such as a graph, whose first dimension is its nodes
        parts = [run(inputs)]
    return joined(parts, inputs.batch)


def _checked(what: str, error: float, tolerance: float, relative_to: str) -> float:
    if not error <= tolerance:
        raise Disagreement(
            f"{what} differ by {error:.2e} {relative_to} in float64, more than {tolerance:.0e}; please report this with the ticket"
        )
    return error
