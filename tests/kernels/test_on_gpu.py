"""Kernels on a GPU: against float64, compiled and captured, fused and dependent."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import CASES, TOLERANCES, Calling, call, moved
from kernel_laws import RUNS, TYPES, check, check_fused, check_memory, check_nan
from kernel_networks import NETWORKS, VGG, Built, Layer, Network, build

from ltcompile import kernels
from ltcompile.errors import Unavailable

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("name", "index", "dtype"), RUNS)
def test_kernel_agrees_with_float64(name: str, index: int, dtype: str) -> None:
    check(name, CASES[name][index], TYPES[dtype], "cuda")


def test_nan_goes_where_it_should() -> None:
    check_nan("cuda")


@pytest.mark.parametrize("name", CASES)
def test_operator_agrees_with_the_cpu_compiled_and_captured(name: str) -> None:
    module, arguments = kernels.load(name), CASES[name][0].sample(torch.float16, "cuda")
    expected, tolerance = call(name, moved(arguments, device="cpu")), TOLERANCES[name][torch.float16]
    close = {"rtol": 2 * tolerance, "atol": tolerance}
    torch.testing.assert_close(call(name, arguments).cpu(), expected, **close)
    torch.testing.assert_close(torch.compile(Calling(name, arguments))(arguments.x).cpu(), expected, **close)
    y = arguments.empty()
    graph = captured([module.prepare(y, arguments)])
    y.fill_(float("nan"))
    graph.replay()
    torch.testing.assert_close(y.cpu(), expected, **close)


def captured(calls: list[kernels.Call]) -> torch.cuda.CUDAGraph:
    """A graph of these launches, all of them compiled before."""
    for one in calls:
        kernels.launch(one)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in calls:
            kernels.launch(one)
    return graph


def check_replays(built: Built, calls: list[kernels.Call], replays: int) -> None:
    """On input after input, a graph of `calls` gives what the network's own calls give, launched plainly."""
    graph = captured(calls)
    for _ in range(replays):
        built.x.copy_(built.x.roll(1, 1) * -1.01)
        built.clear()
        graph.replay()
        found = built.results()
        built.clear()
        for one in built.calls:
            kernels.launch(one)
        built.check(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_is_one_call_after_the_other(name: str) -> None:
    check_fused(NETWORKS[name], "cuda")


def test_memory_is_used_again() -> None:
    check_memory("cuda")


@pytest.mark.parametrize("programs", [None, 7, 1])
def test_replays_of_a_graph_agree(programs: int | None) -> None:
    built = build(VGG, torch.float16, "cuda")
    check_replays(built, [kernels.fuse(built.calls, programs)], 100)


def test_barrier_holds_all_programs() -> None:
    """Every layer carries a maximum one row further, between programs; one that runs ahead would miss it."""
    layers = tuple(Layer("maxpool", i - 1, kernel=(3, 1), padding=(1, 0)) for i in range(16))
    built = build(Network(4, 64, 64, 64, layers), torch.float16, "cuda")
    fused = kernels.fuse(built.calls)
    assert fused.programs > 100
    check_replays(built, [fused], 200)


def test_barrier_is_crossed_next_to_another_kernel() -> None:
    """Products on another stream take multiprocessors away from it; without a cooperative launch some programs would wait for others
    that never start."""
    built, other = build(VGG, torch.float16, "cuda"), torch.cuda.Stream()
    a, fused = torch.randn(4096, 4096, device="cuda").half(), kernels.fuse(built.calls)
    kernels.launch(fused)
    expected = built.results()
    a @ a
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(other):
            for _ in range(4):
                a @ a
        built.outputs[-1].fill_(float("nan"))
        kernels.launch(fused)
    torch.cuda.synchronize()
    built.check(expected)


def test_more_programs_than_fit_are_refused() -> None:
    with pytest.raises(Unavailable, match="programs wait for one another, and this GPU holds"):
        kernels.launch(kernels.fuse(build(VGG, torch.float16, "cuda").calls, 100_000))


def test_dependent_calls_agree() -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    built = build(VGG, torch.float16, "cuda")
    check_replays(built, [kernels.dependent(call) for call in built.calls], 100)
