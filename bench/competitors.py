"""The engine against its competitors, and what we claim of it: VGG-16 at 32x32 and ResNet-50 at 224x224, dense and pruned.

    python bench/competitors.py                                         this CPU;  writes bench/results/competitors-cpu.json and .md
    python bench/competitors.py --device cuda --out DIR --minutes 6     the GPU;   writes DIR/competitors.json and .md (`make gpu` does it)

Nothing is trained: weights are seeded, and filters are scaled at random, so that a global L1 plan leaves layers of every width, most of
them odd. Batch norms then get the statistics of the images, and the last bias is set such that images fall into several classes. Images
are CIFAR-10's where --data-root has them, else seeded noise. Cases run in the order of their importance, quick competitors first; whatever
is found is written at once. What does not fit into --minutes is left out, and --resume runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import judging as checks
import torch
from _common import RESULTS
from gpu import LEFT_OUT, LOST
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.benchmark.competitors import Case, Check, CompetitorsResult, Network, case_table, run, write
from ltcompile.errors import DeviceLost, InvalidFile, InvalidSetting

SEED, IMAGES, LARGE_IMAGES = 0, 256, 128
SMALL, DENSE, ROUNDED, SMALL_50, DENSE_50 = (
    "VGG-16 at 20 % MACs",
    "VGG-16",
    "VGG-16, multiples of 16",
    "ResNet-50 at half MACs",
    "ResNet-50",
)
TINY_IMAGES, TINY_BATCH, TINY_SIDE = 32, 4, 4  # of a rehearsal; pixels
SPREAD = 0.5  # of the logarithm of a filter's scale
CPU_BATCHES = (1, 8, 64)
SECONDS = {"cpu": 4.0, "cuda": 1.0}
QUICK = ("engine", "eager, recorded", "torch.compile, reduce-overhead", "onnxruntime", "tensorrt")  # ready in seconds
TUNED = "torch.compile, max-autotune, recorded"  # the fastest that PyTorch has, ready in a minute
PARTS_ON_GPU = ("quick", "rest", "tuned")  # the last in a file of its own, since a case runs once
ON_CPU = ("engine fp32", "torch.compile fp32", "onnxruntime fp32", "openvino fp32")
RESERVE_S = {"cpu": 60, "cuda": 90}  # a case that begins takes about as long
MOST_RESERVED = 0.6  # of the time there is
PICTURE = Path("runs/competitors-layers.html")
BRANCH_SCALE = 0.2  # of the last batch norm of a residual branch: random ones of 1 add up beyond fp16
SETTLING_IMAGES = 32  # whose statistics batch norms get


def main() -> None:
    arguments = _arguments()
    end = time.monotonic() + 60 * arguments.minutes
    path = _path(arguments)
    result = _resumed(path) if arguments.resume else None
    if result and result.device != arguments.device:
        raise InvalidSetting(f"{path} is a result on {result.device}; leave --resume out")
    wanted = cases(arguments.device, arguments.batch, arguments.parts)
    if arguments.tiny:
        wanted = [replace(wanted[0], batch=TINY_BATCH)]
    picture = path.with_name("layers.html") if arguments.out else PICTURE

    def keep(so_far: CompetitorsResult) -> None:
        so_far.checks = judge(so_far)
        write(so_far, path, picture)

    def on_case(so_far: CompetitorsResult, last: Case) -> None:
        keep(so_far)
        print(f"\n{last.subject}, batch {last.batch}\n{case_table(so_far, last.subject, last.batch)}\n", flush=True)

    result = _run_or_exit(
        networks(arguments.data_root, {h.subject for h in wanted}, arguments.tiny),
        wanted,
        device=arguments.device,
        seconds=arguments.seconds or SECONDS[arguments.device],
        images="CIFAR-10's test images" if arguments.data_root else "seeded noise of mean 0 and spread 1",
        until=end - min(RESERVE_S[arguments.device], MOST_RESERVED * 60 * arguments.minutes),
        result=result,
        on_progress=lambda text: print(f"{end - time.monotonic():5.0f} s left  {text}", flush=True),
        on_result=keep,
        on_case=on_case,
    )
    result.checks = judge(result)
    if arguments.device == "cuda" and "rest" in arguments.parts and not arguments.tiny:
        result.checks += odd_widths(end)
    result.provenance["command"] = shlex.join(["python", *sys.argv])
    write(result, path, picture)
    left = [f"{refusal.subject} at {refusal.batch}" for refusal in result.refused if not refusal.competitor]
    if left:
        print(f"left out for want of time: {', '.join(left)}; the same command with --resume runs them")
    print(json.dumps({"competitors": path.name, "claims": {check.claim: [check.found, check.holds] for check in result.checks}}))
    sys.exit(LEFT_OUT if left else 0)


def _resumed(path: Path) -> CompetitorsResult | None:
    """What the file holds; one that cannot be read is renamed, and the run begins again."""
    try:
        return CompetitorsResult.load(path) if path.exists() else None
    except InvalidFile as error:
        print(error, flush=True)
        path.replace(path.with_suffix(".damaged.json"))
        return None


def _run_or_exit(*args: Any, **settings: Any) -> CompetitorsResult:
    """`run`; a process whose GPU is lost says so by its exit code."""
    try:
        return run(*args, **settings)
    except DeviceLost as error:
        print(error, file=sys.stderr)
        os._exit(LOST)  # what is left of CUDA would only abort


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="folder of the results, by default bench/results")
    parser.add_argument("--data-root", type=Path, help="folder with CIFAR-10 in torchvision's layout")
    parser.add_argument("--batch", type=int, nargs="*", default=CPU_BATCHES, help="batch sizes on a CPU")
    parser.add_argument("--parts", nargs="*", default=PARTS_ON_GPU[:2], choices=PARTS_ON_GPU, help="parts of the run on a GPU")
    parser.add_argument("--seconds", type=float, help="time of each competitor in a case")
    parser.add_argument("--minutes", type=float, default=60.0, help="no case begins later")
    parser.add_argument("--resume", action="store_true", help="keep what the file has, and run the rest")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same kinds: a rehearsal, no result")
    return parser.parse_args()


def _path(arguments: argparse.Namespace) -> Path:
    name = "competitors-tuned" if "tuned" in arguments.parts else "competitors"
    return arguments.out / f"{name}.json" if arguments.out else RESULTS / f"{_name(arguments.device)}.json"


def _name(device: str) -> str:
    if device == "cpu":
        return "competitors-cpu"
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"{gpu}-{datetime.now(UTC):%Y-%m-%d}"


def networks(data_root: Path | None, names: Collection[str], tiny: bool = False) -> list[Network]:
    """The networks of these names; the largest are built last."""
    torch.manual_seed(SEED)
    images = _noise(TINY_IMAGES, TINY_SIDE) if tiny else _images(data_root)
    found = []
    if names & {SMALL, DENSE, ROUNDED}:
        dense = _scattered(_chain() if tiny else lt.build_model("vgg16", classes=10), images)
        cuts = {SMALL: 1, ROUNDED: 2 if tiny else 16}
        found += [
            Network(n, _settled(_cut(dense, images, 0.4 if tiny else 0.2, align), images), images)
            for n, align in cuts.items()
            if n in names
        ]
        found += [Network(DENSE, dense, images)] if DENSE in names else []
    if names & {SMALL_50, DENSE_50}:
        side = TINY_SIDE if tiny else 224
        large = (
            F.interpolate(images[:LARGE_IMAGES], size=side, mode="bilinear")
            if data_root
            else _noise(TINY_IMAGES if tiny else LARGE_IMAGES, side)
        )
        dense = _scattered(_residual() if tiny else lt.build_model("torchvision:resnet50", classes=1000, image_size=224), large)
        found += [Network(SMALL_50, _settled(_cut(dense, large, 0.5), large), large)] if SMALL_50 in names else []
        found += [Network(DENSE_50, dense, large)] if DENSE_50 in names else []
    return found


def _cut(dense: nn.Module, images: Tensor, macs: float, align: int = 1) -> nn.Module:
    return lt.cut(dense, lt.plan(dense, images[:2], target_macs=macs, align=align))


def _scattered(model: nn.Module, images: Tensor) -> nn.Module:
    """Filters of very different sizes, as trained ones have."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= torch.exp(SPREAD * torch.randn(module.out_channels, 1, 1, 1, generator=generator))
            if name.endswith("bn3"):
                module.weight.fill_(BRANCH_SCALE)
    return _settled(model, images)


