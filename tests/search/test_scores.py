"""Strong and multi-prize tickets: scores are trained, weights are not."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from attached import FROZEN, IMAGES, NETWORKS, attached, built, layers, trained
from torch import nn
from torch.nn import functional as F

from ltcompile.data import Dataset
from ltcompile.search import methods
from ltcompile.search.methods import _scores


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
    def test_edge_popup_never_trains_a_weight(self, network: str, few_digits: Dataset) -> None:
        """To the bit; what stays is what has the largest scores, and other weights than those at the beginning."""
        model = attached("edge-popup", network)
        initial = {name: layer.parametrizations.weight.original.clone() for name, layer in layers(model).items()}
        first = methods.bake(copy.deepcopy(model)).mask
        trained(model, few_digits)
        scores = {name: layer.parametrizations.weight[0].scores.detach().abs() for name, layer in layers(model).items()}
        last = methods.bake(model).mask
        assert first is not None and last is not None
        for name, layer in layers(model).items():
            kept = last.kept[f"{name}.weight"]
            assert torch.equal(layer.weight, torch.where(kept, initial[name], 0.0))
            assert scores[name][kept].min() >= scores[name][~kept].max()
            assert not torch.equal(kept, first.kept[f"{name}.weight"])

    @pytest.mark.parametrize("network", NETWORKS)
    def test_biprop_is_alpha_and_signs(self, network: str, few_digits: Dataset) -> None:
        model = attached("biprop", network)
        initial = {name: layer.parametrizations.weight.original.clone() for name, layer in layers(model).items()}
        trained(model, few_digits)
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
    def test_nothing_else_is_trained(self, method: str, few_digits: Dataset) -> None:
        """Whatever was there before: norms are one and zero, biases zero."""
        model = built("vgg")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.3)
        methods.attach(method, model, 0.5, 0)
        trained(model, few_digits)
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
