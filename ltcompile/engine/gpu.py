"""The engine on a GPU: the fastest implementation of each layer, in a CUDA graph a batch size, or at small batches all layers in one kernel."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.records import versions
from ltcompile.engine.agreement import Agreement, agreement
from ltcompile.engine.cpu import Source
from ltcompile.engine.decision import Decision, decided
from ltcompile.engine.device import CompiledArtifacts, Progress, Settings
from ltcompile.engine.engine import Run
from ltcompile.engine.events import cold_us, fastest_replay, replays_ms
from ltcompile.engine.executable import DEPENDENT, GRAPH, MODES, PERSISTENT, Choice, Executable, persistent_refusal
from ltcompile.engine.file import EngineFile, EngineVariant
from ltcompile.engine.signature import Signature
from ltcompile.engine.tune import Cache, default_cache, read_choice, rerank, tune, write_choice
from ltcompile.errors import Disagreement, InvalidFile, InvalidSetting, LtcompileError, Unavailable
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.lower import lower, to_layout
from ltcompile.lower.program import Program
from ltcompile.numerics import largest_error, refusal_of, tile
from ltcompile.runtimes._cuda import record

PRECISIONS = ("fp32", "fp16", "bf16")
WARMUPS = 3
MODE_S, RERANK_S = 0.3, 0.05  # seconds on the device for each execution mode, and for each finalist of a layer in the network
PERSISTENT_IMAGES = 64  # in a larger batch launches cost next to nothing, and all layers in one kernel take long to compile


class Gpu:
    """The current CUDA device."""

    device = torch.device("cuda")

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise InvalidSetting(f"a GPU engine computes in {', '.join(PRECISIONS)}, not in {precision}; int8 is for CPUs")
        if not torch.cuda.is_available():
            raise Unavailable("there is no NVIDIA GPU here; compile for the CPU, or on a machine that has one")
        self.precision = precision

    def machine(self) -> dict[str, str]:
        return {"gpu": torch.cuda.get_device_name()} | {name: versions()[name] for name in ("triton", "torch")}

    def make(
        self, model: nn.Module, inputs: Inputs, signature: Signature, batches: Sequence[int], settings: Settings, on_progress: Progress
    ) -> CompiledArtifacts:
        (example,) = inputs.tensors
        agreed = agreement(model, example, Source(self.precision), settings.max_drop)
        programs, images, expected = {}, {}, {}
        for batch in batches:
            images[batch] = tile(example, batch)
            with torch.no_grad():
                expected[batch] = model(images[batch])
            programs[batch] = to_layout(lower(model, images[batch]).program, images[batch], self.precision).program
        return self._choose_all(programs, images, expected, on_progress, agreed)

    def load(self, contents: EngineFile) -> dict[int, Run]:
        with cudnn_autotuned():
            return {variant.decision.batch: Graph(self._executable(variant)) for variant in contents.variants}

    def recompile(self, contents: EngineFile, settings: Settings, on_progress: Progress) -> CompiledArtifacts:
        programs = {variant.decision.batch: variant.program for variant in contents.variants if variant.program is not None}
        (noise,), (answer,) = contents.probe
        return self._choose_all(programs, {b: tile(noise, b) for b in programs}, {b: tile(answer, b) for b in programs}, on_progress)

    def _choose_all(
        self,
        programs: Mapping[int, Program],
        images: Mapping[int, Tensor],
        expected: Mapping[int, Tensor],
        on_progress: Progress,
        agreed: Agreement | None = None,
    ) -> CompiledArtifacts:
        cache, variants, runs = Cache(default_cache()), [], {}
        name = ", ".join(self.machine().values())
        for batch, program in programs.items():
            with cudnn_autotuned():
                finalists = tune(program, self.device, name, cache, cold_us, on_progress)
                on_progress(f"batch {batch}: timing the fastest of each layer inside the network")
                choices = rerank(program, finalists, lambda found, program=program: self._in_network_ms(program, found))  # type: ignore[misc]
                on_progress(f"batch {batch}: timing the execution modes")
                mode, runs[batch], decision = self._choose(program, choices, images[batch], expected[batch], agreed)
            options = {"mode": mode, "choices": {name: write_choice(choice) for name, choice in choices.items()}}
            variants.append(EngineVariant(decision, options, program))
        return CompiledArtifacts(tuple(variants), runs)

    def _executable(self, variant: EngineVariant) -> Executable:
        try:
            assert variant.program is not None
            choices = {str(name): read_choice(value) for name, value in variant.options["choices"].items()}
            return Executable(variant.program, self.device, choices, MODES[MODES.index(variant.options["mode"])])
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError, InvalidSetting) as error:
            raise InvalidFile(f"the engine's options are invalid: {error!r}; make it again with `ltcompile compile`") from error

    def _in_network_ms(self, program: Program, found: Mapping[str, Mapping[str, Choice]]) -> dict[str, float]:
        """Median milliseconds of the full network with each of these choices; one that fails is left out."""
        graphs = {}
        mode = DEPENDENT if DEPENDENT in execution_modes(program)[0] else GRAPH
        for name, choices in found.items():
            with contextlib.suppress(RuntimeError, LtcompileError):
                graphs[name] = Graph(Executable(program, self.device, choices, mode))  # which holds the memory of its graph
        return replays_ms({name: graph.graph for name, graph in graphs.items()}, RERANK_S) if graphs else {}

    def _choose(
        self, program: Program, choices: Mapping[str, Choice], images: Tensor, expected: Tensor, agreed: Agreement | None
    ) -> tuple[str, Run, Decision]:
        """The fastest execution mode of `program` among those whose answers are correct.

        Raises:
            Disagreement: none is correct.
        """
        found, refused = execution_modes(program)
        graphs, errors = {}, {}
        for name in found:
            try:
                graph = Graph(Executable(program, self.device, choices, name))
            except Exception as error:  # more programs than fit at once, more memory than there is: each layer below has its own types
                refused[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                continue
            errors[name] = largest_error(graph(images), expected)
            if reason := agreed.refusal(graph, len(images)) if agreed else refusal_of(errors[name], self.precision):
                refused[name] = reason
            else:
                graphs[name] = graph
        if not graphs:
            raise Disagreement(
                "no execution mode on this GPU gives the outputs of this network: " + "; ".join(f"{k}: {v}" for k, v in refused.items())
            )
        picked = fastest_replay({name: graph.graph for name, graph in graphs.items()}, MODE_S)
        decision = decided(len(images), picked, refused, errors[picked.name], layers(program, choices))
        return picked.name, graphs[picked.name], decision


def cudnn_autotuned() -> contextlib.AbstractContextManager[None]:
    """cuDNN tries its algorithms on the first call of a shape, and keeps the fastest; fp32 stays fp32."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)  # type: ignore[no-any-return]


