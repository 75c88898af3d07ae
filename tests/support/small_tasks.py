"""A small task of each kind."""

from __future__ import annotations

from collections.abc import Callable

from small_pairs import OPTIONS, small_pairs

import ltcompile as lt
from ltcompile.core.task import Task
from ltcompile.data import scenes
from ltcompile.tasks import Classification
from ltcompile.tasks.detection import Detection
from ltcompile.tasks.image_to_image import ImageToImage
from ltcompile.tasks.segmentation import Segmentation

CASES: dict[str, Callable[[], tuple[Task, str]]] = {  # a small task of each kind, and a small network for it
    "image-to-image": lambda: (ImageToImage(small_pairs("images")), "unet-small"),
    "segmentation": lambda: (Segmentation(small_pairs("masks")), "unet-small"),
    "classification": lambda: (Classification(lt.load_data("digits", image_size=8)), "lenet300"),
    "detection": lambda: (Detection(scenes.dataset({"train": 128, "val": 24, "test": 24}, OPTIONS)), "centernet-small"),
}


BATCHES = {"detection": 4, "image-to-image": 4, "segmentation": 4}  # where few images have to give many steps
