"""Every figure that the page shows, computed from the files of a run as one plain dict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ltcompile.core.interval import wilson
from ltcompile.core.records import Trained
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import ACCURACY
from ltcompile.reporting import sentences, speed
from ltcompile.reporting.formats import Formats, formats, read_formats
from ltcompile.reporting.inputs import Provenance, Run, Search, Shrink, read_run

Figures = dict[str, Any]
SIZES = ("filters", "params", "macs")
CONTROLS = {
    "random": "random re-initialisation of the same architecture",
    "dense_budget": "the dense network trained with the ticket's whole budget",
}
MISSING = {
    "shrink": "file size, and the proof that the cut network computes what the masked one did",
    "bench": "measured latency and speedup",
}


def collect(folder: Path) -> Figures:
    """Every figure of the report of the run in `folder`.

    Raises:
        InvalidFile: the folder is not a run, or one of its files is damaged.
    """
    run = read_run(folder)
    search, table = run.search, read_formats(RunFolder(folder).formats)
    missing = [part for part, found in (("shrink", run.shrinks), ("bench", run.bench)) if not found]
    figures: Figures = {
        "kind": "report",
        "format": 1,
        "name": search.name,
        "model": asdict(search.model),
        "data": asdict(search.data),
        "seeds": search.seeds,
        "search_seconds": search.seconds,
        "ticket": asdict(search.ticket),
        "metric": asdict(search.metric),
        "accuracy": _accuracy(search),
        "axis": _axis(search),
        "levels": _levels(search),
        "controls": [_control(search, arm, text) for arm, text in CONTROLS.items()],
        "points": [_point(search, row) for row in search.rows],
        "widths": [{**asdict(width), "kept_share": width.after / width.before} for width in search.widths],
        "shrinks": [{**s.figures(), "of_this_ticket": s.ticket_checksum == search.ticket.checksum} for s in run.shrinks],
        "bench": speed.bench(run.bench) if run.bench else None,
        "sweep": speed.sweep(run.sweep) if run.sweep else None,
        "formats": formats(table),
        "missing": [{"part": part, "adds": MISSING[part], "command": sentences.command(part, folder)} for part in missing],
        "unhealthy": None if search.health is None else [sentences.unhealthy(training) for training in search.health],
        "recipe": search.recipe,
        "config": search.config,
        "provenance": _provenance(run, table),
    }
    figures["sparsity"] = _sparsity(search, figures["bench"])
    figures["file"] = _file(run.shrinks)
    figures["verdict"] = sentences.verdict(search, figures)
    figures["warnings"] = sentences.warnings(run, figures)
    return figures


# Accuracy


def _accuracy(search: Search) -> Figures:
    """Test and validation accuracy of the dense network and of the ticket's level."""
    test = {"dense": _tested(search.arm("dense")), "ticket": _tested(search.chosen)}
    both = sorted(test["dense"].keys() & test["ticket"].keys())
    return {
        "test": {arm: _spread(search, values, "test") for arm, values in test.items()},
        "test_difference_points": fmean(search.metric.gain(test["ticket"][s], test["dense"][s]) for s in both) if both else None,
        "test_difference_seeds": both,
        "validation": {
            "dense": _spread(search, _validated(search.arm("dense")), "val"),
            "ticket": _spread(search, _validated(search.chosen), "val"),
        },
    }


def _tested(rows: Sequence[Trained]) -> dict[int, float]:
    return {row.seed: row.test_score for row in rows if row.test_score is not None}


def _validated(rows: Sequence[Trained]) -> dict[int, float]:
    return {row.seed: row.val_score for row in rows}


def _spread(search: Search, by_seed: dict[int, float], part: str) -> Figures | None:
    """Mean and spread over seeds; of a share of correct images also the spread over images (Wilson's 95 % interval)."""
    if not by_seed:
        return None
    values, images = list(by_seed.values()), search.data.sizes[part]
    low, high = wilson(fmean(values), images) if search.metric == ACCURACY else (None, None)
    return {
        "seeds": sorted(by_seed),
        "mean": fmean(values),
        "min": min(values),
        "max": max(values),
        "sd": stdev(values) if len(values) > 1 else None,
        "images": images,
        "images_low": low,
        "images_high": high,
    }


# Levels and controls


def _point(search: Search, row: Trained) -> Figures:
    return {
        **{name: getattr(row, name) for name in ("arm", "seed", "level", *SIZES)},
        **_removed(search.dense, row),
        **{name: getattr(row, name) for name in ("val_score", "test_score", "train_accuracy", "epochs", "stop_epoch", "seconds")},
    }


def _axis(search: Search) -> str:
    """The size to plot levels by: parameters for masked searches, since a mask lowers MACs only where it removes whole channels."""
    return "params" if any(row.weights is not None for row in search.rows) else "macs"


