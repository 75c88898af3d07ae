"""The curve to choose from: every level of a finished search, exported and timed side by side, and one of them picked by a rule."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from ltcompile.backends import Subject
from ltcompile.backends import compile as compile_for
from ltcompile.core.curve import CurvePoint, CurveTiming, Picked
from ltcompile.core.load import busy_share
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.records import Arm, Measurement, Trained, provenance
from ltcompile.core.ticket import Ticket
from ltcompile.errors import BadFile, BadSetting, Unavailable, unknown
from ltcompile.finding.kept import Kept
from ltcompile.graph import cut
from ltcompile.measure import bench as measure
from ltcompile.measure.bench import tile
from ltcompile.measure.subjects import images_of, misfit_of, read_weights, subject, told_images
from ltcompile.paths import check_writable, write_json
from ltcompile.shrinking import check_ticket_fits, dense_network, small_network

SWEEP, PICKED = "sweep.json", "picked.pt"
ARMS: tuple[Arm, ...] = ("dense", "ticket", "random")
KNEE, WITHIN, SMALLEST = RULES = ("knee", "fastest-within", "smallest")
Joules = Callable[[str, Callable[[], None], int], float]  # device, call, images in it -> what an image takes


@dataclass(frozen=True)
class Rule:
    """How a level is picked: "knee", "smallest", or "fastest-within" so many points of validation accuracy."""

    name: str
    points: float | None = None

    def __post_init__(self) -> None:
        """Raises UnknownName, and BadSetting where points are missing, too many or none."""
        if self.name not in RULES:
            raise unknown("rule to pick by", self.name, list(RULES))
        if self.name != WITHIN and self.points is not None:
            raise BadSetting(f"{self.name} takes no points; leave them out")
        if self.name == WITHIN and (self.points is None or not 0 <= self.points <= 100):
            raise BadSetting(f"{WITHIN} takes the points of validation accuracy that may be lost, 0 to 100, as in '{WITHIN} 0.5'")

    def __str__(self) -> str:
        return self.name if self.points is None else f"{self.name} {self.points:g}"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule in words: `knee`, `fastest-within 0.5` or `fastest-within=0.5`. Raises as a Rule does."""
        name, *rest = text.replace("=", " ").split() or [""]
        try:
            points = [float(word) for word in rest]
        except ValueError:
            points = [math.nan]
        if len(points) > 1:
            raise BadSetting(f"a rule takes one number at most, and {text!r} has {len(points)}; write '{WITHIN} 0.5'")
        return cls(name, *points)


@dataclass(frozen=True)
class Option:
    """A level as a rule sees it; level 0 is the dense network.

    `ms` is its median latency, `accuracy` its mean validation accuracy, a share; `sound`: the search's verdict
    includes it.
    """

    level: int
    ms: float
    accuracy: float
    macs: int
    sound: bool = False


