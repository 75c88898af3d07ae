"""Making an engine, and bringing one back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ltcompile.core.deployment import TOLERANCES
from ltcompile.engine import device as devices
from ltcompile.engine import file
from ltcompile.engine.agreement import MAX_DROP
from ltcompile.engine.checks import relative_error, tile
from ltcompile.engine.engine import Engine, Run
from ltcompile.engine.file import Contents
from ltcompile.errors import BadData, BadSetting, Disagreement, StaleEngine
from ltcompile.graph.wrappers import unwrap

BATCHES = (1, 8, 64)


def compile(
    model: nn.Module,
    example: Tensor,
    *,
    device: str = "cpu",
    batch: Sequence[int] = BATCHES,
    precision: str | None = None,
    max_drop: float = MAX_DROP,
    on_progress: Callable[[str], None] | None = None,
) -> Engine:
    """An engine of `model` for `device` ("cpu", "cuda"): whoever measures fastest here, for each size in `batch`.

    Args:
        example: real images, float32 (N, C, H, W). Outputs are compared on them. int8 takes its ranges from them too, and how many of
            them change their class is what it costs: it needs a hundred or more, and noise tells nothing of accuracy.
        precision: "fp32", "fp16" (GPU), "bf16" or "int8" (CPU); by default fp32 on a CPU and fp16 on a GPU.
        max_drop: in int8, the per cent of images that may change their class against fp32, which is at least what accuracy may fall.

    Raises:
        BadModel: the network cannot be lowered. BadSetting, BadData: settings or images that make no sense.
        Unavailable: there is no such device. Disagreement: nobody computes what the network does, or int8 changes too many classes.
    """
    _check(example, batch)
    target, example = devices.find(device, precision), example.detach().cpu()
    network = copy.deepcopy(unwrap(model)).cpu().eval()
    made = target.make(network, example, batch, max_drop, on_progress or (lambda _: None))
    noise = _noise_like(example)
    answer = made.runs[batch[0]](tile(noise, batch[0]))[:1].cpu()
    shape = tuple(example.shape[1:])
    return Engine(Contents(device, target.precision, shape, target.machine(), made.parts, (noise, answer), made.onnx), made.runs)


def load_engine(path: str | Path, *, retune: bool = False, on_progress: Callable[[str], None] | None = None) -> Engine:
    """The engine in a file of `Engine.save`, ready to run; nothing in the file is executed.

    Args:
        retune: measure again who is fastest, where the file was made on another machine or with other versions.

    Raises:
        BadFile: it is no engine. StaleEngine: it was made elsewhere, and `retune` is False. Unavailable: its device is not here.
    """
    contents = file.load(path)
    target = devices.find(contents.device, contents.precision)
    if different := _differences(contents, target.machine()):
        if not retune:
            raise StaleEngine(
                f"{path} was tuned elsewhere ({different}): its choices may be slow or impossible here; "
                "load it with retune=True (`--retune`), which measures again, or compile the network here"
            )
        made = target.again(contents, on_progress or (lambda _: None))
        contents = replace(contents, parts=made.parts, machine=target.machine())
        return Engine(contents, made.runs)
    runs = target.load(contents)
    _check_answers(contents, runs, path)
    return Engine(contents, runs)


def _check_answers(contents: Contents, runs: Mapping[int, Run], path: str | Path) -> None:
    noise, answer = contents.probe
    for batch, run in runs.items():
        error = relative_error(run(tile(noise, batch)), tile(answer, batch))
        if not error <= TOLERANCES[contents.precision]:
            raise Disagreement(
                f"{path} answers otherwise than when it was made: batch {batch} is off by {error:.1e} of the largest; make it again"
            )


def _noise_like(example: Tensor) -> Tensor:
    """One image (1, C, H, W) of noise with the example's mean and spread a channel."""
    noise = torch.randn(1, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    spread = example.std((0, 2, 3), keepdim=True) if example[:, 0].numel() > 1 else torch.ones(())
    return (noise * spread + example.mean((0, 2, 3), keepdim=True)).contiguous()


def _check(example: Tensor, batch: Sequence[int]) -> None:
    if example.dim() != 4 or example.dtype != torch.float32 or len(example) == 0 or not bool(example.isfinite().all()):
        raise BadData(f"example must be finite float32 images (N, C, H, W), not {example.dtype} {tuple(example.shape)}")
    if not batch or min(batch) < 1 or len(set(batch)) != len(batch):
        raise BadSetting(f"batch sizes must be different and at least 1, not {list(batch)}")


def _differences(contents: Contents, here: dict[str, str]) -> str:
    return ", ".join(
        f"{key} {contents.machine.get(key, 'unknown')}, here {value}" for key, value in here.items() if contents.machine.get(key) != value
    )
