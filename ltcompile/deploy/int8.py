"""From a folded network to an int8 ONNX file that answers about as well: a judge, such as validation images, chooses everything.

Weights get the bits that bring the outputs closer to fp32's: eight, but seven where this machine's products overflow. Candidates differ in
how the ranges of activations are taken; of those whose outputs stay near fp32's the one with the best score wins, the smaller error between equals.
If that loses more than is allowed, the layers that int8 hurts most stay in float, one after the other, until it does not. Test images are
looked at once, when all is chosen. Files are judged by what ONNX Runtime answers through them. The file that is chosen must hold the
network's weights, integer by integer, and must answer in every runtime as a simulation of its rounding does (`numerics`). Where a network ranks
what it finds, the arithmetic of scores and places stays in float (`places`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltcompile.core.task import Task
from ltcompile.deploy.job import Progress, ShrinkJob
from ltcompile.deploy.judges import Judge
from ltcompile.deploy.places import arithmetic_of_places
from ltcompile.deploy.qat import fine_tune, tuning
from ltcompile.errors import Disagreement, InvalidModel, TrainingFailed, Unavailable
from ltcompile.graph.inputs import Arguments
from ltcompile.lower.answers import Run, answers, of_file, of_network
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.int8 import Int8Network
from ltcompile.lower.quantize import CHUNK as CALIBRATED
from ltcompile.lower.quantize import METHODS, WEIGHT_TOP, Scheme
from ltcompile.numerics import (
    CHUNK,
    ERROR_OF_NOISE,
    LEAST_INPUTS,
    Answers,
    Compared,
    Items,
    changed_classes,
    compare,
    largest_error,
    placed,
)
from ltcompile.runtimes import unavailable

MOST_ERROR = 0.25  # of the largest output, against fp32: what rounding may change, where the network is computed as it should be
RATE_SHARES = (1.0, 0.1, 0.01)  # of the fine-tuning rate
Names = tuple[tuple[str, ...] | None, tuple[str, ...] | None]  # of inputs and outputs


@dataclass(frozen=True)
class Judged:
    """A file as the judge finds it: its score and what that is worth (higher is better), and its outputs against fp32's.

    `max_error` is the largest difference, of the largest output; `noise` the root mean square of all, of that of the outputs. Of items that the
    network ranks, among which rounding may pick others, `max_error` is what `numerics` would allow: 1.5 times the noise.
    """

    score: float
    worth: float
    max_error: float
    noise: float

    @property
    def agrees(self) -> bool:
        """Whether the outputs are near those of fp32: a good score alone may come by luck."""
        return self.max_error <= MOST_ERROR

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Higher is better."""
        return self.agrees, self.worth, -self.noise


@dataclass(frozen=True)
class Quantized:
    """The float network and how it is quantised, how the file's answers compare with it, and the record of all that was tried; inputs, and the
    answers to them that are `expected`: exact, and with the rounding simulated.
    """

    module: nn.Module
    compared: Compared
    test_score: float | None
    record: Mapping[str, Any]
    inputs: Inputs
    expected: tuple[Answers, Answers]
    write: Callable[[Path, Mapping[str, str]], None] = field(repr=False)  # the file, with metadata; raises InvalidFile


