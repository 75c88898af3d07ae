"""A run folder: every finished training as one file, the one under way as a checkpoint, and a log of epochs.

config.json            what was asked for; a resumed run must ask for the same
history.jsonl          a line per epoch of every arm
seed0/ticket-3.pt      weights, row and epochs of a finished training (arm-level)
seed0/ticket-3.partial.pt, seed0/plan-3.json, seed0/early.pt
search.json, ticket.pt the result
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ltcompile.core.plan import PruningPlan
from ltcompile.errors import BadFile, StaleTicket
from ltcompile.paths import atomic, read_json, write_json, write_text


class RunFolder:
    """The files of one search. All writes are atomic; reads execute nothing."""

    def __init__(self, path: Path, config: dict[str, Any], resume: bool) -> None:
        """Raises BadFile where the folder holds a run and `resume` is false, or none to resume; StaleTicket where settings differ."""
        self.path = path
        asked = json.loads(json.dumps(config))
        file = path / "config.json"
        if resume:
            there = read_json(file, "run to resume")
            differing = [k for k in sorted(set(asked) | set(there)) if asked.get(k) != there.get(k)]
            if differing:
                told = "; ".join(f"{k}: {there.get(k)!r} there, {asked.get(k)!r} asked for" for k in differing)
                raise StaleTicket(f"{path} was started with other settings ({told}); resume with the same, or start a new run with --name")
        elif file.exists():
            raise BadFile(f"{path} holds a run already; go on with --resume, or choose another --name")
        else:
            write_json(file, asked)
        self._rewrite_history()

    def unit(self, seed: int, unit: str) -> Path:
        return self.path / f"seed{seed}" / f"{unit}.pt"

    def partial(self, seed: int, unit: str) -> Path:
        return self.path / f"seed{seed}" / f"{unit}.partial.pt"

    def save(self, path: Path, value: dict[str, Any]) -> None:
        with atomic(path) as scratch:
            torch.save(value, scratch)

    def load(self, path: Path) -> dict[str, Any] | None:
        """What `save` wrote, or None if there is nothing. Raises BadFile where it is damaged."""
        if not path.exists():
            return None
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen types for a broken archive
            raise BadFile(f"{path} is damaged; remove it, and --resume repeats that training") from error
        if not isinstance(value, dict):
            raise BadFile(f"{path} is not of this project; remove it, and --resume repeats that training")
        return value

    def plan(self, seed: int, level: int) -> PruningPlan | None:
        path = self._plan_path(seed, level)
        return PruningPlan.load(path) if path.exists() else None

    def save_plan(self, seed: int, level: int, plan: PruningPlan) -> None:
        plan.save(self._plan_path(seed, level))

    def _plan_path(self, seed: int, level: int) -> Path:
        return self.path / f"seed{seed}" / f"plan-{level}.json"

    def log(self, row: dict[str, Any]) -> None:
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _rewrite_history(self) -> None:
        """One line per epoch that is in a file: an epoch after the last checkpoint will be run, and logged, again."""
        lines = []
        for file in sorted(self.path.glob("seed*/*.pt")):
            unit = file.name.removesuffix(".pt").removesuffix(".partial")
            value = self.load(file) or {}
            lines += [json.dumps({"seed": int(file.parent.name[4:]), "unit": unit, **row}) for row in value.get("epochs", [])]
        write_text(self.path / "history.jsonl", "".join(line + "\n" for line in lines))
