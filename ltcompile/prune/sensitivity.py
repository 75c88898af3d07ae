"""How sensitive a network is to cuts of each group alone: its score after so many per cent of one group's channels are gone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ltcompile.core.plan import Group, PruningPlan
from ltcompile.core.records import Record
from ltcompile.core.streams import generator, stream
from ltcompile.errors import InvalidFile, InvalidSetting, LtcompileError
from ltcompile.graph import Example, cut, trace
from ltcompile.graph.wrappers import unwrap
from ltcompile.paths import read_json, write_json, write_text
from ltcompile.prune import criteria
from ltcompile.prune.choose import Ranking
from ltcompile.prune.criteria import Evidence
from ltcompile.prune.limits import Limits

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class SensitivityRow(Record):
    """The score of the network where `group` (and what is tied to it) keeps `kept` of its `width` channels, the highest-ranked ones."""

    group: str
    width: int
    kept: int
    ratio: float
    score: float


@dataclass(frozen=True)
class Sensitivity(Record):
    """The rows of all groups, and the score of the whole network; `checksum` is that of its weights and of the settings."""

    checksum: str
    dense: float
    rows: tuple[SensitivityRow, ...] = ()

    def write_html(self, path: str | Path, metric: str = "score") -> None:
        """Write the curves of all groups as one page that needs nothing but a browser. Raises InvalidSetting where there is no Plotly."""
        try:
            import plotly.graph_objects as go
        except ImportError as error:
            raise InvalidSetting("a picture needs plotly; run `pip install 'ltcompile[report]'`") from error
        figure = go.Figure()
        for name in dict.fromkeys(row.group for row in self.rows):
            mine = [row for row in self.rows if row.group == name]
            x, y = [0.0, *(row.ratio for row in mine)], [self.dense, *(row.score for row in mine)]
            texts = [f"{mine[0].width} channels", *(f"{row.kept} of {row.width} channels" for row in mine)]
            figure.add_trace(go.Scatter(x=x, y=y, name=name, mode="lines+markers", hovertext=texts))
        figure.update_layout(template="none", title="Sensitivity of each layer, cut alone", height=700)
        figure.update_layout(xaxis={"title": "channels cut", "tickformat": ".0%"}, yaxis={"title": metric})
        write_text(path, figure.to_html(include_plotlyjs=True))


def sensitivity(
    model: nn.Module,
    example: Example,
    score: Callable[[nn.Module], float],
    ratios: Sequence[float] = RATIOS,
    criterion: str = "l1",
    *,
    evidence: Evidence | None = None,
    limits: Limits | None = None,
    output: str | Path | None = None,
    on_row: Callable[[SensitivityRow, int], None] | None = None,
) -> Sensitivity:
    """The score of `model` after cuts of each group alone, one group and ratio after the other; `model` stays as it is.

    Args:
        example: an input of the network, as `lt.plan` takes it.
        score: what is measured of each cut network, in eval mode; any number, such as validation accuracy.
        ratios: the shares of a group's channels to cut, in (0, 1).
        criterion, evidence: how channels are ranked, as in `lt.plan`.
        limits: the layers to look at, and their least widths.
        output: a JSON file that every row is written to. Rows that it holds already of this network and these settings are not measured
            again; it belongs to one `score`.
        on_row: gets each new row, and how many there will be in all.

    Raises:
        InvalidSetting: a ratio outside (0, 1), or a score that is not a finite number. InvalidModel: the network cannot be traced.
        InvalidFile: `output` is of something else.
    """
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise InvalidSetting(f"ratios={list(ratios)} must lie between 0 and 1")
    model, limits = unwrap(model), limits or Limits()
    groups = limits.freeze(trace(model, example))
    scores = criteria.score(criterion, groups, model, evidence or Evidence(rng=generator(stream("random scores", 0))))
    ranking = Ranking(groups, scores, "local", floors=limits.floors(groups))
    checksum = _checksum(model, groups, criterion, limits)
    found = _read(Path(output), checksum) if output is not None and Path(output).exists() else None
    found = found or Sensitivity(checksum, _finite(score(cut(model, PruningPlan(groups)).eval())))
    plans = list(_plans(ranking, ratios))
    known = {(row.group, row.kept): row for row in found.rows}
    rows: list[SensitivityRow] = []
    for group, kept, ratio, plan in plans:
        if (row := known.get((group.name, kept))) is None:
            row = SensitivityRow(group.name, group.width, kept, ratio, _finite(score(cut(model, plan).eval())))
            known[group.name, kept] = row
            if on_row is not None:
                on_row(row, len(plans))
            if output is not None:
                write_json(output, asdict(Sensitivity(checksum, found.dense, tuple(known.values()))))
        rows.append(row)
    return Sensitivity(checksum, found.dense, tuple(rows))


def _finite(score: Any) -> float:
    """Raises InvalidSetting where a score is not a finite number."""
    try:
        value = float(score)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not math.isfinite(value):
        raise InvalidSetting(f"score= returned {score!r} for a network; it must return a finite number, higher or lower as you like")
    return value


def _plans(ranking: Ranking, ratios: Sequence[float]) -> Iterator[tuple[Group, int, float, PruningPlan]]:
    """The first group of each set of tied ones, the channels that it keeps, the ratio that this is, and the plan that cuts this set alone."""
    whole = ranking.steps(0.0)
    for place, (tied, least, _) in enumerate(ranking.bounds):
        counts = {max(least, round((1 - ratio) * tied.steps)) for ratio in ratios} - {tied.steps}
        for steps in sorted(counts, reverse=True):
            plan = ranking.plan((*whole[:place], steps, *whole[place + 1 :]))
            yield tied.groups[0], tied.channels(tied.groups[0], steps), round(1 - steps / tied.steps, 4), plan


def _checksum(model: nn.Module, groups: tuple[Group, ...], criterion: str, limits: Limits) -> str:
    digest = hashlib.sha256(repr((criterion, limits, [(g.name, g.width, g.frozen) for g in groups])).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, checksum: str) -> Sensitivity:
    found = read_sensitivity(path)
    if found.checksum != checksum:
        raise InvalidFile(f"{path} is of another network, criterion or limits; remove it, or choose another output")
    return found


def read_sensitivity(path: str | Path) -> Sensitivity:
    """What `sensitivity` wrote. Raises InvalidFile."""
    found: Any = read_json(path, "sensitivity")
    try:
        return Sensitivity.from_json(found)
    except LtcompileError as error:
        raise InvalidFile(f"{path} is not a sensitivity file: {error}; remove it") from error
