"""How far answers are apart, and how far they may be: one place for every comparison of outputs, for arrays and tensors alike.

Answers of one precision are compared with what PyTorch computes in fp32. In fp16, bf16 and int8 a bound on that alone would have to be so
wide that a missing filter passes, because rounding changes the outputs by a per cent or more. So PyTorch also computes the network with the
rounding simulated, and an `Expected` holds both. With exact outputs x, simulated ones s and a runtime's y, over N inputs:

    noise  e = rms(s - x)                         what rounding does to this network
    error    = rms(y - s)           <= 1.5 e      over N >= 100 inputs (4 e over fewer)
    shift    = rms(mean_n(y - s))   <= 0.3 e      over N >= 100: the mean over inputs, output by output
    shift_j  = |mean_n(y - s)_j|    <= max(t se_j, 0.3 e_j), likewise: of output j, se_j = sd_n(y - s)_j / sqrt(N), e_j below
    changed  = share of y's classes that are not x's: at most four standard errors above s's share, over N >= 100

Why these hold for every runtime that computes the network: it rounds where the simulation does, or in fewer places where it fuses, so y - x
has about the size of e or less. At best its roundings are the simulation's, at worst they are independent of them, and errors add up to
sqrt(2) e. What is the same for all inputs, the rounding of weights, is the same in s and y; roundings of activations have no sign that they
keep from input to input, so the mean over N inputs is near sqrt(2) e / sqrt(N), at most 0.15 e, of which twice is allowed. A wrong filter
moves all inputs alike, which is what the shift sees. It may move one output alone, whose shift is refused where it is neither small, of 0.3
e_j, nor chance: t is the quantile of Student's t that the largest of the shifts exceeds in one case of two thousand. e_j^2 is the mean of e^2
and of the output's own, which rounding may happen to spare. Few inputs estimate a root mean square badly: of an image with ten outputs, the ratio of
two that are equal on average is beyond 2 in one case of seven, and beyond 4 in less than one of a thousand. Inputs that a network hardly
distinguishes are rounded alike, and count as few: where its outputs spread over them by less than 0.3 of their size, as an untrained deep
network's do. To each bound comes what fp32 may be off, 1e-4 of the largest output: runtimes add in another order.

Items that a network ranks, such as the proposals of a detector, have no place of their own: where two scores all but tie, rounding decides
which comes first, and at the end of the list, or where boxes overlap by all but the threshold, which is there at all. Those of `found` are
therefore moved to the places of the nearest ones in x, all outputs of an item together, each item once, before the bounds apply. In fp32
every item but 1 % must then be equal; in other precisions rounding moves those of s as well, and e has what that changes, which is refused where
it would allow more than a quarter of the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Answers = dict[str, NDArray[Any]]  # by the names of outputs, of which some are `Items`
Rows = TypeVar("Rows")  # an array or a tensor whose first dimension counts inputs

CHUNK = 64  # inputs at once where nothing is timed
FP32_TOLERANCE = 1e-4  # of the largest output, for sums in another order
TOLERANCES = {"fp32": FP32_TOLERANCE, "fp16": 1e-2, "bf16": 6e-2, "int8": 0.25}  # of the largest output, against the fp32 network
EXPORT_TOLERANCES = {"torch.float16": 2e-2, "torch.bfloat16": 6e-2}  # of a file against the network in its own type
REWRITE_TOLERANCE = 1e-5  # of the largest output, for the same arithmetic in another order
KERNEL_TOLERANCES = {"torch.float32": 1e-5, "torch.float16": 2e-3, "torch.bfloat16": 2e-2}  # of a kernel's sum of variance 1
LEAST_INPUTS = 100  # for a share of classes, a mean over inputs or an accuracy to say anything
ERROR_OF_NOISE, ERROR_OF_NOISE_FEW, SHIFT_OF_NOISE = 1.5, 4.0, 0.3
FALSE_ALARMS = 5e-4  # share of runs in which a shift of single outputs that is chance is refused
STANDARD_ERRORS = 4.0
LEAST_SPREAD = 0.3
LEAST_OUTPUT = 1e-3  # of the largest: smaller outputs are small because larger numbers cancel, with the rounding of those
TINY = 1e-30
UNEQUAL = 0.01  # of whole numbers, such as classes, and of ranked items: where two values all but tie, either may be the largest


def largest_error(found: Any, expected: Any) -> float:
    """The largest difference relative to the largest magnitude of `expected`; infinite where shapes differ or a value is not finite."""
    y, x = _array(found), _array(expected)
    if y.shape != x.shape:
        return math.inf
    error = float(np.abs(y - x).max(initial=0.0)) / max(float(np.abs(x).max(initial=0.0)), TINY)
    return error if math.isfinite(error) else math.inf


def refusal_of(error: float, precision: str) -> str:
    """Why outputs with this error, relative to the largest, are not the fp32 network's in `precision`; "" where they are."""
    return "" if error <= TOLERANCES[precision] else f"its outputs are off by {error:.1e} of the largest"


