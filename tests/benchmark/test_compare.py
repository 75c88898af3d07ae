"""What tickets have in common: distances are a metric, agreement and ensembles what they say they are, and strangers are refused."""

from __future__ import annotations

import dataclasses
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from searches import QUICK
from torch import Tensor, nn
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.benchmark.similarity import (
    Answers,
    agreement,
    distances,
    ensemble,
    intersection,
    majority,
    similarity,
    unanimous,
    weight_mask,
)
from ltcompile.cli import app
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.ticket import Ticket
from ltcompile.errors import InvalidPlan, InvalidSetting, LtcompileError, TicketMismatch
from ltcompile.graph import mask, trace
from ltcompile.search.selection import Selection

SHAPES = {"a.weight": (4, 5), "b.weight": (3, 2, 3, 3)}
SEEDS = st.integers(0, 10_000)


def random_mask(seed: int, share: float = 0.5) -> WeightMask:
    rng = torch.Generator().manual_seed(seed)
    kept = {name: torch.rand(shape, generator=rng) < share for name, shape in SHAPES.items()}
    kept["a.weight"][0, 0] = True  # a mask keeps something
    return WeightMask(kept)


def inverse(found: WeightMask) -> WeightMask:
    return WeightMask({name: ~kept for name, kept in found.kept.items()})


class TestDistances:
    @given(SEEDS, SEEDS, SEEDS, st.floats(0.05, 0.95))
    def test_they_are_a_metric(self, one: int, two: int, three: int, share: float) -> None:
        masks = [random_mask(one), random_mask(two, share), random_mask(three)]
        for a, b, c in permutations(masks):
            for part in ("total", *SHAPES):
                ab, bc, ac, aa = (_part(distances(*pair), part) for pair in ((a, b), (b, c), (a, c), (a, a)))
                assert aa == 0 and 0 <= ab <= 1 and ab == _part(distances(b, a), part)
                assert ac <= ab + bc + 1e-12

    @given(SEEDS)
    def test_what_has_nothing_in_common_is_furthest_apart(self, seed: int) -> None:
        found = random_mask(seed)
        assert distances(found, inverse(found)).total == 1

    def test_by_hand(self) -> None:
        one = WeightMask({"w": torch.tensor([[True, True, False, False]]), "v": torch.tensor([[False, False]])})
        two = WeightMask({"w": torch.tensor([[True, False, True, False]]), "v": torch.tensor([[False, False]])})
        assert distances(one, two).total == pytest.approx(2 / 3) and distances(one, two).layers == {"w": pytest.approx(2 / 3), "v": 0}

    def test_masks_of_different_networks_are_refused(self) -> None:
        other = WeightMask({"a.weight": torch.ones(5, 4, dtype=torch.bool), "b.weight": torch.ones(SHAPES["b.weight"], dtype=torch.bool)})
        for call_ in (distances, lambda a, b: majority([a, b]), lambda a, b: intersection([a, b])):
            with pytest.raises(InvalidPlan, match=r"different networks: they disagree about 'a\.weight'"):
                call_(random_mask(0), other)


def _part(found: Any, part: str) -> float:
    return float(found.total if part == "total" else found.layers[part])


class TestInCommon:
    @given(st.lists(SEEDS, min_size=1, max_size=5))
    def test_all_agree_on_less_than_most(self, seeds: list[int]) -> None:
        masks = [random_mask(seed) for seed in seeds]
        every, most = intersection(masks), majority(masks)
        for name in SHAPES:
            votes = sum(found.kept[name].int() for found in masks)
            assert torch.equal(every.kept[name], votes == len(masks)) and torch.equal(most.kept[name], votes * 2 > len(masks))

    @given(SEEDS)
    def test_of_equals_it_is_themselves(self, seed: int) -> None:
        found = random_mask(seed)
        for way in (intersection, majority):
            assert distances(way([found] * 3), found).total == 0

    def test_nothing_in_common_is_an_error(self) -> None:
        with pytest.raises(InvalidPlan, match="keeps no weight"):
            intersection([random_mask(0), inverse(random_mask(0))])
        with pytest.raises(InvalidPlan, match="no masks"):
            majority([])


def some_answers(seed: int, images: int = 20) -> Answers:
    rng = torch.Generator().manual_seed(seed)
    return Answers(torch.rand(images, 4, generator=rng).double().softmax(1), torch.arange(images) % 4)


class TestAnswers:
    @given(SEEDS, SEEDS)
    def test_agreement_is_symmetric_and_whole_with_itself(self, one: int, two: int) -> None:
        a, b = some_answers(one), some_answers(two)
        assert agreement(a, a) == 1 and agreement(a, b) == agreement(b, a)
        assert unanimous([a, b]).same == agreement(a, b)

    @given(SEEDS, st.integers(1, 5))
    def test_an_ensemble_of_equals_is_each_of_them(self, seed: int, members: int) -> None:
        one = some_answers(seed)
        together = ensemble([one] * members)
        assert torch.allclose(together.probabilities, one.probabilities)
        assert together.accuracy == one.accuracy
        found = unanimous([one] * members)
        assert (found.same, found.right, found.wrong) == (1, one.accuracy, pytest.approx(1 - one.accuracy))

    def test_by_hand(self) -> None:
        labels = torch.tensor([0, 1, 1])
        sure = Answers(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]), labels)
        other = Answers(torch.tensor([[0.4, 0.6], [0.2, 0.8], [0.7, 0.3]]), labels)
        assert (sure.accuracy, other.accuracy, agreement(sure, other)) == (pytest.approx(1 / 3),) * 3
        assert ensemble([sure, other]).classes.tolist() == [0, 0, 0]
        found = unanimous([sure, other])
        assert (found.same, found.right, found.wrong) == (pytest.approx(1 / 3), 0, pytest.approx(1 / 3))


