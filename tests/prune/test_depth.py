"""Plans that remove branches meet the same targets, and change the outputs no more than widths alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ltcompile as lt
from ltcompile.errors import InvalidData, InvalidSetting
from ltcompile.graph import size
from ltcompile.models.resnet import ResNet

INPUTS = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def network() -> torch.nn.Module:
    """One block does nothing, as its last scale is zero: it must be the first to go."""
    torch.manual_seed(0)
    model = ResNet(16, [3, 3, 3], 10, 3)
    torch.nn.init.zeros_(model.get_submodule("blocks.0.bn2").weight)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"target_macs": 0.6}, {"target_params": 0.7}, {"ratio": 0.4}])
def test_a_useless_branch_goes_first(target: dict[str, Any]) -> None:
    model = network()
    plan = lt.plan(model, INPUTS[0], inputs=INPUTS, depth=True, **target)
    assert "blocks.0.bn2" in {branch.name for branch in plan.removed_branches}
    small = lt.cut(model, plan).eval()
    torch.testing.assert_close(small(INPUTS[0]), lt.mask(model, plan).eval()(INPUTS[0]), rtol=1e-4, atol=1e-4)
    if "target_macs" in target:
        assert size(small, INPUTS[0]).macs <= 0.6 * size(model, INPUTS[0]).macs


def test_limits_and_inputs() -> None:
    with pytest.raises(InvalidData, match="inputs="):
        lt.plan(network(), INPUTS[0], depth=True)
    for wrong, says in (
        ({"y": INPUTS[0]}, "inputs give y, and the network takes x"),
        (INPUTS[0][:, :1], "does not run on what inputs= gives"),
    ):
        with pytest.raises(InvalidData, match=says):
            lt.plan(network(), INPUTS[0], depth=True, inputs=[wrong])  # type: ignore[list-item]
    with pytest.raises(InvalidSetting, match="limits keep all"):
        lt.plan(network(), INPUTS[0], inputs=INPUTS, depth=True, limits=lt.Limits(keep=(r"blocks\.\d\.conv1",)))


@pytest.mark.slow
def test_a_last_batch_of_one_input_gives_statistics_to_norms_that_it_has_some_for() -> None:
    """In the last stage it has one value a channel, which has no variance."""
    model = ResNet(8, [1, 1, 1], 10, 3)
    inputs = [torch.randn(rows, 3, 4, 4, generator=torch.Generator().manual_seed(rows)) for rows in (8, 1)]
    assert size(lt.cut(model, lt.plan(model, inputs[0], inputs=inputs, depth=True, target_macs=0.6)), inputs[0]).macs > 0
    with pytest.raises(InvalidData, match="pass batches of two rows or more"):
        lt.plan(model, inputs[0], inputs=[inputs[1].mean((2, 3), keepdim=True)], depth=True, target_macs=0.6)
