"""How much a search will write, and has written."""

from __future__ import annotations

import itertools
from pathlib import Path

from ltcompile.finding.asked import Asked


def bytes_of_run(asked: Asked) -> int:
    """About the bytes of a whole run folder: the weights of every training, the ticket, and the checkpoint of the one under way.

    A checkpoint holds weights and momentum, and lies beside the one that it replaces. Weights are counted as falling as the filters do;
    in truth they fall faster.
    """
    config = asked.config
    left = _left(config.shares, steady=config.target is not None) if not config.masked else [1.0] * config.levels
    networks = 1 + sum(left) + (config.rewind_epoch > 0) + config.controls * (1 + left[0])
    return int(asked.dense_bytes * (config.seeds * networks + left[0] + 2 * 2))


def bytes_written(folder: Path) -> int:
    """The bytes of the trainings in a run folder."""
    return sum(file.stat().st_size for file in folder.glob("seed*/*.pt"))


def _left(shares: list[float], steady: bool) -> list[float]:
    """The share of the dense network that each level leaves: `shares` themselves on the way to a target, else what was not dropped."""
    return shares if steady else list(itertools.accumulate((1 - share for share in shares), lambda before, kept: before * kept))
