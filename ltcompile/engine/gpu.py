"""The engine on a GPU: layers by whoever is fastest, a CUDA graph a batch size, and at small batches the network as one kernel if that is
faster still."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltcompile.core.deployment import TOLERANCES
from ltcompile.core.records import versions
from ltcompile.engine.checks import relative_error, tile
from ltcompile.engine.decision import Decision
from ltcompile.engine.device import Made, Progress
from ltcompile.engine.engine import Run
from ltcompile.engine.executable import DEPENDENT, PERSISTENT, WAYS, Choice, Executable, persistent_refusal
from ltcompile.engine.file import Contents, Part
from ltcompile.engine.tune import Cache, default_cache, read_choice, tune, write_choice
from ltcompile.errors import BadFile, BadSetting, Disagreement, Unavailable
from ltcompile.lower.lower import lower, place
from ltcompile.lower.program import Program
from ltcompile.timing import race

PRECISIONS = ("fp32", "fp16", "bf16")
WARMUPS = 3
REPEATS_MS = 0.2  # a timed graph holds as many launches as take about this long
MODE_S = 0.5


class Gpu:
    """The current CUDA device."""

    device = torch.device("cuda")

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise BadSetting(f"a GPU engine computes in {', '.join(PRECISIONS)}, not in {precision}; int8 is for CPUs")
        if not torch.cuda.is_available():
            raise Unavailable("there is no NVIDIA GPU here; compile for the CPU, or run this where one is")
        self.precision = precision

    def machine(self) -> dict[str, str]:
        return {"gpu": torch.cuda.get_device_name()} | {name: versions()[name] for name in ("triton", "torch")}

    def make(self, model: nn.Module, example: Tensor, batches: Sequence[int], on_progress: Progress) -> Made:
        programs, images, expected = {}, {}, {}
        for batch in batches:
            images[batch] = tile(example, batch)
            with torch.no_grad():
                expected[batch] = model(images[batch])
            programs[batch] = place(lower(model, images[batch]).program, images[batch], self.precision).program
        return self._choose_all(programs, images, expected, on_progress)

    def load(self, contents: Contents) -> dict[int, Run]:
        with vendor_at_its_best():
            return {part.decision.batch: Graph(self._executable(part)) for part in contents.parts}

    def again(self, contents: Contents, on_progress: Progress) -> Made:
        programs = {part.decision.batch: part.program for part in contents.parts if part.program is not None}
        noise, answer = contents.probe
        return self._choose_all(programs, {b: tile(noise, b) for b in programs}, {b: tile(answer, b) for b in programs}, on_progress)

    def _choose_all(
        self, programs: Mapping[int, Program], images: Mapping[int, Tensor], expected: Mapping[int, Tensor], on_progress: Progress
    ) -> Made:
        cache, parts, runs = Cache(default_cache()), [], {}
        name = ", ".join(self.machine().values())
        for batch, program in programs.items():
            with vendor_at_its_best():
                choices = tune(program, self.device, name, cache, time_us, on_progress)
                cache.write()
                on_progress(f"batch {batch}: timing ways to run the network")
                way, runs[batch], decision = self._choose(program, choices, images[batch], expected[batch])
            how = {"way": way, "choices": {name: write_choice(choice) for name, choice in choices.items()}}
            parts.append(Part(decision, how, program))
        return Made(tuple(parts), runs)

    def _executable(self, part: Part) -> Executable:
        try:
            assert part.program is not None
            choices = {str(name): read_choice(value) for name, value in part.how["choices"].items()}
            return Executable(part.program, self.device, choices, WAYS[WAYS.index(part.how["way"])])
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError, BadSetting) as error:
            raise BadFile(f"the engine does not say how it runs: {error!r}; make it again with `ltcompile compile`") from error

    def _choose(self, program: Program, choices: Mapping[str, Choice], images: Tensor, expected: Tensor) -> tuple[str, Run, Decision]:
        """The fastest way to run `program` among those whose answers are right.

        Raises:
            Disagreement: none is.
        """
        found, refused = ways(program)
        graphs, errors = {}, {}
        for name in found:
            try:
                graph = Graph(Executable(program, self.device, choices, name))
            except Exception as error:  # more programs than fit at once, more memory than there is: each layer below has its own types
                refused[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                continue
            errors[name] = relative_error(graph(images), expected)
            if errors[name] <= TOLERANCES[self.precision]:
                graphs[name] = graph
            else:
                refused[name] = f"its outputs are off by {errors[name]:.1e} of the largest"
        if not graphs:
            raise Disagreement(
                "no way to run this network on this GPU gives its outputs: " + "; ".join(f"{k}: {v}" for k, v in refused.items())
            )
        ms = _replays_ms({name: graph.graph for name, graph in graphs.items()}, MODE_S)
        winner = min(ms, key=ms.__getitem__)
        return winner, graphs[winner], Decision(len(images), winner, ms, refused, errors[winner], layers(program, choices))


def vendor_at_its_best() -> contextlib.AbstractContextManager[None]:
    """cuDNN tries its algorithms on the first call of a shape, and keeps the fastest."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)  # type: ignore[no-any-return]


class Graph:
    """An executable in a CUDA graph: the same memory on every replay."""

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                executable.run()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            executable.run()

    def __call__(self, images: Tensor) -> Tensor:
        self._executable.images.copy_(images)
        self.graph.replay()
        return self._executable.answer().clone()


def time_us(work: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median microseconds of each, side by side, without what launching costs: many of a kind in one CUDA graph."""
    graphs, repeats = {}, {}
    for name, run in work.items():
        repeats[name] = _repeats(run)
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for _ in range(repeats[name]):
                run()

    ms = _replays_ms(graphs, seconds)
    return {name: 1000 * ms[name] / repeats[name] for name in work}


def _replays_ms(graphs: Mapping[str, torch.cuda.CUDAGraph], seconds: float) -> dict[str, float]:
    """Median milliseconds from a replay's start to its end, side by side."""

    def replay(graph: torch.cuda.CUDAGraph) -> Callable[[], None]:
        def call() -> None:
            graph.replay()
            torch.cuda.synchronize()

        return call

    times = race({name: replay(graph) for name, graph in graphs.items()}, seconds=seconds, settle_s=0.0)
    return {name: float(np.median(ms)) for name, ms in times.items()}


def _repeats(run: Callable[[], Any]) -> int:
    """How often work fits into a graph of a fifth of a millisecond, by its slowest: launched one by one."""
    run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(10):
        run()
    end.record()
    end.synchronize()
    return max(10, min(200, int(10 * REPEATS_MS / max(start.elapsed_time(end), 1e-3))))


def ways(program: Program) -> tuple[list[str], dict[str, str]]:
    """The ways in which a placed program can run on this GPU, and why not in the others."""
    refused = {}
    if torch.cuda.get_device_capability() < (9, 0):
        refused[DEPENDENT] = "this GPU starts no kernel before the last has ended"
    if reason := persistent_refusal(program):
        refused[PERSISTENT] = reason
    return [way for way in WAYS if way not in refused], refused


def layers(program: Program, choices: Mapping[str, Choice]) -> dict[str, str]:
    """Each operation -> who runs it, with the times that decided."""
    told = {}
    for node in program.nodes:
        choice = choices.get(node.name)
        times = "" if choice is None else ", ".join(f"{who} {us:.1f} us" for who, us in choice.told_us.items())
        told[node.name] = "PyTorch" if choice is None else f"{choice.by} ({times})"
    return told
