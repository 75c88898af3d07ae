"""The laws of the benchmark of competitors: all are checked before timed, none stops the others, and claims are numbers that were found."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile import kernels
from ltcompile.benchmark import energy
from ltcompile.benchmark.competitors import (
    ENGINE,
    Case,
    CompetitorsResult,
    Network,
    case_table,
    clock,
    layers,
    markdown,
    peaks,
    picture,
    run,
    write,
)
from ltcompile.benchmark.competitors.competitor import Competitor, Ready
from ltcompile.benchmark.competitors.entries import ON_CPU
from ltcompile.benchmark.competitors.layers import Layer
from ltcompile.benchmark.competitors.peaks import Peaks
from ltcompile.benchmark.competitors.result import Row
from ltcompile.cli import app
from ltcompile.core.records import Trained, Verdict
from ltcompile.engine import host
from ltcompile.engine.executable import Choice, specs
from ltcompile.errors import DeviceLost, InvalidFile, InvalidSetting, Unavailable
from ltcompile.lower import run_onnx
from ltcompile.lower.lower import to_layout
from ltcompile.runtimes import shared

cases_module = importlib.import_module("ltcompile.benchmark.competitors.cases")
judging = importlib.util.spec_from_file_location("judging", Path(__file__).parents[2] / "bench/judging.py")
assert judging is not None and judging.loader is not None
judging.loader.exec_module(checks := importlib.util.module_from_spec(judging))
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CLASSES = 5


def net() -> nn.Module:
    """Odd widths, a pool behind a convolution, a pooled head."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(7, 13, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(13, CLASSES)).eval()


@pytest.fixture(autouse=True)
def nothing_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here compares times."""
    monkeypatch.setattr(clock.Wall, "settle_s", 0.0)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network("small", net(), torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def fake(name: str, precision: str, answer: Callable[[Tensor], Tensor]) -> Competitor:
    """A competitor that changes the network's answers by `answer`."""

    def build(network: Network, images: Tensor) -> Ready:
        placed = images.clone()
        return Ready(lambda: None, lambda: answer(network.expected(placed)), placed.copy_)

    return Competitor(name, precision, "none", build)


def folded(network: Network, images: Tensor) -> Ready:
    """A compiler that took the images for constants."""
    answer = network.expected(images)
    return Ready(lambda: None, lambda: answer, lambda _: None)


def broken(_: Tensor) -> Tensor:
    raise ValueError("\x1b[96mit has no legs\x1b[0m\nand a stack trace")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = (
        fake(ENGINE, "fp32", lambda y: y),
        fake("exact", "fp32", lambda y: y),
        fake("off", "fp32", lambda y: y * 1.01),
        fake("rough", "bf16", lambda y: y.bfloat16().float()),
        fake("turned", "bf16", lambda y: y.roll(1, 1)),
        fake("rougher", "bf16", lambda y: y * 1.05),
        fake("nan", "fp32", lambda y: y * float("nan")),
        fake("shape", "fp32", lambda y: y[:, :2]),
        fake("broken", "fp32", broken),
        Competitor("folded", "fp32", "none", folded),
    )
    monkeypatch.setattr(cases_module, "competitors", lambda _: fakes)
    monkeypatch.setattr(cases_module.peaks, "measure", lambda *_: Peaks("fp32", 1e9, 1e10))


@pytest.mark.slow
@pytest.mark.usefixtures("fakes")
def test_answers_come_before_times_and_none_stops_the_others(network: Network) -> None:
    result = run([network], [Case("small", 20)], seconds=0.01)
    assert {(row.competitor, row.precision) for row in result.rows} == {(ENGINE, "fp32"), ("exact", "fp32"), ("rough", "bf16")}
    assert all(0 < row.ms_p20 <= row.ms_p50 <= row.ms_p80 and row.runs >= 10 for row in result.rows)
    reasons = {refusal.competitor: refusal.reason for refusal in result.refused}
    assert set(reasons) == {"off", "turned", "rougher", "nan", "shape", "broken", "folded"}
    assert "off by 1.0e-02" in reasons["off"] and "change their class" in reasons["turned"]
    assert "from a simulation of the rounding" in reasons["rougher"]
    assert "follow" in reasons["folded"]
    assert reasons["broken"] == "ValueError: it has no legs"


