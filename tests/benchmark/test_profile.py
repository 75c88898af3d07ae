"""The laws of measured time: a profile finds the law that it was timed by, and plans spend a budget as well as can be."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import re
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kinds import pruned
from searches import QUICK
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.benchmark import energy
from ltcompile.benchmark.profiling import joulemeter, profile, stopwatch
from ltcompile.benchmark.profiling.design import BELOW, SHARES, colours, pairs
from ltcompile.benchmark.profiling.layers import assign, shares
from ltcompile.benchmark.profiling.timer import Call, Timing, Variant, open_timer
from ltcompile.benchmark.profiling.work import AGAIN
from ltcompile.cli import app
from ltcompile.core import profile as nouns
from ltcompile.core.deployment import COMPILED, Deployment
from ltcompile.core.image_size import parse
from ltcompile.core.notice import Notice
from ltcompile.core.plan import PruningPlan
from ltcompile.core.profile import Profile, Run
from ltcompile.core.reached import Reached
from ltcompile.core.surface import Grid, Sample
from ltcompile.engine.cpu import candidates
from ltcompile.errors import Disagreement, InvalidFile, InvalidSetting, ProfileMismatch, Unavailable
from ltcompile.graph import cut, trace
from ltcompile.graph.tied_groups import tied_groups
from ltcompile.graph.widths import LAYERS, layer_widths
from ltcompile.lower import export_onnx, fold_batch_norm, run_onnx
from ltcompile.lower.onnx_weights import with_weights
from ltcompile.prune.budget import WidthAllocation
from ltcompile.search import Source, command, worker
from ltcompile.search.listener import NullListener
from ltcompile.search.sharing import Sharing
from ltcompile.timing import interleave

TARGET = Deployment("cpu", "onnxruntime", 8, "fp32")
READ_BLOCK, MADE_BLOCK, ODD = 8, 16, 1.6
MODEL = {"name": "lenet5", "arguments": {"classes": 10, "in_channels": 1, "image_size": 32}}


def law_ms(layer: Any) -> float:
    """Blocks of 8 channels read and 16 made; odd widths cost more."""
    read, made = (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else (layer.in_channels, layer.out_channels)
    blocks = -(-read // READ_BLOCK) * READ_BLOCK * -(-made // MADE_BLOCK) * MADE_BLOCK
    return (0.01 + 1e-4 * blocks) * (ODD if read % 2 and read > 3 else 1.0)


class Law:
    """A runtime whose times follow the law, with noise."""

    settle_s, reads_onnx = 0.0, False

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.drift, self.rng, self.calls = noise, 0.0, np.random.default_rng(0), 0
        self.slow = range(0)  # calls in which the machine takes twice as long
        self.seconds = self.joules = 0.0

    def check(self, variant: Variant, images: torch.Tensor) -> None:
        """It computes nothing."""

    def call(self, variant: Variant, images: torch.Tensor) -> Call:
        """Which advances `seconds`, slower and faster in waves of ten seconds."""
        ms = sum(law_ms(m) for m in variant.module.modules() if isinstance(m, LAYERS))

        def call() -> None:
            self.seconds += ms / 1000 * (1 + self.drift * math.sin(2 * math.pi * self.seconds / 10))
            self.joules += joules_of(variant.module)

        return call

    def time(self, variant: Variant, images: torch.Tensor, reference: Call) -> Timing:
        self.calls += 1
        pace = (1 + self.drift * math.sin(self.calls)) * (2 if self.calls in self.slow else 1)
        layers = {name: law_ms(m) for name, m in variant.module.named_modules() if isinstance(m, LAYERS)}
        layers = {name: ms * (1 + self.noise * self.rng.standard_normal()) for name, ms in layers.items()}
        layers = {name: pace * ms for name, ms in layers.items()}
        return Timing(sum(layers.values()), 1.0, layers, 0.2 * pace)


@pytest.fixture
def law(monkeypatch: pytest.MonkeyPatch) -> Law:
    found = Law()
    monkeypatch.setattr("ltcompile.benchmark.profiling.work.open_timer", lambda target, **_: found)
    return found


def model(name: str, side: int = 32) -> dict[str, Any]:
    return {"name": name, "arguments": {"classes": 10, "in_channels": 3, "image_size": side}}


@functools.cache
def profiled(name: str, side: int = 32, noise: float = 0.0, smooth: bool = False) -> tuple[Profile, int]:
    """The profile of a network by the law, or by one without steps, and how many timings it took: the same for all tests."""
    law = Law(noise)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("ltcompile.benchmark.profiling.work.open_timer", lambda target, **_: law)
        if smooth:
            patch.setattr(law, "time", functools.partial(smooth_time, law))
        return profile(model(name, side), TARGET, output=Path(folder) / "p.json"), law.calls


@functools.cache
def steady() -> Profile:
    """The profile of `MODEL` on a machine that keeps its speed: the same for all tests."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("ltcompile.benchmark.profiling.work.open_timer", lambda target, **_: Law())
        return profile(MODEL, TARGET, output=Path(folder) / "p.json")


# Profiles


@pytest.mark.slow
def test_a_machine_that_changes_its_speed_is_reported(printed_by: Callable[..., str], law: Law) -> None:
    law.drift = 0.5
    assert "speed changed by 2." in " ".join(printed_by("profile", "--model", "lenet5", "--batch", 8).split())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "noise", "most"), [("vgg11", 0.0, 0.02), ("vgg16-quarter", 0.03, 0.04), ("resnet20", 0.0, 0.03)])
