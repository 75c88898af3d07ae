"""How the images were prepared that the published weights of a network were trained on, as its package tells without a download."""

from __future__ import annotations

import importlib

from ltcompile.core.preprocessing import Preprocessing

# Their published weights want pixels scaled to -1..1, which torchvision does inside the network; here the data does it.
SCALED_TO_ONE = ("googlenet", "inception_v3")


def torchvision_preprocessing(inner: str) -> Preprocessing:
    """Of the weights that torchvision recommends for `inner`."""
    import torchvision

    told = torchvision.models.get_model_weights(inner).DEFAULT.transforms()
    mean, std = ((0.5,) * 3, (0.5,) * 3) if inner in SCALED_TO_ONE else (told.mean, told.std)
    return Preprocessing(told.crop_size[0], mean, std, told.interpolation.value)


def timm_preprocessing(inner: str) -> Preprocessing | None:
    """Of the weights that timm loads for `inner`; None where it publishes none."""
    told = importlib.import_module("timm").get_pretrained_cfg(inner)
    if told is None:
        return None
    return Preprocessing(told.input_size[-1], told.mean, told.std, told.interpolation)
