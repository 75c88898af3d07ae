"""Networks for small images, one file a family: `NAMES`, `build(name, ...)` and the recipe they are usually trained with.

`build_model` also understands `torchvision:NAME`, `timm:NAME` and one's own `package.module:factory`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ltcompile import registry
from ltcompile.core.image_size import ImageSize, height_width
from ltcompile.errors import InvalidModel, unknown

if TYPE_CHECKING:
    from torch import nn

    from ltcompile.core.preprocessing import Preprocessing
    from ltcompile.core.recipe import Recipe


SIDE, FOREIGN_SIDE = 32, 224  # of images, in pixels: of built-in networks, and of those from elsewhere
Maker = Callable[[int, int, tuple[int, int]], "nn.Module"]


def build_model(
    name: str, classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32, weights: str | Path | None = None
) -> nn.Module:
    """A freshly initialised network (from the current random state), or with trained `weights` from a file.

    Args:
        name: a built-in name, `torchvision:NAME`, `timm:NAME`, or `package.module:factory` of one's own; a factory is
            called with those of classes, in_channels and image_size that it takes. `path/to/file.py:factory` names a file.
        image_size: the side of square images in pixels, or (height, width); a factory gets a number for square ones, else the pair.
        weights: a state dict, as .safetensors or a file of torch.save; read without executing anything. Where they are for
            another number of classes, the final layer stays fresh, and a `Notice` says so.

    Raises:
        UnknownName: no such network. InvalidModel: it cannot be built so. InvalidFile: the weights do not fit.
    """
    model = _maker(name)(classes, in_channels, height_width(image_size))
    if weights is not None:
        from ltcompile.models._weights import load_weights

        load_weights(model, Path(weights), classes, in_channels)
    return model


def detector(network: nn.Module, image_size: ImageSize) -> nn.Module:
    """A copy of torchvision's SSD, FCOS, RetinaNet or Faster R-CNN `network` as it is exported: images (N, 3, H, W), normalised and of `image_size`,
    to tensors of a fixed shape, of which its `detect` makes boxes. Raises InvalidModel for another network."""
    from ltcompile.models import _detection

    return _detection.deployed(network, height_width(image_size))


def preprocessing(name: str) -> Preprocessing | None:
    """How images are prepared for the published weights of a `torchvision:` or `timm:` network; None for all others.

    Raises:
        UnknownName: no such network. InvalidModel: timm is not installed.
    """
    from ltcompile.models import _published

    source, _, inner = name.partition(":")
    tellers = {"torchvision": _published.torchvision_preprocessing, "timm": _published.timm_preprocessing}
    if source not in tellers or not inner:
        return None
    _maker(name)  # raises where there is no such network
    return tellers[source](inner)


def default_recipe(name: str) -> Recipe:
    """The recipe that the network is usually trained with; the general one for networks from elsewhere."""
    from ltcompile.core.recipe import Recipe

    if ":" in name:
        from ltcompile.models import _detection

        return _detection.RECIPE if name.startswith("torchvision:") and name.split(":")[1] in _detection.names() else Recipe()
    recipe: Recipe = registry.load(__name__, "model", name).RECIPE
    return recipe


def least_size(name: str) -> int:
    """The least height and width of images that the network can take, in pixels."""
    return 1 if ":" in name else int(registry.load(__name__, "model", name).LEAST_SIZE)


def usual_size(name: str) -> int:
    """The height and width of images that the network is usually given, in pixels."""
    return FOREIGN_SIDE if ":" in name else max(SIDE, least_size(name))


def names() -> list[str]:
    """The built-in networks."""
    return sorted(registry.names(__name__))


def is_own_code(name: str) -> bool:
    """Whether building the network runs code of the user's (`package.module:factory`)."""
    return ":" in name and name.split(":", maxsplit=1)[0] not in ("torchvision", "timm")


