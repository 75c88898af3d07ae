"""Strong, multi-prize and generalised tickets: each method's own law, the layers that a low rank leaves, and signs in ONNX files."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.fft
import torch
from onnx import TensorProto, helper, numpy_helper
from searches import QUICK
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import ltcompile as lt
from ltcompile.core.recipe import Recipe
from ltcompile.data import Dataset
from ltcompile.data._dataset import TensorSplit
from ltcompile.errors import BadModel, BadSetting, UnknownName
from ltcompile.graph import size
from ltcompile.graph.factorise import factorise
from ltcompile.lower import export_onnx, fold_batch_norm, run_onnx
from ltcompile.lower.binary_weights import write_binary_weights
from ltcompile.models.vgg import VGG
from ltcompile.search import methods
from ltcompile.search.methods import _scores, basis
from ltcompile.training import Epoch, Training, train

CPU = torch.device("cpu")
FROZEN, BASES = ("edge-popup", "biprop"), ("basis", "basis-dct")
RECIPE = dataclasses.replace(QUICK, lr=0.1, weight_decay=1e-4)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet300": lambda: lt.build_model("lenet300", 10, 1, 16),
    "conv2": lambda: _conv2(12),
    "vgg": lambda: VGG([8, "M", 12, "M", 16, 16, "M", 24, "M"], 10, 1),
}
IMAGES = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
State = dict[str, Tensor]


def _conv2(width: int) -> nn.Module:
    """Conv-2 with fewer filters and units."""
    pair = (nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*pair, nn.Flatten(), nn.Linear(width * 64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def built(network: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[network]()


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def attached(method: str, network: str, share: float = 0.5, seed: int = 3) -> nn.Module:
    model = built(network)
    methods.attach(method, model, share, seed, built(network, 7))
    return model


def answers(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(images)
    return found


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """160 images."""
    whole = lt.load_data("digits", image_size=16)
    assert isinstance(whole.train, TensorSplit)
    part = whole.train
    return dataclasses.replace(whole, train=TensorSplit(part._images[:160], part._labels[:160], part._mean, part._std))


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(model: nn.Module, data: Dataset, recipe: Recipe = RECIPE, **more: Any) -> Training:
    return train(model, data, recipe, 5, CPU, **more)


class TestEveryMethod:
    def test_registry(self) -> None:
        assert set(methods.names()) == {*FROZEN, *BASES}
        assert {name for name in methods.names() if methods.iterative(name)} == set(BASES)

    @pytest.mark.parametrize(("method", "network"), list(itertools.product(methods.names(), NETWORKS)))
    def test_bakes_what_it_trained(self, method: str, network: str, digits: Dataset) -> None:
        """A plain network with the names of the first, that gives the answers of the parametrised one; and every training learns."""
        model = attached(method, network)
        done = trained(model, digits)
        assert done.epochs[-1].train_loss < done.epochs[0].train_loss
        before = answers(model)
        found = methods.bake(model)
        assert torch.equal(answers(model), before)
        assert [(n, v.shape) for n, v in model.state_dict().items()] == [(n, v.shape) for n, v in built(network).state_dict().items()]
        assert not any(parametrize.is_parametrized(m) for m in model.modules())
        assert all(p.requires_grad for p in model.parameters())
        assert found.coordinates == sum(m.weight.numel() for m in layers(model).values()) and 0 < found.kept < found.coordinates

    @pytest.mark.parametrize("method", methods.names())
    def test_resumed_is_never_stopped(self, method: str, digits: Dataset) -> None:
        """From any epoch's state, on a network attached anew, to the bit."""
        states: list[dict[str, Any]] = []
        recipe = dataclasses.replace(RECIPE, epochs=3)

        def keep(epoch: Epoch, state: dict[str, Any], /) -> None:
            states.append(copy.deepcopy(state))

        whole = attached(method, "conv2")
        trained(whole, digits, recipe, progress=keep)
        for state in states[:-1]:
            other = attached(method, "conv2")
            trained(other, digits, recipe, state=state)
            assert all(torch.equal(v, other.state_dict()[n]) for n, v in whole.state_dict().items())

    @pytest.mark.parametrize("method", methods.names())
    def test_same_arguments_give_the_same_network(self, method: str) -> None:
        first, second = attached(method, "vgg").state_dict(), attached(method, "vgg").state_dict()
        assert list(first) == list(second) and all(torch.equal(v, second[n]) for n, v in first.items())

    @pytest.mark.parametrize("method", methods.names())
    def test_is_one_graph(self, method: str) -> None:
        """Forward and back, as the loop compiles networks on a GPU."""
        model = attached(method, "conv2")
        compiled = copy.deepcopy(model)
        for run in (model, torch.compile(compiled, backend="aot_eager", fullgraph=True)):
            run(IMAGES).logsumexp(1).sum().backward()
        for (name, found), expected in zip(compiled.named_parameters(), model.parameters(), strict=True):
            if expected.requires_grad:
                close(found.grad, expected.grad)
            else:
                assert found.grad is None, name

    @pytest.mark.parametrize("method", methods.names())
    def test_recipe_keeps_epochs(self, method: str) -> None:
        usual = dataclasses.replace(QUICK, epochs=17, batch=64)
        assert methods.recipe(method, usual).epochs == 17 and methods.recipe(method, usual).batch == 64

    def test_recipe_of_the_papers(self) -> None:
        usual = Recipe(epochs=100, lr=0.3, batch=128)
        assert methods.recipe("edge-popup", usual) == methods.recipe("biprop", usual)
        found = methods.recipe("biprop", usual)
        assert (found.lr, found.schedule, found.momentum, found.weight_decay) == (0.1, "cosine", 0.9, 1e-4)
        assert methods.recipe("basis", usual) == usual

    @pytest.mark.parametrize("method", methods.names())
    def test_refuses(self, method: str) -> None:
        for share in (0.0, -0.1, 1.1, math.nan):
            with pytest.raises(BadSetting, match="share"):
                attached(method, "lenet300", share)
        empty = nn.Flatten()
        with pytest.raises(BadModel, match="no convolution or linear"):
            methods.attach(method, empty, 0.5, 0, empty)
        tied = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8))
        tied[2].weight = tied[1].weight
        with pytest.raises(BadModel, match="'2' and '1' share a weight"):
            methods.attach(method, tied, 0.5, 0, tied)
        with pytest.raises(BadModel, match="computes its weights from others"):
            methods.attach(method, attached(method, "conv2"), 0.5, 0, built("conv2"))

    @pytest.mark.parametrize("method", methods.names())
    def test_bfloat16_rounds_the_weights_that_are_baked(self, method: str) -> None:
        model = attached(method, "conv2")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before = answers(model)
        methods.bake(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert before.dtype == torch.bfloat16 and torch.equal(answers(model), before)

    @pytest.mark.parametrize("method", methods.names())
    def test_copies_are_independent(self, method: str) -> None:
        model = attached(method, "conv2")
        before, other = answers(model), copy.deepcopy(model)
        methods.bake(other)
        assert torch.equal(answers(model), before) and torch.equal(answers(other), before)

    def test_refuses_what_is_missing(self) -> None:
        with pytest.raises(UnknownName, match="biprop"):
            methods.attach("biprob", built("conv2"), 0.5, 0)
        for method in BASES:
            with pytest.raises(BadSetting, match="trained network"):
                methods.attach(method, built("conv2"), 0.5, 0)


class TestScores:
    """Edge-popup and multi-prize tickets."""

    @pytest.mark.parametrize("share", [0.003, 0.1, 0.37, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("method", FROZEN)
    def test_the_share_is_kept_in_every_layer(self, method: str, share: float) -> None:
        model = attached(method, "conv2", share)
        scores = [layer.parametrizations.weight[0].scores for layer in layers(model).values()]
        with torch.no_grad():
            scores[1].fill_(0.5)  # of equals, exactly as many stay
        found = methods.bake(model)
        assert found.mask is not None and found.mask.weights == (found.coordinates, found.kept)
        for name, layer in layers(model).items():
            kept = found.mask.kept[f"{name}.weight"]
            assert int(kept.sum()) == max(1, round(share * kept.numel())) and torch.equal(kept, layer.weight != 0)

    @pytest.mark.parametrize("network", NETWORKS)
    def test_edge_popup_never_trains_a_weight(self, network: str, digits: Dataset) -> None:
        """To the bit; what stays is what has the largest scores, and other weights than those at the beginning."""
        model = attached("edge-popup", network)
        initial = {name: layer.parametrizations.weight.original.clone() for name, layer in layers(model).items()}
        first = methods.bake(copy.deepcopy(model)).mask
        trained(model, digits)
        scores = {name: layer.parametrizations.weight[0].scores.detach().abs() for name, layer in layers(model).items()}
        last = methods.bake(model).mask
        assert first is not None and last is not None
        for name, layer in layers(model).items():
            kept = last.kept[f"{name}.weight"]
            assert torch.equal(layer.weight, torch.where(kept, initial[name], 0.0))
            assert scores[name][kept].min() >= scores[name][~kept].max()
            assert not torch.equal(kept, first.kept[f"{name}.weight"])

    @pytest.mark.parametrize("network", NETWORKS)
    def test_biprop_is_alpha_and_signs(self, network: str, digits: Dataset) -> None:
        model = attached("biprop", network)
        initial = {name: layer.parametrizations.weight.original.clone() for name, layer in layers(model).items()}
        trained(model, digits)
        mask = methods.bake(model).mask
        assert mask is not None
        for name, layer in layers(model).items():
            kept, w0 = mask.kept[f"{name}.weight"], initial[name]
            values = layer.weight[kept].unique()
            assert len(values) == 2 and values[0] == -values[1]
            torch.testing.assert_close(values[1].double(), w0[kept].double().abs().sum() / int(kept.sum()), rtol=1e-5, atol=0)
            assert torch.equal(layer.weight.sign(), w0.sign() * kept)

    @pytest.mark.parametrize(("method", "network"), list(itertools.product(FROZEN, NETWORKS)))
    def test_gradient_passes_straight_through(self, method: str, network: str, double: None) -> None:
        """d loss / d score = d loss / d weight * w0 * sign(score), kept or not; and nothing else is trained."""
        model = attached(method, network).double().eval()
        plain = copy.deepcopy(model)
        methods.bake(plain)
        labels = torch.arange(len(IMAGES))
        for one in (model, plain):
            F.cross_entropy(one(IMAGES.double()), labels).backward()
        for name, layer in layers(model).items():
            w0, scores = layer.parametrizations.weight.original, layer.parametrizations.weight[0].scores
            expected = layers(plain)[name].weight.grad * w0 * scores.sign()
            assert expected.abs().max() > 0
            torch.testing.assert_close(scores.grad, expected)
        assert {name for name, p in model.named_parameters() if p.grad is not None} == {
            f"{name}.parametrizations.weight.0.scores" for name in layers(model)
        }

    @pytest.mark.parametrize("method", FROZEN)
    def test_nothing_else_is_trained(self, method: str, digits: Dataset) -> None:
        """Whatever was there before: norms are one and zero, biases zero."""
        model = built("vgg")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.3)
        methods.attach(method, model, 0.5, 0)
        trained(model, digits)
        methods.bake(model)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all() and (module.bias == 0).all() and not (module.running_mean == 0).all()  # type: ignore[operator]
            if isinstance(module, nn.Linear):
                assert (module.bias == 0).all()

    def test_weights_and_scores_are_drawn_as_in_the_papers(self) -> None:
        layer = nn.Conv2d(64, 128, 3)
        _scores.attach(layer, 0.25, 0, methods._load("biprop").Binary)
        fan = 64 * 9
        weight, scores = layer.parametrizations.weight.original, layer.parametrizations.weight[0].scores  # type: ignore[union-attr, index]
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan / 0.25), rel=0.01)
        assert scores.abs().max().item() == pytest.approx(math.sqrt(1 / fan), rel=0.01)
        assert scores.std().item() == pytest.approx(math.sqrt(1 / fan / 3), rel=0.01)


