"""What the pictures of all pages share: colours, labels, empty figures, marks and logarithmic axes."""

from __future__ import annotations

import html
import math
import textwrap
from typing import Any

import plotly.graph_objects as go

# Okabe & Ito's palette, distinguishable under common colour blindness, on light and dark backgrounds.
GREY, BLUE, ORANGE, GREEN, PURPLE = "#7f7f7f", "#0f7fc0", "#d55e00", "#009e73", "#cc79a7"
SUBJECTS = (BLUE, GREEN, PURPLE, ORANGE)
SYMBOLS = ("circle", "triangle-up", "cross", "star")
LABEL, LEGEND = 24, 44  # characters: a third of a telephone's width, and all of it


def safe(text: str) -> str:
    """Text from files: escaped, since plotly interprets some HTML in labels."""
    return html.escape(text, quote=False)


def wrapped(text: str, width: int) -> str:
    """Text from files as lines of at most `width` characters, so that a label leaves room for its figure on a narrow screen."""
    return "<br>".join(map(safe, textwrap.wrap(text, width, break_on_hyphens=False)))


def figure_of(height: int, top: int, **layout: Any) -> go.Figure:
    """An empty figure; `top` pixels of its height are for the legend, which wraps on narrow screens."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height + top,
        margin={"l": 8, "r": 12, "t": top, "b": 8},
        font={"family": "system-ui, sans-serif", "size": 13},
        hovermode="closest",
        dragmode=False,
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "xref": "container", "x": 0.01},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        **layout,
    )
    figure.update_layout(xaxis_title_font_size=13, yaxis_title_font_size=13, legend_font_size=12)
    figure.update_xaxes(automargin=True, fixedrange=True, showline=True, ticks="outside")
    figure.update_yaxes(automargin=True, fixedrange=True, zeroline=False)
    return figure


def marks(
    x: list[float], y: list[Any], name: str, hover: list[str], symbol: str, size: int, colour: str, line: float = 0, **more: Any
) -> go.Scatter:
    """Points with texts that appear on hovering; `line` is the width of their outlines."""
    marker = {"symbol": symbol, "size": size, "color": colour, "line": {"width": line, "color": colour}}
    return go.Scatter(x=x, y=y, name=name, mode="markers", hovertext=hover, hoverinfo="text", marker=marker, **more)


def interval(rows: list[dict[str, Any]], middle: str, low: str, high: str, colour: str) -> dict[str, Any]:
    """Error bars; clipped at 0, since rounding may put a bound on the wrong side of its value."""
    return {
        "array": [max(0.0, row[high] - row[middle]) for row in rows],
        "arrayminus": [max(0.0, row[middle] - row[low]) for row in rows],
        "color": colour,
        "thickness": 1.6,
        "width": 5,
    }


def log_axis(figure: go.Figure, low: float, high: float) -> None:
    """Make the x axis logarithmic, with full numbers at its ticks: plotly's default labels 20 as 2."""
    ticks = _log_ticks(low, high)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`: three a decade, or five where that would leave too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    dense, sparse = ([float(f"{digit}e{decade}") for decade in decades for digit in digits] for digits in ((1, 2, 3, 5, 7), (1, 2, 5)))
    within = [tick for tick in sparse if low <= tick <= high]
    return within if len(within) > 2 else [tick for tick in dense if 0.95 * low <= tick <= 1.05 * high]
