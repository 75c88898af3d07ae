"""The arguments of a network as named tensors of any rank, and which of them have the batch as their first dimension."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ltcompile.errors import InvalidModel
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.outputs import named_leaves, unique_names


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call, as tensors and the rest.

    `tensors` are those in the arguments, in the order of the forward's parameters; `names` are the parameters' names, followed
    by a dot and the key or index inside containers; `batched` says which tensors have the batch first. Other values are constants.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    batched: tuple[bool, ...]
    _signature: inspect.Signature
    _leaves: tuple[Any, ...]  # of all arguments, with _TENSOR where a tensor goes
    _spec: Any

    @classmethod
    def of(cls, network: nn.Module, example: Example) -> Inputs:
        """The inputs of `network` in `example`: one tensor, a tuple or list of arguments, or a dict of keyword arguments.

        The batch is the first dimension of the first tensor that has dimensions; tensors that are as long there have it too.

        Raises:
            InvalidSetting: the example is none of these, or holds no tensor. InvalidModel: none of them has dimensions, or they do not fit
                the forward's parameters.
        """
        args, kwargs = Arguments.of(example)
        signature = inspect.signature(network.forward)
        try:
            given = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise InvalidModel(
                f"the example does not fit {type(network).__name__}.forward: {error}; pass one tensor, a tuple of its arguments, "
                "or a dict of its keyword arguments"
            ) from error
        paths, spec = pytree.tree_flatten_with_path(given)
        for path, leaf in paths:
            if not isinstance(leaf, Tensor) and any(isinstance(inner, Tensor) for _, inner in named_leaves("", leaf)):
                raise InvalidModel(
                    f"{path_name(path)} is a {type(leaf).__name__}, which hides its tensors; pass tensors, tuples, lists or dicts"
                )
        found = [(path, leaf.detach()) for path, leaf in paths if isinstance(leaf, Tensor)]
        batch = next((len(tensor) for _, tensor in found if tensor.dim()), 0)
        if not batch:
            raise InvalidModel(
                "the example holds no tensor (N, ...) with a batch of one or more; give it one, such as torch.randn(2, 3, 32, 32)"
            )
        return cls(
            tuple(tensor for _, tensor in found),
            unique_names(path_name(path) for path, _ in found),
            tuple(tensor.dim() > 0 and len(tensor) == batch for _, tensor in found),
            signature,
            tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for _, leaf in paths),
            spec,
        )

    @property
    def batch(self) -> int:
        """The batch size."""
        return next(len(t) for t, has in zip(self.tensors, self.batched, strict=True) if has)

    @property
    def is_one_tensor(self) -> bool:
        """Whether the network is called with one tensor and nothing else, by position."""
        return len(self._leaves) == 1 and not self.arguments()[1] and self.arguments()[0] == (self.tensors[0],)

    @property
    def example(self) -> Arguments:
        """The same call as an `Example`."""
        return Arguments(*self.arguments())

    def resized(self, batch: int) -> Inputs:
        """The first `batch` examples, repeated where there are fewer."""
        return self.rows(torch.arange(batch) % self.batch)

    def rows(self, rows: Tensor) -> Inputs:
        """The examples at the indices `rows` (M,)."""
        return self.with_tensors([t[rows.to(t.device)] if has else t for t, has in zip(self.tensors, self.batched, strict=True)])

    def with_tensors(self, tensors: Sequence[Tensor]) -> Inputs:
        """The same call with other tensors, in the same order."""
        return replace(self, tensors=tuple(tensors))

    def on_cpu(self, dtypes: Mapping[torch.dtype, torch.dtype] | None = None) -> Inputs:
        """The same inputs on the CPU, with dtypes replaced as in `dtypes`."""
        return replace(self, tensors=tuple(t.cpu().to((dtypes or {}).get(t.dtype, t.dtype)) for t in self.tensors))

    def arguments(self, tensors: Sequence[Tensor] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of the forward, with `tensors` instead of these."""
        bound = inspect.BoundArguments(self._signature, self._filled(self.tensors if tensors is None else tensors))
        return bound.args, bound.kwargs

    def dynamic_shapes(self, sizes: Sequence[Mapping[int, Any] | None]) -> dict[str, Any]:
        """The `dynamic_shapes` of torch.export, where `sizes` maps the dynamic axes of each tensor to their dimensions, None for none."""
        shapes: dict[str, Any] = self._filled(sizes, other=None)
        return shapes

    def _filled(self, values: Sequence[Any], **other: None) -> Any:
        given = iter(values)
        leaves = [next(given) if leaf is _TENSOR else other.get("other", leaf) for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._spec)


class _TENSOR:  # a class, which copies of a network share
    pass


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf: of `x`, "x"; of `d["img"][0]`, "d.img.0"."""
    parts = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", ""))) for key in path)
    return ".".join(str(part) for part in parts)
