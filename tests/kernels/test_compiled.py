"""Kernels compiled ahead of time for three GPU generations: no spills, wide loads, the matrix instructions of each."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import torch
from ahead_of_time import compile_ahead
from kernel_cases import Conv, Depthwise, Grouped, Linear, Maxpool, PooledHead
from kernel_networks import HALF_VGG, SHORT, Network, build

from ltcompile import kernels
from ltcompile.errors import Unavailable
from ltcompile.kernels import Config
from ltcompile.kernels._config import PROGRAMS, gemm_default, gemm_space, head_default, head_space, window_default, window_space
from ltcompile.kernels._launch import REGISTERS, Multiprocessor, check_resident

LAYERS = [  # kernel, case: layers of VGG-16, ResNet and MobileNet, whole and pruned, for one image and for many
    ("conv2d", Conv(64, 32, 32, 3, 64)),
    ("conv2d", Conv(32, 224, 224, 3, 64, (7, 7), (2, 2), (3, 3))),
    ("conv2d", Conv(1024, 32, 32, 61, 53, residual=True)),
    ("conv2d", Conv(1024, 32, 32, 64, 64, pool=True)),
    ("conv2d", Conv(64, 16, 16, 61, 37, activation="none")),
    ("conv2d", Conv(1, 2, 2, 512, 512)),
    ("conv2d", Conv(1, 4, 4, 256, 509, pool=True)),
    ("conv2d", Conv(32, 28, 28, 72, 144, (1, 1), padding=(0, 0), activation="gelu", residual=True)),
    ("linear", Linear(1, 512, 10)),
    ("linear", Linear(1024, 512, 512, "relu")),
    ("grouped", Grouped(32, 28, 28, 32, 7, 5)),
    ("depthwise", Depthwise(64, 28, 28, 144)),
    ("depthwise", Depthwise(1, 14, 14, 61, (5, 5), padding=(2, 2), activation="hardswish")),
    ("pooled_head", PooledHead(1, 7, 7, 512, 1000)),
    ("pooled_head", PooledHead(256, 2, 2, 61, 10)),
    ("maxpool", Maxpool(32, 112, 112, 64)),
]
OTHER_LAYERS = [LAYERS[index] for index in (2, 5, 9, 11, 14)]
QUICK = [layer if layer in OTHER_LAYERS else pytest.param(*layer, marks=pytest.mark.slow) for layer in LAYERS]
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def prepared(name: str, case: Any, dtype: torch.dtype, config: Config | None = None) -> kernels.Call:
    arguments = case.sample(dtype, "meta")
    call: kernels.Call = kernels.load(name).prepare(arguments.empty(), arguments, config)
    return call


def copies(ptx: str) -> list[int]:
    """The bytes of every asynchronous copy into shared memory."""
    return [int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x[0-9a-f]+|\d+)", ptx)]


@pytest.mark.parametrize(
    ("index", "capability"),
    [(5, 90), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((12, 90), (13, 90), (15, 90), (5, 100))), (14, 100)],
)
def test_dependent_calls_wait_before_they_read(index: int, capability: int) -> None:
    call = kernels.dependent(prepared(*LAYERS[index], torch.float16))
    assert call.dependent
    made = compile_ahead(call, capability)
    before, wait, after = made.ptx.partition("griddepcontrol.wait")
    assert "griddepcontrol.launch_dependents" in before
    assert wait
    assert wait not in after
    assert not re.search(r"\bbra\b|\b(?:ld|st|atom)\.global|\bcp\.async", before)
    assert re.search(r"\bst\.global", after)
    assert made.stack_bytes == 0


def test_dependent_calls_are_refused_where_there_is_no_dependence() -> None:
    with pytest.raises(Unavailable, match=r"compute capability 8\.0"):
        compile_ahead(kernels.dependent(prepared(*LAYERS[5], torch.float16)), 80)


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "case"), QUICK, ids=str)
def test_defaults_compile_without_spills_and_with_wide_loads(name: str, case: Any, capability: int) -> None:
    call = prepared(name, case, torch.float16)
    made = compile_ahead(call, capability)
    assert made.stack_bytes == 0
    assert made.used.shared_bytes <= 160 * 1024
    assert "griddepcontrol" not in made.ptx
    assert not re.findall(r"ld\.global\S*\.[bu](?:8|16)\b", made.ptx)  # nothing is read a lane at a time
    if name in ("conv2d", "linear", "grouped"):
        assert MATRIX[capability] in made.ptx
        image = call.constants["IN_STRIDE"] == 4
        deep = call.constants["WINDOW"] * call.constants["R"] * call.constants["S"] > call.constants["BK"]
        if deep:  # one step needs no pipeline
            assert min(copies(made.ptx)) >= (8 if image or name == "grouped" else 16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "case"), OTHER_LAYERS, ids=str)
def test_other_types_compile_without_spills(name: str, case: Any, dtype: torch.dtype) -> None:
    made = compile_ahead(prepared(name, case, dtype), 90)
    assert made.stack_bytes == 0
    assert not re.findall(r"ld\.global\S*\.[bu](?:8|16)\b", made.ptx)
    if name in ("conv2d", "linear", "grouped"):
        assert MATRIX[90] in made.ptx


def spaces() -> list[tuple[str, Any, Config]]:
    """Every shipped configuration of some layers."""
    found = []
    for name, case in (LAYERS[2], LAYERS[4], LAYERS[6]):
        rows = case.n * case.h * case.w
        found += [(name, case, config) for config in gemm_space(rows, case.k, 9 * case.c, 2)]
    found += [(*LAYERS[11], config) for config in window_space(64 * 28 * 28, 144)]
    found += [(*LAYERS[13], config) for config in head_space(1, 1000, 512)]
    found += [(*LAYERS[14], config) for config in head_space(256, 10, 61)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case", "config"), spaces()[:: 1 if os.environ.get("LTCOMPILE_SWEEP") else 30])
def test_search_space_compiles(name: str, case: Any, config: Config) -> None:
    """A sample; all of it with LTCOMPILE_SWEEP=1. A register pair on the stack is the assembler's choice, more would be a spill."""
    made = compile_ahead(prepared(name, case, torch.float16, config), 90)
    assert made.stack_bytes <= 8
    assert made.used.shared_bytes <= 160 * 1024


