"""What a study says: claims with their intervals, tables and figures. study.json holds it, and the report draws it, as plain rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ltcompile.core.fields import short
from ltcompile.core.records import Record
from ltcompile.core.result_file import FORMAT, read_result
from ltcompile.errors import InvalidFile
from ltcompile.paths import write_json

FILE = "study.json"
JOB = "study-job.json"  # what another process needs to take part in a study
FEWEST_SEEDS = 3  # fewer hardly estimate the spread between trainings

Answer = Literal["holds", "does not hold", "not decidable here"]
Side = Literal["above", "below"]
Look = Literal["line", "control", "band"]


@dataclass(frozen=True)
class Estimate(Record):
    """A mean over seeds with its two-sided 95 % interval; one seed gives none."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def __post_init__(self) -> None:
        """Raises InvalidFile where the interval does not hold the mean, or is there although there is one seed."""
        if (self.low is None) != (self.high is None) or (self.low is None) != (self.seeds == 1) or self.seeds < 1:
            raise InvalidFile(f"an interval over {short(self.seeds)} seeds from {short(self.low)} to {short(self.high)} is none")
        if self.low is not None and self.high is not None and not self.low <= self.mean <= self.high:
            raise InvalidFile(f"{short(self.mean)} is not inside its interval from {short(self.low)} to {short(self.high)}")

    def lies(self, side: Side, bound: float) -> Answer:
        """Whether the whole interval is on that side of `bound`; the whole of it on the other side is a no, all else is not an answer."""
        if self.low is None or self.high is None or self.low <= bound <= self.high:
            return "not decidable here"
        return "holds" if (self.low > bound) == (side == "above") else "does not hold"

    def __str__(self) -> str:
        interval = "no interval" if self.low is None or self.high is None else f"{self.low:+.2f} to {self.high:+.2f}"
        return f"{self.mean:+.2f} ({interval})"


@dataclass(frozen=True)
class Claim(Record):
    """What `source` says, as a bound on a number; `found` is that number here, in `unit`, and `answer` follows from its interval."""

    statement: str
    source: str
    number: str
    unit: str
    found: Estimate
    side: Side
    bound: float
    answer: Answer
    rule: str
    note: str

    def __post_init__(self) -> None:
        """Raises InvalidFile where the answer is not what the interval says."""
        if self.answer != (expected := self.found.lies(self.side, self.bound)):
            raise InvalidFile(f"the claim {short(self.statement)} is said to be {self.answer!r}, and its interval says {expected!r}")

    @classmethod
    def judged(
        cls, statement: str, source: str, number: str, found: Estimate, side: Side, bound: float = 0.0, unit: str = "points"
    ) -> Claim:
        """The claim with its answer, and the rule in words."""
        rule = (
            f"holds if the whole 95 % interval lies {side} {bound:g} {unit}, does not hold if the whole of it lies on the other side, "
            "else not decidable here"
        )
        few = f"{found.seeds} seed{'s' * (found.seeds > 1)} only: " if found.seeds < FEWEST_SEEDS else ""
        why = "there is no interval" if found.seeds == 1 else "the interval rests on hardly any spread between trainings"
        tied = found.low is not None and found.low == found.high
        note = f"{few}{why}" if few else "all seeds give the same value: the number comes in steps, and the interval is narrower than one"
        return cls(statement, source, number, unit, found, side, bound, found.lies(side, bound), rule, note if few or tied else "")


@dataclass(frozen=True)
class Table(Record):
    """Rows of texts under the names of their columns, which contain units."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidFile where a row has more or fewer cells than there are columns."""
        if not self.columns or any(len(row) != len(self.columns) for row in self.rows):
            raise InvalidFile(f"the table {short(self.title)} has rows of other lengths than its {len(self.columns)} columns")


