"""Two lines in a training script of one's own, `attach` and `report_metric`, which do nothing outside a search."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from ltcompile.core.fields import SchemaError, from_json
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidFile, InvalidSetting
from ltcompile.graph import Example
from ltcompile.graph._copy import copied
from ltcompile.graph.examples import read_example
from ltcompile.graph.wrappers import unwrap
from ltcompile.paths import read_json
from ltcompile.search.own_loop import ArmToTrain, Search

Module = TypeVar("Module", bound=nn.Module)
Result = TypeVar("Result")

SEARCH = "LTCOMPILE_SEARCH"  # the environment variable that names the search's command.json
PATIENCE_S = 600.0  # for the other processes of one training to take their networks
_attached: list[ArmToTrain] = []


def attach(model: Module, example: Example | None = None) -> Module:
    """The network to train: outside a search `model` itself; in one that `ltcompile find --train` started, the arm that is next.

    Call it right after the network is built and before anything refers to its parameters: checkpoints, the optimizer, EMA, torch.compile and
    DistributedDataParallel. All processes of one training may call it. The arm's network is on the device of `model` and in its mode.

    Args:
        model: the dense network, with first weights. Every arm begins from the network that the script builds.
        example: what it is called with, where the search was not given one (`find --example`).

    Raises:
        InvalidSetting: there is no example, or the search is finished. InvalidModel, InvalidFile, TicketMismatch: as `lt.Search` raises them.
    """
    if SEARCH not in os.environ:
        return model
    settings, network = _read(Path(os.environ[SEARCH])), unwrap(model)
    if example is None and settings["example"] is None:
        raise InvalidSetting("attach(model) needs an example input: attach(model, example), or `ltcompile find --example 1x3x224x224`")
    given = read_example(settings["example"]) if example is None else example
    first, config = copied(network).cpu(), dict(settings["config"])
    for inner in ("keep", "only", "path"):
        config[inner] = tuple(config.get(inner, ()))

    def opened() -> ArmToTrain | None:
        search = Search(
            lambda: copied(first),
            given,
            Path(os.environ[SEARCH]).parent,
            Metric(**settings["metric"]),
            epochs=settings["epochs"],
            margin=config["margin_points"],
            **{name: value for name, value in config.items() if name != "margin_points"},
        )
        return search.next_arm()

    arm = _patiently(opened)
    if arm is None:
        raise InvalidSetting(f"the search in {Path(os.environ[SEARCH]).parent} is finished; begin another in a new folder")
    arm.model.to(next((p.device for p in network.parameters()), None)).train(network.training)
    _attached[:] = [arm]
    return cast(Module, arm.model)


def report_metric(value: float, items: Sequence[bool] | None = None) -> None:
    """Finish the arm that `attach` gave: write its weights and the metric on validation data. Does nothing outside a search, and in all
    processes of a training but the first (RANK 0).

    Args:
        value: the metric, as `ArmToTrain.report` takes it.
        items: which validation items were correct, where the metric is their fraction.

    Raises:
        InvalidSetting: `attach` was not called, or the value is not finite. InvalidModel: the network was replaced after `attach`.
    """
    if SEARCH not in os.environ:
        return
    if not _attached:
        raise InvalidSetting("report_metric was called, but not attach; write `model = lt.attach(model)` right after the network is built")
    if int(os.environ.get("RANK", "0")) == 0:
        _attached.pop().report(float(value), items)


def _read(path: Path) -> dict[str, Any]:
    """The settings of the search. Raises InvalidFile where they are damaged."""
    hints: dict[str, Any] = {"metric": dict[str, Any], "config": dict[str, Any], "epochs": int, "example": str | None}
    value = read_json(path, "description of a search by a command")
    try:
        return {name: from_json(value[name], hint, name) for name, hint in hints.items()}
    except (KeyError, TypeError, SchemaError) as error:
        raise InvalidFile(f"{path} does not describe a search ({error}); begin it again with `ltcompile find --train`") from error


def _patiently(action: Callable[[], Result]) -> Result:
    """What `action` gives, tried again while another process holds the run folder."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return action()
        except InvalidFile as error:
            if "is in use by" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.2)
