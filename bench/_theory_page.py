"""The page of theory_against_measurement.py, bench/results/theory/README.md with picture.svg, made of the files of all machines."""

from __future__ import annotations

import html
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import _theory_rows
from _theory_rows import BY_TIME, KEYS, METHODS, NETWORKS, RUNTIMES, TRAITS, Row, read

TITLE = "Theory against measurement: what pruning gives"
INTRODUCTION = (
    "A network that is cut to a half of its multiplications could run twice as fast; here is what it does: {networks} ({public} of "
    "them public) on {machines}. Speedups are ratios of times that were taken in turns, on one thread, with 95 % intervals. Measured over "
    "theoretical speedup is 1.00 where pruning gives what its MACs promise. Each cell of a table is a median, with the number of networks; a "
    "network counts once. [theory_against_measurement.py](../../theory_against_measurement.py) says how rows are made."
)
PICTURE = (
    "A dot is a network that was cut to a half of its MACs (one image, fp32), a bar the median; widths as they come (any), in multiples of 8 (x 8) "
    "and of 16 (x 16). At 1 pruning gives what its MACs promise."
)
ANOTHER = """Rows of other machines are welcome, of a few networks too:

1. In a checkout, `make env-dev`, and on an idle machine `.venv/bin/python bench/theory_against_measurement.py torchvision:resnet18
   torchvision:mobilenet_v2` (these take minutes); without names, the command takes the networks of the list in turns (`--minutes 40` begins none
   after so long, and the same command continues). It writes its rows to `bench/results/theory/MACHINE.json`, and this page again.
2. `.venv/bin/python -m pytest tests/benchmark/test_theory.py` checks that file, as CI does: what is wrong with which row is its error.
3. Commit the file with README.md and picture.svg, and open a pull request.

The same command with its name repeats a network."""
DECIDERS = {**TRAITS, "macs": "MACs in all"}
CELL = ("runtime", "precision", "batch")
PLANNED = ("onnxruntime", "fp32", 1)  # what plans by time are for
MOST = {"odd": 0.5, "memory": 0.5, "depthwise": 0.05}  # shares that split the cuts of the second table


def write_page() -> dict[str, Any]:
    """Write README.md and picture.svg of all machines' files; the counts and medians that they begin with. Refuses a file with faults."""
    from ltcompile.paths import write_text

    machines = {path.stem: read(path) for path in sorted(_theory_rows.RESULTS.glob("*.json"))}
    rows = measured(machines)
    _theory_rows.RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(_theory_rows.RESULTS / "README.md", page(machines, rows))
    write_text(_theory_rows.RESULTS / "picture.svg", picture(rows))
    every = [row for found in rows.values() for row in found]
    medians = {
        name: {" ".join(map(str, key)): middle(group)[0] for key, group in grouped(by_macs(found), *CELL)} for name, found in rows.items()
    }
    return {"rows": len(every), "networks": len({row["network"] for row in every}), "median_of_theory": medians}


