"""The rounding that an int8 file holds, in the corner that no wide network reaches."""

from __future__ import annotations

import numpy as np

from ltcompile.lower.fake_quantize import Weight


def test_the_bias_of_a_layer_with_one_filter_has_one_scale_and_no_axis() -> None:
    """ONNX leaves the axis of a DequantizeLinear at 1, which a bias does not have."""
    bias = Weight(np.array([4530], np.int32), np.array([4.47817e-05], np.float32), np.array(0, np.int32), axis=1)
    values, integers = bias.round(np.array([0.20285757], np.float32))
    assert integers.tolist() == [4530]
    np.testing.assert_allclose(values, 0.20286, rtol=1e-4)


def test_scales_of_filters_count_along_their_axis() -> None:
    weight = Weight(np.zeros((2, 3), np.int8), np.array([0.5, 0.25], np.float32), np.array([0, 0], np.int8), axis=0)
    _, integers = weight.round(np.ones((2, 3), np.float32))
    assert integers.tolist() == [[2, 2, 2], [4, 4, 4]]
