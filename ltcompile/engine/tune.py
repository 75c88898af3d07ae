# mypy: disable-error-code="import-untyped"
"""What runs each layer on this GPU, found by timing: our kernel over its configurations against cuDNN (cuBLAS), a layer shape once.

All answers are checked against the reference before they are timed, with caches emptied before. What was found is kept in a cache file for
the next engine, and in the engine's own file for the next process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltcompile import kernels
from ltcompile.engine.events import copies
from ltcompile.engine.executable import CUDNN, TRITON, Choice, kernel_and_arguments, specs
from ltcompile.errors import BadFile, BadSetting, Disagreement
from ltcompile.kernels import Config
from ltcompile.lower import vendor
from ltcompile.lower.program import Node, Program, filled
from ltcompile.numerics import KERNEL_TOLERANCES
from ltcompile.paths import cache_folder, exclusive, read_json, write_json

# (name -> work on the i-th copy of its memory, copies, seconds of the device for each) -> name -> microseconds
Timer = Callable[[Mapping[str, Callable[[int], Any]], int, float], Mapping[str, float]]
SCREEN_S, FINAL_S = 0.005, 0.05
FINALISTS = 4
CLOSE = 1.2  # times as slow as the fastest alone: timed again inside the network


class Cache:
    """The finalists of each (GPU, Triton, layer shape), in a JSON file that several processes may write to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read_cache(path)
        self._new: dict[str, dict[str, Any]] = {}

    def get(self, machine: str, signature: str) -> tuple[Choice, ...]:
        """What was found, fastest first; empty where nothing was."""
        try:
            return tuple(read_choice(value) for value in self._known[machine][signature])
        except (KeyError, TypeError, ValueError, BadSetting):
            return ()

    def put(self, machine: str, signature: str, finalists: Sequence[Choice]) -> None:
        for values in (self._known, self._new):
            values.setdefault(machine, {})[signature] = [write_choice(choice) for choice in finalists]

    def write(self) -> None:
        """Add what this process found to the file, beside what others wrote meanwhile. Raises BadFile where it cannot be written."""
        with exclusive(self._path):
            merged = _read_cache(self._path)
            for machine, found in self._new.items():
                merged[machine] = merged.get(machine, {}) | found
            write_json(self._path, merged)
        self._new = {}


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    """What the file holds; a damaged one costs time, nothing else."""
    try:
        held = read_json(path, "cache of tuned kernels")
    except BadFile:
        return {}
    return {str(k): dict(v) for k, v in held.items() if isinstance(v, dict)} if isinstance(held, dict) else {}


def default_cache() -> Path:
    """Where choices are kept for the next engine."""
    return cache_folder() / "tuned.json"


def write_choice(choice: Choice) -> dict[str, Any]:
    return {"by": choice.by, "config": None if choice.config is None else asdict(choice.config), "told_us": dict(choice.told_us)}


def read_choice(value: Mapping[str, Any]) -> Choice:
    """Raises KeyError, TypeError, ValueError or BadSetting where it is none."""
    if value["by"] not in (TRITON, CUDNN):
        raise ValueError(f"a layer is run by {TRITON} or {CUDNN}, not by {value['by']!r}")
    config = None if value["config"] is None else Config(**value["config"])
    return Choice(str(value["by"]), config, {str(k): float(v) for k, v in value["told_us"].items()})


def signature(node: Node, shapes: Mapping[str, Tensor]) -> str:
    """What two layers must share to run equally fast."""
    like = [[*shapes[name].shape, str(shapes[name].dtype)] for name in node.reads]
    return json.dumps([node.target, like, dict(node.kwargs)], sort_keys=True)


