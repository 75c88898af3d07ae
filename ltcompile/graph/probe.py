"""A copy of a network to be run for its shapes alone: on torch's meta device, where nothing is computed and nothing stored."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from ltcompile.errors import BadModel
from ltcompile.graph._shapes import Shapes
from ltcompile.graph.attention import replace_attention

Module = TypeVar("Module", bound=nn.Module)
Found = TypeVar("Found")
Example = Tensor | tuple[Tensor, ...]
Inputs = tuple[Tensor, ...]


def on_meta(model: Module) -> Module:
    """A copy of `model` whose tensors have shapes and no values; the weights are not copied."""
    tensors = [*model.parameters(), *model.buffers()]
    empty = {id(t): torch.empty_like(t, device="meta") for t in tensors}
    return copy.deepcopy(
        model, {i: nn.Parameter(e) if isinstance(t, nn.Parameter) else e for t, (i, e) in zip(tensors, empty.items(), strict=True)}
    )


def on_probe(model: nn.Module, example: Example, look: Callable[[nn.Module, Inputs], Found]) -> Found:
    """What `look` finds by running a copy of `model` in eval mode: on the meta device, or on real values where its code wants them.

    The copy's attention is of plain products. Raises BadModel where the network does not run on `example`.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    try:
        return look(_copied(on_meta(model)), tuple(torch.empty_like(x, device="meta") for x in inputs))
    except Exception:  # values are asked for, or the network does not run at all: the real one tells
        try:
            run(copy.deepcopy(model).eval(), inputs)
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise BadModel(f"the network does not run on an input of shape {shapes}: {type(error).__name__}: {error}") from error
    return look(_copied(copy.deepcopy(model)), inputs)


def _copied(probe: nn.Module) -> nn.Module:
    replace_attention(probe)
    return probe.eval()


@torch.no_grad()
def run(model: nn.Module, inputs: Sequence[Tensor], watching: AbstractContextManager[object] | None = None) -> object:
    """What `model` gives, without gradients and warnings, while `watching` sees the operations."""
    with warnings.catch_warnings(), Shapes(), watching or nullcontext():
        warnings.simplefilter("ignore")
        return model(*inputs)
