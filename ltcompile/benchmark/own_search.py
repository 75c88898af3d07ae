"""`lt.Search`: a search in a loop of one's own, by settings, to a size or to a measured speedup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from ltcompile.benchmark import profiling
from ltcompile.benchmark.planning import place_of_speedup, stopwatch_of
from ltcompile.core.deployment import Deployment
from ltcompile.core.lease import LEASE_S
from ltcompile.core.profile import Profile
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.streams import seeded, stream
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidSetting, unknown
from ltcompile.graph import Example
from ltcompile.prune.budget import RelativeTimer
from ltcompile.search.config import SearchConfig
from ltcompile.search.own_loop import OwnLoop, alone, check_supported


class Search(OwnLoop):
    """A lottery-ticket search over a network of one's own, trained by a loop of one's own.

        search = lt.Search(build, example, folder="runs/bottles", metric="mAP", target_speedup=3, on="cpu:onnxruntime:b1:fp32", rounds=4, seeds=3)
        for arm in search:                                   # finished arms are skipped
            train(arm.model, epochs=arm.epochs, seed=arm.seed, checkpoints=arm.folder)
            arm.report(evaluate(arm.model))
        lt.shrink(search.result(), "bottles.onnx")

    Per seed the arms are the dense network and a ticket for each round; then, at the chosen level, the controls: the ticket's architecture on
    fresh weights with the ticket's whole budget, and the dense network with that budget. Each finished arm is a file, so that the same script
    started again continues with the first unfinished arm. Several processes may run the script at once, on any machines that see the folder:
    each arm is trained by one of them, and all end when all arms are finished. Where plans are corrected by measurements, one process at a
    time does.

    Args:
        build: makes the dense network with first weights; it is called with torch's generators seeded.
        example: an input of the network: a tensor, a tuple of positional or a dict of keyword arguments, nested as the forward takes them.
        folder: the run folder; a folder with another search is refused.
        metric: the name of the metric that `report` gets, or a `Metric`, which says its unit, scale and direction.
        epochs: how long the dense network trains.
        margin: a ticket wins where the lower bound of (its metric - the dense network's) lies above minus so many of the metric's units.
        target_speedup: how many times as fast as the dense network the last round's is to run at `on`.
        on: where the network will run, such as "cpu:onnxruntime:b1:fp32".
        profile: the layers' times there, as `lt.profile(build(), on, example)` gives them, which plans then follow from alone. By default
            this machine is profiled, once (the run folder and the cache keep it), and plans are corrected by `lt.stopwatch`.
        measured: gives the share of the dense network's time that a cut takes, to correct plans by.
        lease_s: after how many seconds without a sign of life another process takes an arm over.
        settings: any other field of `SearchConfig`, such as rounds, rate or target_macs, rewind, seeds, criterion, controls, keep, only.

    Raises:
        InvalidSetting: settings contradict each other, or the criterion needs data. InvalidModel: the network cannot be traced or cut.
        TicketMismatch: the folder holds a search with other settings, or of inputs of other shapes. ProfileMismatch: the profile is of another
            network or place. Unavailable: `on` cannot be profiled here.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        example: Example,
        folder: str | Path,
        metric: str | Metric = "accuracy",
        *,
        epochs: int = 1,
        margin: float = 0.5,
        target_speedup: float | None = None,
        on: Deployment | str | None = None,
        profile: Profile | None = None,
        measured: RelativeTimer | None = None,
        lease_s: float = LEASE_S,
        **settings: Any,
    ) -> None:
        if isinstance(build, nn.Module) or not callable(build):
            raise InvalidSetting(f"build= must be a function that makes the network with fresh weights, not {type(build).__name__}")
        if target_speedup is not None:
            on, settings = place_of_speedup(target_speedup, on, profile), settings | {"target_time": 1 / target_speedup}
        config = _config(margin, settings if on is None else settings | {"on": str(on)})
        if config.target_time is not None and profile is None:
            with seeded(stream("first weights", config.seed)):
                dense = build()
            profile = _profile(dense, Deployment.parse(str(on)), example, RunFolder(folder), lease_s)
            measured = measured or stopwatch_of(profile, dense, example)
        metric = metric if isinstance(metric, Metric) else Metric(metric)
        super().__init__(build, example, folder, metric, config, epochs=epochs, profile=profile, measured=measured, lease_s=lease_s)


def _config(margin: float, settings: dict[str, Any]) -> SearchConfig:
    """The search of these settings. Raises InvalidSetting, before anything takes minutes."""
    known = sorted(f.name for f in fields(SearchConfig))
    if extra := sorted(settings.keys() - set(known)):
        raise unknown("setting", extra[0], known)
    config = SearchConfig(**{"rounds": 4, "margin_points": margin} | settings)
    check_supported(config)
    return config


def _profile(dense: nn.Module, on: Deployment, example: Example, folder: RunFolder, lease_s: float) -> Profile:
    """The layers' times at `on`: those that the run began with, or measured here while no other process measures in its folder."""
    if folder.profile.exists():
        return Profile.load(folder.profile)
    with alone(folder, lease_s):
        return profiling.profile(dense, on, example)
