# mypy: disable-error-code="import-untyped"
"""The fastest implementation of each layer on this GPU: our kernel in its configurations or cuDNN (cuBLAS), timed once a layer shape.

Each is checked against the kernel's reference before it is timed, with cleared caches. A cache file keeps the finalists for the next engine.
A layer timed alone reads cold memory; in a network its input was just written, and its launch overlaps the previous one. So the few close
finalists of each layer shape are timed again in the network, one shape after the other.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltcompile import kernels
from ltcompile.engine import cudnn
from ltcompile.engine.events import copies
from ltcompile.engine.executable import CUDNN, TRITON, Choice, kernel_and_arguments, specs
from ltcompile.errors import Disagreement, InvalidFile, InvalidSetting
from ltcompile.kernels import Config
from ltcompile.lower.program import Node, Program
from ltcompile.numerics import KERNEL_TOLERANCES
from ltcompile.paths import cache_folder, exclusive, read_json, write_json
from ltcompile.processors import processors

# (name -> work on the i-th copy of its memory, copies, seconds of the device for each) -> name -> microseconds
Timer = Callable[[Mapping[str, Callable[[int], Any]], int, float], Mapping[str, float]]
InNetwork = Callable[[Mapping[str, Mapping[str, Choice]]], Mapping[str, float]]  # name -> node -> choice; name -> milliseconds
SCREEN_S, FINAL_S = 0.005, 0.05
FINALISTS = 4
GAIN = 0.005  # the fraction of the network's time that a finalist must save to replace the fastest alone
CLOSE = 1.2  # finalists take at most so many times as long as the fastest, and are timed again inside the network


class Cache:
    """The finalists of each (GPU, Triton, layer shape), in a JSON file that several processes may write to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read_cache(path)
        self._new: dict[str, dict[str, Any]] = {}

    def get(self, machine: str, signature: str) -> tuple[Choice, ...]:
        """The finalists, fastest first; empty where the shape is unknown."""
        try:
            return tuple(read_choice(value) for value in self._known[machine][signature])
        except (KeyError, TypeError, ValueError, InvalidSetting):
            return ()

    def put(self, machine: str, signature: str, finalists: Sequence[Choice]) -> None:
        for values in (self._known, self._new):
            values.setdefault(machine, {})[signature] = [write_choice(choice) for choice in finalists]

    def write(self) -> None:
        """Merge the new finalists into the file, which other processes may have written to. Raises InvalidFile where it cannot be written."""
        with exclusive(self._path):
            merged = _read_cache(self._path)
            for machine, found in self._new.items():
                merged[machine] = merged.get(machine, {}) | found
            write_json(self._path, merged)
        self._new = {}


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    """The contents of the file; empty where it is damaged, which costs time and nothing else."""
    try:
        held = read_json(path, "cache of tuned kernels")
    except InvalidFile:
        return {}
    return {str(k): dict(v) for k, v in held.items() if isinstance(v, dict)} if isinstance(held, dict) else {}


def default_cache() -> Path:
    """The cache file of this user."""
    return cache_folder() / "tuned.json"


def write_choice(choice: Choice) -> dict[str, Any]:
    return {"by": choice.by, "config": None if choice.config is None else asdict(choice.config), "times_us": dict(choice.times_us)}


def read_choice(value: Mapping[str, Any]) -> Choice:
    """The choice of `write_choice`. Raises KeyError, TypeError, ValueError or InvalidSetting where `value` is not one."""
    if value["by"] not in (TRITON, CUDNN):
        raise ValueError(f"unknown implementation {value['by']!r}; choose {TRITON} or {CUDNN}")
    config = None if value["config"] is None else Config(**value["config"])
    return Choice(str(value["by"]), config, {str(k): float(v) for k, v in value["times_us"].items()})


def signature(node: Node, shapes: Mapping[str, Tensor]) -> str:
    """The key of a layer's shape: layers with the same key take the same time."""
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
        except InvalidFile as error:
            on_progress(f"the tuned configurations are not kept for the next engine: {error}")
    return {node.name: cache.get(machine, signature(node, shapes)) for node in ours}


