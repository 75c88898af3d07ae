"""How an int8 network is judged: by the metric of a task, or by any metric and the outputs for any inputs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import stream
from ltcompile.core.task import ACCURACY, Part, Task
from ltcompile.data import Dataset
from ltcompile.deploy.job import Evaluate, ShrinkJob
from ltcompile.errors import InvalidData, InvalidSetting
from ltcompile.graph.inputs import Example
from ltcompile.graph.outputs import outputs_of
from ltcompile.lower.answers import Run, answers, chunks
from ltcompile.lower.inputs import Inputs
from ltcompile.numerics import CHUNK, LEAST_INPUTS, Answers
from ltcompile.training import to_layout

CALIBRATION_ROWS = 512
CPU = torch.device("cpu")


class Judge(Protocol):
    """What a candidate is quantised by and judged on."""

    inputs: Inputs  # whose ranges count
    key: str  # of the score in the record
    drop_key: str
    units: str  # of a drop

    def outputs(self, run: Run) -> Answers:
        """The outputs that are compared with the float network's."""
        ...

    def score(self, run: Run, outputs: Answers) -> float:
        """How good a network is."""
        ...

    def drop(self, before: float, after: float) -> float:
        """By how much `after` is worse, in the units of the drop that is allowed."""
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
    if isinstance(job.calibrate, Task) and job.metric is None:
        return TaskJudge(network, job.calibrate)
    if isinstance(job.calibrate, Task):
        return OutputsJudge(network, [_inputs(job.calibrate)], job.metric)
    assert not isinstance(job.calibrate, Dataset), "shrink makes a task of it"
    return OutputsJudge(network, job.calibrate, job.metric)


class TaskJudge:
    """Validation items choose by the task's metric, test items are looked at once; one that only tests takes any number of items."""

    key = "val_score"

    def __init__(self, network: nn.Module, task: Task, chooses: bool = True) -> None:
        for name, found in (("training", task.sizes["train"]), ("validation", task.sizes["val"])):
            if chooses and found < LEAST_INPUTS:
                raise InvalidData(
                    f"int8 is chosen and checked by {task.metric.name}, and {task.description.name} has {found} {name} images, of {LEAST_INPUTS} "
                    "that a decision needs; use more images, or leave the network in fp32 or fp16"
                )
        self._network, self.task, self._metric = network, task, task.metric
        self.units, self.drop_key = self._metric.unit, f"max_drop_{self._metric.unit}"
        self.inputs = Inputs.of(network, _inputs(task))

    def outputs(self, run: Run) -> Answers:
        return self._answers(run, "val")

    def score(self, run: Run, outputs: Answers) -> float:
        return self._score(_replay(outputs), "val")

    def drop(self, before: float, after: float) -> float:
        return self._metric.gain(before, after)

    def format(self, score: float) -> str:
        return f"{self._metric.format(score)} on validation images"

    def record(self) -> dict[str, Any]:
        sizes = {"calibration": self.inputs.batch, "validation": self.task.sizes["val"], "test": self.task.sizes["test"]}
        metric = {} if self._metric == ACCURACY else {"metric": self._metric.to_json()}
        return {"data": self.task.description.name, "images": sizes, **metric}

    def test(self, runs: Mapping[str, Run]) -> dict[str, float]:
        return {name: self._score(_in_chunks(run), "test") for name, run in runs.items()}

    def _answers(self, run: Run, part: Part) -> Answers:
        """What `run` answers to all items of a part, in order."""
        parts = [run(Inputs.of(self._network, to_layout(x, torch.contiguous_format))) for x, _ in self.task.batches(part, CHUNK, CPU)]
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def _score(self, run: Run, part: Part) -> float:
        return self.task.evaluate(_Through(self._network, run), part, CPU).value


def _replay(outputs: Answers) -> Run:
    """Gives the next rows of known outputs at each call."""
    given, rows = {name: torch.from_numpy(value) for name, value in outputs.items()}, count(0)

    def run(inputs: Inputs) -> Mapping[str, Tensor]:
        following = [next(rows) for _ in range(inputs.batch)]
        return {name: value[following] for name, value in given.items()}

    return run


def _in_chunks(run: Run) -> Run:
    """`run` with at most CHUNK rows at a time."""

    def call(inputs: Inputs) -> Mapping[str, Tensor]:
        parts = [run(inputs.rows(rows)) for rows in torch.arange(inputs.batch).split(CHUNK)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return call


class _Through(nn.Module):
    """A network that computes by `run`; what else a task calls of it, such as a detector's `detect`, is the network's."""

    def __init__(self, network: nn.Module, run: Run) -> None:
        super().__init__()
        self._network, self._call = (network,), as_network(network, run)  # in a tuple it is not a submodule of this one

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_network"][0], name) if name in ("loss", "detect") else super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


class OutputsJudge:
    """A metric of the user's chooses; without one, the outputs alone, which have to stay near the float network's."""

    key, drop_key, units = "score", "max_drop", "units"

    def __init__(self, network: nn.Module, inputs: Iterable[Example], metric: Evaluate | None) -> None:
        self._network, self._metric = network, metric
        self.inputs = rows_of(network, inputs)
        if self.inputs.batch < LEAST_INPUTS:
            raise InvalidData(
                f"int8 is checked on real inputs, and {self.inputs.batch} do not show how far its outputs are off; calibrate with "
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

    def drop(self, before: float, after: float) -> float:
        return before - after

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


def _inputs(task: Task) -> Example:
    """Some training inputs, drawn by a fixed seed, as they are when nothing is augmented."""
    plain = Recipe(flip=False, crop_pixels=0)
    found = next(iter(task.batches("train", min(CALIBRATION_ROWS, task.sizes["train"]), CPU, plain, stream("int8 calibration", 0))))[0]
    example: Example = to_layout(found, torch.contiguous_format)
    return example