def test_a_profile_finds_the_law(tmp_path: Path, name: str, noise: float, most: float) -> None:
    found, calls = profiled(name, noise=noise)
    assert calls == len(found.runs) == len(SHARES) ** 2 + len(BELOW) ** 2 + 8
    assert (found.median_error < most and found.dense_ms == max(run.ms for run in found.runs if run.why in ("dense", "grid"))) or noise
    wide = next(n for n, layer in found.layers.items() if layer.kind == "3x3 by 1x1" and layer.reads)
    alignment = found.surfaces[wide].alignment
    assert (alignment.read_block, alignment.made_block) == (READ_BLOCK, MADE_BLOCK) or noise, (
        "classes of widths can stand for smaller blocks"
    )
    assert alignment.penalty[0].max() == pytest.approx(ODD, rel=0.15) and alignment.penalty[4, 4] == pytest.approx(1, rel=0.1)
    found.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == found


def waiting_ms(layer: Any) -> float:
    """The law of a machine whose cache holds so many weights: layers with more wait for them, however slow their arithmetic is."""
    read, made = (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else (layer.in_channels, layer.out_channels)
    arithmetic = 1e-4 * read * made * (ODD if read % 2 and read > 3 else 1.0)
    return 0.01 + max(arithmetic, 2e-4 * (read * made - (1 << 14)))


@pytest.mark.slow
def test_a_profile_finds_which_layers_wait_for_their_weights(law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "law_ms", waiting_ms)
    found = profile(model("vgg16"), TARGET, output=tmp_path / "p.json")
    assert found.median_error < 0.04
    for layer, width in (("features.40", 512), ("features.3", 64)):
        surface = found.surfaces[layer]
        assert surface.alignment.roofline
        by_profile = surface(width - 1, width) / surface(width, width)
        by_law = waiting_ms(nn.Conv2d(width - 1, width, 3)) / waiting_ms(nn.Conv2d(width, width, 3))
        assert by_profile == pytest.approx(by_law, rel=0.1), layer


@pytest.mark.slow
def test_slow_minutes_of_the_machine_are_divided_out(law: Law, tmp_path: Path) -> None:
    law.drift = 0.5
    found = profile(MODEL, TARGET, output=tmp_path / "p.json")
    assert max(run.ms for run in found.runs if run.why == "dense") != steady().runs[0].ms
    assert found.median_error == pytest.approx(steady().median_error, abs=1e-9)
    assert 0.5 < found.dense_ms / steady().dense_ms < 1.1, "the usual pace is that of the middle run, once the slowest were made again"


@pytest.mark.slow
def test_what_ran_in_a_slow_minute_is_timed_again(law: Law, tmp_path: Path) -> None:
    law.slow, reports, runs = range(30, 50), list[int](), steady().runs
    found = profile(MODEL, TARGET, output=tmp_path / "p.json", on_progress=lambda done, of, run: reports.append(done))
    assert found.runs == runs == Profile.load(tmp_path / "p.json").runs
    assert law.calls == reports[-1] == len(runs) + 20, "no others"
    law.slow = range(law.calls + 1, law.calls + 1000)
    profile(MODEL, TARGET, output=tmp_path / "p.json")
    assert law.calls == len(runs) + 20, "what is whole is not timed again"
    law.calls, law.slow = 0, range(30, 1000)
    still = profile(MODEL, TARGET, output=tmp_path / "q.json")
    assert law.calls == len(runs) + AGAIN and still.drift == pytest.approx(2), "a machine that stays slow is not waited for"


@pytest.mark.slow
def test_the_stopwatch_measures_shares_on_a_drifting_machine(law: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltcompile.benchmark.profiling.timer.interleave", functools.partial(interleave, clock=lambda: law.seconds))
    law.drift, named = 0.5, model("vgg16-quarter")
    dense = lt.build_model("vgg16-quarter").eval()
    small = cut(dense, lt.plan(dense, torch.zeros(2, 3, 32, 32), 0.7, "local")).eval()
    share = stopwatch(named, TARGET)
    for _ in range(5):
        assert share(small) == pytest.approx(time_of(small) / time_of(dense), rel=0.04)
    assert share(dense) == pytest.approx(1, rel=0.04)


@pytest.mark.slow
def test_a_profile_goes_on_where_it_was(law: Law, tmp_path: Path) -> None:
    whole = steady()

    def stop(done: int, of: int, run: Run) -> None:
        assert of == len(whole.runs)
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(MODEL, TARGET, output=tmp_path / "p.json", on_progress=stop)
    law.calls = 0
    assert profile(MODEL, TARGET, output=tmp_path / "p.json").runs == whole.runs and law.calls == len(whole.runs) - 20
    law.calls = 0
    profile(MODEL, TARGET, output=tmp_path / "p.json", resume=False)
    assert law.calls == len(whole.runs)


def test_a_foreign_profile_is_refused_by_what_differs(law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found = tmp_path / "p.json", steady()
    found.save(path)
    with pytest.raises(ProfileMismatch, match="name lenet5, not vgg16"):
        found.check_fits(model("vgg16"))
    with pytest.raises(ProfileMismatch, match=r"for cpu:onnxruntime:b8:fp32, not for cpu:onnxruntime:b1:fp32"):
        found.check_fits(MODEL, replace(TARGET, batch=1))
    for field in ("cpu", "threads", "onnxruntime-gpu"):
        with pytest.raises(ProfileMismatch, match=f"with {field} another, and here is"):
            replace(found, machine={**found.machine, field: "another"}).check_here()
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "machine": {**value["machine"], "cpu": "another"}}))
    with pytest.raises(ProfileMismatch, match="cpu another"):
        profile(MODEL, TARGET, output=path)
    for spoiled in ({"kind": "plan"}, {"runs": [{}]}, {"layers": []}, {"target": "cpu"}):
        path.write_text(json.dumps({**value, **spoiled}))
        with pytest.raises(InvalidFile, match="ltcompile profile"):
            Profile.load(path)


