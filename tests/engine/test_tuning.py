"""Tuning of layers, and the engine of a GPU in Triton's interpreter, which a process of its own runs: this file, as a script."""

from __future__ import annotations

import functools
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from engine_support import Recorded, pictures, placed, run_twice, small
from networks import shaken
from torch import Tensor, nn

import ltcompile as lt
from ltcompile import kernels
from ltcompile.engine import cudnn, tune
from ltcompile.engine.events import copies
from ltcompile.engine.executable import GRAPH, PERSISTENT, Choice, Executable, specs
from ltcompile.engine.gpu import Graph, cudnn_autotuned, execution_modes
from ltcompile.errors import Disagreement
from ltcompile.kernels import _gemm
from ltcompile.numerics import largest_error
from ltcompile.timing import Fastest


class TestTuning:
    CHOICES = (Choice("triton", kernels.Config(64, 32, 32), {"triton": 1.5, "cudnn": 2.0}), Choice("cudnn", None, {"cudnn": 2.0}))

    def test_the_cache_comes_back_and_a_damaged_one_is_empty(self, tmp_path: Path) -> None:
        path = tmp_path / "tuned.json"
        cache = tune.Cache(path)
        cache.put("H200", "layer", self.CHOICES)
        cache.write()
        assert tune.Cache(path).get("H200", "layer") == self.CHOICES and not tune.Cache(path).get("H100", "layer")
        entries = ('{"by": "me"}', '[{"by": "me"}]', '[{"by": "triton", "config": {"block_m": 3}}]', '{"a": 1}')
        for damaged in ("{", "[]", '{"H200": 3}', *(f'{{"H200": {{"layer": {entry}}}}}' for entry in entries)):
            path.write_text(damaged)
            assert not tune.Cache(path).get("H200", "layer")

    def test_processes_that_tune_at_the_same_time_lose_nothing(self, tmp_path: Path) -> None:
        def write(name: str) -> None:
            for at in range(20):
                cache = tune.Cache(tmp_path / "tuned.json")
                cache.put("H200", f"{name} {at}", self.CHOICES)
                cache.write()

        running = [multiprocessing.get_context("fork").Process(target=write, args=(name,)) for name in "abc"]
        for process in running:
            process.start()
        for process in running:
            process.join()
        assert [process.exitcode for process in running] == [0, 0, 0]
        assert set(json.loads((tmp_path / "tuned.json").read_text())["H200"]) == {f"{name} {at}" for name in "abc" for at in range(20)}

    def test_finalists_are_chosen_inside_the_network(self) -> None:
        """What is fastest alone is replaced by what saves the network's time; equal layers keep one choice; what fails is not chosen."""
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *[nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]).eval()
        program = placed(model, pictures())
        stem, *same = [node.name for node in program.nodes if node.target == "kernel.conv2d"]
        slow, fast, failing = (Choice("triton", kernels.Config(64, 16, 16 << i)) for i in range(3))
        cost = {slow.config: 2.0, fast.config: 1.0}
        seen: list[set[str]] = []

        def in_network_ms(found: Mapping[str, Mapping[str, Choice]]) -> dict[str, float]:
            seen.append(set(found))
            return {k: sum(cost[c.config] for c in choices.values()) for k, choices in found.items() if failing not in choices.values()}

        finalists = {stem: (slow, fast), **dict.fromkeys(same, (slow, failing, fast))}
        assert tune.rerank(program, finalists, in_network_ms) == dict.fromkeys([stem, *same], fast)
        assert seen == [{"0", "1"}, {"0", "1", "2"}]
        cost[fast.config] = 1.999
        assert tune.rerank(program, finalists, in_network_ms) == dict.fromkeys([stem, *same], slow), "the gain is below the noise"

    def test_copies_of_a_layers_memory_are_bounded(self) -> None:
        assert [copies(n) for n in (1, 1 << 27, 1 << 33)] == [32, 8, 2]

    def test_references_are_plain_fp32_and_need_no_search(self) -> None:
        was = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
        try:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
            with tune.exact():
                cudnn = torch.backends.cudnn
                inside = (torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.allow_tf32)
            assert inside == ("highest", False, False) and (torch.get_float32_matmul_precision(), cudnn.benchmark) == ("high", True)
            with cudnn_autotuned():
                assert cudnn.benchmark and not cudnn.allow_tf32
        finally:
            torch.set_float32_matmul_precision(was[0])
            torch.backends.cudnn.benchmark = was[1]

    @pytest.mark.parametrize("harm", ["", "wrong", "refuses"])
    def test_cudnn_is_checked_before_it_is_timed(self, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the interpreter our kernel runs on no CPU: what is left is cuDNN's form of the layer."""
        program = placed(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()).eval(), pictures(1, 2))
        node = next(node for node in program.nodes if node.target == "kernel.conv2d")
        right = cudnn.layer

        def harmed(*given: Any) -> Callable[..., Tensor]:
            if harm == "refuses":
                raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")
            layer = right(*given)
            return lambda x, residual: layer(x, residual) + (0.1 if harm == "wrong" else 0.0)

        monkeypatch.setattr(cudnn, "layer", harmed)
        layer = tune._Layer(node, specs(program), program.constants, torch.device("cpu"))
        timer = lambda work, count, seconds: {name: float(run(count - 1) is not None) for name, run in work.items()}  # noqa: E731
        if harm:
            with pytest.raises(Disagreement, match="no configuration"):
                layer.choose(timer)
        else:
            assert layer.choose(timer) == (Choice("cudnn", None, {"cudnn": 1.0}),)

    def test_a_residual_of_odd_width_is_tuned(self) -> None:
        """Its padding is zero, as in a network: else no answer is right."""

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 1)

            def forward(self, x: Tensor) -> Tensor:
                y = self.a(x)
                return (y + self.b(y)).relu()

        program = placed(Residual().eval(), pictures(1, 2))
        node = next(node for node in program.nodes if node.target == "kernel.conv2d" and len(node.args) > 3 and node.args[3] is not None)
        layer = tune._Layer(node, specs(program), program.constants, torch.device("cpu"))
        timer = lambda work, count, seconds: dict.fromkeys(work, 1.0)  # noqa: E731
        assert layer.choose(timer) == (Choice("cudnn", None, {"cudnn": 1.0}),)

    def test_memory_of_graphs_lives_while_they_are_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ltcompile.engine import gpu as module

        program, alive = placed(small(), pictures(2)), list[weakref.ref[Executable]]()

        def capture(executable: Executable) -> None:
            alive.append(weakref.ref(executable))

        def replays_ms(graphs: Mapping[str, Any], seconds: float) -> dict[str, float]:
            gc.collect()
            assert len(alive) == 2 and all(executable() is not None for executable in alive)
            return dict.fromkeys(graphs, 1.0)

        monkeypatch.setattr(module, "Graph", functools.partial(Graph, capture=capture))
        monkeypatch.setattr(module, "replays_ms", replays_ms)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(module.Gpu, "device", torch.device("cpu"))
        assert module.Gpu("fp32")._in_network_ms(program, {"a": {}, "b": {}}) == {"a": 1.0, "b": 1.0}

    def test_a_persistent_kernel_is_for_small_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
        assert PERSISTENT in execution_modes(placed(model, pictures(64, 2)))[0]
        assert "at most 64 images" in execution_modes(placed(model, pictures(65, 2)))[1][PERSISTENT]

    @pytest.mark.slow
    def test_equal_layers_are_one(self) -> None:
        program = placed(shaken(lt.build_model("resnet20")), pictures(1, 32), "fp16")
        ours = [n for n in program.nodes if n.target.startswith("kernel.")]
        assert (len(ours), len({tune.signature(n, specs(program)) for n in ours})) == (22, 12)


