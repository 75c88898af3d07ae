"""Every figure that the page shows, computed from the files of a run as one plain dict."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ltcompile.core.curve import CurvePoint, CurveTiming
from ltcompile.core.interval import wilson
from ltcompile.core.records import Measurement, Trained
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import ACCURACY
from ltcompile.reporting import units
from ltcompile.reporting.inputs import Bench, Provenance, Run, Search, Shrink, Sweep, Unhealthy, read_run

Figures = dict[str, Any]
SIZES = ("filters", "params", "macs")
CONTROLS = {
    "random": "random re-initialisation of the same architecture",
    "dense_budget": "the dense network trained with the ticket's whole budget",
}
CONCLUSIONS = {  # what follows where a control is not shown to be beaten
    ("random", "missing"): "Without this control it is unknown whether the ticket's weights were needed, or only its architecture.",
    ("random", "better"): "The ticket's weights were not needed: its architecture alone explains the result.",
    ("random", "not beaten"): "Nothing shows that the ticket's weights were needed: its architecture alone may explain the result.",
    ("dense_budget", "missing"): "Without this control the effect of longer training alone is unknown.",
    ("dense_budget", "better"): "Longer training explains any gain over the dense network; the ticket saves size and MACs.",
    ("dense_budget", "not beaten"): "Longer training may explain any gain over the dense network; the ticket saves size and MACs.",
}
OUTCOMES = {
    "better": "did better",
    "not beaten": "is not shown to be worse",
    "beaten": "did worse",
    "undecided": "is compared on too few seeds to decide between trainings",
}
CONDITIONS = {  # Ma et al. 2021, arXiv:2107.00166
    "1": "The sparsity is not trivial, and training is long enough",
    "2": "The small dense network (same size, no ticket) is clearly worse",
    "3": "The ticket beats random re-initialisation at any learning rate",
    "4": "The ticket is about as good as the dense network at the same learning rate",
    "5": "The ticket is about as good as the dense network with its best recipe",
}
MISSING = {
    "shrink": "file size, and the proof that the cut network computes what the masked one did",
    "bench": "measured latency and speedup",
}
ANSWERS = {True: "yes", False: "no", None: "not tested"}


def collect(folder: Path) -> Figures:
    """Every figure of the report of the run in `folder`.

    Raises:
        InvalidFile: the folder is not a run, or one of its files is damaged.
    """
    run = read_run(folder)
    search = run.search
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
        "shrinks": [_shrink(search, shrink) for shrink in run.shrinks],
        "bench": _bench(run.bench) if run.bench else None,
        "sweep": _sweep(run.sweep) if run.sweep else None,
        "missing": [{"part": part, "adds": MISSING[part], "command": _command(part, folder)} for part in missing],
        "unhealthy": None if search.health is None else [_unhealthy(training) for training in search.health],
        "recipe": search.recipe,
        "config": search.config,
        "provenance": _provenance(run),
    }
    figures["sparsity"] = _sparsity(search, figures["bench"])
    figures["file"] = _file(run.shrinks)
    figures["verdict"] = _verdict(search, figures)
    figures["warnings"] = _warnings(run)
    return figures


def _command(stage: str, folder: Path) -> str:
    """The command that adds the part that `stage` makes."""
    small, ticket = (shlex.quote(str(path)) for path in (folder / "small.onnx", RunFolder(folder).ticket))
    return f"ltcompile shrink {ticket} -o {small}" if stage == "shrink" else f"ltcompile bench {small}"


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


def _removed(dense: Trained, row: Trained) -> dict[str, float]:
    return {f"{what}_removed": 1 - getattr(row, what) / getattr(dense, what) for what in SIZES}


def _axis(search: Search) -> str:
    """The size to plot levels by: parameters for masked searches, since a mask lowers MACs only where it removes whole channels."""
    return "params" if any(row.weights is not None for row in search.rows) else "macs"


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


def _shrink(search: Search, shrink: Shrink) -> Figures:
    fields = {name: value for name, value in asdict(shrink).items() if name != "provenance"}  # the page lists all provenance in one place
    return {**fields, "within_tolerance": _agrees(shrink), "of_this_ticket": shrink.ticket_checksum == search.ticket.checksum}


def _agrees(shrink: Shrink) -> bool:
    return max(shrink.equality_error, shrink.onnx_error) <= shrink.tolerance


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


# Speed


def _bench(bench: Bench) -> Figures:
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


# Accuracy against latency


def _sweep(sweep: Sweep) -> Figures:
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


# Words


def _verdict(search: Search, figures: Figures) -> Figures:
    verdict = asdict(search.verdict)
    flags, reasons = verdict.pop("flags"), verdict.pop("flag_reasons")
    return {
        **verdict,
        "won": search.verdict.won,
        "sentence": _sentence(search, figures["levels"]),
        "controls": [_control_sentence(search, control) for control in figures["controls"]],
        "controls_not_beaten": [c["arm"] for c in figures["controls"] if c["outcome"] in ("better", "not beaten", "undecided")],
        "flags": [
            {"name": name, "condition": CONDITIONS.get(name, name), "answer": ANSWERS[flag], "reason": reasons.get(name, "")}
            for name, flag in flags.items()
        ],
    }


def _sentence(search: Search, levels: list[Figures]) -> str:
    verdict = search.verdict
    shown = next(level for level in levels if level["chosen"])
    axis = _axis(search)
    there = f"{units.percent(_removed(search.dense, search.ticket_row)[f'{axis}_removed'])} of the {units.SIZES[axis]} are gone"
    if len(search.seeds) > 1:
        there += f" from the saved ticket (seed {search.ticket.seed})"
    if difference := shown["difference"]:
        there += (
            f", and validation {search.metric.name} is {units.apart(difference['mean'], search.metric)} the dense network's "
            f"({_bound(search, difference['low'])}; {units.apart(-verdict.margin_points, search.metric)} is allowed)"
        )
    if not verdict.decided:
        few = f"Not decided between trainings, with {len(search.seeds)} seed{'s' * (len(search.seeds) != 1)}"
        how = "picked by the rule below" if verdict.level is not None else "shown for comparison only: the rule below picks none"
        return f"{few}. At level {shown['level']}, {how}, {there}."
    if verdict.level is not None:
        elsewhere = "" if shown["won"] else f" at level {verdict.level}"
        return f"A winning ticket was found{elsewhere}. At level {shown['level']}, {there}."
    return (
        f"No winning ticket was found: no level was shown to stay within {verdict.margin_points:.2f}{units.NBSP}{search.metric.unit} of the "
        f"dense network's validation {search.metric.name}. At level {shown['level']}, shown for comparison only, {there}."
    )


def _bound(search: Search, low: float) -> str:
    confidence = units.percent(search.verdict.confidence, 0)
    if search.verdict.decided:
        return f"at worst {units.apart(low, search.metric)} it, at {confidence} confidence"
    return f"over validation images the {confidence} bound is {units.apart(low, search.metric)} it, which does not cover the variation between trainings"


def _control_sentence(search: Search, control: Figures) -> str:
    text, outcome, metric = control["text"], control["outcome"], search.metric
    follows = CONCLUSIONS.get((control["arm"], outcome), "")
    if outcome == "missing":
        return f"Not tested: {text}. {follows}"
    interval = ""
    if control["low"] is not None:
        confidence = units.percent(search.verdict.confidence, 0)
        interval = f" ({units.gap(control['low'], metric)} to {units.gap(control['high'], metric)} at {confidence} confidence)"
    return (
        f"{text[0].upper()}{text[1:]} {OUTCOMES[outcome]}: {units.score(control['validation']['mean'], metric)} validation {metric.name}; "
        f"the ticket is {units.apart(control['difference_points'], metric)} it{interval}. {follows}"
    ).strip()


def _unhealthy(training: Unhealthy) -> str:
    """The problems of a training, in one sentence."""
    problems = [f"{d.channels} of {d.of} channels of {d.layer} are dead" for d in training.dead]
    problems += [f"the training loss jumped from {s.lowest:.3g} to {s.loss:.3g} in epoch {s.epoch}" for s in training.spikes]
    if training.parts > 1:
        problems.append(
            f"a batch did not fit into memory: it was split into {training.parts} parts, each with its own batch-norm statistics"
        )
    return f"{_name(training)}: {'; '.join(problems)}."


def _name(training: Unhealthy) -> str:
    return f"{training.arm.replace('_', ' ')} {training.level} of seed {training.seed}"


def _warnings(run: Run) -> list[str]:
    """What limits the results: missed targets, files of different searches, errors beyond tolerance, dead layers."""
    search, found = run.search, []
    if search.verdict.level is not None and search.verdict.level != search.ticket.level:
        found.append(f"The verdict names level {search.verdict.level}, but the saved ticket is of level {search.ticket.level}.")
    aimed = {"the ticket": search.target, **{shrink.output: shrink.target for shrink in run.shrinks}}
    found += [f"{name} misses its target ({target})." for name, target in aimed.items() if target is not None and target.missed_by]
    own = {search.ticket.checksum, run.sweep.pick.checksum if run.sweep else None}
    stale = [shrink.output for shrink in run.shrinks if shrink.ticket_checksum not in own]
    if run.sweep and run.sweep.ticket_checksum != search.ticket.checksum:
        found.append(f"sweep.json was made from another search; run `ltcompile sweep {shlex.quote(str(run.folder))}` again.")
    if stale:
        found.append(
            f"{', '.join(stale)} was made from another ticket than this search saved; run `{_command('shrink', run.folder)}` again."
        )
    known = {search.ticket_row.macs, *(shrink.macs for shrink in run.shrinks)}
    subjects = run.bench.subjects if run.bench else {}
    timed = {name: subject.macs for name, subject in subjects.items() if name != "dense"}
    again = f"run `{_command('bench', run.folder)}` again"
    found += [
        f"bench.json timed {name} with {units.count(macs)} MACs, which is neither the ticket nor a shrunk file; {again}."
        for name, macs in timed.items()
        if macs not in known
    ]
    if run.bench and run.bench.ticket_checksum not in (None, *own):
        found.append(f"bench.json timed {run.bench.target}, which was made from another ticket than this search saved; {again}.")
    found += [f"{s.output} is off by more than its tolerance; do not deploy it." for s in run.shrinks if not _agrees(s)]
    found += [
        f"{d.layer} is dead in {_name(training)}: all of its {d.of} channels are zero on validation images."
        for training in search.health or []
        for d in training.dead
        if d.channels == d.of
    ]
    return found


def _provenance(run: Run) -> list[Figures]:
    stages: list[tuple[str, Provenance]] = [("search", run.search.provenance)]
    stages += [(f"shrink ({s.output})", s.provenance) for s in sorted(run.shrinks, key=lambda s: (s.provenance.date, s.output))]
    stages += [("bench", run.bench.provenance)] if run.bench else []
    stages += [("sweep", run.sweep.provenance)] if run.sweep else []
    return [{"stage": stage, **asdict(provenance)} for stage, provenance in stages]
