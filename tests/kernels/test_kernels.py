"""Kernels: against float64 through Triton's interpreter and on a GPU, compiled ahead for three generations, and as operators.

The interpreter must be chosen before kernels are defined, so all its cases run in one process of their own: this file, as a script.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile import kernels
from ltcompile.errors import BadSetting, Unavailable, UnknownName
from ltcompile.kernels import conv2d, depthwise, grouped, linear, maxpool, pooled_head
from ltcompile.kernels._config import Config, gemm_default, gemm_space, head_default, head_space, window_default, window_space
from ltcompile.kernels._epilogue import ACTIVATIONS

NAMES = kernels.names()
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CASES = [
    (name, index, dtype)
    for name in NAMES
    for index in range(len(kernels.load(name).CASES))
    for dtype in TYPES
    if dtype != "bfloat16" or index % 3 == 0  # it differs from float16 in no shape
]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def call(name: str, arguments: dict[str, Any]) -> Tensor:
    """The operator."""
    y: Tensor = getattr(kernels.load(name), name)(**arguments)
    return y


def to(arguments: dict[str, Any], **how: Any) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(part) for part in value]
        return value.to(**how) if isinstance(value, Tensor) else value

    return {key: moved(value) for key, value in arguments.items()}


def check(name: str, index: int, dtype: torch.dtype, device: str) -> None:
    """A kernel agrees with its reference in float64, writes all of its output and keeps padded lanes zero, launch after launch."""
    torch.manual_seed(index)
    module = kernels.load(name)
    case = module.CASES[index]
    arguments = module.sample(case, dtype, device)
    expected = module.reference(**to(arguments, dtype=torch.float64))
    y = module.empty(**arguments)
    prepared = module.prepare(y, **arguments, config=case.config)
    for _ in range(2 if prepared.constants.get("SPLIT_K", 1) > 1 else 1):  # a split sum leaves its counters as they were
        y.fill_(float("nan"))
        if "partial" in prepared.tensors:
            prepared.tensors["partial"].fill_(float("nan"))
        kernels.launch(prepared)
        tolerance = module.TOL[dtype]
        torch.testing.assert_close(y.double(), expected, rtol=2 * tolerance, atol=tolerance)
        assert y[..., case.lanes :].count_nonzero() == 0


def check_nan(device: str) -> None:
    """A pixel of NaN spoils the outputs that read it, through activation and pooling, and no other: neither padding nor a step's rest reads."""
    case = conv2d.Case(2, 6, 6, 13, 13, pool=True, config=Config(32, 16, 32, split_k=2))
    arguments = conv2d.sample(case, torch.float32, device)
    arguments["x"][0, 3, 3] = float("nan")
    y = conv2d.empty(**arguments)
    kernels.launch(conv2d.prepare(y, **arguments, config=case.config))
    expected = conv2d.reference(**to(arguments, device="cpu")).to(device)  # a GPU's may be computed in TF32
    expected[..., 13:] = y[..., 13:]  # NaN times a zero weight is NaN
    assert 0 < expected.isnan().sum() < expected.numel() / 2
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


# Through the interpreter


def interpret_all() -> None:
    """Every case and law; prints a line of JSON, what went wrong by name."""
    failures: dict[str, str | None] = {}
    for name, index, dtype in CASES:
        try:
            check(name, index, TYPES[dtype], "cpu")
            failures[f"{name} {index} {dtype}"] = None
        except Exception as error:
            failures[f"{name} {index} {dtype}"] = f"{type(error).__name__}: {error}"
    try:
        check_nan("cpu")
        failures["nan"] = None
    except AssertionError as error:
        failures["nan"] = str(error) or "AssertionError"
    print(json.dumps(failures))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failures: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return failures


@pytest.mark.parametrize(("name", "index", "dtype"), CASES)
def test_interpreted_kernel_agrees_with_float64(interpreted: dict[str, str | None], name: str, index: int, dtype: str) -> None:
    assert interpreted[f"{name} {index} {dtype}"] is None


def test_interpreted_nan_goes_where_it_should(interpreted: dict[str, str | None]) -> None:
    assert interpreted["nan"] is None


# On a GPU


