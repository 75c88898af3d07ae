"""A copy of a network to be run for its shapes alone: on torch's meta device, where nothing is computed and nothing stored."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ltcompile.errors import BadModel
from ltcompile.graph.attention import replace_attention

Module = TypeVar("Module", bound=nn.Module)
Example = Tensor | tuple[Tensor, ...]


def on_meta(model: Module) -> Module:
    """A copy of `model` whose tensors have shapes and no values; the weights are not copied."""
    tensors = [*model.parameters(), *model.buffers()]
    empty = {id(t): torch.empty_like(t, device="meta") for t in tensors}
    return copy.deepcopy(
        model, {i: nn.Parameter(e) if isinstance(t, nn.Parameter) else e for t, (i, e) in zip(tensors, empty.items(), strict=True)}
    )


def make_probe(model: nn.Module, example: Example) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A copy of `model` to run in eval mode, and its inputs: on the meta device, or real where its code wants values.

    Raises:
        BadModel: the network does not run on `example`.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    try:
        probe, empty = on_meta(model), tuple(torch.empty_like(x, device="meta") for x in inputs)
        run(probe.eval(), empty)
        probe = on_meta(model).eval()
    except Exception:  # values are asked for, or the network does not run at all: the real one tells
        probe, empty = copy.deepcopy(model), inputs
        try:
            run(probe.eval(), empty)
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise BadModel(f"the network does not run on an input of shape {shapes}: {type(error).__name__}: {error}") from error
    replace_attention(probe)
    return probe, empty


@torch.no_grad()
def run(model: nn.Module, inputs: Sequence[Tensor]) -> object:
    """What `model` gives, without gradients and warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(*inputs)
