"""Every criterion against a value worked out by hand or by brute force, on plain and on odd groups."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Iterator
from typing import ClassVar, get_args

import pytest
import torch
from networks import NETWORKS, shaken
from searches import QUICK
from split_task import split_task
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.core.plan import Group, Member
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator, stream
from ltcompile.errors import InvalidData, InvalidModel, InvalidSetting, UnknownName
from ltcompile.graph import trace
from ltcompile.prune import choose, criteria
from ltcompile.prune.criteria import Evidence, Normalisation
from ltcompile.prune.evidence import channel_means, from_inputs
from ltcompile.search.evidence import gather, loss_curvature
from ltcompile.tasks import Classification

CPU = torch.device("cpu")


class Few:
    """A split of so many random images."""

    def __init__(self, count: int = 40, shape: tuple[int, ...] = (3, 16, 16), classes: int = 4) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images, self.labels = torch.randn(count, *shape, generator=generator), torch.arange(count) % classes

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, device: torch.device, recipe: Recipe | None, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(size), self.labels.split(size), strict=True)


def rows(count: int, span: int = 1, start: int = 0) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(start + c * span, start + (c + 1) * span)) for c in range(count))


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data = torch.tensor(weight)
    return layer


def score(name: str, model: nn.Module, group: Group, evidence: Evidence | None = None, reduction: str = "producers") -> Tensor:
    """Raw scores, before the package divides those of criteria that do not compare across groups."""
    criterion = importlib.import_module(f"ltcompile.prune.criteria.{name}")
    found: Tensor = criterion.score(criteria.Channels(group, model, reduction), evidence or Evidence()).detach()  # type: ignore[arg-type]
    assert found.shape == (group.width,)
    return found


def close(found: Tensor, expected: Tensor | list[float], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), rtol=tolerance, atol=tolerance)


PAIR = nn.Sequential(linear([[3.0, -4.0], [0.0, 1.0], [2.0, 2.0]]), nn.BatchNorm1d(3), linear([[1.0, 2.0, -3.0], [0.0, 5.0, 4.0]]))
PAIR[1].weight.data = torch.tensor([0.5, -3.0, 1.0])
GROUP = Group("0", 3, (Member("0", "out", rows(3)), Member("1", "each", rows(3)), Member("2", "in", rows(3))))
# Where the gradient of each weight is 2, and its curvature 10.
KNOWN = {f"{layer}.weight": torch.full_like(PAIR[layer].weight, 2.0) for layer in (0, 1, 2)}
BENT = Evidence(gradients=(KNOWN,), curvature={name: 5 * g for name, g in KNOWN.items()})


class TestFormulas:
    """The filters are (3, -4), (0, 1), (2, 2)."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("l1", [7, 1, 4]),
            ("l2", [5, 1, 8**0.5]),
            ("linf", [4, 1, 2]),
            ("neg_linf", [-4, -1, -2]),
            ("bn", [0.5, 3, 1]),
            ("fpgm", [34**0.5 + 37**0.5, 34**0.5 + 5**0.5, 37**0.5 + 5**0.5]),
            ("lamp", [25 / 25, 1 / (25 + 1 + 8), 8 / (25 + 8)]),
            ("taylor", [(2 * -1) ** 2, (2 * 1) ** 2, (2 * 4) ** 2]),
            ("hessian", [10 / 2 * 25, 10 / 2 * 1, 10 / 2 * 8]),
        ],
    )
    def test_by_hand(self, name: str, expected: list[float]) -> None:
        close(score(name, PAIR, GROUP, BENT), expected)

    @pytest.mark.parametrize(
        ("name", "filters", "scales", "readers"),
        [
            ("l1", [7, 1, 4], [0.5, 3, 1], [1, 7, 7]),
            ("l2", [5, 1, 8**0.5], [0.5, 3, 1], [1, 29**0.5, 5]),
            ("linf", [4, 1, 2], [0.5, 3, 1], [1, 5, 4]),
            ("taylor", [4, 4, 64], [1, 36, 4], [4, 196, 4]),
            ("hessian", [125, 5, 40], [1.25, 45, 5], [5, 145, 125]),
        ],
    )
    def test_all_slices_are_averaged(self, name: str, filters: list[float], scales: list[float], readers: list[float]) -> None:
        expected = torch.tensor([filters, scales, readers], dtype=torch.float64).mean(0)
        close(score(name, PAIR, GROUP, BENT, "all"), expected)

    def test_filters_are_averaged_without_the_scales_of_norms(self) -> None:
        expected = torch.tensor([[5, 1, 8**0.5], [1, 29**0.5, 5]], dtype=torch.float64).mean(0)
        close(score("l2", PAIR, GROUP, BENT, "filters"), expected)

    @pytest.mark.parametrize("name", ["l1", "l2", "fpgm", "taylor", "hessian"])
    def test_by_default_a_criterion_scores_the_slices_that_it_declares(self, name: str) -> None:
        found = {r: criteria.score(name, (GROUP,), PAIR, BENT, r)["0"] for r in get_args(criteria.Reduction)}
        assert [r for r in found if r != "default" and torch.equal(found[r], found["default"])] == [criteria.default_reduction(name)]

    def test_lamp_divides_layer_by_layer(self) -> None:
        filters, scales, readers = [25 / 25, 1 / 34, 8 / 33], [0.25 / 10.25, 9 / 9, 1 / 10], [1 / 55, 29 / 29, 25 / 54]
        close(score("lamp", PAIR, GROUP, BENT, "all"), torch.tensor([filters, scales, readers], dtype=torch.float64).mean(0))

    def test_lamp_of_equals_is_equal(self) -> None:
        group = Group("0", 4, (Member("0", "out", rows(4)),))
        close(score("lamp", nn.Sequential(linear([[1.0], [2.0], [-1.0], [0.0]])), group), [1 / 6, 1, 1 / 6, 0])

    def test_fpgm_in_parts_is_fpgm_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ltcompile.prune.criteria import fpgm

        whole = score("fpgm", PAIR, GROUP)
        monkeypatch.setattr(fpgm, "CHUNK", 2)
        close(score("fpgm", PAIR, GROUP), whole)

    def test_random_is_uniform_and_seeded(self) -> None:
        wide = Group("0", 2000, (Member("0", "out", rows(2000)), Member("1", "out", rows(2000))))
        model = nn.Sequential(nn.Linear(1, 2000), nn.Linear(1, 2000))
        found = score("random", model, wide, reduction="all")
        assert torch.equal(found, score("random", model, wide))
        close(torch.stack([found.min(), found.mean(), found.max(), found.var()]), [0, 1 / 2, 1, 1 / 12], 0.02)

    def test_bn_without_one_is_relative_length(self) -> None:
        close(score("bn", PAIR, Group("0", 3, GROUP.members[:1])), [1, 1 / 5, 8**0.5 / 5])

    def test_criteria_that_do_not_compare_are_divided_by_the_groups_mean(self) -> None:
        for name in criteria.names():
            if not criteria.needs(name) and name != "random":
                raw, found = score(name, PAIR, GROUP), criteria.score(name, (GROUP,), PAIR, Evidence(), "producers")["0"]
                close(found / found.mean(), raw / raw.mean())
                assert name == "lamp" or found.abs().mean() == pytest.approx(1)