def test_spaces_begin_with_the_default_and_repeat_nothing() -> None:
    for shape in [(1, 8, 9), (4, 512, 4608), (16384, 40, 576), (10**6, 64, 36)]:
        for itemsize in (2, 4):
            space = gemm_space(*shape, itemsize)
            assert space[0] == gemm_default(*shape, itemsize)
            assert len(set(space)) == len(space)
    assert window_space(784, 61)[0] == window_default(784, 61)
    assert head_space(3, 10, 61)[0] == head_default(3, 10, 61)
    assert {config.block_n for config in gemm_space(784, 160, 360, 2, block_n=16)} == {16}
    assert {config.split_k for config in gemm_space(4, 512, 4608, 2)} == {1, 2, 4, 8, 16}
    assert {config.swapped for config in gemm_space(16, 64, 576, 2)} == {True, False}
    assert max(len(gemm_space(pixels, 512, 4608, 2)) for pixels in (4, 64, 4096, 10**6)) <= 160  # a tuner compiles them all


# Fused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "dtype", "capability", "instruction"),
    [
        (HALF_VGG, torch.float16, 90, "wgmma.mma_async"),
        (SHORT, torch.float16, 80, "mma.sync"),
        (SHORT, torch.float16, 100, "tcgen05.mma"),
        (SHORT, torch.float32, 90, "wgmma.mma_async"),
    ],
    ids=["vgg-90", "short-80", "short-100", "float32-90"],
)
def test_all_programs_fit_onto_a_gpu_at_once(network: Network, dtype: torch.dtype, capability: int, instruction: str) -> None:
    """One a multiprocessor: 65536 registers and, on the smallest of them, 163 KB of shared memory."""
    call = kernels.fuse(build(network, dtype, "meta").calls)
    made = compile_ahead(call, capability)
    assert call.options["launch_cooperative_grid"]
    assert call.programs <= PROGRAMS
    assert made.stack_bytes == 0
    assert made.used.registers * 32 * call.warps <= 65536
    assert made.used.shared_bytes <= 160 * 1024
    check_resident(call.programs, made.used, call.warps, Multiprocessor(REGISTERS, 164 * 1024, 2048), PROGRAMS)
    assert instruction in made.ptx
    if dtype == torch.float16:  # Triton 3.6 transposes single precision on the way, 4 bytes at a time
        sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x[0-9a-f]+|\d+)", made.ptx)
        assert {int(size, 0) for size in sizes} == {16}
    meetings = re.findall(r"atom\.global\.gpu\.release", made.ptx)
    assert len(meetings) == len(network.layers) - 1
    assert len(re.findall(r"\bacquire\b", made.ptx)) >= len(meetings)
    assert "ld.global.nc" not in made.ptx  # the non-coherent cache would keep what a layer wrote from the next


@pytest.mark.slow
@pytest.mark.parametrize("which", ["fused", "dependent"])
def test_a_launch_compiles_what_is_compiled_ahead(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the driver: the same code, and the attributes of the launch."""
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 99  # kernels are kept by device: not one that there is

        def get_current_stream(self, device: int) -> int:
            return 0

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    built = build(SHORT, torch.float16, "cpu")
    call = kernels.fuse(built.calls) if which == "fused" else kernels.dependent(built.calls[1])
    kernel = call.kernel.warmup(**call.arguments, **call.options, grid=(call.programs,))
    assert kernel.asm["ptx"] == compile_ahead(call, 90).ptx
    assert kernel.metadata.launch_cooperative_grid == call.cooperative == (which == "fused")
    assert kernel.metadata.launch_pdl == call.dependent == (which == "dependent")
