"""Callers' networks, and what is global in their process, stay as they are: a law over every public function that takes a network."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from split_task import split_task
from torch import Tensor, nn

import ltcompile as lt
from ltcompile import graph, lower
from ltcompile.benchmark import energy, profiling
from ltcompile.core.deployment import Deployment
from ltcompile.engine import host
from ltcompile.graph.factorise import factorise
from ltcompile.graph.widths import layer_widths
from ltcompile.graph.wrappers import attributes_restored, in_eval_mode, unwrap
from ltcompile.lower.lower import lower as lowered
from ltcompile.lower.program import capture
from ltcompile.prune import criteria
from ltcompile.prune.evidence import from_inputs
from ltcompile.search import evidence
from ltcompile.training import choose_execution, memory_format, predictions

pytestmark = pytest.mark.filterwarnings("ignore")
MODULES = (
    "prune.criteria",
    "prune.evidence",
    "search.evidence",
    "graph",
    "graph.factorise",
    "graph.widths",
    "lower",
    "lower.lower",
    "lower.program",
    "search.methods",
)
MODULES += ("graph.wrappers", "training")
EXEMPT = {
    "lt.profile": "takes minutes; tests/benchmark/test_profile.py compares the network's weights",
    "lt.stopwatch": "called below, as `joulemeter` is",
    "lt.load_pruned": "cuts and fills the network that it has built itself",
    "lt.Search": "cuts and fills the networks that its `build` makes",
    "lt.attach": "returns the network itself outside a search, and in one an arm made from a copy of it",
    "attach": "puts a method on a network, in place",
    "bake": "takes it off again, in place",
    "call": "runs a network in the modes that it has",
    "train": "trains a network, in place",
    "to_memory_format": "moves a network, in place",
    "loss_gradients": "works on the copy that `gather` makes",
    "loss_curvature": "works on the copy that `gather` makes",
    **dict.fromkeys(("channel_means", "second_moments", "sensitivities", "responses", "places"), "work on copies that their callers make"),
}


def takes_networks(value: Any) -> bool:
    """Whether the annotation of a parameter, of a function or of a class and its calls, names a torch module, or the type variable for one."""
    functions = [value] if inspect.isfunction(value) else [vars(value).get(name) for name in ("__init__", "__call__")]
    annotations = [
        (name, str(hint)) for function in functions if inspect.isfunction(function) for name, hint in function.__annotations__.items()
    ]
    return any(name != "return" and re.search(r"\bModule\b", hint) for name, hint in annotations)


def public() -> dict[str, Any]:
    """Every function and class of `ltcompile`, and every function of the modules below it for users of networks, that takes one."""
    named = {f"lt.{name}": getattr(lt, name) for name in lt.__all__}
    for home in (importlib.import_module(f"ltcompile.{module}") for module in MODULES):
        own = [name for name, value in vars(home).items() if getattr(value, "__module__", "") == home.__name__ and name[0] != "_"]
        named |= {n: getattr(home, n) for n in getattr(home, "__all__", own) if getattr(home, n) not in named.values()}
    kinds = {name: inspect.isfunction(value) or (inspect.isclass(value) and name.startswith("lt.")) for name, value in named.items()}
    return {name: value for name, value in named.items() if kinds[name] and takes_networks(value)}


class Net(nn.Module):
    """A convolution, a batch norm, dropout and a head, with a hook, a frozen weight and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop(torch.relu(self.norm(self.conv(x))))).mean((2, 3))
        return out


def network() -> Net:
    """In training mode, but for its batch norm."""
    torch.manual_seed(3)
    net = Net().train()
    net.norm.eval()
    net.conv.weight.requires_grad_(False)
    net.last.register_forward_hook(_hook)
    net.last.weight.grad = torch.ones_like(net.last.weight)
    return net


def _hook(*_: Any) -> None: ...


X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


RECIPE = lt.Recipe(epochs=1, batch=3)


