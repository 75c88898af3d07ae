# mypy: disable-error-code="import-untyped,untyped-decorator"
"""y[n, ...] = f_L(... f_2(f_1(x))): several calls as one launch, with a barrier of all programs between them.

Each f_i is one of the other kernels, with blocks of its own. Its work is the items j that it launches as programs j by itself. P programs,
all resident at once, take the items j, j + P, ... of a layer, wait for one another, and continue with the next layer. The results are
those of separate launches, to the bit.

Floor: x, weights and residuals read once, y written once; the flop of all layers; L - 1 barriers in place of L - 1 launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltcompile.errors import InvalidSetting
from ltcompile.kernels._config import PROGRAMS
from ltcompile.kernels._launch import Call, interpreted


@triton.jit
def _barrier(arrived: tl.tensor, COUNT: tl.constexpr) -> None:
    """Wait until COUNT programs have arrived. What any of them wrote before is then visible to all.

    Program 0 adds 2^31 - (COUNT - 1) and each other one adds 1: the last arrival flips the sign, and the lower bits are zero again. So the
    counter is never reset (as in the barrier of CUDA's cooperative groups). One thread releases what the threads of its program have
    written, and one acquires, which empties the multiprocessor's L1 for all of its threads: plain loads need no bypass.
    """
    tl.debug_barrier()
    before = tl.atomic_add(arrived, tl.where(tl.program_id(0) == 0, (1 - COUNT) ^ -(2**31), 1), sem="release")
    now = before
    while (now ^ before) >= 0:
        now = tl.atomic_add(arrived, 0, sem="acquire")  # one value for all threads, so that they leave together
    tl.debug_barrier()


@triton.jit
def _persistent(
    tensors: tl.tuple,  # of each layer
    kernels: tl.tuple,
    constants: tl.tuple,  # of each layer
    items: tl.tuple,  # how many each layer has
    arrived: tl.tensor,  # (1,) int32, zero before the first launch, and left as the last one ended
    COUNT: tl.constexpr,
) -> None:
    for i in tl.static_range(len(items)):
        if i > 0:
            _barrier(arrived, COUNT)
        for turn in range((items[i] + COUNT - 1) // COUNT):
            first = turn * COUNT
            if first + tl.program_id(0) < items[i]:
                kernels[i](*tensors[i], first, *constants[i])


def fuse(calls: Sequence[Call], programs: int | None = None) -> Call:
    """One call that does what `calls` do one after the other. It may be launched repeatedly, but not twice at the same time.

    Args:
        calls: with the same warps, neither dependent nor made by `fuse`.
        programs: how many share the work; a GPU refuses more than it can hold at once. By default one a multiprocessor, or fewer where
            no layer has work for them. In Triton's interpreter it is always one, because programs run one after the other there.

    Raises:
        InvalidSetting: there are no calls, or they are not as above.
    """
    if len({call.warps for call in calls}) != 1 or any(call.cooperative or call.dependent for call in calls):
        listed = ", ".join(f"{call.kernel.__name__} ({call.warps} warps)" for call in calls)
        raise InvalidSetting(f"cannot fuse {listed or 'no calls'}: calls need the same warps, and may be neither dependent nor persistent")
    calls = _sharing(_sharing(calls, "partial"), "arrived")
    given = [[call.arguments[name] for name in call.kernel.arg_names if name != "first"] for call in calls]
    x = calls[0].tensors["x"]
    multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else PROGRAMS
    count = 1 if interpreted(_persistent) else programs or min(multiprocessors, max(call.programs for call in calls))
    return Call(
        kernel=_persistent,
        programs=count,
        tensors={
            "tensors": tuple(tuple(value for value in values if isinstance(value, Tensor)) for values in given),
            "arrived": x.new_zeros(1, dtype=torch.int32),
        },
        numbers={},
        constants={
            "kernels": tuple(call.kernel for call in calls),
            "constants": tuple(tuple(tl.constexpr(value) for value in values if not isinstance(value, Tensor)) for values in given),
            "items": tuple(tl.constexpr(call.programs) for call in calls),
            "COUNT": count,
        },
        warps=calls[0].warps,
        stages=1,  # pipelined loops set theirs themselves
        cooperative=True,
    )


def _sharing(calls: Sequence[Call], name: str) -> list[Call]:
    """`calls` in which all tensors of this name are the largest of them; barriers separate their uses."""
    largest = max((call.tensors[name] for call in calls if name in call.tensors), key=Tensor.numel, default=None)
    return [replace(call, tensors=call.tensors | {name: largest}) if name in call.tensors else call for call in calls]
