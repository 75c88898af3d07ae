"""The page shows the metric of the task: its name, its unit, and which direction is better."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pages import curve, example, write

from ltcompile.core.task import Metric
from ltcompile.errors import InvalidFile
from ltcompile.reporting import report, units

METRICS = {
    "share": (Metric("mAP"), "validation mAP (%)", "97.20\N{NO-BREAK SPACE}%"),
    "value": (Metric("PSNR", "dB", 1.0), "validation PSNR (dB)", "0.97\N{NO-BREAK SPACE}dB"),
    "error": (Metric("RMSE", "mm", 1.0, higher_is_better=False), "validation RMSE (mm)", "0.97\N{NO-BREAK SPACE}mm"),
}


@pytest.mark.parametrize("kind", METRICS)
def test_every_place_names_it(kind: str, tmp_path: Path) -> None:
    metric, axis, text = METRICS[kind]
    assert units.axis(metric) == axis and units.score(0.972, metric) == text
    run = example() | {"sweep.json": curve()}
    run["search.json"]["metric"] = dataclasses.asdict(metric)
    page = report(write(tmp_path / "run", run)).read_text().split('id="figures"')
    shown = page[0].split("<main>")[1].split('id="latency"')[0]
    assert "accuracy" not in shown.replace('"#accuracy"', "").replace('id="accuracy"', "").replace('data-figure="accuracy"', "")
    assert (
        f"Test {metric.name}" in shown
        and f"{metric.name} over sparsity" in shown
        and f"{metric.name} against latency" in shown
        and axis in page[1].split("</script>")[0]
    )
    assert f"mean difference ({metric.unit})" in page[0] and ("points" in shown) == (kind == "share")


def test_values_beyond_one_are_shares_of_nothing(tmp_path: Path) -> None:
    run = example() | {"sweep.json": curve()}
    for point in run["sweep.json"]["points"]:
        point |= {name: 30 + point[name] for name in ("val_score", "val_min", "val_max")}
    for row in run["search.json"]["rows"]:
        row["val_score"] += 30
        row["test_score"] = None if row["test_score"] is None else row["test_score"] + 30
    with pytest.raises(InvalidFile, match="val_score is 3"):
        report(write(tmp_path / "run", run))
    run["search.json"]["metric"] = dataclasses.asdict(Metric("PSNR", "dB", 1.0))
    page = report(write(tmp_path / "run", run)).read_text()
    assert "30.9" in page and "30.97" in page and "\N{NO-BREAK SPACE}dB" in page
