"""Plans are data with laws: they compose, survive JSON, and refuse nonsense."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltcompile.core.plan import Group, Member, PruningPlan
from ltcompile.errors import InvalidFile, InvalidPlan

CHAIN = (
    Group(
        "a",
        6,
        (Member("a", "out", tuple((c,) for c in range(6))), Member("b", "in", tuple((3 * c, 3 * c + 1, 3 * c + 2) for c in range(6)))),
    ),
    Group("b", 5, (Member("b", "out", tuple((c,) for c in range(5))), Member("c", "in", tuple((c + 2,) for c in range(5))))),
    Group("c", 3, (Member("c", "out", tuple((c,) for c in range(3))),), "it produces the network's output"),
)


def plans(groups: tuple[Group, ...]) -> st.SearchStrategy[PruningPlan]:
    some = {g.name: st.sets(st.integers(0, g.width - 1), min_size=1).map(lambda s: tuple(sorted(s))) for g in groups if not g.frozen}
    return st.fixed_dictionaries(some).map(lambda kept: PruningPlan(groups, kept))


@given(plans(CHAIN))
def test_json_round_trip(plan: PruningPlan) -> None:
    assert PruningPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@settings(max_examples=50)
@given(st.data())
def test_a_plan_on_a_plan_is_a_plan_on_the_original(data: st.DataObject) -> None:
    first = data.draw(plans(CHAIN))
    second = data.draw(plans(first.remaining()))
    third = data.draw(plans(first.then(second).remaining()))
    assert first.then(second).remaining() == second.remaining()
    assert first.then(second).then(third) == first.then(second.then(third))
    assert PruningPlan(CHAIN).then(first) == first == first.then(PruningPlan(first.remaining()))


@given(plans(CHAIN))
def test_remaining_positions_fill_their_axis_without_gaps(plan: PruningPlan) -> None:
    by_name = {g.name: g for g in plan.remaining()}
    width = len(plan.kept["a"])
    assert sorted(by_name["a"].members[1].positions(tuple(range(width)))) == list(range(3 * width))
    assert by_name["b"].members[1].positions((0,)) == [2], "positions before the group's own stay"


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"a": ()}, "empties"),
        ({"a": (0, 0)}, "not rising"),
        ({"a": (1, 0)}, "not rising"),
        ({"a": (0, 6)}, "not rising"),
        ({"a": (-1, 2)}, "not rising"),
        ({"z": (0,)}, "does not have"),
        ({"c": (0,)}, "frozen"),
    ],
)
def test_nonsense_is_refused(kept: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InvalidPlan, match=message):
        PruningPlan(CHAIN, kept)


TIED = tuple(dataclasses.replace(g, tied="heads") for g in (*CHAIN[:1], dataclasses.replace(CHAIN[2], frozen="")))


@given(st.integers(1, 6), st.integers(1, 3))
def test_tied_groups_keep_the_same_share(a: int, b: int) -> None:
    kept = {"a": tuple(range(a)), "c": tuple(range(b))}
    if a != 2 * b:
        with pytest.raises(InvalidPlan, match="tied to the same share"):
            PruningPlan(TIED, kept)
        return
    plan = PruningPlan(TIED, kept)
    assert PruningPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert [g.tied for g in plan.remaining()] == ["heads", "heads"]


def test_members_must_map_every_channel_once() -> None:
    with pytest.raises(InvalidPlan, match="two channels claim"):
        Member("a", "out", ((0,), (0,)))
    with pytest.raises(InvalidPlan, match="maps 1 of 2"):
        Group("a", 2, (Member("a", "out", ((0,),)),))


def test_a_plan_of_another_network_does_not_compose() -> None:
    first = PruningPlan(CHAIN, {"a": (0, 1)})
    with pytest.raises(InvalidPlan, match="not a plan of the network"):
        first.then(PruningPlan(CHAIN))


@pytest.mark.parametrize(
    "broken", [None, [], {}, {"groups": 1, "kept": {}}, {"groups": [{}], "kept": {}}, {"groups": [], "kept": {"a": "x"}}]
)
def test_malformed_json_is_a_bad_plan(broken: object) -> None:
    with pytest.raises(InvalidPlan):
        PruningPlan.from_json(broken)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((("groups", 0, "width"), value) for value in ("6", 6.0, True, -6, 0, None, 2**40, float("inf"))),
        *((("groups", 0, "name"), value) for value in (7, None, ["a"], "\x1b[2J")),
        *((("groups", 0, "members", 0, "span"), value) for value in (-1, 1.0, 2**30, "1")),
        *((("groups", 0, "members", 0, "start"), value) for value in (-1, 2**60, False)),
        *((("groups", 0, "members", 0, "axis"), value) for value in ("inside", "=a.b.c", 3, "weight.x", "")),
        *((("groups", 0, "members", 1, "index"), value) for value in ([[0]] * 6, [[-1]] * 6, [[0.5]] * 6, ["ab"] * 6, [[2**40]] * 6, 3)),
        *((("kept", "a"), value) for value in ([1, 0], [0, 0], [-1], [6], [0.0], [True], "01", {"0": 1}, None, [])),
    ],
)
def test_wrong_fields_are_a_bad_plan(place: tuple[str | int, ...], value: object) -> None:
    reported = PruningPlan(CHAIN, {"a": (0, 1)}).to_json()
    reported["groups"][0]["members"][1] = {"layer": "b", "axis": "in", "index": [[c] for c in range(6)]}
    holder = reported
    for key in place[:-1]:
        holder = holder[key]  # type: ignore[index]
    holder[place[-1]] = value  # type: ignore[index]
    with pytest.raises(InvalidPlan):
        PruningPlan.from_json(reported)


def test_a_few_bytes_claim_no_memory() -> None:
    member = {"layer": "a", "axis": "out", "start": 0, "span": 1}
    group = {"name": "a", "width": 1 << 20, "frozen": "", "members": [{**member, "layer": str(i)} for i in range(100)]}
    with pytest.raises(InvalidPlan, match="the plan claims 104,857,600 positions"):
        PruningPlan.from_json({"groups": [group], "kept": {}})


def test_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    plan = PruningPlan(CHAIN, {"a": (0, 3)})
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    (tmp_path / "half.json").write_text((tmp_path / "plan.json").read_text()[:40])
    for name in ("half.json", "none.json"):
        with pytest.raises(InvalidFile):
            PruningPlan.load(tmp_path / name)


def test_filters_count_every_producer() -> None:
    residual = dataclasses.replace(CHAIN[0], members=(*CHAIN[0].members, Member("a2", "out", CHAIN[0].members[0].index)))
    assert PruningPlan((residual, *CHAIN[1:]), {"a": (0,)}).filters == (12 + 5 + 3, 2 + 5 + 3)
    assert torch.tensor(residual.members[1].index).shape == (6, 3)
