"""The race, and what we claim of it: VGG-16 at 32x32 and ResNet-50 at 224x224, dense and pruned, by the engine and by everyone else.

    python bench/race.py                                  this CPU;  writes bench/results/race-cpu.json and .md
    python bench/race.py --device cuda --minutes 6        the GPU;   writes bench/results/GPU-DATE.json and .md

Nothing is trained: weights are seeded, and filters are scaled at random, so that a global L1 plan leaves layers of every width, most of
them odd. Images are CIFAR-10's where --data-root has them, else seeded noise of their mean and spread. Heats run in the order of
their importance and are written as they end; what does not fit into --minutes is told as left out, and --resume goes on with it.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from _common import RESULTS
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.errors import BadSetting
from ltcompile.race import Check, Heat, Network, RaceResult, checks, heat, run, write

SEED, IMAGES, LARGE_IMAGES = 0, 256, 64
SMALL, DENSE, ROUNDED, SMALL_50, DENSE_50 = (
    "VGG-16 at 20 % MACs",
    "VGG-16",
    "VGG-16, multiples of 16",
    "ResNet-50 at half MACs",
    "ResNet-50",
)
SPREAD = 0.5  # of the logarithm of a filter's scale
CPU_BATCHES = (1, 8, 64)
SECONDS = {"cpu": 4.0, "cuda": 1.0}
ON_GPU = ("engine", "eager, recorded", "torch.compile, reduce-overhead", "onnxruntime", "tensorrt")  # who is ready in seconds
TUNED = "torch.compile, max-autotune, recorded"  # the fastest that PyTorch has, ready in a minute
ON_CPU = ("engine fp32", "torch.compile fp32", "onnxruntime fp32", "openvino fp32")
RESERVE_S = 60  # for what is measured behind the heats
PICTURE = Path("runs/race-layers.html")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments.add_argument("--data-root", type=Path, help="folder with CIFAR-10 in torchvision's layout")
    arguments.add_argument("--batch", type=int, nargs="*", default=CPU_BATCHES, help="batch sizes on a CPU")
    arguments.add_argument("--seconds", type=float, help="time of each entrant in a heat")
    arguments.add_argument("--minutes", type=float, default=60.0, help="no heat begins later")
    arguments.add_argument("--resume", action="store_true", help="go on with the file that is there")
    asked = arguments.parse_args()
    end = time.monotonic() + 60 * asked.minutes
    path = RESULTS / f"{_name(asked.device)}.json"
    result = RaceResult.load(path) if asked.resume and path.exists() else None
    if result and result.device != asked.device:
        raise BadSetting(f"{path} is a race on {result.device}; leave --resume out")

    def told(so_far: RaceResult) -> None:
        so_far.checks = judge(so_far)
        write(so_far, path, PICTURE)
        print(f"\n{so_far.heats()[-1]}\n{heat(so_far, *so_far.heats()[-1])}\n", flush=True)

    result = run(
        networks(asked.data_root),
        heats(asked.device, asked.batch),
        device=asked.device,
        seconds=asked.seconds or SECONDS[asked.device],
        images="CIFAR-10's test images" if asked.data_root else "seeded noise of mean 0 and spread 1",
        until=end - RESERVE_S,
        result=result,
        on_progress=lambda text: print(f"{end - time.monotonic():5.0f} s left  {text}", flush=True),
        on_heat=told,
    )
    result.checks = judge(result) + (odd_widths(end) if asked.device == "cuda" else [])
    result.provenance["command"] = "python bench/race.py" + (
        f" --device cuda --minutes {asked.minutes:g}" if asked.device == "cuda" else ""
    )
    write(result, path, PICTURE)
    if left := [f"{refusal.subject} at {refusal.batch}" for refusal in result.refused if not refusal.entrant]:
        print(f"left out for want of time: {', '.join(left)}; the same command with --resume goes on with them")
    print(json.dumps({"race": path.name, "claims": {check.claim: [check.found, check.holds] for check in result.checks}}))


def _name(device: str) -> str:
    if device == "cpu":
        return "race-cpu"
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"{gpu}-{datetime.now(UTC):%Y-%m-%d}"


def networks(data_root: Path | None) -> list[Network]:
    """Everyone who is raced upon; the largest are built last."""
    torch.manual_seed(SEED)
    images = _images(data_root)
    dense = _scattered(lt.build_model("vgg16", classes=10))
    small, rounded = (lt.cut(dense, lt.plan(dense, images[:2], target_macs=0.2, align=align)) for align in (1, 16))
    found = [Network(SMALL, small, images), Network(DENSE, dense, images), Network(ROUNDED, rounded, images)]
    large = F.interpolate(images[:LARGE_IMAGES], size=224, mode="bilinear") if data_root else _noise(LARGE_IMAGES, 224)
    dense = _scattered(lt.build_model("torchvision:resnet50", classes=1000, image_size=224))
    small = lt.cut(dense, lt.plan(dense, large[:2], target_macs=0.5))
    return [*found, Network(SMALL_50, small, large), Network(DENSE_50, dense, large)]


def _scattered(model: nn.Module) -> nn.Module:
    """Filters of very different sizes, as trained ones have."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= torch.exp(SPREAD * torch.randn(module.out_channels, 1, 1, 1, generator=generator))
    return model.eval()


