"""Two lines in a training script of one's own, `attach` and `report_metric`, which do nothing outside a search."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ltcompile.core.arm import Arm
from ltcompile.core.fields import SchemaError, from_json
from ltcompile.core.profile import Profile
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidFile, InvalidModel, InvalidSetting
from ltcompile.graph import Example
from ltcompile.graph._copy import copied
from ltcompile.graph.examples import read_example
from ltcompile.graph.wrappers import unwrap
from ltcompile.paths import read_json
from ltcompile.search.config import SearchConfig
from ltcompile.search.own_arm import ArmToTrain
from ltcompile.search.own_loop import OwnLoop
from ltcompile.search.run import SPACE_S

Module = TypeVar("Module", bound=nn.Module)

SEARCH = "LTCOMPILE_SEARCH"  # the environment variable that names the search's command.json
ARM = "LTCOMPILE_ARM"  # the arm to train, as in seed0/ticket-1; empty: all are finished, and the search is to be concluded
_attached: list[tuple[ArmToTrain, str]] = []  # the arm and the fingerprint of the weights that it began with


def attach(model: Module, example: Example | None = None) -> Module:
    """The network to train: outside a search `model` itself; in one that `ltcompile find --train` started, the arm to train.

    Call it right after the network is built and before anything refers to its parameters: checkpoints, the optimizer, EMA, torch.compile and
    DistributedDataParallel. All processes of one training may call it. The arm's network is on the device of `model` and in its mode.

    Args:
        model: the dense network, with first weights. Those of a seed's first training are kept for all arms that start from first weights.
        example: what it is called with, where the search was not given one (`find --example`).

    Raises:
        InvalidSetting: there is no example, the search is finished, or the script builds the first weights again for an arm that needs others.
        InvalidModel, InvalidFile, TicketMismatch: as `lt.Search` raises them.
    """
    if SEARCH not in os.environ:
        return model
    run, network = RunFolder(Path(os.environ[SEARCH]).parent, SPACE_S), unwrap(model)
    settings = read_settings(run.command)
    if example is None and settings["example"] is None:
        raise InvalidSetting("attach(model) needs an example input: attach(model, example), or `ltcompile find --example 1x3x224x224`")
    given = read_example(settings["example"]) if example is None else example
    first, config, metric = copied(network).cpu(), SearchConfig.from_json(settings["config"]), Metric(**settings["metric"])
    source, profile = [first], None if config.target_time is None else Profile.load(run.profile)
    search = _OfScript(lambda: copied(source[0]), given, run.path, metric, config, epochs=settings["epochs"], profile=profile)
    if os.environ.get(ARM) == "":
        if _is_first_process():
            search.result()
        raise SystemExit(0)
    wanted = _named(search, os.environ.get(ARM))
    if wanted is None:
        raise InvalidSetting(f"the search in {run.path} is finished; begin another in a new folder")
    kept = run.first_weights(wanted.seed)
    if takes_fresh_weights(wanted, config.rewind):
        _check_other(first, kept, run, f"seed{wanted.seed}/{wanted.name}")
    elif kept.exists():
        source[0] = copied(first)
        run.load_into(source[0], kept)
    elif _is_first_process():
        run.save(kept, {"weights": first.state_dict()})
    arm = search.arm_to_train(wanted)
    arm.model.to(next((p.device for p in network.parameters()), None)).train(network.training)
    _attached[:] = [(arm, _fingerprint(arm.model))]
    return cast(Module, arm.model)


def report_metric(value: float, items: Sequence[float] | None = None) -> None:
    """Finish the arm that `attach` gave: write its weights and the metric on validation data. Does nothing outside a search, and in all
    processes of a training but the first (RANK 0).

    Args:
        value: the metric, as `ArmToTrain.report` takes it.
        items: the metric of each validation item, or which ones were correct, as `ArmToTrain.report` takes them.

    Raises:
        InvalidSetting: `attach` was not called, or the value is not finite. InvalidModel: the network was replaced after `attach`, or another
            one was trained.
    """
    if SEARCH not in os.environ:
        return
    if not _attached:
        raise InvalidSetting("report_metric was called, but not attach; write `model = lt.attach(model)` right after the network is built")
    if _is_first_process():
        arm, began_with = _attached[0]
        if _fingerprint(arm.model) == began_with:
            raise InvalidModel(
                f"{arm.name}: the network that attach returned was not trained: its weights are those that it began with. Train that one, "
                "or load the weights of the one that was trained into it before report_metric"
            )
        arm.report(float(value), items)
        _attached.clear()


class _OfScript(OwnLoop):
    """One process's view of a search that another process leads."""

    _tidies = False


def _named(search: OwnLoop, name: str | None) -> Arm | None:
    """The arm `name` of a search; without one, the first that is not finished. Raises InvalidSetting."""
    if name is None:
        return search.unfinished()
    found = next((arm for arm in search.arms if f"seed{arm.seed}/{arm.name}" == name), None)
    if found is None:
        raise InvalidSetting(
            f"{ARM}={name} names no arm of {search.folder.path}; let `ltcompile find --train` or a worker start the script"
        )
    return found


def takes_fresh_weights(arm: Arm, rewind: str) -> bool:
    """Whether an arm starts from neither its seed's first weights nor those of an earlier training."""
    return arm.kind in ("random", "reinit") or (arm.kind == "ticket" and rewind == "reinit")


def _check_other(network: nn.Module, kept: Path, run: RunFolder, name: str) -> None:
    """Raises InvalidSetting where `network` has the weights of the seed's first training."""
    first = copied(network)
    run.load_into(first, kept)
    if all(torch.equal(old, new) for old, new in zip(first.parameters(), network.parameters(), strict=True)):
        raise InvalidSetting(
            f"{name} needs fresh weights, and the script built those of the seed's first training; let {{seed}} in the command seed the script, "
            "or search without controls (--no-controls)"
        )


def _fingerprint(network: nn.Module) -> str:
    """Of the network's parameters: equal for the same weights."""
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a search by a command. Raises InvalidFile where they are damaged."""
    hints: dict[str, Any] = {"metric": dict[str, Any], "config": dict[str, Any], "epochs": int, "example": str | None}
    hints |= {"train": str, "environment": dict[str, str]}
    value = read_json(path, "description of a search by a command")
    try:
        return {name: from_json(value[name], hint, name) for name, hint in hints.items()}
    except (KeyError, TypeError, SchemaError) as error:
        raise InvalidFile(f"{path} does not describe a search ({error}); begin it again with `ltcompile find --train`") from error
