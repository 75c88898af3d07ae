"""`make gpu`: stages have limits and do not depend on each other, results are there as they come, and the fixed image's packages suffice."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import gpu  # noqa: E402
from gpu import LEFT_OUT, LOST, Stage  # noqa: E402

MISSING = ("plotly", "openvino", "xdist", "tensorboard", "pandas", "torch_pruning")  # in the image of the GPU machine


def python(code: str) -> tuple[str, ...]:
    return ("-c", code)


@pytest.mark.slow
def test_stages_do_not_depend_on_each_other_and_a_resumed_run_does_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE_S", 0.5)
    monkeypatch.setattr(gpu, "LEAST_S", 0.1)
    row = json.dumps({"test": "tests/test_x.py::test_a", "outcome": "failed", "why": "ValueError: a | b"})
    writes = f"open(r'{tmp_path}/tests.jsonl', 'a').write({row!r} + '\\n')"
    once = f"import sys, pathlib; p = pathlib.Path(r'{tmp_path}/seen'); n = p.exists(); p.touch(); sys.exit(0 if n else {LOST})"
    planned = [
        Stage("failing", 20, (python(f"{writes}; raise SystemExit(1)"), python("")), (0, 1)),
        Stage("hanging", 2.5, (python("import time\nwhile True:\n try: time.sleep(60)\n except KeyboardInterrupt: pass"),)),
        Stage("losing", 20, (python(once),)),
        Stage("short of time", 20, (python(f"raise SystemExit({LEFT_OUT})"),)),
        Stage("good", 20, (python("print('it says so')"),)),
    ]
    start = time.monotonic()
    assert gpu.run(tmp_path, planned, 60) == 1 and time.monotonic() - start < 30
    stages = json.loads((tmp_path / "stages.json").read_text())
    assert {name: stage["finished"] for name, stage in stages.items()} == {
        "failing": True,
        "hanging": False,
        "losing": True,
        "short of time": False,
        "good": True,
    }
    summary = (tmp_path / "summary.md").read_text()
    assert "- hanging: stopped at its limit" in summary and "- short of time: out of time" in summary
    assert "0 passed, 1 failed" in summary and "`test_x.py::test_a`: ValueError: a | b" in summary
    assert "it says so" in (tmp_path / "good.log").read_text()
    again = [Stage(stage.name, 20, (python(""),)) for stage in planned]
    (tmp_path / "good.log").unlink()
    assert gpu.run(tmp_path, again, 60) == 1, "a test failed"
    assert not (tmp_path / "good.log").exists() and all(s["finished"] for s in json.loads((tmp_path / "stages.json").read_text()).values())


def test_a_run_that_is_ended_ends_its_stage_begins_no_other_and_leaves_a_summary(tmp_path: Path) -> None:
    hangs = f"import os, pathlib, time; pathlib.Path(r'{tmp_path}/pid').write_text(str(os.getpid())); time.sleep(100)"
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(BENCH)!r})
from gpu import Stage, run
sys.exit(run(pathlib.Path({str(tmp_path)!r}), [Stage("hanging", 90, (("-c", {hangs!r}),)), Stage("next", 90, (("-c", ""),))], 200))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 30
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(30) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert "- hanging: stopped, " in (tmp_path / "summary.md").read_text() and not (tmp_path / "next.log").exists()


def test_no_stage_begins_without_time(tmp_path: Path) -> None:
    assert gpu.run(tmp_path, [Stage("late", 100, (python(""),))], 1.0) == 1
    assert "late: out of time before it started" in (tmp_path / "summary.md").read_text()


def test_all_stages_fit_into_eight_minutes_and_name_files_that_exist(tmp_path: Path) -> None:
    planned = gpu.stages(tmp_path, None, False)
    assert (
        gpu.TOTAL_S + gpu.GRACE_S < 480 and planned[0].name == "kernels" and [s.name for s in planned][1:3] == ["conv", "competitors-quick"]
    )
    assert sum(stage.limit_s for stage in planned[:3]) < gpu.TOTAL_S
    files = {part for stage in planned for command in stage.commands for part in command if part.endswith(".py")}
    assert files and all((BENCH.parent / file).exists() for file in files)
    assert len(planned[0].commands) == gpu.SHARDS


@pytest.mark.slow
def test_shares_are_all_tests_once_and_rows_come_as_tests_end(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "import pytest\n@pytest.mark.gpu\n@pytest.mark.parametrize('i', range(5))\ndef test_a(i): assert i != 3, 'three'\ndef test_b(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n")
    command = [sys.executable, *gpu.PYTEST, "--rows=rows.jsonl", "test_x.py"]
    environment = {"PYTHONPATH": str(BENCH), "PATH": "/usr/bin:/bin"}
    for at in range(2):
        subprocess.run([*command, f"--shard={at}/2"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    rows = gpu.lines(tmp_path / "rows.jsonl")
    assert sorted(row["test"] for row in rows) == [f"test_x.py::test_a[{i}]" for i in range(5)]
    assert [(row["test"], row["why"]) for row in rows if row["outcome"] == "failed"] == [("test_x.py::test_a[3]", "AssertionError: three")]
    subprocess.run([*command, "--shard=0/1"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert [row["test"] for row in gpu.lines(tmp_path / "rows.jsonl")[5:]] == ["test_x.py::test_a[3]"], "what passed is not run again"


def test_a_rehearsal_runs_stages_side_by_side_but_those_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages wait for each other; the third must find that the one before it has ended."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "rehearsal.py").write_text(
        "import sys, time, pathlib\n"
        "folder, name, other = pathlib.Path(sys.argv[1]), *sys.argv[2:]\n"
        "(folder / f'{name}.begun').touch()\n"
        "until = time.monotonic() + 30\n"
        "while not (folder / other).exists():\n"
        "    time.sleep(0.02)\n"
        "    if time.monotonic() > until: sys.exit(1)\n"
        "if name == 'competitors-quick': time.sleep(0.2); assert not (folder / 'competitors-rest.begun').exists()\n"
    )
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    waits = {"competitors-quick": "other.begun", "competitors-rest": "competitors-quick.begun", "other": "competitors-quick.begun"}
    planned = [Stage(name, 60, ((str(tmp_path), name, for_),)) for name, for_ in waits.items()]
    assert gpu.run(tmp_path, planned, 90, rehearse=True) == 0


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": ')
    assert gpu.lines(tmp_path / "a.jsonl") == [{"a": 1}] and gpu.lines(tmp_path / "none.jsonl") == []


@pytest.fixture(scope="module")
def as_on_the_image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """What a process does on the fake device, with these packages blocked: it imports the script of the competitors, what it imports and the tests, writes
    a result without a page, and builds its tiny networks. Its folder; network -> classes of its images, error in fp16."""
    folder = tmp_path_factory.mktemp("image")
    code = f"""