def to_int8(module: nn.Module, judge: Judge, job: ShrinkJob, scratch: Path, names: Names = (None, None)) -> Quantized:
    """Choose how the folded network `module` is quantised; files that are tried go to the folder `scratch`.

    Raises:
        Disagreement: int8 loses too much however many layers stay in float, or a runtime computes something else.
        InvalidModel: the network has nothing to quantise, or ONNX Runtime cannot.
    """
    plain = _Network(module, judge, job.dynamic, scratch / "plain", names)
    choice, fine_tuning = _try_all(plain, job.on_progress), "not requested"
    if job.int8.finetune_epochs:
        choice, fine_tuning = _or_tuned(choice, judge, job, scratch, names)
    network, tried, scheme, judged = choice.network, choice.tried, choice.scheme, choice.judged
    goal, float_nodes = _Goal(judge, plain.score, job.int8.max_drop), dict[str, str]()
    if not goal.met(judged):
        scheme, judged, float_nodes = _spare(network, scheme, judged, goal, job.on_progress)
    network.write(scheme)
    exact, simulated = network.expected()
    compared = compare(answers(network.run(), judge.inputs, CHUNK), exact, simulated)
    if compared.refusal:
        raise Disagreement(f"ONNX Runtime's answers through the int8 file are not the network's: {compared.refusal}; nothing was written")
    record = {
        "ranges": scheme.ranges,
        "weight_bits": scheme.weight_bits,
        "float_nodes": float_nodes,
        "quantized_nodes": len(network.products) - len(float_nodes),
        **({"places_in_float": len(network.places)} if network.places else {}),
        judge.key: {"fp32": plain.score, "int8": judged.score},
        judge.drop_key: job.int8.max_drop,
        "error": {"max": judged.max_error, "rms": judged.noise},
        **judge.record(),
        "tried": [{"ranges": s.ranges, "weight_bits": s.weight_bits, judge.key: j.score, "rms": j.noise} for s, j in tried.items()],
        "fine_tuning": fine_tuning,
        "openvino": _second_opinion(network, exact, simulated),
    }
    job.on_progress("test images")
    test = judge.test({"fp32": plain.run_float(), "int8": network.run()})
    if test is not None:
        record["test_score"] = test
    return Quantized(
        network.module,
        compared,
        test["int8"] if test else None,
        record,
        judge.inputs,
        (exact, simulated),
        partial(network.quantizer.write, network.complete(scheme)),
    )


class _Network(Int8Network):
    """One set of weights: its float file, what that answers, and the int8 files that are made of it."""

    def __init__(self, module: nn.Module, judge: Judge, dynamic: tuple[str, ...], folder: Path, names: Names) -> None:
        folder.mkdir()
        self.module, self.judge = module.eval(), judge
        self._input_names = names[0] or judge.inputs.names
        feeds = [self._feed(judge.inputs.rows(rows)) for rows in torch.arange(judge.inputs.batch).split(CALIBRATED)]
        super().__init__(module, Arguments(*judge.inputs.resized(2).arguments()), feeds, folder, names, dynamic)
        self.places = arithmetic_of_places(self.quantizer.plain)
        names_of_outputs = self._check_float()
        self._outputs = dict(zip(names_of_outputs, judge.outputs(self.run_float()).values(), strict=True))
        self.score = judge.score(self.run_float(), self._outputs)

    @property
    def products(self) -> tuple[str, ...]:
        return self.quantizer.products

    def _feed(self, inputs: Inputs) -> dict[str, Tensor]:
        return dict(zip(self._input_names, inputs.tensors, strict=True))

    def complete(self, scheme: Scheme) -> Scheme:
        """`scheme` with the arithmetic of places in float."""
        return replace(scheme, float_nodes=(*self.places, *scheme.float_nodes))

    def write(self, scheme: Scheme = Scheme()) -> None:  # noqa: B008
        super().write(self.complete(scheme))

    def run(self, runtime: str = "onnxruntime") -> Run:
        """What the int8 file that was written last answers."""
        return of_file(self.file, self._input_names, runtime)

    def run_float(self) -> Run:
        return of_file(self.float_file, self._input_names)

    def _check_float(self) -> list[str]:
        """The names of the outputs, which say what is ranked. Raises Disagreement where the float file is not the network."""
        some = self.judge.inputs.resized(min(CHUNK, self.judge.inputs.batch))
        exact = answers(of_network(self.module), some, CHUNK)
        if reason := compare(answers(self.run_float(), some, CHUNK), exact).refusal:
            raise Disagreement(f"the network and its ONNX file disagree: {reason}; please report this with the ticket")
        return list(exact)

    def try_scheme(self, scheme: Scheme) -> Judged:
        """How good the file of a scheme is."""
        self.write(scheme)
        return judged_by(self.judge, self.run(), self._outputs)

    def expected(self) -> tuple[Answers, Answers]:
        """What the file that was written last has to answer: exact, and with its rounding simulated. Raises Disagreement."""
        simulated = self.simulated()

        def run(inputs: Inputs) -> Mapping[str, Tensor]:
            found = simulated({name: tensor.numpy() for name, tensor in self._feed(inputs).items()})
            return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}

        inputs = self.judge.inputs
        return answers(of_network(self.module), inputs, CHUNK), answers(run, inputs, CHUNK)