@torch.no_grad()
def _settled(model: nn.Module, images: Tensor) -> nn.Module:
    """`model` in eval mode with the batch norms' statistics on its images, so that activations stay within fp16.

    No class is favoured, so that images fall into many.
    """
    few = images[:SETTLING_IMAGES]
    for norm in (norms := [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]):
        norm.reset_running_stats()
        norm.momentum = None
    model.train()(few)
    for norm in norms:
        norm.momentum = 0.1
    *_, head = (m for m in model.eval().modules() if isinstance(m, nn.Linear))
    logits = model(few)
    head.bias -= logits.mean(0)
    return model


def _chain() -> nn.Module:
    """A VGG for rehearsals; with one pool, since an interpreter takes its maxima one by one."""
    stem, layer = ([nn.Conv2d(c, k, 3, padding=1), nn.BatchNorm2d(k), nn.ReLU()] for c, k in ((3, 8), (8, 12)))
    return nn.Sequential(*stem, *layer, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def _residual() -> nn.Module:
    """A ResNet's block for rehearsals."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.branch, self.bn3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.bn1(self.stem(x)))
            out: Tensor = self.head(F.relu(x + self.bn3(self.branch(x))).mean((2, 3)))
            return out

    return Block()


def _images(data_root: Path | None) -> Tensor:
    if data_root is None:
        return _noise(IMAGES, 32)
    images, _ = next(iter(lt.load_data("cifar10", data_root).test.batches(IMAGES, torch.device("cpu"), None, 0)))
    return images.contiguous()


def _noise(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(SEED))


def cases(device: str, batches: Sequence[int], parts: Collection[str] = PARTS_ON_GPU[:2]) -> list[Case]:
    """The most important first; `parts` of those on a GPU."""
    if device == "cpu":
        vgg = [h for b in batches for h in (Case(SMALL, b), Case(DENSE, b), Case(ROUNDED, b, ("engine fp32", "onnxruntime fp32")))]
        return [*vgg, Case(SMALL_50, 1, ON_CPU), Case(DENSE_50, 1, ON_CPU)]
    quick = [(SMALL, 1), (SMALL, 64), (SMALL, 1024), (DENSE, 1024), (DENSE, 64)]
    rest = [(SMALL_50, 64), (DENSE_50, 64), (SMALL, 256), (DENSE, 256), (DENSE, 1), (SMALL, 8), (DENSE, 8)]
    rounded = [Case(ROUNDED, batch, ("engine", "onnxruntime")) for batch in (1, 64, 1024)]
    of = {
        "quick": [Case(*pair, QUICK) for pair in quick],
        "rest": [*(Case(*pair, QUICK) for pair in rest), *rounded],
        "tuned": [Case(SMALL, 64, ("engine", TUNED)), Case(SMALL, 1, ("engine", TUNED))],
    }
    return [h for part in PARTS_ON_GPU if part in parts for h in of[part]]


def judge(result: CompetitorsResult) -> list[Check]:
    """What we claim, and what was found."""
    return _judge_gpu(result) if result.device == "cuda" else _judge_cpu(result)


def _judge_gpu(result: CompetitorsResult) -> list[Check]:
    def promised(batch: int) -> Check:
        claim = f"batch {batch}: the measured speedup over the same engine's dense network is at least 80 % of the ratio of MACs"
        return checks.at_least(claim, checks.of_macs(result, SMALL, DENSE, batch, "fp16"), 0.8)

    over = {batch: checks.over_peer(result, SMALL, batch, "fp16") for batch in (1, 64, 1024)}
    roofline = checks.of_roofline(result, SMALL, 1024, "fp16")
    return [
        checks.at_least("batch 1: at least 1.5 times as fast as the fastest peer", over[1], 1.5),
        checks.at_most("batch 1: under 30 us", checks.engine_us(result, SMALL, 1, "fp16"), 30),
        checks.at_least("batch 64: at least 1.2 times as fast as the fastest peer", over[64], 1.2),
        checks.at_least("batch 1024: at least as fast as the fastest peer", over[1024], 1.0),
        checks.at_least("batch 1024: at least 60 % of the roofline", roofline, 0.6),
        *(promised(batch) for batch in (256, 1024)),
        checks.at_least("conv2d, over VGG's and ResNet's shapes (geometric mean): at least on par with cuDNN", _over_cudnn(result), 1.0),
        checks.at_least(
            "ResNet-50 at half its MACs, batch 64: at least 1.7 times as fast as dense",
            checks.over_dense(result, SMALL_50, DENSE_50, 64, "fp16"),
            1.7,
        ),
    ]


def _over_cudnn(result: CompetitorsResult) -> float | None:
    return checks.against_cudnn(result, (SMALL, DENSE, SMALL_50, DENSE_50))


def _judge_cpu(result: CompetitorsResult) -> list[Check]:
    batches = [batch for subject, batch in result.cases() if subject == SMALL]
    plain = [ratio for b in batches if (ratio := checks.over_competitor(result, SMALL, b, "onnxruntime", "fp32")) is not None]
    return [
        checks.never_behind("the engine's time over the best runtime's, in its worst row: at most 1.05", result, 1.05),
        checks.at_least(
            "odd widths: at least 1.2 times as fast as ONNX Runtime fp32 with default settings, in the worst row",
            min(plain, default=None),
            1.2,
        ),
    ]


def odd_widths(end: float) -> list[Check]:
    """On a GPU, where there is time left."""
    found = None
    if time.monotonic() < end - RESERVE_S["cuda"] / 2:
        try:
            found = max(checks.cost_of_odd(lambda _: None).values())
        except (RuntimeError, lt.LtcompileError) as error:
            print(f"odd widths: {error}", flush=True)
    return [checks.at_most("conv2d with odd widths over the next multiple of 8, the worst of three: at most 1.10", found, 1.1)]


if __name__ == "__main__":
    main()
