"""The laws of dead channels: what zeros among the weights leave dead goes, whatever else stays, and no answer changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from networks import NETWORKS, Net, conv, shaken
from readers import some_ticket
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.cli import app
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import Group, PruningPlan
from ltcompile.errors import Disagreement, InvalidPlan, TicketMismatch
from ltcompile.graph import Eliminated, eliminate_dead_channels, mask, size, trace
from ltcompile.graph.layers import place
from ltcompile.pruned import compact, pruned_of


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(num_classes=4, width_mult=0.25)


BUILDERS: dict[str, Callable[[], nn.Module]] = {**NETWORKS, "vgg11": lambda: lt.build_model("vgg11", 4, 3, 32), "mobilenet": mobilenet}
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepared(model: nn.Module) -> nn.Module:
    """As if it had been trained: no batch norm, bias or shift is what it began as."""
    rng = seeded(3)
    with torch.no_grad():
        for layer in shaken(model).modules():
            if isinstance(layer, LAYERS) and layer.bias is not None:
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=rng) / 3)
    return model


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    side = 32 if name in ("vgg11", "mobilenet") else 16
    return prepared(BUILDERS[name]()), torch.randn(6, 3, side, side, generator=seeded(1))


@torch.no_grad()
def masked(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """`model` with a share of all weights at zero, in place, but for the last layer."""
    rng = seeded(seed)
    for layer in [layer for layer in model.modules() if isinstance(layer, LAYERS)][:-1]:
        layer.weight.masked_fill_(torch.rand(layer.weight.shape, generator=rng) < share, 0)
    return model


@torch.no_grad()
def hollow(model: nn.Module, group: Group, axis: str, channels: list[int]) -> None:
    """Zero all weights that make ("out") or read ("in") these channels."""
    for member in (m for m in group.members if m.axis == axis):
        layer = model.get_submodule(member.layer)
        name, dim = place(layer, axis).tensors[0]
        getattr(layer, name).index_fill_(dim, torch.tensor(member.positions(tuple(channels))), 0)


@torch.no_grad()
def difference(found: nn.Module, expected: nn.Module, images: Tensor) -> float:
    """The largest error, relative to the largest answer."""
    a, b = found(images), expected(images)
    return float((a - b).abs().max() / b.abs().max())


def of(model: nn.Module, images: Tensor) -> Eliminated:
    return eliminate_dead_channels(model, trace(model, images), images)


class TestLaws:
    @pytest.mark.parametrize(
        "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("vgg11", "mobilenet") else n for n in sorted(BUILDERS)]
    )
    def test_no_answer_changes_and_nothing_more_goes(self, name: str) -> None:
        model, images = built(name)
        groups = trace(model, images)
        for share in (0.5, 0.8, 0.95, 0.995):
            masked(model, share)  # more each time, by the same numbers
            before = {key: value.clone() for key, value in model.state_dict().items()}
            found = eliminate_dead_channels(model, groups, images)
            assert difference(found.module, model, images) <= 1e-5
            assert difference(found.module, model, 30 * images) <= 1e-5
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the network itself stays as it was"
            shapes = {key: value.shape for key, value in found.module.state_dict().items()}
            assert shapes == {key: value.shape for key, value in lt.cut(model, found.plan).state_dict().items()}
            again = eliminate_dead_channels(found.module, found.plan.remaining(), images)
            assert again.plan.is_identity and (again.constant, again.unread) == (0, 0)
            lost = sum(before - after for before, after in found.plan.widths.values())
            assert lost == found.constant + found.unread

    @pytest.mark.parametrize("name", sorted(BUILDERS))
    def test_nothing_goes_without_zeros(self, name: str) -> None:
        model, images = built(name)
        found = of(model, images)
        assert found.plan.is_identity and (found.constant, found.unread) == (0, 0)
        assert all(torch.equal(value, found.module.state_dict()[key]) for key, value in model.state_dict().items())

    @pytest.mark.parametrize("name", ["lenet300", "lenet5", "conv2", "vgg11", "resnet20", "branches", "depthwise", "mobilenet", "grouped"])
    @pytest.mark.parametrize("axis", ["in", "out"])
    @pytest.mark.slow
    def test_all_that_was_hollowed_goes(self, name: str, axis: str) -> None:
        """What stays of constants is one channel for a reader with padding or without a bias, or such a reader sees no constant."""
        model, images = built(name)
        groups = trace(model, images)
        planted = {g.name: [c for c in range(g.width) if c % 3 == 1] for g in groups if not g.frozen}
        for group in groups:
            if not group.frozen:
                hollow(model, group, axis, planted[group.name])
        found = eliminate_dead_channels(model, groups, images)
        assert difference(found.module, model, images) <= 1e-5
        total = sum(map(len, planted.values()))
        assert (found.unread == total and not found.constant) if axis == "in" else (found.constant > 0 and not found.unread)
        for group in groups:
            left = set(found.plan.kept[group.name]) & set(planted.get(group.name, []))
            padded = [m for m in group.members if m.axis == "each" and not isinstance(model.get_submodule(m.layer), nn.BatchNorm2d)]
            assert len(left) <= (0 if axis == "in" else len(planted[group.name]) if padded else sum(m.axis == "in" for m in group.members))

    @pytest.mark.parametrize("name", ["lenet300", "conv2", "vgg11", "resnet20", "mobilenet"])
    def test_the_mask_s_answer_is_another_only_by_constants(self, name: str) -> None:
        """Zeroing what went would change answers: the constants are really folded, not forgotten."""
        model, images = built(name)
        groups = trace(model, images)
        for group in groups:
            if not group.frozen:
                hollow(model, group, "out", [0, 1])
        found = eliminate_dead_channels(model, groups, images)
        assert found.constant > 0 and difference(mask(model, found.plan), model, images) > 1e-3
        assert difference(found.module, model, images) <= 1e-5


class TestCascades:
    def test_what_only_a_removed_channel_read_goes_too(self) -> None:
        model = prepared(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 4)))
        with torch.no_grad():
            model[2].weight[:, 1] = 0
            model[2].weight[5, 1] = 1  # only filter 5 reads channel 1,
            model[5].weight[:, 5 * 144 : 6 * 144] = 0  # and no layer reads filter 5
        found = of(model, torch.randn(2, 3, 16, 16))
        assert found.plan.kept == {"0": (0, 2, 3, 4, 5), "2": (0, 1, 2, 3, 4, 6, 7), "5": (0, 1, 2, 3)} and found.unread == 2

    def test_what_reads_only_constants_is_one(self) -> None:
        model = prepared(nn.Sequential(nn.Linear(9, 6), nn.Sigmoid(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4)))
        with torch.no_grad():
            model[0].weight[2] = 0
            model[2].weight[3] = torch.tensor([0, 0, 2.0, 0, 0, 0])
        images = torch.randn(8, 9)
        found = of(model, images)
        assert (found.constant, found.unread) == (2, 0) and found.plan.kept["2"] == (0, 1, 2, 4)
        assert difference(found.module, model, images) <= 1e-6

    @pytest.mark.parametrize("name", ["lenet5", "resnet20", "split", "mobilenet"])
    def test_a_channel_stays_where_all_are_empty(self, name: str) -> None:
        model, images = built(name)
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, LAYERS):
                    layer.weight.zero_()
        groups = trace(model, images)
        found = eliminate_dead_channels(model, groups, images)
        assert difference(found.module, model, images) <= 1e-5
        assert all(len(found.plan.kept[g.name]) == 1 for g in groups if not g.frozen and not g.tied)


def chain(reader: nn.Module, act: Callable[[Tensor], Tensor] = torch.sigmoid) -> nn.Module:
    """A convolution whose filters 1, 3, 4 and 6 have no weights, and a reader of it."""
    torch.manual_seed(0)
    model = prepared(Net(lambda net, x: F.relu(net.reader(act(net.stem(x)))), 5, stem=conv(3, 8, 3), reader=reader))
    with torch.no_grad():
        model.get_submodule("stem").weight[[1, 3, 4, 6]] = 0
    return model


IMAGES = torch.randn(4, 3, 16, 16, generator=seeded(2))


class TestReaders:
    """Which constants fold into a bias, and which need one of them to stay."""

    @pytest.mark.parametrize(
        "reader",
        [
            lambda: nn.Conv2d(8, 5, 3),
            lambda: nn.Conv2d(8, 5, 1),
            lambda: nn.Conv2d(8, 5, 3, padding="valid", stride=2),
            lambda: nn.Conv2d(8, 5, 1, padding="same"),
            lambda: nn.Conv2d(8, 5, 3, padding=1, padding_mode="reflect"),
            lambda: nn.Conv2d(8, 5, 3, padding=2, padding_mode="replicate", dilation=2),
            lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 5, 2)),
        ],
    )
    def test_all_fold_where_every_place_sees_the_same(self, reader: Callable[[], nn.Module]) -> None:
        model = chain(reader())
        found = of(model, IMAGES)
        assert found.plan.kept["stem"] == (0, 2, 5, 7) and found.constant == 4
        assert difference(found.module, model, IMAGES) <= 1e-6

    @pytest.mark.parametrize(
        "reader",
        [
            lambda: nn.Conv2d(8, 5, 3, padding=1),
            lambda: nn.Conv2d(8, 5, 3, padding="same", dilation=2),
            lambda: nn.Conv2d(8, 5, (3, 1), padding=(1, 0), stride=2),
            lambda: nn.Conv2d(8, 5, 1, bias=False),
            lambda: nn.Conv2d(8, 5, 3, padding=1, bias=False),
            lambda: nn.ConvTranspose2d(8, 5, 3, stride=2, output_padding=1),
        ],
    )
    def test_one_stays_for_all_behind_padding_or_without_a_bias(self, reader: Callable[[], nn.Module]) -> None:
        model = chain(reader())
        found = of(model, IMAGES)
        kept = set(found.plan.kept["stem"])
        assert kept > {0, 2, 5, 7} and len(kept) == 5 and found.constant == 3
        bias = model.get_submodule("stem").bias
        assert kept - {0, 2, 5, 7} == {max((1, 3, 4, 6), key=lambda c: float(bias.detach()[c].sigmoid()))}, "the strongest"
        assert difference(found.module, model, IMAGES) <= 1e-6

    def test_zeros_need_no_one(self) -> None:
        model = chain(nn.Conv2d(8, 5, 3, padding=1), F.relu)
        with torch.no_grad():
            model.get_submodule("stem").bias.copy_(-torch.rand(8) - 0.1)
        found = of(model, IMAGES)
        assert found.plan.kept["stem"] == (0, 2, 5, 7) and difference(found.module, model, IMAGES) <= 1e-6

    def test_two_stay_where_none_is_strong_for_both_readers(self) -> None:
        """One reader sees what is positive, the other what is negative."""

        def run(net: Net, x: Tensor) -> Tensor:
            x = net.stem(x)
            return net.a(F.relu(x)) + net.b(F.relu(-x))

        model = prepared(Net(run, 5, stem=conv(3, 8, 3), a=conv(8, 5, 3), b=conv(8, 5, 3)))
        with torch.no_grad():
            model.get_submodule("stem").weight[:6] = 0
            model.get_submodule("stem").bias[:6] = torch.tensor([0.5, 2, 1, -1, -3, -2])
        found = of(model, IMAGES)
        assert found.plan.kept["stem"] == (1, 4, 6, 7) and difference(found.module, model, IMAGES) <= 1e-6

    def test_a_weak_value_stands_for_no_strong_one(self) -> None:
        """Channel 0 serves both readers, but one so weakly that rounding would grow a million times."""

        def run(net: Net, x: Tensor) -> Tensor:
            x = net.stem(x)
            return net.a(F.relu(x)) + net.b(F.relu(1 - x))

        model = prepared(Net(run, 5, stem=conv(3, 8, 3), a=conv(8, 5, 3), b=conv(8, 5, 3)))
        with torch.no_grad():
            model.get_submodule("stem").weight[:3] = 0
            model.get_submodule("stem").bias[:3] = torch.tensor([1 - 1e-6, -2, 2])
        found = of(model, IMAGES)
        assert found.plan.kept["stem"] == (1, 2, 3, 4, 5, 6, 7) and difference(found.module, model, IMAGES) <= 1e-6

    def test_a_batch_norm_that_scales_by_zero_makes_constants(self) -> None:
        model = prepared(
            Net(lambda net, x: net.out(F.relu(net.bn(net.stem(x)))), 5, stem=conv(3, 8, 3), bn=nn.BatchNorm2d(8), out=conv(8, 5))
        )
        with torch.no_grad():
            model.get_submodule("bn").weight[[2, 5]] = 0
        found = of(model, IMAGES)
        assert found.plan.kept["stem"] == (0, 1, 3, 4, 6, 7) and difference(found.module, model, IMAGES) <= 1e-6

    @pytest.mark.parametrize(("shift", "goes"), [(0.7, False), (-0.7, True)])
    def test_a_padded_average_makes_no_constant_of_what_is_not_zero(self, shift: float, goes: bool) -> None:
        """Its border is smaller than the middle; zeros stay zeros."""
        model = chain(nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.Conv2d(8, 5, 2)), F.relu)
        with torch.no_grad():
            model.get_submodule("stem").bias.fill_(shift)
        found = of(model, IMAGES)
        assert found.plan.is_identity != goes and difference(found.module, model, IMAGES) <= 1e-6

    @pytest.mark.parametrize("bias", [True, False])
    def test_a_flatten_gives_each_place_its_own_value(self, bias: bool) -> None:
        """Behind a padded average, a channel without weights is another constant at each place, and each folds into a linear layer."""
        reader = nn.Sequential(nn.AvgPool2d(8, 8, 4), nn.Flatten(), nn.Linear(8 * 9, 5, bias=bias))
        model = chain(reader)
        found = of(model, IMAGES)
        assert found.constant == 4 - (not bias) and difference(found.module, model, IMAGES) <= 1e-6


class TestRestraint:
    """What looks empty on images, and is not by its weights, stays."""

    def test_a_filter_that_is_dead_on_images_stays(self) -> None:
        model = chain(nn.Conv2d(8, 5, 3), F.relu)
        with torch.no_grad():
            model.get_submodule("stem").bias[[0, 2]] = -1e3
        assert of(model, IMAGES).plan.kept["stem"] == (0, 2, 5, 7)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_second_maker_that_is_dead_on_images_counts(self, sign: int) -> None:
        """The depthwise convolution has no weights, but what goes around it could differ on other images."""

        def run(net: Net, x: Tensor) -> Tensor:
            x = F.relu(sign * net.stem(x))
            return net.out(x + net.depthwise(x))

        layers = {"stem": conv(3, 8, 3), "depthwise": conv(8, 8, 3, groups=8), "out": conv(8, 5)}
        model = prepared(Net(run, 5, **layers))
        with torch.no_grad():
            layers["stem"].bias.fill_(-100 * sign)
            layers["depthwise"].weight.zero_()
        found = of(model, IMAGES)
        assert found.plan.is_identity
        assert difference(found.module, model, 1e4 * IMAGES) <= 1e-6

    @pytest.mark.parametrize("layer", ["expand", "depthwise"])
    def test_depthwise_channels_go_where_nothing_but_constants_leaves_them(self, layer: str) -> None:
        model, images = built("depthwise")
        with torch.no_grad():
            model.get_submodule(layer).weight[:6] = 0
            norm = model.get_submodule("bn1")
            norm.bias[:3], norm.bias[3:6] = -5, 5  # zeros behind the activation, and sixes, which the padded border distinguishes
        found = of(model, images)
        kept = found.plan.kept["expand"]
        assert set(kept) >= set(range(6, 24)) and difference(found.module, model, images) <= 1e-6
        assert found.constant == 24 - len(kept) == (3 if layer == "expand" else 6)

    def test_norms_over_channels_bare_parameters_and_shared_weights_stay(self) -> None:
        for name, stay in {"norms": {"b", "c", "d", "e"}, "parameters": {"stem", "body"}, "shared_layer": {"a", "b", "stem"}}.items():
            model, images = built(name)
            groups = trace(model, images)
            for group in groups:
                if not group.frozen:
                    hollow(model, group, "in", [0, 1])
                    hollow(model, group, "out", [2])
            found = eliminate_dead_channels(model, groups, images)
            assert all(found.plan.widths[g][0] == found.plan.widths[g][1] for g in stay & set(found.plan.widths)), name
            assert difference(found.module, model, images) <= 1e-5

    def test_tied_groups_lose_the_same_share(self) -> None:
        model, images = built("split")
        groups = trace(model, images)
        tied = [g for g in groups if g.tied]
        assert len(tied) == 2 and not any(g.frozen for g in tied)
        hollow(model, tied[0], "in", [0, 1, 2])
        hollow(model, tied[1], "in", [4])
        found = eliminate_dead_channels(model, groups, images)
        assert [len(found.plan.kept[g.name]) for g in tied] == [5, 5]
        assert difference(found.module, model, images) <= 1e-6

    def test_groups_of_another_network_are_refused(self) -> None:
        (model, images), (other, _) = built("lenet5"), built("resnet20")
        for groups in (trace(other, images), trace(lt.build_model("conv2", 4, 3, 16), images)):
            with pytest.raises(InvalidPlan, match=r"another network|beyond"):
                eliminate_dead_channels(model, groups, images)
        groups = trace(model, images)
        with pytest.raises(InvalidPlan, match="beyond"):
            eliminate_dead_channels(lt.cut(model, lt.plan(model, images)), groups, images)


SIDE = 16


def mask_ticket(name: str = "lenet5", share: float = 0.9) -> lt.Ticket:
    """A ticket of single weights; every fifth channel has none."""
    torch.manual_seed(0)
    model = masked(prepared(lt.build_model(name, 10, 1, SIDE)), share)
    groups = trace(model, torch.zeros(2, 1, SIDE, SIDE))
    for group in (g for g in groups if not g.frozen):
        hollow(model, group, "out", list(range(0, group.width, 5)))
    data = {"name": "digits", "class_names": [str(d) for d in range(10)], "shape": [1, SIDE, SIDE], "mean": [0.3], "std": [0.3]}
    ticket = dataclasses.replace(
        some_ticket(),
        model={"name": name, "arguments": {"classes": 10, "in_channels": 1, "image_size": SIDE}},
        plan=PruningPlan(groups),
        data={**data, "interpolation": "bilinear"},
    )
    return with_weights(ticket, model)


def with_weights(ticket: lt.Ticket, model: nn.Module) -> lt.Ticket:
    """The ticket of `model`, masked where its weights are zero."""
    kept = {key: value != 0 for key, value in model.named_parameters() if value.dim() > 1}
    return dataclasses.replace(ticket, weights={key: value.clone() for key, value in model.state_dict().items()}, mask=WeightMask(kept))


def whole(ticket: lt.Ticket) -> nn.Module:
    """The masked network itself."""
    network = lt.build_model(ticket.model["name"], **ticket.model["arguments"])
    network.load_state_dict(dict(ticket.weights))
    return network.eval()


@pytest.mark.slow
class TestTickets:
    @pytest.mark.parametrize("name", ["lenet5", "resnet20", "lenet300"])
    def test_the_small_network_of_a_mask_answers_as_the_masked_one(self, name: str) -> None:
        ticket = mask_ticket(name)
        small, images = compact(pruned_of(ticket)).small, torch.randn(5, 1, SIDE, SIDE)
        assert difference(small, whole(ticket), images) <= 1e-5
        assert size(small, images).params < size(whole(ticket), images).params

    def test_its_file_holds_the_small_shapes_and_the_record_the_structure(self, tmp_path: Path) -> None:
        ticket = mask_ticket()
        ticket.save(tmp_path / "ticket.pt")
        result = CliRunner().invoke(app, ["shrink", str(tmp_path / "ticket.pt"), "-o", str(tmp_path / "small.onnx")])
        assert result.exit_code == 0, result.output
        record = json.loads((tmp_path / "small.json").read_text())
        reported = record["structure"]
        assert ticket.mask is not None and (reported["weights"]["all"], reported["weights"]["kept"]) == ticket.mask.weights
        assert 0 < reported["share_in_removed"] < 1 and reported["macs"] == {"before": record["dense_macs"], "after": record["macs"]}
        assert record["equality_error"] <= 1e-5 and record["macs"] < record["dense_macs"]
        lost = reported["channels"]["constant"] + reported["channels"]["unread"]
        assert 0 < lost < reported["channels"]["all"] and f"{lost} of {reported['channels']['all']} channels" in result.output
        small = compact(pruned_of(ticket)).small
        found = {tuple(i.dims) for i in onnx.load(tmp_path / "small.onnx").graph.initializer if len(i.dims) == 4}
        assert found == {tuple(v.shape) for v in small.state_dict().values() if v.dim() == 4}

    def test_everything_and_nothing_is_structure(self, tmp_path: Path) -> None:
        """Hollow filters alone are all structure; a weight here and there is none."""
        model = prepared(lt.build_model("lenet5", 10, 1, SIDE))
        groups = trace(model, torch.zeros(2, 1, SIDE, SIDE))
        base = mask_ticket()
        with torch.no_grad():
            model[0].weight[1, 0, 2, 2] = 0
        reported = lt.shrink(with_weights(base, model), tmp_path / "a.onnx").record["structure"]
        assert reported["share_in_removed"] == 0 and reported["macs"]["before"] == reported["macs"]["after"]
        hollow(model, next(g for g in groups if g.name == "3"), "in", [1, 2, 3])
        model[0].weight.data[1, 0, 2, 2] = 1
        reported = lt.shrink(with_weights(base, model), tmp_path / "b.onnx").record["structure"]
        assert reported["share_in_removed"] == 1 and reported["channels"]["unread"] == 3

    @pytest.mark.parametrize("how", ["up", "down"])
    def test_it_snaps(self, how: str, tmp_path: Path) -> None:
        record = lt.shrink(mask_ticket(), tmp_path / "small.onnx", snap=how).record  # type: ignore[arg-type]
        assert record["equality_error"] <= 1e-5 and record["snapped"]["way"] == f"{how} to 16"

    def test_statistics_are_taken_again_before_channels_go(self, tmp_path: Path) -> None:
        """The masked network takes them, so that constants are those of its new batch norms."""
        digits = lt.load_data("digits", image_size=SIDE)
        record = lt.shrink(mask_ticket("resnet20", 0.97), tmp_path / "small.onnx", calibrate=digits).record
        assert record["equality_error"] <= 1e-5 and record["recalibrated"] and record["structure"]["channels"]["constant"] > 0

    def test_a_wrong_fold_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(model: nn.Module, groups: tuple[Group, ...], example: Tensor) -> Eliminated:
            found = eliminate_dead_channels(model, groups, example)
            with torch.no_grad():
                [*found.module.parameters()][-1].add_(1)
            return found

        monkeypatch.setattr("ltcompile.pruned.compaction.eliminate_dead_channels", wrong)
        with pytest.raises(Disagreement, match="without its dead channels"):
            lt.shrink(mask_ticket(), tmp_path / "small.onnx")
        assert not list(tmp_path.iterdir())

    def test_a_plan_of_another_network_is_stale(self) -> None:
        ticket = mask_ticket()
        other = dataclasses.replace(ticket, plan=PruningPlan(trace(lt.build_model("conv2", 10, 1, SIDE), torch.zeros(2, 1, SIDE, SIDE))))
        with pytest.raises(TicketMismatch, match="groups are not those of"):
            compact(pruned_of(other))
