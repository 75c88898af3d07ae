"""A small task of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from small_pairs import small_pairs

import ltcompile as lt
from ltcompile.core.task import Task
from ltcompile.data import Dataset
from ltcompile.tasks import Classification
from ltcompile.tasks.detection import Detection
from ltcompile.tasks.image_to_image import ImageToImage
from ltcompile.tasks.segmentation import Segmentation


def _few_scenes() -> Dataset:
    data, few = lt.load_data("scenes").with_train_images(128), torch.arange(24)
    return replace(data, val=data.val.part(few), test=data.test.part(few))  # type: ignore[attr-defined]


CASES: dict[str, Callable[[], tuple[Task, str]]] = {  # a small task of each kind, and a small network for it
    "image-to-image": lambda: (ImageToImage(small_pairs("images")), "unet-small"),
    "segmentation": lambda: (Segmentation(small_pairs("masks")), "unet-small"),
    "classification": lambda: (Classification(lt.load_data("digits", image_size=8)), "lenet300"),
    "detection": lambda: (Detection(_few_scenes()), "centernet-small"),
}


BATCHES = {"detection": 4, "image-to-image": 4, "segmentation": 4}  # where few images have to give many steps