def interpret_all() -> None:
    """Every execution mode, and tuning with a timer of given times; prints what went wrong."""
    from interpreter import interpret_quickly

    interpret_quickly()
    failures: dict[str, str] = {}
    model, images = small(), pictures(2, 4)
    program = placed(model, images, "fp16")
    for mode in (GRAPH, PERSISTENT):
        found = run_twice(Executable(program, torch.device("cpu"), mode=mode), images)
        error = largest_error(found, model(images).detach())
        if not error < 5e-3:
            failures[mode] = str(error)
    failures |= _tune_interpreted() | _gpu_engine_without_a_gpu()
    print(json.dumps(failures))


def _tune_interpreted() -> dict[str, str]:
    program = placed(nn.Sequential(nn.Conv2d(3, 5, 1)).eval(), pictures(1, 2))
    space = lambda arguments: [kernels.Config(64, 16, 16), kernels.Config(64, 16, 32)]  # noqa: E731
    timed = list[dict[str, Any]]()

    def timer(work: Mapping[str, Callable[[int], Any]], count: int, seconds: float) -> dict[str, float]:
        timed.append(dict(work))
        for run in work.values():
            run(count - 1)
        return {name: {"0": 3.0, "1": 1.0, "cudnn": 2.0}[name] for name in work}

    with mock.patch.object(_gemm.Product, "space", space), tempfile.TemporaryDirectory() as folder:
        cache = tune.Cache(Path(folder) / "tuned.json")
        found, again = (tune.tune(program, torch.device("cpu"), "here", cache, timer, lambda message: None) for _ in range(2))
    expected = (Choice("triton", kernels.Config(64, 16, 32), {"cudnn": 2.0, "triton": 1.0}),)
    return {} if list(found.values()) == [expected] and again == found and len(timed) == 2 else {"tune": f"{found} {again} {timed}"}