class TestOnGpu:
    pytestmark = gpu

    @pytest.mark.parametrize(("name", "index", "dtype"), CASES)
    def test_kernel_agrees_with_float64(self, name: str, index: int, dtype: str) -> None:
        check(name, index, TYPES[dtype], "cuda")

    def test_nan_goes_where_it_should(self) -> None:
        check_nan("cuda")

    @pytest.mark.parametrize("name", NAMES)
    def test_operator_agrees_with_the_cpu_compiled_and_captured(self, name: str) -> None:
        module = kernels.load(name)
        arguments = module.sample(module.CASES[0], torch.float16, "cuda")
        expected = call(name, to(arguments, device="cpu"))
        tolerance = {"rtol": 2 * module.TOL[torch.float16], "atol": module.TOL[torch.float16]}
        torch.testing.assert_close(call(name, arguments).cpu(), expected, **tolerance)
        torch.testing.assert_close(torch.compile(Calling(name, arguments))(arguments["x"]).cpu(), expected, **tolerance)
        y = module.empty(**arguments)
        prepared = module.prepare(y, **arguments)
        kernels.launch(prepared)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kernels.launch(prepared)
        y.fill_(float("nan"))
        graph.replay()
        torch.testing.assert_close(y.cpu(), expected, **tolerance)


