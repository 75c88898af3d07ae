"""Laws of surgery that no single network proves: random graphs, norms that mix channels, several inputs, networks from elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Auxiliary, Heads, Vision, conv, shaken, shared_layer
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.core.plan import Group, PruningPlan
from ltcompile.graph import embed, trace
from ltcompile.graph.attention import Attention
from ltcompile.lower import export_onnx, fold_batch_norm, run_onnx


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def random_plan(groups: tuple[Group, ...], seed: int) -> PruningPlan:
    """Any share of every group, the same for those that are tied; two channels at least, for a last group makes a convolution plain."""
    rng = torch.Generator().manual_seed(seed)
    shares: dict[str, float] = {}
    kept = {}
    for group in groups:
        if group.frozen:
            continue
        steps = math.gcd(*(g.width for g in groups if g.tied == group.tied)) if group.tied else group.width
        share = shares.setdefault(group.tied or group.name, float(torch.rand((), generator=rng)))
        count = group.width // steps * max(min(2, steps), round(share * steps))
        kept[group.name] = tuple(sorted(torch.randperm(group.width, generator=rng)[:count].tolist()))
    return PruningPlan(groups, kept)


class Graph(nn.Module):
    """A random graph: each step reads earlier values, and makes a new one."""

    def __init__(self, steps: list[tuple[str, int, int, int]]) -> None:
        super().__init__()
        self.steps, self.layers, widths = [], nn.ModuleDict(), [3]
        for i, (kind, first, second, width) in enumerate(steps):
            a, b = first % len(widths), second % len(widths)
            made = self._layers(kind, widths[a], widths[b], width)
            self.layers[str(i)] = made
            # A network decides by its definition, not by the width it happens to have.
            self.steps.append(("swap" if kind == "halves" and widths[a] % 2 else kind, a, b))
            widths.append(_width(kind, widths[a], widths[b], width))
        self.head = nn.Linear(sum(widths[-2:]), 4)

    @staticmethod
    def _layers(kind: str, a: int, b: int, width: int) -> nn.ModuleList:
        made: list[nn.Module] = {
            "conv": [conv(a, width, 3)],
            "strided": [conv(a, width)],
            "bn": [nn.BatchNorm2d(a)],
            "depthwise": [conv(a, a, 3, groups=a)],
            "grouped": [conv(a, 2 * width, groups=math.gcd(a, 2 * width))],
            "group_norm": [nn.GroupNorm(max(d for d in (1, 2, 3) if a % d == 0), a)],
            "add": [conv(a, width), conv(b, width)],
            "gate": [nn.Linear(a, width), nn.Linear(width, a)],
            "prelu": [nn.PReLU(a)],
        }.get(kind, [])
        return nn.ModuleList(made)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for i, (kind, a, b) in enumerate(self.steps):
            values.append(self._step(kind, values[a], values[b], list(self.layers[str(i)])))
        out: Tensor = self.head(torch.cat([v.mean((2, 3)) for v in values[-2:]], 1))
        return out

    @staticmethod
    def _step(kind: str, x: Tensor, y: Tensor, layers: list[nn.Module]) -> Tensor:
        if kind == "cat":
            return torch.cat([x, y], 1)
        if kind == "add":
            return layers[0](x) + layers[1](y)
        if kind == "gate":
            return x * layers[1](F.relu(layers[0](x.mean((2, 3))))).sigmoid()[:, :, None, None]
        if kind == "halves":
            left, right = x.chunk(2, 1)
            return torch.cat([right.tanh(), left], 1)
        if kind == "swap":
            return torch.cat([x.tanh(), x], 1)
        if kind == "sigmoid":
            return x.sigmoid()
        made: Tensor = layers[0](x)
        return made.relu() if kind in ("conv", "grouped") else made


def _width(kind: str, a: int, b: int, width: int) -> int:
    same = {"cat": a + b, "grouped": 2 * width, "halves": a if a % 2 == 0 else 2 * a}
    return same.get(kind, width if kind in ("conv", "strided", "add") else a)


KINDS = ("conv", "strided", "bn", "depthwise", "grouped", "group_norm", "add", "gate", "prelu", "cat", "halves", "sigmoid")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 20), st.integers(0, 20), st.integers(2, 9)), min_size=2, max_size=9)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.integers(0, 10_000))
@pytest.mark.slow
def test_random_graphs(steps: list[tuple[str, int, int, int]], seed: int) -> None:
    """Cutting equals masking; what is left is what a new tracing finds; two cuts are one."""
    torch.manual_seed(seed)
    model = shaken(Graph([("conv", 0, 0, 6), *steps, ("conv", len(steps) + 1, 0, 5)]), seed)
    images = torch.randn(3, 3, 8, 8)
    plan = random_plan(trace(model, images), seed)
    once = lt.cut(model, plan)
    close(once(images), lt.mask(model, plan)(images))
    assert {g.members for g in trace(once, images) if g.width > 1} == {g.members for g in plan.remaining() if g.width > 1}
    if any(len(k) > 1 for g, k in plan if not g.frozen):
        again = random_plan(plan.remaining(), seed + 1)
        close(lt.cut(once, again)(images), lt.cut(model, plan.then(again))(images))
        close(embed(lt.cut(once, again), plan.then(again), model)(images), lt.cut(once, again)(images))


class TestStatistics:
    """Norms that mix channels, against references written out by hand."""

    @staticmethod
    def parts(norm: nn.Module) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 4)), torch.randn(2, 3, 4, 4)

    @pytest.mark.parametrize("groups", [1, 2])
    def test_group_norm(self, groups: int) -> None:
        model, x = self.parts(nn.GroupNorm(groups, 8))
        with torch.no_grad():
            model[1].weight.uniform_(0.5, 1.5), model[1].bias.normal_()
        (group,) = (g for g in trace(model, x) if g.name == "0")
        plan = PruningPlan(trace(model, x), {"0": tuple(range(1, group.width))})
        lost = group.members[0].positions((0,))
        kept = [c for c in range(8) if c not in lost]
        values = model[0](x)[:, kept].unflatten(1, (groups if groups == 1 else 1, -1))  # (N, groups left, C, H, W)
        normal = (values - values.mean((2, 3, 4), keepdim=True)) / (values.var((2, 3, 4), correction=0, keepdim=True) + 1e-5).sqrt()
        scaled = normal.flatten(1, 2) * model[1].weight[kept].view(-1, 1, 1) + model[1].bias[kept].view(-1, 1, 1)
        expected = model[4](model[3](F.conv2d(scaled, model[2].weight[:, kept], model[2].bias)))
        close(lt.cut(model, plan)(x), expected)
        close(lt.mask(model, plan)(x), expected)

    @pytest.mark.parametrize("rms", [False, True])
    def test_layer_norm(self, rms: bool) -> None:
        torch.manual_seed(0)
        norm = nn.RMSNorm(8, eps=1e-5) if rms else nn.LayerNorm(8)
        model, x = nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 4)), torch.randn(3, 5)
        plan = PruningPlan(trace(model, x), {"0": (0, 2, 3, 7)})
        values = model[0](x)[:, [0, 2, 3, 7]]
        centred = values if rms else values - values.mean(1, keepdim=True)
        expected = F.linear(
            centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt(), model[2].weight[:, [0, 2, 3, 7]], model[2].bias
        )
        close(lt.cut(model, plan)(x), expected)
        close(lt.mask(model, plan)(x), expected)


class TwoInputs(nn.Module):
    """Two images in, a class and a map out, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.body = conv(3, 6), conv(1, 6), conv(6, 10, 3)
        self.classes, self.map = nn.Linear(10, 4), conv(10, 2)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.body(self.a(image) + self.b(depth)))
        return {"classes": self.classes(x.mean((2, 3))), "map": self.map(x)}


