"""What a process of crash.py does until it is killed: search, shrink and report, with a message at every step; and moments to die at."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

import ltcompile as lt
from ltcompile import paths
from ltcompile.data import Dataset
from ltcompile.search import iterative_pruning
from ltcompile.search import run as search
from ltcompile.search.listener import NullListener
from ltcompile.search.rewind import weight
from ltcompile.training import loop

POINTS = ("half written", "before its rename", "behind its rename")
SEARCHING = "searching, none of these"
CONFIG = lt.SearchConfig(rewind="weight", rewind_epoch=1, criterion="taylor", rounds=2, rate=0.3, margin_points=50)
RECIPE = lt.Recipe(epochs=2, batch=32, lr=0.02, schedule="cosine", flip=False, crop_pixels=1, precision="fp32", distill=0.5)


def network(classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Statistics of batch norm and the chance of dropout are restored too, or the bits differ."""
    pixels = (image_size - 2) ** 2
    return nn.Sequential(
        *(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(8 * pixels, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, classes)),
    )


def few_digits() -> Dataset:
    """An eighth of the embedded digits, at 8x8 pixels."""
    digits = lt.load_data("digits", image_size=8)
    parts = {name: getattr(digits, name) for name in ("train", "val", "test")}
    return dataclasses.replace(digits, **{name: part.part(torch.arange(0, len(part), 8)) for name, part in parts.items()})


class Reporter(NullListener):
    """Reports to the parent, through a pipe that outlives this process, what runs here, and which epochs are begun and kept."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.phase, self.unit = pipe, "", ""

    def say(self, kind: str, what: str) -> None:
        os.write(self.pipe, f"{kind} {what}\n".encode())

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        self.say("phase", phase)
        yield
        self.phase = before
        self.say("phase", before)

    def started(self, seed: int, arm: str, level: int, epochs: int, done: int) -> None:
        self.unit = f"{arm}-{level}"

    def epoch(self, seed: int, arm: str, level: int, row: loop.Epoch) -> None:
        self.say("kept", f"{self.unit} {row.epoch}")


def work(folder: Path, data: Dataset, reporter: Reporter) -> None:
    """All that a child does: search, or resume it; shrink; report."""
    with reporter.during(SEARCHING):
        found = lt.find("_crash_child:network", data, CONFIG, recipe=RECIPE, folder=folder, resume=folder.exists(), listener=reporter)
    with reporter.during("shrinking"):
        lt.shrink(found.ticket, folder / "small.safetensors", model="_crash_child:network")
    with reporter.during("reporting"):
        lt.report(folder)


def instrument(reporter: Reporter) -> None:
    """Let the parts of this process report when they run."""
    for owner, name, phase in (
        (iterative_pruning.IterativePruning, "_prune", "pruning"),
        (weight, "restart", "rewinding"),
        (search, "judge", "judging"),
        (search, "_with_test", "judging"),
    ):
        setattr(owner, name, _reporting(getattr(owner, name), phase, reporter))
    epoch, scratch, move = loop._Loop.epoch, paths._scratch, paths._move

    def begun(self: loop._Loop, number: int) -> Any:
        with reporter.during("training"):
            reporter.say("begun", f"{reporter.unit} {number}")
            return epoch(self, number)

    @contextlib.contextmanager
    def writing(path: Path) -> Iterator[Any]:
        with reporter.during("writing a file"), scratch(path) as file:
            yield file

    def moved(source: str, path: Path, once: bool) -> None:
        move(source, path, once)
        reporter.say("wrote", path.name)

    loop._Loop.epoch, paths._scratch, paths._move = begun, writing, moved  # type: ignore[method-assign,assignment]


def _reporting(function: Callable[..., Any], phase: str, reporter: Reporter) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with reporter.during(phase):
            return function(*args, **kwargs)

    return wrapped


@dataclass(frozen=True)
class Moment:
    """A point of a process's nth write."""

    point: str
    nth: int

    def arrange(self) -> None:
        """Let this process kill itself then."""
        fsync, move, written = os.fsync, paths._move, 0

        def half(handle: int) -> None:
            nonlocal written
            written += 1
            if self == Moment(POINTS[0], written):
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
                _die()
            fsync(handle)

        def around(scratch: str, path: Path, once: bool) -> None:
            if self == Moment(POINTS[1], written):
                _die()
            move(scratch, path, once)
            if self == Moment(POINTS[2], written):
                _die()

        os.fsync, paths._move = half, around  # type: ignore[assignment]


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