def test_a_runtime_without_times_of_layers_is_refused() -> None:
    for text in ("cpu:onnxruntime:b1:bf16", "cpu:openvino:b1:fp16", "cpu:eager:b1:int8"):
        with pytest.raises(Unavailable, match="no times of single layers"):
            open_timer(Deployment.parse(text))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_instead_of_the_engine_its_runtimes_are_named(precision: str) -> None:
    """Those that it would choose between here, as targets that can be profiled."""
    with pytest.raises(Unavailable, match="ltcompile compile") as refused:
        open_timer(Deployment("cpu", "engine", 4, precision))
    named = [Deployment.parse(word) for word in re.findall(r"cpu:\w+:b4:\w+", str(refused.value))]
    there = {candidate.runtime for candidate in candidates(precision)[0]} - {COMPILED}
    assert (named or there <= {"compile"}) and all(
        target.runtime in there and target.precision == precision and open_timer(target) for target in named
    )
    assert {target.runtime for target in named} == there - {"compile"}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "eager"])
def test_every_runtime_times_every_layer(runtime: str) -> None:
    """Of a residual network with odd widths; their times add up to the whole."""
    work = profiling_work("resnet20", runtime)
    kept = {g.name: g.width - (not g.frozen) for g in work.groups}
    module = cut(work.folded, PruningPlan(work.groups, {name: tuple(range(n)) for name, n in kept.items()})).eval()
    timing = open_timer(work.target).time(
        Variant(module, work._exports.of(module) if work.timer.reads_onnx else None), work.inputs, lambda: None
    )
    assert timing.layers_ms.keys() == work.widths.keys()
    assert sum(timing.layers_ms.values()) == pytest.approx(timing.ms)


def profiling_work(name: str, runtime: str) -> Any:
    from ltcompile.benchmark.profiling.work import _Work

    target = replace(TARGET, runtime=runtime, batch=2)
    return _Work(lt.build_model(name).eval(), model(name), target, open_timer(target), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "eager"])
