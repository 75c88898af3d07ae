"""A few test inputs with the answers of the dense network and of the ticket, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ltcompile.core.arm import Arm
from ltcompile.core.pictures import Picture, to_png, write_pictures
from ltcompile.core.ticket import Ticket
from ltcompile.search.arm_runner import ArmRunner

SHOWN = 4  # inputs


def compare_answers(runner: ArmRunner, ticket: Ticket) -> None:
    """Write a few test inputs with the answers of the seed's dense network and of the ticket to the folder, where inputs are images.

    Raises InvalidFile.
    """
    task, device = runner.job.task, runner.job.device
    truth = task.answers(None, "test", SHOWN, device)
    inputs = next(iter(task.batches("test", SHOWN, device)))[0] if truth else None
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or inputs.shape[1] not in (1, 3):
        return
    arms = Arm(ticket.seed, "dense", 0), Arm(ticket.seed, "ticket", ticket.level)
    dense, small = (task.answers(runner.trained(arm).to(device), "test", SHOWN, device) for arm in arms)
    images = _images(inputs, ticket.data)
    write_pictures(
        runner.folder.pictures,
        [
            Picture(to_png(image), image.shape[2], image.shape[1], *answers)
            for image, *answers in zip(images, truth, dense, small, strict=True)
        ],
    )


def _images(inputs: Tensor, data: Mapping[str, Any]) -> Tensor:
    """Normalised images as uint8 (N, C, H, W)."""
    mean, std = (torch.tensor(data[name], device=inputs.device)[:, None, None] for name in ("mean", "std"))
    return (255 * (inputs * std + mean)).round().clamp(0, 255).to(torch.uint8)