def _maker(name: str) -> Maker:
    if ":" not in name:
        family = registry.load(__name__, "model", name)
        return lambda classes, in_channels, image_size: family.build(name, classes, in_channels, image_size)
    source, _, inner = name.partition(":")
    makers = {"torchvision": _torchvision, "timm": _timm}
    return makers[source](inner) if source in makers else _own(name)


def _torchvision(inner: str) -> Maker:
    import torchvision

    from ltcompile.models import _detection

    if inner in _detection.names():
        return partial(_detection.build, inner)
    known = torchvision.models.list_models(module=torchvision.models) + _detection.names()
    if inner not in known:
        raise unknown("torchvision model", inner, known)
    # Their auxiliary heads give a training other outputs than an evaluation, and hang on layers that are cut.
    extra = {"aux_logits": False, "init_weights": True} if inner in ("googlenet", "inception_v3") else {}

    def make(classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
        if in_channels != 3:
            raise InvalidModel(f"torchvision:{inner} takes 3 colour channels, the data has {in_channels}; choose another model or data set")
        model: nn.Module = torchvision.models.get_model(inner, weights=None, num_classes=classes, **extra)
        return model

    return make


def _timm(inner: str) -> Maker:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise InvalidModel("timm is not installed; run `pip install 'ltcompile[timm]'`") from error
    if not timm.is_model(inner):
        raise unknown("timm model", inner, timm.list_models())
    return lambda classes, in_channels, _: timm.create_model(inner, num_classes=classes, in_chans=in_channels)


def own_network(name: str) -> nn.Module:
    """What `package.module:factory` makes without arguments; any other name as `build_model` builds it by default.

    Raises:
        InvalidModel: it cannot be imported, fails, or does not make a network. UnknownName: no such network.
    """
    return _built(name, _imported(name), {}) if is_own_code(name) else build_model(name)


def _own(name: str) -> Maker:
    make = _imported(name)

    def call(classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
        offered: dict[str, Any] = {
            "classes": classes,
            "in_channels": in_channels,
            "image_size": image_size[0] if image_size[0] == image_size[1] else image_size,
        }
        wanted = inspect.signature(make).parameters
        return _built(name, make, {k: v for k, v in offered.items() if k in wanted})

    return call


def _imported(name: str) -> Callable[..., Any]:
    module, _, factory = name.rpartition(":")
    try:
        there = _module(module)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        raise InvalidModel(
            f"{name!r} cannot be imported: {error}; is its folder the current one, or on PYTHONPATH? A file is named as in my/file.py:build"
        ) from error
    except Exception as error:  # the user's own code may raise anything
        raise InvalidModel(f"{name!r} failed with {type(error).__name__} while it was imported: {error}") from error
    if not hasattr(there, factory):
        own = [each for each, value in vars(there).items() if getattr(value, "__module__", None) == there.__name__]
        raise unknown(f"function or class in {module}", factory, own)
    make: Callable[..., Any] = getattr(there, factory)
    if not callable(make):
        raise InvalidModel(f"{name!r} is a {type(make).__name__}, not a function or class that makes a network")
    return make


def _module(name: str) -> ModuleType:
    """A module, which is looked for in the current directory too, as `python -m` does; or that of a .py file, with its folder."""
    is_file = name.endswith(".py")
    folder = str(Path(name).resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not is_file:
        return importlib.import_module(name)
    path = Path(name).resolve()
    own = f"{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"  # other modules may have the file's name
    if own not in sys.modules:
        spec = importlib.util.spec_from_file_location(own, path)
        assert spec is not None and spec.loader is not None
        sys.modules[own] = importlib.util.module_from_spec(spec)  # where dataclasses look their module up
        try:
            spec.loader.exec_module(sys.modules[own])
        except BaseException:
            del sys.modules[own]
            raise
    return sys.modules[own]


def _built(name: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    from torch import nn

    try:
        model = make(**arguments)
    except Exception as error:  # the user's own code may raise anything
        raise InvalidModel(f"{name!r} failed with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"{name!r} gave an object of type {type(model).__name__}, not a torch.nn.Module")
    return model
