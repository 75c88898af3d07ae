"""The persistent kernel: layers in one launch do what they do one launch after the other, to the bit; compiled ahead, it fits onto a GPU.

As in test_kernels, what the interpreter runs is in a process of its own: this file, as a script.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ltcompile import kernels
from ltcompile.errors import BadSetting, Unavailable
from ltcompile.kernels import persistent
from ltcompile.kernels._config import (
    PERSISTENT_WARPS,
    PROGRAMS,
    Config,
    gemm_space,
    head_default,
    persistent_default,
    persistent_space,
    window_default,
)
from ltcompile.kernels._launch import REGISTERS, Compiled, Multiprocessor, check_resident, resident
from ltcompile.kernels.persistent import Case, Layer, chain, encode

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CHAIN = Case(1, 4, 4, 3, chain(13, 37, 61), (*[Config(16, 32, 64)] * 3, Config(1, 16, 16)))


@dataclass
class Made:
    """A case with memory for every layer's output, and the calls that fill it, one a layer."""

    case: Case
    arguments: dict[str, Any]
    outputs: list[Tensor]
    calls: list[kernels.Call]

    def clear(self) -> None:
        """NaN wherever something must be written before it is read."""
        for tensor in (*self.outputs, *(call.tensors["partial"] for call in self.calls if "partial" in call.tensors)):
            tensor.fill_(float("nan"))

    def results(self) -> list[Tensor]:
        return [out.clone() for out in self.outputs]

    def check(self, expected: list[Tensor]) -> None:
        """Every layer wrote what is expected, and zeros behind its channels."""
        for layer, out, wanted in zip(self.case.layers, self.outputs, expected, strict=True):
            torch.testing.assert_close(out, wanted, rtol=0, atol=0)
            assert not layer.channels or out[..., layer.channels :].count_nonzero() == 0


def make(case: Case, dtype: torch.dtype, device: str) -> Made:
    torch.manual_seed(0)
    arguments = persistent.sample(case, dtype, device)
    outputs = persistent.outputs(**arguments)
    values = [arguments["x"], *outputs]
    steps = persistent._steps(values, arguments["weights"], arguments["biases"], arguments["layers"])
    calls = []
    for (kind, given), y, config in zip(steps, outputs, case.config or [None] * len(outputs), strict=True):
        calls.append(kernels.load(kind).prepare(y, **given, config=config or persistent.default(kind, y, given)))
    return Made(case, arguments, outputs, calls)


def check_case(case: Case, device: str) -> None:
    """Fused, twice on the same call, is one after the other."""
    made = make(case, torch.float16, device)
    made.clear()
    for call in made.calls:
        kernels.launch(call)
    expected = made.results()
    fused = kernels.fuse(made.calls)
    for _ in range(2):  # the barrier's counter begins where it ended
        made.clear()
        kernels.launch(fused)
        made.check(expected)


def check_memory(device: str) -> None:
    """The layers of a chain may write into two buffers in turn; handed in by the caller, they are used."""
    made = make(CHAIN, torch.float16, device)
    halves = made.arguments["x"].new_full((2, max(out.numel() for out in made.outputs)), float("nan"))
    buffers = [halves[i % 2, : out.numel()].view(out.shape) for i, out in enumerate(made.outputs[:-1])]
    y = torch.full_like(made.outputs[-1], float("nan"))
    kernels.launch(persistent.prepare(y, **made.arguments, config=CHAIN.config, buffers=buffers))
    kernels.launch(persistent.prepare(made.outputs[-1], **made.arguments, config=CHAIN.config))
    torch.testing.assert_close(y, made.outputs[-1], rtol=0, atol=0)


# Through the interpreter


def check_refusal() -> None:
    """No kernel runs before an interpreted one."""
    with pytest.raises(BadSetting, match="interpreter runs it"):
        kernels.dependent(make(CHAIN, torch.float32, "cpu").calls[0])


