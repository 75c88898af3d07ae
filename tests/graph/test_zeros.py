"""What a mask zeroes, and where an operation keeps zeros: cutting equals masking, or the channels stay for a true reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.errors import InvalidModel
from ltcompile.graph import trace

Weight = Callable[[nn.Module], Tensor]


class Own(nn.Module):
    """A convolution whose weight (out, in, 3, 3) is computed from parameters."""

    def __init__(self, width: int, out: int, weight: Weight) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(out, width, 3, 3)), nn.Parameter(torch.rand(out, 1, 1, 1) + 0.5)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(self), padding=1)


def network(weight: Weight, act: Callable[[Tensor], Tensor] = torch.sigmoid) -> nn.Module:
    """Two such convolutions in a row; behind sigmoid no masked channel is zero."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Conv2d(3, 8, 1), Own(8, 12, weight), Own(12, 6, weight)
            self.last = nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(act(self.b(act(self.a(act(self.first(x)))))))
            return out

    torch.manual_seed(0)
    return Net().eval().double()


def agree(model: nn.Module, *inputs: Tensor) -> lt.PruningPlan:
    """A plan of half of `model`, whose cut network computes what the masked one does, in float64."""
    plan = lt.plan(model, inputs, 0.5, "local")
    with torch.no_grad():
        made, expected = lt.cut(model, plan)(*inputs), lt.mask(model, plan)(*inputs)
    assert torch.isfinite(expected).all(), "the masked network gives no numbers"
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-9)
    assert torch.isfinite(made).all() and not plan.is_identity
    return plan


DIMS = (1, 2, 3)
BOTH, LAST = {"first", "a.v.0", "b.v.0"}, {"b.v.0"}
# kind -> weight, the groups that are cut behind relu, which keeps zeros, and those behind sigmoid
WEIGHTS: dict[str, tuple[Weight, set[str], set[str]]] = {
    "plain": (lambda s: s.v, BOTH, BOTH),
    "tanh": (lambda s: s.v.tanh() * 2, BOTH, BOTH),
    "softmax over inputs": (lambda s: s.v.softmax(1), LAST, LAST),
    "softmax over outputs": (lambda s: s.v.softmax(0), {"first"}, set()),
    "log_softmax of taps": (lambda s: s.v.flatten(2).log_softmax(2).view(s.v.shape), {"first", *LAST}, LAST),
    "logsumexp": (lambda s: s.v + s.v.logsumexp((2, 3), keepdim=True), {"first", *LAST}, LAST),
    "exp": (lambda s: s.v.exp(), {"first", *LAST}, LAST),
    "plus one": (lambda s: s.v + 1, {"first", *LAST}, LAST),
    "weight norm": (lambda s: s.g * s.v / torch.linalg.vector_norm(s.v, dim=DIMS, keepdim=True), BOTH, BOTH),
    "weight norm by squares": (lambda s: s.g * s.v / s.v.square().sum(DIMS, keepdim=True).sqrt(), BOTH, BOTH),
    "standardisation": (lambda s: (s.v - s.v.mean(DIMS, keepdim=True)) / s.v.std(DIMS, keepdim=True), LAST, LAST),
    "standardisation with eps": (
        lambda s: (s.v - s.v.mean(DIMS, keepdim=True)) * torch.rsqrt(s.v.var(DIMS, keepdim=True) + 1e-5),
        LAST,
        LAST,
    ),
    "quotient": (lambda s: s.v / s.g, BOTH, BOTH),
    "quantiser": (lambda s: (s.v / s.g).round().clamp(-128, 127) * s.g, BOTH, BOTH),
    "logarithm": (lambda s: s.v * s.g.log(), BOTH, BOTH),
    "inverse root": (lambda s: s.v * s.g.rsqrt(), BOTH, BOTH),
}


@pytest.mark.parametrize("act", [torch.relu, torch.sigmoid])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_computed(kind: str, act: Callable[[Tensor], Tensor]) -> None:
    weight, behind_relu, behind_sigmoid = WEIGHTS[kind]
    expected = behind_relu if act is torch.relu else behind_sigmoid
    model, x = network(weight, act), torch.randn(2, 3, 5, 5, dtype=torch.double)
    if not expected:
        with pytest.raises(InvalidModel, match="nothing in this network can be cut"):
            lt.plan(model, x)
        return
    assert cut_groups(agree(model, x)) == expected


def cut_groups(plan: lt.PruningPlan) -> set[str]:
    return {name for name, (before, after) in plan.widths.items() if after < before}


class Chain(nn.Module):
    """Two convolutions with `op` between them, (N, 8, 6, 6) -> (N, 8, ...)."""

    def __init__(self, op: Callable[[Tensor], Tensor], act: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head, self.op, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4), op, act
        self.eval().double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(self.op(self.act(self.a(x)))).mean((2, 3)))
        return out


def _own_norm(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-3).sqrt()


def _written(x: Tensor) -> Tensor:
    """In place, through a view, behind which the channels are zero no longer."""
    x = x.clone()
    x.flatten(2).add_(1.0)
    return x * x.sum(1, keepdim=True)