def largest_error_by_output(found: Any, expected: Any) -> float:
    """The same, (N, ...), each output relative to its own largest magnitude over the N inputs; one below 1e-3 of the largest counts as that."""
    y, x = _array(found), _array(expected)
    if y.shape != x.shape:
        return math.inf
    sizes = np.abs(x).max(0, initial=0.0)
    error = float(
        (np.abs(y - x).max(0, initial=0.0) / np.maximum(sizes, max(LEAST_OUTPUT * sizes.max(initial=0.0), TINY))).max(initial=0.0)
    )
    return error if math.isfinite(error) else math.inf


def tile(rows: Rows, count: int) -> Rows:
    """The first `count` rows; where there are fewer, they repeat."""
    found: Rows = rows[np.arange(count) % len(rows)]  # type: ignore[index, arg-type]
    return found


def in_chunks(
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]], rows: NDArray[np.float32], size: int = CHUNK
) -> NDArray[np.float32]:
    """`run` over all rows, `size` at a time: the last chunk is filled up with the first rows, so that `run` sees one shape alone."""
    size = min(size, len(rows))
    chunks = [tile(rows[i : i + size], size) for i in range(0, len(rows), size)]
    return np.concatenate([run(chunk) for chunk in chunks])[: len(rows)]


class Items(str):
    """The name of an output (..., K, ...) whose K places along `axis` hold items that the network ranks; `graph.ranking` finds them.

    Outputs of one `ranking` hold the same items in one order.
    """

    axis: int
    ranking: int

    def __new__(cls, name: str, axis: int = 1, ranking: int = 1) -> Items:
        made = super().__new__(cls, name)
        made.axis, made.ranking = axis, ranking
        return made


@dataclass(frozen=True)
class Compared:
    """How outputs compare with those expected: in fp32 the largest error of the largest output, else the root mean square of the error
    against the simulation, of that of the outputs; what is `allowed`; why they are refused, "" where they are not; and the share of ranked
    items without an equal one, which `error` leaves out.
    """

    error: float
    allowed: float
    refusal: str
    unmatched: float = 0.0


@dataclass(frozen=True)
class Expected:
    """What a network answers to N inputs: `exact`, (N, ...) by PyTorch in fp32, and `rounded`, the same with its rounding simulated.

    Without `rounded`, `tolerance` bounds the largest error, of the largest output. Else the module says which bounds follow.
    """

    exact: NDArray[np.float32]
    rounded: NDArray[np.float32] | None = None
    tolerance: float = FP32_TOLERANCE

    def refusal(self, found: Any) -> str:
        """Why outputs `found` are not the network's, for its first inputs; "" where they are."""
        y, x = _array(found), _array(self.exact[: len(found)])
        if y.shape != x.shape:
            return f"outputs have the shape {y.shape}, not {x.shape}"
        if not np.isfinite(y).all():
            return "outputs are not finite: they hold nan or inf"
        if self.rounded is None:
            error = largest_error(y, x)
            return "" if error <= self.tolerance else f"outputs are off by {error:.1e} of the largest ({self.tolerance:.0e} is allowed)"
        if not math.isfinite(self.noise):
            return "rounding makes outputs nan or inf: the precision does not hold this network's values"
        s, inputs = _array(self.rounded[: len(found)]), len(found)
        reason = self._refusal_of_rounded(y - s, inputs if inputs >= LEAST_INPUTS and self._separates_inputs else 0)
        return reason if reason or inputs < LEAST_INPUTS else _refusal_of_classes(y, s, x)

    def compare(self, found: Any) -> Compared:
        """All of it, of outputs for all inputs."""
        refusal = self.refusal(found)
        if self.rounded is None:
            return Compared(largest_error(found, self.exact), self.tolerance, refusal)
        size = max(_rms(_array(self.exact)), TINY)
        return Compared(
            _rms(_array(found) - _array(self.rounded)) / size,
            self._limit(len(self.exact) >= LEAST_INPUTS and self._separates_inputs) / size,
            refusal,
        )

    @cached_property
    def noise(self) -> float:
        """The root mean square of what rounding changes in the outputs; 0 in fp32."""
        return 0.0 if self.rounded is None else _rms(_array(self.rounded) - _array(self.exact))

    def _refusal_of_rounded(self, off: Array, enough: int) -> str:
        """Of differences from the simulation, over `enough` inputs; 0 where those are too few."""
        limit, error, shift = self._limit(enough > 0), _rms(off), _rms(off.mean(0))
        if not error <= limit:
            return f"outputs are off by {self._text(error)} (RMS) from a simulation of the rounding; {self._text(limit)} is allowed"
        most = SHIFT_OF_NOISE * self.noise + self._floor
        if enough and not shift <= most:
            return f"outputs are shifted by {self._text(shift)} from a simulation of the rounding; {self._text(most)} is allowed"
        if enough and self._largest_shift(off, enough) > 1:
            return f"an output is shifted by {self._largest_shift(off, enough):.2f} times what rounding may shift it"
        return ""

    def _largest_shift(self, off: Array, inputs: int) -> float:
        """Over outputs, the shift relative to what is allowed."""
        noise = np.sqrt((np.square(_array(self.rounded) - _array(self.exact)).mean(0) + self.noise**2) / 2)
        chance = _student(1 - FALSE_ALARMS / 2 / max(noise.size, 1), inputs - 1) * off.std(0) / math.sqrt(inputs - 1)
        allowed = np.maximum(chance, SHIFT_OF_NOISE * noise) + self._floor
        return float((np.abs(off.mean(0)) / np.maximum(allowed, TINY)).max(initial=0.0))

    @cached_property
    def _separates_inputs(self) -> bool:
        x = _array(self.exact)
        return _rms(x - x.mean(0)) >= LEAST_SPREAD * _rms(x)

    def _limit(self, enough: bool) -> float:
        return (ERROR_OF_NOISE if enough else ERROR_OF_NOISE_FEW) * self.noise + self._floor

    @property
    def _floor(self) -> float:
        return FP32_TOLERANCE * float(np.abs(self.exact).max(initial=0.0))

    def _text(self, value: float) -> str:
        return f"{value / max(_rms(_array(self.exact)), TINY):.2%} of the outputs"


