"""Solve the weights behind the cut by least squares on unlabelled inputs, against the dense network: `ltcompile.recovery`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from ltcompile.deploy.job import ShrinkJob
from ltcompile.errors import InvalidSetting
from ltcompile.graph import cut
from ltcompile.pruned import Pruned
from ltcompile.recovery import RepairReport, repair

ORDER = 5


def check(job: ShrinkJob) -> None:
    """Raises InvalidSetting where batch norm's statistics are requested twice, or passes over no inputs."""
    if job.repair_passes and job.repair is None:
        raise InvalidSetting("repair_passes= refines on the inputs of repair=; give these too")
    if job.repair is not None and job.calibrate is not None and job.precision != "int8":
        raise InvalidSetting("repair= takes batch norm's statistics too, and calibrate= is for int8 then; leave calibrate= out")


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The repaired network; the lines hold the errors before and after. Raises InvalidSetting where there is nothing to repair by."""
    if job.repair is None:
        return pruned, {}
    if pruned.dense is None or pruned.plan is None or pruned.ticket is not None:
        raise InvalidSetting("repair= needs the trained dense network and the plan that cuts it; a ticket is trained after its cut")
    expected = cut(pruned.dense, pruned.plan).state_dict()
    changed = [name for name, value in pruned.small.state_dict().items() if not torch.equal(value, expected[name])]
    if changed:
        raise InvalidSetting(f"repair= starts from the dense network as cut, and {changed[0]} is not the dense network's; give its weights")
    found: list[RepairReport] = []
    small = repair(pruned.small, pruned.plan, pruned.dense, job.repair, passes=job.repair_passes, on_report=found.append)
    lines = asdict(found[0])
    lines["passes"] = job.repair_passes
    lines["layers"] = {name: {**layer, **_numbers(layer)} for name, layer in lines["layers"].items()}
    return replace(pruned, small=small, provenance={**pruned.provenance, "repaired": "true"}), {"repair": lines}


def _numbers(layer: Mapping[str, Any]) -> dict[str, float | None]:
    """The errors of a layer; None where it was left alone."""
    return {name: None if layer["reason"] else layer[name] for name in ("before", "after")}


def summary(record: Mapping[str, Any]) -> list[str]:
    if (found := record.get("repair")) is None:
        return []
    agreement = found["agreement"]
    same = f"; the largest output is the dense network's for {agreement['as_cut']:.1%} → {agreement['repaired']:.1%}" if agreement else ""
    how = f"repaired, with {found['passes']} passes of gradient descent" if found["passes"] else "repaired"
    left = [name for name, layer in found["layers"].items() if layer["reason"]]
    return [
        f"repaired on {found['inputs']:,} inputs without labels: error of the outputs {found['as_cut']:.3f} as cut, "
        f"{found['recalibrated']:.3f} with batch norm's statistics again, {found['repaired']:.3f} {how}{same}",
        *([f"left alone: {', '.join(left[:5])}: {found['layers'][left[0]]['reason']}"] if left else []),
    ]
