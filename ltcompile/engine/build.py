"""Compile an engine, and load one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ltcompile.engine import device as devices
from ltcompile.engine import file
from ltcompile.engine.agreement import MAX_DROP
from ltcompile.engine.device import TUNE_SECONDS, Settings
from ltcompile.engine.engine import Engine, Run
from ltcompile.engine.file import EngineFile
from ltcompile.engine.signature import Signature, outputs
from ltcompile.errors import Disagreement, EngineMismatch, InvalidData, InvalidSetting
from ltcompile.graph._copy import copied
from ltcompile.graph.inputs import Example
from ltcompile.lower.inputs import Inputs
from ltcompile.numerics import TOLERANCES, largest_error, tile
from ltcompile.pruned import Source, network_and_example

BATCHES = (1, 8, 64)


def compile(
    model: nn.Module | Source,
    example: Example | None = None,
    *,
    device: str = "cpu",
    batch: Sequence[int] = BATCHES,
    precision: str | None = None,
    max_drop: float = MAX_DROP,
    tune_seconds: float = TUNE_SECONDS,
    on_progress: Callable[[str], None] | None = None,
) -> Engine:
    """An engine of `model`: the candidate that measures fastest on this machine, for each size in `batch`.

    Args:
        model: any network, which stays as it is; or a `Pruned`, a ticket or its file, or the result of a search, whose small network it is.
        example: real inputs: a tensor (N, ...), a tuple of arguments or a dict of keyword arguments; by default those of the `Pruned`. Outputs
            are compared on them. int8 also takes its ranges from them and counts those that change their class, so it needs a hundred rows or
            more; noise says nothing about accuracy. Networks of several inputs or outputs, or others than float32, run in fp32 on the CPU.
        device: "cpu" or "cuda".
        batch: the batch sizes, different and at least 1.
        precision: "fp32", "fp16" (GPU), "bf16" or "int8" (CPU); by default fp32 on a CPU and fp16 on a GPU.
        max_drop: in int8, the per cent of images that may change their class against fp32: an upper bound of the loss of accuracy.
        tune_seconds: how long the tiles of generated C++ may be compiled and measured; 0 leaves them to a model and what is measured already.
        on_progress: is called with one line for each step.

    Raises:
        InvalidModel: the network cannot be lowered. InvalidSetting, InvalidData: a setting or the images are invalid.
        Unavailable: the device is not there. Disagreement: no candidate computes the network, or int8 changes too many classes.
    """
    given, example = network_and_example(model, example)
    network = copied(given).cpu().eval()
    target = devices.find(device, precision)
    inputs = Inputs.of(network, example).on_cpu()
    _check(inputs, batch)
    signature = Signature.of(network, inputs)
    _check_form(signature, device, target.precision)
    made = target.make(network, inputs, signature, batch, Settings(max_drop, tune_seconds), on_progress or (lambda _: None))
    noise = tuple(t.contiguous() for t in (_noise_like(inputs.tensors[0]),)) if signature.is_one_tensor else inputs.resized(1).tensors
    answers = tuple(
        found[:1].cpu() if has else found.cpu()
        for found, has in zip(outputs(made.runs[batch[0]](*signature.resized(noise, batch[0]))), signature.outputs_batched, strict=True)
    )
    contents = EngineFile(device, target.precision, signature, target.machine(), made.variants, (noise, answers), made.onnx, made.single)
    return Engine(contents, made.runs)


def _check_form(signature: Signature, device: str, precision: str) -> None:
    """Raises InvalidSetting where an engine on this device, in this precision, is of networks of another form."""
    if device == "cpu" and precision == "fp32":
        return
    takes_images = signature.is_one_tensor and (device == "cpu" or len(signature.shapes[0]) == 3)
    if not takes_images:
        form = "float32 images (N, C, H, W)" if device == "cuda" else "one float32 tensor (N, ...)"
        raise InvalidSetting(
            f"precision={precision} on {device} is for networks that turn {form} into one float32 tensor (N, ...), and this one takes "
            f"{signature} and gives {', '.join(signature.outputs)}; compile it in fp32 on the CPU, or write it with shrink"
        )


def load_engine(
    path: str | Path, *, retune: bool = False, tune_seconds: float = TUNE_SECONDS, on_progress: Callable[[str], None] | None = None
) -> Engine:
    """The engine in a file of `Engine.save`, ready to run; nothing in the file is executed.

    Args:
        path: the file.
        retune: whether to measure again where the file was made on another machine or with other versions.
        tune_seconds: see `compile`, for measuring again.
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
        made = target.recompile(contents, Settings(MAX_DROP, tune_seconds), on_progress or (lambda _: None))
        contents = replace(contents, variants=made.variants, machine=target.machine())
        return Engine(contents, made.runs)
    runs = target.load(contents)
    _check_answers(contents, runs, path)
    return Engine(contents, runs)


def _check_answers(contents: EngineFile, runs: Mapping[int, Run], path: str | Path) -> None:
    inputs, answers = contents.probe
    per_row = contents.signature.outputs_batched
    for batch, run in runs.items():
        found = outputs(run(*contents.signature.resized(inputs, batch)))
        errors = [largest_error(y, tile(x, batch)) for y, x, has in zip(found, answers, per_row, strict=True) if has]
        error = max(errors, default=0.0)
        if not error <= TOLERANCES[contents.precision]:
            raise Disagreement(
                f"{path} answers otherwise than when it was made: batch {batch} is off by {error:.1e} of the largest; compile the network again"
            )


def _noise_like(example: Tensor) -> Tensor:
    """One row (1, C, ...) of noise with the example's mean and spread a channel."""
    noise = torch.randn(1, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    others = [at for at in range(example.dim()) if at != 1]
    spread = example.std(others, keepdim=True) if example[:, 0].numel() > 1 else torch.ones(())
    return (noise * spread + example.mean(others, keepdim=True)).contiguous()


def _check(inputs: Inputs, batch: Sequence[int]) -> None:
    for name, tensor in zip(inputs.names, inputs.tensors, strict=True):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InvalidData(f"example must be finite: its {name} holds nan or inf")
    if not batch or min(batch) < 1 or len(set(batch)) != len(batch):
        raise InvalidSetting(f"batch={list(batch)}: batch sizes must be different and at least 1")


def _differences(contents: EngineFile, here: dict[str, str]) -> str:
    return ", ".join(
        f"{key} {contents.machine.get(key, 'unknown')}, here {value}" for key, value in here.items() if contents.machine.get(key) != value
    )