class _Split:
    labels = torch.tensor([0, 1, 2, 3, 0, 1])

    def __len__(self) -> int:
        return len(X)

    def batches(self, size: int, *_: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(X.split(size), self.labels.split(size), strict=True)


def _assign_inside(net: nn.Module) -> None:
    with attributes_restored(net):
        net.left = 1  # type: ignore[assignment]
    assert not hasattr(net, "left")


def _enter_and_leave(net: nn.Module) -> None:
    with in_eval_mode(net):
        assert not any(module.training for module in net.modules())


def planned(net: nn.Module) -> lt.PruningPlan:
    return lt.plan(net, X, ratio=0.5)


CALLS: dict[str, Callable[[Any, Path], object]] = {
    "lt.plan": lambda net, _: [lt.plan(net, X, criterion="random"), lt.plan(net, X, target_macs=0.5), lt.plan(net, X, normalize="lamp")],
    "lt.cut": lambda net, _: lt.cut(net, planned(net)),
    "lt.mask": lambda net, _: lt.mask(net, planned(net)),
    "lt.repair": lambda net, _: lt.repair(net, lt.PruningPlan(graph.trace(net, X)), net, [X]),
    "lt.Pruned": lambda net, path: lt.shrink(lt.Pruned(net, X, net, lt.PruningPlan(graph.trace(net, X))), path / "n.onnx", repair=[X]),
    "lt.Regulariser": lambda net, _: lt.Regulariser("growing", net, X).penalty(),
    "lt.Schedule": lambda net, _: lt.Schedule(X, ratio=0.5, first_step=0, last_step=8)(net, None, 0),
    "from_inputs": lambda net, _: from_inputs("reconstruction", net, [X]),
    "lt.embed": lambda net, _: lt.embed(lt.cut(net, planned(net)), planned(net), net),
    "lt.size": lambda net, _: lt.size(net, X),
    "lt.compile": lambda net, _: lt.compile(net, X, batch=(2,))(X),  # by ONNX Runtime alone, see below
    "lt.squeeze": lambda net, _: lt.squeeze(net, X),
    "lt.sensitivity": lambda net, _: lt.sensitivity(net, X, lambda small: float(small(X).sum()), (0.5,)),
    "trace": lambda net, _: graph.trace(net, X),
    "agreeing": lambda net, _: graph.agreeing(net, X, graph.trace(net, X)),
    "disagreements": lambda net, _: graph.disagreements(net, X, planned(net)),
    "dropped_weights": lambda net, _: graph.dropped_weights(net, planned(net)),
    "eliminate_dead_channels": lambda net, _: graph.eliminate_dead_channels(net, graph.trace(net, X), X),
    "on_meta": lambda net, _: graph.on_meta(net),
    "factorise": lambda net, _: factorise(net, X),
    "layer_widths": lambda net, _: layer_widths(net, graph.trace(net, X)),
    "score": lambda net, _: criteria.score("l2", graph.trace(net, X), net, criteria.Evidence()),
    "gather": lambda net, _: [
        evidence.gather(name, net, split_task(_Split()), RECIPE, 0, torch.device("cpu")) for name in criteria.names()
    ],
    "export_onnx": lambda net, path: lower.export_onnx(net, X, path / "net.onnx"),
    "export_program": lambda net, path: lower.export_program(net, X, path / "net.pt2"),
    "fold_batch_norm": lambda net, _: lower.fold_batch_norm(net, X),
    "lower": lambda net, _: lowered(net, X[:2]),
    "capture": lambda net, _: capture(net, X[:2]),
    "choose_execution": lambda net, _: choose_execution(net, split_task(_Split()), RECIPE, torch.device("cpu")),
    "memory_format": lambda net, _: memory_format(net, torch.device("cpu")),
    "unwrap": lambda net, _: unwrap(nn.DataParallel(net)),
    "attributes_restored": lambda net, _: _assign_inside(net),
    "in_eval_mode": lambda net, _: _enter_and_leave(net),
    "evaluate": lambda net, _: split_task(_Split()).evaluate(net, "val", torch.device("cpu")),
    "predictions": lambda net, _: [*predictions(net, _Split().batches(3))],
}


def state(net: nn.Module) -> dict[str, Any]:
    """Everything about a network that a caller could miss."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    return {
        "values": {name: t.detach().cpu().numpy().tobytes() for name, t in tensors},
        "tensors": {name: (id(t), t.data_ptr(), t.device, t.dtype, t.stride(), t.requires_grad) for name, t in tensors},
        "gradients": {name: None if t.grad is None else (id(t.grad), t.grad.numpy().tobytes()) for name, t in tensors},
        "modes": {name: module.training for name, module in net.named_modules()},
        "modules": {name: (id(module), type(module), sorted(vars(module))) for name, module in net.named_modules()},
        "hooks": {
            name: {kind: tuple(map(id, hooks.values())) for kind, hooks in vars(module).items() if kind.endswith("_hooks")}
            for name, module in net.named_modules()
        },
    }


def process() -> dict[str, Any]:
    """What a library call must not change for the rest of the process."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().numpy().tobytes(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "products": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "mkldnn": torch.backends.mkldnn.enabled,
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "logging": logging.root.manager.disable,
    }


