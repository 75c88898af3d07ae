"""A search with a regulariser: what is cut later is trained with it, and the last ticket and the controls are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from searches import QUICK

import ltcompile as lt


@pytest.mark.slow
def test_only_what_is_cut_later_is_penalised(tmp_path: Path) -> None:
    data, config = lt.load_data("digits", image_size=8).with_train_images(120), lt.SearchConfig(rounds=1, rate=0.5)
    rows = {}
    for name in ("", "growing"):
        recipe = dataclasses.replace(QUICK, epochs=2, regulariser=name, regulariser_strength=5.0)
        found = lt.find("conv2", data, config, recipe=recipe, folder=tmp_path / (name or "plain"))
        rows[name] = {row.arm: dataclasses.replace(row, seconds=0.0) for row in found.rows}
    assert rows[""]["dense_budget"] == rows["growing"]["dense_budget"]
    assert rows[""]["dense"] != rows["growing"]["dense"]
