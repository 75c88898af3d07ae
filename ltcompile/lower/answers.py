"""What networks and files answer to inputs of any kind, output by output, and how far two answers are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltcompile.core.deployment import Deployment
from ltcompile.graph.inputs import Example
from ltcompile.graph.outputs import outputs_of
from ltcompile.graph.ranking import Ranking
from ltcompile.lower.evaluate import evaluator_of_all
from ltcompile.lower.fake_quantize import precision_of
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.simulate import rounded_network
from ltcompile.numerics import Answers
from ltcompile.runtimes import Session, Subject, load_apart
from ltcompile.runtimes._base import by_name

STANDARD_MEAN, STANDARD_DEVIATION = 0.25, (0.75, 1.25)  # an example within these looks like the output of torch.randn

Run = Callable[[Inputs], Mapping[str, Tensor]]


def probe(network: nn.Module, example: Example, count: int) -> Inputs:
    """`count` seeded inputs of `network` on the CPU: the rows of `example`, then noise that is distributed alike: see `extended`."""
    return extended(Inputs.of(network, example).on_cpu(), count)


def extended(given: Inputs, count: int) -> Inputs:
    """The first `count` rows of `given`; where there are fewer, noise that is distributed alike follows.

    Noise of a floating-point tensor has the mean and deviation of the rows, and stays within their smallest and largest value; where they
    look like the output of torch.randn, it is that. All other tensors repeat their rows.
    """
    inputs = given.resized(count)
    if count <= given.batch:
        return inputs
    return inputs.with_tensors(
        [
            _extended(tensor, count) if batched and tensor.is_floating_point() else resized
            for tensor, resized, batched in zip(given.tensors, inputs.tensors, inputs.batched, strict=True)
        ]
    )


def _extended(rows: Tensor, count: int) -> Tensor:
    """`rows` and, behind them, noise like them."""
    noise = torch.randn(count, *rows.shape[1:], generator=torch.Generator().manual_seed(0)).to(rows.dtype)
    mean, deviation = float(rows.mean()), float(rows.std(correction=0))
    least, most = STANDARD_DEVIATION
    if deviation > 0 and not (abs(mean) <= STANDARD_MEAN and least <= deviation <= most):
        noise = (mean + deviation * noise).clamp(rows.min(), rows.max())
    noise[: len(rows)] = rows
    return noise


def chunks(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """`inputs`, `size` rows at a time; the last chunk repeats its rows, so that all have one shape."""
    for start in range(0, inputs.batch, size):
        left = min(size, inputs.batch - start)
        yield inputs.rows(start + torch.arange(size) % left)


def of_network(network: Callable[..., Any]) -> Run:
    """Runs a network, without gradients; outputs whose items it ranks have names of `Items`."""

    @torch.no_grad()
    def run(inputs: Inputs) -> Mapping[str, Tensor]:
        args, kwargs = inputs.arguments()
        ranking = Ranking()
        with ranking:
            output = network(*args, **kwargs)
        return ranking.named(outputs_of(output))

    return run


def of_file(file: Path, names: Sequence[str], runtime: str = "onnxruntime") -> Run:
    """Runs an ONNX file whose inputs have `names`, on the CPU, in a worker process. Raises Unavailable where the runtime cannot."""
    subject, sessions = Subject(file.name, None, file), dict[int, Session]()

    def run(inputs: Inputs) -> Mapping[str, Tensor]:
        if inputs.batch not in sessions:
            sessions[inputs.batch] = load_apart(subject, Deployment("cpu", runtime, inputs.batch))
        found = sessions[inputs.batch].run({name: tensor.numpy() for name, tensor in zip(names, inputs.tensors, strict=True)})
        return {name: torch.from_numpy(value) for name, value in found.items()}

    return run


def of_graph(model: Any) -> Run:
    """Evaluates an ONNX model without a runtime. Raises InvalidModel where the model has a node that onnx's reference does not define."""
    evaluate, names = evaluator_of_all(model), [value.name for value in model.graph.input]

    def run(inputs: Inputs) -> Mapping[str, Tensor]:
        return {name: torch.from_numpy(np.asarray(value)) for name, value in evaluate(by_name(feeds(inputs), names)).items()}

    return run


def of_session(session: Session) -> Run:
    """Runs a session, on batches of its deployment's size."""

    def run(inputs: Inputs) -> Mapping[str, Tensor]:
        return {name: torch.from_numpy(np.asarray(value)) for name, value in session.run(feeds(inputs)).items()}

    return run


def feeds(inputs: Inputs, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The tensors as contiguous arrays under their names, or under `names`: what a session takes."""
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in zip(names or inputs.names, inputs.tensors, strict=True)}


def answers(run: Run, inputs: Inputs, size: int) -> Answers:
    """The outputs for all rows of `inputs`, computed `size` rows at a time."""
    return joined([run(chunk) for chunk in chunks(inputs, min(size, inputs.batch))], inputs.batch)


def rounded_answers(network: nn.Module, inputs: Inputs, file: Any, feed: Mapping[str, NDArray[Any]]) -> Answers | None:
    """What an ONNX `file` of `network` answers by the rounding of its precision, without a runtime; None in fp32. int8 takes the file's weights."""
    precision = precision_of(file)
    if precision == "fp32":
        return None
    if precision == "int8":
        return {name: np.asarray(value) for name, value in evaluator_of_all(file)(feed).items()}
    return answers(of_network(rounded_network(network, precision)), inputs, inputs.batch)


def joined(parts: Sequence[Mapping[str, Tensor]], count: int) -> Answers:
    """The outputs of several chunks as one array each: rows in order, at most `count`; values alone where shapes vary or have no rows."""
    found: Answers = {}
    for name in parts[0]:
        values = [part[name].detach().numpy() for part in parts]
        if len({value.shape[1:] for value in values}) > 1 or not all(value.ndim for value in values):
            found[name] = np.concatenate([value.reshape(-1) for value in values])
        else:
            found[name] = np.concatenate(values)[:count] if len(parts) > 1 else values[0]
    return found
