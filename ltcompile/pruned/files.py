"""A `Pruned` from files: a network of the user's code, its weights, a plan and example inputs. Files are data."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.streams import seeded, stream
from ltcompile.errors import InvalidFile
from ltcompile.graph import cut
from ltcompile.graph.examples import read_example
from ltcompile.models import build_model, is_own_code, own_network, usual_size
from ltcompile.models._weights import read_state_dict
from ltcompile.pruned import Pruned

CLASSES = 10  # of a public network without weights


def pruned_from_files(model: str, weights: str | Path | None = None, plan: str | Path | None = None, example: str | None = None) -> Pruned:
    """The network that `model`, "package.module:factory" or "path/to/file.py:factory", makes without arguments, ready for deployment.

    Args:
        model: or the name of a public network, which gets as many classes as `weights` have.
        weights: of the unpruned network, or with a plan also of the cut one: their shapes show which. Without, they are fresh, by a fixed seed.
        plan: a file of `PruningPlan.save`; the network is cut by it.
        example: see `read_example`; by default an image for a public network.

    Raises:
        InvalidModel, UnknownName: the network cannot be made. InvalidFile: the weights fit neither. InvalidPlan: the plan is of another network.
    """
    with seeded(stream("first weights", 0)):
        dense = own_network(model).eval()
    inputs = read_example(example or "1x3x{0}x{0}".format(usual_size(model)))
    chosen = PruningPlan.load(plan) if plan is not None else None
    small = cut(dense, chosen).eval() if chosen is not None else dense
    if weights is not None:
        state = read_state_dict(Path(weights), dense.state_dict())
        if not is_own_code(model) and (classes := len(next(reversed(state.values())))) != CLASSES:
            dense = build_model(model, classes).eval()
            small = cut(dense, chosen).eval() if chosen is not None else dense
        fits = [network for network in (dense, small) if _shapes(network.state_dict()) == _shapes(state)]
        if not fits:
            raise InvalidFile(
                f"{weights} holds no weights of {model}{' or of what the plan leaves of it' if plan else ''}: {_first(state, small)}"
            )
        fits[0].load_state_dict(state)
        if chosen is not None and fits[0] is dense:
            small = cut(dense, chosen).eval()
    if chosen is None:
        return Pruned(small, inputs)
    return Pruned(small, inputs, dense, chosen)


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _first(state: dict[str, Tensor], network: nn.Module) -> str:
    """The first weight that does not fit."""
    own, there = _shapes(network.state_dict()), _shapes(state)
    name = next(name for name in sorted({*own, *there}) if own.get(name) != there.get(name))
    ours, theirs = (list(shapes[name]) if name in shapes else "missing" for shapes in (own, there))
    return f"{name} is {ours} in the network and {theirs} in the file"