def tune(
    program: Program, device: torch.device, machine: str, cache: Cache, timer: Timer, on_progress: Callable[[str], None]
) -> dict[str, tuple[Choice, ...]]:
    """The finalists for every kernel of `program`, by name, fastest alone first; new ones are written to `cache` as they are found.

    Raises:
        Disagreement: neither our kernel nor cuDNN computes a layer.
    """
    shapes = specs(program)
    ours = [node for node in program.nodes if node.target.startswith("kernel.")]
    wanted = {s: node for node in ours if not cache.get(machine, s := signature(node, shapes))}
    benches = {s: _Layer(node, shapes, program.constants, device) for s, node in wanted.items()}
    if benches:
        on_progress(f"compiling {sum(len(b.calls) for b in benches.values())} configurations for {len(benches)} layer shapes")
        _compile_all([call for bench in benches.values() for call in bench.calls.values()])
    for at, key in enumerate(wanted):
        on_progress(f"timing layer shape {at + 1} of {len(wanted)}: {wanted[key].layer or wanted[key].name}")
        cache.put(machine, key, benches.pop(key).choose(timer))
        try:
            cache.write()
        except BadFile as error:
            on_progress(f"what was tuned is not kept for the next engine: {error}")
    return {node.name: cache.get(machine, signature(node, shapes)) for node in ours}


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """References are computed in plain fp32, by the algorithms that need no search."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class _Layer:
    """One layer on random inputs of its shapes, ready to be run by our kernel and by cuDNN."""

    def __init__(self, node: Node, shapes: Mapping[str, Tensor], constants: Mapping[str, Tensor], device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def sample(name: str) -> Tensor:
            like = shapes[name]
            return torch.randn(like.shape, generator=generator, device=device).to(like.dtype)  # zeros would run unrealistically fast

        self._node = node
        self._values = {name: constants[name].to(device) if name in constants else sample(name) for name in node.reads}
        if len(node.args) > 3 and node.args[3] is not None:
            self._values[node.args[3].name][..., node.kwargs["channels"] :] = 0  # a residual's padding is added to the output's
        module, arguments = kernel_and_arguments(node, self._values)
        with exact():
            self.expected: Tensor = module.reference(arguments)
        self._tolerance = 0.0 if node.target == "kernel.maxpool" else 2 * KERNEL_TOLERANCES[str(self.expected.dtype)]  # a maximum is exact
        self.output = torch.empty_like(self.expected)
        self.space = {str(at): config for at, config in enumerate(arguments.space())}
        self.calls = {name: module.prepare(self.output, arguments, config) for name, config in self.space.items()}

    def choose(self, timer: Timer) -> tuple[Choice, ...]:
        """The fastest whose answers are right, those that are close to it behind it. Raises Disagreement where no answers are right."""
        right = [name for name in self.calls if self._launches_right(name)]
        vendor_right = self._vendor_right()
        if not right and not vendor_right:
            raise Disagreement("no configuration of our kernel computes this layer; please report it with the output of `ltcompile doctor`")
        count = copies(sum(t.numel() * t.element_size() for t in (*self._values.values(), self.output)))
        memory = [self._copied() for _ in range(count)]
        work: dict[str, Callable[[int], Any]] = {name: self._launching(name, memory) for name in right}
        if vendor_right:
            work[CUDNN] = self._vendor_running(memory)
        first = timer(work, count, SCREEN_S)
        best = sorted(right, key=first.__getitem__)[:FINALISTS]
        final = timer({name: work[name] for name in [*best, *([CUDNN] if vendor_right else [])]}, count, FINAL_S)
        told = {CUDNN: final[CUDNN]} if vendor_right else {}
        if best:
            told[TRITON] = min(final[name] for name in best)
        close = [name for name in sorted(final, key=final.__getitem__) if final[name] <= CLOSE * min(final.values())]
        return tuple(Choice(CUDNN, None, told) if name == CUDNN else Choice(TRITON, self.space[name], told) for name in close)

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._values.items()} | {"": self.output.clone()}

    def _launching(self, name: str, memory: Sequence[Mapping[str, Tensor]]) -> Callable[[int], None]:
        """Our kernel on a copy of the memory; scratch and counters stay the call's own, since launches follow one another."""
        call = self.calls[name]
        own = {value.data_ptr(): key for key, value in self._values.items()} | {self.output.data_ptr(): ""}
        at = {key: own[value.data_ptr()] for key, value in call.tensors.items() if value.data_ptr() in own}  # views among them

        def launch(copy: int) -> None:
            moved = {key: memory[copy][name].view(call.tensors[key].shape) for key, name in at.items()}
            kernels.launch(replace(call, tensors=call.tensors | moved))

        return launch

    def _vendor_running(self, memory: Sequence[Mapping[str, Tensor]]) -> Callable[[int], Any]:
        layers = [vendor.cudnn(self._node, values) for values in memory]
        inputs = [filled(list(self._node.args), values) for values in memory]
        return lambda copy: layers[copy](inputs[copy][0], inputs[copy][3] if len(inputs[copy]) > 3 else None)

    def _launches_right(self, name: str) -> bool:
        self.output.fill_(float("nan"))
        try:
            kernels.launch(self.calls[name])
        except Exception:  # a configuration that this GPU's memory does not hold; Triton and the driver have their own types
            return False
        return self._right(self.output)

    def _vendor_right(self) -> bool:
        """Whether cuDNN has a form of this layer, runs it, and gives its answers."""
        if vendor.refusal(self._node):
            return False
        try:
            return self._right(self._vendor_running([self._values])(0))
        except RuntimeError:  # cuDNN supports not every shape
            return False

    def _right(self, answer: Tensor) -> bool:
        scale = self.expected.float().abs().max().clamp_min(1.0)
        error = (answer.float() - self.expected.float()).abs().max() / scale
        return bool(error <= self._tolerance)


def _compile_all(calls: list[kernels.Call]) -> None:
    """Compile on all processors at once; what fails shows again when it is launched."""
    if not calls or calls[0].tensors["x"].device.type != "cuda":
        return
    import triton

    with ThreadPoolExecutor(os.cpu_count()) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for call in calls:
            call.kernel.warmup(grid=(call.programs,), **call.arguments, **call.options)