def test_several_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    model, inputs = TwoInputs().eval(), (torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8))
    plan = lt.plan(model, inputs)
    small, masked = lt.cut(model, plan)(*inputs), lt.mask(model, plan)(*inputs)
    assert not plan.is_identity and {"classes", "map"} == set(plan.frozen)
    close(small["classes"], masked["classes"])
    close(small["map"], masked["map"])
    assert lt.size(lt.cut(model, plan), inputs).macs < lt.size(model, inputs).macs


class TestAttention:
    def test_heads_go_whole_and_attributes_follow(self) -> None:
        model, x = Vision(), torch.randn(2, 3, 16, 16)
        plan = lt.plan(model, x, 0.5, "local")
        small = lt.cut(model, plan)
        assert isinstance(small.attention, Attention) and small.attention.num_heads == 2 and small.attention.head_dim == 6
        assert small.hidden == 12 and small.state_dict().keys() == model.state_dict().keys()
        assert type(model.attention) is nn.MultiheadAttention, "the input module stays untouched"

    def test_width_and_heads_keep_their_ratio(self) -> None:
        model, x = Heads(), torch.randn(2, 3, 16, 16)
        small = lt.cut(model, lt.plan(model, x, 0.5, "local"))
        assert small.num_heads == 2 and small.stem.out_channels == 12 and small.bias.shape == (2, 64, 64)

    @pytest.mark.parametrize("weights", [False, True])
    @pytest.mark.parametrize("batch_first", [False, True])
    def test_it_computes_what_torch_does(self, batch_first: bool, weights: bool) -> None:
        torch.manual_seed(0)
        whole = nn.MultiheadAttention(12, 3, batch_first=batch_first)
        query, memory = (torch.randn((2, n, 12) if batch_first else (n, 2, 12)) for n in (5, 7))
        attended = torch.rand(5, 7) < 0.3
        padded = torch.zeros(2, 7, dtype=torch.bool)
        padded[1, 5:] = True
        expected = whole(query, memory, memory, key_padding_mask=padded, need_weights=weights, attn_mask=attended)
        drop_in = Attention(whole)
        for attention in (drop_in, torch.jit.script(drop_in)):
            found = attention(query, memory, memory, key_padding_mask=padded, need_weights=weights, attn_mask=attended)
            close(found[0], expected[0])
            assert (found[1] is None) == (expected[1] is None)
            if weights:
                close(found[1], expected[1])

    def test_torchs_transformer_layers_still_script_when_they_are_cut(self) -> None:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        model, x = nn.Sequential(nn.Linear(5, 8), layer, nn.Flatten(), nn.Linear(24, 3)).eval(), torch.randn(2, 3, 5)
        small = lt.cut(model, lt.plan(model, x, 0.5, "local"))
        attention = small[1].self_attn
        assert isinstance(attention, Attention) and attention.embed_dim == 4
        close(torch.jit.script(small)(x), small(x))


