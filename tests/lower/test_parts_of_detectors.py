"""What public detectors and flow networks do, in small: padded max pools, heads of equal filters, cached anchors, grids, sorted queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.deploy.equality import EXACT, check_cut
from ltcompile.lower import export_onnx, fold_batch_norm, run_onnx

pytestmark = pytest.mark.filterwarnings("ignore")


class Padded(nn.Module):
    """YOLOv3-tiny's last pool, on negative values too."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.conv, self.pad = nn.Conv2d(3, 4, 3), nn.ConstantPad2d((0, 1, 0, 1), value)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.pad(F.leaky_relu(self.conv(x), 0.1) - 1.0), 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, -0.5, float("-inf")])
def test_a_max_pool_behind_a_pad_keeps_the_value_of_the_pad(value: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Padded(value).eval(), torch.randn(2, 3, 6, 6)
    export_onnx(net, x, tmp_path / "net.onnx")
    torch.testing.assert_close(run_onnx(tmp_path / "net.onnx", x), net(x).detach())


class Heads(nn.Module):
    """Two heads that begin with equal filters, as the one-to-one heads of YOLO do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.many, self.one = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.one.weight.data.copy_(self.many.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        return self.many(x), self.one(x)


@pytest.mark.slow
def test_filters_of_equal_values_are_once_in_the_file(tmp_path: Path) -> None:
    net, x = Heads().eval(), torch.randn(2, 3, 6, 6)
    export_onnx(net, x, tmp_path / "net.onnx")
    found = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(None, {"x": x.numpy()})
    for file, own in zip(found, net(x), strict=True):
        np.testing.assert_allclose(file, own.detach().numpy(), rtol=1e-5, atol=1e-5)


class Places(nn.Module):
    """RAFT's grid of whole numbers, and anchors that are computed once and kept, as RT-DETR's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grid, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1)
        self.anchors: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.anchors is None:
            self.anchors = (torch.arange(x.shape[-1]).type_as(x) + 0.5) / 7
        grid = torch.arange(x.shape[-1]).float().expand(1, 1, x.shape[-2], -1)
        return self.last((self.first(x) + self.grid(grid)).relu()) * self.anchors


def test_the_proof_in_float64_takes_whole_numbers_and_what_is_computed_once() -> None:
    torch.manual_seed(0)
    net, x = Places().eval(), torch.randn(2, 3, 6, 6)
    plan = lt.plan(net, x, 0.5)
    small = lt.cut(net, plan).eval()
    small(x)  # one network has its anchors now, and the other does not
    assert check_cut(small, plan, net, x) <= EXACT


class Caches(nn.Module):
    anchors: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.anchors = torch.arange(x.shape[-1]).type_as(x) + 0.5
        return self.conv(x) * self.anchors


@pytest.mark.slow
def test_what_a_forward_pass_assigns_while_it_is_traced_is_not_left_in_a_folded_network(tmp_path: Path) -> None:
    """A tracer's tensors hold no values, and a network that has one can neither run nor be copied."""
    net, x = Caches().eval(), torch.randn(2, 3, 6, 6)
    folded, _ = fold_batch_norm(net, x)
    assert net.anchors is None and folded.anchors is None
    export_onnx(folded, x, tmp_path / "net.onnx")
