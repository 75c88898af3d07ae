"""Wrapped networks are the networks inside, for every public function that takes one."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import ltcompile as lt
from ltcompile.errors import InvalidModel
from ltcompile.graph.wrappers import unwrap


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


WRAPPERS = {
    "compiled": torch.compile,
    "compiled in place": lambda model: model.compile() or model,
    "data parallel": nn.DataParallel,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_network_is_planned_and_cut_as_the_plain_one(wrapper):
    plain, example = network(), torch.randn(2, 3, 8, 8)
    wrapped = WRAPPERS[wrapper](network())
    plan = lt.plan(plain, example, ratio=0.5)
    assert lt.plan(wrapped, example, ratio=0.5) == plan
    assert lt.size(wrapped, example) == lt.size(plain, example)
    for change in (lt.cut, lt.mask):
        expected = change(plain, plan).eval()
        found = change(wrapped, plan).eval()
        assert found.state_dict().keys() == expected.state_dict().keys()
        torch.testing.assert_close(found(example), expected(example))
    embedded = lt.embed(nn.DataParallel(lt.cut(wrapped, plan)), plan, wrapped)
    torch.testing.assert_close(embedded.eval()(example), lt.mask(plain, plan).eval()(example))


def test_distributed_networks_are_unwrapped(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plain = network()
        assert unwrap(nn.parallel.DistributedDataParallel(plain)) is plain
    finally:
        torch.distributed.destroy_process_group()


def test_a_module_of_the_users_called_as_a_wrapper_is_not_one():
    class DataParallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = network()

        def forward(self, x):
            return self.module(x) * 2

    mine = DataParallel()
    assert unwrap(mine) is mine


@pytest.mark.parametrize(
    "model, reported",
    [
        ("vgg16", "not str; lt.build_model"),
        (torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3))), "TorchScript"),
        (nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)), "0 (LazyConv2d) has no weights yet; run the network once"),
    ],
)
def test_what_is_no_network_is_refused_with_what_to_do(model, reported):
    with pytest.raises(InvalidModel, match=re.escape(reported)):
        lt.plan(model, torch.randn(2, 3, 8, 8), ratio=0.5)
    with pytest.raises(InvalidModel):
        lt.size(model, torch.randn(2, 3, 8, 8))
