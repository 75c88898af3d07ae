"""Holding a race: heat by heat, everyone is placed and checked, then all are timed side by side."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ltcompile import backends, energy, timing
from ltcompile.backends._base import first_line
from ltcompile.core.deployment import TOLERANCES
from ltcompile.core.records import cpu_name, provenance
from ltcompile.engine.checks import relative_error, tile
from ltcompile.errors import BadSetting, Disagreement, LtcompileError, Unavailable
from ltcompile.graph import size
from ltcompile.measure import busy_share
from ltcompile.race import layers, peaks
from ltcompile.race.clock import Call, Clock, track
from ltcompile.race.entrant import ENGINE, Entrant, Network, Ready
from ltcompile.race.peaks import Peaks
from ltcompile.race.result import RaceResult, Refusal, Row

LAYERS_IN = {"cpu": "fp32", "cuda": "fp16"}


@dataclass(frozen=True)
class Heat:
    """One network (by name) at one batch size, by these entrants ("engine", or "engine fp32" for one precision); by all where none are named."""

    subject: str
    batch: int
    entrants: tuple[str, ...] = ()

    def takes(self, entrant: Entrant) -> bool:
        """Whether it races."""
        return not self.entrants or bool({entrant.name, str(entrant)} & set(self.entrants))


def entrants(device: str) -> tuple[Entrant, ...]:
    """Everyone who races on `device`. Raises BadSetting or Unavailable where there is no such device."""
    if reason := backends.unavailable("eager", device):
        raise Unavailable(reason)
    if device == "cpu":
        from ltcompile.race.cpu import ENTRANTS
    else:
        from ltcompile.race.cuda import ENTRANTS
    return ENTRANTS


def run(
    networks: Sequence[Network],
    heats: Sequence[Heat],
    *,
    device: str = "cpu",
    seconds: float = 1.0,
    images: str = "as given",
    until: float | None = None,
    result: RaceResult | None = None,
    on_progress: Callable[[str], None] | None = None,
    on_heat: Callable[[RaceResult], None] | None = None,
) -> RaceResult:
    """Race `heats` in their order, the most important first.

    Args:
        seconds: what each entrant is timed for, of the clock (on a GPU the time of its work alone).
        images: which they are, for the reader.
        until: of `time.monotonic()`; heats that would begin later are left out, and told as that.
        result: of a race that was cut off: what it holds is not run again.
        on_heat: sees the result so far after each heat.

    Raises:
        Unavailable, BadSetting: there is no such device, network or entrant.
    """
    everyone, by_name = entrants(device), {network.name: network for network in networks}
    _check(heats, by_name, everyone)
    if result is None:
        result = RaceResult(device, cpu_name() if device == "cpu" else torch.cuda.get_device_name(), images)
    result.busy_share = max(filter(None, (busy_share(), result.busy_share)), default=None)
    result.refused = [refusal for refusal in result.refused if (refusal.subject, refusal.batch) in result.heats()]
    result.provenance = provenance()
    result.settings = {str(e): e.settings for e in everyone}
    with track(device) as clock:
        for heat in heats:
            if (heat.subject, heat.batch) in result.heats():
                continue
            if until is not None and time.monotonic() > until:
                result.refused.append(Refusal(heat.subject, heat.batch, "", "", "left out: the time was up"))
                continue
            taken = _Heat(by_name[heat.subject], heat.batch, result, clock, on_progress or (lambda _: None))
            taken.run([entrant for entrant in everyone if heat.takes(entrant)], seconds)
            if on_heat:
                on_heat(result)
    return result


def _check(heats: Sequence[Heat], networks: dict[str, Network], everyone: Sequence[Entrant]) -> None:
    names = {name for entrant in everyone for name in (entrant.name, str(entrant))}
    for heat in heats:
        if heat.subject not in networks or heat.batch < 1:
            raise BadSetting(f"{heat} names no network at a batch size of 1 or more; known: {', '.join(networks)}")
        if unknown := set(heat.entrants) - names:
            raise BadSetting(f"nobody here is called {', '.join(sorted(unknown))}; known: {', '.join(sorted(names))}")


class _Heat:
    """One network at one batch size; what it finds goes into `result`."""

    def __init__(self, network: Network, batch: int, result: RaceResult, clock: Clock, on_progress: Callable[[str], None]) -> None:
        self.network, self.batch, self.result, self.clock, self.tell = network, batch, result, clock, on_progress
        self.images = tile(network.images, batch)
        self.expected, self.of_half = network.expected(self.images), network.expected(self.images / 2)

    def run(self, asked: Sequence[Entrant], seconds: float) -> None:
        ready, rows = {}, {}
        for entrant in asked:
            name = str(entrant)
            self.tell(f"{self.network.name}, batch {self.batch}: placing {name}")
            try:
                ready[name], rows[name] = self._place(entrant)
            except Exception as error:  # everybody raises their own; one who cannot run must not stop the others
                reason = str(error) if isinstance(error, LtcompileError) else first_line(error)
                self.result.refused.append(Refusal(self.network.name, self.batch, entrant.name, entrant.precision, reason))
        self.tell(f"{self.network.name}, batch {self.batch}: timing {len(ready)} entrants")
        calls = {name: self.clock.timed(one.call) for name, one in ready.items()}
        times = timing.race(calls, seconds=seconds, settle_s=self.clock.settle_s, clock=self.clock) if calls else {}
        self.result.rows += [_timed(rows[name], ms) for name, ms in times.items()]
        self._tell_standings(times)
        self._tell_energy(calls)
        self._tell_layers(ready)
        self._tell_size()
        del ready, calls
        gc.collect()
        torch.compiler.reset()  # what was compiled for this batch is not needed again

    def _place(self, entrant: Entrant) -> tuple[Ready, Row]:
        """The entrant, its answers checked, and a row without times."""
        start = time.perf_counter()
        ready = entrant.build(self.network, self.images)
        build_s = time.perf_counter() - start
        tolerance = TOLERANCES[entrant.precision]
        error, same = _agreement(self._answer(ready, self.images), self.expected, tolerance)
        followed = max(tolerance, relative_error(self.expected, self.of_half) / 2)
        if not relative_error(self._answer(ready, self.images / 2), self.of_half) <= followed:
            raise Disagreement("its answers do not follow its images: a compiler may have folded the first ones")
        ready.write(self.images)
        row = Row(self.network.name, entrant.name, entrant.precision, self.batch, 0, 0, 0, 0, error, same, None, build_s, ready.how)
        return ready, row

    def _answer(self, ready: Ready, images: Tensor) -> Tensor:
        self.clock.wait()
        ready.write(images)
        ready.call()
        self.clock.wait()
        return ready.answer()

    def _tell_standings(self, times: dict[str, timing.Times]) -> None:
        """How far each engine is behind its fastest peer, with the interval."""
        for engine in [row for row in self.result.heat(self.network.name, self.batch) if row.entrant == ENGINE]:
            if peer := self.result.fastest_peer(engine):
                _, low, high = timing.speedup(times[f"{ENGINE} {engine.precision}"], times[f"{peer.entrant} {peer.precision}"])
                self._replace(engine, replace(engine, behind=(low, high)))

    def _replace(self, row: Row, told: Row) -> None:
        self.result.rows[self.result.rows.index(row)] = told

    def _tell_energy(self, calls: dict[str, Call]) -> None:
        """Of the engine and of its fastest peer: counters are slow, and two tell what matters."""
        try:
            joules = energy.counter(self.result.device)
        except Unavailable as reason:
            self.result.energy = str(reason)
            return
        for engine in [row for row in self.result.heat(self.network.name, self.batch) if row.entrant == ENGINE]:
            for row in filter(None, (engine, self.result.fastest_peer(engine))):
                call = calls[f"{row.entrant} {row.precision}"]
                self._replace(row, replace(row, joules_per_image=energy.per_image(joules, call, self.batch)))

    def _tell_layers(self, ready: dict[str, Ready]) -> None:
        precision = LAYERS_IN[self.result.device]
        engine = ready.get(f"{ENGINE} {precision}")
        if engine is None:
            return
        self.tell(f"{self.network.name}, batch {self.batch}: timing layers")
        roofline = self._roofline(precision)
        try:
            if engine.part is None:
                self.result.layers += layers.on_cpu(self.network, self.batch, roofline, self.clock)
            else:
                self.result.layers += layers.on_gpu(self.network, engine.part, roofline)
        except (RuntimeError, LtcompileError) as error:  # more memory than is left beside everyone
            self.result.refused.append(Refusal(self.network.name, self.batch, "layers", precision, first_line(error)))

    def _roofline(self, precision: str) -> Peaks:
        """Measured once in a race, beside the first heat."""
        if not self.result.peaks:
            self.result.peaks.append(peaks.measure(self.result.device, precision, self.clock))
        return self.result.peaks[0]

    def _tell_size(self) -> None:
        found = size(self.network.module, self.network.images)
        self.result.subjects[self.network.name] = {"params": found.params, "macs": found.macs}


def _agreement(answer: Tensor, expected: Tensor, tolerance: float) -> tuple[float, float]:
    """The error relative to the largest magnitude, and the share of images whose best class is the same. Raises Disagreement."""
    error = relative_error(answer, expected)
    if not error <= tolerance:
        raise Disagreement(f"its answers are off by {error:.1e} of the largest")
    batch = len(expected)
    other = int((answer.argmax(1) != expected.argmax(1)).sum())
    if other > 1 + batch // 10:
        raise Disagreement(f"{other} of {batch} images change their class")
    return error, 1 - other / batch


def _timed(row: Row, ms: timing.Times) -> Row:
    p20, p50, p80 = (float(q) for q in np.quantile(ms, [0.2, 0.5, 0.8]))
    return replace(row, ms_p20=p20, ms_p50=p50, ms_p80=p80, runs=ms.size)
