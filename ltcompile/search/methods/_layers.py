"""What all methods share: which layers they work on, and what a parametrisation must state about its choice."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ltcompile.errors import InvalidModel


class Choice(nn.Module):
    """A parametrisation of one weight that keeps some of its coordinates."""

    def kept(self) -> int:
        """How many coordinates stay: of a weight whole, as many as it has values."""
        raise NotImplementedError

    def mask(self) -> Tensor | None:
        """Which values of the weight stay; None where its coordinates are others."""
        return None


def layers(model: nn.Module) -> dict[str, Any]:
    """The convolutions and linear layers of `model` by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def checked_layers(model: nn.Module) -> dict[str, Any]:
    """`layers`. Raises InvalidModel where there is none, one is under a choice already, or two share a weight."""
    found = layers(model)
    if not found:
        raise InvalidModel("this network has no convolution or linear layer to choose weights of; use method=prune")
    owners: dict[int, str] = {}
    for name, layer in found.items():
        if parametrize.is_parametrized(layer):
            raise InvalidModel(f"{name!r} computes its weights from others already, and no method can choose among them; use method=prune")
        if (other := owners.setdefault(id(layer.weight), name)) != name:
            raise InvalidModel(f"{name!r} and {other!r} share a weight, and each layer must choose its own; use method=prune")
    return found


def choice_of(layer: nn.Module) -> Choice | None:
    """The choice under which a layer's weight is."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    last = layer.parametrizations["weight"][-1]  # type: ignore[index]
    return last if isinstance(last, Choice) else None


def make_plain(layer: Any) -> None:
    """Leave the weight that a layer computes with in the place of its choice, in place.

    torch's `remove_parametrizations` would take the weight from all copies of the layer, which share its class.
    """
    weight, others = layer.weight.detach().clone(), dict(layer._parameters)
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer._parameters.clear()
    layer.register_parameter("weight", nn.Parameter(weight))  # first, as in a plain layer
    layer._parameters.update(others)


def full_name(layer: str) -> str:
    """The name of a layer's weight in the network."""
    return f"{layer}.weight" if layer else "weight"
