"""The law that matters most: cutting equals masking, for every network and criterion."""

from __future__ import annotations

import copy
import sys
import types
from dataclasses import asdict

import pytest
import torch
from networks import NETWORKS, shaken
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.plan import Group, PruningPlan
from ltcompile.errors import InvalidModel, InvalidPlan, InvalidSetting, UnknownName
from ltcompile.graph import embed, trace
from ltcompile.models import least_size
from ltcompile.models import names as model_names
from ltcompile.prune import choose, criteria


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    model(images).square().mean().backward()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()}  # as a search gathers them
    model.zero_grad()
    return found


@pytest.mark.parametrize(("scope", "criterion"), [("global", "l1"), ("local", "taylor")])
def test_cutting_equals_masking(network: nn.Module, images: Tensor, criterion: str, scope: str) -> None:
    """tests/prune/test_criteria.py cuts by every criterion."""
    before = copy.deepcopy(network.state_dict())
    plan = lt.plan(network, images, 0.5, scope, criterion, evidence=criteria.Evidence((gradients(network, images),)))  # type: ignore[arg-type]
    small, masked = lt.cut(network, plan), lt.mask(network, plan)
    assert not plan.is_identity
    close(small(images), masked(images))
    close(embed(small, plan, network)(images), masked(images))
    assert lt.size(small, images).macs < lt.size(network, images).macs
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items()), "the input module stays untouched"
    small.train()(images).sum().backward()


def test_registries_are_not_empty() -> None:
    weighing = {"l1", "l2", "linf", "neg_linf", "bn", "fpgm", "lamp"}
    assert set(criteria.names()) == {*weighing, "taylor", "hessian", "activation", "apoz", "energy", "fisher", "reconstruction", "random"}
    assert {"vgg11", "vgg13", "vgg16", "vgg19", "resnet20", "resnet56", "resnet18", "lenet5", "lenet300", "conv2", "conv4", "conv6"} <= set(
        model_names()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pixels"),
    [*((name, least_size(name)) for name in model_names()), *((name, 32) for name in ("conv2", "lenet5", "mlp256", "resnet20", "vgg11"))],
)
def test_every_built_in_model_is_cut_right(name: str, pixels: int) -> None:
    """At its smallest size, and of each family one for larger images."""
    torch.manual_seed(0)
    model, x = shaken(lt.build_model(name, image_size=pixels)), torch.randn(2, 3, pixels, pixels)
    plan = lt.plan(model, x)
    close(lt.cut(model, plan)(x), lt.mask(model, plan)(x))
    ends = {"it produces the network's output", "it reads the network's input"}
    assert plan.frozen and ends.issuperset(plan.frozen.values()), "only the classifier, and norms of the images, are left alone"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_networks_from_torchvision_are_cut_right(name: str) -> None:
    torch.manual_seed(0)
    model, x = shaken(lt.build_model(name, classes=5)), torch.randn(2, 3, 64, 64)
    plan = lt.plan(model, x)
    close(lt.cut(model, plan)(x), lt.mask(model, plan)(x))
    assert list(plan.frozen.values()) == ["it produces the network's output"]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "kind", ["ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid", "Hardtanh"]
)
def test_activations_are_followed(kind: str, inplace: bool) -> None:
    """In every supported version of torch, which tag different operations as pointwise."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), getattr(nn, kind)(inplace=inplace), nn.Conv2d(8, 2, 1))
    assert [g.name for g in trace(model, torch.zeros(1, 3, 4, 4)) if not g.frozen] == ["0"]


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InvalidModel, match=r"pip install 'ltcompile\[timm\]'"):
        lt.build_model("timm:resnet18")
    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["tiny"]  # type: ignore[attr-defined]
    timm.create_model = lambda name, num_classes, in_chans: nn.Linear(in_chans, num_classes)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert lt.build_model("timm:tiny", classes=7, in_channels=2).out_features == 7
    with pytest.raises(UnknownName, match="Did you mean tiny"):
        lt.build_model("timm:tinny")


def test_vgg16_has_its_published_size() -> None:
    counted = lt.size(lt.build_model("vgg16"), torch.zeros(1, 3, 32, 32))
    assert counted.params == 14_724_042
    assert counted.macs == 313_201_664
    quarter = lt.size(lt.build_model("vgg16-quarter"), torch.zeros(1, 3, 32, 32))
    assert 15 < counted.params / quarter.params < 16 and 15 < counted.macs / quarter.macs < 16


def test_views_of_parameters_are_counted_through() -> None:
    class Token(nn.Module):
        """A class token that a layer takes, as CaiT's."""

        def __init__(self) -> None:
            super().__init__()
            self.token, self.head = nn.Parameter(torch.randn(1, 6)), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.token.expand(len(x), -1)) + x.mean()
            return out

    assert asdict(lt.size(Token(), torch.zeros(2, 3, 4, 4))) == {"params": 6 + 28, "macs": 24}