def front(options: Iterable[Option]) -> list[Option]:
    """The Pareto front, from the fastest to the most accurate: no other option is as fast and as accurate as one of these, or better."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.ms, -o.accuracy, o.level)):
        if not found or option.accuracy > found[-1].accuracy:
            found.append(option)
    return found


def choose(rule: Rule, options: Sequence[Option]) -> tuple[Option | None, str]:
    """The ticket that `rule` picks, if it picks one, and the reason. Ties go to the faster, then to the lower level.

    The knee is the ticket on the Pareto front that lies farthest above the line between the front's ends, with both axes scaled to
    [0, 1]: Kneedle (Satopaa et al. 2011, "Finding a 'Kneedle' in a Haystack") on a front. Below the line nothing
    pays: where no ticket is above it, an end of the front is taken that is one, the more accurate first.
    """
    tickets = [option for option in options if option.level]
    if rule.name == SMALLEST:
        fit = [o for o in tickets if o.sound]
        smallest = min(fit, key=lambda o: (o.macs, o.ms, o.level), default=None)
        return (
            smallest,
            "it has the fewest MACs of the levels that the verdict includes" if smallest else "the verdict includes no level",
        )
    if rule.name == WITHIN:
        return _fastest_within(rule.points or 0.0, options, tickets)
    return _knee(front(options))


def _fastest_within(points: float, options: Sequence[Option], tickets: list[Option]) -> tuple[Option | None, str]:
    dense = next(o for o in options if not o.level)
    allowed = f"at most {points:g} points of validation accuracy below dense"
    fit = [o for o in tickets if below(o, dense) <= points]
    fastest = min(fit, key=lambda o: (o.ms, o.level), default=None)
    return fastest, f"it is the fastest that is {allowed}" if fastest else f"no level is {allowed}"


def below(option: Option, dense: Option) -> float:
    """How many points of accuracy `option` is below `dense`, to a billionth: less is rounding."""
    return round(100 * (dense.accuracy - option.accuracy), 9)


def _knee(ends: list[Option]) -> tuple[Option | None, str]:
    if not any(o.level for o in ends):
        return None, "the dense network is as fast and as accurate as every ticket"
    distances = {o: above_line(o, ends) for o in ends if o.level}
    knee = max(distances, key=lambda o: (distances[o], o.accuracy))
    if len(ends) == 1:
        return knee, "it is both the fastest and the most accurate"
    between = " and ".join(f"level {o.level}" if o.level else "dense" for o in (ends[0], ends[-1]))
    line = f"above the line between the ends of the Pareto front ({between}), axes scaled to [0, 1]"
    if knee in (ends[0], ends[-1]):
        return knee, f"it is an end of the front itself: no ticket lies {line}"
    return knee, f"it lies farthest, {distances[knee]:.2f}, {line}"


def above_line(option: Option, ends: Sequence[Option]) -> float:
    """How far an option lies above the line from the first to the last of a front, both axes scaled to [0, 1] over it."""
    first, last = ends[0], ends[-1]
    if first == last:
        return 0.0
    fast = (option.ms - first.ms) / (last.ms - first.ms)
    good = (option.accuracy - first.accuracy) / (last.accuracy - first.accuracy)
    return (good - fast) / math.sqrt(2)


@dataclass(frozen=True)
class Sweep:
    """The networks, their timings, and the pick; what was left out, with the reason; the settings of each backend on each device.

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
    backends: Sequence[str] = ("onnxruntime",),
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

    Networks are those of the first seed; accuracies are of validation images, over all seeds: the test set is no help in picking.

    Args:
        pick: the rule, as `Rule.parse` reads it; it looks at the latency on the first backend and device at the first batch size.
        data: the images that the networks are timed on; by default the ticket's own test images, or noise where they do not load.
        model: names one's own `package.module:factory` again where the tickets need it.
        joules: what an image takes, where a device counts that; it raises Unavailable where none does.

    Raises:
        BadFile: `run` holds no finished search, or one of its files is damaged. StaleTicket: it does not fit.
        UnknownName, BadSetting: no such rule. Others as `measure.bench`.
    """
    folder, rule, busy = Path(run), Rule.parse(pick), busy_share()
    ticket = _finished(folder)
    check_ticket_fits(ticket, model)
    for name in (SWEEP, PICKED):
        check_writable(folder / name)
    rows = _first_seed(ticket)
    images, labels = images_of(ticket.data, data, data_root)
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        subjects = [_subject(ticket, folder, row, Path(scratch)) for row in rows]
        points = [_point(ticket, row, found) for row, found in zip(rows, subjects, strict=True)]
        result = measure(
            subjects, images, None, backends=backends, devices=devices, batches=batches, seconds_per_row=seconds_per_row, on_row=on_row
        )
        spent, energy = _spent(joules, result.rows, subjects, images)
    options = {_place(row): _options(ticket, points, result.rows, _place(row)) for row in result.rows}
    timings = [_timing(row, used, points, options[_place(row)]) for row, used in zip(result.rows, spent, strict=True)]
    chosen, reason = choose(rule, options[_place(result.rows[0])])
    picked = None if chosen is None else ticket_of(ticket, folder, _row(ticket, "ticket", chosen.level))
    found = Sweep(
        points,
        timings,
        _pick(rule, picked, reason, result.rows[0]),
        result.skipped,
        result.details,
        energy,
        told_images(labels),
        busy,
    )
    _write(folder, ticket, found, picked)
    return found


def _finished(folder: Path) -> Ticket:
    """The ticket of a run folder. Raises BadFile where there is no finished search."""
    if not folder.is_dir():
        raise BadFile(f"{folder} is no run folder; name one that `ltcompile find` made")
    for name in ("search.json", "ticket.pt"):
        if not (folder / name).is_file():
            raise BadFile(f"{folder} holds no finished search: it has no {name}; make it with `ltcompile find`, or go on with --resume")
    return Ticket.load(folder / "ticket.pt")


def _first_seed(ticket: Ticket) -> list[Trained]:
    """The networks of the curve: dense, tickets by level, and the random control where it was trained."""
    first = min(row.seed for row in ticket.history)
    found = [row for row in ticket.history if row.seed == first and row.arm in ARMS]
    return sorted(found, key=lambda row: (ARMS.index(row.arm), row.level))


def _row(ticket: Ticket, arm: Arm, level: int) -> Trained:
    return next(row for row in _first_seed(ticket) if (row.arm, row.level) == (arm, level))


def _name(row: Trained) -> str:
    return "dense" if row.arm == "dense" else f"{row.arm}-{row.level}"


def ticket_of(ticket: Ticket, folder: Path, row: Trained) -> Ticket:
    """The ticket of `row`'s level, with the plan or mask and the weights that the search left in `folder`; of a control, with the control's.

    Raises BadFile.
    """
    home = folder / f"seed{row.seed}"
    file = home / f"{row.arm}-{row.level}.pt"
    plan = PruningPlan.load(home / f"plan-{row.level}.json")
    weights: Mapping[str, torch.Tensor] = read_weights(file, _name(row))
    if ticket.mask is not None:
        own = Kept(plan, WeightMask.load(home / f"mask-{row.level}.pt")).as_mask(dense_network(ticket))
        place: dict[str, Any] = {"seed": row.seed, "initial_seed": row.seed, "level": row.level}
        return dataclasses.replace(ticket, weights=weights, mask=own, provenance=provenance(), **place)
    same = dataclasses.replace(ticket, seed=row.seed, initial_seed=row.seed, level=row.level, plan=plan)
    if ticket.config.get("masked") is True and row.arm == "ticket":
        weights = cut(_loaded(same, file, weights), plan).state_dict()
    return dataclasses.replace(same, weights=weights, provenance=provenance())


def _loaded(ticket: Ticket, file: Path, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The dense network with weights of its own shape, from `file`."""
    dense = dense_network(ticket)
    try:
        dense.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise misfit_of(file, "the whole network", error) from error
    return dense


