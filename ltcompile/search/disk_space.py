"""How much a search will write."""

from __future__ import annotations

import itertools

from ltcompile.search.arms import has_masks
from ltcompile.search.config import PRUNE, SearchConfig
from ltcompile.search.job import PreparedJob

TENSOR_BYTES = 400  # what torch.save writes around a tensor: its name twice, its entry in the archive, and padding
FILE_BYTES = 3000  # and around a training: its row and its plan
EPOCH_BYTES = 900  # there, and in the histories of the arm and of the run


def run_bytes(prepared: PreparedJob, jobs: int = 1) -> int:
    """About the bytes of a complete run folder: the weights of every training, masks, the ticket, and the checkpoints of
    the `jobs` under way.

    A checkpoint holds weights and momentum, frozen weights where a method trains scores, and averaged or slow weights, and lies next to the
    one that it replaces.
    Filters that are cut are counted as taking as large a share of the weights with them; in truth they take more.
    """
    job, config = prepared.job, prepared.job.config
    model = job.initial(config.seed)
    dense = prepared.dense_bytes + TENSOR_BYTES * len(model.state_dict()) + FILE_BYTES + EPOCH_BYTES * job.recipe.epochs
    mask = sum(value.numel() for value in prepared.maskable(model).values()) if has_masks(config) else 0
    tickets, controls = _sizes(config)
    networks = 1 + (config.rewind_epoch > 0) + sum(tickets)
    if config.controls:
        networks += 1 + controls[0]
    if config.full_curve:
        networks += sum(controls) + (config.levels if mask else 0)
    checkpoint = (2 if config.method == PRUNE else 3) + (job.recipe.optimizer == "adamw") + (job.recipe.ema > 0 or job.recipe.lookahead > 0)
    return int(dense * (config.seeds * networks + tickets[0] + 2 * checkpoint * jobs) + mask * (config.seeds * config.levels + 1))


def _sizes(config: SearchConfig) -> tuple[list[float], list[float]]:
    """The files of each level as shares of the dense network's: of its ticket, and of a control in its shape. What is masked keeps its size."""
    if config.prune != "filters" or config.method != PRUNE:
        return [1.0] * config.levels, [1.0] * config.levels
    left = _left(config.shares, steady=config.target is not None)
    return [1.0] * config.levels if config.masked else left, left


def _left(shares: list[float], steady: bool) -> list[float]:
    """The share of the dense network that each level leaves: `shares` themselves on the way to a target, else what was not dropped."""
    return shares if steady else list(itertools.accumulate((1 - share for share in shares), lambda before, kept: before * kept))
