"""The measured times of a report: benchmarks with their headline, and curves of accuracy against latency."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ltcompile.core.curve import CurvePoint, CurveTiming
from ltcompile.core.records import Measurement
from ltcompile.reporting.inputs import Bench, Sweep

Figures = dict[str, Any]


def bench(bench: Bench) -> Figures:
    rows = [_timing(bench, row) for row in sorted(bench.rows, key=_place)]
    return {
        "target": bench.target,
        "file": asdict(bench.file) if bench.file else None,
        "ticket_checksum": bench.ticket_checksum,
        "subjects": {name: {"params": s.params, "macs": s.macs} for name, s in bench.subjects.items()},
        "rows": rows,
        "skipped": [
            {"names": [name for name, why in bench.skipped.items() if why == reason], "reason": reason}
            for reason in dict.fromkeys(bench.skipped.values())
        ],
        "images": bench.images,
        "busy_share": bench.busy_share,
        "headline": _headline(rows),
    }


def _place(row: Measurement) -> tuple[str, str, str, int, bool, str]:
    return row.device, row.runtime, row.dtype, row.batch, row.subject != "dense", row.subject


def _timing(bench: Bench, row: Measurement) -> Figures:
    """One timing; `claimed` is the ratio of MACs, `achieved_share` the measured speedup over it.

    Its reference is the dense network of the same dtype if there is one ("comparable"), else of any dtype, as fp32 is for files in int8.
    """
    references = [r for r in bench.rows if r.subject == "dense" and (r.device, r.runtime, r.batch) == (row.device, row.runtime, row.batch)]
    comparable = any(r.dtype == row.dtype for r in references)
    dense = min(references, key=lambda r: r.dtype != row.dtype, default=None)
    claimed = bench.subjects["dense"].macs / bench.subjects[row.subject].macs if row.subject != "dense" else None
    return {
        **row.to_json(),
        "claimed": claimed,
        "achieved_share": row.speedup / claimed if row.speedup is not None and claimed else None,
        "dense_ms": dense.ms_p50 if dense else None,
        "comparable": comparable,
    }


def _headline(rows: list[Figures]) -> Figures | None:
    """Where the small network is fastest at the smallest batch: the speed that a user would get, not the largest ratio.

    Only rows whose dense network has the same dtype count, if there are any.
    """
    timed = [row for row in rows if row["dense_ms"] is not None and row["speedup"] is not None and row["subject"] != "dense"]
    timed = [row for row in timed if row["comparable"]] or timed
    batch = min((row["batch"] for row in timed), default=0)
    return min((row for row in timed if row["batch"] == batch), key=lambda row: row["ms_p50"], default=None)


def sweep(sweep: Sweep) -> Figures:
    """One curve for each runtime, device, dtype and batch; each has all networks that were timed there, ordered by level."""
    points = {point.name: point for point in sweep.points}
    places = dict.fromkeys((row.runtime, row.device, row.dtype, row.batch) for row in sweep.rows)
    return {
        "curves": [_curve(sweep, points, place) for place in places],
        "pick": asdict(sweep.pick),
        "skipped": sweep.skipped,
        "energy": sweep.energy,
        "images": sweep.images,
        "busy_share": sweep.busy_share,
    }


def _curve(sweep: Sweep, points: dict[str, CurvePoint], place: tuple[str, str, str, int]) -> Figures:
    rows = [row for row in sweep.rows if (row.runtime, row.device, row.dtype, row.batch) == place]
    runtime, device, _, batch = place
    return {
        **dict(zip(("runtime", "device", "dtype", "batch"), place, strict=True)),
        "picked_by": (sweep.pick.runtime, sweep.pick.device, sweep.pick.batch) == (runtime, device, batch),
        "points": [_timed_point(points[row.subject], row, sweep.pick.name) for row in rows],
    }


def _timed_point(point: CurvePoint, row: CurveTiming, picked: str | None) -> Figures:
    timing = {name: value for name, value in row.to_json().items() if name not in ("subject", "accuracy")}
    return {**_curve_point(point), **timing, "picked": point.name == picked}


def _curve_point(point: CurvePoint) -> Figures:
    validation = {"seeds": point.seeds, "mean": point.val_score, "min": point.val_min, "max": point.val_max, "sd": point.val_sd}
    return {**{name: getattr(point, name) for name in ("name", "arm", "level", "params", "macs", "bytes")}, "validation": validation}
