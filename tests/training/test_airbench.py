"""The airbench network: its whitening, its first weights, and that its recipe learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ltcompile as lt
from ltcompile.models import default_recipe
from ltcompile.models.airbench import Airbench, MultiCrop
from ltcompile.tasks import Classification
from ltcompile.training import train

CPU = torch.device("cpu")


def network() -> Airbench:
    torch.manual_seed(0)
    model = lt.build_model("airbench", 10, 3, 16)
    assert isinstance(model, Airbench)
    return model


def test_the_first_batch_whitens_patches_once() -> None:
    model = network().train()
    mixing = torch.tensor([[1.0, 0.8, 0.5], [0.0, 0.5, 0.2], [0.0, 0.0, 0.3]])
    images = torch.einsum("nchw,cd->ndhw", torch.randn(256, 3, 16, 16), mixing) + 0.2
    shift = model.whitening.bias.detach()[:, None, None]
    model(images)
    out = (model.whitening(images) - shift).movedim(1, 0).flatten(1).double()
    first, other = out[:12], out[12:]
    torch.testing.assert_close(first, -other)
    torch.testing.assert_close(first @ first.T / first.shape[1], torch.eye(12).double(), rtol=0, atol=0.06)  # 5e-4 is added to variances
    before = model.whitening.weight.clone()
    model(10 * images)
    assert torch.equal(model.whitening.weight, before) and int(model.whitening.whitened) == 1


def test_convolutions_begin_as_the_identity() -> None:
    layer, x = network().features[1], torch.randn(2, 24, 5, 5)
    torch.testing.assert_close(layer(x)[:, :24], x)


@pytest.mark.slow
def test_the_recipe_learns_and_the_network_is_cut_like_any() -> None:
    data = lt.load_data("digits", image_size=9)
    model = lt.build_model("airbench", 10, 1, 9)
    recipe = dataclasses.replace(default_recipe("airbench"), epochs=2, batch=32, lr=0.3, crop_pixels=0, flip=False)
    found = train(model, Classification(data), recipe, 0, CPU)
    assert found.val.value > 0.8
    plan = lt.plan(model, data.example, 0.5)
    assert {g.name for g in plan.groups if not g.frozen} == {"whitening", *(f"features.{i}" for i in (1, 5, 8, 12, 15, 19))}
    x = data.example
    torch.testing.assert_close(lt.cut(model, plan).eval()(x), lt.mask(model, plan).eval()(x), rtol=1e-5, atol=1e-5)


def test_averaging_over_crops_changes_nothing_of_a_network_that_sees_none() -> None:
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    x = torch.ones(2, 3, 8, 8) * torch.arange(3)[:, None, None]
    torch.testing.assert_close(MultiCrop(model)(x), model(x))
    ramp = torch.arange(64.0).view(1, 1, 8, 8)
    one = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1, bias=False))
    torch.nn.init.zeros_(one[1].weight)
    one[1].weight.data[0, 9] = 1.0  # pixel (1, 1): 9, mirrored 14; shifted by one: 0 and 18, mirrored 7 and 21
    assert MultiCrop(one)(ramp).item() == pytest.approx((2 * (9 + 14) + (0 + 7) + (18 + 21)) / 8)
