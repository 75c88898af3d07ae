"""A run folder: every finished training as one file, the one under way as a checkpoint, and a log of epochs.

config.json            what was asked for; a resumed run must ask for the same
execution.json         how trainings are computed: precision, compiled or not, and the times behind that choice
history.jsonl          a line per epoch of every arm
seed0/ticket-3.pt      weights, row, epochs and health of a finished training (arm-level)
seed0/ticket-3.partial.pt, seed0/plan-3.json, seed0/early.pt
seed0/mask-3.pt        the mask of a level, where the search is for one
search.json, ticket.pt the result
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.tensors import read_torch
from ltcompile.errors import BadFile, StaleTicket
from ltcompile.paths import read_json, write_json, write_text, write_torch, writing
from ltcompile.search.kept import Kept


class RunFolder:
    """The files of one search. All writes but the log's are atomic; reads execute nothing."""

    def __init__(self, path: Path, asked: dict[str, Any], resume: bool) -> None:
        """Raises BadFile where the folder holds a run and `resume` is false; StaleTicket where its settings differ.

        A folder whose run was stopped before it wrote its settings down holds none yet: it begins.
        """
        self.path = path
        asked = json.loads(json.dumps(asked))
        if not self._settings.exists():
            write_json(self._settings, asked)
        elif not resume:
            raise BadFile(f"{path} holds a run already; go on with --resume, or choose another --name")
        elif told := _differences(self._read_settings(), asked):
            raise StaleTicket(f"{path} was started with other settings ({told}); resume with the same, or start a new run with --name")
        self._tidy()

    @property
    def _settings(self) -> Path:
        return self.path / "config.json"

    def _read_settings(self) -> dict[str, Any]:
        there = read_json(self._settings, "run to resume")
        if not isinstance(there, dict):
            raise BadFile(f"{self._settings} holds no settings of a run; remove {self.path}, or choose another --name")
        return there

    @property
    def execution(self) -> Path:
        return self.path / "execution.json"

    def unit(self, seed: int, unit: str) -> Path:
        return self.path / f"seed{seed}" / f"{unit}.pt"

    def partial(self, seed: int, unit: str) -> Path:
        return self.path / f"seed{seed}" / f"{unit}.partial.pt"

    def plan(self, seed: int, level: int) -> Path:
        return self.path / f"seed{seed}" / f"plan-{level}.json"

    def save(self, path: Path, value: dict[str, Any]) -> None:
        """Write tensors and plain values to a file of the run. Raises BadFile where it cannot be written."""
        self.check_there()
        write_torch(path, value)

    def mask(self, seed: int, level: int) -> Path:
        return self.path / f"seed{seed}" / f"mask-{level}.pt"

    def save_kept(self, seed: int, level: int, kept: Kept) -> None:
        """Write what a level keeps: the mask first, for the plan's file says that both are there."""
        self.check_there()
        if kept.mask:
            kept.mask.save(self.mask(seed, level))
        kept.plan.save(self.plan(seed, level))

    def load(self, path: Path) -> dict[str, Any]:
        """What `save` wrote. Raises BadFile where it is missing or damaged."""
        mend = "--resume repeats that training"
        if not path.exists():
            raise BadFile(f"{path} is gone; {mend}")
        value = read_torch(path, "training of a run", f"remove it, and {mend}")
        if not isinstance(value, dict):
            raise BadFile(f"{path} is no training of a run; remove it, and {mend}")
        return value

    def load_into(self, model: nn.Module, path: Path) -> dict[str, Any]:
        """Give `model` the weights in a file of the run, in place; all that `save` wrote. Raises BadFile as `load` does, or where they do not fit."""
        value = self.load(path)
        with self.fitting(path):
            model.load_state_dict(value["weights"])
        return value

    @contextlib.contextmanager
    def fitting(self, path: Path) -> Iterator[None]:
        """Where what `path` holds is put to use: what does not fit is a BadFile."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, BadFile) as error:
            told = " ".join(str(error).split())[:300]
            raise BadFile(f"{path} does not fit this run ({told}); remove it, and --resume repeats that training") from error

    def load_kept(self, seed: int, level: int, masked: bool) -> Kept:
        """What a level keeps, with a mask where it must have one or has. Raises BadFile where it is missing or damaged."""
        plan, file = PruningPlan.load(self.plan(seed, level)), self.mask(seed, level)
        return Kept(plan, WeightMask.load(file) if masked or file.exists() else None)

    def log(self, row: dict[str, Any]) -> None:
        """Append a line to the history."""
        file = self.path / "history.jsonl"
        line = json.dumps(row) + "\n"
        with writing(file, len(line)), file.open("a", encoding="utf-8") as history:
            history.write(line)

    def check_there(self) -> None:
        """Raises BadFile where the folder was removed while the search ran: what it had trained went with it."""
        if not self._settings.exists():
            raise BadFile(f"{self.path} was removed or moved while the search ran; put it back and go on with --resume, or begin anew")

    def _tidy(self) -> None:
        """Remove checkpoints of finished trainings; make the history tell every epoch that is in a file once.

        An epoch after the last checkpoint will be run, and logged, again.
        """
        lines = []
        for file in sorted(self.path.glob("seed*/*.pt")):
            if file.name.startswith("mask-"):
                continue
            unit = file.name.removesuffix(".pt").removesuffix(".partial")
            with self.fitting(file):
                seed = int(file.parent.name[4:])
                if file == self.partial(seed, unit) and self.unit(seed, unit).exists():
                    file.unlink()
                    continue
                lines += [json.dumps({"seed": seed, "unit": unit, **row}) for row in self.load(file).get("epochs", [])]
        write_text(self.path / "history.jsonl", "".join(line + "\n" for line in lines))


def _differences(there: Any, asked: dict[str, Any]) -> str:
    """In which settings two runs differ, in words; empty where in none."""
    if not isinstance(there, dict):
        return "its config.json holds none"
    differing = [k for k in sorted(set(asked) | set(there)) if asked.get(k) != there.get(k)]
    return "; ".join(f"{k}: {there.get(k)!r} there, {asked.get(k)!r} asked for" for k in differing)
