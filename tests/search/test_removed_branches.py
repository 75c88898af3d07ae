"""Searches whose rounds may remove residual branches: plans of several rounds compose, and the ticket is the network that was trained."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from searches import QUICK
from torch import nn

import ltcompile as lt
from ltcompile.core.run_folder import RunFolder
from ltcompile.data import Dataset
from ltcompile.errors import InvalidSetting
from ltcompile.models.resnet import ResNet
from ltcompile.pruned import pruned_of

RECIPE = dataclasses.replace(QUICK, epochs=1, lr=1e-5)


def two_useless_blocks() -> nn.Module:
    """A residual network two of whose branches begin as zero, and are hardly trained."""
    network = ResNet(8, [2, 2], 10, 1)
    for name in ("blocks.1.bn2", "blocks.3.bn2"):
        nn.init.zeros_(network.get_submodule(name).weight)
    return network


@pytest.mark.slow
def test_rounds_remove_branches_and_channels(few_digits: Dataset, tmp_path: Path) -> None:
    config = lt.SearchConfig(rounds=2, rate=0.5, depth=True, normalize="mean", controls=False, seeds=1)
    name = f"{__file__}:two_useless_blocks"
    found = lt.find(name, few_digits, config, recipe=RECIPE, folder=tmp_path / "run")
    plans = [lt.PruningPlan.load(RunFolder(tmp_path / "run").plan(0, level)) for level in (1, 2)]
    removed = [[branch.name for branch in plan.removed_branches] for plan in plans]
    assert set(removed[0]) >= {"blocks.1.bn2", "blocks.3.bn2"} and removed[1][: len(removed[0])] == removed[0]
    frozen, largest_step = 10, 3  # the head's outputs; filters that one channel of a stage takes with it
    counts = [count - frozen for count in (plans[0].filters[0], *(plan.filters[1] for plan in plans))]
    for before, after in pairwise(counts):
        assert before / 2 <= after < before / 2 + largest_step, "each round drops half of the filters, those of branches among them"
    assert found.rows[2].filters < found.rows[1].filters < found.rows[0].filters
    small = pruned_of(found.ticket, name).small.eval()
    assert lt.size(small, few_digits.example).macs == found.rows[found.ticket.level].macs
    with torch.no_grad():
        assert small(few_digits.example).isfinite().all()


def test_refusals(few_digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="no residual branch"):
        lt.find("lenet5", few_digits, lt.SearchConfig(depth=True), recipe=RECIPE, folder=tmp_path / "run")
    with pytest.raises(InvalidSetting, match="leave prune=, method= and masked= out"):
        lt.SearchConfig(depth=True, masked=True)
    with pytest.raises(InvalidSetting, match="normalize must be one of"):
        lt.SearchConfig(normalize="sum")  # type: ignore[arg-type]
