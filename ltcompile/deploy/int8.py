"""From a folded network to an int8 ONNX file that answers about as well: everything is chosen by validation images.

Weights get the bits that bring the outputs closer to fp32's: eight, but seven where this machine's products overflow. Candidates differ in
how the ranges of activations are taken; of those whose outputs stay near fp32's the most accurate wins, the smaller error between equals.
If that loses more than is allowed, the layers that int8 hurts most stay in float, one after the other, until it does not. Test images are
looked at once, when all is chosen. Files are judged by what ONNX Runtime answers through them. The file that is chosen must hold the
network's weights, integer by integer, and must answer in every runtime as a simulation of its rounding does (`numerics`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltcompile.core.deployment import Deployment
from ltcompile.core.onnx_file import read_onnx
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import stream
from ltcompile.data import Dataset, Split
from ltcompile.deploy.qat import fine_tune, tuning
from ltcompile.errors import BadData, BadModel, BadSetting, Disagreement, TrainingFailed, Unavailable
from ltcompile.lower import export_classifier, run_onnx
from ltcompile.lower.evaluate import evaluator
from ltcompile.lower.fake_quantize import fake_quantized
from ltcompile.lower.quantize import METHODS, WEIGHT_TOP, Quantizer, Scheme
from ltcompile.numerics import CHUNK, LEAST_INPUTS, Compared, Expected, changed_classes, in_chunks, largest_error
from ltcompile.runtimes import Session, Subject, load, unavailable

CALIBRATION_IMAGES = 512
MOST_ERROR = 0.25  # of the largest output, against fp32: what rounding may change, where the network is computed as it should be
MOST_EPOCHS = 10_000
RATE_SHARES = (1.0, 0.1, 0.01)  # of the fine-tuning rate
CPU = torch.device("cpu")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Int8:
    """How far int8 may go.

    `max_drop` is in points of validation accuracy below the fp32 file; `finetune_epochs` are trained with rounded weights first, at up to
    three rates.
    """

    max_drop: float = 0.5
    finetune_epochs: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise BadSetting(f"--max-drop takes points of accuracy between 0 and 100, not {self.max_drop}")
        if not 0 <= self.finetune_epochs <= MOST_EPOCHS:
            raise BadSetting(f"--finetune-epochs must be between 0 and {MOST_EPOCHS:,}, not {self.finetune_epochs}")


@dataclass(frozen=True)
class Judged:
    """A file on validation images: the share that is right, and its outputs against fp32's.

    `max_error` is the largest difference, of the largest output; `noise` the root mean square of all, of that of the outputs.
    """

    accuracy: float
    max_error: float
    noise: float

    @property
    def agrees(self) -> bool:
        """Whether the outputs are near those of fp32: accuracy alone may come by luck."""
        return self.max_error <= MOST_ERROR

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Higher is better."""
        return self.agrees, self.accuracy, -self.noise


@dataclass(frozen=True)
class Quantized:
    """The float network and how it is quantised, how the file's answers compare with it, and what the record tells of all that was tried."""

    module: nn.Module
    compared: Compared
    test_accuracy: float
    record: Mapping[str, Any]
    write: Callable[[Path, Mapping[str, str]], None] = field(repr=False)  # the file, with metadata; raises BadFile


def to_int8(module: nn.Module, data: Dataset, recipe: Recipe, seed: int, asked: Int8, scratch: Path, tell: Progress) -> Quantized:
    """Choose how the folded network `module` is quantised; files that are tried go to the folder `scratch`.

    Raises:
        Disagreement: int8 loses too much however many layers stay in float, or a runtime computes something else.
        BadModel: the network has nothing to quantise, or ONNX Runtime cannot. BadData: there are too few images to measure accuracy.
    """
    _check_images(data)
    images = _calibration_images(data.train)
    plain = _Network(module, images, data.val, scratch / "plain")
    choice, fine_tuning = _try_all(plain, tell), "not asked for"
    if asked.finetune_epochs:
        choice, fine_tuning = _or_tuned(choice, data, images, recipe, seed, asked.finetune_epochs, scratch, tell)
    network, tried, scheme, judged = choice.network, choice.tried, choice.scheme, choice.judged
    goal, float_nodes = _Goal(plain.accuracy, asked.max_drop), dict[str, str]()
    if not goal.met(judged):
        scheme, judged, float_nodes = _spare(network, scheme, judged, goal, tell)
    network.quantizer.write(scheme, network.file)
    expected = network.expected(images)
    compared = expected.compare(_answers(network.file, images))
    if compared.refusal:
        raise Disagreement(f"ONNX Runtime computes something else through the int8 file: {compared.refusal}; nothing was written")
    record = {
        "ranges": scheme.ranges,
        "weight_bits": scheme.weight_bits,
        "float_nodes": float_nodes,
        "quantized_nodes": len(network.quantizer.products) - len(float_nodes),
        "val_accuracy": {"fp32": plain.accuracy, "int8": judged.accuracy},
        "max_drop_points": asked.max_drop,
        "error": {"max": judged.max_error, "rms": judged.noise},
        "data": data.description.name,
        "images": {"calibration": len(images), "validation": len(data.val), "test": len(data.test)},
        "tried": [{"ranges": s.ranges, "weight_bits": s.weight_bits, "val_accuracy": j.accuracy, "rms": j.noise} for s, j in tried.items()],
        "fine_tuning": fine_tuning,
        "openvino": _second_opinion(network.file, expected, images, data.val),
    }
    tell("test images")
    test = {name: _accuracy(answers(file, data.test), data.test) for name, file in (("fp32", plain.float_file), ("int8", network.file))}
    return Quantized(network.module, compared, test["int8"], {**record, "test_accuracy": test}, partial(network.quantizer.write, scheme))


