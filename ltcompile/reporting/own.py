"""The page of a network of one's own: a search in one's own loop, or a `Pruned`, with what `shrink` and `bench` found of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ltcompile.core.records import Trained, Verdict
from ltcompile.core.result_file import FORMAT, read_result
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidFile
from ltcompile.paths import read_json
from ltcompile.reporting import units
from ltcompile.reporting.formats import formats, read_formats
from ltcompile.reporting.inputs import Bench, Shrink, check_bench, read_shrinks, shrink_records

if TYPE_CHECKING:
    from ltcompile.pruned import Pruned

Figures = dict[str, Any]
WHAT = "result of shrink or bench (make it again)"
CONTROLS = {
    "random": "the ticket's architecture, trained from fresh weights",
    "dense_budget": "the dense network, trained with the ticket's whole budget",
}


@dataclass(frozen=True)
class OwnSearch:
    """A search in one's own loop, or by one's own script."""

    metric: str
    config: dict[str, Any]
    rows: list[Trained]
    verdict: Verdict
    ticket: dict[str, Any]
    unit: str = "units"  # as the two below, in searches by versions that did not record it
    scale: float = 1.0
    higher_is_better: bool = True

    @property
    def noun(self) -> Metric:
        return Metric(self.metric, self.unit, self.scale, self.higher_is_better)


def is_own(folder: Path) -> bool:
    """Whether a folder holds a search in one's own loop, or a benchmark or file of a network without a ticket, and no run of `find`."""
    run = RunFolder(folder)
    if run.summary.exists():
        return False
    return run.own_summary.is_file() or any(
        "network_checksum" in read_json(p, WHAT) for p in (run.bench, run.formats, *shrink_records(folder)) if p.is_file()
    )


def collect(folder: Path) -> Figures:
    """Every figure of the page on `folder`. Raises InvalidFile where a file is damaged."""
    run = RunFolder(folder)
    search = read_result(run.own_summary, {"own search": OwnSearch}, "the search") if run.own_summary.is_file() else None
    found = figures(folder.resolve().name, search, _bench(run.bench) if run.bench.is_file() else None, read_shrinks(folder))
    return {**found, "formats": formats(read_formats(run.formats))}


def of_pruned(pruned: Pruned, bench: str | Path | None) -> Figures:
    """The figures of a network, timed now where no `bench` is given. Raises InvalidFile as `collect` does."""
    from ltcompile.benchmark.bench import bench as measure

    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        path = Path(bench) if bench is not None else RunFolder(scratch).bench
        if bench is None:
            measure(pruned, batches=(1,), output=path)
        found = _bench(path)
    if found.network_checksum != pruned.checksum:
        raise InvalidFile(f"{path} was measured with another network; bench this one")
    return figures(type(pruned.small).__name__, None, found, [])


def _bench(path: Path) -> Bench:
    found: Bench = read_result(path, {"bench": Bench}, "`ltcompile bench`", check_bench)
    return found


def figures(name: str, search: OwnSearch | None, bench: Bench | None, shrinks: Sequence[Shrink]) -> Figures:
    sizes = {n: asdict(s) for n, s in bench.subjects.items()} if bench else {}
    if search is not None and not {"dense", "small"} <= sizes.keys():
        dense, small = search_row(search, "dense", 0), search_row(search, "ticket", int(search.ticket["level"]))
        sizes = {n: {"params": row.params, "macs": row.macs} for n, row in (("dense", dense), ("small", small))}
    if not sizes and shrinks:
        pairs = {"dense": (shrinks[0].dense_params, shrinks[0].dense_macs), "small": (shrinks[0].params, shrinks[0].macs)}
        sizes = {n: {"params": params, "macs": macs} for n, (params, macs) in pairs.items() if params is not None}
    ratio = sizes["dense"]["macs"] / max(1, sizes["small"]["macs"]) if {"dense", "small"} <= sizes.keys() else None
    rows = [{**asdict(row), "theoretical": ratio} for row in bench.rows] if bench else []
    timed = [row for row in rows if row["speedup"] is not None]
    metric = asdict(search.noun) if search else asdict(bench.metric.metric) if bench and bench.metric else None
    return {
        "kind": "own report",
        "format": FORMAT,
        "name": name,
        "metric": metric,
        "value": asdict(bench.metric) if bench and bench.metric else None,
        "sizes": sizes,
        "theoretical": ratio,
        "best": min(timed, key=lambda row: (row["batch"], row["ms_p50"]), default=None),
        "rows": rows,
        "skipped": bench.skipped if bench else {},
        "inputs": bench.images if bench else "",
        "busy_share": bench.busy_share if bench else None,
        "provenance": asdict(bench.provenance) if bench else None,
        "formats": None,
        "shrinks": [{**shrink.figures(), "of_this_ticket": True} for shrink in shrinks],
        "search": _search(search) if search else None,
    }


def search_row(search: OwnSearch, arm: str, level: int) -> Trained:
    """One of the rows of an arm. Raises InvalidFile where there is none."""
    found = [row for row in search.rows if (row.arm, row.level) == (arm, level)]
    if not found:
        raise InvalidFile(f"the search holds no {arm!r} at level {level}; run it again")
    return found[0]


def _search(search: OwnSearch) -> Figures:
    """Means over seeds, in the metric's unit; differences are positive where the ticket is better."""
    dense, level, metric = [row for row in search.rows if row.arm == "dense"], int(search.ticket["level"]), search.noun
    arms = [("dense", 0, "the dense network"), *(("ticket", n, "") for n in sorted({r.level for r in search.rows if r.arm == "ticket"}))]
    arms += [(name, level, words) for name, words in CONTROLS.items() if any(row.arm == name for row in search.rows)]
    lines = []
    for arm, at, words in arms:
        rows = [row for row in search.rows if row.arm == arm and (arm != "ticket" or row.level == at)]
        values = [row.val_score for row in rows]
        lines.append(
            {
                "arm": arm,
                "level": at,
                "text": words or f"ticket of level {at}",
                "chosen": (arm, at) == ("ticket", level),
                "value": fmean(values),
                "low": min(values),
                "high": max(values),
                "seeds": len({row.seed for row in rows}),
                "params": rows[0].params,
                "macs": rows[0].macs,
                "theoretical": dense[0].macs / max(1, rows[0].macs),
                "difference": metric.gain(fmean(values), fmean(row.val_score for row in dense)),
                "bound": search.verdict.differences.get(str(at), {}).get("low") if arm == "ticket" else None,
                "gap": search.verdict.gaps.get(arm),
            }
        )
    return {"arms": lines, "verdict": search.verdict.to_json(), "won": bool(search.verdict.won), "level": level, "config": search.config}


def sentence(found: Figures) -> str:
    """What the page says first."""
    parts = []
    if found["search"] is not None:
        parts.append(" ".join(found["search"]["verdict"]["summary"]))
    if (best := found["best"]) is not None:
        clear = best["speedup_low"] > 1 or best["speedup_high"] < 1
        parts.append(
            f"Measured on {best['runtime']} ({best['device']}), batch {best['batch']}: {units.times(best['speedup'])} as fast as the dense "
            f"network (95 % interval {units.times(best['speedup_low'])} to {units.times(best['speedup_high'])}"
            f"{'' if clear else ', no clear difference'}); by its MACs it would be {units.times(best['theoretical'])}."
        )
    return " ".join(parts) or ("Only its file formats were measured." if found["formats"] else "Nothing was measured yet.")
