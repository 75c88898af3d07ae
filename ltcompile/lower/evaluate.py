"""What an ONNX graph means, without any runtime: onnx's reference evaluator, with the operations that take time computed by PyTorch.

It is what runtimes are compared with where no network of PyTorch stands beside a file, and what simulates the rounding of an int8 file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Array = NDArray[Any]


def evaluator(model: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The first output of an ONNX model of one input, (N, ...) -> (N, ...), computed on the CPU, one node after the other.

    Raises:
        BadModel: the model has a node that onnx's reference does not define.
    """
    from onnx.reference import ReferenceEvaluator

    from ltcompile.errors import BadModel

    try:
        session = ReferenceEvaluator(model, new_ops=list(_fast()))
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise BadModel(f"onnx's reference cannot evaluate this graph: {str(error).splitlines()[0]}") from error
    name = model.graph.input[0].name
    return lambda images: np.asarray(session.run(None, {name: images})[0])


@cache
def _fast() -> tuple[Any, ...]:
    """Operations whose reference is written in loops, by PyTorch; what these do not cover goes to the reference."""
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops.op_conv import Conv as SlowConv
    from onnx.reference.ops.op_max_pool import MaxPool as SlowMaxPool

    class Conv(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(
            self,
            x: Array,
            w: Array,
            b: Array | None = None,
            auto_pad: Any = None,
            dilations: Any = None,
            group: Any = None,
            kernel_shape: Any = None,
            pads: Any = None,
            strides: Any = None,
        ) -> tuple[Array]:
            places = x.ndim - 2
            pads = list(pads or [0] * (2 * places))
            if auto_pad not in (None, "NOTSET", "VALID") or places > 3:
                return SlowConv._run(
                    self,
                    x,
                    w,
                    b,
                    auto_pad=auto_pad,
                    dilations=dilations,
                    group=group,
                    kernel_shape=kernel_shape,
                    pads=pads,
                    strides=strides,
                )  # type: ignore[no-any-return]
            convolve = (F.conv1d, F.conv2d, F.conv3d)[places - 1]
            padded = F.pad(_tensor(x), [p for d in reversed(range(places)) for p in (pads[d], pads[places + d])])
            y = convolve(padded, _tensor(w), None if b is None else _tensor(b), strides or 1, 0, dilations or 1, group or 1)
            return (y.numpy(),)

    class MaxPool(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(
            self,
            x: Array,
            auto_pad: Any = None,
            ceil_mode: Any = None,
            dilations: Any = None,
            kernel_shape: Any = None,
            pads: Any = None,
            storage_order: Any = None,
            strides: Any = None,
        ) -> tuple[Array, ...]:
            places = x.ndim - 2
            pads = list(pads or [0] * (2 * places))
            plain = auto_pad in (None, "NOTSET", "VALID") and not ceil_mode and places <= 3 and len(self.onnx_node.output) == 1
            if not plain:
                return SlowMaxPool._run(
                    self,
                    x,
                    auto_pad=auto_pad,
                    ceil_mode=ceil_mode,
                    dilations=dilations,
                    kernel_shape=kernel_shape,
                    pads=pads,
                    storage_order=storage_order,
                    strides=strides,
                )  # type: ignore[no-any-return]
            pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[places - 1]
            padded = F.pad(_tensor(x), [p for d in reversed(range(places)) for p in (pads[d], pads[places + d])], value=-torch.inf)
            return (pool(padded, kernel_shape, strides or [1] * places, 0, dilations or 1).numpy(),)

    return Conv, MaxPool


def _tensor(value: Array) -> torch.Tensor:
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))
