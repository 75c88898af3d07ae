"""Compile an engine, and load one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ltcompile.engine import device as devices
from ltcompile.engine import file
from ltcompile.engine.agreement import MAX_DROP
from ltcompile.engine.engine import Engine, Run
from ltcompile.engine.file import EngineFile
from ltcompile.errors import Disagreement, EngineMismatch, InvalidData, InvalidSetting
from ltcompile.graph.wrappers import unwrap
from ltcompile.numerics import TOLERANCES, largest_error, tile

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
    """An engine of `model`: the candidate that measures fastest on this machine, for each size in `batch`.

    Args:
        model: any network of images with one output; it stays as it is.
        example: real images, float32 (N, C, H, W). Outputs are compared on them. int8 also takes its ranges from them and counts those that
            change their class, so it needs a hundred or more; noise says nothing about accuracy.
        device: "cpu" or "cuda".
        batch: the batch sizes, different and at least 1.
        precision: "fp32", "fp16" (GPU), "bf16" or "int8" (CPU); by default fp32 on a CPU and fp16 on a GPU.
        max_drop: in int8, the per cent of images that may change their class against fp32: an upper bound of the loss of accuracy.
        on_progress: is called with one line for each step.

    Raises:
        InvalidModel: the network cannot be lowered. InvalidSetting, InvalidData: a setting or the images are invalid.
        Unavailable: the device is not there. Disagreement: no candidate computes the network, or int8 changes too many classes.
    """
    _check(example, batch)
    target, example = devices.find(device, precision), example.detach().cpu()
    network = copy.deepcopy(unwrap(model)).cpu().eval()
    made = target.make(network, example, batch, max_drop, on_progress or (lambda _: None))
    noise = _noise_like(example)
    answer = made.runs[batch[0]](tile(noise, batch[0]))[:1].cpu()
    shape = tuple(example.shape[1:])
    return Engine(
        EngineFile(device, target.precision, shape, target.machine(), made.variants, (noise, answer), made.onnx, made.single), made.runs
    )


def load_engine(path: str | Path, *, retune: bool = False, on_progress: Callable[[str], None] | None = None) -> Engine:
    """The engine in a file of `Engine.save`, ready to run; nothing in the file is executed.

    Args:
        path: the file.
        retune: whether to measure again where the file was made on another machine or with other versions.
        on_progress: is called with one line for each step of that.

    Raises:
        InvalidFile: it is not an engine. EngineMismatch: it was made elsewhere, and `retune` is False. Unavailable: its device is not here.
    """
    contents = file.load(path)
    target = devices.find(contents.device, contents.precision)
    if different := _differences(contents, target.machine()):
        if not retune:
            raise EngineMismatch(
                f"{path} was tuned elsewhere ({different}): its choices may be slow or impossible here; "
                "load it with retune=True (`--retune`), which measures again, or compile the network here"
            )
        made = target.recompile(contents, on_progress or (lambda _: None))
        contents = replace(contents, variants=made.variants, machine=target.machine())
        return Engine(contents, made.runs)
    runs = target.load(contents)
    _check_answers(contents, runs, path)
    return Engine(contents, runs)


def _check_answers(contents: EngineFile, runs: Mapping[int, Run], path: str | Path) -> None:
    noise, answer = contents.probe
    for batch, run in runs.items():
        error = largest_error(run(tile(noise, batch)), tile(answer, batch))
        if not error <= TOLERANCES[contents.precision]:
            raise Disagreement(
                f"{path} answers otherwise than when it was made: batch {batch} is off by {error:.1e} of the largest; compile the network again"
            )


def _noise_like(example: Tensor) -> Tensor:
    """One image (1, C, H, W) of noise with the example's mean and spread a channel."""
    noise = torch.randn(1, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    spread = example.std((0, 2, 3), keepdim=True) if example[:, 0].numel() > 1 else torch.ones(())
    return (noise * spread + example.mean((0, 2, 3), keepdim=True)).contiguous()


def _check(example: Tensor, batch: Sequence[int]) -> None:
    if example.dim() != 4 or example.dtype != torch.float32 or len(example) == 0 or not bool(example.isfinite().all()):
        raise InvalidData(f"example must be finite float32 images (N, C, H, W), not {example.dtype} {tuple(example.shape)}")
    if not batch or min(batch) < 1 or len(set(batch)) != len(batch):
        raise InvalidSetting(f"batch={list(batch)}: batch sizes must be different and at least 1")


def _differences(contents: EngineFile, here: dict[str, str]) -> str:
    return ", ".join(
        f"{key} {contents.machine.get(key, 'unknown')}, here {value}" for key, value in here.items() if contents.machine.get(key) != value
    )
