# mypy: disable-error-code="import-untyped"
"""Who runs each layer on this GPU, found by timing: our kernel over its configurations against cuDNN (cuBLAS), a layer shape once.

Everyone's answer is checked against the reference before it is timed. What was found is kept in a cache file for the next engine, and in
the engine's own file for the next process.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltcompile import kernels
from ltcompile.engine.executable import CUDNN, TRITON, Choice, specs
from ltcompile.errors import BadFile, BadSetting, Disagreement
from ltcompile.kernels import Config
from ltcompile.kernels._config import PROGRAMS, gemm_space, head_space, window_space
from ltcompile.lower import vendor
from ltcompile.lower.program import Node, Program, filled
from ltcompile.paths import cache_folder, read_json, write_json

Timer = Callable[[Mapping[str, Callable[[], Any]], float], dict[str, float]]  # (name -> work, seconds each) -> name -> microseconds
SCREEN_S, FINAL_S = 0.02, 0.2
FINALISTS = 4
TRIED = 24  # configurations of a matrix product that are compiled and timed, those of the least estimated time


class Cache:
    """Choices by (GPU, Triton, layer shape), in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path.exists():
            try:
                self._known = dict(read_json(path, "cache of tuned kernels"))
            except (BadFile, TypeError, ValueError):
                self._known = {}  # a damaged cache costs time, nothing else

    def get(self, machine: str, signature: str) -> Choice | None:
        """What was found, if it was."""
        try:
            return read_choice(self._known[machine][signature])
        except (KeyError, TypeError, ValueError, BadSetting):
            return None

    def put(self, machine: str, signature: str, choice: Choice) -> None:
        self._known.setdefault(machine, {})[signature] = write_choice(choice)

    def write(self) -> None:
        """Raises BadFile where it cannot be written."""
        write_json(self._path, self._known)


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
) -> dict[str, Choice]:
    """A choice for every kernel of `program`, by name; new ones are put into `cache`."""
    shapes = specs(program)
    ours = [node for node in program.nodes if node.target.startswith("kernel.")]
    wanted = {s: node for node in ours if cache.get(machine, s := signature(node, shapes)) is None}
    benches = {s: _Layer(node, shapes, program.constants, device) for s, node in wanted.items()}
    if benches:
        on_progress(f"compiling {sum(len(b.calls) for b in benches.values())} configurations for {len(benches)} layer shapes")
        _compile_all([call for bench in benches.values() for call in bench.calls.values()])
    for at, (key, bench) in enumerate(benches.items()):
        on_progress(f"timing layer shape {at + 1} of {len(benches)}: {wanted[key].layer or wanted[key].name}")
        cache.put(machine, key, bench.choose(timer))
    found = {node.name: cache.get(machine, signature(node, shapes)) for node in ours}
    return {name: choice for name, choice in found.items() if choice is not None}


class _Layer:
    """One layer on random inputs of its shapes, ready to be run by everyone who can."""

    def __init__(self, node: Node, shapes: Mapping[str, Tensor], constants: Mapping[str, Tensor], device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def sample(name: str) -> Tensor:
            like = shapes[name]
            return torch.randn(like.shape, generator=generator, device=device).to(like.dtype)  # zeros would be faster than life

        values = {name: constants[name].to(device) if name in constants else sample(name) for name in node.reads}
        args, kwargs = filled(list(node.args), values), filled(dict(node.kwargs), values)
        module = kernels.load(node.target.removeprefix("kernel."))
        self.expected: Tensor = module.reference(*args, **kwargs)
        self._tolerance = module.TOL[self.expected.dtype]
        self.output = torch.empty_like(self.expected)
        space = _space(node.target.removeprefix("kernel."), self.output, args, kwargs)
        self.calls = {str(at): module.prepare(self.output, *args, **kwargs, config=config) for at, config in enumerate(space)}
        self.space = {str(at): config for at, config in enumerate(space)}
        self._vendor: Callable[[], Any] | None = None
        if not vendor.refusal(node):
            residual = args[3] if len(args) > 3 else None
            self._vendor = functools.partial(vendor.cudnn(node, values), args[0], residual)

    def choose(self, timer: Timer) -> Choice:
        """The fastest whose answers are right. Raises Disagreement where nobody's are."""
        work: dict[str, Callable[[], Any]] = {name: self._launching(name) for name in self.calls if self._right(name)}
        if self._vendor is not None:
            work[CUDNN] = self._vendor
        if not work:
            raise Disagreement("no configuration of our kernel computes this layer; please report it with the output of `ltcompile doctor`")
        first = timer(work, SCREEN_S)
        best = sorted((name for name in first if name != CUDNN), key=first.__getitem__)[:FINALISTS]
        final = timer({name: work[name] for name in [*best, *([CUDNN] if CUDNN in work else [])]}, FINAL_S)
        winner = min(final, key=final.__getitem__)
        told = {CUDNN: final[CUDNN]} if CUDNN in final else {}
        if best:
            told[TRITON] = min(final[name] for name in best)
        return Choice(CUDNN, None, told) if winner == CUDNN else Choice(TRITON, self.space[winner], told)

    def _launching(self, name: str) -> Callable[[], None]:
        return lambda: kernels.launch(self.calls[name])

    def _right(self, name: str) -> bool:
        self.output.fill_(float("nan"))
        try:
            kernels.launch(self.calls[name])
        except Exception:  # a configuration that this GPU's memory does not hold; Triton and the driver have their own types
            return False
        scale = self.expected.float().abs().max().clamp_min(1.0)
        error = (self.output.float() - self.expected.float()).abs().max() / scale
        return bool(error <= 2 * self._tolerance)


def _space(kernel: str, y: Tensor, args: list[Any], how: Mapping[str, Any]) -> list[Config]:
    """The configurations worth timing."""
    rows = y.numel() // y.shape[-1] * (4 if how.get("pool") else 1)
    if kernel in ("depthwise", "maxpool"):
        return window_space(rows, y.shape[-1])
    if kernel == "pooled_head":
        return head_space(y.shape[0], y.shape[-1], args[0].shape[-1])
    depth, block_n = (args[1].shape[1], args[1].shape[2]) if kernel == "grouped" else (args[1].shape[0], None)
    default, *others = gemm_space(rows, y.shape[-1], depth, y.element_size(), block_n)
    return [default, *sorted(others, key=lambda config: _estimate(config, rows, y.shape[-1], depth))[: TRIED - 1]]


def _estimate(config: Config, rows: int, channels: int, depth: int) -> float:
    """How long a matrix product takes, in no unit: what the busiest multiprocessor multiplies and reads, large tiles doing it better."""
    tiles = -(-rows // config.block_m) * -(-channels // config.block_n) * config.split_k
    steps = -(-depth // (config.block_k * config.split_k))
    multiplied, read = config.block_m * config.block_n * config.block_k, (config.block_m + config.block_n) * config.block_k
    prologue = config.stages - 1  # steps that only fill the pipeline
    return -(-tiles // PROGRAMS) * (steps + prologue) * (multiplied + 64 * read)


def _compile_all(calls: list[kernels.Call]) -> None:
    """Compile on all processors at once; what fails shows again when it is launched."""
    if not calls or calls[0].tensors["x"].device.type != "cuda":
        return
    import triton

    with ThreadPoolExecutor(os.cpu_count()) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for call in calls:
            call.kernel.warmup(grid=(call.programs,), **call.arguments, **call.options)