class TestBasis:
    @pytest.mark.parametrize(("method", "network"), list(itertools.product(BASES, NETWORKS)))
    def test_all_coefficients_are_the_plain_network(self, method: str, network: str, double: None, digits: Dataset) -> None:
        """Orthonormal: trained in either basis, momentum and weight decay included, is trained as it is."""
        data = lt.load_data("digits", image_size=16)
        model, plain = attached(method, network, share=1.0), built(network)
        close(answers(model, IMAGES.double()), answers(plain, IMAGES.double()), 1e-12)
        for one in (model, plain):
            trained(one, dataclasses.replace(data, train=_first(data, 96)))
        assert methods.bake(model).kept == sum(m.weight.numel() for m in layers(plain).values())
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 2), (7, 5), (6, 9), (12, 4, 3, 3)])
    def test_cosines_are_scipy_s(self, shape: tuple[int, ...], double: None) -> None:
        weight = torch.randn(shape)
        expected = scipy.fft.dctn(weight.flatten(1).numpy(), norm="ortho")
        torch.testing.assert_close(basis.spectrum(weight), torch.from_numpy(expected))
        back = basis._Synthesis.apply(torch.from_numpy(expected))
        torch.testing.assert_close(back.view(shape), weight)

    @pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
    @pytest.mark.parametrize("network", NETWORKS)
    def test_training_stays_in_the_kept_directions(self, network: str, share: float, digits: Dataset) -> None:
        """Those of the largest singular values of the trained weights; exactly the share of them, and one in each layer."""
        model, before = attached("basis", network, share), built(network, 7)
        trained(model, digits, dataclasses.replace(RECIPE, epochs=1))
        methods.bake(model)
        ranks = []
        for name, layer in layers(model).items():
            matrix, theirs = layer.weight.flatten(1).detach().double(), layers(before)[name].weight.flatten(1).detach().double()
            rank = int((torch.linalg.svdvals(matrix) > 1e-5 * torch.linalg.matrix_norm(matrix, 2)).sum())
            u, _, v = torch.linalg.svd(theirs, full_matrices=False)
            projected = u[:, :rank] @ (u[:, :rank].T @ matrix) if len(u) <= v.shape[1] else matrix @ v[:rank].T @ v[:rank]
            close(projected, matrix)
            ranks.append((rank, min(matrix.shape)))
        kept, full = (sum(column) for column in zip(*ranks, strict=True))
        assert kept == max(len(ranks), round(share * full)) and min(rank for rank, _ in ranks) >= 1

    @pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
    @pytest.mark.parametrize("network", NETWORKS)
    def test_training_stays_in_the_kept_spectrum(self, network: str, share: float, digits: Dataset) -> None:
        model = attached("basis-dct", network, share)
        chosen = {name: layer.parametrizations.weight[0].chosen for name, layer in layers(model).items()}
        total = sum(c.numel() for c in chosen.values())
        assert sum(int(c.sum()) for c in chosen.values()) == round(share * total) and all(c.any() for c in chosen.values())
        trained(model, digits, dataclasses.replace(RECIPE, epochs=1))
        assert methods.bake(model).kept == round(share * total)
        for name, layer in layers(model).items():
            spectrum = torch.from_numpy(scipy.fft.dctn(layer.weight.flatten(1).detach().numpy(), norm="ortho"))
            assert spectrum[~chosen[name]].abs().max() <= 1e-5 * spectrum.abs().max() and spectrum[chosen[name]].abs().max() > 0

    @pytest.mark.parametrize("method", BASES)
    def test_a_level_keeps_coordinates_of_the_level_before(self, method: str, digits: Dataset) -> None:
        """However often: ranks and spectra only shrink. Each level restarts from the first weights."""
        before, spaces = built("conv2"), []
        for share in (0.6, 0.3, 0.1):
            model = built("conv2")
            methods.attach(method, model, share, 0, before)
            choices = [layer.parametrizations.weight[0] for layer in layers(model).values()]
            spaces.append([c.vectors.shape[1] if method == "basis" else c.chosen for c in choices])
            trained(model, digits, dataclasses.replace(RECIPE, epochs=1))
            methods.bake(model)
            before = model
        for wide, narrow in itertools.pairwise(spaces):
            assert all(n <= w if method == "basis" else not (n & ~w).any() for w, n in zip(wide, narrow, strict=True))

    def test_keeps_what_lamp_keeps(self) -> None:
        """Energy over the energy of all that are at least as large, over all layers; the scale of a layer does not matter."""
        generator = torch.Generator().manual_seed(0)
        energies = {
            "a": torch.rand(40, generator=generator),
            "b": 1e6 * torch.rand(4, 5, generator=generator),
            "c": torch.rand(1, generator=generator),
        }
        scores = {n: [float(x / e[e >= x].sum()) for x in e.flatten()] for n, e in energies.items()}
        for share in (0.1, 0.4, 0.77):
            found = basis._best(energies, share)
            best = sorted((s for part in scores.values() for s in part), reverse=True)[: round(share * 61)]
            for name, kept in found.items():
                assert kept.shape == energies[name].shape
                assert torch.equal(kept.flatten(), torch.tensor([s >= best[-1] for s in scores[name]]))

    def test_grouped_convolutions_stay(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
        methods.attach("basis", model, 0.5, 0, copy.deepcopy(model))
        assert [parametrize.is_parametrized(m) for m in model] == [True, False, True]
        with pytest.raises(BadModel, match="grouped"):
            methods.attach("basis", nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), 0.5, 0, nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)))


