"""Case by case, every competitor is placed and checked, then all are timed in turns.

Nothing that one competitor or one measurement raises ends the others; only a GPU that is lost ends the process, since nothing runs on it any
more.
"""

from __future__ import annotations

import contextlib
import gc
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ltcompile import timing
from ltcompile.benchmark import energy
from ltcompile.benchmark.competitors import layers, peaks
from ltcompile.benchmark.competitors.clock import Call, DeviceClock, track
from ltcompile.benchmark.competitors.competitor import ENGINE, Competitor, Network, Ready
from ltcompile.benchmark.competitors.entries import competitors
from ltcompile.benchmark.competitors.peaks import Peaks
from ltcompile.benchmark.competitors.result import CompetitorsResult, Refusal, Row
from ltcompile.core.load import busy_share
from ltcompile.core.records import cpu_name, provenance
from ltcompile.errors import DeviceLost, Disagreement, InvalidSetting, LtcompileError, Unavailable
from ltcompile.graph import size
from ltcompile.numerics import FP32_TOLERANCE, TOLERANCES, largest_error, tile
from ltcompile.runtimes import first_line

LAYERS_IN = {"cpu": "fp32", "cuda": "fp16"}
REQUEST_MS = 20.0  # of calls that are requested from another process at once, where their energy is measured
LOST = "the GPU was lost: "  # how a reason begins; a resumed run leaves out the competitor


@dataclass(frozen=True)
class Case:
    """One network (by name) at one batch size, by these competitors ("engine", or "engine fp32" for one precision); by all where none are named."""

    subject: str
    batch: int
    competitors: tuple[str, ...] = ()

    def takes(self, competitor: Competitor) -> bool:
        """Whether this case is for that competitor."""
        return not self.competitors or bool({competitor.name, str(competitor)} & set(self.competitors))


def run(
    networks: Sequence[Network],
    cases: Sequence[Case],
    *,
    device: str = "cpu",
    seconds: float = 1.0,
    images: str = "as given",
    until: float | None = None,
    result: CompetitorsResult | None = None,
    on_progress: Callable[[str], None] | None = None,
    on_result: Callable[[CompetitorsResult], None] | None = None,
    on_case: Callable[[CompetitorsResult, Case], None] | None = None,
) -> CompetitorsResult:
    """Run `cases` in their order, the most important first.

    Args:
        seconds: what each competitor is timed for, of the clock (on a GPU the time of its work alone).
        images: which they are, for the reader.
        until: of `time.monotonic()`; cases that would begin later are left out, with that reason.
        result: of a run that was interrupted: what it holds is not run again.
        on_result: sees the result so far whenever something was added: a refusal, times, energy, a layer.
        on_case: sees the result so far after each case.

    Raises:
        Unavailable, InvalidSetting: there is no such device, network or competitor.
        DeviceLost: a kernel broke the GPU for this process. Run the same again in another one, with `result`.
    """
    known, by_name = competitors(device), {network.name: network for network in networks}
    _check(cases, by_name, known)
    if result is None:
        result = CompetitorsResult(device, cpu_name() if device == "cpu" else torch.cuda.get_device_name(), images)
    result.busy_share = max(filter(None, (busy_share(), result.busy_share)), default=None)
    done = result.cases()
    result.refused = [r for r in result.refused if (r.subject, r.batch) in done or r.reason.startswith(LOST)]
    result.provenance = provenance()
    result.settings = {str(e): e.settings for e in known}
    with track(device) as clock:
        for case in cases:
            if (case.subject, case.batch) in result.cases():
                continue
            if until is not None and time.monotonic() > until:
                result.refused.append(Refusal(case.subject, case.batch, "", "", "left out: the time was up"))
                continue
            broke = {(r.competitor, r.precision) for r in result.refused if (r.subject, r.batch) == (case.subject, case.batch)}
            running = [e for e in known if case.takes(e) and (e.name, e.precision) not in broke]
            with _guarded(result, case, "case", "", on_result):
                _CaseRun(by_name[case.subject], case, result, clock, on_progress or (lambda _: None), on_result).run(running, seconds)
            if on_case:
                on_case(result, case)
    return result