def rerank(program: Program, finalists: Mapping[str, Sequence[Choice]], in_network_ms: InNetwork) -> dict[str, Choice]:
    """Node -> its choice, of finalists with the fastest alone first.

    Nodes of one shape share a choice; a finalist that cannot be timed in the network is not chosen.
    """
    shapes, groups = specs(program), dict[str, list[str]]()
    for node in program.nodes:
        if node.name in finalists:
            groups.setdefault(signature(node, shapes), []).append(node.name)
    choices = {name: found[0] for name, found in finalists.items()}
    for nodes in groups.values():
        candidates = {str(at): choices | dict.fromkeys(nodes, choice) for at, choice in enumerate(finalists[nodes[0]])}
        if len(candidates) > 1:
            ms = in_network_ms(candidates)
            best = min(ms, key=ms.__getitem__, default="0")
            if ms.get(best, 0.0) < (1 - GAIN) * ms.get("0", float("inf")):
                choices = dict(candidates[best])
    return choices


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
    """One layer on random inputs of its shapes, ready to run by our kernel and by cuDNN."""

    def __init__(self, node: Node, shapes: Mapping[str, Tensor], constants: Mapping[str, Tensor], device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def sample(name: str) -> Tensor:
            like = shapes[name]
            return torch.randn(like.shape, generator=generator, device=device).to(like.dtype)  # all-zero inputs run unrealistically fast

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
        """The fastest correct candidate and those close to it, fastest first. Raises Disagreement where none is correct."""
        correct = [name for name in self.calls if self._kernel_is_correct(name)]
        cudnn_correct = self._cudnn_is_correct()
        if not correct and not cudnn_correct:
            raise Disagreement("no configuration of our kernel computes this layer; please report it with the output of `ltcompile doctor`")
        count = copies(sum(t.numel() * t.element_size() for t in (*self._values.values(), self.output)))
        memory = [self._copied() for _ in range(count)]
        work: dict[str, Callable[[int], Any]] = {name: self._launching(name, memory) for name in correct}
        if cudnn_correct:
            work[CUDNN] = self._cudnn_running(memory)
        first = timer(work, count, SCREEN_S)
        best = sorted(correct, key=first.__getitem__)[:FINALISTS]
        final = timer({name: work[name] for name in [*best, *([CUDNN] if cudnn_correct else [])]}, count, FINAL_S)
        times_us = {CUDNN: final[CUDNN]} if cudnn_correct else {}
        if best:
            times_us[TRITON] = min(final[name] for name in best)
        close = [name for name in sorted(final, key=final.__getitem__) if final[name] <= CLOSE * min(final.values())]
        return tuple(Choice(CUDNN, None, times_us) if name == CUDNN else Choice(TRITON, self.space[name], times_us) for name in close)

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._values.items()} | {"": self.output.clone()}

    def _launching(self, name: str, memory: Sequence[Mapping[str, Tensor]]) -> Callable[[int], None]:
        """Our kernel on a copy of the memory; launches share the call's scratch and counters, since they follow one another."""
        call = self.calls[name]
        own = {value.data_ptr(): key for key, value in self._values.items()} | {self.output.data_ptr(): ""}
        at = {key: own[value.data_ptr()] for key, value in call.tensors.items() if value.data_ptr() in own}  # views among them

        def launch(copy: int) -> None:
            moved = {key: memory[copy][name].view(call.tensors[key].shape) for key, name in at.items()}
            kernels.launch(replace(call, tensors=call.tensors | moved))

        return launch

    def _cudnn_running(self, memory: Sequence[Mapping[str, Tensor]]) -> Callable[[int], Any]:
        layers = [cudnn.layer(self._node, values) for values in memory]
        inputs = [self._node.filled(values)[0] for values in memory]
        return lambda copy: layers[copy](inputs[copy][0], inputs[copy][3] if len(inputs[copy]) > 3 else None)

    def _kernel_is_correct(self, name: str) -> bool:
        self.output.fill_(float("nan"))
        try:
            kernels.launch(self.calls[name])
        except Exception:  # such as too little shared memory; Triton and the driver raise their own types
            return False
        return self._is_correct(self.output)

    def _cudnn_is_correct(self) -> bool:
        """Whether cuDNN has a form of this layer, runs it, and gives the correct output."""
        if cudnn.refusal(self._node):
            return False
        try:
            return self._is_correct(self._cudnn_running([self._values])(0))
        except RuntimeError:  # a shape that cuDNN does not support
            return False

    def _is_correct(self, answer: Tensor) -> bool:
        error, scale = (answer.float() - self.expected.float()).abs().max(), self.expected.float().abs().max().clamp_min(1.0)
        return bool(error <= self._tolerance * scale)


def _compile_all(calls: list[kernels.Call]) -> None:
    """Compile on all processors at once; failures show again at the launch."""
    if not calls or calls[0].tensors["x"].device.type != "cuda":
        return
    import triton

    with ThreadPoolExecutor(processors()) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for call in calls:
            call.kernel.warmup(grid=(call.programs,), **call.arguments, **call.options)