def test_what_computes_something_else_is_not_timed(runtime: str, tmp_path: Path) -> None:
    network, images = lt.build_model("lenet5", 10, 1, 16).eval(), torch.randn(4, 1, 16, 16)
    export_onnx(network, images, tmp_path / "network.onnx")
    timer, file = open_timer(Deployment("cpu", runtime)), onnx.load(tmp_path / "network.onnx")
    timer.check(Variant(network, file), images)
    other = copy.deepcopy(network)
    with torch.no_grad():
        [*other.modules()][-1].bias[3] += 0.01
    if runtime != "eager":  # which is PyTorch itself
        with pytest.raises(Disagreement, match="not compute the network at widths"):
            timer.check(Variant(other, file), images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16-quarter", "golden_network:build", "networks:grouped"])
def test_resizing_a_file_is_exporting_the_cut(name: str, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    folded = fold_batch_norm(lt.build_model(name).eval(), images)[0].eval()
    small = cut(folded, lt.plan(folded, images, 0.4)).eval()
    export_onnx(folded, images, tmp_path / "whole.onnx")
    onnx.save(with_weights(onnx.load(tmp_path / "whole.onnx"), folded.state_dict(), small.state_dict()), str(tmp_path / "small.onnx"))
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(tmp_path / "small.onnx", images), small(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_norms_that_begin_alike_are_resized_apart() -> None:
    from ltcompile.benchmark.profiling.work import _work

    target = Deployment.parse("cpu:onnxruntime:b1:fp32")
    layers = [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8)]
    work = _work(nn.Sequential(*layers, nn.Conv2d(8, 4, 1)).eval(), target, open_timer(target), torch.randn(1, 3, 16, 16))
    assert work._exports._axes == {} and work._variant({"0": 3, "3": 5}).module[5].num_features == 5


def test_operations_are_identified_by_elimination() -> None:
    known = {"conv_1": {"a"}, "relu": {"a"}, "sum": {"a", "b", "c"}, "conv_3": {"c"}}
    events = [("relu_nchwc", True), ("ReorderOutput", False), ("fused conv_3", True), ("sum_nchwc_token_4", True), ("strange", True)]
    assert assign(events, known) == ["a", None, "c", "b", None]
    assert shares([(None, 1.0), ("a", 2.0), (None, 4.0), ("b", 8.0)]) == {"a": 7.0, "b": 8.0}


@given(st.lists(st.tuples(st.sampled_from([4, 16, 32, 64]), st.sampled_from([8, 16, 48]), st.floats(0.01, 10)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_grids_are_positive_and_rise(samples: list[tuple[int, int, float]]) -> None:
    grid, widths = Grid([Sample(*s) for s in samples]), np.arange(1, 80)
    table = grid(widths[:, None], widths[None, :])
    assert (table > 0).all()
    inside = grid(np.unique([s[0] for s in samples])[:, None], np.unique([s[1] for s in samples])[None, :])
    assert (np.diff(inside, axis=0) >= -1e-9 * inside[1:]).all() and (np.diff(inside, axis=1) >= -1e-9 * inside[:, 1:]).all()


def test_few_runs_hold_every_pair_of_levels() -> None:
    rows = pairs(7)
    for a, b in itertools.combinations(range(8), 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(range(7), repeat=2))
    network = lt.build_model("resnet20").eval()
    groups = trace(network, torch.zeros(2, 3, 32, 32))
    free = [b for b in tied_groups(groups) if not b.frozen]
    layers = layer_widths(network, groups)
    colour = dict(zip((b.name for b in free), colours(free, layers.values()), strict=True))
    for widths in layers.values():
        met = [colour[name] for name in widths.groups if name in colour]
        assert len(set(met)) == len(met)


# Budgets


@dataclass(frozen=True)
class Shape:
    """Which sets of tied groups share a layer."""

    pairs: tuple[tuple[int, int], ...]
    chain: bool


SHAPES = {
    "chain": Shape(((0, 1), (1, 2), (2, 3)), True),
    "apart": Shape(((0, 1), (2, 3)), True),
    "star": Shape(((0, 1), (0, 2), (0, 3)), False),
    "ring": Shape(((0, 1), (1, 2), (2, 3), (0, 3)), False),
    "residual": Shape(((0, 1), (1, 2), (0, 2), (2, 3)), False),
}


def problem(shape: Shape, seed: int) -> WidthAllocation:
    rng = np.random.default_rng(seed)
    many = 5
    candidates = tuple(np.arange(1, many + 1) * 4 for _ in range(4))
    worth = tuple(np.cumsum(-np.sort(-rng.random(many))) for _ in range(4))
    tables: dict[tuple[int, ...], Any] = {(): np.asarray(0.1)}
    for over in (*shape.pairs, *((i,) for i in range(4))):
        table = rng.random((many,) * len(over))
        for axis in range(len(over)):
            table = np.cumsum(table, axis)
        tables[over] = table
    return WidthAllocation(candidates, worth, tables, ())


@pytest.mark.parametrize("name", SHAPES)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 0.95))
@example(seed=978, share=0.09375)  # one step less of a set leaves time for more elsewhere
@settings(max_examples=25, deadline=None)
def test_a_budget_is_spent_as_well_as_can_be(name: str, seed: int, share: float) -> None:
    found = problem(SHAPES[name], seed)
    assert (found._chain() is not None) == SHAPES[name].chain
    all_choices = list(itertools.product(range(5), repeat=4))
    times = {choice: found.time(choice) for choice in all_choices}
    budget = times[found.least] + share * (max(times.values()) - times[found.least])
    choice = found.solve(budget)
    best = max(found.value(c) for c in all_choices if times[c] <= budget)
    assert times[choice] <= budget
    assert found.value(choice) >= (0.97 if SHAPES[name].chain else 0.85) * best


def test_elimination_is_exact_for_every_price() -> None:
    for name, seed, price in itertools.product(SHAPES, range(3), (0.0, 0.02, 0.1, 1.0)):
        found = problem(SHAPES[name], seed)
        best = max(found.value(c) - price * found.time(c) for c in itertools.product(range(5), repeat=4))
        choice = found._eliminate(price)
        assert found.value(choice) - price * found.time(choice) == pytest.approx(best)


def joules_of(network: nn.Module) -> float:
    """Of one image: wide layers take more power."""
    return sum(law_ms(m) * (1 + 0.01 * len(m.weight)) for m in network.modules() if isinstance(m, LAYERS))


def time_of(network: nn.Module) -> float:
    return sum(law_ms(m) for m in network.modules() if isinstance(m, LAYERS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share", "off"),
    [("vgg11", 0.3, 0.08), ("resnet20", 0.4, 0.08), ("networks:cascaded_concat", 0.6, 0.2)],  # the last one has few edges
)
def test_plans_meet_their_time_and_land_on_edges(name: str, share: float, off: float) -> None:
    side = 16 if ":" in name else 32
    found, _ = profiled(name, side)
    network, images = lt.build_model(name).eval(), torch.zeros(2, 3, side, side)
    plan = lt.plan(network, images, target_time=share, profile=found)
    assert time_of(cut(network, plan)) <= 1.05 * share * found.dense_ms
    clocked = lt.plan(network, images, target_time=share, profile=found, measured=lambda small: 1.3 * time_of(small) / found.dense_ms)
    assert 1.3 * time_of(cut(network, clocked)) == pytest.approx(share * found.dense_ms, rel=off)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scope", "seed"),
    [*((name, scope, seed) for name in ("vgg16-quarter", "resnet20") for scope in ("global", "local") for seed in (0, 1))],
)
def test_where_time_has_no_stairs_a_plan_keeps_to_the_ranking(name: str, scope: Any, seed: int, request: pytest.FixtureRequest) -> None:
    if (name, scope, seed) == ("vgg16-quarter", "global", 0):
        request.applymarker(pytest.mark.xfail(strict=True, reason="one group keeps 52 of the ranking's 75 channels; 52.25 are the bound"))
    found, _ = profiled(name, smooth=True)
    torch.manual_seed(seed)
    network, images = lt.build_model(name).eval(), torch.zeros(2, 3, 32, 32)
    plan = lt.plan(network, images, scope=scope, target_time=0.3, profile=found)
    gone = sum(g.width - len(kept) for g, kept in plan if not g.frozen) / sum(g.width for g, _ in plan if not g.frozen)
    ranked = lt.plan(network, images, gone, scope)
    for g, kept in plan:
        assert len(kept) >= 0.75 * len(ranked.kept[g.name]) - 4, f"{g.name} is behind, and its share of the time no excuse"


def smooth_time(law: Law, variant: Variant, images: torch.Tensor, reference: Call) -> Timing:
    layers = {name: 1e-4 + 1e-6 * m.weight.numel() for name, m in variant.module.named_modules() if isinstance(m, LAYERS)}
    return Timing(sum(layers.values()), 1.0, layers, 0.2)


@pytest.fixture
def counted(law: Law, monkeypatch: pytest.MonkeyPatch) -> Law:
    """A machine that counts the joules of eight images a call."""
    monkeypatch.setattr(energy, "counter", lambda device: lambda: TARGET.batch * law.joules)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: law.seconds)
    return law


@pytest.mark.slow
def test_plans_meet_their_energy(counted: Law) -> None:
    found, _ = profiled("vgg16-quarter")
    network, images = lt.build_model("vgg16-quarter").eval(), torch.zeros(2, 3, 32, 32)
    dense, measured = joulemeter(model("vgg16-quarter"), TARGET)
    assert dense == pytest.approx(joules_of(network))
    by_time = cut(network, lt.plan(network, images, target_time=0.3, profile=found))
    assert joules_of(by_time) != pytest.approx(0.3 * dense, rel=0.08), "energy is not time"
    assert measured(by_time) == pytest.approx(joules_of(by_time) / dense)
    plan = lt.plan(network, images, target_energy=0.3, profile=found, measured=measured)
    assert joules_of(cut(network, plan)) == pytest.approx(0.3 * dense, rel=0.06)
    with pytest.raises(InvalidSetting, match="needs `measured`"):
        lt.plan(network, images, target_energy=0.3, profile=found)


def test_what_cannot_be_reached_is_refused_with_the_fastest() -> None:
    found = steady()
    network, images = lt.build_model("lenet5", in_channels=1).eval(), torch.zeros(2, 1, 32, 32)
    with pytest.raises(InvalidSetting, match=r"cannot be reached.*takes [\d.]+ ms.*times as fast as whole.*max_layer_ratio="):
        lt.plan(network, images, target_time=0.001, profile=found)
    with pytest.raises(InvalidSetting, match="needs a profile"):
        lt.plan(network, images, target_time=0.5)
    with pytest.raises(InvalidSetting, match="leave align out"):
        lt.plan(network, images, target_time=0.5, profile=found, align=8)


def _by_workers(serial: lt.Ticket, digits: lt.Dataset, config: lt.SearchConfig, found: Profile, folder: Path) -> None:
    """Workers plan by the run's profile alone, and find the same; the result alone is timed, by the process that leads."""

    def coordinate(search: Any, *_: object) -> None:
        arms = worker._of_settings(search.folder, None, None, "cpu", False, None, NullListener())
        assert arms.prepared.job.profile == found and arms.prepared.job.measured is None
        Sharing(arms).work()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltcompile.search.search.coordinate", coordinate)
        source = Source("classification", "lenet5", "digits")
        more: dict[str, Any] = {"profile": found, "measured": lambda small: 5.0, "source": source, "jobs": 2}
        result = lt.find("lenet5", digits, config, recipe=QUICK, folder=folder, device="cpu", **more)
    timeless = [[replace(row, seconds=0.0) for row in each.history] for each in (serial, result.ticket)]
    assert timeless[0] == timeless[1] and result.reached is not None and result.reached.found == 5.0


@pytest.mark.slow
def test_a_search_spends_a_budget_of_time(law: Law, tmp_path: Path) -> None:
    digits = lt.load_data("digits")
    channels, side, _ = digits.description.shape
    named = {"name": "lenet5", "arguments": {"classes": 10, "in_channels": channels, "image_size": side}}
    found = profile(named, TARGET, output=tmp_path / "p.json")
    config = lt.SearchConfig(rounds=2, target_time=0.5, on=str(TARGET), controls=False)
    ticket = lt.find("lenet5", digits, config, recipe=QUICK, folder=tmp_path / "run", profile=found).ticket
    levels = {row.level: row.macs for row in ticket.history if row.arm == "ticket"}
    assert levels[1] > levels[2]
    plan = PruningPlan.load(tmp_path / "run/seed0/plan-2.json")
    small = cut(lt.build_model("lenet5", in_channels=channels, image_size=side), plan)
    assert 0.4 * found.dense_ms < time_of(small) <= 0.52 * found.dense_ms
    _by_workers(ticket, digits, config, found, tmp_path / "jobs")
    with pytest.raises(ProfileMismatch, match="for cpu:onnxruntime:b8:fp32, not for"):
        lt.find("lenet5", digits, replace(config, on="cpu:onnxruntime:b1:fp32"), recipe=QUICK, folder=tmp_path / "x", profile=found)
    for wrong in (
        {"target_time": 0.5},
        {"target_energy": 0.5},
        {"on": str(TARGET)},
        {"target_time": 0.5, "on": str(TARGET), "align": 8},
        {"target_time": 0.5, "target_energy": 0.5, "on": str(TARGET)},
    ):
        with pytest.raises(InvalidSetting):
            lt.SearchConfig(**wrong)


# The command line


@pytest.fixture
def printed_by(law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_profile_and_plan_on_the_command_line(
    printed_by: Callable[..., str], law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = printed_by("profile", "--model", "lenet5", "--batch", 8)
    assert "held back" in shown and "noisy" not in shown
    calls = law.calls
    monkeypatch.setattr(
        "ltcompile.benchmark.profiling.stopwatch", lambda *_: lambda small: time_of(small) / time_of(lt.build_model("lenet5"))
    )
    shown = printed_by("plan", "--model", "lenet5", "--on", TARGET, "--target-speedup", 2)
    assert law.calls == calls, "it was profiled before" and "fewer" in shown
    (kept,) = (tmp_path / "cache/ltcompile/profiles").glob("*.json")
    dense_ms = Profile.load(kept).dense_ms
    printed_by(
        "plan",
        "--model",
        "lenet5",
        "--on",
        TARGET,
        "--target-latency",
        f"{dense_ms / 2}ms",
        "--profile",
        kept,
        "-o",
        tmp_path / "plan.json",
    )
    small = cut(lt.build_model("lenet5"), PruningPlan.load(tmp_path / "plan.json"))
    assert time_of(small) == pytest.approx(dense_ms / 2, rel=0.1)
    value = json.loads(kept.read_text())
    (tmp_path / "edge.json").write_text(json.dumps({**value, "machine": {**value["machine"], "cpu": "an edge"}}))
    assert "planned for an edge" in printed_by(
        "plan", "--model", "lenet5", "--on", TARGET, "--target-speedup", 2, "--profile", tmp_path / "edge.json"
    )


@pytest.mark.slow
def test_a_missed_target_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the clock finds every plan too slow: a warning, or what the caller listens to; the command writes the plan and ends with 4."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network, images = lt.build_model("lenet5").eval(), torch.zeros(2, 3, 32, 32)
    found, _ = profiled("lenet5")
    found.save(tmp_path / "p.json")
    slow: dict[str, Any] = {"target_time": 0.5, "profile": found, "measured": lambda small: 0.6}
    with pytest.warns(Notice, match=r"target: 2 times as fast, missed by 20\.0%: 1\.67 times as fast"):
        lt.plan(network, images, **slow)
    reached: list[Reached] = []
    lt.plan(network, images, **slow, on_target=reached.append)
    assert reached == [Reached("time", 0.5, 0.6)]
    monkeypatch.setattr("ltcompile.benchmark.profiling.stopwatch", lambda *_: slow["measured"])
    words = ["plan", "--model", "lenet5", "--on", str(TARGET), "--target-speedup", "2", "--profile", str(tmp_path / "p.json")]
    for more in ([], ["--json"]):
        done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "plan.json"), *more], catch_exceptions=False)
        assert done.exit_code == 4 and "missed by 20.0%" in done.stderr and PruningPlan.load(tmp_path / "plan.json")
    assert json.loads(done.stdout)["target"]["missed_by"] == pytest.approx(0.2)


def test_a_plan_that_meets_its_target_ranks_before_one_that_misses_it() -> None:
    """Where a noisy profile jumps over the target: first to less than half of the requested time, then to nearly all of it."""
    network, images = lt.build_model("lenet5").eval(), torch.zeros(2, 3, 32, 32)
    (found, _), times = profiled("lenet5"), itertools.chain([0.3], itertools.repeat(0.95))
    tried: list[float] = []

    def measured(small: nn.Module) -> float:
        tried.append(time_of(small))
        return next(times)

    plan = lt.plan(network, images, target_time=0.8, profile=found, measured=measured, on_target=lambda _: None)
    assert time_of(lt.cut(network, plan)) == tried[0]


def test_figures_of_a_plan_are_measured_again() -> None:
    """The measurement that a plan was chosen by is biased in its favour; the one that is reported is another."""
    network, images = lt.build_model("lenet5").eval(), torch.zeros(2, 3, 32, 32)
    (found, _), times = profiled("lenet5"), iter([0.495, 0.56])
    reached: list[Reached] = []
    lt.plan(network, images, target_time=0.5, profile=found, measured=lambda small: next(times), on_target=reached.append)
    assert reached == [Reached("time", 0.5, 0.56)]


def test_energy_that_is_not_counted_is_refused(printed_by: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    with pytest.raises(Unavailable, match="no counters of energy; use --target-latency"):
        printed_by("plan", "--model", "lenet5", "--on", TARGET, "--target-energy", "1mJ")


@pytest.mark.slow
def test_a_target_of_energy_on_the_command_line(printed_by: Callable[..., str], counted: Law, tmp_path: Path) -> None:
    dense = joules_of(lt.build_model("lenet5"))
    printed_by(*("plan", "--model", "lenet5", "--on", TARGET, "--target-energy", f"{1000 * dense / 2}mJ", "-o", tmp_path / "plan.json"))
    assert joules_of(cut(lt.build_model("lenet5"), PruningPlan.load(tmp_path / "plan.json"))) == pytest.approx(dense / 2, rel=0.1)
    for text, says in ((f"{2 * dense}J", "already"), ("5", "with its unit"), ("5ms", "with its unit")):
        with pytest.raises(InvalidSetting, match=says):
            printed_by("plan", "--model", "lenet5", "--on", TARGET, "--target-energy", text)


PUBLISHED = {"digits": (10, 1), "cifar10": (10, 3), "cifar100": (100, 3)}  # classes and colours


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "colours", "side"), [(10, 1, 32), (10, 1, 16), (10, 3, 32), (100, 3, 32), (10, 3, 64), (7, 3, 32), (7, 1, 32), (10, 4, 32)]
)
def test_the_next_command_fits_the_profile(printed_by: Callable[..., str], tmp_path: Path, classes: int, colours: int, side: int) -> None:
    """It searches data of these classes, colours and size, or else plans such a network."""
    path = tmp_path / "a profile.json"
    words = ("--classes", classes, "--in-channels", colours, "--image-size", side)
    said = printed_by("profile", "--model", "lenet5", "--batch", 8, *words, "-o", path)
    _, command, *arguments = shlex.split(said.split("next: ")[1])
    options = get_command(app).commands[command].make_context(command, arguments).params  # type: ignore[attr-defined]
    pixels = parse(options["image_size"]) if options["image_size"] else None
    assert (options["model"], options["on"], options["profile"], options["target_speedup"]) == ("lenet5", str(TARGET), path, 3)
    if command == "find":
        data = options["data"]
        if data == "digits":
            assert lt.load_data(data, image_size=pixels).description.shape == (colours, side, side)
        assert PUBLISHED.get(data, (classes, 3)) == (classes, colours) and (data in PUBLISHED or data.startswith("imagefolder:"))
        assert (pixels or 32) == side
    else:
        assert (options["classes"], options["in_channels"], pixels) == (classes, colours, side)
        assert colours != 3 and (classes, colours) not in PUBLISHED.values()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--target-speedup", 2), "add --on"),
        (("--on", "cpu"), "say how fast"),
        (("--on", "cpu:onnx", "--target-speedup", 2), "no runtime"),
        (("--on", TARGET, "--target-speedup", 2, "--target-latency", "1ms"), "one target"),
        (("--on", TARGET, "--target-latency", "fast"), "with its unit"),
        (("--on", TARGET, "--target-latency", "9s"), "already"),
        (("--on", TARGET, "--target-speedup", 2, "--target-macs", 0.5), "one target"),
        (("--on", TARGET, "--target-latency", "1ms", "--target-energy", "1mJ"), "one target"),
        (("--target-energy", "1mJ"), "add --on"),
    ],
)
def test_bad_targets_are_refused(printed_by: Callable[..., str], options: tuple[object, ...], says: str) -> None:
    with pytest.raises(InvalidSetting, match=says):
        CliRunner().invoke(app, ["plan", "--model", "lenet5", *map(str, options)], catch_exceptions=False)