def judged_by(judge: Judge, run: Run, expected: Answers) -> Judged:
    """How good a network is that computes by `run`, next to the float network's outputs."""
    found = judge.outputs(run)
    score = judge.score(run, found)
    if any(isinstance(name, Items) for name in expected):  # finding the nearest items takes a while
        found, expected = ({name: value[:LEAST_INPUTS] for name, value in each.items()} for each in (found, expected))
    found = placed(found, expected)
    errors = [_errors(name, found[name], x) for name, x in expected.items() if np.issubdtype(x.dtype, np.floating)]
    return Judged(score, -judge.drop(0.0, score), max(error for error, _ in errors), max(noise for _, noise in errors))


def _errors(name: str, found: Any, expected: Any) -> tuple[float, float]:
    """The largest error, or what stands for it, and the root mean square of all, relative to the outputs."""
    y, x = torch.from_numpy(found), torch.from_numpy(expected)
    noise = float((y - x).square().mean().sqrt() / x.square().mean().sqrt().clamp_min(1e-12))
    return ERROR_OF_NOISE * noise if isinstance(name, Items) else largest_error(found, expected), noise


@dataclass(frozen=True)
class _Goal:
    """What an int8 file has to reach."""

    judge: Judge
    fp32_score: float
    max_drop: float

    def drop(self, judged: Judged) -> float:
        return self.judge.drop(self.fp32_score, judged.score)

    def met(self, judged: Judged) -> bool:
        return self.drop(judged) <= self.max_drop + 1e-9 and judged.agrees


@dataclass(frozen=True)
class _Choice:
    """The schemes that were tried on a network, of which the best with weights of `bits` is taken."""

    network: _Network
    tried: Mapping[Scheme, Judged]
    bits: int

    @property
    def scheme(self) -> Scheme:
        return max((s for s in self.tried if s.weight_bits == self.bits), key=lambda scheme: self.tried[scheme].rank)

    @property
    def judged(self) -> Judged:
        return self.tried[self.scheme]


def _try_all(network: _Network, report: Progress) -> _Choice:
    """Every way to take the ranges; but for the first, those that take none of this network, such as entropy where values are infinite.

    The bits are no matter of accuracy: where products overflow, runtimes differ in how, and a lucky file would answer otherwise elsewhere.
    """
    tried: dict[Scheme, Judged] = {}

    def judge(scheme: Scheme) -> Judged:
        report(f"{scheme.ranges} ranges, weights of {scheme.weight_bits} bits")
        return tried.setdefault(scheme, network.try_scheme(scheme))

    first, *others = METHODS
    bits = min(WEIGHT_TOP, key=lambda bits: judge(Scheme(first, bits)).noise)
    for method in others:
        with contextlib.suppress(InvalidModel):
            judge(Scheme(method, bits))
    return _Choice(network, tried, bits)


