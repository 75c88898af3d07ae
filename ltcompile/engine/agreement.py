"""The outputs that an engine's candidates must give before they are timed: those of PyTorch in fp32, within the rounding of a precision.

In other precisions than fp32 they are checked on all images of the example, a hundred or more for int8, because a bound that holds for few
images is too wide to see a wrong layer (`numerics`). In int8 most images must also keep their class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltcompile import numerics
from ltcompile.engine.cpu import Source
from ltcompile.errors import InvalidData, InvalidSetting
from ltcompile.lower.evaluate import evaluator
from ltcompile.lower.fake_quantize import fake_quantized, unrounded
from ltcompile.lower.simulate import HALVES, rounded_network
from ltcompile.numerics import LEAST_INPUTS, Expected, changed_classes

CHECKED = 512  # images at most
MAX_DROP = 5.0  # per cent of images, for int8
NOISE_IMAGES = 128


@dataclass(frozen=True)
class Agreement:
    """Images (N, C, H, W), the expected outputs, and the per cent of images that may change their class against fp32."""

    images: Tensor
    expected: Expected
    max_drop: float

    def refusal(self, run: Callable[[Tensor], Tensor], batch: int) -> str:
        """Why the outputs of `run`, which takes `batch` images at a time, are not the expected ones; "" where they are."""
        images = numerics.tile(self.images, max(batch, len(self.images))).numpy()  # a run takes its batch size only
        found = numerics.in_chunks(lambda chunk: run(_tensor(chunk)).cpu().numpy(), images, batch)[: len(self.images)]
        if reason := self.expected.refusal(found):
            return reason
        changed = 100 * changed_classes(found, self.expected.exact)
        if changed > self.max_drop:
            return (
                f"{changed:.1f} % of {len(found)} images change their class against fp32, and {self.max_drop:g} % may; give more "
                "representative images, allow more by max_drop, or compile in fp32 or bf16"
            )
        return ""


def agreement(model: nn.Module, example: Tensor, source: Source, max_drop: float) -> Agreement | None:
    """What candidates that run `source`, made of `model`, must give for `example`; None in fp32, where each batch is compared by itself.

    Raises:
        InvalidData: int8 gets fewer than a hundred images. InvalidSetting: `max_drop` is not a per cent. Disagreement: the int8 file holds other
        weights.
    """
    precision = source.precision
    if not 0 <= max_drop <= 100:
        raise InvalidSetting(f"max_drop={max_drop}: it is the per cent of images that may change their class, between 0 and 100")
    if precision == "int8" and len(example) < LEAST_INPUTS:
        raise InvalidData(
            f"int8 loses accuracy, and {len(example)} images do not show how much: pass {LEAST_INPUTS} real ones or more as `example`, or "
            "compile in fp32"
        )
    images = example[:CHECKED]
    if precision == "int8":
        return Agreement(images, Expected(_answers(model, images), _simulated(source, images)), max_drop)
    if precision in HALVES:
        return Agreement(images, Expected(_answers(model, images), _answers(rounded_network(model, precision), images)), 100.0)
    return None


def agreement_of_file(source: Source, noise: Tensor) -> Agreement | None:
    """What candidates that run a loaded engine's `source` must give: the outputs of its own graph without a runtime, on noise like `noise`.

    None in fp32, and for a file without a graph. Weights are as the file has them.
    """
    if source.precision not in ("int8", "bf16") or not source.onnx:
        return None
    others = [at for at in range(noise.dim()) if at != 1]
    spread, mean = noise.std(others, keepdim=True), noise.mean(others, keepdim=True)
    images = mean + spread * torch.randn(NOISE_IMAGES, *noise.shape[1:], generator=torch.Generator().manual_seed(1))
    model = onnx.load_from_string(source.onnx())
    exact = numerics.in_chunks(evaluator(unrounded(model)), images.numpy())
    if source.precision == "int8":
        return Agreement(images, Expected(exact, numerics.in_chunks(evaluator(model), images.numpy())), 100.0)
    batch, program = min(source.programs.items())
    rounded = numerics.in_chunks(lambda chunk: program.run(_tensor(chunk)).numpy(), images.numpy(), batch)
    return Agreement(images, Expected(exact, rounded), 100.0)


def _simulated(source: Source, images: Tensor) -> NDArray[np.float32]:
    """The outputs of the float graph with the rounding of the int8 file, without a runtime."""
    assert source.onnx is not None
    plain, int8 = onnx.load_from_string(source.plain), onnx.load_from_string(source.onnx())
    return numerics.in_chunks(evaluator(fake_quantized(plain, int8)), images.numpy())


@torch.no_grad()
def _answers(model: Callable[[Tensor], Tensor], images: Tensor) -> NDArray[np.float32]:
    return numerics.in_chunks(lambda chunk: model(_tensor(chunk)).numpy(), images.numpy())


def _tensor(chunk: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(chunk))
