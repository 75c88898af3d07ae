"""Write the table of the demo into README.md, from bench/results/demo and bench/results/demo-stability.json.

make demo DEMO_RESULTS=1        runs the demo, keeps its results, and then this
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- written by bench/demo_table.py -->\n", "<!-- end -->\n"


def main() -> None:
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}{table(RESULTS)}{END}{after}")


def table(results: Path) -> str:
    """The table and the verdict, as Markdown."""
    search, shrunk, bench = (read(results / "demo" / f"{name}.json") for name in ("search", "small", "bench"))
    stability = read(results / "demo-stability.json")
    dense, small = of(search, "dense", 0), of(search, "ticket", search["ticket"]["level"])
    saved = next(row for row in small if row["seed"] == search["ticket"]["seed"])
    between = {name: f"{interval['low']:.1f} to {interval['high']:.1f}" for name, interval in stability["ranges"].items()}
    machine = search["provenance"]["machine"]
    lines = [
        f"Measured on one {machine['cpu']} ({machine['simd']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}):",
        "",
        "| | dense | small | | other runs |",
        "| --- | --- | --- | --- | --- |",
        f"| parameters | {dense[0]['params'] / 1e3:.0f} k | {saved['params'] / 1e3:.1f} k | {dense[0]['params'] / saved['params']:.1f}x fewer | "
        f"{between['times fewer parameters']}x |",
        f"| MACs per image | {dense[0]['macs'] / 1e6:.2f} M | {saved['macs'] / 1e6:.2f} M | {dense[0]['macs'] / saved['macs']:.1f}x fewer: the claim | "
        f"{between['times fewer MACs']}x |",
        *(timing(bench, *each) for each in TIMINGS),
        f"| test accuracy, mean of {len(dense)} seeds | {accuracy(dense)} % | {accuracy(small)} % | 450 images | "
        f"dense {between['dense, test accuracy (%)']} %, small {between['tickets, test accuracy (%)']} % |",
        "",
        f"“Other runs” is the range that holds the figure in 99 % of runs with other seeds, estimated from {len(stability['demos'])} searches "
        f"([demo-stability.json](bench/results/demo-stability.json)); {picks(stability)}. Times are medians; a speedup pairs "
        "neighbouring blocks of runs, so it is not the ratio of the medians. Both depend on the machine.",
        *longer(stability["plateau"]),
        f"The cut network equals the masked one to {shrunk['equality_error']:.0e}. The verdict, over {len(dense)} seeds and on validation images:",
        "",
        *(f"- {line}" for line in search["verdict"]["summary"]),
        "",
    ]
    return "\n".join(lines)


TIMINGS = (
    ("onnxruntime", 1, "ONNX Runtime, batch 1"),
    ("onnxruntime", 64, "ONNX Runtime, batch 64"),
    ("eager", 1, "eager PyTorch, batch 1"),
)


def timing(bench: dict[str, Any], runtime: str, batch: int, what: str) -> str:
    """A row of the table: median latencies, and the speedup with its 95 % interval."""
    rows = [row for row in bench["rows"] if (row["runtime"], row["batch"]) == (runtime, batch)]
    dense, small = (next(row for row in rows if (row["subject"] == "dense") is of_dense) for of_dense in (True, False))
    speed = f"**{small['speedup']:.3g}x faster** ({small['speedup_low']:.3g}-{small['speedup_high']:.3g}): the measurement"
    return f"| {what} | {dense['ms_p50']:.3g} ms | {small['ms_p50']:.3g} ms | {speed} | |"


def longer(plateau: dict[str, float] | None) -> list[str]:
    if plateau is None:
        return []
    change = f"{plateau['mean']:+.2f} points of validation accuracy ({plateau['low']:+.2f} to {plateau['high']:+.2f})"
    return [f"Twice the epochs change the dense network by {change}, over {plateau['seeds']:.0f} seeds."]


def picks(stability: dict[str, Any]) -> str:
    levels = stability["levels"]
    usual = max(set(levels), key=levels.count)
    return f"{levels.count(usual)} of {len(levels)} pick the same level"


def of(search: dict[str, Any], arm: str, level: int) -> list[dict[str, Any]]:
    return [row for row in search["rows"] if (row["arm"], row["level"]) == (arm, level)]


def accuracy(rows: list[dict[str, Any]]) -> str:
    return f"{100 * fmean(row['test_score'] for row in rows):.2f}"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
