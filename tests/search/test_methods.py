"""Laws that every method other than pruning obeys."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from attached import BASES, FROZEN, IMAGES, NETWORKS, RECIPE, answers, attached, built, close, layers, trained
from searches import QUICK
from torch import nn
from torch.nn.utils import parametrize

from ltcompile.core.recipe import Recipe
from ltcompile.data import Dataset
from ltcompile.errors import InvalidModel, InvalidSetting, UnknownName
from ltcompile.search import methods
from ltcompile.training import Epoch


class TestEveryMethod:
    def test_registry(self) -> None:
        assert set(methods.names()) == {*FROZEN, *BASES}
        assert {name for name in methods.names() if methods.iterative(name)} == set(BASES)

    @pytest.mark.parametrize(("method", "network"), list(itertools.product(methods.names(), NETWORKS)))
    def test_bakes_what_it_trained(self, method: str, network: str, few_digits: Dataset) -> None:
        """A plain network with the names of the first, that gives the answers of the parametrised one; and every training learns."""
        model = attached(method, network)
        done = trained(model, few_digits)
        assert done.epochs[-1].train_loss < done.epochs[0].train_loss
        before = answers(model)
        found = methods.bake(model)
        assert torch.equal(answers(model), before)
        assert [(n, v.shape) for n, v in model.state_dict().items()] == [(n, v.shape) for n, v in built(network).state_dict().items()]
        assert not any(parametrize.is_parametrized(m) for m in model.modules())
        assert all(p.requires_grad for p in model.parameters())
        assert found.coordinates == sum(m.weight.numel() for m in layers(model).values()) and 0 < found.kept < found.coordinates

    @pytest.mark.parametrize("method", methods.names())
    def test_resumed_is_never_stopped(self, method: str, few_digits: Dataset) -> None:
        """From any epoch's state, on a network attached again, to the bit."""
        states: list[dict[str, Any]] = []
        recipe = dataclasses.replace(RECIPE, epochs=3)

        def keep(epoch: Epoch, state: dict[str, Any], /) -> None:
            states.append(copy.deepcopy(state))

        whole = attached(method, "conv2")
        trained(whole, few_digits, recipe, progress=keep)
        for state in states[:-1]:
            other = attached(method, "conv2")
            trained(other, few_digits, recipe, state=state)
            assert all(torch.equal(v, other.state_dict()[n]) for n, v in whole.state_dict().items())

    @pytest.mark.parametrize("method", methods.names())
    def test_same_arguments_give_the_same_network(self, method: str) -> None:
        first, second = attached(method, "vgg").state_dict(), attached(method, "vgg").state_dict()
        assert list(first) == list(second) and all(torch.equal(v, second[n]) for n, v in first.items())

    @pytest.mark.slow
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
            with pytest.raises(InvalidSetting, match="share"):
                attached(method, "lenet300", share)
        empty = nn.Flatten()
        with pytest.raises(InvalidModel, match="no convolution or linear"):
            methods.attach(method, empty, 0.5, 0, empty)
        tied = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8))
        tied[2].weight = tied[1].weight
        with pytest.raises(InvalidModel, match="'2' and '1' share a weight"):
            methods.attach(method, tied, 0.5, 0, tied)
        with pytest.raises(InvalidModel, match="computes its weights from others"):
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
            with pytest.raises(InvalidSetting, match="trained network"):
                methods.attach(method, built("conv2"), 0.5, 0)
