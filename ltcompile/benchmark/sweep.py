"""The curve to choose from: every level of a finished search, exported and timed side by side, and one of them picked by a rule."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from ltcompile.benchmark.rows import measure
from ltcompile.benchmark.subjects import items_of, subject_of
from ltcompile.core.arm import Arm, ArmKind
from ltcompile.core.curve import CurvePoint, CurveTiming, Picked
from ltcompile.core.deployment import Deployment
from ltcompile.core.load import busy_share
from ltcompile.core.picking import KNEE, Option, Rule, pareto_front, pick_by
from ltcompile.core.records import Measurement, Trained, provenance
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.ticket import Ticket
from ltcompile.errors import InvalidSetting, Unavailable
from ltcompile.graph import cut
from ltcompile.lower.answers import extended, feeds
from ltcompile.lower.inputs import Inputs
from ltcompile.paths import check_writable, write_json
from ltcompile.pruned import compact, dense_network, pruned_of
from ltcompile.runtimes import Subject, load
from ltcompile.search.selection import Selection

ARMS: tuple[ArmKind, ...] = ("dense", "ticket", "random")
Joules = Callable[[str, Callable[[], object], int], float]  # device, call, images in it -> what an image takes


@dataclass(frozen=True)
class Sweep:
    """The networks, their timings, and the pick; what was left out, with the reason; the settings of each runtime on each device.

    `energy` says why there are no joules, or "" where there are; `images`, on which the networks were timed; `busy_share`, how much of
    the machine other work took just before.
    """

    points: list[CurvePoint]
    rows: list[CurveTiming]
    pick: Picked
    skipped: dict[str, str]
    details: dict[str, dict[str, str]]
    energy: str
    images: str
    busy_share: float | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def sweep(
    run: str | Path,
    *,
    pick: str = KNEE,
    runtimes: Sequence[str] = ("onnxruntime",),
    devices: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 64),
    data: str | None = None,
    data_root: str | Path = "data",
    model: str | None = None,
    seconds_per_row: float = 2.0,
    joules: Joules | None = None,
    on_row: Callable[[Measurement], None] | None = None,
) -> Sweep:
    """Time the dense network, every level's ticket and the random control of a finished search; write RUN/sweep.json and RUN/picked.pt.

    Networks are those of the first seed; the metric is that of validation items, over all seeds: the test set plays no part in the choice. The
    picked network is measured again in a fresh run, since the run that picked it is biased in its favour; where speed decided, in turns with
    the second fastest.

    Args:
        pick: the rule, as `Rule.parse` reads it; it looks at the latency on the first runtime and device at the first batch size.
        data: the images that classifiers are timed on; by default the ticket's own test images, or noise where they do not load. Networks for
            other tasks are timed on the task's example and noise like it.
        model: names one's own `package.module:factory` again where the tickets need it.
        joules: what an image takes, where a device counts that; it raises Unavailable where none does.

    Raises:
        InvalidFile: `run` holds no finished search, or one of its files is damaged. TicketMismatch: it does not fit.
        UnknownName, InvalidSetting: no such rule. Others as `measure.bench`.
    """
    folder, rule, busy = Path(run), Rule.parse(pick), busy_share()
    if RunFolder(folder).own_summary.is_file():
        raise InvalidSetting(
            f"{folder} is a search in a loop of your own, whose levels only your code can build: sweep times the levels of `ltcompile find`; "
            "time each with lt.bench(search.result(level=1)), or the one that it found with `ltcompile bench --model ...`"
        )
    ticket = RunFolder(folder).finished()
    for file in (RunFolder(folder).sweep, RunFolder(folder).picked):
        check_writable(file)
    rows = _first_seed(ticket)
    pruned = pruned_of(ticket, model)
    items = items_of(pruned, pruned.classified, data, data_root)
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        subjects = [subject_of(_name(row), _network(ticket, folder, row, model), pruned, Path(scratch)) for row in rows]
        points = [_point(ticket, row, found) for row, found in zip(rows, subjects, strict=True)]
        where: dict[str, Any] = {"runtimes": runtimes, "devices": devices, "batches": batches}
        result = measure(subjects, items.inputs, **where, seconds_per_row=seconds_per_row, on_row=on_row)
        spent, energy = _spent(joules, result.rows, subjects, items.inputs)
        options = {_place(row): _options(ticket, points, result.rows, _place(row)) for row in result.rows}
        first = result.rows[0]

        def again(names: Sequence[str]) -> list[Measurement]:
            """A fresh run of some of the networks where the rule looks, with speedups over the first of them."""
            some = [next(s for s in subjects if s.name == name) for name in names]
            there: dict[str, Any] = {"runtimes": [first.runtime], "devices": [first.device], "batches": [first.batch]}
            return measure(some, items.inputs, reference=names[0], seconds_per_row=seconds_per_row, **there).rows

        chosen = pick_by(rule, options[_place(first)], first, again, ticket.metric)
    timings = [_timing(row, used, points, options[_place(row)]) for row, used in zip(result.rows, spent, strict=True)]
    picked = None if chosen.level is None else ticket_of(ticket, folder, _row(ticket, "ticket", chosen.level))
    found = Sweep(
        points,
        timings,
        dataclasses.replace(chosen, checksum=None if picked is None else picked.checksum),
        result.skipped,
        result.details,
        energy,
        items.origin,
        busy,
    )
    _write(folder, ticket, found, picked)
    return found


def _first_seed(ticket: Ticket) -> list[Trained]:
    """The networks of the curve: dense, tickets by level, and the random control where it was trained."""
    first = min(row.seed for row in ticket.history)
    found = [row for row in ticket.history if row.seed == first and row.arm in ARMS]
    return sorted(found, key=lambda row: (ARMS.index(row.arm), row.level))


def _row(ticket: Ticket, arm: ArmKind, level: int) -> Trained:
    return next(row for row in _first_seed(ticket) if (row.arm, row.level) == (arm, level))


def _name(row: Trained) -> str:
    return "dense" if row.arm == "dense" else f"{row.arm}-{row.level}"


def ticket_of(ticket: Ticket, folder: Path, row: Trained) -> Ticket:
    """The ticket of `row`'s level, with the plan or mask and the weights that the search left in `folder`; of a control, with the control's.

    Raises InvalidFile.
    """
    run, arm = RunFolder(folder), Arm(row.seed, row.arm, row.level)
    plan, mask = run.load_selection(row.seed, row.level, ticket.mask is not None)
    weights: Mapping[str, torch.Tensor] = run.weights(arm, _name(row))
    if ticket.mask is not None:
        own = Selection(plan, mask).as_mask(dense_network(ticket))
        place: dict[str, Any] = {"seed": row.seed, "initial_seed": row.seed, "level": row.level}
        return dataclasses.replace(ticket, weights=weights, mask=own, provenance=provenance(), **place)
    same = dataclasses.replace(ticket, seed=row.seed, initial_seed=row.seed, level=row.level, plan=plan)
    if ticket.config.get("masked") is True and row.arm == "ticket":
        weights = cut(_loaded(same, run, arm, "the whole network"), plan).state_dict()
    return dataclasses.replace(same, weights=weights, provenance=provenance())


def _loaded(ticket: Ticket, run: RunFolder, arm: Arm, what: str) -> torch.nn.Module:
    """The dense network with the weights of `arm`, which have its shapes."""
    dense = dense_network(ticket)
    run.load_weights(dense, arm, what)
    return dense


def _network(ticket: Ticket, folder: Path, row: Trained, model: str | None) -> nn.Module:
    if row.arm == "dense":
        return _loaded(ticket, RunFolder(folder), Arm(row.seed, "dense", 0), "the dense network")
    return compact(pruned_of(ticket_of(ticket, folder, row), model)).small


def _point(ticket: Ticket, row: Trained, found: Subject) -> CurvePoint:
    rows = [other for other in ticket.history if (other.arm, other.level) == (row.arm, row.level)]
    shares = [other.val_score for other in rows]
    return CurvePoint(
        name=_name(row),
        arm=row.arm,
        level=row.level,
        filters=row.filters,
        params=row.params,
        macs=row.macs,
        bytes=len(found.onnx_bytes("a sweep")),
        seeds=sorted(other.seed for other in rows),
        val_score=fmean(shares),
        val_min=min(shares),
        val_max=max(shares),
        val_sd=stdev(shares) if len(shares) > 1 else None,
    )


def _place(row: Measurement) -> tuple[str, str, str, int]:
    """Where a row was timed: rows of one place were interleaved, and make one curve."""
    return row.runtime, row.device, row.dtype, row.batch


def _options(ticket: Ticket, points: list[CurvePoint], rows: list[Measurement], place: tuple[str, str, str, int]) -> list[Option]:
    """The dense network and the tickets, as they ran at `place`."""
    ms = {row.subject: row.ms_p50 for row in rows if _place(row) == place}
    return [
        Option(p.level, ms[p.name], ticket.metric.worth(p.val_score), p.macs, ticket.verdict.includes(p.level))
        for p in points
        if p.arm != "random" and p.name in ms
    ]


def _timing(row: Measurement, joules: float | None, points: list[CurvePoint], options: list[Option]) -> CurveTiming:
    point = next(p for p in points if p.name == row.subject)
    best = {option.level for option in pareto_front(options)}
    return CurveTiming(**row.to_json(), joules_per_image=joules, on_front=point.arm != "random" and point.level in best)


def _spent(joules: Joules | None, rows: list[Measurement], subjects: list[Subject], inputs: Inputs) -> tuple[list[float | None], str]:
    """What an image takes, row by row, and why there is none where it is not measured."""
    if joules is None:
        return [None] * len(rows), "energy was not requested"
    spent: list[float | None] = []
    for row in rows:
        found = next(s for s in subjects if s.name == row.subject)
        try:
            session = load(found, Deployment(row.device, row.runtime, row.batch))
            spent.append(joules(row.device, session.bind(feeds(extended(inputs, row.batch))).call, row.batch))
        except Unavailable as reason:
            return [None] * len(rows), str(reason)
    return spent, ""


def _write(folder: Path, ticket: Ticket, found: Sweep, picked: Ticket | None) -> None:
    """Write the picked ticket, then its description; without a pick, an earlier one is deleted."""
    run = RunFolder(folder)
    if picked is None:
        run.picked.unlink(missing_ok=True)
    else:
        picked.save(run.picked)
    value = {"kind": "sweep", "format": 1, "ticket_checksum": ticket.checksum, **found.to_json(), "provenance": provenance()}
    write_json(run.sweep, value)
