"""What is cut, and how far: laws over random groups, limits, and targets."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, shaken
from searches import QUICK
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.plan import Group, Member, PruningPlan
from ltcompile.errors import InvalidSetting
from ltcompile.graph import trace
from ltcompile.graph.tied_groups import TiedGroups, tied_groups
from ltcompile.prune import Limits, Scope, choose
from ltcompile.prune.choose import Ranking
from ltcompile.prune.target import SizeCounter

SCOPES = get_args(Scope)
ALIGN = 4


def group(name: str, width: int, makers: int = 1, positions: int = 1, tied: str = "", frozen: str = "") -> Group:
    index = tuple(tuple(range(c * positions, (c + 1) * positions)) for c in range(width))
    return Group(name, width, tuple(Member(f"{name}.{i}" if i else name, "out", index) for i in range(makers)), frozen, tied)


@st.composite
def problems(draw: st.DrawFn) -> tuple[tuple[Group, ...], dict[str, Tensor]]:
    """Groups of which some are tied and some frozen, and scores for them with many equal ones."""
    sizes = {"width": st.integers(1, 24), "makers": st.integers(1, 3), "positions": st.integers(1, 3)}
    groups = [group(f"g{i}", **{k: draw(s) for k, s in sizes.items()}) for i in range(draw(st.integers(1, 5)))]
    for tie in range(draw(st.integers(0, 2))):
        steps = draw(st.integers(1, 6))
        widths = draw(st.lists(st.integers(1, 5), min_size=2, max_size=3))
        groups += [group(f"t{tie}.{i}", steps * n, draw(sizes["makers"]), tied=f"tie{tie}") for i, n in enumerate(widths)]
    groups += [group("last", 5, frozen="it produces the network's output")] * draw(st.integers(0, 1))
    scores = {g.name: torch.tensor(draw(st.lists(st.integers(0, 9), min_size=g.width, max_size=g.width))).double() for g in groups}
    return tuple(groups), scores


def free(groups: tuple[Group, ...]) -> list[TiedGroups]:
    return [b for b in tied_groups(groups) if not b.frozen]


def filters(plan: PruningPlan) -> int:
    return sum(len(kept) * g.filters_per_channel for g, kept in plan if not g.frozen)


shares = st.floats(0, 1)
floors_of = st.dictionaries(st.sampled_from([f"g{i}" for i in range(5)] + ["t0.0", "t0.1", "t1.0"]), st.integers(1, 30))


class TestLaws:
    """Over random groups, shares, floors and scores."""

    @pytest.mark.slow
    @given(problems(), shares)
    def test_the_share_is_met_within_one_step(self, problem: tuple[tuple[Group, ...], dict[str, Tensor]], share: float) -> None:
        groups, scores = problem
        dense = filters(PruningPlan(groups))
        largest = max(b.filters_per_step for b in free(groups))
        least = sum(b.filters_per_step for b in free(groups))
        left = filters(choose(groups, scores, share, "global"))
        assert left >= max(least, dense * (1 - share)) - 1e-6, "never more than requested"
        assert left == least or left < dense * (1 - share) + largest
        for tied in free(groups):
            plan = choose(groups, scores, share, "local")
            steps = len(plan.kept[tied.name]) * tied.steps // tied.groups[0].width
            assert steps == max(1, tied.steps - math.floor(share * tied.steps + 1e-9))

    @given(problems(), shares, st.sampled_from(SCOPES), floors_of, st.sampled_from([1, ALIGN]))
    def test_floors_and_ties_hold(
        self, problem: tuple[tuple[Group, ...], dict[str, Tensor]], share: float, scope: str, floors: dict[str, int], align: int
    ) -> None:
        groups, scores = problem
        plan = choose(groups, scores, share, scope, floors=floors, align=align)  # type: ignore[arg-type]
        assert all(len(kept) >= min(g.width, floors.get(g.name, 1)) for g, kept in plan)
        for tied in tied_groups(groups):
            assert len({Fraction(len(plan.kept[g.name]), g.width) for g in tied.groups}) == 1
        assert PruningPlan.from_json(plan.to_json()) == plan
        assert {g.name: g.tied for g in plan.remaining()} == {g.name: g.tied for g in groups}

    @given(problems(), shares, st.sampled_from(SCOPES))
    def test_the_lowest_scores_go(self, problem: tuple[tuple[Group, ...], dict[str, Tensor]], share: float, scope: str) -> None:
        groups, scores = problem
        for g, kept in choose(groups, scores, share, scope):  # type: ignore[arg-type]
            gone = sorted(set(range(g.width)) - set(kept))
            assert all((scores[g.name][k], -k) > (scores[g.name][c], -c) for k in kept for c in gone)

    @given(problems(), shares, shares, st.sampled_from(SCOPES), floors_of, st.sampled_from([1, ALIGN]))
    def test_a_larger_share_drops_the_same_and_more(
        self, problem: tuple[tuple[Group, ...], dict[str, Tensor]], a: float, b: float, scope: str, floors: dict[str, int], align: int
    ) -> None:
        groups, scores = problem
        small, large = (
            choose(groups, scores, share, scope, floors=floors, align=align)  # type: ignore[arg-type]
            for share in sorted((a, b))
        )
        assert all(set(large.kept[name]) <= set(kept) for name, kept in small.kept.items())
        assert small == choose(groups, scores, min(a, b), scope, floors=floors, align=align)  # type: ignore[arg-type]

    @given(problems(), shares, st.sampled_from(SCOPES))
    def test_widths_are_aligned_where_they_can_be(
        self, problem: tuple[tuple[Group, ...], dict[str, Tensor]], share: float, scope: str
    ) -> None:
        groups, scores = problem
        plan = choose(groups, scores, share, scope, align=ALIGN)  # type: ignore[arg-type]
        for tied in free(groups):
            made = {len(plan.kept[g.name]) * len(m.index[0]) for g in tied.groups for m in g.producers}
            whole = len(plan.kept[tied.name]) == tied.groups[0].width
            possible = any(
                all(tied.channels(g, k) * len(m.index[0]) % ALIGN == 0 for g in tied.groups for m in g.producers)
                for k in range(1, tied.steps + 1)
            )
            assert whole or not possible or all(width % ALIGN == 0 for width in made)

    @given(problems(), shares, st.sampled_from(SCOPES), st.data())
    def test_groups_with_counts_of_their_own_take_no_part(
        self, problem: tuple[tuple[Group, ...], dict[str, Tensor]], share: float, scope: str, data: st.DataObject
    ) -> None:
        groups, scores = problem
        own = data.draw(st.sampled_from([g for g in groups if not g.frozen and not g.tied]))
        count = data.draw(st.integers(1, own.width))
        rest = tuple(g for g in groups if g is not own)
        plan = choose(groups, scores, share, scope, kept={own.name: count})  # type: ignore[arg-type]
        others = choose(rest, scores, share, scope)  # type: ignore[arg-type]
        assert len(plan.kept[own.name]) == count
        assert {name: kept for name, kept in plan.kept.items() if name != own.name} == dict(others.kept)

    @pytest.mark.slow
    @given(problems(), st.sampled_from(SCOPES))
    def test_a_width_is_what_the_ranking_leaves_with_it(self, problem: tuple[tuple[Group, ...], dict[str, Tensor]], scope: str) -> None:
        groups, scores = problem
        ranking = Ranking(groups, scores, scope)  # type: ignore[arg-type]
        for place, (tied, least, _) in enumerate(ranking.bounds):
            left = ranking.left(tied)
            assert len(left) == tied.steps + 1 and left[-1] == 1 and (left[1:] >= left[:-1]).all()
            for steps in range(least, tied.steps):
                assert ranking.steps(1 - left[steps] + 1e-6)[place] <= steps, "so much left, and no more of this"
                assert ranking.steps(1 - left[steps] - 1e-6)[place] > steps, "the largest such share"


def test_isomorphic_ranks_compare_like_with_like() -> None:
    """Each kind of channel of a ResNet loses the share, whatever the scale of its scores; a global ranking would take one kind alone."""
    model = NETWORKS["resnet20"]()
    groups = trace(model, torch.zeros(2, 3, 16, 16))
    inner = {g.name for g in groups if len(g.producers) == 1 and not g.frozen}
    rng = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.width, generator=rng) + 10 * (g.name in inner) for g in groups if not g.frozen}
    for scope, shares in (("isomorphic", (0.5, 0.5)), ("global", (0.0, 1.0))):
        plan = choose(groups, scores, 0.5, scope)  # type: ignore[arg-type]
        for names, share in zip((inner, scores.keys() - inner), shares, strict=True):
            before, after = (sum(plan.widths[name][side] for name in names) for side in (0, 1))
            assert after == pytest.approx((1 - share) * before, abs=8 + 0.2 * before * (scope == "global")), (scope, names)
    widths = {plan_width for name, plan_width in choose(groups, scores, 0.5, "isomorphic").widths.items() if name in inner}
    assert len({after / before for before, after in widths}) > 1, "layers of one structure are ranked together"


def test_tied_groups_go_by_the_mean_score_of_their_filters() -> None:
    heads, stream = group("heads", 2, positions=3, tied="t"), group("stream", 4, tied="t")
    lone = group("lone", 3)
    scores = {"heads": torch.tensor([9.0, 1.0]), "stream": torch.tensor([1.0, 5.0, 1.0, 5.0]), "lone": torch.tensor([0.5, 1.1, 7.0])}
    plan = choose((heads, stream, lone), scores, 0.5, "global")
    assert plan.kept["heads"] == (0,) and plan.kept["stream"] == (1, 3), "a mean of 1"
    assert plan.kept["lone"] == (1, 2), "0.5 went before, 1.1 did not follow"


def test_a_hundred_thousand_channels_take_a_moment() -> None:
    groups = tuple(group(f"g{i}", 1000) for i in range(100))
    rng = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.width, generator=rng) for g in groups}
    ranking = Ranking(groups, scores, "global", floors={g.name: 50 for g in groups})
    begun = time.perf_counter()
    for share in torch.linspace(0, 1, 20).tolist():
        ranking.steps(share)
    assert time.perf_counter() - begun < 2
    assert filters(ranking.plan(ranking.steps(0.5))) == 50_000


class TestLimits:
    """What the user forbids stays; a limit that fits nothing is refused."""

    @pytest.fixture(scope="class")
    @classmethod
    def resnet(cls) -> nn.Module:
        torch.manual_seed(0)
        return shaken(NETWORKS["resnet20"]())

    def test_kept_layers_are_not_cut(self, resnet: nn.Module, images: Tensor) -> None:
        plan = lt.plan(resnet, images, 0.5, limits=Limits(keep=("blocks.4", r".*\.0\.conv1")))
        assert plan.widths["blocks.0.conv1"] == (16, 16) and "'blocks.4'" in plan.frozen["blocks.4.conv1"]
        assert plan.widths["blocks.3.conv2"] == (32, 32), "a residual sum that the block adds to"
        assert plan.widths["blocks.5.conv1"][1] < 32 and plan.widths["conv"][1] < 16

    def test_only_named_layers_are_cut(self, resnet: nn.Module, images: Tensor) -> None:
        plan = lt.plan(resnet, images, 0.5, limits=Limits(only=(r"blocks\.[12]",)))
        assert {name for name, (before, after) in plan.widths.items() if after < before} == {"blocks.1.conv1", "blocks.2.conv1"}
        assert "not among the layers to cut" in plan.frozen["conv"]

    @pytest.mark.parametrize("scope", SCOPES)
    def test_ratios_of_single_layers(self, resnet: nn.Module, images: Tensor, scope: str) -> None:
        limits = Limits(ratios={r"blocks\.6": 0.25, r"blocks\.6\.conv1": 0.125, "classifier|blocks.2.conv1": 0.5})
        plan = lt.plan(resnet, images, 0.4, scope, limits=limits)  # type: ignore[arg-type]
        assert plan.widths["blocks.6.conv1"] == (64, 56), "the strictest of two"
        assert plan.widths["blocks.6.conv2"] == (64, 48) and plan.widths["blocks.2.conv1"] == (16, 8)

    def test_floors(self, resnet: nn.Module, images: Tensor) -> None:
        plan = lt.plan(resnet, images, 0.95, limits=Limits(max_layer_ratio=0.75, min_channels=10))
        assert {after for before, after in plan.widths.values() if before == 16} == {10}
        assert {after for before, after in plan.widths.values() if before == 64} == {16}

    def test_tied_groups_follow_the_strictest(self) -> None:
        groups = (group("a", 4, tied="t"), group("b", 8, tied="t"), group("c", 5))
        frozen = {g.name: g.frozen for g in Limits(keep=("b",)).freeze(groups)}
        assert "kept" in frozen["b"] and "tied to 'b'" in frozen["a"] and not frozen["c"]
        assert Limits(ratios={"a": 0.5, "b": 0.25}).kept(groups) == {"a": 3, "b": 6}
        plan = choose(groups, {g.name: torch.zeros(g.width) for g in groups}, 1.0, "local", floors={"b": 3})
        assert plan.widths == {"a": (4, 2), "b": (8, 4), "c": (5, 1)}

    def test_split_groups_answer_to_their_layer(self) -> None:
        index = tuple((c,) for c in range(3))
        split = tuple(Group(f"conv1[{i}:{i + 3}]", 3, (Member("conv1", "out", index),)) for i in (0, 3))
        assert all(g.frozen for g in Limits(keep=("conv1",)).freeze((*split, group("c", 2)))[:2])
        assert [bool(g.frozen) for g in Limits(keep=(r"conv1\[0:3\]",)).freeze((*split, group("c", 2)))] == [True, False, False]

    @pytest.mark.parametrize("field", ["keep", "only", "ratios"])
    def test_a_pattern_that_matches_nothing(self, resnet: nn.Module, images: Tensor, field: str) -> None:
        value = {"blocks.1.convl": 0.3} if field == "ratios" else ("blocks.1.convl",)
        with pytest.raises(InvalidSetting, match=r"'blocks.1.convl' matches no layer.*did you mean blocks.1.conv"):
            lt.plan(resnet, images, limits=Limits(**{field: value}))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"keep": ("conv(",)}, "not a regular expression"),
            ({"keep": "conv"}, "several patterns"),
            ({"ratios": {"conv": 1.0}}, "ratio of 'conv'"),
            ({"ratios": {"conv": 0.97}}, "max_layer_ratio"),
            ({"max_layer_ratio": 1.1}, "largest ratio"),
            ({"min_channels": 0}, "at least 1 channel"),
        ],
    )
    def test_out_of_range(self, wrong: dict[str, object], message: str) -> None:
        with pytest.raises(InvalidSetting, match=message):
            Limits(**wrong)  # type: ignore[arg-type]

    def test_nothing_left_to_cut(self, resnet: nn.Module, images: Tensor) -> None:
        with pytest.raises(InvalidSetting, match="leave nothing to cut"):
            lt.plan(resnet, images, limits=Limits(keep=(".*",)))
        with pytest.raises(InvalidSetting, match=r"'classifier' has a ratio.*output"):
            lt.plan(resnet, images, limits=Limits(ratios={"classifier": 0.5}))


class TestTargets:
    """A target is met by the smallest cut, or refused with what forbids it."""

    @pytest.mark.parametrize(("measure", "scope"), [("macs", "global"), ("params", "local")])
    @pytest.mark.parametrize(
        "name", ["branches", "depthwise", "grouped", "heads", pytest.param("resnet20", marks=pytest.mark.slow), "vision"]
    )
    def test_met_by_the_smallest_cut(self, name: str, images: Tensor, measure: str, scope: str) -> None:
        torch.manual_seed(0)
        network = shaken(NETWORKS[name]())

        def left(plan: PruningPlan) -> float:
            return float(getattr(lt.size(lt.cut(network, plan), images), measure) / getattr(lt.size(network, images), measure))

        plan = lt.plan(network, images, scope=scope, **{f"target_{measure}": 0.5})  # type: ignore[arg-type]
        assert left(plan) <= 0.5
        dropped = 1 - filters(plan) / filters(PruningPlan(plan.groups))
        for ratio in (0.2 * dropped, 0.8 * dropped, dropped - 1e-3):
            try:
                less = lt.plan(network, images, max(ratio, 1e-6), scope, check=False)  # type: ignore[arg-type]
            except InvalidSetting as error:
                assert "cuts nothing" in str(error)
                continue
            assert less.widths == plan.widths or left(less) > 0.5

    @pytest.mark.parametrize("name", ["branches", "heads", "resnet20", "vision"])
    def test_counting_without_weights_is_exact(self, name: str, images: Tensor) -> None:
        network = NETWORKS[name]()
        plan = lt.plan(network, images, 0.4)
        size_counter = SizeCounter(network, images)
        assert size_counter.dense == lt.size(network, images) and size_counter.left(plan) == lt.size(lt.cut(network, plan), images)

    def test_networks_that_make_tensors_themselves(self, images: Tensor) -> None:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.b(self.a(x) * torch.ones(1, 1, 14, 14)).mean((2, 3))
                return y

        plan = lt.plan(Own(), images, target_macs=0.5)
        assert plan.widths["a"] == (8, 4)

    def test_out_of_reach(self, images: Tensor) -> None:
        network = NETWORKS["resnet20"]()
        with pytest.raises(
            InvalidSetting, match=r"target_macs 0.1 cannot be met.*leaves 0\.\d+ of the MACs.*'conv'.*to be kept.*min_channels"
        ):
            lt.plan(network, images, target_macs=0.1, limits=Limits(keep=("conv",), max_layer_ratio=0.5))

    def test_one_goal_at_a_time(self, images: Tensor) -> None:
        network = NETWORKS["lenet5"]()
        for settings_, message in (
            ({"ratio": 0.5, "target_macs": 0.5}, "not both"),
            ({"target_macs": 0.5, "target_params": 0.5}, "one target"),
            ({"target_macs": 1.5}, "between 0 and 1"),
            ({"target_params": 0.0}, "between 0 and 1"),
        ):
            with pytest.raises(InvalidSetting, match=message):
                lt.plan(network, images, **settings_)  # type: ignore[arg-type]


class TestSearch:
    """Limits and targets of a search."""

    @pytest.mark.slow
    def test_the_last_round_meets_the_target(self, tmp_path: Path) -> None:
        config = lt.SearchConfig(rounds=2, target_macs=0.3, controls=False, keep=("9",), ratios={"3": 0.5})
        found = lt.find("lenet5", "digits", config, recipe=QUICK, image_size=16, folder=tmp_path / "run")
        dense, *levels = [row.macs for row in found.rows]
        assert levels[0] <= dense * math.sqrt(0.3) and levels[1] <= dense * 0.3 and levels[0] > dense * 0.3
        widths = found.ticket.plan.widths
        assert widths["9"] == (84, 84) and "kept" in found.ticket.plan.frozen["9"]
        last = PruningPlan.load(tmp_path / "run/seed0/plan-2.json")
        assert last.widths["3"] == (16, 8)

    def test_out_of_reach_before_any_training(self, tmp_path: Path) -> None:
        config = lt.SearchConfig(target_params=0.01, keep=("0",), min_channels=10)
        with pytest.raises(InvalidSetting, match=r"target_params 0\.01 cannot be met"):
            lt.find("lenet5", "digits", config, recipe=QUICK, image_size=16, folder=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_settings(self) -> None:
        assert lt.SearchConfig().rate == 0.2 and lt.SearchConfig(target_macs=0.5).rate is None
        assert lt.SearchConfig(target_macs=0.25, rounds=2).shares == pytest.approx([0.5, 0.25])
        assert lt.SearchConfig(target_macs=0.25, schedule="oneshot").shares == [0.25]
        for wrong, message in (
            ({"rate": 0.2, "target_macs": 0.5}, "not both"),
            ({"target_macs": 1.0}, "between 0 and 1"),
            ({"group_reduction": "some"}, "reduction"),
            ({"keep": ("(",)}, "regular expression"),
        ):
            with pytest.raises(InvalidSetting, match=message):
                lt.SearchConfig(**wrong)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100))
def test_rounds_of_a_tie_end_at_one_step(seed: int) -> None:
    groups = (group("a", 6, tied="t"), group("b", 9, tied="t"))
    plan = PruningPlan(groups)
    for level in range(4):
        rng = torch.Generator().manual_seed(seed + level)
        remaining = plan.remaining()
        plan = plan.then(choose(remaining, {g.name: torch.rand(g.width, generator=rng) for g in remaining}, 0.5, "local"))
    assert plan.widths == {"a": (6, 2), "b": (9, 3)}


def test_a_ratio_of_its_own_is_reached_in_rounds(images: Tensor) -> None:
    groups = trace(NETWORKS["lenet5"](), images)
    limits = Limits(ratios={"0": 0.5})
    assert [limits.kept(groups, level / 3)["0"] for level in range(4)] == [6, 5, 4, 3]
