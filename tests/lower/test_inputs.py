"""What a network may be called with, and networks in states that need care: half precision, hooks, graphs, meta, scripts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import ltcompile as lt
from ltcompile.errors import InvalidModel, InvalidPlan, InvalidSetting
from ltcompile.graph import dropped_weights, embed, trace
from ltcompile.prune import choose


class Net(nn.Module):
    """Reads an image, and what else it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.bn, self.b, self.only_in_training = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), nn.Linear(2, 2)

    def forward(self, image: Any, scale: Any = None, *, more: Any = None, fine: bool = True) -> Tensor:
        x = image if isinstance(image, Tensor) else image["image"][0]
        out: Tensor = self.b(self.bn(self.a(x)).relu() * (1 if scale is None else scale) * (1 if more is None else more[0]))
        return out if fine else out.mean((2, 3))


X = torch.randn(2, 3, 8, 8)
EXAMPLES: dict[str, Any] = {
    "tensor": X,
    "list": [X],
    "with None": (X, None),
    "with a number": (X, 3),
    "with a tensor of no dimension": (X, torch.tensor(2.0)),
    "one image": (X[:1], torch.tensor(2.0)),
    "nested": ({"image": [X]}, 2.0),
    "keywords": {"image": X},
    "nested keywords": {"image": {"image": (X,)}, "more": [torch.rand(2, 1, 1, 1)], "fine": False},
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples(kind: str) -> None:
    model, example = Net().eval(), EXAMPLES[kind]
    plan = lt.plan(model, example, 0.5)
    assert plan.widths["a"] == (8, 4)
    args, kwargs = (
        ((), example) if isinstance(example, dict) else (tuple(example) if isinstance(example, (list, tuple)) else (example,), {})
    )
    small = lt.cut(model, plan)
    torch.testing.assert_close(small(*args, **kwargs), lt.mask(model, plan)(*args, **kwargs), rtol=1e-5, atol=1e-5)
    macs = 8 * 27 * 36 + 4 * 72 * 16
    assert (lt.size(model, example).macs, lt.size(small, example).macs) == (macs, macs // 2)
    assert lt.plan(model, example, target_macs=0.6).widths["a"][1] == 4


@pytest.mark.parametrize(
    ("example", "what"),
    [
        (None, "not NoneType"),
        ((1, 3, 8, 8), r"holds no tensor; .* torch.randn"),
        ("vgg16", "not str"),
        (np.zeros((1, 3, 8, 8)), "torch.from_numpy"),
        ({1: X}, r"by their names; .*\(d,\)"),
        ({}, "holds no tensor"),
        ((), "holds no tensor"),
        (X.sum, "not builtin_function_or_method"),
    ],
)
def test_what_is_no_example(example: Any, what: str) -> None:
    for public in (lt.plan, lt.size, trace):
        with pytest.raises(InvalidSetting, match=what):
            public(Net(), example)


def test_half_precision() -> None:
    for dtype in (torch.half, torch.bfloat16):
        model, x = Net().eval().to(dtype), X.to(dtype)
        plan = lt.plan(model, x)
        small = lt.cut(model, plan)
        assert {p.dtype for p in small.parameters()} == {dtype} and plan.widths["a"] == (8, 4)
        torch.testing.assert_close(small(x), lt.mask(model, plan)(x), rtol=0.05, atol=0.05)
    with pytest.raises(InvalidModel, match="does not run on an input of shape"):
        lt.plan(model, X)


def test_weights_without_values() -> None:
    model = Net().to("meta")
    assert lt.size(model, X).macs > 0 and trace(model, X)
    with pytest.raises(InvalidModel, match="more weights have no values, being on the meta device; load them"):
        lt.plan(model, X)


class Keeps(nn.Module):
    """Keeps tensors of its last forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.kept = Net(), list[Any]()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        self.kept = [{"loss": out.square().mean()}]
        return out


def test_networks_that_hold_a_graph() -> None:
    model = Keeps()
    model(X)
    plan = lt.plan(model, X)
    small = lt.cut(model, plan)
    torch.testing.assert_close(small.eval()(X), lt.mask(model, plan).eval()(X), rtol=1e-5, atol=1e-5)
    assert model.kept[0]["loss"].grad_fn is not None and small.net.a.out_channels == 4


def test_what_cannot_be_copied_is_named() -> None:
    model = Net()
    model.a.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InvalidModel, match=r"attribute 'a.lock' \(lock\); leave it out"):
        lt.plan(model, X)


def _pruned(layer: nn.Module) -> nn.Module:
    prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)  # type: ignore[no-untyped-call]
    return layer


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm by a hook": old_weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm by a hook": old_spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": _pruned,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_torch_computes(kind: str) -> None:
    torch.manual_seed(0)
    made = COMPUTED[kind]
    model = nn.Sequential(nn.Conv1d(8, 12, 3), nn.ReLU(), made(nn.Conv1d(12, 16, 3)), nn.ReLU(), made(nn.Conv1d(16, 8, 1)), nn.Flatten())
    model.append(nn.Linear(8 * 16, 3))
    x = torch.randn(2, 8, 20)
    model(x).sum().backward()
    model.eval()
    before, names, out = {k: v.clone() for k, v in model.state_dict().items()}, [type(m) for m in model.modules()], model(x)
    plan = lt.plan(model, x, 0.5, "local")
    assert {n: w for n, w in plan.widths.items() if n != "6"} == {"0": (12, 6), "2": (16, 8), "4": (8, 4)}
    small, masked = lt.cut(model, plan), lt.mask(model, plan)
    torch.testing.assert_close(small(x), masked(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embed(small, plan, model)(x), masked(x), rtol=1e-5, atol=1e-5)
    assert isinstance(small[2].weight, nn.Parameter) and small[2].weight.shape == (8, 6, 3)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and names == [type(m) for m in model.modules()]
    torch.testing.assert_close(model(x), out)
    torch.testing.assert_close(lt.cut(model, lt.PruningPlan(plan.groups))(x), out)
    if kind == "pruned":
        assert set(plan.kept["2"]) == set(model[2].weight_mask.flatten(1).any(1).nonzero().flatten().tolist())
    with pytest.raises(InvalidPlan, match="is computed by a hook or parametrisation"):
        dropped_weights(model, plan)


@pytest.mark.parametrize(("scores", "what"), [({"0": 16}, "'2' has no scores; give it 8"), ({"0": 5, "2": 8}, r"'0' have shape \(5,\)")])
def test_scores_of_ones_own_are_checked(scores: dict[str, int], what: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    groups = trace(model, torch.randn(1, 3, 12, 12))
    with pytest.raises(InvalidSetting, match=what):
        choose(groups, {name: torch.rand(n) for name, n in scores.items()}, 0.5, "global")
    with pytest.raises(InvalidSetting, match="'2' are not all finite"):
        choose(groups, {"0": torch.rand(16), "2": torch.tensor([1.0, float("nan")] * 4)}, 0.5, "global")