def test_machines_are_identified_by_what_decides() -> None:
    assert {"cpu", "threads", "onnxruntime-gpu"} <= nouns.machine(TARGET).keys()


class TwoMaps(nn.Module):
    """A network that no name builds, with two outputs."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.boxes, self.classes = nn.Conv2d(width, 4, 1), nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.b(self.a(x).relu()).relu()
        return {"boxes": self.boxes(y), "classes": self.classes(y)}


class Mixed(nn.Module):
    """A signal and whole numbers come in."""

    def __init__(self) -> None:
        super().__init__()
        self.signal, self.words, self.hidden, self.out = nn.Conv1d(2, 64, 3), nn.Embedding(9, 64), nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, signal: torch.Tensor, *, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.out(self.hidden((self.signal(signal).mean(2) + self.words(tokens).mean(1)).relu()).relu())}


def test_networks_of_any_inputs_are_profiled_and_planned_to_a_speedup(law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, example = Mixed(), {"signal": torch.randn(2, 2, 10), "tokens": torch.arange(8).view(2, 4)}
    found = lt.profile(lt.Pruned(network, example), str(TARGET))
    assert found.model["arguments"]["inputs"] == [[2, 10], [4]]
    calls, whole = law.calls, time_of(network)
    reached: list[Reached] = []
    plan = lt.plan(
        network, example, target_speedup=2, on=str(TARGET), measured=lambda small: time_of(small) / whole, on_target=reached.append
    )
    assert law.calls == calls, "it was profiled before"
    assert not reached[0].missed_by and time_of(lt.cut(network, plan)) <= 0.515 * whole
    with pytest.raises(ProfileMismatch, match="is for"):
        lt.plan(network, example, target_speedup=2, on="cpu:onnxruntime:b2:fp32", profile=found)
    bad: dict[str, dict[str, Any]] = {
        "above 1": {"target_speedup": 1.0, "on": "cpu:eager"},
        "needs on=": {"target_speedup": 2},
        "add target_": {"on": "cpu:eager"},
    }
    for says, wrong in bad.items():
        with pytest.raises(InvalidSetting, match=says):
            lt.plan(network, example, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "eager"])
def test_layers_of_a_network_of_two_inputs_are_timed(runtime: str) -> None:
    from ltcompile.benchmark.profiling.work import _work

    given, target = pruned("two inputs"), replace(TARGET, runtime=runtime, batch=2)
    work = _work(given, target, open_timer(target), None)
    timing = work.timer.time(
        work._checked(Variant(work.folded, work._exports.whole if work.timer.reads_onnx else None)), work.inputs, lambda: None
    )
    assert timing.layers_ms.keys() == work.widths.keys() == {"image", "side", "hidden", "out"}


def test_any_network_of_one_input_is_planned_by_time(law: Law, tmp_path: Path) -> None:
    network, example = TwoMaps(), torch.randn(2, 1, 12, 12)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = lt.profile(network, str(TARGET), example, output=tmp_path / "p.json")
    assert found.model["name"] == "TwoMaps" and found.model["arguments"]["inputs"] == [[1, 12, 12]]
    assert lt.profile(TwoMaps(), TARGET, example, output=tmp_path / "p.json") == found, "other weights take the same time"
    plan = lt.plan(network, example, target_time=0.4, profile=found)
    small = lt.cut(network, plan)
    assert sum(law_ms(m) for m in small.modules() if isinstance(m, LAYERS)) <= 0.4 * found.dense_ms * 1.02
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    search = lt.Search(TwoMaps, example, tmp_path / "run", rounds=1, controls=False, target_speedup=2.5, profile=found)
    for arm in search:
        arm.report(0.5)
    assert sum(law_ms(m) for m in search.result().small.modules() if isinstance(m, LAYERS)) <= 0.4 * found.dense_ms * 1.02
    with pytest.raises(ProfileMismatch, match="name TwoMaps, not Sequential"):
        lt.Search(lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 1)), example, tmp_path / "x", target_speedup=2, profile=found)
    with pytest.raises(InvalidSetting, match=r"target_speedup= needs on="):
        lt.Search(TwoMaps, example, tmp_path / "x", target_speedup=2)
    with pytest.raises(InvalidSetting, match=r"target_speedup=1 must be above 1"):
        lt.Search(TwoMaps, example, tmp_path / "x", target_speedup=1, on=str(TARGET))
    with pytest.raises(InvalidSetting, match=r"needs the place that it is measured at: on="):
        lt.Search(TwoMaps, example, tmp_path / "x", target_macs=0.5, on=str(TARGET))
    with pytest.raises(InvalidSetting, match="example= must be inputs"):
        lt.profile(network, TARGET)


@pytest.mark.slow
def test_a_search_in_ones_own_loop_profiles_and_measures_by_itself(law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the documents write it: no profile, no stopwatch. A second start reads the profile of the run, and the same plans follow."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = functools.partial(TwoMaps, 64)
    whole, timed = time_of(build()), list[float]()

    def stopwatch(dense: nn.Module, target: Deployment, example: torch.Tensor) -> Callable[[nn.Module], float]:
        def measured(small: nn.Module) -> float:
            timed.append(time_of(small) / whole)
            return timed[-1]

        return measured

    monkeypatch.setattr("ltcompile.benchmark.profiling.stopwatch", stopwatch)
    example, given = torch.randn(2, 1, 12, 12), {"folder": tmp_path / "run", "metric": "mAP", "rounds": 4, "rewind": "lr"}

    def started() -> lt.Search:
        return lt.Search(build, example, target_speedup=3, on=str(TARGET), **given)

    with pytest.raises(InvalidSetting, match=r"criterion=taylor needs"):
        lt.Search(build, example, target_speedup=3, on=str(TARGET), criterion="taylor", **given)
    assert law.calls == 0, "settings are checked before minutes of profiling"
    arms = []
    for search in (started(), started()):
        calls = law.calls
        for arm in search:
            arms.append(arm.name)
            arm.report(0.5)
            if len(arms) == 3:
                break
    assert len(arms) == len({*arms}) == 1 + 4 + 2 and law.calls == calls > 0, "profiled once"
    result = search.result()
    assert timed and result.reached is not None and not result.reached.missed_by and time_of(result.small) <= whole / 3 * 1.03
    assert lt.shrink(result, tmp_path / "bottles.onnx").path.exists()
    (tmp_path / "ltcompile").rename(tmp_path / "elsewhere")
    started()
    assert law.calls == calls, "the run folder keeps the profile"


@pytest.mark.slow
def test_a_network_of_files_is_planned_by_time_repaired_and_written(
    printed_by: Callable[..., str], law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ltcompile.benchmark.profiling.stopwatch", lambda *_: lambda small: time_of(small) / time_of(lt.build_model("lenet5"))
    )
    torch.manual_seed(0)
    torch.save(lt.build_model("lenet5").state_dict(), tmp_path / "dense.pth")
    safetensors.torch.save_file({"input": torch.randn(24, 3, 32, 32)}, tmp_path / "inputs.safetensors")
    network = ["--model", "lenet5", "--weights", tmp_path / "dense.pth", "--repair", tmp_path / "inputs.safetensors"]
    output = tmp_path / "small.safetensors"
    shown = printed_by("shrink", *network, "--target-speedup", 1.5, "--on", TARGET, "-o", output)
    assert "repaired on 24 inputs without labels" in shown and re.search(r"met: 1\.[5-9]\d* times as fast", shown)
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["macs"] < record["dense_macs"] and record["repair"]["repaired"] < record["repair"]["as_cut"]
    assert record["equality_error"] is not None


def test_a_search_by_a_command_plans_by_a_profile(
    law: Law, printed_by: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example, trained = torch.randn(2, 1, 12, 12), list[nn.Module]()
    lt.profile(TwoMaps(64), TARGET, example, output=tmp_path / "there.profile")

    def run(words: list[str], env: dict[str, str], _: Any) -> int:
        """The script, in this process."""
        for name in ("LTCOMPILE_SEARCH", "LTCOMPILE_ARM"):
            monkeypatch.setenv(name, env[name])
        trained.append(lt.attach(TwoMaps(64)))
        trained[-1].boxes.bias.data.add_(1)  # type: ignore[union-attr, operator]
        lt.report_metric(0.5)
        return 0

    monkeypatch.setattr(command, "call", run)
    words = ("find", "--train", "train", "--margin", 5, "--example", "2x1x12x12", "--rounds", 1, "--no-controls", "--target-speedup", 2.5)
    with pytest.raises(InvalidSetting, match=r"target_speedup=2\.5: plans .* add profile=FILE"):
        printed_by(*words)
    with pytest.raises(InvalidSetting, match="target_latency=1ms: a search by train= takes target_speedup="):
        printed_by(*words[:-2], "--target-latency", "1ms")
    assert not trained
    printed_by(*words, "--profile", tmp_path / "there.profile")
    dense, small = trained
    assert time_of(small) <= 0.4 * time_of(dense) * 1.02
    assert json.loads((tmp_path / "runs/own/own-search.json").read_text())["target"]["measure"] == "time"