def captured(executable: Executable) -> torch.cuda.CUDAGraph:
    """A CUDA graph of one run, after a few runs that compile and choose."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            executable.run()
    torch.cuda.current_stream().wait_stream(stream)
    return record(executable.run)


class Graph:
    """An executable in a CUDA graph: the same memory on every replay.

    That memory holds the images and the answers of one call. So calls from several threads take turns: a lock orders what they put into
    streams, and an event orders the streams, which may differ from thread to thread.
    """

    def __init__(self, executable: Executable, capture: Callable[[Executable], Any] = captured) -> None:
        self._executable, self.graph = executable, capture(executable)
        self._lock = threading.Lock()
        self._on_gpu = executable.images.is_cuda
        self._device = executable.images.device
        self._done = torch.cuda.Event() if self._on_gpu else None

    def __call__(self, images: Tensor) -> Tensor:
        with torch.cuda.device(self._device) if self._on_gpu else contextlib.nullcontext(), self._lock:
            if self._done is not None:
                self._done.wait()
            self._executable.images.copy_(images)
            self.graph.replay()
            answer = self._executable.answer().clone()
            if self._done is not None:
                self._done.record()
            return answer


def execution_modes(program: Program) -> tuple[list[str], dict[str, str]]:
    """The modes in which a program in the kernels' layout can run on this GPU, and why it cannot in the others."""
    refused = {}
    if torch.cuda.get_device_capability() < (9, 0):
        refused[DEPENDENT] = "this GPU cannot start a kernel before the previous one has ended"
    if program.input_shape[0] > PERSISTENT_IMAGES:
        refused[PERSISTENT] = f"it is for at most {PERSISTENT_IMAGES} images"
    elif reason := persistent_refusal(program):
        refused[PERSISTENT] = reason
    return [mode for mode in MODES if mode not in refused], refused


def layers(program: Program, choices: Mapping[str, Choice]) -> dict[str, str]:
    """Each operation -> what runs it, with the times that decided."""
    runners = {}
    for node in program.nodes:
        choice = choices.get(node.name)
        times = "" if choice is None else ", ".join(f"{name} {us:.1f} us" for name, us in choice.times_us.items())
        runners[node.name] = "PyTorch" if choice is None else f"{choice.by} ({times})"
    return runners