def _subject(ticket: Ticket, folder: Path, row: Trained, scratch: Path) -> Subject:
    """The network of `row`, folded and exported as `bench` does it."""
    if row.arm == "dense":
        file = folder / f"seed{row.seed}" / "dense-0.pt"
        network = _loaded(ticket, file, read_weights(file, "the dense network"))
    else:
        own = ticket_of(ticket, folder, row)
        network = small_network(own, dense_network(own))
    return subject(_name(row), network, torch.zeros(2, *ticket.data["shape"]), scratch)


def _point(ticket: Ticket, row: Trained, found: Subject) -> CurvePoint:
    rows = [other for other in ticket.history if (other.arm, other.level) == (row.arm, row.level)]
    shares = [other.val_accuracy for other in rows]
    return CurvePoint(
        name=_name(row),
        arm=row.arm,
        level=row.level,
        filters=row.filters,
        params=row.params,
        macs=row.macs,
        bytes=found.need_onnx("a sweep").stat().st_size,
        seeds=sorted(other.seed for other in rows),
        val_accuracy=fmean(shares),
        val_min=min(shares),
        val_max=max(shares),
        val_sd=stdev(shares) if len(shares) > 1 else None,
    )


def _place(row: Measurement) -> tuple[str, str, str, int]:
    """Where a row was timed: rows of one place were interleaved, and make one curve."""
    return row.backend, row.device, row.dtype, row.batch


def _options(ticket: Ticket, points: list[CurvePoint], rows: list[Measurement], place: tuple[str, str, str, int]) -> list[Option]:
    """The dense network and the tickets, as they ran at `place`."""
    ms = {row.subject: row.ms_p50 for row in rows if _place(row) == place}
    return [
        Option(p.level, ms[p.name], p.val_accuracy, p.macs, ticket.verdict.includes(p.level))
        for p in points
        if p.arm != "random" and p.name in ms
    ]


def _timing(row: Measurement, joules: float | None, points: list[CurvePoint], options: list[Option]) -> CurveTiming:
    point = next(p for p in points if p.name == row.subject)
    best = {option.level for option in front(options)}
    return CurveTiming(**row.to_json(), joules_per_image=joules, on_front=point.arm != "random" and point.level in best)


def _spent(joules: Joules | None, rows: list[Measurement], subjects: list[Subject], images: np.ndarray) -> tuple[list[float | None], str]:
    """What an image takes, row by row, and why it is not told where it is not."""
    if joules is None:
        return [None] * len(rows), "nobody was asked"
    spent: list[float | None] = []
    for row in rows:
        found = next(s for s in subjects if s.name == row.subject)
        try:
            call = compile_for(row.backend, found, row.device).prepare(tile(images, row.batch))
            spent.append(joules(row.device, call, row.batch))
        except Unavailable as reason:
            return [None] * len(rows), str(reason)
    return spent, ""


def _pick(rule: Rule, picked: Ticket | None, reason: str, row: Measurement) -> Picked:
    level, checksum = (None, None) if picked is None else (picked.level, picked.checksum)
    name = None if level is None else f"ticket-{level}"
    return Picked(str(rule), name, level, reason, row.backend, row.device, row.batch, checksum)


def _write(folder: Path, ticket: Ticket, found: Sweep, picked: Ticket | None) -> None:
    """Write the pick, then what tells of it; an earlier pick goes where there is none now."""
    if picked is None:
        (folder / PICKED).unlink(missing_ok=True)
    else:
        picked.save(folder / PICKED)
    value = {"kind": "sweep", "format": 1, "ticket_checksum": ticket.checksum, **found.to_json(), "provenance": provenance()}
    write_json(folder / SWEEP, value)
