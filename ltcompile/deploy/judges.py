"""How an int8 network is judged: by the accuracy on a data set, or by any metric and the outputs for any inputs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import stream
from ltcompile.data import Dataset, Split
from ltcompile.deploy.job import Evaluate, ShrinkJob
from ltcompile.errors import InvalidData, InvalidSetting
from ltcompile.graph.inputs import Example
from ltcompile.graph.outputs import outputs_of
from ltcompile.lower.answers import Run, answers, chunks
from ltcompile.lower.inputs import Inputs
from ltcompile.numerics import CHUNK, LEAST_INPUTS, Answers

CALIBRATION_ROWS = 512
CPU = torch.device("cpu")


class Judge(Protocol):
    """What a candidate is quantised by and judged on."""

    inputs: Inputs  # whose ranges count
    key: str  # of the score in the record
    drop_key: str
    unit: float  # the drop that is allowed is counted in 1 / unit of the score

    def outputs(self, run: Run) -> Answers:
        """The outputs that are compared with the float network's."""
        ...

    def score(self, run: Run, outputs: Answers) -> float:
        """How good a network is, higher is better."""
        ...

    def format(self, score: float) -> str:
        """A score for messages."""
        ...

    def record(self) -> dict[str, Any]:
        """Whose inputs these are, and how many."""
        ...

    def test(self, runs: Mapping[str, Run]) -> dict[str, float] | None:
        """The score of each on inputs that no choice has seen; None where there are none."""
        ...


def judge_for(network: nn.Module, job: ShrinkJob) -> Judge:
    """The judge of `job`. Raises InvalidData, InvalidSetting where there are too few inputs, or they do not fit."""
    assert job.calibrate is not None
    if isinstance(job.calibrate, Dataset) and job.metric is None:
        return AccuracyJudge(network, job.calibrate)
    if isinstance(job.calibrate, Dataset):
        return OutputsJudge(network, [_images(job.calibrate.train)], job.metric)
    return OutputsJudge(network, job.calibrate, job.metric)


class AccuracyJudge:
    """Validation images choose, test images are looked at once."""

    key, drop_key, unit = "val_score", "max_drop_points", 100.0

    def __init__(self, network: nn.Module, data: Dataset) -> None:
        for name, split in (("training", data.train), ("validation", data.val)):
            if len(split) < LEAST_INPUTS:
                raise InvalidData(
                    f"int8 is chosen and checked by accuracy, and {data.description.name} has {len(split)} {name} images, of {LEAST_INPUTS} "
                    "that it takes to tell; use more images, or leave the network in fp32 or fp16"
                )
        self._network, self._data = network, data
        self.inputs = Inputs.of(network, _images(data.train))

    def outputs(self, run: Run) -> Answers:
        return self._answers(run, self._data.val)

    def score(self, run: Run, outputs: Answers) -> float:
        return _accuracy(outputs, self._data.val)

    def format(self, score: float) -> str:
        return f"{score:.2%} on validation images"

    def record(self) -> dict[str, Any]:
        sizes = {"calibration": self.inputs.batch, "validation": len(self._data.val), "test": len(self._data.test)}
        return {"data": self._data.description.name, "images": sizes}

    def test(self, runs: Mapping[str, Run]) -> dict[str, float]:
        return {name: _accuracy(self._answers(run, self._data.test), self._data.test) for name, run in runs.items()}

    def _answers(self, run: Run, split: Split) -> Answers:
        """What `run` answers to all images of a split, in order: (N, classes)."""
        parts = [run(Inputs.of(self._network, images.contiguous())) for images, _ in split.batches(CHUNK, CPU, None, 0)]
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


