"""Data-parallel training: any number of processes gives the bits of one; a training that was killed at any batch gives those of one that was not."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fork
from together import CPU, RECIPE, checks, few_digits, in_processes, network, trained
from torch import Tensor, nn

from ltcompile import ranks
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import Shard
from ltcompile.errors import InvalidFile, InvalidSetting
from ltcompile.tasks import Classification
from ltcompile.training import Checkpoint, train
from ltcompile.training.parallel import _swap_norms, local_batches
from ltcompile.training.step import Stepper


@pytest.fixture(scope="module")
def task() -> Classification:
    return Classification(few_digits())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    process = fork(checks, folder)
    process.join(120)
    found: dict[str, Any] = torch.load(folder / "1-0.pt")
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_to_the_same_bits(tmp_path: Path, count: int, alone: dict[str, Any], task: Classification) -> None:
    in_processes(count, checks, tmp_path)
    assert "stopped" not in alone and "nan" in alone["diverged"]
    for rank in range(count):
        found = torch.load(tmp_path / f"{count}-{rank}.pt")
        assert equal(found["trained"][0], alone["trained"][0]) and found["trained"][1] == alone["trained"][1]
        assert found["diverged"] == alone["diverged"] and found["scores"] == alone["scores"]
        assert equal(found["steps"][0], alone["steps"][0])
        assert equal(found["sharded"][0], alone["sharded"][0]) and found["sharded"][1] == alone["sharded"][1]
        torch.testing.assert_close(found["steps"][1], alone["steps"][0], rtol=1e-4, atol=1e-5)
        (state,) = found["stopped"]  # by the signal of process 1: all stopped at one batch, within the second epoch
        assert len(state["epochs"]) == 1 and len(state["begun"]["losses"]) == 2 and len(state["begun"]["random"]) == 4
    weights, rows = trained(task, state=state)
    assert equal(weights, alone["trained"][0]) and rows == alone["trained"][1], "one process resumes what several began"


@pytest.mark.slow
@pytest.mark.parametrize("virtual_ranks", [1, 2])
def test_killed_at_any_batch_and_resumed(task: Classification, virtual_ranks: int) -> None:
    recipe, states = dataclasses.replace(RECIPE, optimizer="adamw", lr=0.01, virtual_ranks=virtual_ranks), list[io.BytesIO]()

    def save(state: dict[str, Any]) -> None:
        states.append(io.BytesIO())
        torch.save(state, states[-1])

    whole = trained(task, recipe)
    watched = trained(task, recipe, checkpoint=Checkpoint(save, 0.0))
    assert equal(whole[0], watched[0]) and len(states) == 2 * (len(task.data.train) // recipe.batch) > 6
    for file in states:
        file.seek(0)
        resumed = trained(task, recipe, state=torch.load(file, weights_only=True))
        assert equal(whole[0], resumed[0]) and whole[1] == resumed[1]
    after = torch.get_rng_state()
    network()
    assert torch.equal(after, torch.get_rng_state()), "the caller's random numbers are its own"


def test_states_of_other_epochs_are_refused(task: Classification) -> None:
    states: list[dict[str, Any]] = []
    trained(task, checkpoint=Checkpoint(states.append, 0.0))
    for change in ({"random": []}, {"losses": torch.zeros(99)}, {"losses": 3}, {"other": 1}):
        with pytest.raises(InvalidFile, match="of another training"):
            trained(task, state={**states[0], "begun": {**states[0]["begun"], **change}})


def test_shards_of_an_epoch_hold_each_image_once(task: Classification) -> None:
    plain = dataclasses.replace(RECIPE, crop_pixels=0)
    whole = [images for images, _ in task.batches("train", 32, CPU, plain, 5)]
    shards = [[images for images, _ in task.batches("train", 32, CPU, plain, 5, Shard(index, 4))] for index in range(4)]
    for batch, parts in zip(whole, zip(*shards, strict=True), strict=True):
        assert torch.equal(batch, torch.cat(parts))
    moved = [[images for images, _ in task.batches("train", 32, CPU, RECIPE, 5, Shard(1, 4, start))] for start in (0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(moved[0][2:], moved[1], strict=True)) and len(moved[1]) == len(whole) - 2
    val = [labels for _, labels in task.batches("val", 64, CPU)]
    turns = [list(task.batches("val", 64, CPU, shard=Shard(index, 2))) for index in range(2)]
    assert [labels.tolist() for labels in val] == [labels.tolist() for _, labels in ranks_in_turns(turns)]


def ranks_in_turns(turns: list[list[Any]]) -> list[Any]:
    return [each[i] for i in range(max(map(len, turns))) for each in turns if i < len(each)]


class Whole:
    """A task whose batches know no shards."""

    def __init__(self, task: Classification) -> None:
        self.task = task

    def batches(self, part: Any, size: int, device: torch.device, recipe: Recipe | None = None, seed: int = 0) -> Any:
        return self.task.batches(part, size, device, recipe, seed)


def test_batches_without_shards_are_split(task: Classification) -> None:
    whole: Any = Whole(task)
    expected = [images for images, _ in task.batches("train", 32, CPU, RECIPE, 5)][1:]
    found = list(local_batches(whole, 32, CPU, RECIPE, 5, [Shard(index, 4, 1) for index in range(4)]))
    assert len(found) == len(expected) and all(
        torch.equal(torch.cat([images for images, _ in shards]), images) for shards, images in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_shards_take_the_steps_of_whole_batches(task: Classification, optimizer: Any) -> None:
    """Where items do not depend on each other, several shards differ from one by rounding, in layouts of all kinds."""
    found = []
    for virtual_ranks in (1, 4):
        recipe = Recipe(
            batch=32,
            lr=0.01,
            optimizer=optimizer,
            crop_pixels=0,
            flip=False,
            precision="fp32",
            compile="never",
            virtual_ranks=virtual_ranks,
        )
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)
        model = nn.Sequential(*layers)
        stepper = Stepper(model, task, recipe, CPU, None, "")
        if stepper.parallel is not None:
            stepper.parallel.seed(0, 0)
        shards = [task.batches("train", 32, CPU, recipe, 1, Shard(index, virtual_ranks)) for index in range(virtual_ranks)]
        for batches in zip(*shards, strict=True):
            stepper(batches, 0.01)
        found.append(model.state_dict())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_settings_that_do_not_fit(task: Classification) -> None:
    for virtual_ranks in (0, 5, 32):
        with pytest.raises(InvalidSetting, match=f"virtual_ranks={virtual_ranks} must divide batch=32"):
            dataclasses.replace(RECIPE, virtual_ranks=virtual_ranks)
    assert not {"virtual_ranks", "sync_bn"} & Recipe().to_json().keys() and Recipe.from_json(RECIPE.to_json()) == RECIPE
    with pytest.raises(InvalidSetting, match=r"sync_bn=True needs a GPU and a process for each of the 4 virtual ranks, not 1 on cpu"):
        train(network(), task, dataclasses.replace(RECIPE, sync_bn=True), 0, CPU)
    with pytest.raises(InvalidSetting, match=r"140 training items are too few for virtual_ranks=128"):
        train(network(), task, dataclasses.replace(RECIPE, batch=256, virtual_ranks=128), 0, CPU)


def test_synchronised_batch_norms_share_all_tensors() -> None:
    """Their statistics are the network's own, and it has its own layers back afterwards."""
    model, images = network(), torch.randn(8, 1, 8, 8)
    norm = model[1]
    swapped = list(_swap_norms(model))
    assert isinstance(model[1], nn.SyncBatchNorm) and swapped == [(model, "1", norm)]
    model.train()(images)
    assert norm.num_batches_tracked == 1 and norm.running_mean is model[1].running_mean and norm.weight is model[1].weight


def test_one_process_agrees_with_itself() -> None:
    assert ranks.world() == 1 and not ranks.follows() and not ranks.request_stop(2)
    assert ranks.gathered([1, 2]) == [1, 2] and ranks.agreed("x") == "x" and ranks.largest(15, 0) == [15, 0]
