"""COCO's mean average precision, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ltcompile.errors import InvalidSetting

Found = dict[str, Tensor]  # of one image: "boxes" (K, 4) as x0, y0, x1, y1, "labels" (K,); of detections also "scores" (K,)


def mean_average_precision(found: Sequence[Found], truth: Sequence[Found], classes: int) -> float:
    """AP of COCO in 0..1: the mean over the classes that occur and over overlaps of 0.50 to 0.95 (Lin et al. 2014, arXiv:1405.0312), of at
    most 100 detections an image. Boxes may be of any size.

    Args:
        found: the detections in each image.
        truth: the objects in each image.

    Raises:
        InvalidSetting: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise InvalidSetting("pycocotools is not installed, which computes the mAP; run `pip install 'ltcompile[detection]'`") from error

    rows = [row for image, there in enumerate(truth, 1) for row in _rows(image, there)]
    if not rows:
        return 0.0  # of COCO's own -1, for no class occurs
    guesses = [row for image, there in enumerate(found, 1) for row in _rows(image, there)]
    with contextlib.redirect_stdout(io.StringIO()):
        objects, detections = COCO(), COCO()
        listed = {"images": [{"id": image} for image in range(1, len(truth) + 1)], "categories": [{"id": c} for c in range(classes)]}
        for side, annotations in ((objects, rows), (detections, guesses)):
            side.dataset = {**listed, "annotations": [{"id": i, **row} for i, row in enumerate(annotations, 1)]}
            side.createIndex()
        judge = COCOeval(objects, detections, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], judge.params.areaRngLbl[:1]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # (overlaps, recalls, classes), -1 for classes that do not occur
    return float(precision[precision > -1].mean())


def _rows(image: int, there: Found) -> list[dict[str, Any]]:
    """Annotations of one image as pycocotools takes them."""
    boxes = there["boxes"].detach().double().cpu()
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    scores = there["scores"].tolist() if "scores" in there else [None] * len(boxes)
    return [
        {"image_id": image, "category_id": label, "bbox": [*corner, *side], "area": side[0] * side[1], "iscrowd": 0}
        | ({} if score is None else {"score": score})
        for corner, side, label, score in zip(boxes[:, :2].tolist(), sides.tolist(), there["labels"].tolist(), scores, strict=True)
    ]
