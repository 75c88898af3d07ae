"""Unstructured tickets: masks narrow by stated counts, stay narrow through training, and travel as data."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searches import QUICK
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.benchmark.sweep import ticket_of
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.records import Trained
from ltcompile.core.streams import seeded, stream
from ltcompile.data import Dataset
from ltcompile.errors import InvalidFile, InvalidPlan, InvalidSetting, TicketMismatch
from ltcompile.graph import dropped_weights, trace
from ltcompile.prune import criteria
from ltcompile.prune.criteria import Evidence
from ltcompile.prune.limits import Limits
from ltcompile.pruned import compact, dense_network, pruned_of
from ltcompile.search.masks import full_mask, layer_rates, maskable, prune_mask, shuffle_mask
from ltcompile.search.selection import Selection


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return lt.load_data("digits", image_size=16).with_train_images(200)


def random_mask(seed: int, shapes: tuple[tuple[int, ...], ...] = ((7, 5), (3, 4, 3, 3), (2, 9))) -> WeightMask:
    rng = torch.Generator().manual_seed(seed)
    return WeightMask({f"{i}.weight": torch.rand(shape, generator=rng) < 0.8 for i, shape in enumerate(shapes)})


def scores_like(mask: WeightMask, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randint(0, 9, kept.shape, generator=rng).double() for name, kept in mask.kept.items()}  # with ties


@given(st.integers(0, 10_000), st.floats(0.01, 0.99), st.sampled_from(["local", "global"]))
def test_narrowing_drops_the_lowest_and_as_many_as_requested(seed: int, rate: float, scope: str) -> None:
    before, share = random_mask(seed), {}
    scores, share = scores_like(before, seed + 1), dict.fromkeys(before.kept, rate)
    after = prune_mask(before, scores, share, scope)  # type: ignore[arg-type]
    assert all(bool((kept <= before.kept[name]).all()) for name, kept in after.kept.items()), "nothing comes back"
    counts = {name: int(kept.sum()) for name, kept in before.kept.items()}
    requested = {name: math.floor(rate * count + 1e-9) for name, count in counts.items()}
    left = {name: int(kept.sum()) for name, kept in after.kept.items()}
    if scope == "local":
        assert left == {name: max(1, counts[name] - requested[name]) for name in counts}
        parts = [(after.kept[name], before.kept[name], scores[name]) for name in counts]
    else:
        assert sum(left.values()) >= sum(counts.values()) - sum(requested.values()) and min(left.values()) >= 1
        if min(left.values()) == 1:
            return  # a layer was spared
        assert sum(left.values()) == sum(counts.values()) - sum(requested.values())
        flat = [torch.cat([found[name].flatten() for name in counts]) for found in (after.kept, before.kept, scores)]
        parts = [(flat[0], flat[1], flat[2])]
    for kept, there, score in parts:
        gone = there & ~kept
        assert not gone.any() or score[gone].max() <= score[kept].min()


def test_outputs_go_at_half_the_rate_and_ratios_by_equal_steps() -> None:
    network, example = lt.build_model("lenet300", 10, 1, 16), torch.zeros(2, 1, 16, 16)
    groups, limits = trace(network, example), Limits(ratios={"3": 0.75})
    mask = full_mask(maskable(network, limits, (nn.Linear,)))
    found = layer_rates(mask, limits, groups, 0.2, levels=2)
    assert found == {"1.weight": 0.2, "3.weight": pytest.approx(0.5), "5.weight": 0.1}


def test_limits_choose_layers() -> None:
    network = lt.build_model("lenet5", 10, 1, 16)
    kinds = (nn.Conv2d, nn.Linear)
    assert list(maskable(network, Limits(), kinds)) == ["0.weight", "3.weight", "7.weight", "9.weight", "11.weight"]
    assert list(maskable(network, Limits(keep=("0", "11")), kinds)) == ["3.weight", "7.weight", "9.weight"]
    assert list(maskable(network, Limits(only=("7|9",)), kinds)) == ["7.weight", "9.weight"]
    with pytest.raises(InvalidSetting, match="matches no layer"):
        maskable(network, Limits(only=("seven",)), kinds)
    with pytest.raises(InvalidSetting, match="leave no weights"):
        maskable(network, Limits(keep=(".*",)), kinds)


@pytest.mark.parametrize("seed", range(3))
def test_shuffling_keeps_counts_and_nothing_else(seed: int) -> None:
    mask = random_mask(seed)
    found = shuffle_mask(mask, seed)
    assert {n: int(k.sum()) for n, k in found.kept.items()} == {n: int(k.sum()) for n, k in mask.kept.items()}
    assert any(not torch.equal(found.kept[n], mask.kept[n]) for n in mask.kept)
    assert all(torch.equal(found.kept[n], shuffle_mask(mask, seed).kept[n]) for n in mask.kept)
    gone = {"0.weight": torch.zeros(7, 5, dtype=torch.bool)}
    gone["0.weight"][:, 2] = True
    left = WeightMask({"0.weight": mask.kept["0.weight"] & ~gone["0.weight"]})
    assert not shuffle_mask(left, seed, gone).kept["0.weight"][:, 2].any()


def test_criteria_score_weights_in_their_places() -> None:
    layer = nn.Linear(3, 2)
    gradients = {"weight": torch.randn(2, 3)}
    weight = layer.weight.detach().double()
    given = {"weight": layer.weight}
    assert torch.equal(criteria.score_weights("l1", given, Evidence())["weight"], weight.abs())
    found = criteria.score_weights("taylor", given, Evidence(gradients=(gradients,)))["weight"]
    torch.testing.assert_close(found, (weight * gradients["weight"]).square())
    lamp = criteria.score_weights("lamp", given, Evidence())["weight"]
    largest = weight.abs().flatten().argmax()
    assert lamp.flatten()[largest] == 1 and torch.equal(lamp.flatten().argsort(), weight.abs().flatten().argsort())
    with pytest.raises(InvalidSetting, match="scores whole filters; weights are scored by hessian, l1, lamp, random, taylor"):
        criteria.score_weights("fpgm", given, Evidence())
    with pytest.raises(InvalidSetting, match="needs gradients"):
        criteria.score_weights("taylor", given, Evidence())


SEARCHES = {
    "weights": {"prune": "weights", "scope": "local", "rewind": "weight"},
    "weights-global": {"prune": "weights", "scope": "global", "rewind": "lr", "criterion": "taylor"},
    "hybrid": {"prune": "hybrid", "scope": "local", "rewind": "lr"},
}


@pytest.fixture(scope="module", params=list(SEARCHES))
def search(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, digits: Dataset
) -> tuple[lt.SearchConfig, Path, lt.SearchResult]:
    config = lt.SearchConfig(rounds=2, rate=0.4, full_curve=True, **SEARCHES[request.param])
    folder = tmp_path_factory.mktemp("masks") / request.param
    return config, folder, lt.find("lenet5", digits, config, recipe=QUICK, folder=folder)


def weights_of(folder: Path, unit: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / "seed0" / f"{unit}.pt", weights_only=True)["weights"]
    return found


def kept_of(config: lt.SearchConfig, folder: Path, level: int) -> Selection:
    return Selection(PruningPlan.load(folder / "seed0" / f"plan-{level}.json"), WeightMask.load(folder / "seed0" / f"mask-{level}.pt"))


@pytest.mark.slow
class TestSearch:
    def test_what_is_dropped_stays_zero_and_levels_are_nested(self, search: tuple[lt.SearchConfig, Path, lt.SearchResult]) -> None:
        config, folder, _ = search
        network = lt.build_model("lenet5", 10, 1, 16)
        kept = [kept_of(config, folder, level) for level in (1, 2)]
        for level, each in enumerate(kept, start=1):
            gone, weights = each.dropped(network), weights_of(folder, f"ticket-{level}")
            assert all(not weights[name][dropped].any() for name, dropped in gone.items())
            assert sum(int((~gone[name]).sum()) for name in gone) > 0
        for one, two in pairwise(kept):
            before, after = one.dropped(network), two.dropped(network)
            assert all(bool((before[name] <= after[name]).all()) for name in before)

    def test_every_arm_is_reported_and_tested(self, search: tuple[lt.SearchConfig, Path, lt.SearchResult]) -> None:
        _, _, found = search
        arms = sorted((r.arm, r.level) for r in found.rows if r.arm not in ("random", "dense_budget"))
        assert arms == sorted([("dense", 0), *((arm, level) for arm in ("ticket", "reinit", "shuffled") for level in (1, 2))])
        assert all(r.test_score is not None and r.weights for r in found.rows)
        rows = {(r.arm, r.level): r for r in found.rows}
        for level in (1, 2):
            counts = {rows[arm, level].weights for arm in ("ticket", "reinit", "shuffled")}
            assert len(counts) == 1, "controls keep as many weights"
        assert rows["dense", 0].weights > rows["ticket", 1].weights > rows["ticket", 2].weights  # type: ignore[operator]

    def test_counts_are_those_of_the_weights(self, search: tuple[lt.SearchConfig, Path, lt.SearchResult]) -> None:
        _, folder, found = search
        row = next(r for r in found.rows if (r.arm, r.level) == ("ticket", 2))
        matrices = {n: w for n, w in weights_of(folder, "ticket-2").items() if w.dim() > 1}
        assert row.weights == sum(int((w != 0).sum()) for w in matrices.values())
        assert row.params <= sum(w.numel() for w in weights_of(folder, "ticket-2").values())

    def test_resuming_is_never_having_stopped(self, search: tuple[lt.SearchConfig, Path, lt.SearchResult], digits: Dataset) -> None:
        config, folder, found = search
        (folder / "seed0" / "ticket-2.pt").unlink()
        again = lt.find("lenet5", digits, config, recipe=QUICK, folder=folder, resume=True)
        timeless = [[dataclasses.replace(r, seconds=0) for r in rows] for rows in (found.rows, again.rows)]
        assert timeless[0] == timeless[1] and again.ticket.mask is not None
        assert all(torch.equal(again.ticket.weights[n], w) for n, w in found.ticket.weights.items())

    def test_the_ticket_travels(self, search: tuple[lt.SearchConfig, Path, lt.SearchResult], tmp_path: Path) -> None:
        ticket = search[2].ticket
        ticket.save(tmp_path / "t.pt")
        read = lt.Ticket.load(tmp_path / "t.pt")
        assert read.checksum == ticket.checksum and read.mask is not None and ticket.mask is not None
        assert all(torch.equal(read.mask.kept[n], k) for n, k in ticket.mask.kept.items())
        assert read.plan.is_identity

    def test_a_mask_that_does_not_fit_is_refused(self, search: tuple[lt.SearchConfig, Path, lt.SearchResult]) -> None:
        ticket = search[2].ticket
        assert ticket.mask is not None
        name = next(iter(ticket.mask.kept))
        for wrong in (torch.zeros_like(ticket.mask.kept[name]), torch.ones(3, dtype=torch.bool)):
            with pytest.raises(InvalidFile, match="mask does not fit its weights"):
                dataclasses.replace(ticket, mask=WeightMask({**ticket.mask.kept, name: wrong}))


@pytest.mark.slow
def test_every_level_of_a_masked_run_is_on_the_curve(search: tuple[lt.SearchConfig, Path, lt.SearchResult]) -> None:
    """Each level's network is its own mask's, without what that left empty."""
    _, folder, found = search
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    for row in (r for r in found.rows if r.arm in ("ticket", "random")):
        ticket = ticket_of(found.ticket, folder, row)
        dense, small = dense_network(ticket), compact(pruned_of(ticket)).small
        dense.load_state_dict(weights_of(folder, f"{row.arm}-{row.level}"))
        torch.testing.assert_close(small(images), dense(images), rtol=1e-5, atol=1e-5)
        assert ticket.mask is not None and all(not ticket.weights[n][~k].any() for n, k in ticket.mask.kept.items())


def test_hybrid_drops_filters_of_convolutions_and_weights_of_linear_layers(tmp_path: Path, digits: Dataset) -> None:
    config = lt.SearchConfig(rounds=1, rate=0.4, prune="hybrid", scope="local", controls=False)
    found = lt.find("lenet5", digits, config, recipe=QUICK, folder=tmp_path / "run")
    weights = found.ticket.weights
    convolutions = [weights["0.weight"], weights["3.weight"]]
    for filters in convolutions:
        empty = (filters.flatten(1) == 0).all(1)
        assert empty.any() and (filters[~empty].abs().amax((2, 3)) > 0).any(), "whole filters, or none of one"
    assert int((weights["3.weight"][:, (weights["0.weight"].flatten(1) == 0).all(1)] != 0).sum()) == 0, "their readers go along"
    linear = weights["9.weight"] != 0
    assert 0.55 < linear.float().mean() < 0.65 and not (~linear).all(1).all()


def test_weight_rewinding_of_no_epochs_is_the_first_weights(tmp_path: Path, digits: Dataset) -> None:
    """With one epoch at a rate of almost nothing, tickets are the masked first weights, and shuffled ones other places of them."""
    config = lt.SearchConfig(rounds=1, rate=0.5, prune="weights", scope="local", rewind="weight", full_curve=True, controls=False)
    still = dataclasses.replace(QUICK, epochs=1, lr=1e-30, weight_decay=0.0)
    lt.find("lenet300", digits, config, recipe=still, folder=tmp_path / "run")
    with seeded(stream("first weights", 0)):
        first = dict(lt.build_model("lenet300", 10, 1, 16).named_parameters())
    ticket, random = weights_of(tmp_path / "run", "ticket-1"), weights_of(tmp_path / "run", "shuffled-1")
    for name in ("1.weight", "3.weight"):
        for found in (ticket[name], random[name]):
            assert torch.equal(found[found != 0], first[name].detach()[found != 0])
        assert not torch.equal(ticket[name] != 0, random[name] != 0)
        assert first[name].detach().abs()[ticket[name] == 0].max() <= first[name].detach().abs()[ticket[name] != 0].min()
    assert not torch.equal(weights_of(tmp_path / "run", "reinit-1")["1.weight"], ticket["1.weight"])


def test_a_given_mask_is_the_only_level(tmp_path: Path, digits: Dataset) -> None:
    network = lt.build_model("lenet300", 10, 1, 16)
    given = shuffle_mask(WeightMask({n: torch.rand(p.shape) < 0.3 for n, p in network.named_parameters() if p.dim() > 1}), 0)
    config = lt.SearchConfig(rounds=1, prune="weights", rewind="weight", controls=False)
    found = lt.find("lenet300", digits, config, recipe=QUICK, folder=tmp_path / "run", mask=given)
    mask = found.ticket.mask
    assert mask is not None and mask.digest == given.digest
    assert all(not found.ticket.weights[name][~kept].any() for name, kept in given.kept.items())
    with pytest.raises(TicketMismatch, match="given"):
        lt.find("lenet300", digits, config, recipe=QUICK, folder=tmp_path / "run", mask=shuffle_mask(given, 1), resume=True)
    with pytest.raises(InvalidSetting, match="the one level of a search for weights"):
        lt.find("lenet300", digits, dataclasses.replace(config, rounds=2), recipe=QUICK, folder=tmp_path / "two", mask=given)
    with pytest.raises(InvalidPlan, match="of another network"):
        lt.find("lenet5", digits, config, recipe=QUICK, folder=tmp_path / "other", mask=given)


@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        ({"prune": "bits"}, "must be one of filters, weights, hybrid"),
        ({"target_macs": 0.5}, "takes a rate, and no target"),
        ({"masked": True}, "masks by itself"),
        ({"align": 8}, "widths are aligned where filters"),
        ({"criterion": "bn"}, "scores whole filters"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, object], reported: str) -> None:
    with pytest.raises(InvalidSetting, match=reported):
        lt.SearchConfig(**{"prune": "weights", **settings})  # type: ignore[arg-type]


def test_masks_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidPlan, match="not a boolean tensor"):
        WeightMask({"a": torch.ones(3)})
    with pytest.raises(InvalidPlan, match="keeps no weight"):
        WeightMask({"a": torch.zeros(3, dtype=torch.bool)})
    with pytest.raises(InvalidPlan, match="of another network"):
        WeightMask({"a": torch.ones(3, dtype=torch.bool)}).dropped(nn.Linear(2, 2))
    mask = random_mask(0)
    mask.save(tmp_path / "mask.pt")
    assert all(torch.equal(kept, mask.kept[name]) for name, kept in WeightMask.load(tmp_path / "mask.pt").kept.items())
    torch.save({"kept": [1]}, tmp_path / "none.pt")
    with pytest.raises(InvalidFile, match="not a valid weight mask"):
        WeightMask.load(tmp_path / "none.pt")


def test_rows_without_masks_have_no_weights() -> None:
    row = Trained(0, "dense", 0, 1, 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1.0, "f", 1)
    assert "weights" not in row.to_json() and Trained.from_json(row.to_json()) == row
    masked = dataclasses.replace(row, weights=3)
    assert Trained.from_json(masked.to_json()) == masked


def test_what_is_kept_is_one_mask() -> None:
    network, example = lt.build_model("lenet5", 10, 1, 16), torch.zeros(2, 1, 16, 16)
    groups = trace(network, example)
    plan = PruningPlan(groups, {"0": (0, 2, 5)})
    mask = full_mask(maskable(network, Limits(), (nn.Linear,)))
    found = Selection(plan, mask).as_mask(network)
    assert found is not None and Selection(plan).as_mask(network) is None
    assert all(torch.equal(~found.kept[name], gone) for name, gone in dropped_weights(network, plan).items())
    assert Selection(plan, mask).remaining(network)[1] == found.weights[1] + sum(
        p.numel() for name, p in network.named_parameters() if name not in found.kept
    )
