"""The outputs of an ONNX graph without a runtime: by onnx's reference evaluator, with the slow operations computed by PyTorch.

Runtimes are compared with them where a file has no PyTorch network next to it, and they simulate the rounding of an int8 file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Array = NDArray[Any]
SAMPLED = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest"}  # ways to read between pixels, in PyTorch's words
UNPADDED = (None, "NOTSET", "VALID")  # values of auto_pad that leave `pads` as they are


def evaluator(model: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The first output of an ONNX model of one input, (N, ...) -> (N, ...), computed on the CPU, one node after the other.

    Raises:
        InvalidModel: the model has a node that onnx's reference does not define.
    """
    evaluate, name = evaluator_of_all(model), model.graph.input[0].name
    return lambda images: np.asarray(next(iter(evaluate({name: images}).values())))


def evaluator_of_all(model: Any) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """The same for all inputs and outputs, by their names."""
    from onnx.reference import ReferenceEvaluator

    from ltcompile.errors import InvalidModel

    try:
        session = ReferenceEvaluator(model, new_ops=list(_fast()))
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise InvalidModel(f"onnx's reference cannot evaluate this graph: {str(error).splitlines()[0]}") from error
    inputs, outputs = {value.name for value in model.graph.input}, [value.name for value in model.graph.output]

    def answer(feeds: Mapping[str, Array]) -> dict[str, Array]:
        with np.errstate(all="ignore"):  # a logarithm of nothing is -inf here, as in runtimes
            found: Any = session.run(None, {name: value for name, value in feeds.items() if name in inputs})
        return dict(zip(outputs, found, strict=True))

    return answer


@cache
def _fast() -> tuple[Any, ...]:
    """Operations whose reference consists of loops, or has limits, by PyTorch; cases that these do not cover go to the reference."""
    from onnx.reference.ops.op_conv import Conv as SlowConv
    from onnx.reference.ops.op_gather_elements import GatherElements as SlowGatherElements
    from onnx.reference.ops.op_grid_sample import GridSample as SlowGridSample
    from onnx.reference.ops.op_max_pool import MaxPool as SlowMaxPool
    from onnx.reference.ops.op_non_max_suppression import NonMaxSuppression as SlowNonMaxSuppression
    from onnx.reference.ops.op_roi_align import RoiAlign as SlowRoiAlign
    from torchvision.ops import nms, roi_align

    class Conv(SlowConv):
        op_domain = ""

        def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Any:  # type: ignore[override]
            places = x.ndim - 2
            if attributes["auto_pad"] not in UNPADDED or places > 3:
                return super()._run(x, w, b, **attributes)
            convolve = (F.conv1d, F.conv2d, F.conv3d)[places - 1]
            bias = None if b is None else _tensor(b)
            strides, dilations, groups = attributes["strides"] or 1, attributes["dilations"] or 1, attributes["group"] or 1
            return (convolve(_padded(x, attributes["pads"], 0.0), _tensor(w), bias, strides, 0, dilations, groups).numpy(),)

    class MaxPool(SlowMaxPool):
        op_domain = ""

        def _run(self, x: Array, **attributes: Any) -> Any:  # type: ignore[override]
            places = x.ndim - 2
            if attributes["auto_pad"] not in UNPADDED or attributes["ceil_mode"] or places > 3 or len(self.onnx_node.output) > 1:
                return super()._run(x, **attributes)
            pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[places - 1]
            strides, dilations = attributes["strides"] or [1] * places, attributes["dilations"] or 1
            return (pool(_padded(x, attributes["pads"], -torch.inf), attributes["kernel_shape"], strides, 0, dilations).numpy(),)

    class GatherElements(SlowGatherElements):
        """The reference gathers from 64 places at most."""

        op_domain = ""

        def _run(self, data: Array, indices: Array, axis: int | None = None) -> Any:  # type: ignore[override]
            values, places, along = _tensor(data), _tensor(indices).long(), axis or 0
            return (values.gather(along, places.where(places >= 0, places + values.shape[along])).numpy(),)

    class NonMaxSuppression(SlowNonMaxSuppression):
        """The reference takes no limits that are numbers, as torch exports them."""

        op_domain = ""

        def _run(  # type: ignore[override]
            self, boxes: Array, scores: Array, most: Array, overlap: Array, least: Array | None = None, center_point_box: int | None = None
        ) -> Any:
            if boxes.shape[0] > 1 or scores.shape[1] > 1 or center_point_box or least is not None:
                most, overlap = np.atleast_1d(most), np.atleast_1d(overlap)
                least = None if least is None else np.atleast_1d(least)
                return super()._run(boxes, scores, most, overlap, least, center_point_box)
            kept = nms(_tensor(boxes[0]), _tensor(scores[0, 0]), float(overlap.item()))[: int(most.item())]
            return (F.pad(kept[:, None], (2, 0)).numpy(),)

    class RoiAlign(SlowRoiAlign):
        op_domain = ""

        def _run(self, x: Array, boxes: Array, rows: Array, **attributes: Any) -> Any:  # type: ignore[override]
            own: Any = self  # onnx sets the attributes
            if own.mode != "avg":
                return super()._run(x, boxes, rows, **attributes)
            regions = torch.cat([_tensor(rows)[:, None].float(), _tensor(boxes)], 1)
            size, aligned = (own.output_height, own.output_width), own.coordinate_transformation_mode == "half_pixel"
            return (roi_align(_tensor(x), regions, size, own.spatial_scale, own.sampling_ratio, aligned).numpy(),)

    class GridSample(SlowGridSample):
        op_domain = ""

        def _run(self, x: Array, grid: Array, **attributes: Any) -> Any:  # type: ignore[override]
            own: Any = self
            if x.ndim > 4 or own.mode not in SAMPLED:
                return super()._run(x, grid, **attributes)
            return (F.grid_sample(_tensor(x), _tensor(grid), SAMPLED[own.mode], own.padding_mode, bool(own.align_corners)).numpy(),)

    return Conv, MaxPool, GatherElements, GridSample, NonMaxSuppression, RoiAlign


def _padded(x: Array, pads: Sequence[int] | None, value: float) -> torch.Tensor:
    """`x` with ONNX's pads, first the starts of all places and then their ends."""
    places = x.ndim - 2
    both = pads or [0] * (2 * places)
    return F.pad(_tensor(x), [p for d in reversed(range(places)) for p in (both[d], both[places + d])], value=value)


def _tensor(value: Array) -> torch.Tensor:
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))
