"""The layers as a picture: one page that needs nothing but a browser. A bar is a layer's time, its grey part what the roofline allows."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ltcompile.benchmark.competitors.layers import Layer
from ltcompile.benchmark.competitors.result import CompetitorsResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

GREY, BLUE, ORANGE, GREEN = "#7f7f7f", "#0f7fc0", "#d55e00", "#009e73"  # Okabe & Ito's palette
COLOURS = {"triton": BLUE, "cudnn": GREEN, "PyTorch": ORANGE}
ROW_PX = 24
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }}</style>
<script>{plotly}</script></head>
<body><h1>{title}</h1>
<p>Each bar is one operation for the whole batch; its grey part is the least time that this device's measured copy and matrix product
allow. {note}</p>
{figures}</body></html>
"""
NOTES = {
    "cpu": "The times are those of PyTorch, one fused operation after the other: the layers inside the engine's runtime are not timed.",
    "cuda": "Each ran alone, with cold caches; within the network a layer finds its input in the cache.",
}


def page(result: CompetitorsResult) -> str:
    """The page; empty of figures where no layers were timed. Raises ImportError where there is no Plotly."""
    from plotly.offline import get_plotlyjs

    cases = dict.fromkeys((layer.subject, layer.batch) for layer in result.layers)
    figures = [_figure([layer for layer in result.layers if (layer.subject, layer.batch) == key]) for key in cases]
    parts = [figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False}) for figure in figures]
    title = html.escape(f"Layers on {result.machine}")
    return PAGE.format(title=title, plotly=get_plotlyjs(), note=NOTES[result.device], figures="\n".join(parts))


def _figure(layers: Sequence[Layer]) -> go.Figure:
    import plotly.graph_objects as go

    names = [f"{at + 1} {html.escape(layer.layer)}" for at, layer in enumerate(layers)]
    figure = go.Figure()
    for by in dict.fromkeys(layer.by for layer in layers):
        mine = [(name, layer) for name, layer in zip(names, layers, strict=True) if layer.by == by]
        figure.add_trace(
            go.Bar(
                y=[name for name, _ in mine],
                x=[layer.us for _, layer in mine],
                name=by,
                orientation="h",
                marker_color=COLOURS.get(by, BLUE),
                hovertext=[_hover(layer) for _, layer in mine],
                hoverinfo="text",
            )
        )
    floors = [layer.floor_us for layer in layers]
    figure.add_trace(go.Bar(y=names, x=floors, name="roofline", orientation="h", marker_color=GREY, opacity=0.7, hoverinfo="skip"))
    first = layers[0]
    figure.update_layout(
        template="none",
        title=html.escape(f"{first.subject}, batch {first.batch}, {first.precision}"),
        barmode="overlay",
        height=140 + ROW_PX * len(layers),
        margin={"l": 8, "r": 12, "t": 60, "b": 8},
        xaxis={"title": "µs", "automargin": True},
        yaxis={"automargin": True, "categoryorder": "array", "categoryarray": names[::-1]},
        legend={"orientation": "h"},
    )
    return figure


def _hover(layer: Layer) -> str:
    return (
        f"<b>{html.escape(layer.layer)}</b>, {html.escape(layer.what)} by {layer.by}<br>{layer.us:.4g} µs, {layer.moved_bytes / 1e6:.4g} MB, "
        f"{layer.flop / 1e6:.4g} MFLOP<br>{layer.share:.0%} of the roofline"
    )
