"""torch.export with errors that a user can read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ltcompile.errors import BadModel


def exported(model: nn.Module, example: Tensor, dynamic_shapes: Any = None) -> ExportedProgram:
    """The graph of `model` in eval mode on batches as `example` (N, C, H, W). Raises BadModel where torch cannot trace it."""
    try:
        return torch.export.export(model.eval(), (example,), dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # the exporter raises many types; all mean the same to a user
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadModel(f"torch cannot export this network: {told}") from error
