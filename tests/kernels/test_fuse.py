"""What may be fused into one persistent kernel, and how its work is split into programs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_networks import CHAIN, SHORT, VGG, Network, build

from ltcompile import kernels
from ltcompile.errors import InvalidSetting, Unavailable
from ltcompile.kernels import PERSISTENT_WARPS
from ltcompile.kernels._config import PROGRAMS, gemm_default, head_default, window_default
from ltcompile.kernels._launch import Multiprocessor, Usage, check_resident, resident


def fused(network: Network, programs: int | None = None) -> kernels.Call:
    return kernels.fuse(build(network, torch.float16, "meta").calls, programs)


def test_programs_are_as_many_as_have_work() -> None:
    assert fused(SHORT).programs < PROGRAMS
    assert fused(replace(VGG, n=64)).programs == PROGRAMS
    assert fused(SHORT, 3).programs == 3


def test_a_multiprocessor_holds_as_many_programs_as_its_least_resource_allows() -> None:
    """By hand, with an H100's numbers: 126 registers take 4096 a warp, and a program has 1 KB of shared memory for itself."""
    h100 = Multiprocessor(65536, 233472, 2048)
    for used, warps, expected in (
        (Usage(126, 25 * 1024), 4, 4),  # registers
        (Usage(64, 100 * 1024), 4, 2),  # shared memory
        (Usage(16, 0), 8, 8),  # threads
        (Usage(32, 228 * 1024), 4, 0),  # none fits
    ):
        assert resident(used, warps, h100) == expected
        check_resident(132 * expected, used, warps, h100, 132)
        with pytest.raises(Unavailable, match=rf"{132 * expected + 1} programs wait for one another, and this GPU holds {132 * expected}"):
            check_resident(132 * expected + 1, used, warps, h100, 132)


def test_scratch_is_shared() -> None:
    tensors = fused(VGG).tensors["tensors"]
    assert len({id(layer[5]) for layer in tensors[:-1]}) == len({id(layer[6]) for layer in tensors[:-1]}) == 1


def test_defaults_have_the_common_warps() -> None:
    for shape in [(1, 8, 9), (4, 512, 4608), (1024, 64, 576), (65536, 64, 576), (10**6, 64, 36)]:
        for itemsize in (2, 4):
            assert gemm_default(*shape, itemsize, warps=PERSISTENT_WARPS).warps == PERSISTENT_WARPS
    for images in (1, 64, 10**5):
        assert (
            window_default(images, 61, PERSISTENT_WARPS).warps == head_default(images, 10, 61, PERSISTENT_WARPS).warps == PERSISTENT_WARPS
        )


def test_what_cannot_be_fused_is_refused() -> None:
    calls = build(CHAIN, torch.float32, "cpu").calls
    with pytest.raises(InvalidSetting, match="cannot fuse no calls"):
        kernels.fuse([])
    with pytest.raises(InvalidSetting, match=r"_gemm \(8 warps\).*the same warps"):
        kernels.fuse([*calls, replace(calls[0], warps=8)])
    with pytest.raises(InvalidSetting, match="neither dependent nor persistent"):
        kernels.fuse([kernels.dependent(calls[0])])
    with pytest.raises(InvalidSetting, match="neither dependent nor persistent"):
        kernels.fuse([kernels.fuse(calls)])
    with pytest.raises(InvalidSetting, match="it has no such form"):
        kernels.dependent(kernels.fuse(calls))
