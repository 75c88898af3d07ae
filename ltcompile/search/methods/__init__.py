"""Tickets by other ways than train, prune, rewind: one method a file.

A method chooses among frozen weights, or prunes coefficients in another basis, by parametrisations of the weights: the one loop trains
what they are made of. `attach` puts them on a plain network, `bake` leaves a plain one behind.

A file offers `attach(name, model, share, seed, trained)`; `recipe(usual)`, what the network is trained with then; and `ITERATIVE`, whether
each level takes its choice from the network trained before it (else each is one training of its own, with weights of its own).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from ltcompile import registry
from ltcompile.core.mask import WeightMask
from ltcompile.core.recipe import Recipe
from ltcompile.errors import InvalidSetting
from ltcompile.search.methods._layers import choice_of, full_name, layers, make_plain

__all__ = ["Baked", "attach", "bake", "iterative", "names", "recipe"]


@dataclass(frozen=True)
class Baked:
    """What a method chose: `kept` of all `coordinates` of the layers that it works on. They are weights where there is a `mask` of them, and
    coefficients of a basis where there is none.
    """

    mask: WeightMask | None
    kept: int
    coordinates: int


def names() -> list[str]:
    """The methods there are."""
    return sorted(registry.names(__name__))


def iterative(name: str) -> bool:
    """Whether a level of the method needs the network trained before it. Raises UnknownName."""
    return bool(_load(name).ITERATIVE)


def recipe(name: str, usual: Recipe) -> Recipe:
    """What the method trains with: `usual` with its paper's changes, for as many epochs. Raises UnknownName."""
    found: Recipe = _load(name).recipe(usual)
    return found


def attach(name: str, model: nn.Module, share: float, seed: int, trained: nn.Module | None = None) -> None:
    """Put the method's parametrisations on the convolutions and linear layers of `model`, in place, ready for `train`.

    The same arguments give the same network and names in its state dict, so that a checkpoint of it can be loaded into another.

    Args:
        share: of the coordinates (weights, directions or coefficients), how many stay.
        seed: of all that is drawn.
        trained: the plain network of the level before, for an iterative method; `model` is where its coordinates restart, and may be the same.

    Raises:
        UnknownName: no such method. InvalidSetting: a share outside (0, 1], or no trained network where one is needed.
        InvalidModel: the network has no layer that the method works on, or layers that share a weight.
    """
    method = _load(name)
    if not 0 < share <= 1:
        raise InvalidSetting(f"the share of weights that stay must be above 0 and at most 1, not {share}")
    if method.ITERATIVE and trained is None:
        raise InvalidSetting(f"{name!r} chooses by a trained network, and got none; train the dense network first")
    method.attach(name, model, share, seed, trained)


@torch.no_grad()
def bake(model: nn.Module) -> Baked:
    """Leave the weights that `model` computes with in place of their parametrisations, all free to be trained; what was chosen."""
    masks, kept, coordinates = {}, 0, 0
    for name, layer in layers(model).items():
        choice = choice_of(layer)
        if choice is None:
            continue
        if (mask := choice.mask()) is not None:
            masks[full_name(name)] = mask.cpu()
        kept, coordinates = kept + choice.kept(), coordinates + layer.weight.numel()
        make_plain(layer)
    model.requires_grad_(True)
    return Baked(WeightMask(masks) if masks else None, kept, coordinates)


def _load(name: str) -> ModuleType:
    return registry.load(__name__, "method", name)