def measured(machines: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows of each machine that were measured."""
    return {name: [row for row in value["rows"] if "reason" not in row] for name, value in machines.items()}


def by_macs(rows: list[Row]) -> list[Row]:
    """Those of plans by MACs: a plan by time is not after what its MACs promise."""
    return [row for row in rows if row["method"] in METHODS]


def page(machines: dict[str, Any], rows: dict[str, list[Row]]) -> str:
    networks = {row["network"] for found in rows.values() for row in found}
    public = sum(not name.startswith("ours:") for name in networks)
    names = {name: title(value) for name, value in machines.items()}
    listed = " and ".join(names.values()) or "no machine yet"
    parts = [f"# {TITLE}", INTRODUCTION.format(networks=counted(len(networks)), public=public, machines=listed)]
    parts += ["![Measured over theoretical speedup](picture.svg)", PICTURE]
    if len(rows) > 1:
        parts += ["## The same cuts on all machines", *compared({name: by_macs(found) for name, found in rows.items()}, names)]
    for name, found in rows.items():
        parts += [
            f"## {names[name]}",
            about(name, machines[name]),
            "### By runtime",
            by_runtime(found),
            "### What decides",
            *decides(found),
        ]
        parts += planned_by_time(found)
        parts += [
            "### By network: one image, fp32, a half of the MACs",
            by_network(found),
            "### Not measured",
            *left_out(machines[name]["rows"]),
        ]
    parts += missing(networks)
    return "\n\n".join([*parts, "## Another machine", ANOTHER]) + "\n"


def missing(networks: set[str]) -> list[str]:
    """The networks of the list that were measured on no machine."""
    names = [name for name in NETWORKS if name not in networks]
    text = f"{len(names)} of the {len(NETWORKS)} networks of the list were measured on no machine: {', '.join(names)}."
    return ["## Not measured on any machine", text] if names else []


def counted(networks: int) -> str:
    return "1 network" if networks == 1 else f"{networks} networks"


def title(value: Row) -> str:
    where = value["provenance"]["machine"]
    return " ".join(filter(None, (where["cpu"], f"({where['simd']})" if where.get("simd") else "")))


def about(name: str, value: Row) -> str:
    """When the rows of a machine were made, and with which versions."""
    origin, versions = value["provenance"], value["provenance"].get("versions", {})
    known = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "mnn") if name in versions
    )
    return f"{sum('reason' not in row for row in value['rows'])} rows in `{name}.json`, {origin.get('date', '')[:10]}: {known}."


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *lines))


def grouped(rows: Iterable[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    found = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return sorted(found.items())


def middle(rows: Iterable[Row]) -> tuple[float, int]:
    """The median of measured over theoretical speedup and the number of networks; a network counts once, by the median of its rows."""
    of_network = [median(row["of_theory"] for row in group) for _, group in grouped(rows, "network")]
    return median(of_network) if of_network else math.nan, len(of_network)


def cell(rows: Iterable[Row]) -> str:
    at, count = middle(rows)
    return f"{at:.2f} ({count})" if count else ""


def compared(rows: dict[str, list[Row]], names: dict[str, str]) -> list[str]:
    """What all machines measured, and whether they order the cuts alike."""
    by_key = {name: {tuple(row[key] for key in KEYS): row for row in found} for name, found in rows.items()}
    common = set.intersection(*(set(found) for found in by_key.values()))
    lines = []
    for at, first in grouped([{**dict(zip(KEYS, key, strict=True)), "key": key} for key in common], *CELL, "fraction"):
        shared = {name: [found[row["key"]] for row in first] for name, found in by_key.items()}
        medians = [f"{middle(found)[0]:.2f}" for found in shared.values()]
        ratios = [[row["of_theory"] for row in found] for found in shared.values()]
        lines.append([*at, *medians, correlation(*ratios) if len(rows) == 2 else "", middle(first_rows(shared))[1]])
    head = [*CELL, "fraction of MACs", *(names[name] for name in rows), "rank correlation of two machines", "networks"]
    text = "Medians over the networks and cuts that every machine measured, of all ways to round widths."
    apart = (
        "No cut was measured on all machines: their files are of different networks. So the medians of one machine say nothing about another, and "
        "a difference between two tables may be one of their networks."
    )
    return [text, table(head, lines)] if lines else [apart]


def first_rows(shared: dict[str, list[Row]]) -> list[Row]:
    return next(iter(shared.values()))


def correlation(one: Sequence[float], other: Sequence[float]) -> str:
    """Spearman's."""
    from scipy.stats import spearmanr

    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return ""
    return f"{spearmanr(one, other).statistic:+.2f}"


def by_runtime(rows: list[Row]) -> str:
    methods = list(METHODS)
    lines = [
        [*key, *(cell(row for row in group if row["method"] == method) for method in methods)]
        for key, group in grouped(rows, *CELL, "fraction")
    ]
    return table([*CELL, "fraction", *methods], lines)


def decides(rows: list[Row]) -> list[str]:
    """Which property of a cut goes with how much of its theoretical speedup."""
    plain = [row for row in rows if row["precision"] == "fp32"]
    lines, strongest = [], list[str]()
    for key, group in grouped(plain, "runtime", "batch"):
        ratios = [row["of_theory"] for row in group]
        found = {name: correlation(ratios, [row[name] for row in group]) for name in DECIDERS}
        strongest += [max(found, key=lambda name: abs(float(found[name] or 0)))] if any(found.values()) else []
        lines.append([*key, *found.values(), len({row["network"] for row in group})])
    parts = ["Rank correlation of measured over theoretical speedup with what a cut is like, in fp32:"]
    parts += [table(["runtime", "batch", *DECIDERS.values(), "networks"], lines)]
    if strongest:
        name = max(sorted(set(strongest)), key=strongest.count)
        parts += [f"The strongest of them is {DECIDERS[name]}, in {strongest.count(name)} of {len(strongest)} lines."]
    split = [
        [runtime, batch, *(cell(row for row in group if (row[t] >= most) == high) for t, most in MOST.items() for high in (False, True))]
        for (runtime, batch), group in grouped(plain, "runtime", "batch")
    ]
    head = [f"{TRAITS[trait].removeprefix('MACs ')}: {sign} {most:.0%}" for trait, most in MOST.items() for sign in ("below", "from")]
    return [*parts, "The same as medians, by the share of a cut's MACs:", table(["runtime", "batch", *head], split)]


def planned_by_time(rows: list[Row]) -> list[str]:
    """Speedups of plans by time, by cell next to plans by MACs of networks that have both, and by network."""
    lines, here = [], [row for row in rows if row["network"] in {r["network"] for r in rows if r["method"] == BY_TIME}]
    for (runtime, precision, batch, fraction), group in grouped(here, *CELL, "fraction"):
        planned = [row for row in group if row["method"] == BY_TIME]
        if not planned:
            continue
        by_method = [[row["speedup"] for row in group if row["method"] == method] for method in (*METHODS, BY_TIME)]
        cells = [f"{median(found):.2f}x ({len(found)})" if found else "" for found in by_method]
        macs = median(row["macs"] / row["dense_macs"] for row in planned)
        lines.append([runtime, precision, batch, f"{1 / fraction:g}x", *cells, f"{macs:.0%}"])
    head = [*CELL, "goal", *(f"MACs, {method}" for method in METHODS), BY_TIME, "MACs that remain"]
    text = (
        "Plans for a fraction of the time in ONNX Runtime (one image, fp32) next to plans for that fraction of the MACs: median speedups, with the number "
        "of networks. Columns with other numbers are of other networks."
    )
    return ["### Planned by time", text, table(head, lines), GOALS_TEXT, goals(here)] if lines else []


GOALS_TEXT = "By network, where it was planned for (ONNX Runtime, fp32, one image): measured speedup with its 95 % interval, and the MACs that remain."


def goals(rows: list[Row]) -> str:
    """Speedups of plans by time, a line for each network."""
    planned = [row for row in rows if row["method"] == BY_TIME and (row["runtime"], row["precision"], row["batch"]) == PLANNED]
    fractions = sorted({row["fraction"] for row in planned}, reverse=True)
    lines = []
    for (name,), group in grouped(planned, "network"):
        found = {row["fraction"]: row for row in group}
        lines.append([name, *(reached(found[fraction]) if fraction in found else "not within reach" for fraction in fractions)])
    return table(["network", *(f"{1 / fraction:g}x" for fraction in fractions)], lines)


def reached(row: Row) -> str:
    return f"{row['speedup']:.2f}x ({row['low']:.2f} to {row['high']:.2f}), {row['macs'] / row['dense_macs']:.0%}"


def by_network(rows: list[Row]) -> str:
    chosen = [row for row in rows if (row["precision"], row["batch"], row["fraction"]) == ("fp32", 1, 0.5)]
    lines = []
    for (name,), group in grouped(chosen, "network"):
        plain = {row["runtime"]: row for row in group if row["method"] == "as they come"}
        wide = {row["runtime"]: row for row in group if row["method"] == "multiples of 16"}
        first = next(iter(plain.values()), group[0])
        lines.append([name, f"{first['theoretical']:.2f}", *(speeds(plain, wide, runtime) for runtime in RUNTIMES)])
    return table(["network", "theory", *(f"{name}: as they come, multiples of 16" for name in RUNTIMES)], lines)


def speeds(plain: dict[str, Row], wide: dict[str, Row], runtime: str) -> str:
    texts = [
        f"{of[runtime]['speedup']:.2f} ({of[runtime]['low']:.2f}-{of[runtime]['high']:.2f})" if runtime in of else "-"
        for of in (plain, wide)
    ]
    return "" if texts == ["-", "-"] else ", ".join(texts)


def left_out(rows: list[Row]) -> list[str]:
    """Why there are no rows of some cells, with the networks; numbers in reasons are left out."""
    found = defaultdict[tuple[str, str], set[str]](set)
    for row in rows:
        if "reason" in row:
            where = " ".join(str(row[key]) for key in ("runtime", "precision") if key in row)
            found[where, re.sub(r"\d+\.\d+(e[+-]\d+)?", "…", row["reason"]).removeprefix("dense: ")[:120]].add(row["network"])
    lines = [[where, html.escape(reason, quote=False).replace("|", "\\|"), len(names)] for (where, reason), names in sorted(found.items())]
    return [table(["where", "reason", "networks"], lines)] if lines else ["Nothing."]


COLOURS = dict(zip(RUNTIMES, ("#0b62a0", "#a6361c", "#00694c"), strict=True))
WIDE, HIGH, EDGE = 560, 400, 56
SPREAD = 24  # pixels over which the dots of a column lie
LOW, TOP = -2, 1  # of the axis, as powers of 2


def picture(rows: dict[str, list[Row]]) -> str:
    """A panel for each machine: measured over theoretical speedup, one image in fp32, a half of the MACs, for each runtime and way to round widths."""
    panels = [f'<g transform="translate({WIDE * at} 0)">{panel(name, found)}</g>' for at, (name, found) in enumerate(rows.items())]
    width = WIDE * max(len(rows), 1)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HIGH}" font-family="sans-serif" font-size="12" fill="#222">'
    return "\n".join([head, f'<rect width="{width}" height="{HIGH}" fill="white"/>', *panels, "</svg>", ""])


