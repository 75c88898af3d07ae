"""Kernels as operators of torch, equal to torch's own layers; and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import CASES, Calling, Conv, call, moved, operator
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile import kernels
from ltcompile.errors import InvalidSetting, Unavailable, UnknownName
from ltcompile.kernels import ACTIVATIONS, Config, conv2d, depthwise, grouped, linear, maxpool, pooled_head

NAMES = kernels.names()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_packed_layers_are_torchs_layers(activation: str, bias: bool) -> None:
    torch.manual_seed(0)
    x, act = torch.randn(2, 12, 9, 7), ACTIVATIONS[activation]
    geometry = {"kernel": [3, 5], "stride": [2, 1], "padding": [1, 2], "activation": activation}

    def convolved(name: str, layer: nn.Module, pool: bool, residual: Tensor | None = None) -> Tensor:
        channels = layer.weight.shape[0]
        settings = geometry | {"channels": channels, "pool": pool, "residual": None if residual is None else kernels.nhwc(residual)}
        return kernels.nchw(operator(name)(kernels.nhwc(x), *packed(name, layer), **settings), channels)

    with torch.no_grad():
        layer, extra = nn.Conv2d(12, 37, (3, 5), (2, 1), (1, 2), bias=bias), torch.randn(2, 37, 5, 7)
        torch.testing.assert_close(convolved("conv2d", layer, False), act(layer(x)), rtol=1e-5, atol=1e-5)
        pooled = F.max_pool2d(act(layer(x) + extra), 2)
        torch.testing.assert_close(convolved("conv2d", layer, True, extra), pooled, rtol=1e-5, atol=1e-5)
        layer = nn.Conv2d(12, 12, (3, 5), (2, 1), (1, 2), groups=12, bias=bias)
        torch.testing.assert_close(convolved("depthwise", layer, True), F.max_pool2d(act(layer(x)), 2), rtol=1e-5, atol=1e-5)
        dense, rows = nn.Linear(12, 37, bias=bias), kernels.nhwc(x)[:, 0, 0].contiguous()
        y = operator("linear")(rows, *packed("linear", dense), channels=37, activation=activation)
        torch.testing.assert_close(y[:, :37], act(dense(x[:, :, 0, 0])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("groups", "group_in", "group_out"), [(12, 1, 1), (7, 5, 3), (3, 13, 37), (2, 61, 53), (9, 4, 16), (1, 13, 24)])
def test_packed_groups_are_torchs_groups(groups: int, group_in: int, group_out: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, groups * group_in, 5, 4)
    layer = nn.Conv2d(groups * group_in, groups * group_out, 3, padding=1, groups=groups)
    w, bias = grouped.pack(layer.weight.detach(), layer.bias, groups, torch.float32)
    channels, geometry = (
        {"in_channels": groups * group_in, "channels": groups * group_out},
        {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]},
    )
    y = operator("grouped")(kernels.nhwc(x), w, bias, None, **geometry, **channels, groups=groups, activation="relu", pool=False)
    torch.testing.assert_close(kernels.nchw(y, groups * group_out), layer(x).relu(), rtol=1e-5, atol=1e-5)


def test_head_and_pooling_are_torchs() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(3, 37, 7, 5) - 2, nn.Linear(37, 10)
    y = operator("pooled_head")(kernels.nhwc(x), *packed("pooled_head", layer))
    torch.testing.assert_close(y[:, :10], layer(x.mean((2, 3))), rtol=1e-5, atol=1e-5)
    y = operator("maxpool")(kernels.nhwc(x), [3, 2], [2, 1], [1, 0])
    torch.testing.assert_close(kernels.nchw(y, 37), F.max_pool2d(x, (3, 2), (2, 1), (1, 0)), rtol=0, atol=0)


def packed(name: str, layer: nn.Module) -> tuple[Tensor, Tensor]:
    pair: tuple[Tensor, Tensor] = kernels.load(name).pack(layer.weight, layer.bias, torch.float32)
    return pair


# As operators


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_operator_is_valid(name: str) -> None:
    for case in CASES[name][:2]:
        arguments = case.sample(torch.float32)
        torch.library.opcheck(operator(name), (), vars(arguments))
        made = call(name, moved(arguments, device="meta"))
        assert (made.shape, made.dtype, made.device.type) == (call(name, arguments).shape, torch.float32, "meta")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_operator_exports_for_any_batch_and_compiles(name: str) -> None:
    arguments = CASES[name][0].sample(torch.float32)
    network, x = Calling(name, arguments), arguments.x.repeat(2, *[1] * (arguments.x.ndim - 1))
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    assert f"torch.ops.ltcompile.{name}.default" in exported.graph_module.code
    five = x[:1].repeat(5, *[1] * (x.ndim - 1))
    torch.testing.assert_close(exported.module()(five), network(five), rtol=0, atol=0)
    torch.testing.assert_close(torch.compile(network, backend="aot_eager", fullgraph=True)(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
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
    arguments = CASES[name][0].sample(torch.float16)
    tensors = {key: value for key, value in vars(arguments).items() if isinstance(value, Tensor)}
    with FakeTensorMode():
        fakes = [torch.empty(value.shape, dtype=value.dtype, device="cuda") for value in tensors.values()]
    exported: Any = aot_export_joint_simple(
        lambda *given: (call(name, replace(arguments, **dict(zip(tensors, given, strict=True)))),), fakes, trace_joint=False
    )
    graph = (exported[0] if isinstance(exported, tuple) else exported).graph
    (node,) = [node for node in graph.nodes if "triton_kernel_wrapper_functional" in str(node.target)]
    assert "y" in node.kwargs["tensors_to_clone"]
    assert set(node.kwargs["tensors_to_clone"]) <= {"y", "partial", "arrived"}


# The package


def test_registry_offers_complete_kernels() -> None:
    assert {"conv2d", "depthwise", "grouped", "linear", "maxpool", "pooled_head"} <= set(NAMES) == set(CASES)
    for name in NAMES:
        module = kernels.load(name)
        assert {"Arguments", "reference", "prepare"} <= vars(module).keys()
        assert module.__doc__.startswith("y[")
        assert "Floor:" in module.__doc__
    with pytest.raises(UnknownName, match="Did you mean conv2d"):
        kernels.load("conv")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, ltcompile.kernels; print('torch' in sys.modules, 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]


def arguments_of(**changed: Any) -> conv2d.Arguments:
    return replace(Conv(2, 4, 4, 13, 24).sample(torch.float32), **changed)


def test_layout_pads_with_zeros_and_back() -> None:
    x = torch.randn(2, 13, 3, 5)
    laid = kernels.nhwc(x)
    assert laid.shape == (2, 3, 5, 16)
    assert laid.is_contiguous()
    assert laid[..., 13:].count_nonzero() == 0
    assert torch.equal(kernels.nchw(laid, 13), x)
    assert kernels.nhwc(x[:, :3], 4).shape[-1] == 4
    assert [kernels.padded(c, torch.float16) for c in (1, 8, 9, 61)] == [8, 8, 16, 64]
    with pytest.raises(InvalidSetting, match="convert the network"):
        kernels.padded(3, torch.float64)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"activation": "tanh"}, "unknown activation 'tanh'"),
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
def test_mismatched_arguments_are_refused(changed: dict[str, Any], says: str) -> None:
    config = changed.pop("config", None)
    arguments = arguments_of(**changed)
    with pytest.raises(InvalidSetting, match=says):
        conv2d.prepare(arguments.empty(), arguments, config)


def test_weights_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="cannot hold the 5 channels"):
        conv2d.pack(torch.zeros(8, 5, 3, 3), None, torch.float16, 4)
    with pytest.raises(InvalidSetting, match="use `grouped`"):
        depthwise.pack(torch.zeros(8, 2, 3, 3), None, torch.float16)
    with pytest.raises(InvalidSetting, match="do not divide"):
        grouped.pack(torch.zeros(8, 2, 3, 3), None, 3, torch.float16)
    with pytest.raises(InvalidSetting, match="powers of two"):
        Config(48, 64)


def test_other_kernels_refuse_mismatched_arguments() -> None:
    arguments = CASES["depthwise"][0].sample(torch.float32)
    with pytest.raises(InvalidSetting, match="a depthwise 5x5"):
        depthwise.prepare(arguments.empty(), replace(arguments, kernel=[5, 5], padding=[2, 2]))
    with pytest.raises(InvalidSetting, match="more than half"):
        window = maxpool.Arguments(torch.zeros(1, 4, 4, 8), [2, 2], [1, 1], [2, 2])
        maxpool.prepare(window.empty(), window)
    arguments = CASES["grouped"][0].sample(torch.float32)
    with pytest.raises(InvalidSetting, match="pack them again"):
        grouped.prepare(arguments.empty(), arguments, Config(64, 64, 32))
    with pytest.raises(InvalidSetting, match="not packed for 3 groups"):
        grouped.prepare(arguments.empty(), replace(arguments, groups=3, in_channels=99, channels=99))
    with pytest.raises(InvalidSetting, match="an input of"):
        linear.prepare(torch.zeros(2, 8), linear.Arguments(torch.zeros(2, 8), torch.zeros(16, 8), torch.zeros(8), 8, "none"))
    with pytest.raises(InvalidSetting, match="an input of"):
        pooled_head.prepare(torch.zeros(2, 8), pooled_head.Arguments(torch.zeros(2, 2, 2, 8), torch.zeros(16, 8), torch.zeros(8)))


def test_without_a_gpu_a_launch_is_refused() -> None:
    arguments = arguments_of()
    with pytest.raises(Unavailable, match="on a CUDA device, they are on cpu"):
        kernels.launch(conv2d.prepare(arguments.empty(), arguments))
