"""Which outputs hold items that the network ranks, such as a detector's proposals or queries: rounding decides the order of equal scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ltcompile.numerics import Items

RANKED = ("aten::topk", "aten::sort")
PICKED = (*RANKED, "torchvision::nms")


class Ranking(TorchDispatchMode):
    """Within it, results of topk, sort and nms are followed, with all that is computed from them."""

    def __init__(self) -> None:
        super().__init__()
        self._picked: dict[int, tuple[Tensor, int]] = {}  # by storage, which each tensor keeps alive: the number of its last ranking
        self._counts: set[int] = set()
        self._rankings = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in RANKED:
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
            self._counts.add(out[0].shape[given.get("dim", -1)])
        if name in PICKED:
            self._rankings += 1
            last = self._rankings
        else:
            last = max((self._last(value) for value in pytree.tree_leaves((args, kwargs))), default=0)
        if last:
            self._picked |= {key: (value, last) for value in pytree.tree_leaves(out) if (key := _storage(value))}
        return out

    def named(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, where one axis alone behind the batch is as long as a ranking, and the values come from it, under a name of `Items`."""
        return {self._name(name, value): value for name, value in outputs.items()}

    def _name(self, name: str, value: Tensor) -> str:
        axes = [axis for axis, size in enumerate(value.shape) if axis and size in self._counts]
        last = self._last(value)
        return Items(name, axes[0], last) if len(axes) == 1 and last else name

    def _last(self, value: Any) -> int:
        """The number of the last ranking that a value comes from; 0 for none."""
        return self._picked[key][1] if (key := _storage(value)) in self._picked else 0


def _storage(value: Any) -> int:
    """What a tensor and its views share; 0 of all else."""
    return value.untyped_storage()._cdata if isinstance(value, Tensor) and value.layout == torch.strided else 0
