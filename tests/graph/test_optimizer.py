"""An optimizer goes through a cut: the next step of the small network is that of the masked one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import NETWORKS
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import ltcompile as lt
from ltcompile.errors import InvalidSetting
from ltcompile.graph.surgeon import dropped_weights, zero_

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("network", ["resnet20", "branches", "depthwise"])
@pytest.mark.slow
def test_the_next_steps_are_those_of_a_masked_optimizer(network: str, name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    model = NETWORKS[network]().double().train()
    images = images.double()
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    optimizer = OPTIMIZERS[name](weights)
    optimizer.add_param_group({"params": [p for n, p in model.named_parameters() if not n.endswith("weight")], "weight_decay": 0.0})
    for _ in range(3):
        step(model, optimizer, images)
    plan = lt.plan(model, images, ratio=0.4)

    masked = lt.mask(model, plan)
    theirs = OPTIMIZERS[name]([p for n, p in masked.named_parameters() if n.endswith("weight")])
    theirs.add_param_group({"params": [p for n, p in masked.named_parameters() if not n.endswith("weight")], "weight_decay": 0.0})
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    small = lt.cut(model, plan, optimizer)
    dropped = dropped_weights(masked, plan)
    for _ in range(3):
        step(small, optimizer, images)
        step(masked, theirs, images)
        zero_(masked, dropped)
    expected, found = dict(masked.named_parameters()), dict(lt.embed(small, plan, model).named_parameters())
    for full, value in expected.items():
        torch.testing.assert_close(found[full], value, rtol=0, atol=1e-6)


def test_groups_keep_their_settings_and_schedulers_their_optimizer(images: Tensor) -> None:
    model = NETWORKS["branches"]()
    optimizer = torch.optim.SGD([{"params": [model.c.weight], "lr": 0.3}, {"params": model.head.parameters()}], 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    small = lt.cut(model, lt.plan(model, images, ratio=0.4), optimizer)
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [[id(small.c.weight)], [*map(id, small.head.parameters())]]
    step(small, optimizer, images)
    schedule.step()
    assert [round(g["lr"], 6) for g in optimizer.param_groups] == [0.03, 0.01]


def test_an_averaged_copy_is_cut_as_the_network_is(images: Tensor) -> None:
    model = NETWORKS["branches"]()
    ema = AveragedModel(model)
    plan = lt.plan(model, images, ratio=0.4)
    ema.module = lt.cut(ema, plan)
    small = lt.cut(model, plan)
    torch.testing.assert_close(ema.module.state_dict(), small.state_dict())
    ema.update_parameters(small)


def test_refused(images: Tensor) -> None:
    model, other = NETWORKS["branches"](), NETWORKS["branches"]()
    plan = lt.plan(model, images, ratio=0.4)
    with pytest.raises(InvalidSetting, match=r"group 0 holds a parameter of shape .* that the model does not have"):
        lt.cut(model, plan, torch.optim.SGD(other.parameters(), 0.1))
    with pytest.raises(InvalidSetting, match="not str"):
        lt.cut(model, plan, "sgd")  # type: ignore[arg-type]
    odd = torch.optim.Adafactor(model.parameters())
    step(model, odd, images)
    before = [id(p) for g in odd.param_groups for p in g["params"]]
    with pytest.raises(InvalidSetting, match=r"Adafactor keeps .*_var of shape .* which cannot be cut"):
        lt.cut(model, plan, odd)
    assert [id(p) for g in odd.param_groups for p in g["params"]] == before

    normed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(InvalidSetting, match="belongs to a weight that is computed"):
        lt.cut(normed, lt.plan(normed, images), torch.optim.SGD(normed.parameters(), 0.1))
