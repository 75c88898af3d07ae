"""Generated transposed convolutions equal PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ltcompile.engine.cpu import native
from ltcompile.engine.cpu.generate import generate
from ltcompile.lower.lower import lower
from ltcompile.numerics import FP32_TOLERANCE, largest_error


@pytest.mark.slow
@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_transposed_convolutions_of_several_kernels_and_strides(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    settings = [(3, 1, 1, 0), (4, 2, 1, 0), (3, 2, 0, 1)]  # kernel, stride, padding, padding of the output
    layers = [nn.ConvTranspose2d(8, 8, kernel, stride, padding, out) for kernel, stride, padding, out in settings]
    network, image = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.Conv2d(8, 5, 3)).eval(), torch.randn(1, 3, 2, 3)
    program = lower(network, image).program
    expected = program.run(image)
    library, outputs = native.Library(generate(program, threads=1)), torch.empty_like(expected)
    library.run(image.data_ptr(), outputs.data_ptr(), 1)
    assert largest_error(outputs, expected) <= FP32_TOLERANCE