def height(ratio: float) -> float:
    """Where a ratio is on the logarithmic axis; what is beyond its ends lies at them."""
    share = (min(max(math.log2(ratio), LOW), TOP) - LOW) / (TOP - LOW)
    return HIGH - EDGE - share * (HIGH - 2 * EDGE)


def panel(name: str, rows: list[Row]) -> str:
    """One dot a network, a bar for the median; at 1 pruning gives what its MACs promise."""
    shapes = [f'<text x="{WIDE / 2}" y="{EDGE - 26}" text-anchor="middle" font-weight="bold">{html.escape(name)}</text>']
    for power in range(LOW, TOP + 1):
        y, stroke = height(2.0**power), "#444" if power == 0 else "#ddd"
        shapes += [f'<path d="M{EDGE} {y:.1f}H{WIDE - EDGE / 2}" stroke="{stroke}"/>']
        shapes += [f'<text x="{EDGE - 8}" y="{y + 4:.1f}" text-anchor="end">{2.0**power:g}</text>']
    chosen = [row for row in rows if (row["precision"], row["batch"], row["fraction"]) == ("fp32", 1, 0.5) and row["method"] in METHODS]
    step = (WIDE - 1.5 * EDGE) / (len(RUNTIMES) * len(METHODS))
    for at, (runtime, method) in enumerate((runtime, method) for runtime in RUNTIMES for method in METHODS):
        x, found = EDGE + (at + 0.5) * step, [row for row in chosen if (row["runtime"], row["method"]) == (runtime, method)]
        shapes += [
            f'<text x="{x:.1f}" y="{HIGH - EDGE + 16}" text-anchor="middle">{method.replace("multiples of ", "x ").replace("as they come", "any")}</text>'
        ]
        shapes += [dot(row, x + SPREAD * ((i * 7 % 11) / 10 - 0.5)) for i, row in enumerate(found)]
        if found:
            y = height(median(row["of_theory"] for row in found))
            shapes += [f'<path d="M{x - 14:.1f} {y:.1f}h28" stroke="{COLOURS[runtime]}" stroke-width="3"/>']
    for at, runtime in enumerate(RUNTIMES):
        x = EDGE + (at + 0.5) * len(METHODS) * step
        shapes += [f'<text x="{x:.1f}" y="{HIGH - EDGE + 34}" text-anchor="middle" fill="{COLOURS[runtime]}">{runtime}</text>']
    label = "measured over theoretical speedup"
    return "\n".join([*shapes, f'<text transform="translate(16 {HIGH / 2}) rotate(-90)" text-anchor="middle">{label}</text>'])


def dot(row: Row, x: float) -> str:
    text = f"{row['network']}, {row['method']}, {row['runtime']}: {row['speedup']:.2f}x of {row['theoretical']:.2f}x"
    circle = f'<circle cx="{x:.1f}" cy="{height(row["of_theory"]):.1f}" r="3" fill="{COLOURS[row["runtime"]]}" fill-opacity="0.4">'
    return f"{circle}<title>{text}</title></circle>"
