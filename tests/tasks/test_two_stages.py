"""Faster R-CNN from images to a file: its detections are torchvision's, and every wrong filter is seen although rounding moves proposals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import faster_rcnn
from torch import nn

import ltcompile as lt
from ltcompile.errors import Disagreement, InvalidModel
from ltcompile.lower import export
from ltcompile.lower.answers import answers, of_network
from ltcompile.lower.inputs import Inputs
from ltcompile.models import detector
from ltcompile.models._two_stages import TwoStages
from ltcompile.numerics import FP32_TOLERANCE, Items, compare

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def spread(network: Any) -> Any:
    """The network with heads whose outputs differ from box to box."""
    with torch.no_grad():
        for part in (network.rpn.head, network.roi_heads.box_predictor):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.weight.mul_(20.0)
    return network


@pytest.fixture(scope="module")
def network() -> TwoStages:
    torch.manual_seed(0)
    return TwoStages(spread(faster_rcnn(levels=2)), (64, 64)).eval()


@pytest.mark.parametrize("levels", [1, 2])
def test_detections_and_losses_are_torchvisions(levels: int) -> None:
    torch.manual_seed(0)
    own = spread(faster_rcnn(levels)).eval()
    model = TwoStages(own, (64, 64)).eval()
    with torch.no_grad():
        for found, expected in zip(model.detect(model(IMAGES)), own(list(IMAGES)), strict=True):
            assert len(expected["boxes"]) > 3
            order, wanted = (each["scores"].argsort(descending=True, stable=True) for each in (found, expected))
            for name, value in {**expected, "labels": expected["labels"] - 1}.items():
                torch.testing.assert_close(found[name][order], value[wanted], rtol=1e-4, atol=1e-3)
    targets = [{"boxes": torch.tensor([[4.0, 4, 24, 24]]), "labels": torch.tensor([2])} for _ in IMAGES]
    losses = []
    for each in (model.train(), own.train()):
        torch.manual_seed(1)
        losses.append({name: value.item() for name, value in each(list(IMAGES), targets).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 4


def test_a_detector_of_ones_own() -> None:
    own = faster_rcnn().eval()
    assert isinstance(detector(own, 64), TwoStages) and not own.training
    with pytest.raises(InvalidModel, match="Linear is not torchvision's SSD"):
        detector(nn.Linear(2, 2), 64)


def test_names_of_ranked_outputs(network: TwoStages) -> None:
    named = of_network(network)(Inputs.of(network, IMAGES))
    assert [type(name) for name in named] == [Items] * 3 and {name.axis for name in named} == {1}
    assert len({name.ranking for name in named}) == 1
    plain = of_network(network.network.backbone)(Inputs.of(network.network.backbone, IMAGES))
    assert [type(name) for name in plain] == [str] * 2


def test_every_wrong_filter_is_seen(network: TwoStages) -> None:
    inputs = Inputs.of(network, IMAGES)
    exact = answers(of_network(network), inputs, 4)
    rounded = copy.deepcopy(network)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.mul_(1 + 1e-7 * torch.randn(weight.shape, generator=noise))
    assert compare(answers(of_network(rounded), inputs, 4), exact).refusal == ""
    tried = 0
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        for channel in range(0, len(layer.weight), max(1, len(layer.weight) // 8)):
            wrong = copy.deepcopy(network)
            filters: Any = wrong.get_submodule(name)
            with torch.no_grad():
                filters.weight[channel], filters.bias[channel] = 0.0, 0.0
            found = answers(of_network(wrong), inputs, 4)
            if all(np.array_equal(found[key], exact[key]) for key in exact):
                continue  # a unit that is never active
            tried += 1
            assert compare(found, exact).refusal, f"{name}: filter {channel}"
    assert tried > 40


@pytest.mark.slow
def test_plan_cut_shrink(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TwoStages(spread(faster_rcnn()), (64, 64)).eval()
    pruned = lt.Pruned.of_cut(network, lt.plan(network, IMAGES[:2], 0.5), IMAGES[:2])
    done = lt.shrink(pruned, tmp_path / "small.onnx")
    assert done.record["onnx_error"] <= done.record["tolerance"] and done.module.network.rpn.head.conv[0][0].out_channels < 16
    timed = {"runtimes": ["onnxruntime"], "devices": ["cpu"], "batches": [3], "seconds_per_row": 0.02}
    rows = lt.bench(pruned, file=tmp_path / "small.onnx", output=tmp_path / "bench.json", **timed).rows  # type: ignore[arg-type]
    assert max(row.max_error or 0.0 for row in rows) <= FP32_TOLERANCE
    assert lt.verify(tmp_path / "small.onnx", require=["answers"], seconds=0.02).checks


RNG = np.random.default_rng(0)
EXACT: dict[str, Any] = {Items("boxes"): RNG.normal(size=(4, 50, 4)), Items("scores"): RNG.normal(size=(4, 50))}


class TestItems:
    """What rounding may do to ranked items, and what it may not."""

    def moved(self, **changed: Any) -> Any:
        rng = np.random.default_rng(2)
        found = {str(name): value + 1e-6 * rng.normal(size=value.shape) for name, value in EXACT.items()}
        order = np.stack([rng.permutation(50) for _ in range(4)])
        found = {"boxes": np.take_along_axis(found["boxes"], order[..., None], 1), "scores": np.take_along_axis(found["scores"], order, 1)}
        return found | {name: change(found[name]) for name, change in changed.items()}

    def test_any_order(self) -> None:
        compared = compare(self.moved(), EXACT)
        assert compared.refusal == "" and compared.error < 1e-5 and compared.unmatched == 0

    def test_no_order_but_of_ranked_items(self) -> None:
        assert compare(self.moved(), {str(name): value for name, value in EXACT.items()}).refusal

    def test_one_in_a_hundred_may_be_another(self) -> None:
        def others(count: int) -> Any:
            return lambda boxes: np.concatenate([np.full((count, 4), 9.0), boxes.reshape(-1, 4)[count:]]).reshape(boxes.shape)

        assert compare(self.moved(boxes=others(2)), EXACT).unmatched == 0.01
        assert "1.5% of the 200 items" in compare(self.moved(boxes=others(3)), EXACT).refusal

    def test_outputs_of_an_item_stay_together(self) -> None:
        assert compare(self.moved(scores=lambda scores: scores[:, ::-1]), EXACT).refusal

    def test_outputs_of_two_rankings_are_two_lists(self) -> None:
        exact = {Items("boxes", 1, 1): EXACT["boxes"], Items("again", 1, 2): EXACT["boxes"][:, ::-1]}
        boxes = self.moved()["boxes"]
        assert compare({"boxes": boxes, "again": boxes}, exact).refusal == ""

    def test_rounding_that_picks_others_is_refused_where_it_hides_errors(self) -> None:
        def rounded(others: int) -> Any:
            return {str(name): np.concatenate([-value[:, :others], value[:, others:]], 1) for name, value in EXACT.items()}

        assert "which shows nothing" in compare(rounded(10), EXACT, rounded(10)).refusal
        assert compare(self.moved(), EXACT, rounded(0)).refusal == ""

    @pytest.mark.parametrize(("tolerance", "says"), [(1e-2, "rounding decides which items it picks"), (FP32_TOLERANCE, "please report it")])
    def test_a_file_in_half_precision_that_picks_others_is_no_bug(self, tolerance: float, says: str) -> None:
        exact = {name: torch.from_numpy(value) for name, value in EXACT.items()}
        with pytest.raises(Disagreement, match=f"items it ranks are off .*{says}"):
            export._compare([-value for value in exact.values()], exact, tolerance, "half.onnx")

    def test_what_is_not_finite_is_refused(self) -> None:
        def one_nan(boxes: Any) -> Any:
            boxes[0, 0, 0] = np.nan
            return boxes

        assert compare(self.moved(boxes=one_nan), EXACT).refusal
