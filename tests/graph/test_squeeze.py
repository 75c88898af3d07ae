"""Zeros of any origin become structure."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, shaken
from torch import Tensor, nn
from torch.nn.utils import prune

import ltcompile as lt


@pytest.mark.parametrize("name", ["branches", "conv2", "depthwise", "resnet20", "transposed"])
def test_what_a_mask_zeroed_goes(name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    model = shaken(NETWORKS[name]())
    plan = lt.plan(model, images, ratio=0.4)
    masked = lt.mask(model, plan)
    small = lt.squeeze(masked, images)
    torch.testing.assert_close(small(images), masked(images), rtol=1e-5, atol=1e-5)
    assert lt.size(small, images).params == lt.size(lt.cut(model, plan), images).params


def test_masks_of_torch_count_as_zeros_and_the_network_stays(images: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    prune.ln_structured(model[0], "weight", amount=3, n=2, dim=0)
    prune.ln_structured(model[2], "weight", amount=0.5, n=2, dim=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = lt.squeeze(model, images)
    assert (small[0].out_channels, small[2].out_channels) == (5, 3)
    torch.testing.assert_close(small(images), model(images), rtol=1e-5, atol=1e-5)
    assert prune.is_pruned(model) and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TwoInputs(nn.Module):
    """An image and a vector, by name, with outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.head = nn.Conv2d(3, 6, 3), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        y = self.image(image).relu().mean((2, 3)) + self.vector(vector).relu()
        return {"logits": self.head(y), "size": self.head(y).square()}


def test_networks_with_several_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    model = TwoInputs().eval()
    with torch.no_grad():
        model.head.weight[:, 2:4] = 0
    example = {"image": torch.randn(2, 3, 8, 8), "vector": torch.randn(2, 5)}
    small = lt.squeeze(model, example)
    assert small.head.in_features == 4 and small.image.out_channels == 4
    torch.testing.assert_close(small(**example), model(**example), rtol=1e-5, atol=1e-5)