def test_the_walk_is_not_empty_and_every_public_function_is_called_below() -> None:
    found = public()
    assert {"lt.plan", "lt.cut", "lt.size", "lt.compile", "export_onnx", "gather"} <= set(found)
    assert not set(found) - set(CALLS) - set(EXEMPT), "call them in CALLS, as the law needs it"


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_networks_and_the_process_stay_as_they_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "candidates", lambda precision, batch=1: ([lt.Deployment("cpu", "onnxruntime", batch, precision, 1)], {}))
    monkeypatch.setattr(host, "SCREEN_S", 0.0)
    monkeypatch.setattr(host, "FINAL_S", 0.0)
    net = network()
    logging.disable(logging.INFO)
    try:
        before, around = state(net), process()
        CALLS[name](net, tmp_path)
        after, behind = state(net), process()
    finally:
        logging.disable(logging.NOTSET)
    for what, value in before.items():
        assert after[what] == value, f"{name} changed the network's {what}"
    for what, value in around.items():
        assert behind[what] == value, f"{name} changed {what} for the process"


@pytest.mark.parametrize("of", ["stopwatch", "joulemeter"])
def test_measuring_leaves_networks_as_they_are(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"name": "lenet5", "arguments": {"classes": 4, "in_channels": 1, "image_size": 16}}
    monkeypatch.setattr(energy, "per_image", lambda *_: 1.0)
    monkeypatch.setattr(energy, "counter", lambda _: lambda: 0.0)
    monkeypatch.setattr("ltcompile.benchmark.profiling.work.STOPWATCH_SECONDS", 0.05)
    around = process()
    made = getattr(profiling, of)(model, Deployment("cpu", "eager", 2, "fp32"))
    measured = made[1] if of == "joulemeter" else made
    net = lt.build_model("lenet5", 4, 1, 16).train()
    net[0].eval()
    torch.set_rng_state(torch.frombuffer(bytearray(around["random"]), dtype=torch.uint8))
    before = state(net)
    measured(net)
    assert state(net) == before and process() == around


class Residual(nn.Module):
    """A branch that may go, random numbers in eval mode too, and a parameter of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.steps = nn.Parameter(torch.tensor([3]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)
        x = self.stem(x).relu()
        out: Tensor = self.head((x + self.branch(x).relu()).mean((2, 3)))
        return out


RANDOM: dict[str, Callable[[nn.Module], object]] = {
    "plan": lambda net: lt.plan(net, X, ratio=0.5),
    "branches": lambda net: lt.plan(net, X, target_macs=0.6, depth=True, inputs=[X]),
    "energy": lambda net: lt.plan(net, X, criterion="energy", inputs=[X]),
    "size": lambda net: lt.size(net, X),
    "squeeze": lambda net: lt.squeeze(net, X),
    "repair": lambda net: lt.repair(net, lt.PruningPlan(graph.trace(net, X)), net, [X]),
    "Pruned": lambda net: lt.Pruned(net, X),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_callers_random_numbers_stay_where_a_network_draws_some(name: str) -> None:
    torch.manual_seed(3)
    net = Residual().train()
    around = process()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    RANDOM[name](net)
    assert process() == around and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
