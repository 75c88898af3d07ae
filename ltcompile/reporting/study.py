"""The page of a study: its claims with intervals, its figures and tables, in the one style that all pages and figures share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ltcompile.core.study import FILE, Claim, Estimate, Figure, Maps, Series, Study
from ltcompile.paths import write_text
from ltcompile.reporting import units
from ltcompile.reporting._drawing import BLUE, GREEN, GREY, LEGEND, ORANGE, PURPLE, figure_of, log_axis, safe, wrapped
from ltcompile.reporting.page import check_page, template

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "cross")  # colours alone do not survive a printer


def report(study: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of the study in the folder `study`, by default to study.html there; the file. Raises InvalidFile."""
    page = Path(output) if output is not None else Path(study) / "study.html"
    check_page(page)
    write_text(page, render(Study.load(Path(study) / FILE)))
    return page


def render(study: Study) -> str:
    """The page of a study; everything in it that came from a file is escaped."""
    drawn = {figure.name: json.loads(draw(figure).to_json()) for figure in study.figures}
    drawn |= {maps.name: json.loads(draw_maps(maps).to_json()) for maps in study.maps}
    claims = [_claim_row(claim) for claim in study.claims]
    return template("study.html.j2").render(s=study, claims=claims, answers=_counted(study), figures=drawn, plotlyjs=get_plotlyjs())


def _claim_row(claim: Claim) -> dict[str, Any]:
    """A claim as the page's table shows it."""
    return {
        "claim": claim,
        "found": _amount(claim.found.mean),
        "interval": _interval(claim.found),
        "bound": units.minus(f"{claim.bound:g}"),
        "class": ANSWERS[claim.answer],
    }


def _counted(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """How many claims have each answer, in words."""
    words = {
        "holds": ("holds", "hold"),
        "does not hold": ("does not", "do not"),
        "not decidable here": ("is not decidable", "are not decidable"),
    }
    counts = {answer: sum(claim.answer == answer for claim in study.claims) for answer in ANSWERS}
    return [(answer, {"class": ANSWERS[answer], "count": count, "words": words[answer][count != 1]}) for answer, count in counts.items()]


ANSWERS = {"holds": "yes", "does not hold": "no", "not decidable here": "soft"}


def _amount(value: float) -> str:
    return units.minus(f"{value:+.2f}")


def _interval(found: Estimate) -> str:
    return "none" if found.low is None or found.high is None else f"{_amount(found.low)} to {_amount(found.high)}"


def draw(figure: Figure) -> go.Figure:
    """A figure of a study in plotly."""
    rows = (len(figure.series) + 1) // 2  # of the legend, on a narrow page
    drawn = figure_of(380, 30 + 22 * rows, xaxis_title=wrapped(figure.x_axis, LEGEND), yaxis_title=wrapped(figure.y_axis, LEGEND))
    for series in figure.series:
        if series.look == "band":
            _band(drawn, series)
        else:
            drawn.add_trace(_line(series, figure))
    across = [x for series in figure.series for x in (*series.x, *(series.x_low or ()), *(series.x_high or ())) if x is not None]
    if figure.log_x and across:
        log_axis(drawn, min(across), max(across))
    return drawn


def _line(series: Series, figure: Figure) -> go.Scatter:
    """A line with its intervals; a control's is dashed, with hollow marks."""
    control, colour = series.look == "control", _colour(series)
    symbol = SYMBOLS[series.colour % len(SYMBOLS)]
    return go.Scatter(
        x=series.x,
        y=series.y,
        name=wrapped(series.name, LEGEND),
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": "dash" if control else "solid"},
        marker={"size": 8, "symbol": f"{symbol}-open" if control else symbol, "color": colour, "line": {"width": 1.5, "color": colour}},
        error_y=_bars(series.y, series.low, series.high, colour),
        error_x=_bars(series.x, series.x_low, series.x_high, colour) if series.x_low and series.x_high else None,
        hoverinfo="text",
        hovertext=[
            f"<b>{wrapped(series.name, LEGEND)}</b><br>{wrapped(f'{figure.x_axis}: {units.number(x)}', LEGEND)}<br>"
            f"{wrapped(f'{figure.y_axis}: {y:.2f}{_hover(low, high)}', LEGEND)}"
            for x, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True)
        ],
    )


def _colour(series: Series) -> str:
    return COLOURS[series.colour % len(COLOURS)]


def _hover(low: float | None, high: float | None) -> str:
    return " (one seed: no interval)" if low is None or high is None else f" ({low:.2f} to {high:.2f})"


def _bars(middle: list[float], low: list[float | None], high: list[float | None], colour: str) -> dict[str, Any]:
    """Error bars; none where a value has no interval."""
    above = [0.0 if end is None else max(0.0, end - value) for value, end in zip(middle, high, strict=True)]
    below = [0.0 if end is None else max(0.0, value - end) for value, end in zip(middle, low, strict=True)]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour, "thickness": 1.2, "width": 4}


def _band(figure: go.Figure, series: Series) -> None:
    """A level line across the figure, and its interval behind the others."""
    colour, value = _colour(series), series.y[0]
    if series.low[0] is not None and series.high[0] is not None:
        figure.add_hrect(y0=series.low[0], y1=series.high[0], fillcolor=colour, opacity=0.15, line_width=0, layer="below")
    figure.add_hline(y=value, line={"color": colour, "width": 1.5, "dash": "dot"})
    known = {
        "mode": "lines",
        "line": {"color": colour, "width": 1.5, "dash": "dot"},
        "name": wrapped(f"{series.name}: {value:.2f}", LEGEND),
    }
    figure.add_trace(go.Scatter(x=[None], y=[value], hoverinfo="skip", **known))  # in the legend, and inside the axis' range


ACROSS = 6  # pictures side by side
SCALE = [[0.0, BLUE], [0.5, "rgba(127, 127, 127, 0.12)"], [1.0, ORANGE]]


def draw_maps(maps: Maps) -> go.Figure:
    """Pictures as one heatmap with gaps between them, each below its name, of which a colon begins a line of its own."""
    height, width = len(maps.pictures[0].rows), len(maps.pictures[0].rows[0])
    across, down = min(ACROSS, len(maps.pictures)), -(-len(maps.pictures) // ACROSS)
    gap, head = max(1, width // 16), -(-height // 3) + 1
    sheet: list[list[int | None]] = [[None] * (across * (width + gap) - gap) for _ in range(down * (height + head))]
    names = []
    for place, picture in enumerate(maps.pictures):
        top, left = (place // across) * (height + head) + head, (place % across) * (width + gap)
        for y, row in enumerate(picture.rows):
            sheet[top + y][left : left + width] = row
        names.append(
            {"x": left - 0.5, "y": top - 0.5, "text": safe(picture.name).replace(": ", "<br>"), "align": "left", "font": {"size": 11}}
        )
    drawn = figure_of(round(660 / len(sheet[0]) * len(sheet)) + 20, 0, showlegend=False)
    bar = {"title": {"text": safe(maps.unit), "side": "right"}, "thickness": 10}
    drawn.add_trace(go.Heatmap(z=sheet, zmin=-100, zmax=100, colorscale=SCALE, colorbar=bar, hovertemplate="%{z}<extra></extra>"))
    for name in names:
        drawn.add_annotation(xanchor="left", yanchor="bottom", showarrow=False, **name)
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", constrain="domain")
    return drawn