CHANNELS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {  # what is done over channels -> why they stay; "" where they can go
    "normalize": (F.normalize, ""),
    "sum of squares": (_own_norm, ""),
    "largest magnitude": (lambda x: x / (torch.linalg.vector_norm(x, float("inf"), 1, keepdim=True) + 1), ""),
    "attention over pixels": (lambda x: (x.flatten(2) @ (x.flatten(2).transpose(1, 2) @ x.flatten(2)).softmax(2)).view(x.shape), ""),
    "mean": (lambda x: x - x.mean(1, keepdim=True), "aten.mean looks at all"),
    "largest": (lambda x: x - x.amax(1, keepdim=True), "aten.amax looks at all"),
    "smallest magnitude": (lambda x: x + torch.linalg.vector_norm(x, -1, 1, keepdim=True), "vector_norm looks at all"),
    "softmax": (lambda x: x.softmax(1), "softmax looks at all"),
    "logarithm": (lambda x: x.log().clamp_min(-9), "aten.log of zero is not finite"),
    "quotient": (lambda x: 1 / x, "reciprocal of zero is not finite"),
    "own scale": (lambda x: x / x.sum((2, 3), keepdim=True), "aten.div of zero is not finite"),
    "written through a view": (_written, "aten.sum looks at all"),
    "sum behind sigmoid": (lambda x: x.sigmoid().sum(1, keepdim=True) * x, "aten.sum looks at all"),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_what_looks_at_channels(kind: str) -> None:
    op, reason = CHANNELS[kind]
    model, x = Chain(op), torch.randn(2, 3, 6, 6, dtype=torch.double)
    if kind in ("logarithm", "quotient", "own scale"):
        model.act = F.softplus  # finite in the network itself
    if kind in ("logarithm", "quotient", "own scale") and (plan := agree(model, x)):
        assert "a" not in plan.frozen, "softplus gives no zeros"
        model.act = torch.square
    plan = lt.plan(model, x, 0.5, "local")
    if reason:
        assert reason in plan.frozen["a"]
    else:
        assert cut_groups(agree(model, x)) == {"a", "b"}


def test_buffers_are_not_masked() -> None:
    """A product with a buffer sums over what no mask zeroes."""

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.head = nn.Linear(5, 8), nn.Linear(6, 4)
            self.register_buffer("basis", torch.randn(8, 6))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.a(x).sigmoid() @ self.basis)
            return out

    plan = agree(Projected().eval().double(), torch.randn(2, 5, dtype=torch.double))
    assert "no factor is zero" in plan.frozen["a"] and cut_groups(plan) == {"head.in"}


class OwnNorm(nn.Module):
    """A norm that the network calls by itself, with bare parameters."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.groups, self.shape = kind, 4, (8,)
        self.weight, self.bias = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        if self.kind == "groups":
            return F.group_norm(x, self.groups, self.weight, self.bias)
        if self.kind == "a fixed number of groups":
            return F.group_norm(x, 4, self.weight, self.bias)
        if self.kind == "groups by width":
            return F.group_norm(x, x.shape[1] // 2, self.weight, self.bias)
        if self.kind == "one group":
            return F.group_norm(x, 1, self.weight, self.bias)
        if self.kind == "computed weight":
            return F.layer_norm(last, last.shape[-1:], self.weight + 1).movedim(-1, 1)
        if self.kind == "rms":
            return F.rms_norm(last, self.shape, self.weight).movedim(-1, 1)
        shape = {"layer": self.weight.shape, "layer by attribute": self.shape, "layer by width": last.shape[-1:]}[self.kind]
        return F.layer_norm(last, shape, self.weight, self.bias).movedim(-1, 1)


NORMS = {
    "groups": "",
    "groups by width": "",
    "one group": "",
    "layer": "",
    "layer by attribute": "",
    "layer by width": "",
    "rms": "",
    "a fixed number of groups": "the number of groups of a group norm is fixed",
    "computed weight": "without parameters of its own",
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_that_a_network_calls_by_itself(kind: str) -> None:
    model = Chain(nn.Sequential(OwnNorm(kind), nn.ReLU()))
    plan = agree(model, torch.randn(2, 3, 6, 6, dtype=torch.double))
    assert NORMS[kind] in plan.frozen.get("a", "")
    assert ("a" in plan.frozen) == bool(NORMS[kind])


def test_group_norms_without_weights() -> None:
    model, x = Chain(nn.GroupNorm(4, 8, affine=False)), torch.randn(2, 3, 6, 6, dtype=torch.double)
    small = lt.cut(model, agree(model, x))
    assert (small.op.num_groups, small.op.num_channels, small.a.out_channels) == (2, 4, 4)  # type: ignore[union-attr]
    assert "without parameters" in agree(Chain(nn.GroupNorm(1, 8, affine=False)), x).frozen["a"]


def test_what_a_mask_leaves_alone_is_in_the_file(tmp_path: Path) -> None:
    model, x = network(WEIGHTS["quantiser"][0]), torch.randn(2, 3, 5, 5, dtype=torch.double)
    plan = agree(model, x)
    assert {m.axis for g in plan.groups for m in g.members if not m.masked} == {"g.0"}
    plan.save(tmp_path / "plan.json")
    loaded = lt.PruningPlan.load(tmp_path / "plan.json")
    assert loaded == plan and torch.equal(lt.mask(model, loaded)(x), lt.mask(model, plan)(x))
    assert {g.members for g in trace(lt.cut(model, plan), x)} == {g.members for g in plan.remaining()}