def fake_fastest(graphs: Mapping[str, Any], seconds: float) -> Fastest:
    first, second = sorted(graphs, key=len)
    times = {name: np.full((10, 2), float(len(name))) for name in (first, second)}
    return Fastest(first, second, times, (2.0, 1.5, 2.5), {name: float(len(name)) for name in graphs})


def _gpu_engine_without_a_gpu() -> dict[str, str]:
    """Everything of the GPU's engine but the GPU: tuned, chosen, saved, loaded, tuned again."""
    from ltcompile.engine import gpu as module

    folder = Path(tempfile.mkdtemp())
    cuda = {"get_device_capability": lambda: (9, 0), "get_device_name": lambda: "none"}
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.object(_gemm, "TRIED", 2),
        mock.patch.multiple(
            module,
            Graph=functools.partial(module.Graph, capture=Recorded),
            cold_us=lambda work, count, seconds: {name: 1.0 + (name == "cudnn") for name in work},
            fastest_replay=fake_fastest,
            replays_ms=lambda graphs, seconds: {name: 1.0 for name in graphs},
        ),
        mock.patch.multiple(
            module.Gpu, device=torch.device("cpu"), __init__=lambda self, precision: setattr(self, "precision", precision or "fp16")
        ),
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder)}),
    ):
        model, images = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 4)).eval(), pictures(2, 4)
        engine = lt.compile(model, images, device="cuda", batch=[2])
        engine.save(folder / "a.engine")
        loaded, again = lt.load_engine(folder / "a.engine"), lt.load_engine(folder / "a.engine", retune=True)
        error = max(largest_error(e(images), model(images).detach()) for e in (engine, loaded, again))
        decision = engine.decisions[2]
        right = decision.by == "graph" and set(decision.ms) == {"graph", "one kernel"} and "dependent graph" in decision.refused
        layers = list(decision.layers.values())
        shown = layers[1].startswith("triton (") and "cudnn 2.0 us" in layers[1] and layers[0] == "PyTorch"
    return {} if right and shown and error < 5e-3 and (folder / "ltcompile/tuned.json").exists() else {"gpu": f"{decision} {error}"}


@pytest.mark.slow
def test_interpreted_kernels_run_whole_networks_in_every_way() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


if __name__ == "__main__":
    interpret_all()
