"""Measure a `Pruned` of any inputs and outputs next to the dense network that it came from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from ltcompile.benchmark.memory import watch
from ltcompile.benchmark.rows import TF32_TOLERANCE, BenchResult, Loaded, measurement, working
from ltcompile.core.deployment import Deployment
from ltcompile.core.records import Measurement
from ltcompile.errors import Disagreement, InvalidSetting, Unavailable
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.lower.answers import answers, compare, of_network, probe
from ltcompile.lower.export import Flat
from ltcompile.lower.inputs import Inputs
from ltcompile.pruned import Pruned
from ltcompile.runtimes import Array, Subject, load
from ltcompile.timing import interleave


def bench_pruned(
    pruned: Pruned,
    *,
    runtimes: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8, 64),
    seconds_per_row: float = 2.0,
    on_row: Callable[[Measurement], None] | None = None,
) -> BenchResult:
    """Times of `pruned.small` and, where it is known, `pruned.dense`, in turns, in fp32.

    Inputs are the example's rows and noise like them. Before anything is timed, every output is compared with PyTorch's.

    Raises:
        Unavailable: a runtime or device that was asked for does not work here. Disagreement: a runtime computes something else.
        InvalidModel: a network cannot be exported. InvalidSetting: the batch sizes make no sense.
    """
    if not batches or min(batches) < 1 or len(set(batches)) != len(batches):
        raise InvalidSetting(f"batch sizes must be different and at least 1, not {list(batches)}")
    networks = {"small": pruned.small} if pruned.dense is None else {"dense": pruned.dense, "small": pruned.small}
    result = BenchResult()
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        subjects = [_subject(name, network, pruned, Path(scratch)) for name, network in networks.items()]
        for runtime, device in working(runtimes, devices, result.skipped):
            for batch in batches:
                deployment = Deployment(device, runtime, batch)
                loaded = _load_all(subjects, pruned, deployment, result, asked=runtimes is not None)
                for row in _rows(loaded, _arrays(pruned, batch), batch, seconds_per_row):
                    result.rows.append(row)
                    if on_row is not None:
                        on_row(row)
    return result


def _rows(loaded: Mapping[str, Loaded], inputs: Mapping[str, Array], batch: int, seconds: float) -> list[Measurement]:
    if not loaded:
        return []
    times = interleave({name: one.sessions[batch].bind(inputs).call for name, one in loaded.items()}, seconds=seconds)
    return [measurement(name, one, batch, times[name], None if name == "dense" else times.get("dense")) for name, one in loaded.items()]


def _subject(name: str, network: nn.Module, pruned: Pruned, scratch: Path) -> Subject:
    """The network folded, taking its tensors one after the other, and its ONNX file."""
    folded, _ = fold_batch_norm(network, pruned.example)
    path = scratch / f"{name}.onnx"
    export_onnx(folded, pruned.example, path, input_names=pruned.input_names, output_names=pruned.output_names)
    return Subject(name, Flat(folded, Inputs.of(folded, pruned.example)).eval(), path)


def _arrays(pruned: Pruned, batch: int) -> Mapping[str, Array]:
    inputs = probe(pruned.small, pruned.example, batch)
    return {
        name: np.ascontiguousarray(tensor.numpy()) for name, tensor in zip(pruned.input_names or inputs.names, inputs.tensors, strict=True)
    }


def _load_all(
    subjects: Sequence[Subject], pruned: Pruned, deployment: Deployment, result: BenchResult, *, asked: bool
) -> dict[str, Loaded]:
    loaded: dict[str, Loaded] = {}
    for subject in subjects:
        try:
            loaded[subject.name] = _load(subject, pruned, deployment)
        except Unavailable as error:
            if asked:
                raise
            result.skipped[f"{deployment.runtime} ({deployment.device}): {subject.name}"] = str(error)
        else:
            result.details[f"{deployment.runtime} ({deployment.device})"] = loaded[subject.name].sessions[deployment.batch].details
    return loaded


def _load(subject: Subject, pruned: Pruned, deployment: Deployment) -> Loaded:
    """A session whose outputs are PyTorch's. Raises Disagreement."""
    inputs = probe(pruned.small, pruned.example, deployment.batch)
    above = watch(deployment.device)
    session = load(subject, deployment)
    found = session.run(_arrays(pruned, deployment.batch))
    peak = above()
    assert isinstance(subject.module, Flat)
    compared = compare(
        {name: np.asarray(value) for name, value in found.items()}, answers(of_network(subject.module.network), inputs, deployment.batch)
    )
    if compared.refusal and not (session.dtype == "tf32" and compared.error <= TF32_TOLERANCE):
        raise Disagreement(f"{deployment} and PyTorch disagree on {subject.name!r}: {compared.refusal}; leave this runtime out")
    return Loaded({deployment.batch: session}, {deployment.batch: compared.error}, {deployment.batch: peak}, None)
