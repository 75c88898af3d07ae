"""Run a network and label every tensor on the way.

Two of torch's modes work together: one sees the calls that the network's code makes, with the sources of their sizes; the other
sees the operations that they come down to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ltcompile.graph._ints import Int, compute_with
from ltcompile.graph._labels import INSIDE_HEADS, Labels
from ltcompile.graph.rules import Call, Requests, apply, describe
from ltcompile.graph.rules.recurrent import recurrent_arguments

_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]


class Calls(TorchFunctionMode):
    """Sizes that are read become Ints; sizes that are requested are kept for the operations below."""

    def __init__(self, labels: Labels, requests: Requests) -> None:
        super().__init__()
        self.labels, self.requests = labels, requests

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _SHAPE or func is Tensor.size:
            return self._size(func, args, kwargs)
        if func is Tensor.numel:
            return self._count(args[0])
        if func in (F.pad, torch._C._nn.pad) and _pads_by_copies(args, kwargs):
            return self._whole("aten.pad", _by_name("input pad mode", args, kwargs), func, args, kwargs)
        if (whole := _WHOLE.get(func)) is not None:
            return self._whole(whole[0], _by_name(whole[1], args, kwargs), func, args, kwargs)
        if getattr(func, "__name__", "") in _RECURRENT and not kwargs:
            return self._whole(f"aten.{func.__name__}", recurrent_arguments(args), func, args, kwargs)
        if func in _COMPUTING:
            for value in (*args, *kwargs.values()):
                compute_with(value)
        note = _REQUESTS.get(func)
        if note is None:
            return func(*args, **kwargs)
        before = vars(self.requests).copy()
        try:
            note(self, args, kwargs)
            return func(*args, **kwargs)
        finally:
            vars(self.requests).update(before)

    def _size(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        value = func(*args, **kwargs)
        tensor, dims = args[0], self.labels[args[0]]
        if isinstance(value, int):
            which = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return _int(value, dims[which])
        return torch.Size([_int(n, dims[i]) for i, n in enumerate(value)]) if tensor.dim() else value

    def _whole(self, name: str, named: dict[str, Any], func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Label a call, whose arguments by name are `named`, as one operation, although it comes down to several."""
        self.requests.paused = True
        try:
            out = func(*args, **kwargs)
        finally:
            self.requests.paused = False
        apply(Call(name, named, out, self.labels, self.requests), False)
        return out

    def _count(self, tensor: Tensor) -> int:
        return Int(tensor.numel(), None, tuple(d for d in self.labels[tensor] if d is not None))

    def _note_sizes(self, args: Any, kwargs: Any) -> None:
        sizes = args[1:] or tuple(kwargs.get("shape", kwargs.get("size", ())))
        self.requests.sizes = list(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes)
        if any(not isinstance(s, int) for s in self.requests.sizes):
            self.requests.sizes = []

    def _note_new(self, args: Any, kwargs: Any) -> None:
        """The sizes of a tensor that is made: one tuple, or all of them one by one."""
        given = [kwargs["size"]] if "size" in kwargs else list(args[1:] if isinstance(args[0], Tensor) else args) if args else []
        sizes = list(given[0]) if given and isinstance(given[0], (tuple, list)) else given
        self.requests.sizes = sizes if all(isinstance(s, int) for s in sizes) else []

    def _note_unflatten(self, args: Any, kwargs: Any) -> None:
        x, dim, sizes = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0), kwargs.get("sizes", args[2] if len(args) > 2 else ())
        at = dim % x.dim()
        known = [_int(n, self.labels[x][i]) for i, n in enumerate(x.shape)]
        self.requests.sizes = [*known[:at], *sizes, *known[at + 1 :]]

    def _note_parts(self, args: Any, kwargs: Any) -> None:
        self.requests.parts = (
            args[1] if len(args) > 1 else kwargs.get("split_size", kwargs.get("split_size_or_sections", kwargs.get("split_sizes")))
        )
        self.requests.chunks = False

    def _note_chunks(self, args: Any, kwargs: Any) -> None:
        self.requests.chunks = True

    def _note_norm(self, args: Any, kwargs: Any) -> None:
        self.requests.norm = args[1] if len(args) > 1 else kwargs.get("normalized_shape", kwargs.get("num_groups"))

    def _note_bounds(self, args: Any, kwargs: Any) -> None:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        self.requests.bounds = [(i.start, i.stop) for i in index if isinstance(i, slice) and (i.start is not None or i.stop is not None)]

    def _note_attention(self, args: Any, kwargs: Any) -> None:
        """Without a scale, torch takes one from the size of a head, and its plain formula hides that."""
        if kwargs.get("scale") is None:
            named = _by_name("query key", args, kwargs)
            for x in (named["query"], named["key"]):
                self.labels.pin(self.labels[x][-1], INSIDE_HEADS)