LAWS = {
    **{f"case {index}": lambda index=index: check_case(persistent.CASES[index], "cpu") for index in (0, 2, 3)},
    "memory": lambda: check_memory("cpu"),
    "refusal": check_refusal,
}


def interpret_all() -> None:
    """Every law; prints a line of JSON, what went wrong by name."""
    failures: dict[str, str | None] = {}
    for name, law in LAWS.items():
        try:
            law()
            failures[name] = None
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(failures))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failures: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return failures


@pytest.mark.parametrize("law", LAWS)
def test_interpreted_chain_is_one_call_after_the_other(interpreted: dict[str, str | None], law: str) -> None:
    assert interpreted[law] is None


# On a GPU


def captured(calls: list[kernels.Call]) -> torch.cuda.CUDAGraph:
    """A graph of these launches, all of them compiled before."""
    for call in calls:
        kernels.launch(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            kernels.launch(call)
    return graph


def check_replays(made: Made, calls: list[kernels.Call], replays: int) -> None:
    """On input after input, a graph of `calls` gives what the case's own calls give, launched plainly."""
    graph, x = captured(calls), made.arguments["x"]
    for _ in range(replays):
        x.copy_(x.roll(1, 1) * -1.01)
        made.clear()
        graph.replay()
        got = made.results()
        made.clear()
        for call in made.calls:
            kernels.launch(call)
        made.check(got)


class TestOnGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("case", persistent.CASES, ids=lambda case: f"{len(case.layers)} layers")
    def test_chain_is_one_call_after_the_other(self, case: Case) -> None:
        check_case(case, "cuda")

    def test_memory_is_used_again(self) -> None:
        check_memory("cuda")

    @pytest.mark.parametrize("programs", [None, 7, 1])
    def test_replays_of_a_graph_agree(self, programs: int | None) -> None:
        made = make(VGG, torch.float16, "cuda")
        check_replays(made, [kernels.fuse(made.calls, programs)], 100)

    def test_barrier_holds_all_programs(self) -> None:
        """Every layer carries a maximum one row further, between programs; one that runs ahead would miss it."""
        layers = tuple(Layer("maxpool", i - 1, kernel=(3, 1), padding=(1, 0)) for i in range(16))
        made = make(Case(4, 64, 64, 64, layers), torch.float16, "cuda")
        fused = kernels.fuse(made.calls)
        assert fused.programs > 100
        check_replays(made, [fused], 200)

    def test_barrier_is_crossed_beside_another_kernel(self) -> None:
        """Products on another stream take multiprocessors away from it; without a cooperative launch some programs would wait for others
        that never start."""
        made, other = make(VGG, torch.float16, "cuda"), torch.cuda.Stream()
        a, fused = torch.randn(4096, 4096, device="cuda").half(), kernels.fuse(made.calls)
        kernels.launch(fused)
        expected = made.results()
        a @ a
        torch.cuda.synchronize()
        for _ in range(20):
            with torch.cuda.stream(other):
                for _ in range(4):
                    a @ a
            made.outputs[-1].fill_(float("nan"))
            kernels.launch(fused)
        torch.cuda.synchronize()
        made.check(expected)

    def test_more_programs_than_fit_are_refused(self) -> None:
        made = make(VGG, torch.float16, "cuda")
        with pytest.raises(Unavailable, match="programs wait for one another, and this GPU holds"):
            kernels.launch(kernels.fuse(made.calls, 100_000))

    def test_dependent_calls_agree(self) -> None:
        if torch.cuda.get_device_capability() < (9, 0):
            pytest.skip("needs compute capability 9.0")
        made = make(VGG, torch.float16, "cuda")
        check_replays(made, [kernels.dependent(call) for call in made.calls], 100)


# Compiled ahead of time


def vgg(*widths: int) -> tuple[Layer, ...]:
    """VGG-16 of these widths: 13 convolutions, five poolings and a head."""
    return (
        *(
            Layer("conv2d", i - 1, width, (3, 3), padding=(1, 1), activation="relu", pool=i in (1, 3, 6, 9, 12))
            for i, width in enumerate(widths)
        ),
        Layer("pooled_head", 12, 10),
    )


VGG = Case(1, 32, 32, 3, vgg(37, 61, 101, 118, 203, 190, 171, 240, 181, 133, 97, 85, 64))
SHORT = Case(1, 8, 8, 3, (*chain(37, 61)[:2], Layer("conv2d", 1, 64, (3, 3), padding=(1, 1), residual=1), Layer("pooled_head", 2, 10)))


def prepared(case: Case, dtype: torch.dtype = torch.float16) -> kernels.Call:
    arguments = persistent.sample(case, dtype, "meta")
    return persistent.prepare(persistent.empty(**arguments), **arguments)


@pytest.mark.parametrize(
    ("case", "dtype", "capability", "instruction"),
    [
        (VGG, torch.float16, 90, "wgmma.mma_async"),
        (SHORT, torch.float16, 80, "mma.sync"),
        (SHORT, torch.float16, 100, "tcgen05.mma"),
        (SHORT, torch.float32, 90, "wgmma.mma_async"),
    ],
    ids=["vgg-90", "short-80", "short-100", "float32-90"],
)
def test_all_programs_fit_onto_a_gpu_at_once(case: Case, dtype: torch.dtype, capability: int, instruction: str) -> None:
    """One a multiprocessor: 65536 registers and, on the smallest of them, 163 KB of shared memory."""
    call = prepared(case, dtype)
    made = kernels.compile_ahead(call, capability)
    assert call.options["launch_cooperative_grid"]
    assert call.programs <= PROGRAMS
    assert made.stack_bytes == 0
    assert made.registers * 32 * call.warps <= 65536
    assert made.shared_bytes <= 160 * 1024
    check_resident(call.programs, made, call.warps, Multiprocessor(REGISTERS, 164 * 1024, 2048), PROGRAMS)
    assert instruction in made.ptx
    if dtype == torch.float16:  # Triton 3.6 transposes single precision on the way, 4 bytes at a time
        sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x[0-9a-f]+|\d+)", made.ptx)
        assert {int(size, 0) for size in sizes} == {16}
    meetings = re.findall(r"atom\.global\.gpu\.release", made.ptx)
    assert len(meetings) == len(case.layers) - 1
    assert len(re.findall(r"\bacquire\b", made.ptx)) >= len(meetings)
    assert "ld.global.nc" not in made.ptx  # the non-coherent cache would keep what a layer wrote from the next


