"""A plan for any network, by its size or by the time that it takes where it will run."""

from __future__ import annotations

from typing import Any

from torch import nn

from ltcompile.benchmark import profiling
from ltcompile.core.deployment import Deployment
from ltcompile.core.plan import PruningPlan
from ltcompile.core.profile import Profile
from ltcompile.errors import InvalidSetting, ProfileMismatch
from ltcompile.graph import Example
from ltcompile.prune.budget import RelativeTimer
from ltcompile.prune.planning import plan as choose


def plan(
    model: nn.Module,
    example: Example,
    ratio: float | None = None,
    *settings: Any,
    target_speedup: float | None = None,
    on: Deployment | str | None = None,
    profile: Profile | None = None,
    measured: RelativeTimer | None = None,
    **more: Any,
) -> PruningPlan:
    """A plan that drops the least important filters of `model`, which stays as it is.

    Args:
        example: inputs of the network: a tensor (N, ...), a tuple of positional or a dict of keyword arguments.
        ratio: the share of the filters to drop; 0.5 where there is no target.
        settings, more: all others of `ltcompile.prune.plan`: scope, criterion, align, seed, target_macs, target_params, target_time,
            target_energy, limits, evidence, group_reduction, on_target, check.
        target_speedup: how many times as fast as the dense network the cut one is to run at `on`. The plan is made by `profile`, measured in
            turns with the dense network, and made again for a corrected budget where the measurement falls short of the target.
        on: where the network will run, such as "cpu:onnxruntime:b1:fp32".
        profile: the layers' times there, as `lt.profile` gives them; by default this machine is profiled, once: the cache keeps it.
        measured: gives the share of the dense network's time that a cut takes; by default `lt.stopwatch`, where the profile is of this machine.

    Raises:
        InvalidSetting: a setting is invalid, or the target cannot be reached. InvalidModel: the network cannot be traced or cut.
        ProfileMismatch: the profile is of another network, or for another target. Unavailable: `on` cannot be profiled here.
    """
    if target_speedup is None:
        if on is not None:
            raise InvalidSetting(f"on={on} says where a speedup is measured; add target_speedup=, as in target_speedup=3")
        return choose(model, example, ratio, *settings, profile=profile, measured=measured, **more)
    target = place_of_speedup(target_speedup, on, profile)
    found = profile or profiling.profile(model, target, example)
    found.check_fits(profiling.described(model, example), target)
    measured = measured or stopwatch_of(found, model, example)
    return choose(model, example, ratio, *settings, target_time=1 / target_speedup, profile=found, measured=measured, **more)


def place_of_speedup(speedup: float, on: Deployment | str | None, profile: Profile | None) -> Deployment:
    """Where a network is to run so many times as fast. Raises InvalidSetting."""
    if not 1 < speedup < float("inf"):
        raise InvalidSetting(f"target_speedup={speedup} must be above 1: how many times as fast as the dense network")
    if on is not None:
        return Deployment.parse(on) if isinstance(on, str) else on
    if profile is None:
        raise InvalidSetting('target_speedup= needs on=, where the network will run, as in on="cpu:onnxruntime:b1:fp32"')
    return profile.target


def stopwatch_of(profile: Profile, dense: nn.Module, example: Example) -> RelativeTimer | None:
    """What measures the share of `dense`'s time that a cut takes, where `profile` is of this machine; None where it is of another."""
    try:
        profile.check_here()
    except ProfileMismatch:
        return None
    return profiling.stopwatch(dense, profile.target, example)
