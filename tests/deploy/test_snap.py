"""The laws of snapping: up changes no answer, down loses the least important, and the clock decides."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from networks import NETWORKS, shaken
from torch import Tensor, nn
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.cli import app
from ltcompile.core.plan import PruningPlan
from ltcompile.deploy.steps.snap import AS_IT_IS, snap
from ltcompile.errors import InvalidSetting
from ltcompile.graph import cut, embed

pytestmark = pytest.mark.usefixtures("cached_exports")
SIDE = 16


@functools.cache
def ticket(name: str = "vgg11") -> tuple[nn.Module, nn.Module, PruningPlan, Tensor]:
    """A network, an odd cut of it, its plan, and images."""
    torch.manual_seed(0)
    side = 32 if name == "vgg11" else SIDE
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    dense = shaken(NETWORKS[name]() if name in NETWORKS else lt.build_model(name))
    plan = lt.plan(dense, images, 0.37)
    return dense, cut(dense, plan).eval(), plan, images


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_up_changes_no_answer_and_down_is_a_cut(name: str) -> None:
    dense, small, plan, images = ticket(name)
    with torch.no_grad():
        down = snap(small, plan, dense, "down", images)
        torch.testing.assert_close(down.module(images), embed(down.module, down.plan, dense)(images), rtol=1e-4, atol=1e-5)
        assert all(set(down.plan.kept[n]) <= set(plan.kept[n]) for n in plan.kept) and not down.same_answers
        try:
            up = snap(small, plan, dense, "up", images)
        except InvalidSetting as error:
            assert "snap=down" in str(error)
            return
        torch.testing.assert_close(up.module(images), small(images), rtol=1e-4, atol=1e-5)
        assert all(set(up.plan.kept[n]) >= set(plan.kept[n]) for n in plan.kept) and up.same_answers


@pytest.mark.parametrize("way", ["down", "up"])
def test_widths_are_multiples(way: str) -> None:
    dense, small, plan, images = ticket()
    assert any(after % 16 for _, after in plan.widths.values())
    moved = snap(small, plan, dense, way, images)  # type: ignore[arg-type]
    for group in plan.groups:
        width, was = len(moved.plan.kept[group.name]), len(plan.kept[group.name])
        assert group.frozen or width % 16 == 0 or was < 16
        assert group.frozen or abs(width - was) < 16
    assert moved.way == f"{way} to 16"


def test_what_goes_down_is_the_least_important() -> None:
    dense, small, plan, images = ticket()
    down = snap(small, plan, dense, "down", images)
    layer = next(g.name for g in plan.groups if 0 < len(down.plan.kept[g.name]) < len(plan.kept[g.name]))
    norms = dict(zip(plan.kept[layer], small.get_submodule(layer).weight.flatten(1).norm(dim=1).tolist(), strict=True))
    lost = set(plan.kept[layer]) - set(down.plan.kept[layer])
    assert max(norms[c] for c in lost) <= min(norms[c] for c in down.plan.kept[layer])


def widths(network: nn.Module) -> list[int]:
    return [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clock", "way"),
    [
        (lambda network: 1.0, AS_IT_IS),  # nothing gained: nothing changed
        (
            lambda network: 1.0 if all(w % 32 == 0 or w < 32 for w in widths(network)) else 2.0,
            "up to 32",
        ),  # of two as fast, the one with the same answers
        (lambda network: sum(widths(network)) / 1000, "down to 32"),
    ],
)
def test_the_clock_decides(clock: Callable[[nn.Module], float], way: str) -> None:
    dense, small, plan, images = ticket()
    found = snap(small, plan, dense, "auto", images, clock)
    assert next(iter(found.repeated_fraction)) == way and len(found.repeated_fraction) == 2
    assert found.tie == (way != "down to 32"), "two as fast are a tie"
    assert found.way == way and found.measured_fraction.keys() == {AS_IT_IS, *(f"{w} to {m}" for w in ("up", "down") for m in (8, 16, 32))}


@pytest.mark.slow
def test_the_winner_is_measured_again() -> None:
    """The first measurement favours one way by a third; the second has the last word, and calls a tie one."""
    dense, small, plan, images = ticket()

    def clock(lucky: str, of: float) -> Callable[[nn.Module], float]:
        seen: list[int] = []
        order = [AS_IT_IS, *(f"{w} to {m}" for w in ("up", "down") for m in (8, 16, 32))]

        def measured(network: nn.Module) -> float:
            seen.append(sum(widths(network)))
            if len(seen) <= len(order):
                return of * (0.67 if order[len(seen) - 1] == lucky else 1.0)
            return of * (1.2 if seen[-1] == seen[order.index(lucky)] else 1.0)

        return measured

    found = snap(small, plan, dense, "auto", images, clock("up to 32", 0.3))
    assert found.way == AS_IT_IS and found.repeated_fraction == {AS_IT_IS: 0.3, "up to 32": pytest.approx(0.36)} and not found.tie


@pytest.mark.slow
@pytest.mark.parametrize("how", ["down", "up"])
def test_shrink_snaps(run: Path, tmp_path: Path, how: str) -> None:
    shrunk = lt.shrink(run / "ticket.pt", tmp_path / "small.onnx", snap=how)  # type: ignore[arg-type]
    assert shrunk.record["snapped"]["way"] == f"{how} to 16" and shrunk.record["equality_error"] < 1e-5
    made = [m.out_channels for m in shrunk.module.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 16 == 0 or width < 16 for width in made)
    reported = {p.key: p.value for p in onnx.load(shrunk.path).metadata_props}
    assert (json.loads(reported["accuracy"])["value"] is None) == (how == "down"), "what was changed has no accuracy that anyone measured"
    assert lt.bench(shrunk.path, runtimes=["onnxruntime"], batches=[1], seconds_per_row=0.01).rows


@pytest.mark.slow
def test_the_command_measures_by_itself(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltcompile.benchmark.profiling.work.STOPWATCH_SECONDS", 0.1)
    done = CliRunner().invoke(
        app, ["shrink", str(run / "ticket.pt"), "-o", str(tmp_path / "s.onnx"), "--snap", "auto"], catch_exceptions=False
    )
    assert done.exit_code == 0 and "as it is" in done.output and "up to 32" in done.output and "measured again:" in done.output


def test_bad_ways_are_refused() -> None:
    dense, small, plan, images = ticket()
    with pytest.raises(InvalidSetting, match="down, up, auto"):
        snap(small, plan, dense, "sideways", images)  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="timer="):
        snap(small, plan, dense, "auto", images)
