"""Networks for small images, one file a family: `NAMES`, `build(name, ...)` and the recipe they are usually trained with.

`build_model` also understands `torchvision:NAME`, `timm:NAME` and one's own `package.module:factory`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcompile import registry
from ltcompile.errors import BadFile, BadModel, unknown

if TYPE_CHECKING:
    from torch import nn

    from ltcompile.core.recipe import Recipe


def build_model(name: str, classes: int = 10, in_channels: int = 3, image_size: int = 32, weights: str | Path | None = None) -> nn.Module:
    """A freshly initialised network (from the current random state), or with trained `weights` from a file.

    Args:
        name: a built-in name, `torchvision:NAME`, `timm:NAME`, or `package.module:factory` of one's own; a factory is
            called with those of classes, in_channels and image_size that it takes.
        weights: a state dict, as .safetensors or a file of torch.save; read without executing anything.

    Raises:
        UnknownName: no such network. BadModel: it cannot be built so. BadFile: the weights do not fit.
    """
    model = _maker(name)(classes, in_channels, image_size)
    if weights is not None:
        _load_weights(model, Path(weights))
    return model


def default_recipe(name: str) -> Recipe:
    """The recipe that the network is usually trained with; the general one for networks from elsewhere."""
    from ltcompile.core.recipe import Recipe

    if ":" in name:
        return Recipe()
    recipe: Recipe = registry.load(__name__, "model", name).RECIPE
    return recipe


def least_size(name: str) -> int:
    """The smallest image side that the network can take, in pixels."""
    return 1 if ":" in name else int(registry.load(__name__, "model", name).LEAST_SIZE)


def names() -> list[str]:
    """The built-in networks."""
    return sorted(registry.names(__name__))


def is_own_code(name: str) -> bool:
    """Whether building the network runs code of the user's (`package.module:factory`)."""
    return ":" in name and name.split(":", maxsplit=1)[0] not in ("torchvision", "timm")


def _maker(name: str) -> Callable[[int, int, int], nn.Module]:
    if ":" not in name:
        family = registry.load(__name__, "model", name)
        return lambda classes, in_channels, image_size: family.build(name, classes, in_channels, image_size)
    source, _, inner = name.partition(":")
    makers = {"torchvision": _torchvision, "timm": _timm}
    return makers[source](inner) if source in makers else _own(name, source, inner)


def _torchvision(inner: str) -> Callable[[int, int, int], nn.Module]:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if inner not in known:
        raise unknown("torchvision model", inner, known)

    def make(classes: int, in_channels: int, image_size: int) -> nn.Module:
        if in_channels != 3:
            raise BadModel(f"torchvision:{inner} takes 3 colour channels, the data has {in_channels}; choose another model or data set")
        model: nn.Module = torchvision.models.get_model(inner, weights=None, num_classes=classes)
        return model

    return make


def _timm(inner: str) -> Callable[[int, int, int], nn.Module]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise BadModel("timm is not installed; run `pip install 'ltcompile[timm]'`") from error
    if not timm.is_model(inner):
        raise unknown("timm model", inner, timm.list_models(f"*{inner[:4]}*")[:40])
    return lambda classes, in_channels, _: timm.create_model(inner, num_classes=classes, in_chans=in_channels)


def _own(name: str, module: str, factory: str) -> Callable[[int, int, int], nn.Module]:
    from torch import nn

    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadModel(f"{name!r} cannot be imported: {error}; is its folder on PYTHONPATH?") from error

    def call(classes: int, in_channels: int, image_size: int) -> nn.Module:
        offered: dict[str, Any] = {"classes": classes, "in_channels": in_channels, "image_size": image_size}
        wanted = inspect.signature(make).parameters
        try:
            model = make(**{k: v for k, v in offered.items() if k in wanted})
        except Exception as error:  # the user's own code may raise anything
            raise BadModel(f"{name!r} failed with {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise BadModel(f"{name!r} gave a {type(model).__name__}, not a torch.nn.Module")
        return model

    return call


def _load_weights(model: nn.Module, path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state) if isinstance(state, dict) else state
        missing, unexpected = model.load_state_dict(dict(state), strict=False)
    except FileNotFoundError as error:
        raise BadFile(f"there are no weights at {path}") from error
    except Exception as error:  # torch and safetensors raise a dozen types for a broken file
        raise BadFile(f"{path} holds no weights that fit this network: {error}") from error
    if missing or unexpected:
        raise BadFile(f"{path} does not fit this network: missing {missing[:5]}, unexpected {unexpected[:5]}")