def _check_images(data: Dataset) -> None:
    """Raises BadData where an accuracy would be noise."""
    for name, split in (("training", data.train), ("validation", data.val)):
        if len(split) < LEAST_INPUTS:
            raise BadData(
                f"int8 is chosen and checked by accuracy, and {data.description.name} has {len(split)} {name} images, of {LEAST_INPUTS} that it "
                "takes to tell; use more images, or leave the network in fp32 or fp16"
            )


class _Network:
    """One set of weights: its float file, what that answers to validation images, and the int8 files that are made of it."""

    def __init__(self, module: nn.Module, images: Tensor, val: Split, folder: Path) -> None:
        folder.mkdir()
        self.module, self._val = module, val
        self.float_file, self.file = folder / "float.onnx", folder / "int8.onnx"
        export_classifier(module, images, self.float_file)
        _check_float(module, self.float_file, images[:CHUNK])
        self.quantizer = Quantizer(self.float_file, images)
        if not self.quantizer.products:
            raise BadModel("this network has no layer that int8 would compute; leave it in fp32 or fp16")
        self._logits = answers(self.float_file, val)
        self.accuracy = _accuracy(self._logits, val)

    def judge(self, scheme: Scheme) -> Judged:
        """How good the file of a scheme is."""
        self.quantizer.write(scheme, self.file)
        found = answers(self.file, self._val)
        off = found - self._logits
        noise = off.square().mean().sqrt() / self._logits.square().mean().sqrt().clamp_min(1e-12)
        return Judged(_accuracy(found, self._val), largest_error(found, self._logits), float(noise))

    def expected(self, images: Tensor) -> Expected:
        """What the file that was written last has to answer to `images`. Raises Disagreement where it holds other weights."""
        with torch.no_grad():
            exact = torch.cat([self.module.eval()(chunk) for chunk in images.split(CHUNK)]).numpy()
        simulated = evaluator(fake_quantized(self.quantizer.plain, read_onnx(self.file)))
        return Expected(exact, in_chunks(simulated, images.numpy()))


@dataclass(frozen=True)
class _Goal:
    """What an int8 file has to reach."""

    fp32_accuracy: float
    max_drop: float  # points

    def drop(self, judged: Judged) -> float:
        return 100 * (self.fp32_accuracy - judged.accuracy)

    def met(self, judged: Judged) -> bool:
        return self.drop(judged) <= self.max_drop + 1e-9 and judged.agrees


def answers(file: Path, split: Split, runtime: str = "onnxruntime") -> Tensor:
    """What an ONNX file says to all images of a split, in order: (N, classes). Raises Unavailable where the runtime cannot run it."""
    session = _session(file, runtime)
    batches = split.batches(CHUNK, CPU, None, 0)
    return torch.cat([torch.from_numpy(session.answers(images.contiguous().numpy())) for images, _ in batches])


def _answers(file: Path, images: Tensor, runtime: str = "onnxruntime") -> NDArray[np.float32]:
    """What an ONNX file says to images (N, C, H, W). Raises Unavailable."""
    return _session(file, runtime).answers(images.numpy())


def _session(file: Path, runtime: str) -> Session:
    return load(Subject(file.name, None, file), Deployment("cpu", runtime, CHUNK))


@torch.no_grad()
def _check_float(module: nn.Module, file: Path, images: Tensor) -> None:
    """Raises Disagreement where the float file is not the network."""
    expected = module.eval()(images)
    if reason := Expected(expected.numpy()).refusal(run_onnx(file, images)):
        raise Disagreement(f"the network and its ONNX file disagree: {reason}; please report this with the ticket")


def _accuracy(logits: Tensor, split: Split) -> float:
    return float((logits.argmax(1) == split.labels).double().mean())


def _calibration_images(split: Split) -> Tensor:
    """Some training images (N, C, H, W), drawn by a fixed seed from all classes, as they are when nothing is augmented."""
    plain = Recipe(flip=False, crop_pixels=0)
    images, _ = next(iter(split.batches(min(CALIBRATION_IMAGES, len(split)), CPU, plain, stream("int8 calibration", 0))))
    return images.contiguous()


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