@pytest.mark.slow
def test_a_competitor_that_crashes_while_it_is_timed_stops_no_other(network: Network) -> None:
    """It is timed in a process of its own, as a whole block."""

    def on_progress(message: str) -> None:
        if "timing" in message and "competitors" in message:
            os.kill(shared().processes()["openvino"], signal.SIGABRT)

    case = Case("small", 2, ("eager fp32", "onnxruntime fp32", "openvino fp32"))
    result = run([network], [case], seconds=0.01, on_progress=on_progress)
    assert [row.competitor for row in result.rows] == ["eager", "onnxruntime"]
    (refusal,) = result.refused
    assert refusal.competitor == "openvino" and "SIGABRT" in refusal.reason


@pytest.mark.slow
@pytest.mark.usefixtures("fakes")
def test_cases_run_in_order_until_the_time_is_up_and_go_on_later(network: Network, tmp_path: Path) -> None:
    requested = [Case("small", batch, (ENGINE, "exact fp32")) for batch in (3, 1, 2)]
    seen: list[tuple[str, int]] = []
    cut_off = run([network], requested[:1], seconds=0.01, on_case=lambda _, case: seen.append((case.subject, case.batch)))
    late = run([network], requested, seconds=0.01, until=0.0, result=cut_off)
    assert late.cases() == [("small", 3)] and [r.batch for r in late.refused] == [1, 2] and "time was up" in late.refused[0].reason
    write(late, tmp_path / "competitors.json")
    again = CompetitorsResult.load(tmp_path / "competitors.json")
    assert again.to_json() == late.to_json()
    before = again.case("small", 3)
    run([network], requested, seconds=0.01, result=again, on_case=lambda _, case: seen.append((case.subject, case.batch)))
    assert seen == [("small", 3), ("small", 1), ("small", 2)] and again.case("small", 3) == before
    assert not again.refused, "what was left out has been run"


def failing_later(network: Network, images: Tensor) -> Ready:
    """A competitor whose answers are right, and which fails while it is timed."""
    calls = iter(range(5))
    placed = images.clone()
    return Ready(lambda: next(calls), lambda: network.expected(placed), placed.copy_)