def compare(found: Answers, exact: Answers, rounded: Answers | None = None, tolerance: float = FP32_TOLERANCE) -> Compared:
    """The output that is furthest off, of those that a file gives: `exact` is by PyTorch in fp32, `rounded` with its rounding simulated;
    without it, `tolerance` bounds the largest error.

    Outputs are taken in order, since a file may name them otherwise.
    """
    if len(found) != len(exact):
        return Compared(math.inf, 0.0, f"there are {len(found)} outputs instead of {len(exact)}")
    found = placed(found, exact)
    simulated = dict.fromkeys(exact) if rounded is None else placed(rounded, exact)
    compared = []
    for name, x in exact.items():
        one = _compare(name, found[name], x, simulated[name], tolerance)
        prefix = f"output {name!r}: " if one.refusal and len(exact) > 1 else ""
        compared.append(replace(one, refusal=prefix + one.refusal))
    worst = max(compared, key=lambda one: (bool(one.refusal), one.error / one.allowed if one.allowed else 0.0))
    return replace(worst, unmatched=max(one.unmatched for one in compared))


def placed(found: Answers, exact: Answers) -> Answers:
    """`found` under the names of `exact`, with ranked items in the places of those of `exact` that they are nearest to, each once."""
    found = dict(zip(exact, found.values(), strict=True))
    lists: dict[tuple[int, int, int], list[Items]] = {}  # outputs of the same items, by the number of lists, their length and the ranking
    for name, x in exact.items():
        if isinstance(name, Items) and found[name].shape == x.shape:
            lists.setdefault((math.prod(x.shape[: name.axis]), x.shape[name.axis], name.ranking), []).append(name)
    for (count, length, _), names in lists.items():
        if not any(exact[name].ndim > name.axis + 1 for name in names):
            continue  # items of single numbers cannot be distinguished
        y, x = (np.concatenate([_rows(side[n], exact[n], count, length) for n in names], 2) for side in (found, exact))
        order = np.stack([_nearest(*each) for each in zip(y, x, strict=True)])  # (count, length)
        for name in names:
            flat = found[name].reshape(count, length, -1)
            found[name] = np.take_along_axis(flat, order[..., None], 1).reshape(found[name].shape)
    return found


def _rows(values: NDArray[Any], exact: NDArray[Any], count: int, length: int) -> Array:
    """Items (count, length, D), in units of the largest value of `exact`; different whole numbers are at least 1 apart."""
    finite = np.abs(exact[np.isfinite(exact)]).max(initial=0.0) if np.issubdtype(exact.dtype, np.floating) else 1.0
    return np.nan_to_num(_array(values) / max(float(finite), TINY), nan=2.0, posinf=2.0, neginf=-2.0).reshape(count, length, -1)


