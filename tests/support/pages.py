"""A run folder as data, and its page as a reader of HTML sees it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

from ltcompile.core.pictures import Answer, Box, Mark, Picture, to_png
from ltcompile.reporting import report

DENSE = {"filters": 4224, "params": 14_722_000, "macs": 313_478_000}
HOSTILE = "</script><script>alert(1)</script><img src=http://evil.test/x onerror=alert(2)>"
Run = dict[str, Any]


def pictures(name: str = "a class with a long name") -> list[Picture]:
    """Three inputs: with boxes in all corners, with a map over one answer, and with images as answers."""
    marks = [Mark(name, 0, 0.934), Mark("3", 13, 1.0), Mark("7", 7)]
    places = [(0.0, 0.0, 0.3, 0.2), (0.7, 0.0, 1.0, 0.3), (0.6, 0.8, 1.0, 1.0)]
    boxes = tuple(Box(mark, place) for mark, place in zip(marks, places, strict=True))
    grey, clear = to_png(torch.full((1, 48, 64), 90, dtype=torch.uint8)), to_png(torch.full((4, 48, 64), 120, dtype=torch.uint8))
    return [
        Picture(grey, 64, 48, Answer(boxes[2:]), Answer(boxes), Answer(boxes[:1])),
        Picture(grey, 64, 48, Answer(marks=(marks[2],)), Answer(over=clear, marks=(marks[0], marks[1])), Answer()),
        Picture(grey, 64, 48, Answer(over=clear), Answer(over=clear), Answer(over=clear)),
    ]


def provenance(command: str) -> dict[str, Any]:
    return {
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "commit": "0123456789ab",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "a CPU", "threads": 2, "gpu": None, "system": "Linux", "simd": "AVX2"},
        "command": command,
    }


def trained(arm: str, level: int, seed: int, accuracy: float, test: float | None = None) -> dict[str, Any]:
    keep = 1.0 if arm.startswith("dense") else 0.8**level
    sizes = {what: int(DENSE[what] * keep**power) for what, power in (("filters", 1), ("params", 2), ("macs", 1.6))}
    return {
        "seed": seed,
        "arm": arm,
        "level": level,
        **sizes,
        "epochs": 60,
        "seconds": 30.5,
        "train_loss": 0.01,
        "train_accuracy": 1.0,
        "val_loss": 0.1,
        "val_score": accuracy,
        "val_correct": "ff",
        "stop_epoch": 41,
        "test_score": test,
    }


def timing(subject: str, batch: int, ms: float, speedup: float | None = None, **other: Any) -> dict[str, Any]:
    low, high = (None, None) if speedup is None else (speedup * 0.95, speedup * 1.05)
    return {
        "subject": subject,
        "runtime": "onnxruntime",
        "device": "cpu",
        "dtype": "fp32",
        "batch": batch,
        "ms_p20": ms * 0.9,
        "ms_p50": ms,
        "ms_p80": ms * 1.2,
        "runs": 200,
        "speedup": speedup,
        "speedup_low": low,
        "speedup_high": high,
        "peak_bytes": 33 << 20,
        "accuracy": 0.975,
        "max_error": 1e-6,
        **other,
    }


def example() -> Run:
    """A run folder as file name -> content: two seeds, four levels, both controls, one small file, one benchmark."""
    rows = [trained("dense", 0, seed, 0.975 + 0.01 * seed, 0.97) for seed in (0, 1)]
    rows += [
        trained("ticket", level, seed, 0.98 - 0.004 * level + 0.002 * seed, 0.975 if level == 3 else None)
        for level in (1, 2, 3, 4)
        for seed in (0, 1)
    ]
    rows += [trained("random", 3, seed, 0.95, 0.95) for seed in (0, 1)]
    rows += [trained("dense_budget", 0, seed, 0.979, 0.97) for seed in (0, 1)]
    small = {name: rows[6][name] for name in ("params", "macs")}
    flags = {"1": True, "2": False, "3": True, "4": True, "5": None}
    search = {
        "kind": "search",
        "format": 1,
        "name": "vgg16-digits-lr",
        "model": {"name": "vgg16", "arguments": {"classes": 10}},
        "data": {
            "name": "digits",
            "class_names": ["zero", "one"],
            "shape": [1, 32, 32],
            "mean": [0.3],
            "std": [0.4],
            "sizes": {"train": 1077, "val": 360, "test": 360},
        },
        "config": {"rewind": "lr", "rounds": 4, "align": None},
        "recipe": {"epochs": 60, "milestones": [30, 45]},
        "seeds": [0, 1],
        "rows": rows,
        "widths": [
            {"layer": "features.0", "before": 64, "after": 64, "frozen": "feeds a reshape"},
            {"layer": "features.3", "before": 64, "after": 24, "frozen": ""},
        ],
        "verdict": {
            "level": 3,
            "rule": "the lower bound stays above minus the margin",
            "margin_points": 0.5,
            "confidence": 0.95,
            "differences": {str(i): {"mean": 0.2 - 0.1 * i, "low": -0.1 * i, "n": 720} for i in (1, 2, 3, 4)},
            "summary": ["Level 3 is the deepest."],
            "flags": flags,
            "flag_reasons": {"5": "no other recipe"},
            "decided": True,
            "gaps": {arm: {"mean": 0.5, "low": 0.1, "high": 0.9, "seeds": 3} for arm in ("random", "dense_budget")},
            "seed_rule": "the saved weights are those of seed 0: of median validation accuracy",
        },
        "ticket": {"seed": 0, "level": 3, "won": True, "checksum": "abc"},
        "seconds": 123.4,
        "provenance": provenance("ltcompile find x"),
    }
    shrink = {
        "kind": "shrink",
        "format": 1,
        "output": "small.onnx",
        "precision": "fp32",
        "bytes": 2 << 20,
        "dense_bytes": 8 << 20,
        **small,
        "dense_params": DENSE["params"],
        "dense_macs": DENSE["macs"],
        "equality_error": 1e-7,
        "onnx_error": 2e-6,
        "tolerance": 1e-4,
        "recalibrated": False,
        "folded_batch_norms": 13,
        "seconds": 9.1,
        "ticket_checksum": "abc",
        "provenance": provenance("ltcompile shrink x"),
    }
    bench = {
        "kind": "bench",
        "images": "test set",
        "busy_share": 0.02,
        "format": 1,
        "subjects": {"dense": {k: DENSE[k] for k in small}, "small": small},
        "rows": [
            timing("dense", 1, 6.0),
            timing("small", 1, 3.0, 2.0),
            timing("dense", 32, 90.0),
            timing("small", 32, 30.0, 3.0),
            timing("dense", 1, 9.0, runtime="eager"),
            timing("small", 1, 3.6, 2.5, runtime="eager"),
            timing("small", 1, 1.0, 6.0, dtype="int8"),
        ],
        "skipped": {"openvino": "not installed"},
        "provenance": provenance("ltcompile bench x"),
    }
    return {"search.json": search, "small.json": shrink, "bench.json": bench}


def curve() -> Run:
    """sweep.json of that run: every level and the random control at two batch sizes, level 3 picked by the knee."""
    networks = [("dense", "dense", 0), *((f"ticket-{level}", "ticket", level) for level in (1, 2, 3, 4)), ("random-3", "random", 3)]
    points = [
        {
            "name": name,
            "arm": arm,
            "level": level,
            **{what: int(DENSE[what] * 0.7**level) for what in ("filters", "params", "macs")},
            "bytes": 4 * int(DENSE["params"] * 0.7**level),
            "seeds": [0, 1],
            **{"val_score": 0.98 - 0.004 * level, "val_min": 0.97 - 0.004 * level, "val_max": 0.99 - 0.004 * level, "val_sd": 0.01},
        }
        for name, arm, level in networks
    ]
    rows = [
        timing(name, batch, 6.0 * batch * 0.7**level, 1 / 0.7**level if level else None, accuracy=None)
        | {"joules_per_image": 0.02 * 0.7**level, "on_front": arm != "random"}
        for batch in (1, 32)
        for name, arm, level in networks
    ]
    place = {"runtime": "onnxruntime", "device": "cpu", "batch": 1}
    again = {"ms_p50": 2.125, "speedup": 2.75, "speedup_low": 2.5, "speedup_high": 3.0}
    rival = {"runner_up": "ticket-2", "lead": 1.01, "lead_low": 0.99, "lead_high": 1.03, "tie": True}
    return {
        "kind": "sweep",
        "format": 1,
        "ticket_checksum": "abc",
        "points": points,
        "rows": rows,
        "pick": {
            "rule": "knee",
            "name": "ticket-3",
            "level": 3,
            "reason": "it lies farthest",
            **place,
            **again,
            **rival,
            "checksum": "def",
        },
        "skipped": {"onnxruntime (cuda)": "no GPU"},
        "details": {},
        "energy": "",
        "images": "test set",
        "busy_share": 0.02,
        "provenance": provenance("ltcompile sweep x"),
    }


def write(folder: Path, run: Run) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in run.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def made(folder: Path, run: Run) -> tuple[str, dict[str, Any]]:
    page = report(write(folder, run))
    return page.read_text(), json.loads(page.with_suffix(".json").read_text())


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)