def test_zeroing_the_producers_alone_is_enough_where_zero_stays_zero(images: Tensor) -> None:
    """The masks of the literature zero filters, biases and batch norm's scale and shift, not what consumes them."""
    model = shaken(lt.build_model("resnet20", 4, 3, 16))
    plan = lt.plan(model, images)
    masked = copy.deepcopy(model)
    for group, kept in plan:
        gone = tuple(sorted(set(range(group.width)) - set(kept)))
        for member in group.members:
            layer, rows = masked.get_submodule(member.layer), member.positions(gone)
            for value in (layer.weight, layer.bias) if member.axis != "in" else ():
                if value is not None:
                    value.data[rows] = 0
    close(lt.cut(model, plan)(images), masked(images))


def test_the_remaining_groups_are_those_of_a_new_tracing(network: nn.Module, images: Tensor) -> None:
    """But for the names, which contain positions of the original."""

    def nameless(groups: tuple[Group, ...]) -> set[tuple[object, ...]]:
        ties = {tied: frozenset(g.members for g in groups if g.tied == tied) for tied in {g.tied for g in groups} - {""}}
        return {(g.members, g.frozen, ties.get(g.tied)) for g in groups}

    plan = lt.plan(network, images, scope="local")
    assert nameless(trace(lt.cut(network, plan), images)) == nameless(plan.remaining())


@pytest.mark.slow
def test_cutting_twice_equals_cutting_once(network: nn.Module, images: Tensor) -> None:
    first = lt.plan(network, images, 0.3)
    once = lt.cut(network, first)
    second = lt.plan(once, images, 0.4, "local")
    close(lt.cut(once, second)(images), lt.cut(network, first.then(second))(images))


def test_permuting_channels_changes_nothing(network: nn.Module, images: Tensor) -> None:
    """Groups name every slice that belongs together: reordering the channels of all groups leaves the function alone."""
    from ltcompile.graph.layers import place

    generator = torch.Generator().manual_seed(0)
    permuted = copy.deepcopy(network)
    done: set[tuple[int, int, int]] = set()  # layers may share a tensor
    for group in trace(network, images):
        if group.frozen:
            continue
        order = torch.randperm(group.width, generator=generator).tolist()
        for member in group.members:
            layer = permuted.get_submodule(member.layer)
            target, source = (torch.tensor(member.positions(tuple(o))) for o in (range(group.width), order))
            for name, dim in place(layer, member.axis).tensors:
                value = getattr(layer, name, None)
                if value is not None and (key := (id(value), dim, target.min().item())) not in done:
                    done.add(key)
                    value.data.index_copy_(dim, target, value.data.index_select(dim, source))
    close(permuted(images), network(images))


@pytest.mark.slow
def test_planning_twice_gives_the_same_plan(network: nn.Module, images: Tensor) -> None:
    assert lt.plan(network, images) == lt.plan(network, images)


def test_a_seed_makes_a_random_plan(images: Tensor) -> None:
    first, again, other = (lt.plan(NETWORKS["branches"](), images, criterion="random", seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_plan_of_another_network_is_refused(images: Tensor) -> None:
    plan = lt.plan(NETWORKS["lenet5"](), images)
    with pytest.raises(InvalidPlan, match="does not have"):
        lt.cut(NETWORKS["resnet20"](), plan)
    with pytest.raises(InvalidPlan, match="was it cut before"):
        lt.cut(lt.cut(NETWORKS["lenet5"](), plan), plan)


class TestFrozen:
    """What cannot be cut exactly is left alone, and the reason is reported."""

    @staticmethod
    def reasons(model: nn.Module, images: Tensor) -> dict[str, str]:
        plan = lt.plan(model, images)
        close(lt.cut(model.eval(), plan)(images), lt.mask(model.eval(), plan)(images))
        return plan.frozen

    def test_softmax_over_channels(self, images: Tensor) -> None:
        class Choice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.head(self.b(self.a(x).softmax(1)).mean((2, 3)))
                return out

        frozen = self.reasons(Choice(), images)
        assert "softmax looks at all of them" in frozen["a"] and "b" not in frozen

    def test_sizes_that_stand_in_the_code(self, images: Tensor) -> None:
        class Fixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.c, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 4)

            def forward(self, x: Tensor) -> Tensor:
                halves = self.a(x).view(x.shape[0], 2, 3, 16, 16).sum(2)
                b = self.b(x)
                out: Tensor = self.head(self.c(b[:, :4]).mean((2, 3)) + b[:, 4:].mean((1, 2, 3))[:, None] + halves.mean((1, 2, 3))[:, None])
                return out

        frozen = self.reasons(Fixed(), images)
        assert "fixed in the network's code" in frozen["a"] and "fixed part" in frozen["b"] and "c" not in frozen

    def test_code_that_counts_channels_itself(self, images: Tensor) -> None:
        """Not followed by the tracing, such a number is found by running the network without some of the channels."""

        class Counts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = self.a(x)
                if len(x.transpose(0, 1)) != 6:
                    raise ValueError("six channels are expected")
                out: Tensor = self.head(self.b(x).mean((2, 3)))
                return out

        frozen = self.reasons(Counts(), images)
        assert "does not run with fewer of it: ValueError: six channels" in frozen["a"] and "b" not in frozen

    def test_operations_that_cannot_be_followed(self, images: Tensor) -> None:
        class Unknown(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.head(self.b(torch.matrix_exp(self.a(x))).mean((2, 3)))
                return out

        frozen = self.reasons(Unknown(), images)
        assert "matrix_exp, which cannot be followed" in frozen["a"] and "b" not in frozen

    def test_one_output_channel_is_no_depthwise_convolution(self, images: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 1, 3), nn.Flatten(), nn.LazyLinear(3))
        model(images)
        assert "single channel" in self.reasons(model, images)["2"]

    def test_nothing_to_cut_is_an_error(self, images: Tensor) -> None:
        with pytest.raises(InvalidModel, match=r"nothing in this network can be cut.*output"):
            lt.plan(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), images)

    def test_a_network_that_does_not_run(self) -> None:
        with pytest.raises(InvalidModel, match=r"does not run on an input of shape \(1, 5, 16, 16\): in '0' \(Conv2d\): RuntimeError"):
            lt.plan(NETWORKS["lenet5"](), torch.zeros(1, 5, 16, 16))