class TestSlices:
    """Which values go with a channel."""

    def test_a_block_of_positions_is_one_slice(self) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(5, 12)
        group = Group("0", 3, (Member("0", "out", ((0, 1, 2, 3), (8, 9, 10, 11), (4, 5, 6, 7))),))
        blocks = layer.weight.detach().double().view(3, 20)[[0, 2, 1]]
        gradient = torch.randn(12, 5)
        known = Evidence(gradients=({"0.weight": gradient},), curvature={"0.weight": gradient})
        products = (blocks.float() * gradient.view(3, 20)[[0, 2, 1]]).sum(1)
        expected = {"l1": blocks.abs().sum(1), "l2": blocks.norm(dim=1), "linf": blocks.abs().amax(1), "taylor": products.square() / 4}
        expected |= {"fpgm": torch.stack([(blocks - b).norm(dim=1) for b in blocks]).sum(0)}
        expected |= {"hessian": (blocks.square() * gradient.view(3, 20)[[0, 2, 1]]).sum(1) / 8}  # of four filters each
        for name, value in expected.items():
            close(score(name, nn.Sequential(layer), group, known), value, 1e-5)

    def test_a_channel_behind_a_flatten(self) -> None:
        group = Group("0", 2, (Member("0", "out", rows(2)), Member("1", "in", rows(2, 3))))
        model = nn.Sequential(linear([[1.0], [2.0]]), linear([[1.0, 1, 1, 3, 3, 3], [0.0, 0, 1, 0, 0, 0]]))
        close(score("l1", model, group, reduction="all"), [(1 + 4) / 2, (2 + 9) / 2])
        read = Evidence(activations={("1", "in"): torch.tensor([1.0, 2, 6, 0, 0, 3])})
        close(score("activation", model, group, read), [3, 1])

    @pytest.mark.parametrize("kind", [nn.ConvTranspose2d, nn.Conv2d, nn.Conv1d, nn.ConvTranspose3d])
    def test_the_dimension_of_the_filters_is_the_layers_own(self, kind: type[nn.Module]) -> None:
        layer = kind(3, 4, 2)
        group = Group("0", 4, (Member("0", "out", rows(4)),))
        dim = 1 if "Transpose" in kind.__name__ else 0
        weight = layer.get_parameter("weight").detach().transpose(0, dim).flatten(1)
        close(score("l1", nn.Sequential(layer), group), weight.abs().sum(1))

    def test_biases_and_running_statistics_say_nothing(self) -> None:
        before = score("l1", PAIR, GROUP, reduction="all")
        other = copy.deepcopy(PAIR)
        other[0].bias.data += 7
        other[1].bias.data += 7
        other[1].running_var += 7
        close(score("l1", other, GROUP, reduction="all"), before)

    def test_producers_are_averaged(self) -> None:
        model = nn.Sequential(linear([[1.0], [7.0]]), linear([[3.0, -4.0], [0.0, 1.0]]))
        group = Group("0", 2, (Member("0", "out", rows(2)), Member("1", "out", rows(2))))
        close(score("l2", model, group), [3, 4])
        close(score("lamp", model, group), [(1 / 50 + 1) / 2, (1 + 1 / 26) / 2])

    def test_a_group_without_filters_is_reported_by_its_members(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 3, 2, groups=3, bias=False))
        model[0].weight.data = torch.arange(12.0).view(3, 1, 2, 2)
        group = Group("0", 3, (Member("0", "each", rows(3)),))
        for reduction in ("producers", "all"):
            close(score("l1", model, group, reduction=reduction), [6, 22, 38])
        for name in criteria.names():
            known = {"0.weight": torch.ones(3, 1, 2, 2)}
            assert score(name, model, group, Evidence(gradients=(known,), curvature=known)).isfinite().all()

    def test_bare_parameters_count_and_attributes_do_not(self) -> None:
        class Bare(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Parameter(torch.tensor([[[1.0, -2, 3, 4, 0, -6]]]))
                self.heads = 3

        for model, layer in ((Bare(), ""), (nn.Sequential(Bare()), "0")):
            heads, counted = Member(layer, "table.2", rows(3, 2)), Member(layer, "=heads", rows(3))
            known = {f"{layer}.table".lstrip("."): torch.ones(1, 1, 6)}
            group = Group("table", 3, (heads, counted))
            close(score("l1", model, group), [3, 7, 6])
            close(score("taylor", model, group, Evidence(gradients=(known,)), "all"), [1 / 2, 49 / 2, 36 / 2])
            for name in criteria.names():
                assert score(name, model, group, Evidence(gradients=(known,), curvature=known)).isfinite().all()
            close(score("l2", model, Group("heads", 3, (counted,))), [1, 1, 1])

    def test_a_weight_that_the_evidence_leaves_out(self) -> None:
        with pytest.raises(InvalidSetting, match=r"'0\.weight'.*requires_grad"):
            criteria.score("taylor", (GROUP,), PAIR, Evidence(gradients=({"2.weight": KNOWN["2.weight"]},)))


def test_weights_that_are_not_trained_count_like_others() -> None:
    """airbench's whitening and norms have some."""
    data, found = lt.load_data("digits", image_size=9), list[dict[str, Tensor]]()
    for frozen in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10))
        model[1].weight.requires_grad_(not frozen)
        for name in ("taylor", "hessian"):
            evidence = gather(name, model, Classification(data), lt.Recipe(batch=8, flip=False), 0, torch.device("cpu"))
            found.append(criteria.score(name, trace(model, data.example), model, evidence))
    for one, other in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(one, other)