@contextlib.contextmanager
def _guarded(
    result: CompetitorsResult, case: Case, what: str, precision: str, on_result: Callable[[CompetitorsResult], None] | None = None
) -> Iterator[None]:
    """What `what` raises becomes a refusal. Raises DeviceLost where the GPU does not answer afterwards."""
    try:
        yield
    except DeviceLost:
        raise
    except Exception as error:  # each runtime and each driver has its own types
        reason = _plain(str(error) if isinstance(error, LtcompileError) else first_line(error))
        lost = gpu_lost(result.device)
        result.refused.append(Refusal(case.subject, case.batch, what, precision, LOST + reason if lost else reason))
        if on_result:
            on_result(result)
        if lost:
            raise DeviceLost(f"{what} broke the GPU for this process ({reason}); run the same again to resume without it") from error


def _plain(reason: str) -> str:
    """`reason` without what colours a terminal."""
    return "".join(c for c in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", reason) if c.isprintable() or c == " ")


def gpu_lost(device: str) -> bool:
    """Whether the GPU answers no more, as after a kernel that read where it may not."""
    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").sum().item()
    except RuntimeError:
        return True
    return False


def _check(cases: Sequence[Case], networks: dict[str, Network], known: Sequence[Competitor]) -> None:
    names = {name for competitor in known for name in (competitor.name, str(competitor))}
    for case in cases:
        if case.subject not in networks or case.batch < 1:
            raise InvalidSetting(f"{case} names no network at a batch size of 1 or more; known: {', '.join(networks)}")
        if unknown := set(case.competitors) - names:
            raise InvalidSetting(f"unknown competitor {', '.join(sorted(unknown))}; known: {', '.join(sorted(names))}")


class _CaseRun:
    """One network at one batch size; what it finds goes into `result`."""

    def __init__(
        self,
        network: Network,
        case: Case,
        result: CompetitorsResult,
        clock: DeviceClock,
        on_progress: Callable[[str], None],
        on_result: Callable[[CompetitorsResult], None] | None,
    ) -> None:
        self.network, self.case, self.batch, self.result, self.clock = network, case, case.batch, result, clock
        self._on_progress, self._on_result = on_progress, on_result
        self.images = tile(network.images, self.batch)
        self.expected, self.of_half = network.expected(self.images), network.expected(self.images / 2)

    def run(self, competitors: Sequence[Competitor], seconds: float) -> None:
        self._report_size()
        ready, rows = dict[str, Ready](), dict[str, Row]()
        for competitor in competitors:
            name = str(competitor)
            self._progress(f"placing {name}")
            with self._guarded(competitor.name, competitor.precision):
                ready[name], rows[name] = self._place(competitor)
                self._progress(f"{name} is ready after {rows[name].build_s:.1f} s, error {rows[name].max_error:.1e} of the largest output")
        self._progress(f"timing {len(ready)} competitors")
        times = self._times(ready, rows, seconds)
        self.result.rows += [_timed(rows[name], ms) for name, ms in times.items()]
        self._changed()
        with self._guarded("standings"):
            self._report_standings(times)
        with self._guarded("energy"):
            self._report_energy(ready)
        with self._guarded("layers", LAYERS_IN[self.result.device]):
            self._report_layers(ready)
        ready.clear()
        gc.collect()
        torch.compiler.reset()  # what was compiled for this batch is not needed again

    def _progress(self, text: str) -> None:
        self._on_progress(f"{self.network.name}, batch {self.batch}: {text}")

    def _changed(self) -> None:
        if self._on_result:
            self._on_result(self.result)

    def _guarded(self, what: str, precision: str = "") -> contextlib.AbstractContextManager[None]:
        return _guarded(self.result, self.case, what, precision, self._on_result)

    def _times(self, ready: dict[str, Ready], rows: dict[str, Row], seconds: float) -> dict[str, timing.Times]:
        """Times of all side by side; a competitor that fails is taken out of `ready`, and the others start again."""
        running = ""

        def naming(name: str, call: Call) -> Call:
            def run() -> None:
                nonlocal running
                running = name
                call()

            return run

        while ready:
            calls = {name: self.clock.timed(one.call if _is_apart(one) else naming(name, one.call)) for name, one in ready.items()}
            try:
                return timing.interleave(calls, seconds=seconds, settle_s=self.clock.settle_s, clock=self.clock)
            except Exception as error:
                for failed in [name for name, one in ready.items() if _is_apart(one) and _fails(one)] or [running]:
                    del ready[failed]
                    with self._guarded(rows[failed].competitor, rows[failed].precision):
                        raise error
        return {}

    def _place(self, competitor: Competitor) -> tuple[Ready, Row]:
        """The competitor, its answers checked, and a row without times."""
        start = time.perf_counter()
        ready = competitor.build(self.network, self.images)
        build_s = time.perf_counter() - start
        tolerance = FP32_TOLERANCE if competitor.precision == "fp32" else math.inf
        error, same = _agreement(self._answer(ready, self.images), self.expected, tolerance)
        agreed = self.network.agreement(competitor.precision)
        if agreed and (reason := agreed.refusal(lambda images: self._answer(ready, images), self.batch)):
            raise Disagreement(reason)
        followed = max(TOLERANCES[competitor.precision], largest_error(self.expected, self.of_half) / 2)
        if not largest_error(self._answer(ready, self.images / 2), self.of_half) <= followed:
            raise Disagreement("its answers do not follow its images: a compiler may have folded the first ones")
        ready.write(self.images)
        row = Row(self.network.name, competitor.name, competitor.precision, self.batch, 0, 0, 0, 0, error, same, None, build_s, ready.how)
        return ready, row

    def _answer(self, ready: Ready, images: Tensor) -> Tensor:
        self.clock.wait()
        ready.write(images)
        ready.call()
        self.clock.wait()
        return ready.answer()

    def _report_standings(self, times: dict[str, timing.Times]) -> None:
        """How far each engine is behind its fastest peer, with the interval."""
        for engine in self._engines():
            if peer := self.result.fastest_peer(engine):
                _, low, high = timing.speedup(times[f"{ENGINE} {engine.precision}"], times[f"{peer.competitor} {peer.precision}"])
                self._replace(engine, replace(engine, behind=(low, high)))

    def _engines(self) -> list[Row]:
        return [row for row in self.result.case(self.network.name, self.batch) if row.competitor == ENGINE]

    def _replace(self, row: Row, with_more: Row) -> None:
        self.result.rows[self.result.rows.index(row)] = with_more
        self._changed()

    def _report_energy(self, ready: dict[str, Ready]) -> None:
        """Of the engine and of its fastest peer: counters are slow, and two say what matters."""
        try:
            joules = energy.counter(self.result.device)
        except Unavailable as reason:
            self.result.energy = str(reason)
            return
        for engine in self._engines():
            for row in filter(None, (engine, self.result.fastest_peer(engine))):
                one = ready[f"{row.competitor} {row.precision}"]

                calls = max(1, round(REQUEST_MS / row.ms_p50)) if _is_apart(one) else 1

                def call(one: Ready = one, calls: int = calls) -> None:
                    timing.block(one.call, calls, 0.0, settles=False)
                    self.clock.wait()

                self._replace(row, replace(row, joules_per_image=energy.per_image(joules, call, calls * self.batch)))

    def _report_layers(self, ready: dict[str, Ready]) -> None:
        precision = LAYERS_IN[self.result.device]
        engine = ready.get(f"{ENGINE} {precision}")
        if engine is None:
            return
        self._progress("timing layers")
        roofline = self._roofline(precision)
        if engine.variant is None:
            self.result.layers += layers.on_cpu(self.network, self.batch, roofline, self.clock)
        else:
            for layer in layers.on_gpu(self.network, engine.variant, roofline):
                self.result.layers.append(layer)
        self._changed()

    def _roofline(self, precision: str) -> Peaks:
        """Measured once, next to the first case."""
        if not self.result.peaks:
            self.result.peaks.append(peaks.measure(self.result.device, precision, self.clock))
        return self.result.peaks[0]

    def _report_size(self) -> None:
        with self._guarded("size"):
            found = size(self.network.module, self.network.images)
            self.result.subjects[self.network.name] = {"params": found.params, "macs": found.macs}


def _agreement(answer: Tensor, expected: Tensor, tolerance: float) -> tuple[float, float]:
    """The error relative to the largest magnitude, and the share of images whose best class is the same. Raises Disagreement."""
    error = largest_error(answer, expected)
    if not error <= tolerance:
        raise Disagreement(f"its answers are off by {error:.1e} of the largest")
    batch = len(expected)
    other = int((answer.argmax(1) != expected.argmax(1)).sum())
    if other > 1 + batch // 10:
        raise Disagreement(f"{other} of {batch} images change their class")
    return error, 1 - other / batch


def _is_apart(one: Ready) -> bool:
    """Whether it runs in another process."""
    return isinstance(one.call, timing.RemoteCall)


def _fails(one: Ready) -> bool:
    """Whether a call fails again: what ended in another process does."""
    try:
        one.call()
    except LtcompileError:
        return True
    return False


def _timed(row: Row, ms: timing.Times) -> Row:
    p20, p50, p80 = (float(q) for q in np.quantile(ms, [0.2, 0.5, 0.8]))
    return replace(row, ms_p20=p20, ms_p50=p50, ms_p80=p80, runs=ms.size)