class TestChoose:
    """Which channels go."""

    def test_local_takes_the_same_share_of_every_group(self, images: Tensor) -> None:
        plan = lt.plan(NETWORKS["resnet20"](), images, 0.5, "local")
        assert all(after == before - before // 2 for name, (before, after) in plan.widths.items() if name not in plan.frozen)

    def test_global_takes_the_share_of_all_filters(self, images: Tensor) -> None:
        plan = lt.plan(NETWORKS["resnet20"](), images, 0.4)
        free = [g for g in plan.groups if not g.frozen]
        before = sum(g.width * g.filters_per_channel for g in free)
        after = sum(len(plan.kept[g.name]) * g.filters_per_channel for g in free)
        assert 0.38 < 1 - after / before <= 0.4

    def test_the_least_important_go_and_floors_hold(self, images: Tensor) -> None:
        groups = trace(NETWORKS["flattening"](), images)
        scores = {g.name: torch.arange(g.width).double() for g in groups}
        plan = choose(groups, scores, 0.9, "global", floors={g.name: 3 for g in groups})
        assert all(kept == tuple(range(g.width - len(kept), g.width)) and len(kept) >= 3 for g, kept in plan if not g.frozen)

    def test_aligned_widths_are_multiples(self, images: Tensor) -> None:
        plan = lt.plan(NETWORKS["resnet20"](), images, 0.5, align=8)
        assert all(after % 8 == 0 for name, (_, after) in plan.widths.items() if name not in plan.frozen)

    @pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
    def test_ratio_outside_its_range(self, images: Tensor, ratio: float) -> None:
        with pytest.raises(InvalidSetting, match="between 0 and 1"):
            lt.plan(NETWORKS["lenet5"](), images, ratio)

    def test_unknown_names_list_what_there_is(self, images: Tensor) -> None:
        with pytest.raises(UnknownName, match="Did you mean l1"):
            lt.plan(NETWORKS["lenet5"](), images, criterion="l11")
        with pytest.raises(UnknownName, match="vgg16"):
            lt.build_model("vgg17")

    def test_identity_plan_changes_nothing(self, network: nn.Module, images: Tensor) -> None:
        plan = PruningPlan(trace(network, images))
        assert torch.equal(lt.cut(network, plan)(images), network(images))


def test_criteria_score_by_their_formula(images: Tensor) -> None:
    torch.manual_seed(0)
    model = shaken(NETWORKS["resnet20"]())
    groups = {g.name: g for g in trace(model, images)}
    group = groups["blocks.0.conv1"]
    weight, gamma = model.get_submodule(group.name).weight.flatten(1), model.get_submodule("blocks.0.bn1").weight
    grads = gradients(model, images)
    expected = {
        "l1": weight.abs().sum(1),
        "l2": weight.norm(dim=1),
        "linf": weight.abs().amax(1),
        "bn": gamma.abs(),
        "taylor": (weight * grads[f"{group.name}.weight"].flatten(1)).sum(1).square(),
    }
    for name, value in expected.items():
        found = criteria.score(name, (group,), model, criteria.Evidence((grads,)), "producers")[group.name]
        torch.testing.assert_close(found / found.sum(), (value / value.sum()).double(), rtol=1e-4, atol=1e-9, msg=name)
