"""The rows of theory_against_measurement.py: one file a machine, bench/results/theory/MACHINE.json, and what is wrong with one."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

LIST = """
torchvision:resnet18 torchvision:mobilenet_v2 ours:vgg16 yolo:yolov8n torchvision:squeezenet1_1 smp:Unet-resnet18 torchvision:shufflenet_v2_x1_0
ours:resnet20 torchvision:mobilenet_v3_small torchvision:alexnet yolo:yolo11n torchvision:mnasnet0_5 ours:unet-small
torchvision:regnet_x_400mf torchvision:efficientnet_b0 smp:FPN-mobilenet_v2 torchvision:googlenet ours:resnet56 torchvision:resnet34
torchvision:mobilenet_v3_large yolo:yolov5n torchvision:vgg11_bn torchvision:shufflenet_v2_x0_5 torchvision:regnet_y_400mf
smp:DeepLabV3Plus-resnet18 torchvision:mnasnet1_0 ours:centernet-small torchvision:densenet121 torchvision:resnet50 yolo:yolov10n
torchvision:squeezenet1_0 torchvision:efficientnet_b1 torchvision:regnet_x_800mf torchvision:inception_v3 smp:Linknet-resnet18 yolo:yolo12n
torchvision:convnext_tiny torchvision:resnext50_32x4d torchvision:shufflenet_v2_x1_5 torchvision:regnet_y_800mf torchvision:vgg16_bn
torchvision:efficientnet_b2 torchvision:wide_resnet50_2 torchvision:regnet_x_1_6gf torchvision:efficientnet_v2_s torchvision:densenet161
"""
NETWORKS = LIST.split()

RESULTS = Path(__file__).parent / "results" / "theory"
METHODS = {"as they come": 1, "multiples of 8": 8, "multiples of 16": 16}
BY_TIME = "by time"
RUNTIMES, BATCHES, PRECISIONS = ("onnxruntime", "openvino", "mnn"), (1, 16), ("fp32", "int8")
TRAITS = {"depthwise": "MACs in depthwise layers", "odd": "MACs in layers with an odd width", "memory": "MACs in layers bound by memory"}
POSITIVE = ("macs", "dense_macs", "theoretical", "dense_ms", "ms", "speedup", "low", "high", "of_theory")
NUMBERS = (*POSITIVE, "fraction", "error", *TRAITS)
KEYS = ("network", "method", "fraction", "runtime", "precision", "batch")
NAME = re.compile(r"[\w.:+-]{1,80}")

Row = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """The content of a machine's file; no rows where there is none. Ends where it is not valid."""
    if not path.is_file():
        return {"rows": []}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path.name} is not JSON: {error}; fix the file, or remove it") from error
    if found := faults(value):
        raise SystemExit(f"{path.name}: {found[0]}; fix the file, or remove it")
    return dict(value)


def write(path: Path, settings: dict[str, Any], rows: list[Row]) -> None:
    from ltcompile.core.records import provenance
    from ltcompile.paths import write_json

    write_json(path, {"kind": "theory", "format": 1, "settings": settings, "rows": rows, "provenance": provenance()})


def faults(value: Any) -> list[str]:
    """What is wrong with the content of a machine's file; nothing, where it can be added to the page."""
    if not isinstance(value, dict) or value.get("kind") != "theory" or not isinstance(value.get("rows"), list):
        return ["it is not a file of bench/theory_against_measurement.py"]
    found = [f"it has no {key}" for key in ("settings", "provenance") if not isinstance(value.get(key), dict)]
    try:
        assert isinstance(value["provenance"]["machine"]["cpu"], str)
    except (KeyError, TypeError, AssertionError):
        found.append("its provenance does not name the processor")
    seen = set[tuple[Any, ...]]()
    for at, row in enumerate(value["rows"]):
        if fault := fault_of(row):
            found.append(f"row {at} {fault}")
        elif "reason" not in row:
            if (key := tuple(row[k] for k in KEYS)) in seen:
                found.append(f"row {at} is there twice")
            seen.add(key)
    return found


def fault_of(row: Any) -> str:
    """What is wrong with one row, or ""."""
    if not isinstance(row, dict) or not isinstance(row.get("network"), str) or not NAME.fullmatch(row["network"]):
        return "does not name a network"
    if "reason" in row:
        return "" if isinstance(row["reason"], str) and row["reason"] else "has an empty reason"
    known = {"method": {*METHODS, BY_TIME}, "runtime": RUNTIMES, "precision": PRECISIONS, "batch": BATCHES}
    if unknown := [key for key, values in known.items() if row.get(key) not in values]:
        return f"has a {unknown[0]} that is not known"
    if not all(_is_number(row.get(key)) and row[key] >= 0 for key in NUMBERS) or not all(row[key] for key in POSITIVE):
        return f"lacks a number of {', '.join(NUMBERS)}"
    products = (row["theoretical"] * row["macs"] / row["dense_macs"], row["of_theory"] * row["theoretical"] / row["speedup"])
    if not row["low"] <= row["speedup"] <= row["high"] or any(abs(product - 1) > 1e-6 for product in products):
        return "contradicts itself"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
