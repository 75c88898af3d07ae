"""A copy of a network to be run for its shapes alone: on torch's meta device, where nothing is computed and nothing stored."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn

from ltcompile.errors import InvalidModel, LtcompileError
from ltcompile.graph._copy import copied
from ltcompile.graph._shapes import Shapes
from ltcompile.graph.attention import replace_attention
from ltcompile.graph.baked import bake_
from ltcompile.graph.inputs import Arguments, Example

Module = TypeVar("Module", bound=nn.Module)
Found = TypeVar("Found")
Probes = Callable[[], nn.Module]


def on_meta(model: Module) -> Module:
    """A copy of `model` whose tensors have shapes and no values; the weights are not copied."""
    tensors = [*model.parameters(), *model.buffers()]
    empty = {id(t): torch.empty_like(t, device="meta") for t in tensors}
    return copied(
        model,
        {
            i: nn.Parameter(e, t.requires_grad) if isinstance(t, nn.Parameter) else e
            for t, (i, e) in zip(tensors, empty.items(), strict=True)
        },
    )


def on_probe(model: nn.Module, example: Example, look: Callable[[Probes, Arguments], Found]) -> Found:
    """What `look` finds by running copies of `model` in eval mode: on the meta device, or on real values where its code needs them.

    `look` takes as many copies as it needs; their attention is of plain products, and their weights are parameters. Raises InvalidModel
    where the network does not run on `example`, InvalidSetting where `example` is none.
    """
    inputs = Arguments.of(example)
    try:
        return look(lambda: _prepared(on_meta(model)), inputs.on_meta())
    except Exception:  # values are needed, or the network does not run at all: the real one shows which
        real = copied(model).eval()
        try:
            run(real, inputs)
        except Exception as error:
            message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            raise InvalidModel(
                f"the network does not run on an input of shape {inputs.shapes}: {_where(real, error)}{message}; give one that it takes as example="
            ) from error
    try:
        return look(lambda: _prepared(copied(model)), inputs)
    except LtcompileError:
        raise
    except Exception as error:
        raise InvalidModel(f"the network runs, and yet cannot be traced: {type(error).__name__}: {error}") from error


def _where(model: nn.Module, error: Exception) -> str:
    """The innermost of `model`'s modules that `error` passed through."""
    names = {id(module): f"in {name!r} ({type(module).__name__}): " for name, module in model.named_modules() if name}
    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    return next(reversed([names[id(owner)] for owner in frames if id(owner) in names]), "")


def _prepared(probe: nn.Module) -> nn.Module:
    bake_(probe)
    replace_attention(probe)
    return probe.eval()


@torch.no_grad()
def run(model: nn.Module, inputs: Arguments, watching: AbstractContextManager[object] | None = None) -> object:
    """What `model` gives, without gradients and warnings, while `watching` sees the operations."""
    with warnings.catch_warnings(), Shapes(), watching or nullcontext():
        warnings.simplefilter("ignore")
        return model(*inputs.args, **inputs.kwargs)
