"""int8 of networks that rank what they find: proposals of two stages, and queries that are picked by their scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from detectors import faster_rcnn
from onnx import helper
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.deploy import int8
from ltcompile.deploy.places import arithmetic_of_places
from ltcompile.lower import export_onnx
from ltcompile.lower.evaluate import evaluator_of_all
from ltcompile.lower.quantize import PRODUCTS
from ltcompile.models._two_stages import TwoStages
from ltcompile.runtimes._ort import run_once
from ltcompile.tasks._average_precision import mean_average_precision

IMAGES = torch.rand(104, 3, 64, 64, generator=torch.Generator().manual_seed(0))
JUDGED = 24
ALIGNED = ("half_pixel", "output_half_pixel")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


class Queries(nn.Module):
    """Takes the places of a map with the best scores, and refines what is there by attention, as RT-DETR does."""

    def __init__(self, width: int = 16, count: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.count = count
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.score, self.box = nn.Linear(width, classes), nn.Linear(width, 4)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.last, self.shift = nn.Linear(width, classes), nn.Linear(width, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        memory = self.stem(images).flatten(2).transpose(1, 2)
        best = self.score(memory).amax(-1).topk(self.count, 1).indices[..., None]
        queries = memory.gather(1, best.expand(-1, -1, memory.shape[-1]))
        boxes = self.box(queries)
        queries = queries + self.attend(queries, memory, memory, need_weights=False)[0]
        return {"logits": self.last(queries), "boxes": (boxes + self.shift(queries)).sigmoid()}

    def detect(self, outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        corners = [torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], 1) * 64 for b in outputs["boxes"]]
        scores = [logits.softmax(-1).max(-1) for logits in outputs["logits"]]
        return [{"boxes": b, "scores": s.values, "labels": s.indices} for b, s in zip(corners, scores, strict=True)]


def two_stages() -> Any:
    network = faster_rcnn()
    with torch.no_grad():
        for part in (network.rpn.head, network.roi_heads.box_predictor):  # fresh heads hardly distinguish boxes
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.weight.mul_(20.0)
    return TwoStages(network, (64, 64))


def of_own_detections(network: Any) -> Callable[[Any], float]:
    """The mAP, in points, of a network's detections against those of `network` in fp32, whose scores do not count."""
    with torch.no_grad():
        truth = network.detect(network(IMAGES[:JUDGED]))
    return lambda other: 100 * mean_average_precision(network.detect(other(IMAGES[:JUDGED])), truth, 10)


def int8_of(pruned: lt.Pruned, output: Path) -> dict[str, Any]:
    """The record of a file in int8 that is judged by what it detects."""
    metric = of_own_detections(pruned.small)
    record = lt.shrink(pruned, output, precision="int8", calibrate=[IMAGES], metric=metric, max_drop=40).record
    found: dict[str, Any] = record["int8"]
    assert found["places_in_float"] and found["quantized_nodes"] > 4 and found["score"]["fp32"] == pytest.approx(100)
    assert found["score"]["int8"] >= 60 and found["error"]["max"] <= int8.MOST_ERROR
    assert 0 < record["onnx_error"] <= record["tolerance"] <= int8.MOST_ERROR
    return found


@pytest.mark.slow
def test_int8_of_proposals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entropy takes no range of the infinite scores that stand for boxes that are too small."""
    monkeypatch.setattr(int8, "METHODS", ("minmax", "entropy"))
    torch.manual_seed(0)
    found = int8_of(lt.Pruned(two_stages().eval(), IMAGES[:2]), tmp_path / "small.onnx")
    assert {tried["ranges"] for tried in found["tried"]} == {"minmax"}
    assert "not_run" in found["openvino"] or found["openvino"]["error"] <= found["openvino"]["allowed"]


@pytest.mark.slow
def test_int8_of_queries_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "METHODS", ("minmax",))
    monkeypatch.setattr(int8, "unavailable", lambda runtime, device: "left out")
    torch.manual_seed(0)
    network = Queries().eval()
    pruned = lt.Pruned.of_cut(network, lt.plan(network, IMAGES[:2], 0.3), IMAGES[:2])
    int8_of(pruned, tmp_path / "small.onnx")
    timed: dict[str, Any] = {"runtimes": ["onnxruntime"], "devices": ["cpu"], "batches": [2], "seconds_per_row": 0.02}
    rows = lt.bench(pruned, file=tmp_path / "small.onnx", output=tmp_path / "bench.json", **timed).rows
    assert {(row.subject, row.dtype) for row in rows} == {("dense", "float32"), ("small", "int8")}


def test_the_arithmetic_of_places_leads_to_no_product(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_onnx(Queries().eval(), IMAGES[:2], tmp_path / "queries.onnx")
    model = onnx.load(tmp_path / "queries.onnx")
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type} {number}"
    kinds = {name.split()[0] for name in arithmetic_of_places(model)}
    assert {"TopK", "ReduceMax", "Sigmoid"} <= kinds and not kinds & {*PRODUCTS, "Softmax", "GatherElements"}
    export_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()).eval(), IMAGES[:2], tmp_path / "plain.onnx")
    assert arithmetic_of_places(onnx.load(tmp_path / "plain.onnx")) == ()


def graph_of(nodes: list[Any], given: dict[str, Any], held: dict[str, Any]) -> Any:
    """An ONNX model with the outputs of all `nodes`, of which each has one."""
    named = onnx.helper.np_dtype_to_tensor_dtype
    inputs = [helper.make_tensor_value_info(name, named(value.dtype), value.shape) for name, value in given.items()]
    outputs = [
        helper.make_tensor_value_info(node.output[0], INT64 if node.op_type == "NonMaxSuppression" else FLOAT, None) for node in nodes
    ]
    graph = helper.make_graph(nodes, "main", inputs, outputs, [onnx.numpy_helper.from_array(value, name) for name, value in held.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("places", [4, 100])
def test_graphs_that_rank_and_sample_are_evaluated_as_runtimes_do(places: int) -> None:
    """Also of more than 64 places, and with limits that are numbers; bilinear by its older name."""
    rng = np.random.default_rng(0)
    corners, maps = rng.uniform(0, 8, (places, 2)).astype(np.float32), rng.normal(size=(2, 3, 9, 8)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(1, 4, (places, 2)).astype(np.float32)], 1)
    given = {
        "x": rng.normal(size=(2, places, 3)).astype(np.float32),
        "index": rng.integers(-places, places, (2, 5, 3)),
        "boxes": boxes,
        "of_one": boxes[None],
        "scores": rng.normal(size=(1, 1, places)).astype(np.float32),
        "maps": maps,
        "rows": rng.integers(0, 2, places),
        "grid": rng.uniform(-1.2, 1.2, (2, 4, 5, 2)).astype(np.float32),
    }
    pooled = {"output_height": 3, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.5}
    nodes = [
        helper.make_node("GatherElements", ["x", "index"], ["read"], axis=1),
        helper.make_node("NonMaxSuppression", ["of_one", "scores", "most", "overlap"], ["kept"]),
        *(
            helper.make_node("RoiAlign", ["maps", "boxes", "rows"], [mode], coordinate_transformation_mode=mode, **pooled)
            for mode in ALIGNED
        ),
        *(helper.make_node("GridSample", ["maps", "grid"], [mode], mode=mode, padding_mode="border") for mode in ("bilinear", "nearest")),
    ]
    model = graph_of(nodes, given, {"most": np.array(3), "overlap": np.array(0.3, np.float32)})
    found, expected = evaluator_of_all(model)(given), run_once(model.SerializeToString(), given)
    assert len(found) == len(expected) == len(nodes)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
