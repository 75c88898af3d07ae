"""Several processes that train together, as torchrun starts them: forks of the process that has imported everything."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from commands import fork
from shards import write_shards
from small_tasks import CASES
from torch import Tensor, nn

import ltcompile as lt
from ltcompile import ranks
from ltcompile.core.preprocessing import Preprocessing
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import Shard
from ltcompile.data import Dataset, _dataset
from ltcompile.errors import TrainingFailed
from ltcompile.tasks import Classification
from ltcompile.training import Checkpoint, train
from ltcompile.training.step import Stepper

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=2,
    batch=32,
    lr=0.05,
    flip=False,
    crop_pixels=1,
    mixup=0.3,
    ema=0.8,
    clip_norm=1.0,
    precision="fp32",
    compile="never",
    virtual_ranks=4,
)


def in_processes(count: int, target: Callable[..., None], *arguments: object) -> None:
    """Run `target(*arguments)` in `count` processes that have joined each other; all must end well.

    They meet at a store of this process, as at torchrun's: no port is free for a moment only, and none of them has to outlive another.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [fork(_join, rank, count, store.port, target, *arguments) for rank in range(count)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count


def _join(rank: int, count: int, port: int, target: Callable[..., None], *arguments: object) -> None:
    found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update(
        {name: str(value) for name, value in found.items()} | {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    )
    torch.set_num_threads(1)
    with ranks.joined("cpu"):
        target(*arguments)


def network(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(54, 10)
    return nn.Sequential(*layers)


def few_digits() -> Dataset:
    return lt.load_data("digits", image_size=8).with_train_images(140)


def sharded(folder: Path) -> Classification:
    """Images that stay in four shards, for this process as long as it lasts."""
    _dataset.IN_MEMORY_BYTES = 0
    pattern = write_shards(folder / f"shards-{ranks.world()}-{ranks.rank()}", training=4)
    return Classification(lt.load_data(f"webdataset:{pattern}", preprocessing=Preprocessing(8, (0.5,) * 3, (0.5,) * 3)))


def trained(task: Classification, recipe: Recipe = RECIPE, **options: Any) -> tuple[dict[str, Tensor], list[tuple[float, ...]]]:
    """The weights, and what the epochs say but for times."""
    model = network(task.description.shape[0])
    done = train(model, task, recipe, 3, CPU, **options)
    return model.state_dict(), [(e.train_loss, e.train_accuracy, e.val_loss, e.val_score) for e in done.epochs]


class StopAfter:
    """Counts states, and lets process 1 receive a signal before the last of so many batches."""

    def __init__(self, batches: int) -> None:
        self.left, self.states = batches, list[dict[str, Any]]()

    def save(self, state: dict[str, Any]) -> None:
        self.states.append(copy.deepcopy(state))

    def after_step(self) -> None:
        self.left -= 1
        if self.left == 0 and ranks.rank() == 1:
            assert ranks.request_stop(15) and not ranks.request_stop(2)


def checks(folder: Path) -> None:
    """What is compared with one process: a training, one that is stopped, one that diverges, DistributedDataParallel's, every task's scores."""
    task, found = Classification(few_digits()), dict[str, Any]()
    found["trained"] = trained(task)
    try:
        trained(task, replace(RECIPE, lr=1e30, clip_norm=0.0, mixup=0.0))
    except TrainingFailed as error:
        found["diverged"] = str(error)
    found["steps"] = steps(task, ddp=False), steps(task, ddp=True)
    found["scores"] = scores()
    found["sharded"] = trained(sharded(folder), replace(RECIPE, epochs=1, batch=16))
    stop = StopAfter(6)  # last: a process that received a signal stays one
    try:
        trained(task, after_step=stop.after_step, checkpoint=Checkpoint(stop.save))
    except KeyboardInterrupt:
        found["stopped"] = stop.states
    torch.save(found, folder / f"{ranks.world()}-{ranks.rank()}.pt")


def steps(task: Classification, ddp: bool) -> dict[str, Tensor]:
    """The state after three steps of plain SGD."""
    recipe = replace(RECIPE, ema=0.0, mixup=0.0, clip_norm=0.0)
    model = network()
    stepper = Stepper(model, task, recipe, CPU, None, "")
    parallel = stepper.parallel
    assert parallel is not None
    if ddp and ranks.world() > 1:
        parallel.reduces = True
        stepper.forward = parallel.wrapped(stepper.forward)
    parallel.seed(0, 0)
    batches = [task.batches("train", 32, CPU, recipe, 1, Shard(index, 4)) for index in parallel.local]
    for shards in [*zip(*batches, strict=True)][:3]:
        stepper(shards, 0.05)
    parallel.settle(model)
    return model.state_dict()


def scores() -> dict[str, Any]:
    found = {}
    for name, case in CASES.items():
        task, model = case()
        torch.manual_seed(0)
        found[name] = vars(task.evaluate(lt.build_model(model, **task.description.arguments), "val", CPU))
    return found