def _or_tuned(plain: _Choice, judge: Judge, job: ShrinkJob, scratch: Path, names: Names) -> tuple[_Choice, str]:
    """The network after fine-tuning where int8 then is better on validation images, else as it was; and which, with the reason.

    A rate that suits a network with batch norm can wreck it once they are folded: while it does not help, a tenth of it is tried.
    """
    assert isinstance(job.calibrate, Task) and job.recipe is not None
    epochs, images = job.int8.finetune_epochs, judge.inputs.tensors[0]
    top, before, reached = WEIGHT_TOP[plain.bits], plain.judged.score, list[str]()
    for share in RATE_SHARES:
        trial = tuning(job.recipe, epochs)
        trial = replace(trial, lr=share * trial.lr)
        job.on_progress(f"fine-tuning for {epochs} epochs at rate {trial.lr:.1g}")
        try:
            module = fine_tune(plain.network.module, job.calibrate, images, trial, job.seed, top)
        except TrainingFailed:
            reached.append(f"a loss that is not finite at rate {trial.lr:.1g}")
            continue
        tuned = _try_all(_Network(module, judge, job.dynamic, scratch / f"tuned{len(reached)}", names), job.on_progress)
        reached.append(f"{judge.format(tuned.judged.score)} at rate {trial.lr:.1g}")
        if tuned.judged.rank[:2] > plain.judged.rank[:2]:
            return tuned, f"kept: {epochs} epochs brought int8 from {judge.format(before)} to {reached[-1]}"
    return plain, f"thrown away: {epochs} epochs brought int8 from {judge.format(before)} to {', '.join(reached)}"


def _spare(network: _Network, scheme: Scheme, judged: Judged, goal: _Goal, report: Progress) -> tuple[Scheme, Judged, dict[str, str]]:
    """Leave layers in float until the goal is met, those first that change the outputs most when they alone are in int8; and why each.

    The other way round, one layer in float at a time, says nothing where two share an activation that int8 cannot hold.

    Raises:
        Disagreement: it is not met while one layer is left in int8.
    """
    products, alone = network.products, {}
    for name in products:
        report(f"int8 for {name} alone")
        alone[name] = network.try_scheme(replace(scheme, float_nodes=tuple(p for p in products if p != name))).noise
    best, why = judged, dict[str, str]()
    for name in sorted(alone, key=alone.__getitem__, reverse=True)[:-1]:
        why[name] = f"alone in int8 it gives the outputs an error of {alone[name]:.2%}"
        scheme = replace(scheme, float_nodes=(*scheme.float_nodes, name))
        report(f"int8 without {len(why)} of {len(alone)} layers")
        judged = network.try_scheme(scheme)
        if goal.met(judged):
            return scheme, judged, why
        best = max(best, judged, key=lambda j: j.rank)
    raise Disagreement(
        f"int8 reaches {goal.judge.format(best.score)}, {goal.drop(best):.2f} {goal.judge.units} below fp32 ({goal.max_drop:g} are allowed), "
        f"and outputs within {best.max_error:.2f} of the largest ({MOST_ERROR} is allowed), with {len(why)} of {len(alone)} layers "
        "in float; nothing was written: try finetune_epochs=, a larger max_drop=, or precision=fp16"
    )


def _second_opinion(network: _Network, exact: Answers, simulated: Answers) -> dict[str, Any]:
    """What OpenVINO answers through the file; or why it does not run it. Raises Disagreement."""
    if reason := unavailable("openvino", "cpu"):
        return {"not_run": reason}
    judge, run = network.judge, network.run("openvino")
    try:
        compared, found = compare(answers(run, judge.inputs, CHUNK), exact, simulated), judge.outputs(run)
    except Unavailable as refusal:
        return {"not_run": str(refusal)}
    if compared.refusal:
        raise Disagreement(
            f"OpenVINO computes something else through the int8 file: {compared.refusal}; nothing was written: use precision=fp16"
        )
    ours = next(iter(judge.outputs(network.run()).values()))
    same = {} if network.places else {"same_class": 1 - changed_classes(next(iter(found.values())), ours)}
    return {"error": compared.error, "allowed": compared.allowed, **same, judge.key: judge.score(run, found)}