# What the kernels must be equal to: torch's own layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_packed_layers_are_torchs_layers(activation: str, bias: bool) -> None:
    torch.manual_seed(0)
    x, act = torch.randn(2, 12, 9, 7), ACTIVATIONS[activation]
    rest = {"residual": None, "kernel": [3, 5], "stride": [2, 1], "padding": [1, 2], "activation": activation}
    with torch.no_grad():
        layer = nn.Conv2d(12, 37, (3, 5), (2, 1), (1, 2), bias=bias)
        y = call("conv2d", {"x": kernels.nhwc(x), **packed(conv2d.pack, layer), **rest, "channels": 37, "pool": False})
        torch.testing.assert_close(kernels.nchw(y, 37), act(layer(x)), rtol=1e-5, atol=1e-5)

        extra = torch.randn(2, 37, 5, 7)
        rest["residual"] = kernels.nhwc(extra)
        y = call("conv2d", {"x": kernels.nhwc(x), **packed(conv2d.pack, layer), **rest, "channels": 37, "pool": True})
        torch.testing.assert_close(kernels.nchw(y, 37), F.max_pool2d(act(layer(x) + extra), 2), rtol=1e-5, atol=1e-5)

        layer = nn.Conv2d(12, 12, (3, 5), (2, 1), (1, 2), groups=12, bias=bias)
        rest["residual"] = None
        y = call("depthwise", {"x": kernels.nhwc(x), **packed(depthwise.pack, layer), **rest, "channels": 12, "pool": True})
        torch.testing.assert_close(kernels.nchw(y, 12), F.max_pool2d(act(layer(x)), 2), rtol=1e-5, atol=1e-5)

        dense = nn.Linear(12, 37, bias=bias)
        y = call(
            "linear", {"x": kernels.nhwc(x)[:, 0, 0].contiguous(), **packed(linear.pack, dense), "channels": 37, "activation": activation}
        )
        torch.testing.assert_close(y[:, :37], act(dense(x[:, :, 0, 0])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("groups", "group_in", "group_out"), [(12, 1, 1), (7, 5, 3), (3, 13, 37), (2, 61, 53), (9, 4, 16), (1, 13, 24)])
def test_packed_groups_are_torchs_groups(groups: int, group_in: int, group_out: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, groups * group_in, 5, 4)
    layer = nn.Conv2d(groups * group_in, groups * group_out, 3, padding=1, groups=groups)
    w, bias = grouped.pack(layer.weight.detach(), layer.bias, groups, torch.float32)
    geometry = [3, 3], [1, 1], [1, 1]
    y = grouped.grouped(kernels.nhwc(x), w, bias, None, *geometry, groups, groups * group_in, groups * group_out, "relu", False)
    torch.testing.assert_close(kernels.nchw(y, groups * group_out), layer(x).relu(), rtol=1e-5, atol=1e-5)


def test_head_and_pooling_are_torchs() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(3, 37, 7, 5) - 2, nn.Linear(37, 10)
    y = call("pooled_head", {"x": kernels.nhwc(x), **packed(pooled_head.pack, layer)})
    torch.testing.assert_close(y[:, :10], layer(x.mean((2, 3))), rtol=1e-5, atol=1e-5)
    y = maxpool.maxpool(kernels.nhwc(x), [3, 2], [2, 1], [1, 0])
    torch.testing.assert_close(kernels.nchw(y, 37), F.max_pool2d(x, (3, 2), (2, 1), (1, 0)), rtol=0, atol=0)


def packed(pack: Any, layer: nn.Conv2d | nn.Linear) -> dict[str, Tensor]:
    return dict(zip(("w", "bias"), pack(layer.weight, layer.bias, torch.float32), strict=True))


# Compiled ahead of time

LAYERS = [  # kernel, case: layers of VGG-16, ResNet and MobileNet, whole and pruned, for one image and for many
    ("conv2d", conv2d.Case(64, 32, 32, 3, 64)),
    ("conv2d", conv2d.Case(32, 224, 224, 3, 64, (7, 7), (2, 2), (3, 3))),
    ("conv2d", conv2d.Case(1024, 32, 32, 61, 53, residual=True)),
    ("conv2d", conv2d.Case(1024, 32, 32, 64, 64, pool=True)),
    ("conv2d", conv2d.Case(64, 16, 16, 61, 37, activation="none")),
    ("conv2d", conv2d.Case(1, 2, 2, 512, 512)),
    ("conv2d", conv2d.Case(1, 4, 4, 256, 509, pool=True)),
    ("conv2d", conv2d.Case(32, 28, 28, 72, 144, (1, 1), padding=(0, 0), activation="gelu", residual=True)),
    ("linear", linear.Case(1, 512, 10)),
    ("linear", linear.Case(1024, 512, 512, "relu")),
    ("grouped", grouped.Case(32, 28, 28, 32, 7, 5)),
    ("depthwise", depthwise.Case(64, 28, 28, 144)),
    ("depthwise", depthwise.Case(1, 14, 14, 61, (5, 5), padding=(2, 2), activation="hardswish")),
    ("pooled_head", pooled_head.Case(1, 7, 7, 512, 1000)),
    ("pooled_head", pooled_head.Case(256, 2, 2, 61, 10)),
    ("maxpool", maxpool.Case(32, 112, 112, 64)),
]
OTHER_LAYERS = [LAYERS[index] for index in (2, 5, 9, 11, 14)]
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def compiled(
    name: str, case: Any, dtype: torch.dtype, capability: int, config: Config | None = None
) -> tuple[kernels.Call, kernels.Compiled]:
    module = kernels.load(name)
    arguments = module.sample(case, dtype, "meta")
    prepared = module.prepare(module.empty(**arguments), **arguments, config=config)
    return prepared, kernels.compile_ahead(prepared, capability)


def copies(ptx: str) -> list[int]:
    """The bytes of every asynchronous copy into shared memory."""
    return [int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x[0-9a-f]+|\d+)", ptx)]


@pytest.mark.parametrize(("index", "capability"), [(5, 90), (12, 90), (13, 90), (15, 90), (5, 100), (14, 100)])
def test_dependent_calls_wait_before_they_read(index: int, capability: int) -> None:
    name, case = LAYERS[index]
    module = kernels.load(name)
    arguments = module.sample(case, torch.float16, "meta")
    prepared = kernels.dependent(module.prepare(module.empty(**arguments), **arguments))
    assert prepared.dependent
    made = kernels.compile_ahead(prepared, capability)
    before, wait, after = made.ptx.partition("griddepcontrol.wait")
    assert "griddepcontrol.launch_dependents" in before
    assert wait
    assert wait not in after
    assert not re.search(r"\bbra\b|\b(?:ld|st|atom)\.global|\bcp\.async", before)
    assert re.search(r"\bst\.global", after)
    assert made.stack_bytes == 0


def test_dependent_calls_are_refused_where_there_is_no_dependence() -> None:
    arguments = arguments_of()
    prepared = conv2d.prepare(conv2d.empty(**arguments), **arguments)
    with pytest.raises(Unavailable, match=r"compute capability 8\.0"):
        kernels.compile_ahead(kernels.dependent(prepared), 80)


@pytest.mark.parametrize("capability", MATRIX)
@pytest.mark.parametrize(("name", "case"), LAYERS, ids=str)
def test_defaults_compile_without_spills_and_with_wide_loads(name: str, case: Any, capability: int) -> None:
    prepared, made = compiled(name, case, torch.float16, capability)
    assert made.stack_bytes == 0
    assert made.shared_bytes <= 160 * 1024
    assert "griddepcontrol" not in made.ptx
    assert not re.findall(r"ld\.global\S*\.[bu](?:8|16)\b", made.ptx)  # nothing is read a lane at a time
    if name in ("conv2d", "linear", "grouped"):
        assert MATRIX[capability] in made.ptx
        image = prepared.constants["IN_STRIDE"] == 4
        deep = int(prepared.constants["WINDOW"]) * int(prepared.constants["R"]) * int(prepared.constants["S"]) > prepared.constants["BK"]
        if deep:  # one step needs no pipeline
            assert min(copies(made.ptx)) >= (8 if image or name == "grouped" else 16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "case"), OTHER_LAYERS, ids=str)