def _first(data: Dataset, images: int) -> TensorSplit:
    part = data.train
    assert isinstance(part, TensorSplit)
    return TensorSplit(part._images[:images], part._labels[:images], part._mean.double(), part._std.double())


def low_rank(layer: Any, rank: int) -> Any:
    with torch.no_grad():
        matrix = layer.weight.flatten(1)
        layer.weight.copy_((torch.randn(len(matrix), rank) @ torch.randn(rank, matrix.shape[1])).view_as(layer.weight))
    return layer


class TestFactorise:
    CONVOLUTIONS = (
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "bias": False},
        {"kernel_size": (5, 3), "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
        {"kernel_size": 1},
    )

    @pytest.mark.parametrize("settings", CONVOLUTIONS)
    @pytest.mark.parametrize("rank", [1, 3, 7])
    def test_equals_in_fewer_macs(self, settings: dict[str, Any], rank: int) -> None:
        torch.manual_seed(rank)
        model = nn.Sequential(low_rank(nn.Conv2d(18, 20, **settings), rank), nn.Tanh(), nn.Conv2d(20, 6, 1))
        images = torch.randn(2, 18, 11, 11)
        found = factorise(model, images)
        close(answers(found.module, images), answers(model, images))
        assert found.ranks == {"0": rank} and size(found.module, images).macs < size(model, images).macs
        assert found.error <= 1e-5 and isinstance(model[0], nn.Conv2d)  # the original stays

    @pytest.mark.parametrize("network", NETWORKS)
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
    def test_a_pruned_basis(self, network: str, share: float, digits: Dataset) -> None:
        """A trained ticket in two layers where that pays: never more MACs, parameters as many as were kept."""
        model = attached("basis", network, share)
        ranks = {name: layer.parametrizations.weight[0].vectors.shape[1] for name, layer in layers(model).items()}
        trained(model, digits, dataclasses.replace(RECIPE, epochs=1))
        methods.bake(model)
        found = factorise(model, IMAGES)
        close(answers(found.module), answers(model))
        pays = {n for n, m in layers(model).items() if ranks[n] * sum(m.weight.flatten(1).shape) < m.weight.numel()}
        assert found.ranks == {n: ranks[n] for n in pays} and set(found.told) == set(ranks)
        before, after = size(model, IMAGES), size(found.module, IMAGES)
        assert (after.macs < before.macs and after.params < before.params) if pays else after == before

    def test_a_spectrum_of_few_rows(self) -> None:
        """Weights of any basis count by their rank."""
        spectrum = torch.zeros(20, 30)
        spectrum[[0, 3, 9]] = torch.randn(3, 30)
        model = nn.Sequential(nn.Flatten(), nn.Linear(30, 20))
        with torch.no_grad():
            model[1].weight.copy_(torch.from_numpy(scipy.fft.idctn(spectrum.numpy(), norm="ortho")))
        assert factorise(model, torch.randn(3, 30)).ranks == {"1": 3}

    def test_what_stays_whole(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.grouped = low_rank(nn.Conv2d(16, 16, 3, groups=2), 1)
                self.own = low_rank(type("Own", (nn.Linear,), {})(16, 16), 1)
                self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
                self.full = nn.Linear(16, 16)
                self.idle = low_rank(nn.Linear(16, 16), 1)
                self.zero = nn.Linear(16, 16)
                nn.init.zeros_(self.zero.weight)
                low_rank(self.attention.out_proj, 1)

            def forward(self, x: Tensor) -> Tensor:
                x = self.own(self.grouped(x).mean((2, 3)))[:, None]
                x = x + self.attention(x, x, x)[0]
                out: Tensor = self.full(x) + self.zero(x)
                return out

        found = factorise(Net(), torch.randn(2, 16, 5, 5))
        assert found.ranks == {"zero": 1}
        reasons = {
            "grouped": "grouped",
            "own": "is a Own",
            "attention.out_proj": "code is its own",
            "full": "rank is 16 of 16",
            "idle": "not call it",
        }
        for name, reason in reasons.items():
            assert reason in found.told[name]

    def test_a_layer_alone(self) -> None:
        found = factorise(low_rank(nn.Linear(12, 12), 2), torch.randn(3, 12))
        assert isinstance(found.module, nn.Sequential) and found.ranks == {"": 2}

    def test_folds_and_exports(self, tmp_path: Path) -> None:
        model = attached("basis", "vgg", 0.3)
        model.train()(IMAGES)
        methods.bake(model)
        folded, _ = fold_batch_norm(model.eval(), IMAGES)
        found = factorise(folded, IMAGES)
        assert found.ranks
        export_onnx(found.module, IMAGES, tmp_path / "small.onnx")
        close(run_onnx(tmp_path / "small.onnx", IMAGES), answers(model))


class TestSigns:
    @staticmethod
    def ticket(network: str) -> nn.Module:
        """With batch norm's statistics of some images, so that folding multiplies each filter by its own number."""
        model = attached("biprop", network)
        model.train()(IMAGES)
        methods.bake(model)
        return fold_batch_norm(model.eval(), IMAGES)[0]

    @pytest.mark.parametrize("network", NETWORKS)
    def test_the_same_weights_in_fewer_bytes(self, network: str, tmp_path: Path) -> None:
        folded, float_file, signs_file = self.ticket(network), tmp_path / "float.onnx", tmp_path / "signs.onnx"
        export_onnx(folded, IMAGES, float_file, {"producer": "x"})
        told = write_binary_weights(float_file, signs_file, IMAGES)
        assert told.error <= 1e-5 and (told.bytes_before, told.bytes) == (float_file.stat().st_size, signs_file.stat().st_size)
        saved = sum(3 * layer.weight.numel() for layer in layers(folded).values())
        assert told.bytes < told.bytes_before - 0.9 * saved + 300 * len(layers(folded))
        close(run_onnx(signs_file, IMAGES), answers(folded))
        model = onnx.load(signs_file)
        assert {p.key: p.value for p in model.metadata_props} == {"producer": "x"}
        held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        expected = {}
        for name, layer in layers(folded).items():
            signs, scale = held[f"{name}.weight_signs"], held[f"{name}.weight_scale"]
            assert signs.dtype == np.int8 and set(np.unique(signs)) == {-1, 0, 1} and f"{name}.weight" not in held
            assert np.array_equal(signs * scale, layer.weight.detach().numpy())
            expected[f"{name}.weight"] = f"signs with {scale.size} scales" if scale.size > 1 else "signs with 1 scale"
        assert told.outcomes == expected
        assert any("scales" in t for t in told.outcomes.values()) == (network == "vgg")

    def test_in_place_and_any_batch(self, tmp_path: Path) -> None:
        folded, path = self.ticket("conv2"), tmp_path / "net.onnx"
        export_onnx(folded, IMAGES, path)
        write_binary_weights(path, path, IMAGES)
        for batch in (1, 3, 9):
            images = torch.randn(batch, 1, 16, 16)
            close(run_onnx(path, images), answers(folded, images))

    def test_a_mixed_network(self, tmp_path: Path) -> None:
        """Weights of values that are not binary stay as they are."""
        folded, path = self.ticket("conv2"), tmp_path / "net.onnx"
        nn.init.normal_(folded.get_submodule("2").weight)  # type: ignore[arg-type]
        export_onnx(folded, IMAGES, path)
        told = write_binary_weights(path, path, IMAGES).outcomes
        assert {n for n, t in told.items() if not t.startswith("signs")} == {"2.weight"} and "differ in more" in told["2.weight"]
        close(run_onnx(path, IMAGES), answers(folded))

    def test_refuses_floats(self, tmp_path: Path) -> None:
        export_onnx(built("lenet300"), IMAGES, tmp_path / "net.onnx")
        with pytest.raises(BadModel, match="biprop"):
            write_binary_weights(tmp_path / "net.onnx", tmp_path / "signs.onnx", IMAGES)
        assert not (tmp_path / "signs.onnx").exists()

    @pytest.mark.parametrize("each", [False, True])
    @pytest.mark.parametrize("product", ["MatMul", "Gemm", "GemmT", "ConvTranspose"])
    def test_filters_lie_along_the_product_s_axis(self, product: str, each: bool, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        axis = 0 if product == "GemmT" else 1
        shape = (12, 16, 3, 3) if product == "ConvTranspose" else (16, 12) if product == "GemmT" else (12, 16)
        scale = rng.random(16).astype(np.float32) + 0.5 if each else np.float32(0.7)
        along = [16 if d == axis else 1 for d in range(len(shape))]
        weight = rng.integers(-1, 2, shape).astype(np.float32) * (scale.reshape(along) if each else scale)
        kind, attributes = ("Gemm", {"transB": 1}) if product == "GemmT" else (product, {})
        node = helper.make_node(kind, ["images", "w"], ["logits"], **attributes)
        images = torch.randn((2, 12, 5, 5) if product == "ConvTranspose" else (2, 12))
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(images.shape))],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 16, 7, 7] if product == "ConvTranspose" else [2, 16])],
            [numpy_helper.from_array(weight.astype(np.float32), "w")],
        )
        path = tmp_path / "net.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        expected = run_onnx(path, images)
        assert write_binary_weights(path, path, images).outcomes == {"w": "signs with 16 scales" if each else "signs with 1 scale"}
        close(run_onnx(path, images), expected)