class TestActivations:
    """What flows, seen from where it is consumed or made."""

    def test_behind_the_nonlinearity(self) -> None:
        read = Evidence(activations={("0", "out"): torch.tensor([9.0, 9, 9]), ("2", "in"): torch.tensor([1.0, 4, 0])})
        close(score("activation", PAIR, GROUP, read), [1, 4, 0])

    def test_where_nothing_consumes_it(self) -> None:
        made = Evidence(activations={("0", "out"): torch.tensor([1.0, 4, 2])})
        close(score("activation", PAIR, Group("0", 3, GROUP.members[:1]), made), [1, 4, 2])

    def test_apoz_looks_behind_the_batch_norm(self) -> None:
        shares = {("0", "out"): torch.tensor([0.5, 0.5, 0.5]), ("1", "each"): torch.tensor([0.1, 0.9, 0.4]), ("2", "in"): torch.ones(3)}
        close(score("apoz", PAIR, GROUP, Evidence(nonzeros=shares)), [0.1, 0.9, 0.4])
        close(score("apoz", PAIR, Group("0", 3, GROUP.members[::2]), Evidence(nonzeros=shares)), [0.5, 0.5, 0.5])

    def test_without_any_statistics_lengths_decide(self) -> None:
        for name in ("activation", "apoz"):
            close(score(name, PAIR, GROUP), [1, 1 / 5, 8**0.5 / 5])

    def test_statistics_are_those_of_the_tensors(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)).eval()
        x = torch.randn(6, 3, 6, 6)
        batches = x.split(3)
        made, relu, logits = net[:2](x), net[:4](x), net(x)
        found = channel_means(net, iter(batches), torch.abs)
        close(found["0", "in"], x.abs().mean((0, 2, 3)))
        close(found["1", "each"], made.abs().mean((0, 2, 3)).detach())
        close(found["4", "in"], relu.mean(0).detach())
        close(found["4", "out"], logits.abs().mean(0).detach())
        assert not any(m._forward_hooks for m in net.modules())

    def test_apoz_counts_zeros_behind_relu(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.Flatten(), nn.LazyLinear(4))
        split = Few()
        net(split.images)
        group = trace(shaken(net), split.images)[0]
        evidence = gather("apoz", net, split_task(split), QUICK, 0, CPU)
        with torch.no_grad():
            expected = torch.stack([(net[:3](part) > 0).double().mean((0, 2, 3)) for part in split.images.split(32)]).mean(0)
        close(score("apoz", net, group, evidence), expected)