def _try_all(network: _Network, tell: Progress) -> _Choice:
    """Every way to take the ranges.

    The bits are no matter of accuracy: where products overflow, runtimes differ in how, and a lucky file would answer otherwise elsewhere.
    """
    tried: dict[Scheme, Judged] = {}

    def judge(scheme: Scheme) -> Judged:
        tell(f"{scheme.ranges} ranges, weights of {scheme.weight_bits} bits")
        return tried.setdefault(scheme, network.judge(scheme))

    first, *others = METHODS
    bits = min(WEIGHT_TOP, key=lambda bits: judge(Scheme(first, bits)).noise)
    for method in others:
        judge(Scheme(method, bits))
    return _Choice(network, tried, bits)


def _or_tuned(
    plain: _Choice, data: Dataset, images: Tensor, recipe: Recipe, seed: int, epochs: int, scratch: Path, tell: Progress
) -> tuple[_Choice, str]:
    """The network after fine-tuning where int8 then answers more validation images rightly, else as it was; and which, with the reason.

    A rate that suits a network with batch norm can wreck it once they are folded: while it does not help, a tenth of it is tried.
    """
    top, before, reached = WEIGHT_TOP[plain.bits], plain.judged.accuracy, list[str]()
    for share in RATE_SHARES:
        trial = tuning(recipe, epochs)
        trial = replace(trial, lr=share * trial.lr)
        tell(f"fine-tuning for {epochs} epochs at rate {trial.lr:.1g}")
        try:
            module = fine_tune(plain.network.module, data, images, trial, seed, top)
        except TrainingFailed:
            reached.append(f"a loss that is not finite at rate {trial.lr:.1g}")
            continue
        tuned = _try_all(_Network(module, images, data.val, scratch / f"tuned{len(reached)}"), tell)
        reached.append(f"{tuned.judged.accuracy:.2%} at rate {trial.lr:.1g}")
        if tuned.judged.rank[:2] > plain.judged.rank[:2]:
            return tuned, f"kept: {epochs} epochs brought int8's validation accuracy from {before:.2%} to {reached[-1]}"
    return plain, f"thrown away: {epochs} epochs brought int8's validation accuracy from {before:.2%} to {', '.join(reached)}"


def _spare(network: _Network, scheme: Scheme, judged: Judged, goal: _Goal, tell: Progress) -> tuple[Scheme, Judged, dict[str, str]]:
    """Leave layers in float until the goal is met, those first that change the outputs most when they alone are in int8; and why each.

    The other way round, one layer in float at a time, says nothing where two share an activation that int8 cannot hold.

    Raises:
        Disagreement: it is not met while one layer is left in int8.
    """
    products, alone = network.quantizer.products, {}
    for name in products:
        tell(f"int8 for {name} alone")
        alone[name] = network.judge(replace(scheme, float_nodes=tuple(p for p in products if p != name))).noise
    best, why = judged, dict[str, str]()
    for name in sorted(alone, key=alone.__getitem__, reverse=True)[:-1]:
        why[name] = f"alone in int8 it gives the outputs an error of {alone[name]:.2%}"
        scheme = replace(scheme, float_nodes=(*scheme.float_nodes, name))
        tell(f"int8 without {len(why)} of {len(alone)} layers")
        judged = network.judge(scheme)
        if goal.met(judged):
            return scheme, judged, why
        best = max(best, judged, key=lambda j: j.rank)
    raise Disagreement(
        f"int8 reaches {best.accuracy:.2%} on validation images, {goal.drop(best):.2f} points below fp32 ({goal.max_drop:g} are allowed), "
        f"and outputs within {best.max_error:.2f} of the largest ({MOST_ERROR} is allowed), with {len(why)} of {len(alone)} layers "
        "in float; nothing was written: try --finetune-epochs, a larger --max-drop, or --precision fp16"
    )


def _second_opinion(file: Path, expected: Expected, images: Tensor, val: Split) -> dict[str, Any]:
    """What OpenVINO answers through the file; or why it is not asked. Raises Disagreement."""
    if reason := unavailable("openvino", "cpu"):
        return {"not_asked": reason}
    try:
        compared, found = expected.compare(_answers(file, images, "openvino")), answers(file, val, "openvino")
    except Unavailable as refusal:
        return {"not_asked": str(refusal)}
    if compared.refusal:
        raise Disagreement(
            f"OpenVINO computes something else through the int8 file: {compared.refusal}; nothing was written: use --precision fp16"
        )
    return {
        "error": compared.error,
        "allowed": compared.allowed,
        "same_class": 1 - changed_classes(found, answers(file, val)),
        "val_accuracy": _accuracy(found, val),
    }
