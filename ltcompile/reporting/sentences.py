"""The sentences of a report: the verdict, its controls, unhealthy trainings, and what limits the results."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ltcompile.core.run_folder import RunFolder
from ltcompile.reporting import units
from ltcompile.reporting.inputs import Run, Search, Unhealthy

Figures = dict[str, Any]
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
ANSWERS = {True: "yes", False: "no", None: "not tested"}


def command(stage: str, folder: Path) -> str:
    """The command that adds the part that `stage` makes."""
    small, ticket = (shlex.quote(str(path)) for path in (folder / "small.onnx", RunFolder(folder).ticket))
    return f"ltcompile shrink {ticket} -o {small}" if stage == "shrink" else f"ltcompile bench {small}"


def verdict(search: Search, figures: Figures) -> Figures:
    """The verdict with its sentences; `figures` are those of the report without it."""
    found = asdict(search.verdict)
    flags, reasons = found.pop("flags"), found.pop("flag_reasons")
    return {
        **found,
        "won": search.verdict.won,
        "sentence": _sentence(search, figures),
        "controls": [_control_sentence(search, control) for control in figures["controls"]],
        "controls_not_beaten": [c["arm"] for c in figures["controls"] if c["outcome"] in ("better", "not beaten", "undecided")],
        "flags": [
            {"name": name, "condition": CONDITIONS.get(name, name), "answer": ANSWERS[flag], "reason": reasons.get(name, "")}
            for name, flag in flags.items()
        ],
    }


def _sentence(search: Search, figures: Figures) -> str:
    verdict = search.verdict
    shown = next(level for level in figures["levels"] if level["chosen"])
    axis = figures["axis"]
    gone = next(size["removed_share"] for size in figures["sparsity"] if size["what"] == axis)
    there = f"{units.percent(gone)} of the {units.SIZES[axis]} are gone"
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


def unhealthy(training: Unhealthy) -> str:
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


def warnings(run: Run, figures: Figures) -> list[str]:
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
            f"{', '.join(stale)} was made from another ticket than this search saved; run `{command('shrink', run.folder)}` again."
        )
    known = {search.ticket_row.macs, *(shrink.macs for shrink in run.shrinks)}
    subjects = run.bench.subjects if run.bench else {}
    timed = {name: subject.macs for name, subject in subjects.items() if name != "dense"}
    again = f"run `{command('bench', run.folder)}` again"
    found += [
        f"bench.json timed {name} with {units.count(macs)} MACs, which is neither the ticket nor a shrunk file; {again}."
        for name, macs in timed.items()
        if macs not in known
    ]
    if run.bench and run.bench.ticket_checksum not in (None, *own):
        found.append(f"bench.json timed {run.bench.target}, which was made from another ticket than this search saved; {again}.")
    if figures["formats"] and figures["formats"]["ticket_checksum"] not in (None, *own):
        found.append("formats.json is of another ticket than this search saved; run `ltcompile bench --formats` again.")
    off = [shrink["output"] for shrink in figures["shrinks"] if shrink["within_tolerance"] is False]
    found += [f"{output} is off by more than its tolerance; do not deploy it." for output in off]
    found += [
        f"{d.layer} is dead in {_name(training)}: all of its {d.of} channels are zero on validation images."
        for training in search.health or []
        for d in training.dead
        if d.channels == d.of
    ]
    return found