class TestCurvature:
    """The diagonal of the Gauss-Newton matrix: (1/N) sum over images n and classes k of p_nk (d log p_nk / d weight)^2."""

    @staticmethod
    def exact(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
        names, values = zip(*net.named_parameters(), strict=True)
        total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
        for image in images:
            logs = net(image[None])[0].log_softmax(0)
            for log in logs:
                for name, gradient in zip(names, torch.autograd.grad(log, values, retain_graph=True), strict=True):
                    total[name] += log.detach().exp() * gradient.square() / len(images)
        return total

    def test_the_mean_over_draws_is_the_exact_diagonal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without bias, in batches of unequal sizes, within four standard errors; and not that of the given labels, nor of images as one."""
        from ltcompile.tasks import classification

        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        net[2].weight.data *= 3  # far from equal shares of the classes
        batches = [(x, torch.zeros(len(x), dtype=torch.long)) for x in torch.randn(8, 3).double().split((2, 5, 1))]
        exact = self.exact(net, torch.cat([x for x, _ in batches]))
        monkeypatch.setattr(classification, "DRAWS", 16)
        drawn = [loss_curvature(net, split_task(None), iter(batches), seed) for seed in range(100)]
        assert set(exact) == set(drawn[0])
        for name, value in exact.items():
            found = torch.stack([one[name] for one in drawn])
            assert (found >= 0).all() and found.mean() > 0
            error = found.std(0) / len(drawn) ** 0.5
            assert ((found.mean(0) - value).abs() < 4 * error + 1e-12).all()
            assert (4 * error / value).median() < 0.15  # so a factor of two, or of a batch's size, would be seen
        assert all(p.grad is None for p in net.parameters())

    def test_it_is_exact_where_both_labels_agree(self) -> None:
        """Of a single weight w, with logits (w x, 0), the second derivative of the loss is x^2 p (1 - p), here with p = 1/2 at w = 0."""

        class One(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.tensor(0.0))

            def forward(self, x: Tensor) -> Tensor:
                return torch.stack([self.weight * x, torch.zeros_like(x)], 1)

        x = torch.tensor([1.0, -2.0, 3.0])
        singles = [(image, torch.zeros(1, dtype=torch.long)) for image in x.split(1)]
        close(loss_curvature(One(), split_task(None), iter(singles), 0)["weight"], x.square().mean() / 4)

    def test_a_seed_fixes_the_draws(self) -> None:
        net, x = nn.Linear(3, 4), torch.randn(8, 3)
        found = [loss_curvature(net, split_task(None), iter([(x, torch.arange(8) % 4)]), seed)["weight"] for seed in (1, 1, 2)]
        assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])

    def test_it_is_gathered_in_small_batches_of_training_images(self) -> None:
        """Large batches would give the same mean from fewer squares."""

        class Counts(nn.Module):
            sizes: ClassVar[list[int]] = []

            def __init__(self) -> None:
                super().__init__()
                self.last = nn.Linear(3 * 16 * 16, 4)

            def forward(self, x: Tensor) -> Tensor:
                self.sizes.append(len(x))
                out: Tensor = self.last(x.flatten(1))
                return out

        gather("hessian", Counts(), split_task(Few(100)), dataclasses.replace(QUICK, batch=64), 0, CPU)
        assert Counts.sizes == [32, 32, 18, 18]

    def test_logits_that_are_not_finite(self) -> None:
        net = nn.Linear(3, 2)
        net.bias.data[0] = float("nan")
        with pytest.raises(InvalidModel, match="logits are not finite"):
            loss_curvature(net, split_task(None), iter([(torch.randn(2, 3), torch.tensor([0, 1]))]), 0)

    def test_fused_attention(self) -> None:
        class Attends(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.qkv = nn.Linear(8, 24)

            def forward(self, x: Tensor) -> Tensor:
                q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
                return F.scaled_dot_product_attention(q, k, v).mean((1, 2))

        found = loss_curvature(Attends(), split_task(None), iter([(torch.randn(2, 5, 8), torch.tensor([0, 1]))]), 0)
        assert found["qkv.weight"].abs().sum() > 0


class TestTaylor:
    """Molchanov et al. 2019: the mean of squares over mini-batches."""

    def test_squares_are_averaged_and_not_gradients(self) -> None:
        """At a minimum, where the gradients of two batches cancel, the weights still matter."""
        opposite = ({"0.weight": torch.full((3, 2), 2.0)}, {"0.weight": torch.full((3, 2), -2.0)})
        close(score("taylor", PAIR, GROUP, Evidence(gradients=opposite)), [4, 4, 64])
        close(
            criteria.score("taylor", (GROUP,), PAIR, Evidence(gradients=opposite), "producers")["0"], [4 / 24, 4 / 24, 64 / 24]
        )  # divided by the mean
        weights = criteria.score_weights("taylor", {"0.weight": PAIR[0].weight}, Evidence(gradients=opposite))["0.weight"]
        close(weights, (2 * PAIR[0].weight.detach()).square())

    def test_it_is_the_papers_by_direct_computation(self) -> None:
        torch.manual_seed(0)
        net, split = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 14 * 14, 4)), Few(40)
        recipe = dataclasses.replace(QUICK, batch=8)
        group = trace(net, split.images)[0]
        expected = torch.zeros(5, dtype=torch.float64)
        for images, labels in zip(split.images.split(8), split.labels.split(8), strict=True):
            gates = torch.ones(5, requires_grad=True)  # d loss / d gate is the sum of weight * gradient of a filter and its bias
            weight = net[0].weight.detach() * gates[:, None, None, None]
            loss = F.cross_entropy(net[1:](F.conv2d(images, weight, net[0].bias.detach())), labels)
            expected += torch.autograd.grad(loss, gates)[0].double().square() / 5
        evidence = gather("taylor", net, split_task(split), recipe, 0, CPU)
        close(score("taylor", net, group, evidence), expected, 1e-5)
        close(criteria.score("taylor", (group,), net, evidence, "producers")[group.name], expected / expected.mean(), 1e-5)


MOST_WORK = ("resnet20", "conv2", "lenet300", "vision", "norms")


class TestGather:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in MOST_WORK else n for n in sorted(NETWORKS)])
    def test_every_network_is_scored_and_cut(self, name: str) -> None:
        """By every criterion, from what it needs and no more, over the producers and over all slices."""
        torch.manual_seed(0)
        side = 8 if name == "conv2" else 16  # whose linear layer reads as many values as there are pixels, for each channel
        network = shaken(lt.build_model(name, classes=4, in_channels=3, image_size=side) if side == 8 else NETWORKS[name]())
        split = Few(shape=(3, side, side))
        images = split.images[:4]
        groups = trace(network, images)
        for criterion in criteria.names():
            evidence = gather(criterion, network, split_task(split), QUICK, 0, CPU)
            kinds = {f.name for f in dataclasses.fields(Evidence) if f.name != "rng" and getattr(evidence, f.name)}
            assert kinds == set(criteria.needs(criterion)), criterion
            assert all(p.grad is None for p in network.parameters()), criterion
            for reduction in ("producers", "all"):
                case = f"{criterion}, {reduction}"
                scores = criteria.score(criterion, groups, network, evidence, reduction)  # type: ignore[arg-type]
                for found, group in ((scores[group.name], group) for group in groups if not group.frozen):
                    assert found.shape == (group.width,) and found.dtype == torch.float64 and found.isfinite().all(), case
                    assert found.unique().numel() > 1, f"{case}: all channels have one score"
                plan = choose(groups, scores, 0.5, "global")
                with torch.no_grad():
                    small, masked = lt.cut(network, plan)(images), lt.mask(network, plan)(images)
                torch.testing.assert_close(small, masked, rtol=1e-5, atol=1e-5, msg=lambda reported, case=case: f"{case}: {reported}")

    @pytest.mark.parametrize("criterion", ["l2", "linf", "neg_linf", "fpgm", "lamp", "bn", "taylor", "activation", "apoz"])
    def test_scores_follow_their_channels(self, criterion: str) -> None:
        """Reordering the channels of a group reorders its scores, and nothing else."""
        torch.manual_seed(0)
        net, split = shaken(NETWORKS["branches"]()), Few()
        group = next(g for g in trace(net, split.images) if g.name == "b")
        order = torch.randperm(group.width, generator=torch.Generator().manual_seed(1)).tolist()
        moved = Group("b", group.width, tuple(Member(m.layer, m.axis, tuple(m.index[c] for c in order)) for m in group.members))
        for reduction in ("producers", "all"):
            evidence = gather(criterion, net, split_task(split), QUICK, 0, CPU)
            close(score(criterion, net, moved, evidence, reduction), score(criterion, net, group, evidence, reduction)[order], 1e-9)


class TestRefusals:
    def test_unknown_reduction(self) -> None:
        with pytest.raises(InvalidSetting, match=r"producers, filters, all, not 'some'"):
            criteria.score("l1", (GROUP,), PAIR, Evidence(), "some")  # type: ignore[arg-type]

    def test_unknown_criterion(self) -> None:
        for call in (criteria.needs, lambda name: criteria.score(name, (GROUP,), PAIR, Evidence())):  # type: ignore[misc]
            with pytest.raises(UnknownName, match="fpgm"):
                call("fpg")

    @pytest.mark.parametrize("criterion", [c for c in criteria.names() if criteria.needs(c)])
    def test_missing_evidence(self, criterion: str) -> None:
        with pytest.raises(InvalidSetting, match=f"{criterion!r} needs {criteria.needs(criterion)[0]}"):
            criteria.score(criterion, (GROUP,), PAIR, Evidence())

    def test_frozen_groups_have_no_scores(self) -> None:
        frozen = Group("0", 3, GROUP.members, "it produces the network's output")
        assert criteria.score("l1", (frozen,), PAIR, Evidence()) == {}


class TestOutputs:
    """Criteria of the network's outputs, from inputs without labels."""

    MOMENTS = torch.tensor([[2.0, 0.5, 1.0], [0.5, 3.0, -1.0], [1.0, -1.0, 5.0]], dtype=torch.float64)
    KNOWN = Evidence(
        moments={("2", "in"): MOMENTS},
        sensitivities={("2", "out"): torch.tensor([1.0, 10.0])},
        responses={("2", "in"): torch.tensor([8.0, 4.0, 2.0])},
        places={("0", "out"): torch.tensor(1.0), ("2", "out"): torch.tensor(1.0)},
    )  # a channel is 2 multiply-accumulates of either layer

    def test_by_hand(self) -> None:
        close(score("energy", PAIR, GROUP, self.KNOWN), [2 * 1 / 4, 3 * (4 + 10 * 25) / 4, 5 * (9 + 10 * 16) / 4])
        close(score("fisher", PAIR, GROUP, self.KNOWN), [8 / 4, 4 / 4, 2 / 4])

    def test_reconstruction_is_what_the_best_weights_of_the_rest_lose(self) -> None:
        """By brute force: least squares of what the consumer gives, on the channels that are left, for every set that goes."""
        from ltcompile.prune.criteria.reconstruction import RIDGE

        weights = PAIR[2].weight.detach().double() * torch.tensor([1.0, 10.0]).sqrt()[:, None]
        moments = self.MOMENTS + RIDGE * self.MOMENTS.diagonal().mean() * torch.eye(3)

        def lost(gone: list[int]) -> float:
            left = [c for c in range(3) if c not in gone]
            solved = torch.linalg.solve(moments[left][:, left], moments[left][:, gone]) if left else torch.zeros(0, len(gone)).double()
            rest = moments[gone][:, gone] - moments[gone][:, left] @ solved
            return float(torch.einsum("oc,cd,od->", weights[:, gone], rest, weights[:, gone]))

        order: list[int] = []
        costs, highest = torch.zeros(3, dtype=torch.float64), 0.0
        while len(order) < 3:
            best = min((c for c in range(3) if c not in order), key=lambda c: lost([*order, c]))
            highest = max(highest, lost([*order, best]) - lost(order))
            costs[best] = highest
            order.append(best)
        close(score("reconstruction", PAIR, GROUP, self.KNOWN), costs / 4, 1e-5)

    def test_a_copy_of_a_channel_is_free(self) -> None:
        """And goes first, although its weights and activations are large."""
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.Flatten(), nn.LazyLinear(4))
        x = torch.randn(32, 3, 8, 8)
        net(x)
        net[0].weight.data[3], net[0].bias.data[3] = net[0].weight.data[1], net[0].bias.data[1]
        plan = lt.plan(net, x[:2], ratio=0.2, criterion="reconstruction", inputs=x.split(8), limits=lt.Limits(only=("0",)), check=False)
        assert set(range(5)) - set(plan.kept["0"]) <= {1, 3} and len(plan.kept["0"]) == 4

    def test_evidence_is_that_of_the_tensors(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))
        x = torch.randn(6, 3, 6, 6)
        with torch.no_grad():
            hidden, logits = net[:3](x), net(x)
        found = from_inputs("reconstruction", net, [x], seed=3)
        close(found.moments["3", "in"], torch.cov(hidden.double().T, correction=0), 1e-5)
        assert float(found.places["0", "out"]) == 16 and float(found.places["3", "out"]) == 1
        drawn = torch.randn(6, 4, generator=generator(stream("drawn labels", 3))) / logits.std()
        close(found.sensitivities["3", "out"], drawn.square().mean(0), 1e-5)
        passed = (drawn @ net[3].weight.detach()) * (hidden > 0)
        close(found.sensitivities["0", "out"], passed.unflatten(1, (5, 16)).square().sum(2).mean(0), 1e-5)
        responses = from_inputs("fisher", net, [x], seed=3).responses["3", "in"]
        close(responses, (hidden * (drawn @ net[3].weight.detach())).square().mean(0), 1e-5)
        assert all(p.grad is None for p in net.parameters()) and not any(m._forward_hooks for m in net.modules())

    def test_what_cannot_be_collected_is_refused(self) -> None:
        net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(6, 4)
        with pytest.raises(InvalidSetting, match=r"gradients.*labels.*reconstruction"):
            lt.plan(net, x, criterion="taylor", inputs=[x])
        with pytest.raises(InvalidSetting, match="not both"):
            lt.plan(net, x, criterion="energy", inputs=[x], evidence=Evidence())
        with pytest.raises(InvalidData, match="no inputs"):
            lt.plan(net, x, criterion="energy", inputs=[])
        with pytest.raises(InvalidData, match="not finite"):
            lt.plan(net, x, criterion="energy", inputs=[x / 0])


@pytest.mark.parametrize("normalize", ["mean", "max", "gaussian", "lamp"])
def test_a_group_scaled_by_a_constant_changes_nothing(normalize: Normalisation) -> None:
    """Under each normalisation; without one, scores follow the scale, and the default of a comparable criterion is none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    groups, scaled = trace(model, torch.randn(1, 3, 16, 16)), copy.deepcopy(model)
    with torch.no_grad():
        scaled[2].weight.mul_(7)
    before, after = (criteria.score("l1", groups, m, criteria.Evidence(), normalize=normalize) for m in (model, scaled))
    for group in before:
        torch.testing.assert_close(before[group], after[group])
    raw = [criteria.score("l1", groups, m, criteria.Evidence(), normalize="none")["2"] for m in (model, scaled)]
    torch.testing.assert_close(7 * raw[0], raw[1])
    with pytest.raises(InvalidSetting, match="normalize"):
        criteria.score("l1", groups, model, criteria.Evidence(), normalize="sum")  # type: ignore[arg-type]