def _nearest(found: Array, exact: Array) -> NDArray[np.intp]:
    """For each item (K, D) of `exact` one of `found`: that in its place where it is equal in fp32, else the nearest ones of those left.

    The sum of the square roots of distances is least, so that an item without an equal one does not take another's.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    order = np.arange(len(exact))
    moved = np.flatnonzero(~(np.abs(found - exact).max(1, initial=0.0) <= FP32_TOLERANCE))
    if moved.size:
        order[moved] = moved[linear_sum_assignment(np.sqrt(cdist(exact[moved], found[moved], "chebyshev")))[1]]
    return order


def _compare(name: str, found: NDArray[Any], exact: NDArray[Any], rounded: NDArray[Any] | None, tolerance: float) -> Compared:
    if found.shape != exact.shape:
        return Compared(math.inf, 0.0, f"outputs have the shape {found.shape}, not {exact.shape}")
    if not np.issubdtype(exact.dtype, np.floating):
        return _compare_integers(found, exact, rounded)
    if isinstance(name, Items) and rounded is None and np.isfinite(exact).all() and np.isfinite(found).all():
        return _compare_items(found, exact, name.axis, tolerance)
    one = _compare_numbers(found, exact, rounded, tolerance)
    if isinstance(name, Items) and rounded is not None and not one.refusal and one.allowed > TOLERANCES["int8"]:
        reason = f"rounding picks so many other items that an error of {one.allowed:.0%} would be allowed, which shows nothing"
        return replace(one, refusal=reason)
    return one


def _compare_items(found: NDArray[Any], exact: NDArray[Any], axis: int, tolerance: float) -> Compared:
    """Of items in their places, in fp32."""
    rows = math.prod(exact.shape[: axis + 1])
    errors = np.abs(_array(found) - _array(exact)).reshape(rows, -1).max(1) / max(float(np.abs(exact).max()), TINY)
    unmatched = float((errors > tolerance).mean())
    refusal = f"{unmatched:.1%} of the {rows} items it ranks are off by more than {tolerance:.0e} of the largest ({UNEQUAL:.0%} is allowed)"
    return Compared(float(errors[errors <= tolerance].max(initial=0.0)), tolerance, refusal if unmatched > UNEQUAL else "", unmatched)


def _compare_numbers(found: NDArray[Any], exact: NDArray[Any], rounded: NDArray[Any] | None, tolerance: float) -> Compared:
    finite = np.isfinite(exact)
    if finite.all():
        return Expected(exact, rounded, tolerance).compare(found)
    if not np.array_equal(np.nan_to_num(found[~finite], nan=0.5), np.nan_to_num(exact[~finite], nan=0.5)):
        return Compared(math.inf, 0.0, "infinite or undefined values differ")
    held = [None if value is None else np.where(finite, value, 0.0).astype(np.float32) for value in (exact, rounded, found)]
    assert held[0] is not None and held[2] is not None
    return Expected(held[0], held[1], tolerance).compare(held[2])


def _compare_integers(found: NDArray[Any], exact: NDArray[Any], rounded: NDArray[Any] | None) -> Compared:
    allowed = UNEQUAL + (0.0 if rounded is None else _unequal(rounded, exact))
    error = _unequal(found, exact)
    return Compared(error, allowed, "" if error <= allowed else f"{error:.1%} of the values differ ({allowed:.1%} is allowed)")


def _unequal(found: NDArray[Any], exact: NDArray[Any]) -> float:
    return float((found != exact).mean()) if exact.size else 0.0


def changed_classes(found: Any, exact: Any) -> float:
    """The share of classes (the largest along axis 1) in outputs `found` that are not those in `exact`; 0 where there is no such axis."""
    y, x = _array(found), _array(exact)
    return float((y.argmax(1) != x.argmax(1)).mean()) if y.ndim > 1 else 0.0


def _refusal_of_classes(y: Array, s: Array, x: Array) -> str:
    usual, found, count = changed_classes(s, x), changed_classes(y, x), len(y)
    likely = (usual * count + 1) / (count + 2)  # a share of none is not known to be none
    most = usual + STANDARD_ERRORS * math.sqrt(2 * likely * (1 - likely) / count)
    return "" if found <= most else f"{found:.1%} of {count} inputs change their class; rounding alone changes {usual:.1%}"


def _student(level: float, freedom: int) -> float:
    """A quantile of Student's t, within 1 % from 99 degrees of freedom on: the first terms of its expansion about the normal one."""
    z = NormalDist().inv_cdf(level)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _rms(values: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.mean(np.square(values))))


def _array(values: Any) -> Array:
    """As float64 on the CPU."""
    if hasattr(values, "detach"):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, np.float64)
