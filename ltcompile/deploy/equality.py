"""That two networks are the same function but for rounding: compared in float64 on the CPU, output by output.

In fp32 a deep network's own rounding looks like a wrong cut, and beside large outputs an error in a small one is not seen.
"""

from __future__ import annotations

from torch import Tensor, nn

from ltcompile import numerics
from ltcompile.core.plan import PruningPlan
from ltcompile.errors import Disagreement
from ltcompile.graph import embed
from ltcompile.lower.simulate import in_double

EXACT = 1e-8  # of each output's largest value: float64 rounds at 1e-16, which a network may amplify, with room for a thousandfold
REWRITTEN = 1e-5  # of the largest output, where weights are computed anew in fp32: folded, factorised, or standing for others
IMAGES = 4  # of a probe: every weight takes part in each


def check_cut(small: nn.Module, plan: PruningPlan, dense: nn.Module, probe: Tensor) -> float:
    """The largest error, output by output, of `small`, which `plan` leaves of `dense`, against the masked network of the dense shape.

    `probe` are images (N, C, H, W), of which a few are taken. Raises Disagreement where it is more than rounding.
    """
    return check_same("the cut network and the masked one", small, embed(small, plan, dense), probe)


def check_same(what: str, found: nn.Module, expected: nn.Module, probe: Tensor) -> float:
    """The largest error of `found` (eval mode) against `expected`, output by output. Raises Disagreement where it is more than rounding."""
    error = numerics.largest_error_by_output(*_answers(found, expected, probe))
    return _checked(what, error, EXACT, "of an output's largest value")


def check_rewritten(what: str, found: nn.Module, expected: nn.Module, probe: Tensor) -> float:
    """The same of a network whose weights were computed anew in fp32, relative to the largest output."""
    return _checked(what, numerics.largest_error(*_answers(found, expected, probe)), REWRITTEN, "of the largest output")


def _answers(found: nn.Module, expected: nn.Module, probe: Tensor) -> tuple[Tensor, Tensor]:
    return in_double(found.eval(), probe[:IMAGES]), in_double(expected.eval(), probe[:IMAGES])


def _checked(what: str, error: float, tolerance: float, relative_to: str) -> float:
    if not error <= tolerance:
        raise Disagreement(
            f"{what} differ by {error:.2e} {relative_to} in float64, more than {tolerance:.0e}; please report this with the ticket"
        )
    return error