@pytest.mark.parametrize("which", ["persistent", "dependent"])
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
    made = make(SHORT, torch.float16, "cpu")
    call = kernels.fuse(made.calls) if which == "persistent" else kernels.dependent(made.calls[1])
    kernel = call.kernel.warmup(**call.arguments, **call.options, grid=(call.programs,))
    assert kernel.asm["ptx"] == kernels.compile_ahead(call, 90).ptx
    assert kernel.metadata.launch_cooperative_grid == call.cooperative == (which == "persistent")
    assert kernel.metadata.launch_pdl == call.dependent == (which == "dependent")


# What may be fused, and how it is cut


def test_programs_are_as_many_as_have_work() -> None:
    assert prepared(SHORT).programs < PROGRAMS
    assert prepared(replace(VGG, n=64)).programs == PROGRAMS
    assert kernels.fuse(make(SHORT, torch.float16, "meta").calls, 3).programs == 3


def test_a_multiprocessor_holds_as_many_programs_as_its_least_resource_allows() -> None:
    """By hand, with an H100's numbers: 126 registers take 4096 a warp, and a program has 1 KB of shared memory for itself."""
    h100 = Multiprocessor(65536, 233472, 2048)
    for used, warps, expected in (
        (Compiled("", 25 * 1024, 126, 0), 4, 4),  # registers
        (Compiled("", 100 * 1024, 64, 0), 4, 2),  # shared memory
        (Compiled("", 0, 16, 0), 8, 8),  # threads
        (Compiled("", 228 * 1024, 32, 0), 4, 0),  # none fits
    ):
        assert resident(used, warps, h100) == expected
        check_resident(132 * expected, used, warps, h100, 132)
        with pytest.raises(Unavailable, match=rf"{132 * expected + 1} programs wait for one another, and this GPU holds {132 * expected}"):
            check_resident(132 * expected + 1, used, warps, h100, 132)


