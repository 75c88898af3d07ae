"""Whether all users of one deployment time the same thing: bench, the engine, the stopwatch of profiles, competitors and `verify`.

    python bench/sessions.py        in five minutes; writes bench/results/sessions.json and .md

Each opens its own session of one network at one deployment, and all run in turns; what is written is how many times as long each takes as
the one of `bench`, with the 95 % interval. A rate that differs by more than 3 % would mean another batch handling, other threads or other
spinning. Nothing is asserted, since other work on the machine shows in the intervals; `busy_share` shows it.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from _common import RESULTS, finish

import ltcompile as lt
from ltcompile import runtimes
from ltcompile.benchmark.competitors.competitor import Network
from ltcompile.benchmark.competitors.entries import ON_CPU
from ltcompile.benchmark.profiling.timer import LayerTimer, Variant
from ltcompile.benchmark.subjects import subject_of
from ltcompile.core.deployment import Deployment
from ltcompile.core.load import busy_share, is_busy
from ltcompile.engine import cpu, host
from ltcompile.timing import interleave, speedup
from ltcompile.verification.network import open_network

NETWORKS = {"resnet20": (3, 32), "vgg16": (3, 32)}
DEPLOYMENTS = (
    "cpu:onnxruntime:b1:fp32",
    "cpu:onnxruntime:b8:fp32",
    "cpu:onnxruntime:b1:fp32:t1",
    "cpu:openvino:b1:fp32",
    "cpu:openvino:b8:fp32",
)
AGREE = 0.03
SECONDS = 4.0  # of each session
BENCH = "bench"


def main() -> None:
    rows, busy = [], busy_share()
    for name, (channels, side) in NETWORKS.items():
        torch.manual_seed(0)
        model = lt.build_model(name, classes=10, in_channels=channels, image_size=side).eval()
        for text in DEPLOYMENTS:
            target = Deployment.parse(text)
            images = torch.randn(target.batch, channels, side, side, generator=torch.Generator().manual_seed(0))
            with tempfile.TemporaryDirectory() as scratch:
                times = interleave(calls(model, target, images, Path(scratch)), seconds=SECONDS)
            for user in times:
                if user != BENCH:
                    ratio, low, high = speedup(times[user], times[BENCH])
                    rows.append({"network": name, "deployment": text, "user": user, "ratio": ratio, "low": low, "high": high})
                    print(f"{name:<10} {text:<28} {user:<12} {ratio:.3f} ({low:.3f} to {high:.3f})", flush=True)
    away = [row for row in rows if not row["low"] <= 1 + AGREE or not row["high"] >= 1 - AGREE]
    result = {"bench": "sessions", "rows": rows, "agree_within": AGREE, "apart_by_the_whole_interval": len(away), "busy_share": busy}
    (RESULTS / "sessions.md").write_text(markdown(result))
    finish("sessions", result)


def calls(model: torch.nn.Module, target: Deployment, images: torch.Tensor, scratch: Path) -> dict[str, Callable[[], object]]:
    """One run of the network by each user of the deployment."""
    one = subject_of("small", model, lt.Pruned(model, torch.cat([images, images])), scratch)
    data, array = one.onnx_bytes(BENCH), images.numpy()
    found: dict[str, Callable[[], object]] = {BENCH: runtimes.load(one, target).bind(array).call}
    source = host.make_source(model, torch.cat([images, images]), [], "fp32")
    found["engine"] = functools.partial(cpu.build(target, source), images)
    found["stopwatch"] = LayerTimer(target, deployed=True).call(Variant(one.need_module(BENCH), onnx.load_from_string(data)), images)
    if not target.threads:
        entry = next(c for c in ON_CPU if (c.name, c.precision) == (target.runtime, "fp32"))
        found["competitors"] = entry.build(Network("small", model, torch.cat([images, images])), images).call
        if target.runtime == "onnxruntime":
            network = open_network(scratch / "small.onnx")
            found["verify"] = network.bind("cpu", {network.inputs[0].name: array}).call
    return found


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# One deployment, several users",
        "",
        "How many times as long a session takes as the one of `bench`, run in turns; 95 % intervals.",
        "",
    ]
    if (busy := result["busy_share"]) is not None:
        noise = " These ratios are noise: run it again alone." if is_busy(busy) else ""
        lines += [f"Before it began, other work took {busy:.0%} of the machine.{noise}", ""]
    lines += ["| network | deployment | user | ratio | interval |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {r['network']} | {r['deployment']} | {r['user']} | {r['ratio']:.3f} | {r['low']:.3f} to {r['high']:.3f} |"
        for r in result["rows"]
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
