"""How trainings are computed: every one as the run's record says, compiled or not, in one process or in several."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from searches import QUICK, Stop, StopAfter
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.notice import Notice
from ltcompile.data import Dataset
from ltcompile.errors import InvalidFile, InvalidSetting, TrainingFailed
from ltcompile.tasks import Classification
from ltcompile.training import Execution, choose_execution, multiplies_bf16, train

CPU = torch.device("cpu")
COMPILED: list[int] = []  # the parameters of every graph that a backend here was handed


def louder(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    """A backend that counts, and whose answers are 1 % larger than those of a network that is not compiled."""
    COMPILED.append(len(list(graph.parameters())))
    return lambda *inputs: [1.01 * value for value in graph.forward(*inputs)]


def failing(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    raise RuntimeError("no compiler here")


def slow(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    """A backend that takes longer than most of a training that ends after a thousand steps of 10 ms."""
    time.sleep(1.0)
    return graph.forward


def dragging(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    """A backend whose code is slower than what it was made of."""

    def run(*inputs: Any) -> Any:
        time.sleep(0.03)
        return graph.forward(*inputs)

    return run


@pytest.fixture(scope="module", autouse=True)
def backends() -> Iterator[None]:
    known = torch._dynamo.list_backends(exclude_tags=())  # this may run twice in a process, for the classes and for the rest
    for backend in (louder, failing, slow, dragging):
        if backend.__name__ not in known:
            torch._dynamo.register_backend(backend, name=backend.__name__)
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return lt.load_data("digits", image_size=8)


@pytest.mark.slow
def test_every_training_of_a_process_is_compiled(digits: Dataset) -> None:
    recipe = dataclasses.replace(QUICK, epochs=1, batch=256, compile="louder")
    for done in range(10):
        COMPILED.clear()
        train(lt.build_model("lenet300", 10, 1, 8), Classification(digits), recipe, done, CPU)
        assert len(COMPILED) == 1


@pytest.mark.slow
def test_a_resumed_search_equals_one_that_never_stopped(tmp_path: Path, digits: Dataset) -> None:
    """Eleven trainings in all. One that was not compiled would learn from answers that are 1 % smaller."""
    config = lt.SearchConfig(rounds=4, rate=0.2, controls=False)
    recipe = dataclasses.replace(QUICK, batch=256, compile="louder")
    COMPILED.clear()
    whole = lt.find("lenet300", digits, config, recipe=recipe, folder=tmp_path / "whole")
    with pytest.raises(Stop):
        lt.find("lenet300", digits, config, recipe=recipe, folder=tmp_path / "cut", listener=StopAfter(5))
    resumed = lt.find("lenet300", digits, config, recipe=recipe, folder=tmp_path / "cut", resume=True)
    assert len(COMPILED) == 5 + 3 + 3
    timeless = [[dataclasses.replace(r, seconds=0) for r in f.rows] for f in (whole, resumed)]
    assert timeless[0] == timeless[1]
    assert all(torch.equal(v, resumed.ticket.weights[k]) for k, v in whole.ticket.weights.items())
    reported = json.loads((tmp_path / "cut" / "execution.json").read_text())
    assert reported["backend"] == "louder" and json.loads((tmp_path / "cut" / "search.json").read_text())["execution"] == reported


def test_a_run_keeps_the_execution_that_it_began_with(tmp_path: Path, digits: Dataset) -> None:
    config, recipe = lt.SearchConfig(rounds=1, rate=0.2, controls=False), dataclasses.replace(QUICK, batch=256, precision="auto")
    with pytest.raises(Stop):
        lt.find("lenet300", digits, config, recipe=recipe, folder=tmp_path, listener=StopAfter(2))
    began = json.loads((tmp_path / "execution.json").read_text())
    assert (began["precision"], began["backend"]) == ("fp32", "") and "not timed" in began["reason"]
    (tmp_path / "execution.json").write_text(json.dumps(began | {"precision": "bf16", "machine": "another machine"}))
    emulated = pytest.warns(Notice, match="began in bf16, and stays so.*another machine")
    with contextlib.nullcontext() if multiplies_bf16(CPU) else emulated:
        lt.find("lenet300", digits, config, recipe=recipe, folder=tmp_path, resume=True)
    assert json.loads((tmp_path / "search.json").read_text())["execution"]["precision"] == "bf16"
    (tmp_path / "execution.json").write_text('{"precision": "int3"}')
    with pytest.raises(InvalidFile, match=r"execution\.json does not fit this run"):
        lt.find("lenet300", digits, config, recipe=recipe, folder=tmp_path, resume=True)


@pytest.mark.parametrize("backend", ["failing", "nosuch"])
def test_a_backend_that_cannot_compile(digits: Dataset, backend: str) -> None:
    recipe = dataclasses.replace(QUICK, epochs=1, compile=backend)
    with pytest.raises(TrainingFailed, match=f"backend '{backend}' cannot compile the network here .*compile=never"):
        train(lt.build_model("lenet300", 10, 1, 8), Classification(digits), recipe, 0, CPU)


@pytest.mark.parametrize("wrong", ["", "rm -rf", 3])
def test_a_backend_is_a_name(wrong: Any) -> None:
    with pytest.raises(InvalidSetting, match="compile="):
        lt.Recipe(compile=wrong)


class Sleepy(nn.Module):
    """It takes `fp32_s`, under autocast `bf16_s`, and compiled no time at all."""

    def __init__(self, fp32_s: float, bf16_s: float) -> None:
        super().__init__()
        self.head, self.fp32_s, self.bf16_s, self.calls = nn.Linear(64, 10), fp32_s, bf16_s, 0

    def __deepcopy__(self, _: object) -> Sleepy:
        return self  # so that calls are counted

    def forward(self, images: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.calls += 1
            time.sleep(self.bf16_s if torch.is_autocast_enabled("cpu") else self.fp32_s)
        out: Tensor = self.head(images.flatten(1))
        return out


LONG = dataclasses.replace(QUICK, epochs=100_000, batch=256, precision="auto", compile="never")


class TestChoice:
    @pytest.mark.parametrize(("fp32_s", "bf16_s", "chosen"), [(0.01, 0.03, "fp32"), (0.03, 0.01, "bf16")])
    def test_the_faster_precision(self, digits: Dataset, fp32_s: float, bf16_s: float, chosen: str) -> None:
        """bfloat16 where it is worth its rounding, and the processor has it."""
        found = choose_execution(Sleepy(fp32_s, bf16_s), Classification(digits), LONG, CPU)
        assert found.precision == (chosen if multiplies_bf16(CPU) else "fp32") and found.backend == ""
        assert found.step_ms["fp32"] >= 1000 * fp32_s and found.machine
        assert not multiplies_bf16(CPU) or found.step_ms["bf16"] >= 1000 * bf16_s
        assert Execution.from_json(json.loads(json.dumps(found.to_json()))) == found

    def test_short_trainings_are_not_tried(self, digits: Dataset) -> None:
        model = Sleepy(0.03, 0.0)
        found = choose_execution(model, Classification(digits), dataclasses.replace(LONG, epochs=10, compile="auto"), CPU)
        assert (found.precision, found.backend) == ("fp32", "") and model.calls <= 3

    def test_what_the_recipe_fixes_is_not_timed(self, digits: Dataset) -> None:
        model = Sleepy(0.03, 0.0)
        found = choose_execution(model, Classification(digits), dataclasses.replace(LONG, precision="bf16", compile="inductor"), CPU)
        assert (found.precision, found.backend, model.calls) == ("bf16", "inductor", 0)

    @pytest.mark.parametrize(
        ("backend", "fp32_s", "epochs", "chosen"),
        [
            ("louder", 0.03, 100_000, "louder"),
            ("louder", 0.03, 1000, ""),  # 90 s: too short for a trial
            ("dragging", 0.01, 100_000, ""),
            ("failing", 0.03, 100_000, ""),
            ("slow", 0.3, 700, "slow"),
        ],
    )
    def test_compiled_where_it_pays(self, digits: Dataset, backend: str, fp32_s: float, epochs: int, chosen: str) -> None:
        recipe = dataclasses.replace(LONG, epochs=epochs, precision="fp32", compile="auto")
        found = choose_execution(Sleepy(fp32_s, fp32_s), Classification(digits), recipe, CPU, backend)
        assert (found.precision, found.backend) == ("fp32", chosen)
        if backend == "failing":
            assert "no compiler here" in found.reason
        if backend == "slow":
            assert found.compile_s is not None and found.compile_s >= 0.9

    def test_the_network_and_the_random_numbers_are_untouched(self, digits: Dataset) -> None:
        model = lt.build_model("lenet300", 10, 1, 8).eval()
        before, rng = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
        choose_execution(model, Classification(digits), LONG, CPU)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not model.training and torch.equal(torch.get_rng_state(), rng) and all(p.grad is None for p in model.parameters())
