"""Signs that a training went wrong although it came to its end: channels that are always zero, losses that jumped, batches in parts."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import nn

from ltcompile.core.plan import Group
from ltcompile.core.task import Task
from ltcompile.prune.criteria import Channels
from ltcompile.prune.evidence import channel_means
from ltcompile.training import Epoch, Outcome, to_layout, to_memory_format

BATCHES, ITEMS = 8, 32  # of validation data; small batches, for what every layer reads and makes is looked at in float64
JUMP = 2.0  # times the lowest loss of the epochs before
FLOOR = 0.1  # of the first epoch's loss: below it, a jump is noise


def health(model: nn.Module, groups: tuple[Group, ...], task: Task, device: torch.device, done: Outcome) -> dict[str, Any]:
    """The health of `model` after its training, as plain values: dead channels of its `groups` (where
    validation items can be seen), spikes, parts of batches.
    """
    return {"dead": dead_channels(model, groups, task, device) if task.sizes else [], "spikes": spikes(done.epochs), "parts": done.parts}


def healthy(report: dict[str, Any]) -> bool:
    """Whether a `health` has nothing to report."""
    return not report["dead"] and not report["spikes"] and report["parts"] == 1


def dead_channels(model: nn.Module, groups: tuple[Group, ...], task: Task, device: torch.device) -> list[dict[str, Any]]:
    """Groups with channels that are zero on all items looked at, wherever they are consumed: how many of how many."""
    layout = to_memory_format(model.eval(), device)
    batches = islice(task.batches("val", ITEMS, device), BATCHES)
    means = channel_means(model, (to_layout(inputs, layout) for inputs, _ in batches), torch.abs)
    counts = {group: _zeros(Channels(group, model), means) for group in groups if group.producers}
    return [{"layer": group.name, "channels": count, "of": group.width} for group, count in counts.items() if count]


def _zeros(channels: Channels, means: dict[tuple[str, str], torch.Tensor]) -> int:
    """The channels of which nothing but zeros is read; where no layer reads them, of which nothing else is made."""
    return int((channels.mean_of(means, channels.readers, channels.group.members) == 0).sum())


def spikes(epochs: list[Epoch]) -> list[dict[str, Any]]:
    """Epochs whose mean training loss is more than JUMP times the lowest before it, and not negligible."""
    found, lowest = [], float("inf")
    for row in epochs:
        if row.train_loss > JUMP * lowest and row.train_loss > FLOOR * epochs[0].train_loss:
            found.append({"epoch": row.epoch + 1, "loss": row.train_loss, "lowest": lowest})
        lowest = min(lowest, row.train_loss)
    return found
