"""A result as Markdown, which a terminal shows as well."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ltcompile.benchmark.competitors.competitor import ENGINE
from ltcompile.benchmark.competitors.layers import Layer
from ltcompile.benchmark.competitors.result import Check, CompetitorsResult, Row
from ltcompile.core.load import is_busy

HEAD = ("", "competitor", "precision", "p50 ms", "p20 to p80", "images/s", "largest error", "same class", "mJ an image", "what it chose")
CLOCKS = {
    "cpu": "by the clock",
    "cuda": "by events on the stream, behind 50 us in which the device waits for the launch, so that launching a replay does not count",
}
LAYERS_HEAD = ("layer", "what", "by", "us", "MB", "MFLOP", "share of the roofline")


def markdown(result: CompetitorsResult) -> str:
    """All of it: claims, cases, refusals, layers."""
    parts = [f"# The engine and its competitors on {result.machine}", _preamble(result)]
    if result.checks:
        parts += ["## Claims", _table(("claim", "found", ""), [(c.claim, _found(c.found), _holds(c)) for c in result.checks])]
    for subject, batch in result.cases():
        parts += [f"## {subject}, batch {batch}", case_table(result, subject, batch)]
    if result.refused:
        parts += ["## Not timed", "\n".join(_refused(result))]
    for key in dict.fromkeys((layer.subject, layer.batch) for layer in result.layers):
        rows = [layer for layer in result.layers if (layer.subject, layer.batch) == key]
        parts += [f"## Layers of {key[0]}, batch {key[1]}, {rows[0].precision}", _layers(rows)]
    return "\n\n".join(parts) + "\n"


def case_table(result: CompetitorsResult, subject: str, batch: int) -> str:
    """One network at one batch size, fastest first, and how the engine stands against the fastest peer of each precision."""
    rows = result.case(subject, batch)
    return "\n\n".join([_table(HEAD, [_cells(row) for row in rows]), *_standings(result, rows)])


def _standings(result: CompetitorsResult, rows: Sequence[Row]) -> Iterable[str]:
    for engine in (row for row in rows if row.competitor == ENGINE):
        if peer := result.fastest_peer(engine):
            spread = f" (95 %: {1 / engine.behind[1]:.2f} to {1 / engine.behind[0]:.2f})" if engine.behind else ""
            ratio = f"{peer.ms_p50 / engine.ms_p50:.2f}{spread}"
            yield f"{engine.precision}: engine is {ratio} times as fast as the fastest peer, {peer.competitor}."


def _cells(row: Row) -> tuple[str, ...]:
    ours = row.competitor == ENGINE
    energy = "" if row.joules_per_image is None else f"{1000 * row.joules_per_image:.3g}"
    return (
        "→" if ours else "",
        f"**{row.competitor}**" if ours else row.competitor,
        row.precision,
        f"{row.ms_p50:.4g}",
        f"{row.ms_p20:.4g} to {row.ms_p80:.4g}",
        f"{1000 * row.batch / row.ms_p50:,.0f}",
        f"{row.max_error:.0e}",
        f"{row.top1:.0%}",
        energy,
        row.how,
    )


def _preamble(result: CompetitorsResult) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result.provenance.get("versions", {}).items())
    sizes = ", ".join(f"{name} {size['macs'] / 1e6:,.1f} MMAC" for name, size in result.subjects.items())
    peaks = ", ".join(
        f"copies at {p.bytes_per_s / 1e9:,.0f} GB/s and multiplies {p.precision} matrices at {p.flop_per_s / 1e12:,.3g} TFLOP/s"
        for p in result.peaks
    )
    lines = [
        f"{result.provenance.get('date', '')}, commit {result.provenance.get('commit')}; {versions}.",
        f"Images: {result.images}. For one of them: {sizes}. This device {peaks or 'was not measured'}.",
        "All take float32 images (N, C, H, W) on the device and gives float32 logits there; answers were compared with fp32 eager "
        f"before anything was timed. Medians, {CLOCKS[result.device]}, all by turns.",
    ]
    if result.busy_share is not None:
        loud = " **Quote none of these times.**" if is_busy(result.busy_share) else ""
        lines.append(f"Before it began, other work took {result.busy_share:.0%} of the machine.{loud}")
    if result.energy:
        lines.append(f"Energy is not measured: {result.energy}.")
    return "\n".join([*lines, "", *(f"- {name}: {settings}" for name, settings in result.settings.items())])


def _refused(result: CompetitorsResult) -> Iterable[str]:
    """One line a reason."""
    for reason in dict.fromkeys(refusal.reason for refusal in result.refused):
        where = [r for r in result.refused if r.reason == reason]
        who = ", ".join(dict.fromkeys(f"{r.competitor} {r.precision}".strip() or "all" for r in where))
        cases = ", ".join(dict.fromkeys(f"{r.subject} at {r.batch}" for r in where))
        yield f"- {who} ({cases}): {reason}"


def _layers(rows: Sequence[Layer]) -> str:
    cells = [(r.layer, r.what, r.by, f"{r.us:.4g}", f"{r.moved_bytes / 1e6:.4g}", f"{r.flop / 1e6:,.4g}", f"{r.share:.0%}") for r in rows]
    us, floor_us = sum(r.us for r in rows), sum(r.floor_us for r in rows)
    total = ("all", "", "", f"{us:.4g}", "", f"{sum(r.flop for r in rows) / 1e6:,.4g}", f"{floor_us / us:.0%}")
    return _table(LAYERS_HEAD, [*cells, total])


def _found(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"


def _holds(check: Check) -> str:
    if check.holds is None:
        return "" if check.found is None else "within the noise: not decidable"
    return "holds" if check.holds else "does not hold"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{' --- |' * len(head)}", *lines[1:]])