def test_other_types_compile_without_spills(name: str, case: Any, dtype: str) -> None:
    _, made = compiled(name, case, TYPES[dtype], 90)
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


@pytest.mark.parametrize(("name", "case", "config"), spaces()[:: 1 if os.environ.get("LTCOMPILE_SWEEP") else 30])
def test_search_space_compiles(name: str, case: Any, config: Config) -> None:
    """A sample; all of it with LTCOMPILE_SWEEP=1. A register pair on the stack is the assembler's choice, more would be a spill."""
    made = compiled(name, case, torch.float16, 90, config)[1]
    assert made.stack_bytes <= 8
    assert made.shared_bytes <= 160 * 1024


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


# As operators


class Calling(nn.Module):
    """A network of one operator, between two of torch's."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.operator = getattr(kernels.load(name), name)
        self.rest = {key: value for key, value in arguments.items() if key != "x"}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.operator(x + 0, **self.rest) * 1
        return y


@pytest.mark.parametrize("name", NAMES)
def test_operator_is_sound(name: str) -> None:
    module = kernels.load(name)
    for case in module.CASES[:2]:
        arguments = module.sample(case, torch.float32)
        torch.library.opcheck(getattr(module, name), (), arguments)
        made = call(name, to(arguments, device="meta"))
        assert (made.shape, made.dtype, made.device.type) == (call(name, arguments).shape, torch.float32, "meta")


@pytest.mark.parametrize("name", NAMES)
def test_operator_exports_for_any_batch_and_compiles(name: str) -> None:
    module = kernels.load(name)
    arguments = module.sample(module.CASES[0], torch.float32)
    network, x = Calling(name, arguments), arguments["x"].repeat(2, *[1] * (arguments["x"].ndim - 1))
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    assert f"torch.ops.ltcompile.{name}.default" in exported.graph_module.code
    five = x[:1].repeat(5, *[1] * (x.ndim - 1))
    torch.testing.assert_close(exported.module()(five), network(five), rtol=0, atol=0)
    torch.testing.assert_close(torch.compile(network, backend="aot_eager", fullgraph=True)(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "persistent"])  # which leaves a compiler nothing to fuse
def test_compilers_see_the_kernel_and_what_it_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CUDA device the operator becomes its Triton kernel, of which torch knows that it writes the output and its own scratch."""
    import triton
    from torch._functorch.aot_autograd import aot_export_joint_simple
    from torch._subclasses.fake_tensor import FakeTensorMode
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    module = kernels.load(name)
    arguments = module.sample(module.CASES[0], torch.float16)
    tensors = [key for key, value in arguments.items() if isinstance(value, Tensor)]
    with FakeTensorMode():
        fakes = [torch.empty(arguments[key].shape, dtype=arguments[key].dtype, device="cuda") for key in tensors]
    exported: Any = aot_export_joint_simple(
        lambda *given: (call(name, arguments | dict(zip(tensors, given, strict=True))),), fakes, trace_joint=False
    )
    graph = (exported[0] if isinstance(exported, tuple) else exported).graph
    (node,) = [node for node in graph.nodes if "triton_kernel_wrapper_functional" in str(node.target)]
    assert "y" in node.kwargs["tensors_to_clone"]
    assert set(node.kwargs["tensors_to_clone"]) <= {"y", "partial", "arrived"}


# The package


def test_registry_offers_complete_kernels() -> None:
    assert {"conv2d", "depthwise", "grouped", "linear", "maxpool", "persistent", "pooled_head"} <= set(NAMES)
    for name in NAMES:
        module = kernels.load(name)
        assert module.CASES
        assert set(module.TOL) == set(TYPES.values())
        assert module.__doc__.startswith("y[")
        assert "Floor:" in module.__doc__
    with pytest.raises(UnknownName, match="Did you mean conv2d"):
        kernels.load("conv")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, ltcompile.kernels; print('torch' in sys.modules, 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]