_REQUESTS: dict[Any, Callable[[Calls, Any, Any], None]] = {
    Tensor.view: Calls._note_sizes,
    Tensor.reshape: Calls._note_sizes,
    torch.reshape: Calls._note_sizes,
    **dict.fromkeys((torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn), Calls._note_new),
    **dict.fromkeys((Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full), Calls._note_new),
    Tensor.unflatten: Calls._note_unflatten,
    torch.unflatten: Calls._note_unflatten,
    Tensor.split: Calls._note_parts,
    torch.split: Calls._note_parts,
    Tensor.split_with_sizes: Calls._note_parts,
    torch.split_with_sizes: Calls._note_parts,
    Tensor.chunk: Calls._note_chunks,
    torch.chunk: Calls._note_chunks,
    **dict.fromkeys((F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm), Calls._note_norm),
    Tensor.__getitem__: Calls._note_bounds,
    Tensor.__setitem__: Calls._note_bounds,
    F.scaled_dot_product_attention: Calls._note_attention,
}


def _named(names: str) -> set[Any]:
    """The functions of these names of torch's and of its tensors."""
    owners = (torch, Tensor)
    return {found for name in names.split() for owner in owners if (found := getattr(owner, name, None)) is not None}


# Where a number among the arguments is a value, and no size.
_COMPUTING = _named("""tensor as_tensor scalar_tensor new_tensor add sub mul div multiply divide subtract true_divide floor_divide remainder fmod
  pow float_power rsub clamp clamp_min clamp_max clip eq ne lt le gt ge fill_ add_ sub_ mul_ div_ pow_ maximum minimum
  __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __rdiv__ __div__ __floordiv__ __rfloordiv__ __pow__ __rpow__
  __mod__ __rmod__ __iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ipow__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__""")


def _int(value: int, atoms: Any) -> int:
    return int(value) if atoms is None else Int(value, None, (atoms,))


class Operations(TorchDispatchMode):
    """Labels what every operation gives by what it was given."""

    def __init__(self, labels: Labels, requests: Requests) -> None:
        super().__init__()
        self.labels, self.requests = labels, requests

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.requests.paused:
            return out
        name, pointwise = describe(func)
        apply(Call(name, _arguments(func, args, kwargs), out, self.labels, self.requests, func), pointwise)
        return out


# Labelled as one: they come down to tensors made from nothing, or to operations that mix dimensions.
_WHOLE: dict[Any, tuple[str, str]] = {
    **dict.fromkeys((F.rms_norm, torch.rms_norm), ("aten.rms_norm", "input normalized_shape weight")),
    **dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d, torch.feature_dropout), ("aten.feature_dropout", "input")),
    **dict.fromkeys((F.feature_alpha_dropout, torch.feature_alpha_dropout), ("aten.feature_alpha_dropout", "input")),
    **dict.fromkeys((F.bilinear, torch.bilinear), ("aten.bilinear", "input1 input2 weight bias")),
}
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _by_name(names: str, args: Any, kwargs: Any) -> dict[str, Any]:
    return {**dict(zip(names.split(), args, strict=False)), **kwargs}


def _pads_by_copies(args: Any, kwargs: Any) -> bool:
    """Whether F.pad is circular, which copies parts of the input into a tensor made from nothing."""
    return bool((args[2] if len(args) > 2 else kwargs.get("mode", "constant")) == "circular")


def _arguments(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """All arguments by name in the order of the schema, with the defaults of those that were left out."""
    values = {}
    for at, argument in enumerate(func._schema.arguments):
        if at < len(args):
            values[argument.name] = args[at]
        elif argument.name in kwargs or argument.has_default_value():
            values[argument.name] = kwargs.get(argument.name, argument.default_value)
    return values
