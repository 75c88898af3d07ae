"""Where the time of a training goes: whole steps by precision, memory layout and compilation, and what images and validation add.

    python bench/training.py [--compile]        writes bench/results/training.json

Candidates take turns on the same batches of noise, 3x32x32 as CIFAR-10's; the least time of each counts. An epoch is 45,000 training and 5,000
validation images. `--compile` adds torch.compile, which takes minutes. Nothing else may run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from _common import finish
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import cpu_name
from ltcompile.core.streams import generator, seeded, stream
from ltcompile.data._dataset import TensorSplit
from ltcompile.errors import TrainingFailed
from ltcompile.tasks import Classification
from ltcompile.training import multiplies_bf16, pick_device
from ltcompile.training.step import Stepper

TRAIN, VALIDATION, VALIDATED = 45_000, 5_000, 512
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--models", nargs="*", default=["resnet20", "vgg16"])
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--device")
    options = arguments.parse_args()
    device, recipe = pick_device(options.device), Recipe(batch=options.batch)
    found = {name: timed(name, recipe, device, options.turns, options.compile) for name in options.models}
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    finish("training", {"device": where, "batch": options.batch, "networks": found})


def timed(name: str, recipe: Recipe, device: torch.device, turns: int, compiled: bool) -> dict[str, Any]:
    """One network's table, as milliseconds."""
    split = noise(2 * max(recipe.batch, VALIDATED))
    steppers = {key: build() for key, build in candidates(name, recipe, device, compiled)}
    batches = endless(split, recipe, device)
    step_ms: dict[str, float] = {}
    for turn in range(turns + 1):  # the first one warms up, and compiles
        batch = next(batches)
        for key in list(steppers):
            try:
                spent = once(lambda key=key, batch=batch: steppers[key]([batch], 0.0), device)  # type: ignore[misc]
            except TrainingFailed as error:
                print(f"{key}: {error}")
                del steppers[key]
                continue
            if turn:
                step_ms[key] = min(spent, step_ms.get(key, float("inf")))
    images_ms = min(once(lambda: next(batches), device) for _ in range(turns))
    model = steppers[next(iter(steppers))].model
    validated = task_of(split.part(torch.arange(VALIDATED)))
    validation_ms = min(once(lambda: validated.evaluate(model, "val", device), device) for _ in range(3)) / VALIDATED
    steps, fastest = TRAIN // recipe.batch, min(step_ms, key=lambda key: step_ms[key])
    epoch_s = {
        "steps": steps * step_ms[fastest] / 1000,
        "images": steps * images_ms / 1000,
        "validation": VALIDATION * validation_ms / 1000,
    }
    print(f"\n{name}, batch {recipe.batch}: {'step':<34} {'ms':>9} {'images/s':>9}")
    for key, ms in sorted(step_ms.items(), key=lambda item: item[1]):
        print(f"{'':<{len(name) + 11}} {key:<34} {ms:>9.1f} {1000 * recipe.batch / ms:>9.0f}")
    whole = sum(epoch_s.values())
    print("an epoch by the fastest: " + ", ".join(f"{part} {seconds:.1f} s ({seconds / whole:.0%})" for part, seconds in epoch_s.items()))
    return {"step_ms": step_ms, "images_ms": images_ms, "validation_ms_per_image": validation_ms, "epoch_s": epoch_s, "fastest": fastest}


def candidates(name: str, recipe: Recipe, device: torch.device, compiled: bool) -> Iterator[tuple[str, Callable[[], Stepper]]]:
    """What there is to choose from, and how to make each."""
    precisions = {"fp32": None, "bf16": torch.bfloat16} if multiplies_bf16(device) else {"fp32": None}
    for precision, dtype in precisions.items():
        for layout in LAYOUTS:
            yield f"{precision}, {layout}", lambda d=dtype, lay=layout: stepper(name, recipe, device, d, "", lay)  # type: ignore[misc]
    if compiled:  # one at a time: a compilation forgets those before it
        yield "fp32, channels_last, compiled", lambda: stepper(name, recipe, device, None, "inductor", "channels_last")


def task_of(split: Any) -> Classification:
    """A classification whose validation part is `split`; a step needs its loss alone."""
    return Classification(SimpleNamespace(description=None, annotations=("labels",), train=split, val=split, test=split))  # type: ignore[arg-type]


def stepper(name: str, recipe: Recipe, device: torch.device, dtype: torch.dtype | None, backend: str, layout: str) -> Stepper:
    with seeded(stream("first weights", 0)):
        model: nn.Module = lt.build_model(name, 10, 3, 32).train()
    found = Stepper(model, task_of(None), recipe, device, dtype, backend)
    found.layout = LAYOUTS[layout]
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.clone(memory_format=found.layout)
    return found


def noise(images: int) -> TensorSplit:
    rng = generator(stream("trial", 2))
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return TensorSplit(pixels, torch.arange(images) % 10, torch.full((3,), 0.5), torch.full((3,), 0.25))


def endless(split: TensorSplit, recipe: Recipe, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from split.batches(recipe.batch, device, replace(recipe, flip=True), stream("trial", 3))


def once(work: Callable[[], object], device: torch.device) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