@dataclass(frozen=True)
class Series(Record):
    """Points of one colour: a line with intervals, a dashed one of a control, or a level band (one y, no x).

    `low` and `high` bound each y, `x_low` and `x_high` each x; None where there is no interval.
    """

    name: str
    look: Look
    colour: int
    x: list[float]
    y: list[float]
    low: list[float | None]
    high: list[float | None]
    x_low: list[float | None] | None = None
    x_high: list[float | None] | None = None

    def __post_init__(self) -> None:
        """Raises InvalidFile where the lists do not fit each other."""
        bounds = [len(bound) for bound in (self.x_low, self.x_high) if bound is not None]
        lengths = {len(self.y), len(self.low), len(self.high), *bounds}
        if lengths != {1 if self.look == "band" else len(self.x)} or (self.look == "band" and (self.x or bounds)):
            raise InvalidFile(f"the series {short(self.name)} has lists of different lengths")
        if (self.x_low is None) != (self.x_high is None) or self.colour < 0:
            raise InvalidFile(f"the series {short(self.name)} lacks one side of its intervals, or has no colour")


@dataclass(frozen=True)
class Figure(Record):
    """Series over axes whose labels end in their units, as in "filters removed (%)"."""

    name: str
    title: str
    x_axis: str
    y_axis: str
    caption: str
    series: list[Series]
    log_x: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidFile where an axis has no unit, the name is none, or a logarithmic axis has points that it cannot hold."""
        _check_name(self.name)
        for axis in (self.x_axis, self.y_axis):
            if not re.search(r"\(.+\)$", axis):
                raise InvalidFile(f"the axis {short(axis)} of the figure {self.name} does not name its unit in brackets")
        if self.log_x and any(x <= 0 for series in self.series for x in (*series.x, *(series.x_low or ())) if x is not None):
            raise InvalidFile(f"the figure {self.name} has a logarithmic axis, and points at or below 0 on it")


@dataclass(frozen=True)
class Picture(Record):
    """A small image as rows of whole numbers from -100 to 100, the uppermost first."""

    name: str
    rows: list[list[int]]

    def __post_init__(self) -> None:
        """Raises InvalidFile where rows differ in length, or a number is beyond the scale."""
        if not self.rows or not self.rows[0] or len({len(row) for row in self.rows}) > 1:
            raise InvalidFile(f"the picture {short(self.name)} has rows of different lengths, or none")
        if any(not -100 <= value <= 100 for row in self.rows for value in row):
            raise InvalidFile(f"the picture {short(self.name)} has numbers outside -100 to 100")


@dataclass(frozen=True)
class Maps(Record):
    """Pictures of one size in a grid, all on one scale of colours, whose `unit` says what 100 is."""

    name: str
    title: str
    unit: str
    caption: str
    pictures: list[Picture]

    def __post_init__(self) -> None:
        """Raises InvalidFile where the name is not valid, or pictures are missing or of different sizes."""
        _check_name(self.name)
        if len({(len(picture.rows), len(picture.rows[0])) for picture in self.pictures}) != 1:
            raise InvalidFile(f"the pictures of {self.name} are missing, or of different sizes")


def _check_name(name: str) -> None:
    """Raises InvalidFile where the page could not call a figure so."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise InvalidFile(f"{short(name)} is not a name of a figure: small letters, digits and dashes")


@dataclass(frozen=True)
class ArmNote(Record):
    """A search of the study: its settings, its own verdict, and Ma et al.'s conditions at the level of that."""

    name: str
    model: str
    data: str
    images: dict[str, int]
    config: dict[str, Any]
    recipe: dict[str, Any]
    summary: list[str]
    flags: dict[str, bool | None]
    prize: str
    training_seconds: float


@dataclass(frozen=True)
class Study(Record):
    """A finished study: what it is, how it was done, and what it says."""

    name: str
    title: str
    source: str
    scale: str
    about: list[str]
    seeds: list[int]
    arms: list[ArmNote]
    claims: list[Claim]
    tables: list[Table]
    figures: list[Figure]
    provenance: dict[str, Any]
    maps: list[Maps] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises InvalidFile where two figures have one name, or there are no results."""
        names = [*(figure.name for figure in self.figures), *(maps.name for maps in self.maps)]
        if len(set(names)) < len(names) or not self.arms or not self.seeds:
            raise InvalidFile("a study has arms and seeds, and figures of different names")

    def save(self, folder: Path) -> Path:
        """Write `folder`/study.json, atomically. Raises InvalidFile."""
        write_json(folder / FILE, {"kind": "study", "format": FORMAT, **self.to_json()})
        return folder / FILE

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """What `save` wrote, every field checked. Raises InvalidFile."""
        found: Study = read_result(path, {"study": cls}, "`ltcompile study`", remedy="run that again with --resume")
        return found