def _removed(dense: Trained, row: Trained) -> dict[str, float]:
    return {f"{what}_removed": 1 - getattr(row, what) / getattr(dense, what) for what in SIZES}


def _levels(search: Search) -> list[Figures]:
    """One row a level, dense first: means over seeds."""
    rows = [search.arm("dense")]
    rows += [search.arm("ticket", level) for level in sorted({row.level for row in search.arm("ticket")})]
    levels = [_level(search, group) for group in rows]
    going = True  # the first level that fails ends the test
    for level in levels:
        if difference := level["difference"]:
            level["passed"] = difference["low"] > -search.verdict.margin_points if going else None
            going = bool(level["passed"])
    return levels


def _level(search: Search, rows: list[Trained]) -> Figures:
    level = rows[0].level
    difference = search.verdict.differences.get(str(level))
    points = [_point(search, row) for row in rows]
    means = (*SIZES, *(f"{what}_removed" for what in SIZES), "stop_epoch", "epochs", "train_accuracy")
    return {
        "level": level,
        **{name: fmean(point[name] for point in points) for name in means},
        "validation": _spread(search, _validated(rows), "val"),
        "test": _spread(search, _tested(rows), "test"),
        "difference": {name: difference[name] for name in ("mean", "low", "n")} if difference else None,
        "passed": None,
        "chosen": level == search.ticket.level,
        "won": search.verdict.won and level == search.verdict.level,
    }


def _control(search: Search, arm: str, text: str) -> Figures:
    """A control compared with the ticket, on shared seeds if there are any; 'beaten' or 'better' only if the whole interval excludes 0."""
    rows = search.arm(arm, search.ticket.level) if arm == "random" else search.arm(arm)
    control, ticket = _validated(rows), _validated(search.chosen)
    paired = sorted(control.keys() & ticket.keys())
    gap = search.verdict.gaps.get(arm, {})
    low, high = gap.get("low"), gap.get("high")
    if not control:
        nothing = dict.fromkeys(("difference_points", "low", "high", "validation", "test", "epochs"))
        return {"arm": arm, "text": text, "outcome": "missing", "paired_seeds": [], **nothing}
    if paired:
        control, ticket = {s: control[s] for s in paired}, {s: ticket[s] for s in paired}
    return {
        "arm": arm,
        "text": text,
        "outcome": _outcome(low, high),
        "difference_points": search.metric.gain(fmean(ticket.values()), fmean(control.values())),
        "low": low,
        "high": high,
        "paired_seeds": paired,
        "validation": _spread(search, control, "val"),
        "test": _spread(search, _tested(rows), "test"),
        "epochs": fmean(row.epochs for row in rows),
    }


def _outcome(low: float | None, high: float | None) -> str:
    """How the control did, by the interval of (ticket - control)."""
    if low is None or high is None:
        return "undecided"
    return "beaten" if low > 0 else "better" if high < 0 else "not beaten"


# What became smaller


def _sparsity(search: Search, bench: Figures | None) -> list[Figures]:
    """Sparsity by filters, parameters, MACs and latency; latency is None until it is measured."""
    dense, small = search.dense, search.ticket_row
    sizes = [_shrunk(what, getattr(dense, what), getattr(small, what)) for what in SIZES]
    best = bench["headline"] if bench else None
    unknown: Figures = {"what": "latency", **dict.fromkeys(("dense", "small", "removed_share", "ratio"))}
    return [*sizes, _shrunk("latency", best["dense_ms"], best["ms_p50"]) if best else unknown]


def _shrunk(what: str, dense: float, small: float) -> Figures:
    return {"what": what, "dense": dense, "small": small, "removed_share": 1 - small / dense, "ratio": dense / small}


def _file(shrinks: list[Shrink]) -> Figures | None:
    """The file of the headline: in full precision if there is one, as the dense file is."""
    if not shrinks:
        return None
    shrink = min(shrinks, key=lambda s: (s.precision != "fp32", s.output))
    dense = shrink.dense_bytes
    return {
        **{name: getattr(shrink, name) for name in ("output", "precision", "bytes", "dense_bytes")},
        "removed_share": 1 - shrink.bytes / dense if dense else None,
    }


def _provenance(run: Run, table: Formats | None) -> list[Figures]:
    stages: list[tuple[str, Provenance]] = [("search", run.search.provenance)]
    stages += [(f"shrink ({s.output})", s.provenance) for s in sorted(run.shrinks, key=lambda s: (s.provenance.date, s.output))]
    stages += [("bench", run.bench.provenance)] if run.bench else []
    stages += [("sweep", run.sweep.provenance)] if run.sweep else []
    stages += [("bench --formats", table.provenance)] if table else []
    return [{"stage": stage, **asdict(provenance)} for stage, provenance in stages]