def arguments_of(**changed: Any) -> dict[str, Any]:
    return conv2d.sample(conv2d.Case(2, 4, 4, 13, 24), torch.float32) | changed


def test_layout_pads_with_zeros_and_back() -> None:
    x = torch.randn(2, 13, 3, 5)
    laid = kernels.nhwc(x)
    assert laid.shape == (2, 3, 5, 16)
    assert laid.is_contiguous()
    assert laid[..., 13:].count_nonzero() == 0
    assert torch.equal(kernels.nchw(laid, 13), x)
    assert kernels.nhwc(x[:, :3], 4).shape[-1] == 4
    assert [kernels.padded(c, torch.float16) for c in (1, 8, 9, 61)] == [8, 8, 16, 64]
    with pytest.raises(BadSetting, match="convert the network"):
        kernels.padded(3, torch.float64)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"activation": "tanh"}, "no activation 'tanh'"),
        ({"x": torch.zeros(2, 4, 4, 16, dtype=torch.float16)}, "pack the weights"),
        ({"x": torch.zeros(2, 4, 4, 24)}, "pack it with this input's stride"),
        ({"x": torch.zeros(2, 4, 4, 13), "w": torch.zeros(117, 24)}, "lay it out with `nhwc`"),
        ({"x": torch.zeros(2, 4, 16, 4).transpose(2, 3)}, "not contiguous"),
        ({"x": torch.zeros(2, 1, 1, 16), "padding": [0, 0]}, "does not fit into"),
        ({"x": torch.zeros(2, 1, 1, 16), "pool": True}, "is empty"),
        ({"x": torch.empty(2**16, 64, 64, 16, device="meta")}, "split the batch"),
        ({"residual": torch.zeros(2, 4, 4, 16)}, "residual is"),
        ({"config": Config(16, 64, 8)}, "block_k is at least 16"),
        ({"config": Config(2, 64, 16), "pool": True}, "block_m at least 4"),
    ],
)
def test_misfits_are_refused(changed: dict[str, Any], says: str) -> None:
    arguments = arguments_of(**changed)
    config = arguments.pop("config", None)
    with pytest.raises(BadSetting, match=says):
        conv2d.prepare(conv2d.empty(**arguments), **arguments, config=config)


def test_weights_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(BadSetting, match="cannot hold the 5 channels"):
        conv2d.pack(torch.zeros(8, 5, 3, 3), None, torch.float16, 4)
    with pytest.raises(BadSetting, match="use `grouped`"):
        depthwise.pack(torch.zeros(8, 2, 3, 3), None, torch.float16)
    with pytest.raises(BadSetting, match="do not divide"):
        grouped.pack(torch.zeros(8, 2, 3, 3), None, 3, torch.float16)
    with pytest.raises(BadSetting, match="powers of two"):
        Config(48, 64)


def test_other_kernels_refuse_misfits() -> None:
    arguments = depthwise.sample(depthwise.CASES[0], torch.float32)
    with pytest.raises(BadSetting, match="a depthwise 5x5"):
        depthwise.prepare(depthwise.empty(**arguments), **arguments | {"kernel": [5, 5], "padding": [2, 2]})
    with pytest.raises(BadSetting, match="more than half"):
        x = torch.zeros(1, 4, 4, 8)
        maxpool.prepare(maxpool.empty(x, [2, 2], [1, 1], [2, 2]), x, [2, 2], [1, 1], [2, 2])
    arguments = grouped.sample(grouped.CASES[0], torch.float32)
    with pytest.raises(BadSetting, match="pack them again"):
        grouped.prepare(grouped.empty(**arguments), **arguments, config=Config(64, 64, 32))
    with pytest.raises(BadSetting, match="not packed for 3 groups"):
        grouped.prepare(grouped.empty(**arguments), **arguments | {"groups": 3, "in_channels": 99, "channels": 99})
    with pytest.raises(BadSetting, match="an input of"):
        linear.prepare(torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(16, 8), torch.zeros(8), 8, "none")
    with pytest.raises(BadSetting, match="an input of"):
        pooled_head.prepare(torch.zeros(2, 8), torch.zeros(2, 2, 2, 8), torch.zeros(16, 8), torch.zeros(8))


def test_without_a_gpu_launching_says_so() -> None:
    arguments = arguments_of()
    with pytest.raises(Unavailable, match="on a CUDA device, they are on cpu"):
        kernels.launch(conv2d.prepare(conv2d.empty(**arguments), **arguments))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # NaN in partial sums
    interpret_all()
