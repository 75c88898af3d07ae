"""The page's pictures, as plotly figures. figures.js sets the colours of text and grid for light, dark and print."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go

from ltcompile.core.task import Metric
from ltcompile.reporting import units
from ltcompile.reporting._drawing import (
    BLUE,
    GREEN,
    GREY,
    LABEL,
    LEGEND,
    ORANGE,
    PURPLE,
    SUBJECTS,
    SYMBOLS,
    figure_of,
    interval,
    log_axis,
    marks,
    safe,
    wrapped,
)

ARMS = {"random": ("random re-init.", "x", ORANGE), "dense_budget": ("dense, trained longer", "diamond", PURPLE)}


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Name -> plotly JSON of every figure that the report has the numbers for."""
    bench = report["bench"]
    claims = [row for row in bench["rows"] if row["achieved_share"] is not None] if bench else []
    drawn = {"accuracy": _accuracy(report)}
    if report["widths"]:
        drawn["widths"] = _widths(report["widths"])
    if claims:
        drawn["claimed"] = _claimed(claims, Labels(bench["rows"]))
    if bench and bench["rows"]:
        drawn["latency"] = _latency(bench["rows"], Labels(bench["rows"]))
    if report["sweep"]:
        drawn |= {f"curve-{i}": _curve(curve, Metric(**report["metric"])) for i, curve in enumerate(report["sweep"]["curves"])}
    return {name: json.loads(figure.to_json()) for name, figure in drawn.items()}


def _shortened(text: str) -> str:
    """The end of a dotted name, which differs most between layers."""
    return text if len(text) <= LABEL else f"…{text[1 - LABEL :]}"


def _accuracy(report: dict[str, Any]) -> go.Figure:
    metric = Metric(**report["metric"])
    figure = figure_of(360, 80, xaxis_title=f"{units.SIZES[report['axis']]} removed (%)", yaxis_title=safe(units.axis(metric)))
    _dense_band(figure, report)
    tickets = [level for level in report["levels"] if level["level"] > 0]
    if tickets:
        figure.add_trace(_mean_line(tickets, report["axis"], metric))
        figure.add_trace(_seeds(report, "ticket", "ticket", "circle-open", BLUE))
    for arm, (name, symbol, colour) in ARMS.items():
        if any(point["arm"] == arm for point in report["points"]):
            figure.add_trace(_seeds(report, arm, name, symbol, colour, size=11))
    figure.add_trace(_ring(next(level for level in report["levels"] if level["chosen"]), report["axis"], metric))
    return figure


