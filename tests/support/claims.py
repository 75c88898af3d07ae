"""A small file, claims about it, and the check of one of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ltcompile.core.network_file import described
from ltcompile.core.records import cpu_name
from ltcompile.verification import Check, verify
from ltcompile.verification.network import open_network

SHAPE, CLASSES, TICKET = (1, 16, 16), 3, "c0ffee" * 10
QUICK = 0.1
FAST = {"ms_p20": 1e5, "ms_p50": 1e5, "ms_p80": 1e5}  # what anything is faster than


def network(width: int, change: Callable[[Any], object] = lambda model: None, **metadata: str) -> bytes:
    """Two convolutions of `width` channels and a linear layer, as `ltcompile shrink` would write them."""
    chance = np.random.default_rng(width)
    weights = {
        "a": chance.standard_normal((width, SHAPE[0], 3, 3)) / 3,
        "b": chance.standard_normal((width, width, 3, 3)) / (3 * width**0.5),
        "c": chance.standard_normal((width, CLASSES)),
    }
    nodes = [
        helper.make_node("Conv", ["images", "a"], ["x"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Conv", ["y", "b"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["z"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("MatMul", ["f", "c"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    reported = {"producer": "ltcompile", "ticket_checksum": TICKET, "precision": "fp32", "recalibrated": "false"} | metadata
    helper.set_model_props(model, reported)
    change(model)
    return bytes(model.SerializeToString())


def timing(batch: int = 1, speedup: float | None = 1.0, **fields: Any) -> dict[str, Any]:
    reported = {"subject": "small", "runtime": "onnxruntime", "device": "cpu", "dtype": "float32", "batch": batch, **FAST}
    return {**reported, "speedup": speedup, "speedup_low": speedup, "speedup_high": speedup, "accuracy": None, **fields}


def report(folder: Path, *timings: dict[str, Any], **fields: Any) -> Path:
    """A report.json in `folder` on the small.onnx that lies there."""
    shrunk = {"output": "small.onnx", "precision": "fp32", "bytes": (folder / "small.onnx").stat().st_size, "recalibrated": False}
    value = {
        "kind": "report",
        "format": 1,
        "ticket": {"seed": 0, "level": 1, "won": False, "checksum": TICKET},
        "data": {"name": "digits", "class_names": ["no", "yes"], "shape": list(SHAPE), "sizes": {"test": 500}},
        "points": [],
        "shrinks": [{**shrunk, "ticket_checksum": TICKET}],
        "bench": {"target": "small.onnx", "subjects": {"dense": {"params": 150_000}}, "rows": [timing(subject="dense"), *timings]},
        "provenance": [{"stage": "bench", "machine": {"cpu": cpu_name()}}],
        **fields,
    }
    (folder / "report.json").write_text(json.dumps(value))
    return folder / "report.json"


def timed(folder: Path, *timings: dict[str, Any], file: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
    """What a benchmark reports today, of `file` or of a ticket itself."""
    reported = {"target": file["output"] if file else "ticket.pt", "file": file, "ticket_checksum": TICKET}
    return {"subjects": {"dense": {"params": 150_000}}, "rows": [*timings], **reported, **fields}


def file_of(data: bytes, name: str = "small.onnx") -> dict[str, Any]:
    reported = {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    return dataclasses.asdict(described(name, data, reported))


def check(folder: Path, what: str, **options: Any) -> Check:
    """The one check of its kind."""
    verified = verify(folder / "small.onnx", folder / "report.json", seconds=QUICK, **options)
    (found,) = (c for c in verified.checks if c.what == what)
    return found


def kinds(folder: Path, name: str = "small.onnx", claims: str = "report.json", **options: Any) -> dict[str, Check]:
    """The checks of a file by what they are about, one each."""
    return {c.what: c for c in verify(folder / name, folder / claims, seconds=QUICK, **options).checks}


def images_file(folder: Path, right: float) -> Path:
    """200 images of noise, with labels of which a share `right` is what the network answers."""
    images = np.random.default_rng(1).standard_normal((200, *SHAPE)).astype(np.float32)
    labels = open_network(folder / "small.onnx").logits("cpu", images).argmax(1)
    wrong = np.arange(200) >= 200 * right
    np.savez(folder / "test.npz", images=images, labels=np.where(wrong, (labels + 1) % CLASSES, labels))
    return folder / "test.npz"