def test_shared_weights_stay_shared() -> None:
    torch.manual_seed(0)
    model, x = shared_layer(), torch.randn(2, 3, 16, 16)
    small = lt.cut(model, lt.plan(model, x))
    assert small.a.weight is small.b.weight and small.a.weight.shape[0] == small.twice.out_channels < 8


SAMPLE = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vit_b_32"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_networks_from_torchvision(name: str) -> None:
    """One of each family that no other test has; bench/coverage.py runs all, to ONNX. Every group but the classifier's can be cut."""
    torch.manual_seed(0)
    side = 224 if name == "vit_b_32" else 96
    model, x = shaken(lt.build_model(f"torchvision:{name}", classes=4)), torch.randn(1, 3, side, side)
    for head in (m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 4):
        nn.init.normal_(head.weight)  # some begin at zero
    plan = random_plan(trace(model, x), 0)
    assert all("output" in r or "single channel" in r for r in plan.frozen.values())
    with torch.inference_mode():
        made, expected = lt.cut(model, plan)(x), lt.mask(model, plan)(x)
    assert float((made - expected).abs().max() / expected.abs().max()) < 1e-5


def _axis(layer: nn.Module, handler: str) -> str:
    """Torch-Pruning's word for it in ours."""
    if isinstance(layer, nn.BatchNorm2d) or getattr(layer, "groups", 1) > 1:
        return "each"
    return "in" if "prune_in" in handler else "out"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg16", "resnet20", "torchvision:mobilenet_v2", "torchvision:densenet121", "torchvision:efficientnet_b0"]
)
def test_groups_are_those_of_torch_pruning(name: str) -> None:
    """An independent oracle, where it can trace the network."""
    import torch_pruning

    model, x = lt.build_model(name, classes=4).eval(), torch.randn(1, 3, 64, 64)
    names = {module: path for path, module in model.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    theirs = set()
    for group in graph.get_all_groups(root_module_types=(nn.Conv2d, nn.Linear)):
        members = {(d.target.module, d.handler.__name__) for d, _ in group if d.target.module in names}
        theirs.add(frozenset((names[layer], _axis(layer, handler)) for layer, handler in members))
    assert {frozenset((m.layer, m.axis) for m in g.members) for g in trace(model, x)} == theirs


FAMILIES = [
    *("timm:test_vit", "timm:test_maxvit", "timm:cait_xxs24_224", "timm:crossvit_tiny_240", "timm:efficientvit_b0", "timm:fastvit_t8"),
    *("timm:ghostnet_050", "timm:levit_128s", "timm:mixnet_s", "timm:mobilevit_xxs", "timm:pvt_v2_b0", "timm:repvit_m1", "timm:starnet_s1"),
]


@pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice")
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_from_timm(name: str) -> None:
    """A quick sample of bench/coverage.py's families."""
    torch.manual_seed(0)
    model = shaken(lt.build_model(name, classes=4))
    x = torch.randn(1, *model.default_cfg["input_size"])
    plan = random_plan(trace(model, x), 0)
    assert sum(map(bool, plan.frozen.values())) < len(plan.groups) / 2
    with torch.inference_mode():
        made, expected = lt.cut(model, plan)(x), lt.mask(model, plan)(x)
    assert float((made - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("network", [Vision, Heads, Auxiliary])
def test_files_of_networks_with_attention_or_a_second_head(network: type[nn.Module], tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(3, 3, 16, 16)
    small, _ = fold_batch_norm(lt.cut(model, lt.plan(model, x)), x)
    export_onnx(small, x, tmp_path / "small.onnx")
    close(run_onnx(tmp_path / "small.onnx", x), small(x), 1e-4)
