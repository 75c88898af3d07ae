"""A copy of a network to be run for its shapes alone: on torch's meta device, where nothing is computed and nothing stored."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from ltcompile.errors import BadModel
from ltcompile.graph._copy import copied
from ltcompile.graph._shapes import Shapes
from ltcompile.graph.attention import replace_attention

Module = TypeVar("Module", bound=nn.Module)
Found = TypeVar("Found")
Example = Tensor | tuple[Tensor, ...]
Inputs = tuple[Tensor, ...]
Probes = Callable[[], nn.Module]


def on_meta(model: Module) -> Module:
    """A copy of `model` whose tensors have shapes and no values; the weights are not copied."""
    tensors = [*model.parameters(), *model.buffers()]
    empty = {id(t): torch.empty_like(t, device="meta") for t in tensors}
    return copied(
        model, {i: nn.Parameter(e) if isinstance(t, nn.Parameter) else e for t, (i, e) in zip(tensors, empty.items(), strict=True)}
    )


def on_probe(model: nn.Module, example: Example, look: Callable[[Probes, Inputs], Found]) -> Found:
    """What `look` finds by running copies of `model` in eval mode: on the meta device, or on real values where its code wants them.

    `look` asks for as many copies as it needs; their attention is of plain products. Raises BadModel where the network does not run
    on `example`.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    try:
        return look(lambda: _prepared(on_meta(model)), tuple(torch.empty_like(x, device="meta") for x in inputs))
    except Exception:  # values are asked for, or the network does not run at all: the real one tells
        real = copied(model).eval()
        try:
            run(real, inputs)
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            told = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            raise BadModel(f"the network does not run on an input of shape {shapes}: {_where(real, error)}{told}") from error
    return look(lambda: _prepared(copied(model)), inputs)


def _where(model: nn.Module, error: Exception) -> str:
    """The innermost of `model`'s modules that `error` passed through."""
    names = {id(module): f"in {name!r} ({type(module).__name__}): " for name, module in model.named_modules() if name}
    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    return next(reversed([names[id(owner)] for owner in frames if id(owner) in names]), "")


def _prepared(probe: nn.Module) -> nn.Module:
    replace_attention(probe)
    return probe.eval()


@torch.no_grad()
def run(model: nn.Module, inputs: Sequence[Tensor], watching: AbstractContextManager[object] | None = None) -> object:
    """What `model` gives, without gradients and warnings, while `watching` sees the operations."""
    with warnings.catch_warnings(), Shapes(), watching or nullcontext():
        warnings.simplefilter("ignore")
        return model(*inputs)