def test_what_fails_while_it_is_measured_ends_nothing_else(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = (fake(ENGINE, "fp32", lambda y: y), Competitor("tired", "fp32", "none", failing_later), fake("exact", "fp32", lambda y: y))
    monkeypatch.setattr(cases_module, "competitors", lambda _: fakes)
    for module, name in ((cases_module.peaks, "measure"), (cases_module.energy, "counter"), (cases_module, "size")):
        monkeypatch.setattr(module, name, lambda *_: 1 / 0)
    seen: list[int] = []
    result = run(
        [network], [Case("small", 2), Case("small", 1)], seconds=0.01, on_result=lambda r: seen.append(len(r.rows) + len(r.refused))
    )
    assert [(row.competitor, row.batch) for row in result.rows] == [(ENGINE, 2), ("exact", 2), (ENGINE, 1), ("exact", 1)]
    refused = [(r.competitor, r.batch) for r in result.refused]
    assert refused == [(what, batch) for batch in (2, 1) for what in ("size", "tired", "energy", "layers")]
    assert seen == sorted(seen) and len(seen) > 8, "everything is seen when it is found"


def test_a_run_without_rows_is_a_result(network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cases_module, "competitors", lambda _: (fake("broken", "fp32", broken),))
    seen: list[Case] = []
    result = run([network], [Case("small", 2)], on_case=lambda _, case: seen.append(case))
    write(result, tmp_path / "competitors.json")
    assert not CompetitorsResult.load(tmp_path / "competitors.json").rows and seen == [Case("small", 2)]


def test_a_lost_gpu_ends_the_process_and_what_lost_it_is_left_out_later(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = (fake("broken", "fp32", broken), fake("exact", "fp32", lambda y: y))
    monkeypatch.setattr(cases_module, "competitors", lambda _: fakes)
    monkeypatch.setattr(cases_module, "gpu_lost", lambda _: True)
    result = CompetitorsResult("cpu", "a CPU", "noise")
    with pytest.raises(DeviceLost, match="broken broke the GPU"):
        run([network], [Case("small", 2)], seconds=0.01, result=result)
    again = run([network], [Case("small", 2)], seconds=0.01, result=result)
    assert [row.competitor for row in again.rows] == ["exact"]
    assert [(r.competitor, r.reason) for r in again.refused] == [("broken", cases_module.LOST + "ValueError: it has no legs")]


@pytest.mark.usefixtures("fakes")
def test_senseless_cases_are_refused(network: Network) -> None:
    for senseless in (Case("large", 1), Case("small", 0), Case("small", 1, ("unknown",))):
        with pytest.raises(InvalidSetting, match="known: "):
            run([network], [senseless])


def test_no_run_without_its_device() -> None:
    with pytest.raises(InvalidSetting, match="tpu"):
        cases_module.competitors("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable):
            cases_module.competitors("cuda")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    for text in ("[]", "{}", '{"kind": "bench", "format": 1}'):
        (tmp_path / "competitors.json").write_text(text)
        with pytest.raises(InvalidFile, match="result of `ltcompile bench --competitors`"):
            CompetitorsResult.load(tmp_path / "competitors.json")


@pytest.mark.slow
def test_all_on_a_cpu_answer_or_say_why_not(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SCREEN_S", 0.01)
    monkeypatch.setattr(host, "FINAL_S", 0.01)
    monkeypatch.setitem(peaks.COPY_BYTES, "cpu", 2**20)
    monkeypatch.setitem(peaks.SIDE, "cpu", 64)
    result = run([network], [Case("small", 2)], seconds=0.05)
    timed = {(row.competitor, row.precision) for row in result.rows}
    assert timed | {(r.competitor, r.precision) for r in result.refused} == {(e.name, e.precision) for e in ON_CPU}
    assert {(ENGINE, "fp32"), ("eager", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")} <= timed
    assert {layer.layer for layer in result.layers} == {"0", "4", "8"} and all(layer.us > 0 for layer in result.layers)
    assert all(row.max_error < 1e-4 for row in result.rows if row.precision == "fp32")


def test_work_is_what_the_formulas_say(network: Network) -> None:
    """2 N K C R S P Q flop, and each value read once and written once; for any batch, and whatever padding adds."""
    found = list(layers.work(network.lowered(1)).values())
    convolution, *_ = found
    assert convolution.flop == 2 * 7 * 3 * 9 * 64 and convolution.constant_bytes == 4 * (7 * 3 * 9 + 7)
    assert convolution.value_bytes == 4 * (3 * 64 + 7 * 16), "the pool after it is part of it"
    assert sum(work.flop for work in found) == 2 * lt.size(net(), network.images).macs
    assert list(layers.work(network.lowered(4), 4).values()) == found
    placed = to_layout(network.lowered(4), network.images[:4], "fp16").program
    ours = layers.work(placed, 4)
    assert {node.name for node in placed.nodes if node.target.startswith("kernel.")} <= set(ours) & set(layers.work(network.lowered(1)))


@pytest.mark.slow
def test_the_file_for_gpus_takes_and_gives_float32(network: Network) -> None:
    images = network.images[:3]
    torch.testing.assert_close(run_onnx(network.half_onnx(), images), network.expected(images), rtol=1e-2, atol=1e-2)


def test_layers_of_a_placed_program_run_by_the_chosen_competitor(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[kernels.Call] = []
    monkeypatch.setattr(kernels, "launch", launched.append)
    program = to_layout(network.lowered(2), network.images[:2], "fp32").program
    choices = {node.name: Choice("cudnn" if "conv" in node.target else "triton") for node in program.nodes if "kernel." in node.target}
    for node in program.nodes:
        layers.call_on(program, node, choices.get(node.name), "cpu", specs(program))()
    assert [one.kernel.__name__ for one in launched] == ["_pooled_head"]


def row(competitor: str, precision: str, batch: int, ms: float, subject: str = "small") -> Row:
    return Row(subject, competitor, precision, batch, ms, ms, ms, 100, 0.0, 1.0, None, 1.0, "")


def layer(floor_us: float, times_us: dict[str, float], what: str = "kernel.conv2d", name: str = "conv") -> Layer:
    return Layer("small", 8, "fp16", name, what, "triton", 2 * floor_us, 10**6, 10**9, floor_us, times_us)


def result() -> CompetitorsResult:
    rows = [
        row(ENGINE, "fp16", 8, 0.02),
        row("eager", "fp16", 8, 0.05),
        row("tensorrt", "fp16", 8, 0.03),
        row("onnxruntime", "int8", 8, 0.001),
    ]
    rows += [row(ENGINE, "fp16", 8, 0.09, "dense"), row("eager", "fp16", 8, 0.08, "dense"), row(ENGINE, "fp32", 1, 0.5)]
    timed = [layer(4.0, {"triton": 2.0, "cudnn": 8.0}), layer(8.0, {"triton": 4.0, "cudnn": 1.0}), layer(1.0, {}, "kernel.linear")]
    sizes = {"small": {"params": 1, "macs": 20}, "dense": {"params": 4, "macs": 100}}
    return CompetitorsResult("cuda", "a GPU", "noise", subjects=sizes, rows=rows, layers=timed)


def test_claims_are_numbers_that_were_found() -> None:
    outcome = result()
    assert checks.over_peer(outcome, "small", 8, "fp16") == pytest.approx(1.5), "int8 is not a peer of fp16"
    assert checks.engine_us(outcome, "small", 8, "fp16") == pytest.approx(20)
    assert checks.over_competitor(outcome, "small", 8, "eager", "fp16") == pytest.approx(2.5)
    assert checks.over_dense(outcome, "small", "dense", 8, "fp16") == pytest.approx(4.5)
    assert checks.of_macs(outcome, "small", "dense", 8, "fp16") == pytest.approx(0.9)
    assert checks.of_roofline(outcome, "small", 8, "fp16") == pytest.approx(13 / 20)
    assert checks.never_behind("claim", outcome, 1.05).found == pytest.approx(9 / 8)
    assert checks.against_cudnn(outcome, ["small"]) == pytest.approx(1.0), "the geometric mean of 4 and 1/4"


@pytest.mark.parametrize(("bound", "behind", "holds"), [(1.2, (0.9, 1.3), True), (1.05, (0.9, 1.3), None), (1.05, (1.08, 1.2), False)])
def test_being_behind_needs_an_interval(bound: float, behind: tuple[float, float], holds: bool | None) -> None:
    outcome = result()
    outcome.rows = [dataclasses.replace(r, behind=behind) if r.competitor == ENGINE else r for r in outcome.rows]
    check = checks.never_behind("never behind", outcome, bound)
    assert check.holds is holds and check.found == pytest.approx(9 / 8)
    outcome.checks = [check]
    assert ("not decidable" in markdown(outcome)) == (holds is None)


def test_what_was_not_measured_is_neither_true_nor_false() -> None:
    outcome = result()
    for found in (
        checks.over_peer(outcome, "small", 1, "fp32"),
        checks.over_peer(outcome, "small", 64, "fp16"),
        checks.of_macs(outcome, "small", "dense", 64, "fp16"),
        checks.of_roofline(outcome, "small", 1, "fp32"),
        checks.against_cudnn(outcome, ["dense"]),
        checks.never_behind("claim", CompetitorsResult("cpu", "a CPU", "noise"), 1.05).found,
    ):
        assert found is None and checks.at_least("claim", found, 1).holds is None and checks.at_most("claim", found, 1).holds is None
    assert checks.at_least("claim", 1.5, 1.5).holds is True and checks.at_most("claim", 1.5, 1.4).holds is False


def test_tables_are_sorted_and_mark_the_engine() -> None:
    outcome = result()
    outcome.checks = [checks.at_least("it is fast", 1.4, 1.5), checks.at_least("it was seen", None, 1)]
    lines = case_table(outcome, "small", 8).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:6]] == ["onnxruntime", "**engine**", "tensorrt", "eager"]
    assert lines[3].startswith("| → ") and lines[-1] == "fp16: engine is 1.50 times as fast as the fastest peer, tensorrt."
    text = markdown(outcome)
    assert "| it is fast | 1.4 | does not hold |" in text and "| it was seen | not measured |" in text
    assert "## Layers of small, batch 8, fp16" in text and "50%" in text


def test_the_picture_needs_nothing_but_a_browser() -> None:
    outcome = result()
    outcome.layers.append(layer(1.0, {}, name="<script>alert(1)</script>"))
    page = picture.page(outcome)
    assert "<script>alert" not in page.split("</script>", 1)[1].split("<h1>")[0] and "&lt;script&gt;alert(1)" in page
    assert 'src="http' not in page and "default-src 'none'" in page and "roofline" in page


def test_joules_are_differences_of_counters_that_wrap_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="no counters"):
        energy._rapl(tmp_path)
    for package, now in (("intel-rapl:0", 900_000), ("intel-rapl:1", 100_000)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "max_energy_range_uj").write_text("999999\n")
        (tmp_path / package / "energy_uj").write_text(f"{now}\n")
    joules = energy._rapl(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("400000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("600000\n")
    assert joules() == pytest.approx(1.0)
    ticks, spent = iter(range(100)), iter([10.0, 16.0])
    monkeypatch.setattr(energy, "SECONDS", 3)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(ticks))
    assert energy.per_image(lambda: next(spent), lambda: None, batch=3) == pytest.approx(1.0), "6 J, two calls of three images"


class FakeEvent:
    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeEvent.now

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


def test_a_clock_of_events_counts_the_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)

    def wait_for_the_launch(cycles: int) -> None:
        FakeEvent.now += 50.0

    monkeypatch.setattr(torch.cuda, "_sleep", wait_for_the_launch)
    events = clock.Events()

    def work() -> None:
        FakeEvent.now += 2.0

    timed = events.timed(work)
    timed()
    FakeEvent.now += 50.0  # between calls
    timed()
    assert events() == pytest.approx(0.004)


def ticket(folder: Path) -> Path:
    """A ticket of an untrained LeNet-5 at half its filters, found on data that is not here."""
    torch.manual_seed(0)
    model, example = lt.build_model("lenet5", classes=CLASSES), torch.randn(2, 3, 32, 32)
    plan = lt.plan(model, example)
    small = lt.cut(model, plan)
    counted = lt.size(small, example)
    trained = Trained(0, "ticket", 1, plan.filters[1], counted.params, counted.macs, 1, 0.0, 0.0, 0.0, 0.0, 0.0, "0", 1)
    names = [str(c) for c in range(CLASSES)]
    lt.Ticket(
        model={"name": "lenet5", "arguments": {"classes": CLASSES, "in_channels": 3, "image_size": 32}},
        plan=plan,
        weights=small.state_dict(),
        initial_seed=0,
        recipe=lt.Recipe(),
        config={},
        history=(trained,),
        verdict=Verdict(None, "none", 0.5, 0.95, {}, [], {}, {}),
        level=1,
        seed=0,
        data={"name": "none", "class_names": names, "shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
    ).save(folder / "ticket.pt")
    return folder / "ticket.pt"


@pytest.mark.slow
@pytest.mark.usefixtures("fakes")
def test_bench_times_both_networks_of_a_ticket(tmp_path: Path) -> None:
    command = ["bench", str(ticket(tmp_path)), "--competitors", "--device", "cpu", "--batch", "2", "--seconds", "0.01"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "small, batch 2" in done.stdout and "times as fast as the fastest peer, exact." in done.stdout
    written = json.loads((tmp_path / "competitors.json").read_text())
    assert written["images"] == "the example, and noise like it" and {r["subject"] for r in written["rows"]} == {"small", "dense"}
    assert written["subjects"]["small"]["macs"] < written["subjects"]["dense"]["macs"]
    assert (tmp_path / "competitors.md").exists() and (tmp_path / "layers.html").exists()
    done = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(done.stdout)["kind"] == "competitors"
    refused = CliRunner().invoke(app, [*command, "--runtime", "eager"])
    assert isinstance(refused.exception, InvalidSetting) and "--competitors" in str(refused.exception)


class TestOnGpu:
    pytestmark = gpu

    def test_all_answer_or_say_why_not(self, network: Network) -> None:
        quick = (ENGINE, "eager", "eager, recorded", "torch.compile", "torch.compile, reduce-overhead", "onnxruntime", "tensorrt")
        result = run([network], [Case("small", 8, quick)], device="cuda", seconds=0.05)
        assert set(quick[:5]) <= {row.competitor for row in result.rows}, result.refused
        assert all(row.ms_p50 > 0 for row in result.rows)
        assert result.layers and all(layer.us > 0 for layer in result.layers), result.refused
        assert sum(layer.flop for layer in result.layers) == 8 * 2 * lt.size(net(), network.images).macs

    def test_those_who_compile_for_a_minute_answer_too(self) -> None:
        tiny = nn.Sequential(nn.Conv2d(3, 13, 3), nn.ReLU(), nn.Flatten(), nn.Linear(13 * 36, CLASSES)).eval()
        slow = ("torch.compile, max-autotune", "torch.compile, max-autotune, recorded", "AOTInductor")
        result = run([Network("tiny", tiny, torch.randn(8, 3, 8, 8))], [Case("tiny", 8, slow)], device="cuda", seconds=0.05)
        assert set(slow) == {row.competitor for row in result.rows}, result.refused

    def test_peaks_are_a_gpus(self) -> None:
        with clock.track("cuda") as events:
            found = peaks.measure("cuda", "fp16", events)
        assert found.bytes_per_s > 1e11 and found.flop_per_s > 1e13
