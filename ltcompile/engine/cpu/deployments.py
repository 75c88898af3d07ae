"""The candidates of the engine on a CPU: which runtimes may run a network there, with how many threads, from data alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from ltcompile import runtimes
from ltcompile.core.deployment import COMPILED, Deployment
from ltcompile.engine.cpu import kept, native
from ltcompile.engine.cpu.code import Choice
from ltcompile.engine.engine import Run
from ltcompile.errors import InvalidFile, Unavailable
from ltcompile.lower.program import Program
from ltcompile.processors import processors
from ltcompile.runtimes import Feeds, Session, Subject, first_line
from ltcompile.timing import Call

LABEL = "generated C++"
PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Source:
    """A network as data: what gives an ONNX file with a free first dimension, where there is one, programs by batch size, and the program for one
    image, in fp32, with layers in bf16 or on integers, or why there is none; and, of an int8 file, the float graph that it was made of, while
    the engine is made.
    """

    precision: str
    onnx: Callable[[], bytes] | None = None
    programs: Mapping[int, Program] = field(default_factory=dict)
    plain: bytes = b""
    single: Program | None = None
    refusal: str = "the network has no program for one image"
    choices: Mapping[str, Choice] = field(default_factory=dict)  # of `single`'s layers, measured
    names: tuple[str, ...] = ()  # of the inputs, where there is not one float tensor
    libraries: dict[int, native.Library] = field(default_factory=dict, compare=False)  # of `single`, compiled, by threads

    def subject(self, batch: int) -> Subject:
        """What runtimes read. Raises Unavailable where there is nothing for this batch size."""
        if batch not in self.programs and not self.onnx:
            raise Unavailable(f"the network has no ONNX form, and no program for batches of {batch}")
        module = self.programs[batch].module().eval() if batch in self.programs else None
        return Subject("the network", module, self.onnx() if self.onnx else None, self.precision)


class Trial(NamedTuple):
    """A candidate that is not chosen yet: its outputs, a call with the inputs that it is timed on, and whether it is in another process."""

    run: Run
    call: Call
    apart: bool


def candidates(precision: str, batch: int = 1) -> tuple[list[Deployment], dict[str, str]]:
    """The deployments that are worth timing in a precision on this machine, and the runtimes that are not, with the reason."""
    found, refused = list[Deployment](), dict[str, str]()
    if reason := native.unavailable() if precision in PRECISIONS else f"it does not compute in {precision}":
        refused[LABEL] = reason
    else:
        found += [Deployment("cpu", COMPILED, batch, precision, n) for n in thread_counts()]
    for runtime in runtimes.names():
        precisions = runtimes.declared(runtime, "ENGINE", None)
        if precisions is None:
            continue
        if reason := precisions.get(precision, f"it does not compute in {precision}") or runtimes.unavailable(runtime, "cpu"):
            refused[runtime] = reason
            continue
        threads = (0, *thread_counts()) if runtimes.declared(runtime, "THREADS") else (0,)
        found += [Deployment("cpu", runtime, batch, precision, n) for n in threads]
    return found, refused


def label(candidate: Deployment) -> str:
    """Its runtime, and the number of its threads where that is not the runtime's own."""
    name = LABEL if candidate.runtime == COMPILED else candidate.runtime
    return f"{name}, {candidate.threads} thread{'s' * (candidate.threads > 1)}" if candidate.threads else name


def thread_counts() -> list[int]:
    """One, half and all of the processors that this process may use."""
    return sorted({1, max(1, processors() // 2), processors()})


def build(candidate: Deployment, source: Source) -> Run:
    """The network for batches of contiguous float32 images on the CPU, in this process; any number of threads may call it at the same time.

    Raises:
        Unavailable: the runtime is not there, or cannot run the network.
    """
    return _compiled(candidate, source) if candidate.runtime == COMPILED else _of(_session(candidate, source, runtimes.load), source)


def trial(candidate: Deployment, source: Source, inputs: Sequence[torch.Tensor]) -> Trial:
    """As `build`, to be checked and timed; a runtime that may crash or hang runs in a process of its own.

    Raises:
        Unavailable: the runtime is not there, cannot run the network, or (Crashed) its process ended; so do the calls.
    """
    if candidate.runtime == COMPILED:
        run = _compiled(candidate, source)
        return Trial(run, functools.partial(run, *inputs), False)
    session = _session(candidate, source, runtimes.load_apart)
    return Trial(_of(session, source), session.repeated(_feeds(source, inputs)), bool(runtimes.declared(candidate.runtime, "APART")))


def _session(candidate: Deployment, source: Source, load: Callable[[Subject, Deployment], Session]) -> Session:
    try:
        session = load(source.subject(candidate.batch), candidate)
        if candidate.batch in source.programs:  # some compile what they see first
            session.run(np.zeros(source.programs[candidate.batch].input_shape, np.float32))
    except (InvalidFile, Unavailable):
        raise
    except Exception as error:  # each runtime raises its own
        raise Unavailable(f"{candidate.runtime} cannot run this network: {first_line(error)}") from error
    return session


def _feeds(source: Source, tensors: Sequence[torch.Tensor]) -> Feeds:
    arrays = [tensor.numpy() for tensor in tensors]
    return dict(zip(source.names, arrays, strict=True)) if source.names else arrays[0]


def _of(session: Session, source: Source) -> Run:
    def run(*tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        found = tuple(torch.from_numpy(np.asarray(value)) for value in session.run(_feeds(source, tensors)).values())
        return found if source.names else found[0]

    return run


def _compiled(candidate: Deployment, source: Source) -> Run:
    if source.single is None:
        raise Unavailable(source.refusal)
    if candidate.threads not in source.libraries:
        made = next((library.unit for library in source.libraries.values()), None)
        made = made or kept.compiled(source.single, source.choices, thread_counts()[-1])
        source.libraries[candidate.threads] = native.Library(made, candidate.threads)
    library = source.libraries[candidate.threads]
    shape = library.unit.output_shape[1:]

    def run(images: torch.Tensor) -> torch.Tensor:
        outputs = torch.empty((len(images), *shape))
        library.run(images.data_ptr(), outputs.data_ptr(), len(images))
        return outputs

    return run