class OutputsJudge:
    """A metric of the user's chooses; without one, the outputs alone, which have to stay near the float network's."""

    key, drop_key, unit = "score", "max_drop", 1.0

    def __init__(self, network: nn.Module, inputs: Iterable[Example], metric: Evaluate | None) -> None:
        self._network, self._metric = network, metric
        self.inputs = rows_of(network, inputs)
        if self.inputs.batch < LEAST_INPUTS:
            raise InvalidData(
                f"int8 is checked on real inputs, and {self.inputs.batch} do not tell how far its outputs are off; calibrate with "
                f"{LEAST_INPUTS} rows or more, or leave the network in fp32 or fp16"
            )

    def outputs(self, run: Run) -> Answers:
        return answers(run, self.inputs, CHUNK)

    def score(self, run: Run, outputs: Answers) -> float:
        if self._metric is None:
            return 0.0
        found = float(self._metric(as_network(self._network, run)))
        if math.isnan(found):
            raise InvalidSetting("the metric gives nan; it must give a number, higher for a better network")
        return found

    def format(self, score: float) -> str:
        return f"{score:g} by the metric" if self._metric else "no metric"

    def record(self) -> dict[str, Any]:
        judged_by = "outputs" if self._metric is None else "metric"
        return {"data": "the inputs that were passed", "judged_by": judged_by, "images": {"calibration": self.inputs.batch}}

    def test(self, runs: Mapping[str, Run]) -> None:
        return None


def rows_of(network: nn.Module, inputs: Iterable[Example]) -> Inputs:
    """The first 512 rows of all `inputs` as one. Raises InvalidData where there is none, or their shapes differ."""
    parts: list[Inputs] = []
    for example in inputs:
        parts.append(Inputs.of(network, example).on_cpu())
        if sum(part.batch for part in parts) >= CALIBRATION_ROWS:
            break
    if not parts:
        raise InvalidData("calibrate gives no inputs; pass an iterable of examples, each as the network takes it")
    if len({tuple((t.shape[1:] if has else t.shape) for t, has in zip(p.tensors, p.batched, strict=True)) for p in parts}) > 1:
        raise InvalidData("the inputs of calibrate have different shapes; bring them to one, but for the batch")
    joined = [torch.cat([part.tensors[at] for part in parts]) if has else parts[0].tensors[at] for at, has in enumerate(parts[0].batched)]
    whole = parts[0].with_tensors(joined)
    return whole.resized(min(whole.batch, CALIBRATION_ROWS))


def as_network(network: nn.Module, run: Run) -> Callable[..., Any]:
    """`run` as a callable that takes what `network` takes, and gives tensors in the containers that it gives."""

    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = Inputs.of(network, _example(args, kwargs, network))
        found = list(run(inputs).values())
        return pytree.tree_unflatten(found, structure(inputs)) if structure(inputs).num_leaves == len(found) else found

    known: list[Any] = []

    def structure(inputs: Inputs) -> Any:
        if not known:
            given, keywords = next(chunks(inputs, 1)).arguments()
            with torch.no_grad():
                output = network(*given, **keywords)
            flat, spec = pytree.tree_flatten(output)
            known.append(spec if len(flat) == len(outputs_of(output)) and all(isinstance(v, Tensor) for v in flat) else _NONE)
        return known[0]

    return call


_NONE = pytree.tree_flatten([])[1]


def _example(args: tuple[Any, ...], kwargs: dict[str, Any], network: nn.Module) -> Example:
    """The arguments of one call as an example: positional ones, or all by their names."""
    if not kwargs:
        return args
    return dict(inspect.signature(network.forward).bind(*args, **kwargs).arguments)


def _accuracy(outputs: Answers, split: Split) -> float:
    logits = torch.from_numpy(next(iter(outputs.values())))
    return float((logits.argmax(1) == split.labels).double().mean())


def _images(split: Split) -> Tensor:
    """Some training images (N, C, H, W), drawn by a fixed seed from all classes, as they are when nothing is augmented."""
    plain = Recipe(flip=False, crop_pixels=0)
    images, _ = next(iter(split.batches(min(CALIBRATION_ROWS, len(split)), CPU, plain, stream("int8 calibration", 0))))
    return images.contiguous()
