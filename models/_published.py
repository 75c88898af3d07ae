"""How the images were prepared that the published weights of a network were trained on, as its package describes without a download."""

from __future__ import annotations

import importlib

from ltcompile.core.preprocessing import Preprocessing

# Their published weights want pixels scaled to -1..1, which torchvision does inside the network; here the data does it.
SCALED_TO_ONE = ("googlenet", "inception_v3")


def torchvision_preprocessing(inner: str) -> Preprocessing:
    """Of the weights that torchvision recommends for `inner`."""
    import torchvision

    preset = torchvision.models.get_model_weights(inner).DEFAULT.transforms()
    mean, std = ((0.5,) * 3, (0.5,) * 3) if inner in SCALED_TO_ONE else (preset.mean, preset.std)
    return Preprocessing(preset.crop_size[0], mean, std, preset.interpolation.value)


def timm_preprocessing(inner: str) -> Preprocessing | None:
    """Of the weights that timm loads for `inner`; None where it publishes none."""
    preset = importlib.import_module("timm").get_pretrained_cfg(inner)
    if preset is None:
        return None
    return Preprocessing(preset.input_size[-1], preset.mean, preset.std, preset.interpolation)