def _dense_band(figure: go.Figure, report: dict[str, Any]) -> None:
    """The dense network's mean, and on the worse side of it the margin inside which a ticket counts as about as good."""
    metric, margin = Metric(**report["metric"]), report["verdict"]["margin_points"]
    dense = metric.scale * report["levels"][0]["validation"]["mean"]
    allowed = dense - margin if metric.higher_is_better else dense + margin
    right = 100 * max(point[f"{report['axis']}_removed"] for point in report["points"]) + 4
    figure.add_trace(
        go.Scatter(
            x=[-4, right, right, -4],
            y=[dense, dense, allowed, allowed],
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor="rgba(127,127,127,0.22)",
            name=f"{margin:.2f} {safe(metric.unit)} {'below' if metric.higher_is_better else 'above'}",
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Scatter(x=[-4, right], y=[dense, dense], mode="lines", line={"color": GREY, "width": 2}, name="dense", hoverinfo="skip")
    )
    figure.add_trace(_seeds(report, "dense", "dense", "square-open", GREY))
    figure.update_xaxes(range=[-4, right], zeroline=False)


def _mean_line(levels: list[dict[str, Any]], axis: str, metric: Metric) -> go.Scatter:
    spreads = [level["validation"] for level in levels]
    return go.Scatter(
        x=[100 * level[f"{axis}_removed"] for level in levels],
        y=[metric.scale * spread["mean"] for spread in spreads],
        name="ticket",
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        marker={"size": 8},
        error_y={
            "array": [metric.scale * (s["max"] - s["mean"]) for s in spreads],
            "color": BLUE,
            "thickness": 1,
            "width": 4,
            "arrayminus": [metric.scale * (s["mean"] - s["min"]) for s in spreads],
        },
        hovertext=[_level_text(level, metric) for level in levels],
        hoverinfo="text",
    )


def _level_text(level: dict[str, Any], metric: Metric) -> str:
    spread = level["validation"]
    return "<br>".join(
        [
            f"<b>level {level['level']}</b>: {units.score(spread['mean'], metric)} validation {safe(metric.name)}",
            f"{units.count(level['filters'])} filters ({units.percent(level['filters_removed'])} removed)",
            f"{units.count(level['params'])} parameters ({units.percent(level['params_removed'])} removed)",
            f"{units.count(level['macs'])} MACs ({units.percent(level['macs_removed'])} removed)",
            f"seeds {', '.join(map(str, spread['seeds']))}",
        ]
    )


def _seeds(report: dict[str, Any], arm: str, name: str, symbol: str, colour: str, *, size: int = 7) -> go.Scatter:
    points, metric = [point for point in report["points"] if point["arm"] == arm], Metric(**report["metric"])
    hover = [
        f"<b>{name}</b>, level {p['level']}, seed {p['seed']}<br>"
        f"{units.score(p['val_score'], metric)} validation {safe(metric.name)}<br>"
        f"{units.count(p['filters'])} filters, {units.count(p['params'])} parameters, {units.count(p['macs'])} MACs"
        for p in points
    ]
    x, y = [100 * p[f"{report['axis']}_removed"] for p in points], [metric.scale * p["val_score"] for p in points]
    return marks(x, y, name, hover, symbol, size, colour, line=1.4, showlegend=arm in ARMS, opacity=0.85)


def _ring(level: dict[str, Any], axis: str, metric: Metric) -> go.Scatter:
    name = "winning ticket" if level["won"] else "ticket shown"
    x, y = [100 * level[f"{axis}_removed"]], [metric.scale * level["validation"]["mean"]]
    return marks(x, y, name, [_level_text(level, metric)], "circle-open", 20, GREEN, line=3)


def _widths(widths: list[dict[str, Any]]) -> go.Figure:
    row = 22 if len(widths) <= 30 else 13
    figure = figure_of(50 + row * len(widths), 34, xaxis_title="filters", barmode="overlay", bargap=0.25)
    layers = [safe(width["layer"]) for width in widths]
    hover = [
        f"<b>{wrapped(w['layer'], LEGEND)}</b><br>{w['before']} → {w['after']} filters ({units.percent(w['kept_share'], 0)} kept)"
        + (f"<br>{wrapped('not pruned: ' + w['frozen'], LEGEND)}" if w["frozen"] else "")
        for w in widths
    ]
    for key, colour in (("before", "rgba(127,127,127,0.38)"), ("after", BLUE)):
        figure.add_trace(
            go.Bar(
                y=layers,
                x=[w[key] for w in widths],
                orientation="h",
                name=key,
                hovertext=hover,
                hoverinfo="text",
                marker={"color": colour, "line": {"width": 0}},
            )
        )
    figure.update_yaxes(type="category", autorange="reversed", tickfont={"size": 12 if row > 13 else 9})
    figure.update_yaxes(tickmode="array", tickvals=layers, ticktext=[safe(_shortened(width["layer"])) for width in widths])
    return figure


class Labels:
    """A short name for where a row was timed: device and dtype only where they differ inside the benchmark."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.shown = [key for key in ("device", "dtype") if len({row[key] for row in rows}) > 1]

    def __call__(self, row: dict[str, Any], subject: str = "") -> str:
        batch = f"batch {row['batch']}"
        where = [row["runtime"], " · ".join([*(row[key] for key in self.shown), batch])] if self.shown else [f"{row['runtime']} · {batch}"]
        return "<br>".join(wrapped(line, LABEL) for line in ([subject] if subject else []) + where)


def _rows_figure(rows: list[str], xaxis_title: str) -> go.Figure:
    """A figure with one line for each different name in `rows`, first at the top."""
    order = list(dict.fromkeys(rows))
    lines = max(row.count("<br>") for row in order) + 1
    figure = figure_of(60 + (16 + 14 * lines) * len(order), 52, xaxis_title=xaxis_title)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order, range=[len(order) - 0.4, -0.6], dtick=1)
    return figure


def _claimed(rows: list[dict[str, Any]], label: Labels) -> go.Figure:
    many = len({row["subject"] for row in rows}) > 1
    names = [label(row, row["subject"] if many else "") for row in rows]
    figure = _rows_figure(names, "speedup (\u00d7)")
    for name, row in zip(names, rows, strict=True):
        line = {"color": GREY, "width": 1, "dash": "dot"}
        ends = [row["speedup"], row["claimed"]]
        figure.add_trace(go.Scatter(x=ends, y=[name, name], mode="lines", showlegend=False, hoverinfo="skip", line=line))
    claimed = [f"<b>{name}</b><br>claimed {units.times(row['claimed'])}" for name, row in zip(names, rows, strict=True)]
    measured = [
        f"<b>{name}</b><br>measured {units.times(row['speedup'])} ({units.times(row['speedup_low'])} to {units.times(row['speedup_high'])})<br>"
        f"{units.percent(row['achieved_share'], 0)} of the claimed {units.times(row['claimed'])}"
        for name, row in zip(names, rows, strict=True)
    ]
    x = [row["claimed"] for row in rows]
    figure.add_trace(marks(x, names, "claimed (ratio of MACs)", claimed, "diamond-open", 11, ORANGE, line=2))
    x, spread = [row["speedup"] for row in rows], interval(rows, "speedup", "speedup_low", "speedup_high", BLUE)
    figure.add_trace(marks(x, names, "measured, with its interval", measured, "circle", 10, BLUE, error_x=spread))
    figure.add_vline(x=1, line={"color": GREY, "width": 1})
    figure.update_xaxes(rangemode="tozero")
    return figure


def _latency(rows: list[dict[str, Any]], label: Labels) -> go.Figure:
    figure = _rows_figure([label(row) for row in rows], "latency per batch (ms)")
    subjects = sorted({row["subject"] for row in rows}, key=lambda name: (name != "dense", name))
    looks = iter(zip(SUBJECTS * len(subjects), SYMBOLS * len(subjects), strict=True))
    for subject in subjects:
        colour, symbol = (GREY, "square") if subject == "dense" else next(looks)
        timed = [row for row in rows if row["subject"] == subject]
        hover = [
            f"<b>{safe(subject)}</b>, {label(row)}<br>p50 {units.ms(row['ms_p50'])} per batch "
            f"(p20 {units.ms(row['ms_p20'])}, p80 {units.ms(row['ms_p80'])}; {row['runs']} runs)"
            for row in timed
        ]
        x, y = [row["ms_p50"] for row in timed], [label(row) for row in timed]
        spread = interval(timed, "ms_p50", "ms_p20", "ms_p80", colour)
        figure.add_trace(marks(x, y, wrapped(subject, LEGEND), hover, symbol, 10, colour, error_x=spread))
    log_axis(figure, min(row["ms_p20"] for row in rows), max(row["ms_p80"] for row in rows))
    return figure


def _curve(curve: dict[str, Any], metric: Metric) -> go.Figure:
    """Latency against the validation metric, of all networks that were timed in one place."""
    title = f"latency of a batch of {curve['batch']} (ms)"
    figure = figure_of(380, 60, xaxis_title=title, yaxis_title=safe(units.axis(metric)))
    points = curve["points"]
    best = sorted((p for p in points if p["on_front"]), key=lambda p: p["ms_p50"])
    x, y = [p["ms_p50"] for p in best], [metric.scale * p["validation"]["mean"] for p in best]
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name="Pareto front", hoverinfo="skip", line={"color": BLUE, "width": 2}))
    for arm, name, symbol, colour in (
        ("dense", "dense", "square", GREY),
        ("ticket", "ticket", "circle", BLUE),
        ("random", *ARMS["random"]),
    ):
        if found := [p for p in points if p["arm"] == arm]:
            figure.add_trace(_curve_marks(found, metric, name, symbol, colour))
    for point in points:
        if point["picked"]:
            ring = _curve_marks([point], metric, "picked", "circle-open", GREEN, size=20)
            figure.add_trace(ring.update(error_x={"visible": False}, error_y={"visible": False}))
    log_axis(figure, min(p["ms_p20"] for p in points), max(p["ms_p80"] for p in points))
    return figure


def _curve_marks(points: list[dict[str, Any]], metric: Metric, name: str, symbol: str, colour: str, *, size: int = 9) -> go.Scatter:
    """Marks with their spreads: latency from p20 to p80, metric from the lowest to the highest seed."""
    spreads = [p["validation"] for p in points]
    values = [{key: metric.scale * spread[key] for key in ("mean", "min", "max")} for spread in spreads]
    return marks(
        [p["ms_p50"] for p in points],
        [value["mean"] for value in values],
        name,
        [_curve_text(p, metric) for p in points],
        symbol,
        size,
        colour,
        line=2 if size < 20 else 3,
        error_x={**interval(points, "ms_p50", "ms_p20", "ms_p80", colour), "thickness": 1},
        error_y={**interval(values, "mean", "min", "max", colour), "thickness": 1},
    )


def _curve_text(point: dict[str, Any], metric: Metric) -> str:
    spread = point["validation"]
    over = f"; {units.score(spread['min'], metric)} to {units.score(spread['max'], metric)} over {len(spread['seeds'])} seeds"
    lines = [
        f"<b>{safe(point['name'])}</b>, level {point['level']}",
        f"{units.count(point['macs'])} MACs, {units.count(point['params'])} parameters",
        f"p50 {units.ms(point['ms_p50'])} (p20 {units.ms(point['ms_p20'])}, p80 {units.ms(point['ms_p80'])})",
        f"{units.score(spread['mean'], metric)} validation {safe(metric.name)}{over if len(spread['seeds']) > 1 else ', one seed'}",
    ]
    if point["speedup"] is not None:
        between = f"{units.times(point['speedup_low'])} to {units.times(point['speedup_high'])}"
        lines.append(f"{units.times(point['speedup'])} as fast as dense ({between})")
    return "<br>".join(lines)
