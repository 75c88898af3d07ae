"""What holds for every task of the registry."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from searches import QUICK
from small_tasks import BATCHES, CASES

import ltcompile as lt
from ltcompile import tasks
from ltcompile.core.arm import Arm
from ltcompile.core.description import Description
from ltcompile.core.task import Shard, Task, items
from ltcompile.errors import UnknownName
from ltcompile.training import ArmTraining, DefaultTrainer, Epoch, Execution, split

CPU = torch.device("cpu")
RECIPE = dataclasses.replace(QUICK, epochs=2)


@pytest.fixture(params=tasks.names(), scope="module")
def case(request: Any) -> tuple[Task, str]:
    return CASES[request.param]()


def test_the_registry() -> None:
    assert "classification" in tasks.names()
    with pytest.raises(UnknownName, match=r"no task named 'clasification'\. Did you mean classification"):
        tasks.load("clasification")


def test_parts_and_batches(case: tuple[Task, str]) -> None:
    """Without a recipe all items come, in order; with one, whole batches that the seed alone decides."""
    task, _ = case
    assert {*task.sizes} == {"train", "val", "test"} and task.fingerprint == task.fingerprint
    for part, count in task.sizes.items():
        assert sum(items(batch) for batch in task.batches(part, 32, CPU)) == count
    first, again, other = (next(iter(task.batches("train", 16, CPU, RECIPE, seed)))[0] for seed in (3, 3, 4))
    reads: Any = task.batches
    shards = [next(iter(reads("train", 16, CPU, RECIPE, 3, shard=Shard(index, 2)))) for index in range(2)]
    assert [items(shard) for shard in shards] == [8, 8]
    flat = [torch.cat([x.flatten() for x in (each if isinstance(each, list) else [each])]) for each in (first, again, other)]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


def test_a_description_comes_back_from_json(case: tuple[Task, str]) -> None:
    description = case[0].description
    assert Description.from_json(json.loads(json.dumps(description.to_json()))) == description
    assert description.task in tasks.names()


def test_training_makes_the_network_better(case: tuple[Task, str]) -> None:
    """The score is the same whenever it is taken, and a batch has the loss of its parts."""
    task, name = case
    torch.manual_seed(0)
    model = lt.build_model(name, **task.description.arguments)
    before = task.evaluate(model.train(), "val", CPU)
    assert model.training and task.evaluate(model, "val", CPU) == before and task.adapt(RECIPE).epochs
    batch = next(iter(task.batches("val", 8, CPU)))
    with torch.no_grad():
        model.eval()
        whole, parts = task.loss(model, batch).value, [task.loss(model, few).value for few in split(batch, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-4, atol=1e-6)
    saved: list[Epoch] = []
    recipe = dataclasses.replace(RECIPE, batch=BATCHES.get(task.description.task, RECIPE.batch))
    training = ArmTraining(Arm(0, "dense", 0), recipe, CPU)
    done = DefaultTrainer(Execution())(model, task, training, None, lambda epoch, _: saved.append(epoch))
    assert done.epochs == saved and len(saved) == RECIPE.epochs and done.score == task.evaluate(model, "val", CPU)
    assert task.metric.gain(done.score.value, before.value) > 0


def test_answers_are_shown_for_the_first_items(case: tuple[Task, str]) -> None:
    """What should be answered does not depend on a network; a network's answers come with its scores, where it has some."""
    task, name = case
    torch.manual_seed(0)
    model = lt.build_model(name, **task.description.arguments)
    truth, found = task.answers(None, "test", 3, CPU), task.answers(model, "test", 3, CPU)
    assert len(truth) == len(found) == 3 and model.training and truth == task.answers(None, "test", 3, CPU)
    assert all(answer.boxes or answer.over or answer.marks for answer in truth)
    for answer in truth:
        for mark in (*answer.marks, *(box.mark for box in answer.boxes)):
            assert mark.name == task.description.class_names[mark.number] and mark.score is None


def test_the_fingerprint_covers_every_image(case: tuple[Task, str]) -> None:
    """One pixel of one image of one part changes it, and changed back, it is the same."""
    task, _ = case
    split = task.data.test  # type: ignore[attr-defined]  # all are of data
    prints = []
    for _ in range(3):
        prints.append(type(task)(task.data).fingerprint)  # type: ignore[attr-defined, call-arg]
        split.images[-1, 0, 0, 0] ^= 1 if len(prints) < 3 else 0
    assert prints[0] != prints[1] and prints[0] == prints[2] == task.fingerprint
