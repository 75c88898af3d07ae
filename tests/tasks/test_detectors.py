"""Detectors and their metric: torchvision's losses and detections are its own, what a loss trains is what `detect` reads, and COCO's AP."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

import ltcompile as lt
from ltcompile.data import scenes
from ltcompile.errors import InvalidModel, InvalidSetting, UnknownName
from ltcompile.graph.outputs import outputs_of
from ltcompile.models import _detection, default_recipe
from ltcompile.models._detection import OneStage
from ltcompile.tasks._average_precision import mean_average_precision

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = {
    "boxes": [torch.tensor([[4.0, 4, 24, 24], [30, 30, 60, 62]]), torch.zeros(0, 4)],
    "labels": [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.long)],
}


def small(kind: str) -> Any:
    """A detector of torchvision with three classes of its own and a tiny backbone."""
    backbone: Any = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.BatchNorm2d(32), nn.ReLU())
    backbone.out_channels = 32
    if kind == "ssdlite":
        return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    if kind == "fcos":
        anchors = detection.anchor_utils.AnchorGenerator(((8,),), ((1.0,),))
        return detection.FCOS(backbone, 3, anchor_generator=anchors, score_thresh=0.0)
    return detection.RetinaNet(
        backbone, 3, anchor_generator=detection.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),)), score_thresh=0.0
    )


@pytest.mark.parametrize("kind", ["ssdlite", "fcos", "retinanet"])
def test_losses_and_detections_are_those_of_torchvision(kind: str) -> None:
    torch.manual_seed(0)
    network, background = small(kind), int(kind == "ssdlite")
    network.transform = _detection._Prepared()
    model = OneStage(network, background, (64, 64))
    wanted = [{"boxes": b, "labels": k + background} for b, k in zip(TARGETS["boxes"], TARGETS["labels"], strict=True)]
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    assert all(v.eq(0).all() or v.eq(1).all() for v in before.values()), "building the network does not train its norms"
    own = sum(network(list(IMAGES), wanted).values())
    for name, value in before.items():
        model.state_dict()[name].copy_(value)
    loss = model.loss(model(IMAGES), TARGETS)
    torch.testing.assert_close(loss, own)
    loss.backward()
    assert all(p.grad is not None for p in network.head.parameters())

    model.eval()
    with torch.no_grad():
        for found, expected in zip(model.detect(model(IMAGES)), network(list(IMAGES)), strict=True):
            assert len(expected["boxes"])
            torch.testing.assert_close(found, {**expected, "labels": expected["labels"] - background})


def test_torchvision_names() -> None:
    assert {"ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn", "retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn"} <= {
        *_detection.names()
    }
    assert default_recipe("torchvision:ssdlite320_mobilenet_v3_large").batch == 16
    outputs = lt.build_model("torchvision:ssdlite320_mobilenet_v3_large", 5, 3, (32, 64)).eval()(torch.zeros(1, 3, 32, 64))
    assert outputs["cls_logits"].shape[2] == 6 and outputs["bbox_regression"].shape == (*outputs["cls_logits"].shape[:2], 4)
    with pytest.raises(InvalidModel, match="takes 3 colour channels"):
        lt.build_model("torchvision:fcos_resnet50_fpn", 5, 1, 64)
    with pytest.raises(UnknownName, match="ssdlite320_mobilenet_v3_large"):
        lt.build_model("torchvision:ssdlite320_mobilenet_v3_larg")


def test_what_the_loss_trains_is_what_is_detected() -> None:
    drawn = scenes.draw("val", 8)
    targets = {
        "boxes": [boxes[labels >= 0] for boxes, labels in zip(drawn.boxes, drawn.labels, strict=True)],
        "labels": [labels[labels >= 0] for labels in drawn.labels],
    }
    model: Any = lt.build_model("centernet-small", 10, 3, 64)
    outputs = {name: torch.zeros(8, channels, 16, 16, requires_grad=True) for name, channels in (("heat", 10), ("size", 2), ("offset", 2))}
    optimizer = torch.optim.Adam(outputs.values(), 0.3)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(outputs, targets).backward()
        optimizer.step()
    truth = [{"boxes": b, "labels": k} for b, k in zip(targets["boxes"], targets["labels"], strict=True)]
    assert mean_average_precision(model.detect(outputs), truth, 10) > 0.9
    nothing = {"boxes": [torch.zeros(0, 4)] * 8, "labels": [torch.zeros(0, dtype=torch.long)] * 8}
    assert model.loss(outputs, nothing).isfinite()


def test_a_cut_detector_has_its_outputs_losses_and_detections() -> None:
    torch.manual_seed(0)
    model, images = lt.build_model("centernet-small", 3, 3, 32).eval(), IMAGES[..., :32, :32]
    cut: Any = lt.cut(model, lt.plan(model, images, 0.5)).eval()
    with torch.no_grad():
        outputs = cut(images)
    assert list(outputs_of(outputs)) == ["heat", "size", "offset"] and len(cut.detect(outputs)) == 2
    assert cut.loss(outputs, TARGETS).isfinite()


class TestAveragePrecision:
    TRUTH = (
        {"boxes": [[0.0, 0, 10, 10], [20, 20, 30, 30]], "labels": [7, 7]},
        {"boxes": [[0.0, 0, 10, 10]], "labels": [7]},
        {"boxes": [], "labels": []},
    )

    def of(self, *found: tuple[int, list[float], float, int]) -> float:
        """The mAP of (image, box, score, label)."""
        guesses = [[each for each in found if each[0] == image] for image in range(3)]
        detections = [self.tensors([g[1] for g in few], [g[3] for g in few], [g[2] for g in few]) for few in guesses]
        return mean_average_precision(detections, [self.tensors(**there) for there in self.TRUTH], 10)

    @staticmethod
    def tensors(boxes: Any, labels: Any, scores: Any = None) -> dict[str, Tensor]:
        found = {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
        return found if scores is None else {**found, "scores": torch.tensor(scores)}

    def test_against_hand_computed_cases(self) -> None:
        """Of 101 recalls, the first 34 need one of three objects, the first 67 two."""
        first, second, third = (0, [0.0, 0, 10, 10], 0.9, 7), (0, [20.0, 20, 30, 30], 0.6, 7), (1, [0.0, 0, 10, 10], 0.5, 7)
        cases: list[tuple[Any, float]] = [
            ((first, second, third), 1.0),
            ((first,), 34 / 101),
            ((), 0.0),
            ((first, second, (1, [0.0, 0, 10, 7.2], 0.5, 7)), (5 * 1 + 5 * 67 / 101) / 10),  # an overlap of 0.72: five of ten thresholds
            (((2, [0.0, 0, 10, 10], 1.0, 7), first, second, third), 3 / 4),  # a wrong one first: precision at most 3/4
            ((first, (0, [0.0, 0, 10, 10], 0.8, 3), second, third), 1.0),  # a class that does not occur
        ]
        for found, expected in cases:
            assert self.of(*found) == pytest.approx(expected, abs=1e-6), found

    def test_without_objects_it_is_zero(self) -> None:
        empty = [self.tensors([], [])]
        assert mean_average_precision([self.tensors([], [], [])], empty, 3) == 0.0

    def test_pycocotools_is_optional(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("pycocotools")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        with pytest.raises(InvalidSetting, match=r"pip install 'ltcompile\[detection\]'"):
            self.of()