import copy, importlib, json, sys
for name in {MISSING}:
    sys.modules[name] = None
sys.path[:0] = {[str(BENCH), *(str(BENCH.parent / "tests" / part) for part in ("", "support", "kernels", "engine", "benchmark"))]!r}
import rehearsal
rehearsal.install()
for name in ("competitors", "gpu", "gpu_conv", "gpu_tests", "ltcompile.benchmark.competitors.entries", "ltcompile.engine.gpu", "test_on_gpu",
             "test_engine_on_gpu", "test_competitors"):
    importlib.import_module(name)
import competitors
from ltcompile.benchmark.competitors import CompetitorsResult, write
write(CompetitorsResult("cuda", "a GPU", "noise"), "competitors.json")
found = {{}}
for network in competitors.networks(None, {{competitors.SMALL, competitors.DENSE, competitors.SMALL_50, competitors.DENSE_50}}, tiny=True):
    expected = network.expected(network.images)
    half = copy.deepcopy(network.module).half()(network.images.half()).float()
    error = (half - expected).abs().max() / expected.abs().max()
    found[network.name] = [len(set(expected.argmax(1).tolist())), float(error)]
json.dump(found, open("networks.json", "w"))
"""
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return folder, json.loads((folder / "networks.json").read_text())


@pytest.mark.slow
def test_the_gpus_path_needs_no_package_that_its_image_lacks(as_on_the_image: tuple[Path, dict[str, list[float]]]) -> None:
    folder, _ = as_on_the_image
    assert (folder / "competitors.json").exists() and (folder / "competitors.md").exists() and not (folder / "layers.html").exists()


@pytest.mark.slow
def test_tiny_networks_of_the_competitors_stay_within_fp16_and_distinguish_images(
    as_on_the_image: tuple[Path, dict[str, list[float]]],
) -> None:
    _, networks = as_on_the_image
    assert len(networks) == 4
    for classes, error in networks.values():
        assert classes >= 4 and error < 3e-3


class FakeGraph:
    def replay(self) -> None: ...


class FakeStream:
    def wait_stream(self, _: FakeStream) -> None: ...


def test_a_recorded_network_lives_as_long_as_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from ltcompile.runtimes import _torch

    fakes = {"Stream": FakeStream, "CUDAGraph": FakeGraph, "current_stream": FakeStream}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: contextlib.nullcontext())
    module = nn.Linear(3, 2)
    weight, images = weakref.ref(module.weight), torch.zeros(1, 3)
    replay, _ = _torch._recorded(module, [images])
    del module
    gc.collect()
    assert weight() is not None
    replay()
    del replay, _
    gc.collect()
    assert weight() is None


@pytest.mark.slow
def test_a_deep_residual_network_stays_within_fp16() -> None:
    """Its answers in fp16 pass the check of the competitors, distinguish images, and fail it where one filter is missing."""
    import competitors
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    images = torch.randn(competitors.LARGE_IMAGES, 3, 32, 32)
    network = competitors.Network(
        "deep", competitors._scattered(ResNet(Bottleneck, [1, 1, 12, 1], num_classes=10, width_per_group=8), images), images
    )
    half, expected, agreed = copy.deepcopy(network.module).half(), network.expected(images), network.agreement("fp16")

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            answer: Tensor = half(images.half()).float()
        return answer

    assert agreed is not None and agreed.refusal(run, len(images)) == ""
    assert len(set(expected.argmax(1).tolist())) >= 4
    half.layer3[6].conv2.weight.data[0] = 0
    assert "a simulation of the rounding" in agreed.refusal(run, len(images))


def test_cases_of_a_gpu_begin_with_quick_competitors() -> None:
    import competitors

    quick = competitors.cases("cuda", (), ["quick"])
    assert [(h.subject, h.batch) for h in quick][:3] == [(competitors.SMALL, 1), (competitors.SMALL, 64), (competitors.SMALL, 1024)]
    assert all(competitors.TUNED not in h.competitors and "engine" in h.competitors for h in competitors.cases("cuda", ()))
    assert all(competitors.TUNED in h.competitors for h in competitors.cases("cuda", (), ["tuned"]))
    keys = [(h.subject, h.batch) for h in competitors.cases("cuda", ())]
    assert len(keys) == len(set(keys)), "a case runs once"