def _images(data_root: Path | None) -> Tensor:
    if data_root is None:
        return _noise(IMAGES, 32)
    images, _ = next(iter(lt.load_data("cifar10", data_root).test.batches(IMAGES, torch.device("cpu"), None, 0)))
    return images.contiguous()


def _noise(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(SEED))


def heats(device: str, batches: tuple[int, ...]) -> list[Heat]:
    """The most important first."""
    if device == "cpu":
        vgg = [h for b in batches for h in (Heat(SMALL, b), Heat(DENSE, b), Heat(ROUNDED, b, ("engine fp32", "onnxruntime fp32")))]
        return [*vgg, Heat(SMALL_50, 1, ON_CPU), Heat(DENSE_50, 1, ON_CPU)]
    claimed = [Heat(SMALL, 1), Heat(SMALL, 64, (*ON_GPU, TUNED)), Heat(SMALL, 1024, (*ON_GPU, TUNED))]
    pairs = [(DENSE, 1024), (SMALL, 256), (DENSE, 256), (SMALL_50, 64), (DENSE_50, 64), (DENSE, 64), (DENSE, 1), (SMALL, 8), (DENSE, 8)]
    return [
        *claimed,
        *(Heat(*pair, ON_GPU) for pair in pairs),
        *(Heat(ROUNDED, batch, ("engine", "onnxruntime")) for batch in (1, 64, 1024)),
    ]


def judge(result: RaceResult) -> list[Check]:
    """What we claim, and what was found."""
    return _judge_gpu(result) if result.device == "cuda" else _judge_cpu(result)


def _judge_gpu(result: RaceResult) -> list[Check]:
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


def _over_cudnn(result: RaceResult) -> float | None:
    return checks.against_cudnn(result, (DENSE, DENSE_50))


def _judge_cpu(result: RaceResult) -> list[Check]:
    batches = [batch for subject, batch in result.heats() if subject == SMALL]
    plain = [ratio for b in batches if (ratio := checks.over_entrant(result, SMALL, b, "onnxruntime", "fp32")) is not None]
    return [
        checks.never_behind("the engine's time over the best backend's, in its worst row: at most 1.05", result, 1.05),
        checks.at_least(
            "odd widths: at least 1.2 times as fast as ONNX Runtime fp32 with default settings, in the worst row",
            min(plain, default=None),
            1.2,
        ),
    ]


def odd_widths(end: float) -> list[Check]:
    """On a GPU, where there is time left."""
    from ltcompile.race.widths import cost_of_odd

    found = max(cost_of_odd(lambda _: None).values()) if time.monotonic() < end - RESERVE_S / 2 else None
    return [checks.at_most("conv2d with odd widths over the next multiple of 8, the worst of three: at most 1.10", found, 1.1)]


if __name__ == "__main__":
    main()
