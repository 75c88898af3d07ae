"""A `Pruned` from files: a network of the user's code, its weights, a plan and example inputs. Files are data."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ltcompile.core.plan import PruningPlan
from ltcompile.errors import InvalidFile
from ltcompile.graph import cut
from ltcompile.graph.examples import read_example
from ltcompile.models import own_network
from ltcompile.models._weights import read_state_dict
from ltcompile.pruned import Pruned


def pruned_from_files(model: str, weights: str | Path | None, plan: str | Path | None, example: str) -> Pruned:
    """The network that `model`, "package.module:factory", makes without arguments, ready for `shrink`.

    Args:
        weights: of the unpruned network, or with a plan also of the cut one: their shapes tell which.
        plan: a file of `PruningPlan.save`; the network is cut by it.
        example: see `read_example`.

    Raises:
        InvalidModel, UnknownName: the network cannot be made. InvalidFile: the weights fit neither. InvalidPlan: the plan is of another network.
    """
    dense, inputs = own_network(model).eval(), read_example(example)
    chosen = PruningPlan.load(plan) if plan is not None else None
    small = cut(dense, chosen).eval() if chosen is not None else dense
    if weights is not None:
        state = read_state_dict(Path(weights), dense.state_dict())
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
