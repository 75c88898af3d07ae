"""Generalised tickets: coefficients in a basis, and the layers that a low rank leaves."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import scipy.fft
import torch
from attached import BASES, IMAGES, NETWORKS, RECIPE, answers, attached, built, close, first_images, layers, trained
from torch import Tensor, nn
from torch.nn.utils import parametrize

import ltcompile as lt
from ltcompile.data import Dataset
from ltcompile.errors import InvalidModel
from ltcompile.graph import size
from ltcompile.graph.factorise import factorise
from ltcompile.lower import export_onnx, fold_batch_norm, run_onnx
from ltcompile.search import methods
from ltcompile.search.methods import basis


class TestBasis:
    @pytest.mark.parametrize(("method", "network"), list(itertools.product(BASES, NETWORKS)))
    def test_all_coefficients_are_the_plain_network(self, method: str, network: str, double: None, few_digits: Dataset) -> None:
        """Orthonormal: trained in either basis, momentum and weight decay included, is trained as it is."""
        data = lt.load_data("digits", image_size=16)
        model, plain = attached(method, network, share=1.0), built(network)
        close(answers(model, IMAGES.double()), answers(plain, IMAGES.double()), 1e-12)
        for one in (model, plain):
            trained(one, dataclasses.replace(data, train=first_images(data, 96)))
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
    def test_training_stays_in_the_kept_directions(self, network: str, share: float, few_digits: Dataset) -> None:
        """Those of the largest singular values of the trained weights; exactly the share of them, and one in each layer."""
        model, before = attached("basis", network, share), built(network, 7)
        trained(model, few_digits, dataclasses.replace(RECIPE, epochs=1))
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
    def test_training_stays_in_the_kept_spectrum(self, network: str, share: float, few_digits: Dataset) -> None:
        model = attached("basis-dct", network, share)
        chosen = {name: layer.parametrizations.weight[0].chosen for name, layer in layers(model).items()}
        total = sum(c.numel() for c in chosen.values())
        assert sum(int(c.sum()) for c in chosen.values()) == round(share * total) and all(c.any() for c in chosen.values())
        trained(model, few_digits, dataclasses.replace(RECIPE, epochs=1))
        assert methods.bake(model).kept == round(share * total)
        for name, layer in layers(model).items():
            spectrum = torch.from_numpy(scipy.fft.dctn(layer.weight.flatten(1).detach().numpy(), norm="ortho"))
            assert spectrum[~chosen[name]].abs().max() <= 1e-5 * spectrum.abs().max() and spectrum[chosen[name]].abs().max() > 0

    @pytest.mark.parametrize("method", BASES)
    def test_a_level_keeps_coordinates_of_the_level_before(self, method: str, few_digits: Dataset) -> None:
        """However often: ranks and spectra only shrink. Each level restarts from the first weights."""
        before, spaces = built("conv2"), []
        for share in (0.6, 0.3, 0.1):
            model = built("conv2")
            methods.attach(method, model, share, 0, before)
            choices = [layer.parametrizations.weight[0] for layer in layers(model).values()]
            spaces.append([c.vectors.shape[1] if method == "basis" else c.chosen for c in choices])
            trained(model, few_digits, dataclasses.replace(RECIPE, epochs=1))
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
        with pytest.raises(InvalidModel, match="grouped"):
            methods.attach("basis", nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), 0.5, 0, nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)))


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
    def test_a_pruned_basis(self, network: str, share: float, few_digits: Dataset) -> None:
        """A trained ticket in two layers where that pays: never more MACs, parameters as many as were kept."""
        model = attached("basis", network, share)
        ranks = {name: layer.parametrizations.weight[0].vectors.shape[1] for name, layer in layers(model).items()}
        trained(model, few_digits, dataclasses.replace(RECIPE, epochs=1))
        methods.bake(model)
        found = factorise(model, IMAGES)
        close(answers(found.module), answers(model))
        pays = {n for n, m in layers(model).items() if ranks[n] * sum(m.weight.flatten(1).shape) < m.weight.numel()}
        assert found.ranks == {n: ranks[n] for n in pays} and set(found.outcomes) == set(ranks)
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
            assert reason in found.outcomes[name]

    def test_a_layer_alone(self) -> None:
        found = factorise(low_rank(nn.Linear(12, 12), 2), torch.randn(3, 12))
        assert isinstance(found.module, nn.Sequential) and found.ranks == {"": 2}

    @pytest.mark.slow
    def test_folds_and_exports(self, tmp_path: Path) -> None:
        model = attached("basis", "vgg", 0.3)
        model.train()(IMAGES)
        methods.bake(model)
        folded, _ = fold_batch_norm(model.eval(), IMAGES)
        found = factorise(folded, IMAGES)
        assert found.ranks
        export_onnx(found.module, IMAGES, tmp_path / "small.onnx")
        close(run_onnx(tmp_path / "small.onnx", IMAGES), answers(model))
