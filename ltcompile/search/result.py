"""What a search leaves: the ticket, and what the report is made of: its summary, and a few test inputs with answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ltcompile.core.arm import Arm
from ltcompile.core.pictures import Picture, to_png, write_pictures
from ltcompile.core.plan import PruningPlan
from ltcompile.core.reached import Reached
from ltcompile.core.records import Trained, Verdict, provenance
from ltcompile.core.ticket import Ticket
from ltcompile.graph import Size, cut
from ltcompile.paths import write_json
from ltcompile.search.arm_runner import ArmRunner
from ltcompile.search.conditions import arm
from ltcompile.search.verdict import typical_seed

SHOWN = 4  # inputs with their answers


def build_ticket(runner: ArmRunner, rows: list[Trained], verdict: Verdict, level: int) -> Ticket:
    """The chosen level's ticket of the seed that `typical_seed` names."""
    seed, prepared, job = typical_seed(arm(rows, "ticket", level), runner.job.task.metric), runner.prepared, runner.job
    chosen = Arm(seed, "ticket", level)
    selection, model = runner.selection(chosen), runner.trained(chosen)
    mask = selection.as_mask(model)
    small = cut(model, selection.plan) if job.config.masked else model
    return Ticket(
        model={"name": job.model, "arguments": job.arguments},
        plan=selection.plan if mask is None else PruningPlan(prepared.traced),
        weights=small.state_dict(),
        initial_seed=seed,
        recipe=job.recipe,
        data=job.task.description.to_json(),
        metric=job.task.metric,
        config=job.config.to_json(),
        history=tuple(rows),
        verdict=verdict,
        level=level,
        seed=seed,
        provenance=provenance(),
        mask=mask,
    )


def measure_target(runner: ArmRunner, row: Trained) -> Reached | None:
    """How a ticket stands to the target of the search, where it had one; time and energy are measured now."""
    job = runner.job
    target = job.config.target
    if target is None:
        return None
    if not target.profiled:
        return Reached(target.measure, target.share, target.of(Size(row.params, row.macs)) / target.of(runner.prepared.dense_size))
    if job.measured is None:
        return Reached(target.measure, target.share, None)
    chosen = Arm(row.seed, "ticket", row.level)
    model = runner.trained(chosen)
    return Reached(target.measure, target.share, job.measured(cut(model, runner.selection(chosen).plan) if job.config.masked else model))


def write_summary(runner: ArmRunner, ticket: Ticket, reached: Reached | None, seconds: float) -> None:
    """Write the summary of the search to its folder. Raises InvalidFile."""
    job = runner.job
    widths = [
        {"layer": name, "before": before, "after": after, "frozen": ticket.plan.frozen.get(name, "")}
        for name, (before, after) in ticket.plan.widths.items()
    ]
    write_json(
        runner.folder.summary,
        {
            "kind": "search",
            "format": 1,
            "name": runner.folder.path.name,
            "model": dict(ticket.model),
            "metric": ticket.metric.to_json(),
            "data": {**ticket.data, "sizes": dict(job.task.sizes)},
            "config": job.config.to_json(),
            "recipe": job.recipe.to_json(),
            "seeds": list(job.config.all_seeds),
            "rows": [r.to_json() for r in ticket.history],
            "health": runner.unhealthy([Arm(row.seed, row.arm, row.level) for row in ticket.history]),
            "execution": runner.execution.to_json(),
            "widths": widths,
            "verdict": ticket.verdict.to_json(),
            "ticket": {"seed": ticket.seed, "level": ticket.level, "won": ticket.verdict.won, "checksum": ticket.checksum},
            "target": reached.to_json() if reached else None,
            "seconds": seconds,
            "provenance": dict(ticket.provenance),
        },
    )


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