def test_scratch_is_shared() -> None:
    tensors = prepared(VGG).tensors["tensors"]
    assert len({id(layer[5]) for layer in tensors[:-1]}) == len({id(layer[6]) for layer in tensors[:-1]}) == 1


def test_defaults_and_spaces_have_the_common_warps() -> None:
    for shape in [(1, 8, 9), (4, 512, 4608), (1024, 64, 576), (65536, 64, 576), (10**6, 64, 36)]:
        for itemsize in (2, 4):
            space = persistent_space(*shape, itemsize)
            assert space[0] == persistent_default(*shape, itemsize)
            assert len(set(space)) == len(space) <= 30
            assert set(space[1:]) <= set(gemm_space(*shape, itemsize))
            assert {config.warps for config in space} == {PERSISTENT_WARPS}
    for images in (1, 64, 10**5):
        assert window_default(images, 61, PERSISTENT_WARPS).warps == head_default(images, 10, 61).warps == PERSISTENT_WARPS


def test_layers_are_data() -> None:
    layers = persistent.CASES[2].layers
    assert persistent.decode(encode(layers)) == list(layers)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "write them with `encode`"),
        ('[{"kind": "conv2d"}]', "write them with `encode`"),
        ("[3]", "write them with `encode`"),
        ("[]", "there are no layers"),
        (encode([Layer("maxpool", 0)]), r"layer 0 reads layers \(0, -1\)"),
        (encode([Layer("maxpool", -1), Layer("conv2d", 0, 8, residual=1)]), r"layer 1 reads layers \(0, 1\)"),
        ('[{"kind": "attention", "source": -1}]', "not 'attention'"),
        ('[{"kind": "linear", "source": -1, "pool": true, "residual": 0}]', "linear has no pool and no residual"),
    ],
)
def test_what_are_no_layers_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        persistent.decode(text)


def test_misfits_are_refused() -> None:
    made = make(CHAIN, torch.float32, "cpu")
    y, arguments, calls = made.outputs[-1], made.arguments, made.calls
    with pytest.raises(BadSetting, match="cannot do nothing"):
        kernels.fuse([])
    with pytest.raises(BadSetting, match=r"_gemm \(8 warps\).*the same warps"):
        kernels.fuse([*calls, replace(calls[0], warps=8)])
    with pytest.raises(BadSetting, match="neither dependent nor persistent"):
        kernels.fuse([kernels.dependent(calls[0])])
    with pytest.raises(BadSetting, match="neither dependent nor persistent"):
        kernels.fuse([kernels.fuse(calls)])
    with pytest.raises(BadSetting, match="it has no such form"):
        kernels.dependent(kernels.fuse(calls))
    with pytest.raises(BadSetting, match="4 layers take 3 buffers and 4 configurations"):
        persistent.prepare(y, **arguments, config=[Config(16, 32, 64)])
    with pytest.raises(BadSetting, match="4 layers take 3 buffers and 4 configurations"):
        persistent.prepare(y, **arguments, buffers=made.outputs)
    with pytest.raises(BadSetting, match=r"layer 3 \(pooled_head\) has no weights"):
        persistent.empty(**arguments | {"weights": arguments["weights"][:3]})
    with pytest.raises(BadSetting, match="5 weights and 4 biases for 4 layers"):
        persistent.empty(**arguments | {"weights": [*arguments["weights"], y]})
    with pytest.raises(BadSetting, match="y is"):
        persistent.prepare(y[:, :8].contiguous(), **arguments)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # NaN in partial sums
    interpret_all()
