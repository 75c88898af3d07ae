"""What kernels must satisfy on a device: the CPU through Triton's interpreter, or a GPU.

As a script, this file checks the laws in the interpreter, which must be chosen before kernels are defined, and prints a line of JSON.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from kernel_cases import CASES, TOLERANCES, Conv, moved
from kernel_networks import CHAIN, NETWORKS, Network, build

from ltcompile import kernels
from ltcompile.errors import InvalidSetting
from ltcompile.kernels import Config, conv2d

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
RUNS = [
    (name, index, dtype)
    for name, cases in CASES.items()
    for index in range(len(cases))
    for dtype in TYPES
    if dtype != "bfloat16" or index % 3 == 0  # it differs from float16 in no shape
]


def check(name: str, case: Any, dtype: torch.dtype, device: str) -> None:
    """A kernel agrees with its reference in float64, writes all of its output and keeps padded lanes zero, launch after launch."""
    torch.manual_seed(0)
    module, arguments, tolerance = kernels.load(name), case.sample(dtype, device), TOLERANCES[name][dtype]
    expected, y = module.reference(moved(arguments, dtype=torch.float64)), arguments.empty()
    prepared = module.prepare(y, arguments, case.config)
    for _ in range(2 if prepared.constants.get("SPLIT_K", 1) > 1 else 1):  # a split sum leaves its counters as they were
        y.fill_(float("nan"))
        if "partial" in prepared.tensors:
            prepared.tensors["partial"].fill_(float("nan"))
        kernels.launch(prepared)
        torch.testing.assert_close(y.double(), expected, rtol=2 * tolerance, atol=tolerance)
        assert y[..., case.lanes :].count_nonzero() == 0


def check_nan(device: str) -> None:
    """A pixel of NaN spoils the outputs that read it, through activation and pooling, and no other: neither padding nor a step's rest reads."""
    case = Conv(2, 6, 6, 13, 13, pool=True, config=Config(32, 16, 32, split_k=2))
    torch.manual_seed(0)
    arguments = case.sample(torch.float32, device)
    arguments.x[0, 3, 3] = float("nan")
    y = arguments.empty()
    kernels.launch(conv2d.prepare(y, arguments, case.config))
    expected = conv2d.reference(moved(arguments, device="cpu")).to(device)  # a GPU's may be computed in TF32
    expected[..., 13:] = y[..., 13:]  # NaN times a zero weight is NaN
    assert 0 < expected.isnan().sum() < expected.numel() / 2
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def check_fused(network: Network, device: str) -> None:
    """Fused calls, launched twice, give what the calls give one after the other."""
    built = build(network, torch.float16, device)
    built.clear()
    for call in built.calls:
        kernels.launch(call)
    expected, fused = built.results(), kernels.fuse(built.calls)
    for _ in range(2):  # the barrier's counter begins where it ended
        built.clear()
        kernels.launch(fused)
        built.check(expected)


def check_memory(device: str) -> None:
    """The layers of a chain may write into two buffers in turn."""
    apart = build(CHAIN, torch.float16, device)
    halves = apart.x.new_full((2, max(out.numel() for out in apart.outputs)), float("nan"))
    shared = build(CHAIN, torch.float16, device, lambda i, y: halves[i % 2, : y.numel()].view(y.shape))
    for built in (apart, shared):
        kernels.launch(kernels.fuse(built.calls))
    torch.testing.assert_close(shared.outputs[-1], apart.outputs[-1], rtol=0, atol=0)


def check_no_dependence() -> None:
    """Interpreted kernels have no dependent form."""
    with pytest.raises(InvalidSetting, match="interpreter runs it"):
        kernels.dependent(build(CHAIN, torch.float32, "cpu").calls[0])


def in_interpreter(name: str, index: int, dtype: str) -> bool:
    """Whether the slow interpreter runs a case: half precision differs from float32 in default configurations and, bfloat16, in one cast."""
    with_config = [i for i, case in enumerate(CASES[name]) if case.config]
    float16 = index == with_config[0] or (index not in with_config and index % 2 == 0)
    return dtype == "float32" or index == 0 or (dtype == "float16" and float16)


INTERPRETED = [(name, index, dtype) for name, index, dtype in RUNS if in_interpreter(name, index, dtype)]
LAWS: dict[str, Any] = {
    **{
        f"{name} {i} {dtype}": lambda n=name, i=i, dtype=dtype: check(n, CASES[n][i], TYPES[dtype], "cpu") for name, i, dtype in INTERPRETED
    },
    **{f"fused {name}": lambda name=name: check_fused(NETWORKS[name], "cpu") for name in ("split sums", "residuals", "flattened")},
    "nan": lambda: check_nan("cpu"),
    "memory": lambda: check_memory("cpu"),
    "no dependence": check_no_dependence,
}


def main() -> None:
    """Print what went wrong, law by law."""
    from interpreter import interpret_quickly

    interpret_quickly()
    warnings.simplefilter("ignore")  # NaN in partial sums
    failures: dict[str, str | None] = {}
    for name, law in LAWS.items():
        try:
            law()
            failures[name] = None
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(failures))


if __name__ == "__main__":
    main()