def test_a_plan_is_the_mask_of_what_the_surgeon_zeroes(network: nn.Module, images: Tensor) -> None:
    plan = lt.plan(network, images, ratio=0.3)
    found = weight_mask(network, Selection(plan))
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(1)
    for name, p in mask(network, plan).named_parameters():
        assert (name in found.kept) == (p.dim() > 1)
        if name in found.kept:
            assert torch.equal(found.kept[name], p != 0)
    untouched = weight_mask(network, Selection(PruningPlan(trace(network, images))))
    assert untouched.share == 1 and found.share < 1


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tickets of LeNet-5 on digits by filters and by weights, and one of another network."""
    folder, digits = tmp_path_factory.mktemp("tickets"), lt.load_data("digits", image_size=16)
    searches = {"filters": ("lenet5", "filters"), "weights": ("lenet5", "weights"), "other": ("lenet300", "weights")}
    for name, (model, prune) in searches.items():
        config = lt.SearchConfig(rounds=1, rate=0.4, prune=prune, scope="local", controls=False)  # type: ignore[arg-type]
        lt.find(model, digits, config, recipe=dataclasses.replace(QUICK, lr=0.05), folder=folder / name)
    return {name: folder / name / "ticket.pt" for name in searches}


@pytest.mark.slow
class TestTickets:
    def test_each_is_what_its_search_says(self, tickets: dict[str, Path]) -> None:
        found = similarity([tickets["filters"], tickets["weights"]])
        for said, name in zip(found.tickets, ("filters", "weights"), strict=True):
            ticket = Ticket.load(tickets[name])
            assert said.accuracy == pytest.approx(ticket.row.test_score)
            assert said.name == str(tickets[name]) and (said.level, said.seed) == (ticket.level, ticket.seed)
        by_weights = Ticket.load(tickets["weights"]).mask
        assert by_weights is not None and found.tickets[1].weights_share == pytest.approx(by_weights.share)
        (pair,) = found.pairs
        assert 0 < pair.distance < 1 and set(pair.layers) == set(by_weights.kept)
        assert found.images > 400 and found.unanimous.same == pair.agreement
        assert found.to_json()["pairs"][0]["distance"] == pair.distance

    def test_the_same_twice_is_one(self, tickets: dict[str, Path]) -> None:
        found = similarity([tickets["filters"]] * 2)
        assert found.pairs[0].distance == 0 and set(found.pairs[0].layers.values()) == {0} and found.pairs[0].agreement == 1
        assert found.ensemble_accuracy == found.tickets[0].accuracy == found.unanimous.right

    def test_strangers_are_refused(self, tickets: dict[str, Path], tmp_path: Path) -> None:
        one = tickets["filters"]
        with pytest.raises(InvalidSetting, match="at least two"):
            similarity([one])
        with pytest.raises(TicketMismatch, match=r"lenet300.*compare tickets of the same network"):
            similarity([one, tickets["other"]])
        with pytest.raises(TicketMismatch, match="found for 'lenet5', not for 'vgg16'"):
            similarity([one, one], model="vgg16")
        ticket = Ticket.load(one)
        letters = {**ticket.data, "class_names": list("abcdefghij")}
        dataclasses.replace(ticket, data=letters).save(tmp_path / "letters.pt")
        with pytest.raises(TicketMismatch, match="their answers do not compare"):
            similarity([one, tmp_path / "letters.pt"])
        dataclasses.replace(ticket, data={**ticket.data, "name": "mnist"}).save(tmp_path / "mnist.pt")
        with pytest.raises(InvalidSetting, match="digits and mnist; pass data="):
            similarity([one, tmp_path / "mnist.pt"])
        assert similarity([one, tmp_path / "mnist.pt"], data="digits").pairs[0].agreement == 1
        with pytest.raises(TicketMismatch, match="pass the data that they were found on"):
            similarity([tmp_path / "letters.pt"] * 2, data="digits")

    def test_the_command(self, tickets: dict[str, Path]) -> None:
        def run(*words: object) -> Result:
            return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["compare", *map(str, words)])

        pair = tickets["filters"], tickets["weights"]
        done = run(*pair)
        assert done.exit_code == 0, done.output
        assert "ensemble" in done.stdout and "answers alike" in done.stdout and "1-2" in done.stdout and "11.weight" in done.stdout
        value = json.loads(run(*pair, "--json").stdout)
        assert value == json.loads(json.dumps(similarity(pair).to_json()))
        for words, says in (((pair[0], tickets["other"]), "compare tickets of the same network"), ((pair[0],), "at least two tickets")):
            error = run(*words).exception
            assert isinstance(error, LtcompileError) and says in str(error)
