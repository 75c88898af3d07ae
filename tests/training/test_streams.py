"""Random streams: none coincides with another, and each is a function of what it is for."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from searches import QUICK

import ltcompile as lt
from ltcompile.core.arm import Arm, ArmKind
from ltcompile.core.streams import Purpose, generator, seeded, stream
from ltcompile.training.features import Features


def arms_of(config: lt.SearchConfig) -> Iterator[Arm]:
    """Every training that a search could have."""
    for seed in config.all_seeds:
        yield Arm(seed, "dense", 0)
        for level in range(1, config.levels + 1):
            yield from (Arm(seed, kind, level) for kind in get_args(ArmKind) if kind != "dense")


@pytest.mark.parametrize("config", [lt.SearchConfig(), lt.SearchConfig(rounds=20, seeds=5, seed=3)], ids=["default", "large"])
def test_no_two_streams_of_a_search_coincide(config: lt.SearchConfig) -> None:
    purposes = get_args(Purpose)
    numbers = [stream(purpose, seed) for purpose in purposes for seed in config.all_seeds]
    for arm in arms_of(config):
        numbers += [arm.stream(purpose) for purpose in purposes]
        training, scoring = arm.stream("training"), arm.stream("scoring")
        numbers += [stream(purpose, training, epoch=epoch) for purpose in ("batches", "dropout") for epoch in range(160)]
        numbers += [stream("projections", training)]
        numbers += [stream(purpose, scoring) for purpose in ("scoring batches", "drawn labels", "random scores")]
    assert len(set(numbers)) == len(numbers) > 10_000
    assert all(0 <= number < 2**63 for number in numbers)


def test_a_stream_is_a_function_of_its_key_alone() -> None:
    assert stream("training", 3, arm="ticket", level=2) == Arm(3, "ticket", 2).stream("training") == 7889388495615379273


def test_generators_depend_on_all_bits_of_a_number() -> None:
    """torch's own `manual_seed` depends on the low 32 alone."""
    drawn = {tuple(torch.randint(0, 2**31, (4,), generator=generator(5 + (high << 32))).tolist()) for high in range(200)}
    assert len(drawn) == 200


def test_generators_are_mersenne_twisters_in_the_state_that_numpy_seeds() -> None:
    number = stream("batches", 1)
    reference = np.random.MT19937()
    words = np.random.SeedSequence(number).generate_state(624)
    reference.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.empty(2000, dtype=torch.int64).random_(2**27, generator=generator(number))
    assert drawn.tolist() == [int(word) % 2**27 for word in reference.random_raw(2000)]


def test_seeding_leaves_the_global_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    with seeded(7):
        first = torch.rand(3)
    with seeded(7):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_first_weights_are_shared_where_they_should_be_alone(tmp_path: Path) -> None:
    """With a rate of nothing, the weights of every training are those that it starts from."""
    config = lt.SearchConfig(rewind="reinit", rounds=2, rate=0.3, seeds=2, full_curve=True)
    still = dataclasses.replace(QUICK, epochs=1, batch=256, lr=1e-20, weight_decay=0.0)
    before = torch.get_rng_state()
    lt.find("lenet300", "digits", config, recipe=still, image_size=8, folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are its own"
    values = {
        f"{file.parent.name}/{file.stem}": set(torch.load(file, weights_only=True)["weights"]["1.weight"].flatten().tolist())
        for file in tmp_path.glob("seed*/*-*.pt")
    }
    assert len(values) == 14
    shared = {frozenset((a, b)) for a in values for b in values if a < b and len(values[a] & values[b]) > 50}
    budgets = [next(name for name in values if name.startswith(f"seed{seed}/dense_budget")) for seed in (0, 1)]
    assert shared == {frozenset((f"seed{seed}/dense-0", budgets[seed])) for seed in (0, 1)}


def test_projections_to_a_teacher_are_a_trainings_own() -> None:
    def weights(seed: int) -> torch.Tensor:
        small, dense = torch.nn.Sequential(torch.nn.Linear(3, 4)), torch.nn.Sequential(torch.nn.Linear(3, 8))
        return torch.nn.utils.parameters_to_vector(
            Features(small, dense, ["0"], torch.zeros(2, 3), torch.device("cpu"), seed).projections.parameters()
        )

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.mark.slow
def test_no_module_makes_seeds_of_its_own() -> None:
    root = Path(lt.__file__).parent
    found = []
    for file in root.rglob("*.py"):
        own = file.name in ("streams.py", "scenes.py")  # the second draws an embedded data set by a number that its caller gives
        for node in () if own else ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", "") == "manual_seed"
                and not isinstance(node.args[0], ast.Constant)
            ):
                found.append(f"{file.relative_to(root)}:{node.lineno}")
    assert not found
