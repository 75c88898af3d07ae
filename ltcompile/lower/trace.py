"""torch.export of networks that stay as they are, with errors that a user can understand."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ltcompile.errors import InvalidModel
from ltcompile.graph.inputs import Example
from ltcompile.graph.removed import is_stand_in
from ltcompile.graph.wrappers import attributes_restored, in_eval_mode
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.zero_branches import without_zero_branches

BATCH = "batch"


def exported(model: nn.Module, example: Example) -> ExportedProgram:
    """The graph of `model` in eval mode for inputs of `example`'s shapes. Raises InvalidModel where torch cannot trace it."""
    try:
        return export(model, Inputs.of(model, example), None)
    except InvalidModel:
        raise
    except Exception as error:  # the exporter raises many types; all mean the same to a user
        raise InvalidModel(f"torch cannot export this network: {reason(error)}") from error


def exported_for_any_batch(network: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The graph of `network` in eval mode for batches of any size, 1 included; `inputs` must hold two examples or more.

    Raises:
        InvalidModel: its code fixes the batch, or torch cannot trace it.
    """
    batch = Dim(BATCH, min=1)
    try:
        return export(network, inputs, [{0: batch} if has else None for has in inputs.batched])
    except Exception as error:
        if _depends_on_batch(network, inputs):
            raise InvalidModel(
                "the network's code fixes the batch or depends on it, and a file is for any batch: write x.shape[0], -1 or flatten(1) "
                "in place of a number, and compare no number with the batch"
            ) from error
        raise InvalidModel(f"torch cannot export this network for any batch: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The type and the first line of the error that caused `error`, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _depends_on_batch(network: nn.Module, inputs: Inputs) -> bool:
    """Whether torch exports the network where it may fix the batch, or bound it."""
    try:
        export(network, inputs, [{0: Dim.AUTO} if has else None for has in inputs.batched])
    except Exception:
        return False
    return True


def export(network: nn.Module, inputs: Inputs, sizes: Sequence[Mapping[int, Any] | None] | None) -> ExportedProgram:
    """torch.export of `network` in eval mode; `sizes` are the open axes of each input. Raises what torch raises."""
    args, kwargs = inputs.arguments()
    shapes = None if sizes is None else inputs.dynamic_shapes(sizes)
    with attributes_restored(network), in_eval_mode(network), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")  # they are restored
        warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)  # torchvision's suppression of boxes
        program = torch.export.export(network, args, kwargs, dynamic_shapes=shapes, strict=False)
    return without_zero_branches(program) if any(map(is_stand_in, network.modules())) else program
