"""The calls of a network that repair looks at: products of an input and a weight, and the sums that they end in."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ltcompile.graph.inputs import Arguments
from ltcompile.graph.rules import tensors_in

Function = Callable[..., Any]
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
PRODUCTS: dict[Function, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _CONV),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _TRANSPOSED),
}
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_SUMS = ("add", "add_", "__add__", "__iadd__", "__radd__")
_STAND_INS = ("_threshold", "zeros_like", "new_zeros")  # what the layers of a removed branch read by: see `graph.removed`
_RELU = ("relu", "relu_")
_PASSED_ON = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "contiguous")  # in eval mode


@dataclass(frozen=True)
class Call:
    """One call of a function, with its arguments by name."""

    func: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def named(self, names: tuple[str, ...]) -> dict[str, Any]:
        return dict(zip(names, self.args, strict=False)) | self.kwargs

    @property
    def product(self) -> dict[str, Any]:
        """The arguments of a product."""
        return self.named(PRODUCTS[self.func])

    @property
    def in_place(self) -> bool:
        """Whether a sum is written into its first operand."""
        return self.func.__name__ in ("add_", "__iadd__")

    @property
    def transposed(self) -> bool:
        return "transpose" in getattr(self.func, "__name__", "")

    def result(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def operands(self) -> tuple[Tensor, Tensor] | None:
        """The tensors of a sum of two tensors of one shape, else None."""
        two = self.args[:2]
        if getattr(self.func, "__name__", "") not in _SUMS or self.kwargs.get("alpha", 1) != 1:
            return None
        if len(two) < 2 or not all(isinstance(x, Tensor) for x in two) or two[0].shape != two[1].shape:
            return None
        return two


@dataclass
class Norm:
    """A batch norm behind a product: its tensors, and the eps of its deviation."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def affine(self) -> tuple[Tensor, Tensor]:
        """What it multiplies by and adds, in float64: (C,) each."""
        scale = (self.var.double() + self.eps).rsqrt() * (1.0 if self.weight is None else self.weight.double())
        return scale, (0.0 if self.bias is None else self.bias.double()) - scale * self.mean.double()

    def __call__(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)


@dataclass(eq=False)
class Site:
    """A product with a weight of the network, and the batch norm after it, where there is one.

    `join` is the number of the sum that its output, behind the norm, is an operand of.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    outputs: int
    groups: int
    transposed: bool
    norm: Norm | None = None
    join: int | None = None
    operand: int = 0
    rectified: set[str] = field(default_factory=set)
    refusal: str = ""
    readers: dict[str, int] = field(default_factory=lambda: {"product": 0, "norm": 0, "sum": 0})

    @property
    def is_rectified(self) -> bool:
        """Whether a ReLU alone reads what it is compared at: behind its sum, its norm, or itself."""
        stage = "sum" if self.join is not None else "norm" if self.norm is not None else "product"
        return stage in self.rectified and self.readers[stage] == 1

    @property
    def place(self) -> tuple[int, int]:
        """Where the weight lies in memory: slices of one parameter differ."""
        return self.weight.data_ptr(), self.weight.numel()


@dataclass
class Structure:
    """The sites of a network in the order of their calls, and how much memory a pass holds from each of them on.

    `onward` says of events at which sum their value continues: one whose other operand is zeros, as a removed branch gives.
    """

    events: list[Site | int] = field(default_factory=list)  # products, and sums by their numbers
    live: list[int] = field(default_factory=list)  # bytes that a pass holds at each event
    onward: dict[int, int] = field(default_factory=dict)  # by places in `events`

    @property
    def sites(self) -> list[Site]:
        return [event for event in self.events if isinstance(event, Site)]

    @property
    def joins(self) -> dict[int, list[Site]]:
        """Number of a sum -> the sites that end in it."""
        found: dict[int, list[Site]] = {}
        for site in self.sites:
            if site.join is not None:
                found.setdefault(site.join, []).append(site)
        return found

    @property
    def waited(self) -> list[int]:
        """The places of the events at which weights are solved: sites, and sums that sites end in."""
        joins = self.joins
        return [at for at, event in enumerate(self.events) if isinstance(event, Site) or event in joins]

    def last(self, at: int) -> int:
        """The place of the last sum that only passes on what event `at` gives, or `at`; nothing is solved between the two."""
        waited = self.waited
        while (sum_at := self.onward.get(at)) is not None and not any(at < other <= sum_at for other in waited):
            at = sum_at
        return at


class Weights:
    """Which tensors are weights of a network: by the storage that they are in, so that a slice of a parameter counts."""

    def __init__(self, model: nn.Module) -> None:
        named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if b.is_floating_point())]
        self._names = {t.untyped_storage().data_ptr(): name for name, t in reversed(named) if t.numel()}

    def name(self, tensor: Any) -> str:
        """The name of the parameter or buffer that holds `tensor`, or ""."""
        return self._names.get(tensor.untyped_storage().data_ptr(), "") if isinstance(tensor, Tensor) else ""

    def site(self, call: Call) -> str:
        """The name of the weight that `call` multiplies by, or "" where it is none."""
        return self.name(call.product["weight"]) if call.func in PRODUCTS else ""


class Probe(TorchFunctionMode):
    """Sees one pass of a network and finds its structure."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights, self.found, self._sums = Weights(model), Structure(), 0
        self._ends: dict[int, tuple[weakref.ref[Tensor], Site, str]] = {}  # of tensors, by their id
        self._made: list[tuple[weakref.ref[Tensor], int, int]] = []  # tensors, their storages and bytes
        self._givers: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # of tensors, by their id: places of events
        self.forked: set[int] = set()  # events whose values are read elsewhere too

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(func, tuple(args), kwargs or {})
        name, two = self.weights.site(call), call.operands()
        if name or two:
            self.found.live.append(self._live())
        read = tensors_in((call.args, call.kwargs))
        before = {id(t): end for t in read if (end := self._end(t)) is not None}
        givers = {giver for t in read if (giver := self._giver(t)) is not None}
        empty = two is not None and not all(bool(operand.any()) for operand in two)
        out = call.result()
        for tensor in tensors_in(out):
            self._made.append((weakref.ref(tensor), tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
            self._ends.pop(id(tensor), None)  # it may be written in place
        if tensors_in(out):
            self._follow(name, two, call, before, out)
            self._follow_onward(bool(name or two), empty, call, givers, out)
        return out

    def _follow(self, name: str, two: tuple[Tensor, Tensor] | None, call: Call, before: dict[int, tuple[Site, str]], out: Any) -> None:
        kind = getattr(call.func, "__name__", "")
        passed_on = len(before) == 1 and isinstance(out, Tensor) and kind in _PASSED_ON
        for site, stage in before.values():
            site.readers[stage] += not passed_on
            if kind in _RELU:
                site.rectified.add(stage)
        if name:
            given = call.product
            channels = out.shape[-1 if call.func is F.linear else 1 - given["weight"].dim()]
            site = Site(name, given["weight"].detach(), given.get("bias"), channels, given.get("groups", 1), call.transposed)
            self.found.events.append(site)
            self._mark(out, site, "product")
        elif two is not None:
            for operand, tensor in enumerate(two):
                if id(tensor) in before and two[0] is not two[1] and before[id(tensor)][1] != "sum":
                    site = before[id(tensor)][0]
                    site.join, site.operand = self._sums, operand
                    self._mark(out, site, "sum")
            self.found.events.append(self._sums)
            self._sums += 1
        elif passed_on:
            self._mark(out, *next(iter(before.values())))
        elif call.func is F.batch_norm:
            self._norm(call, before, out)

    def _follow_onward(self, is_event: bool, empty: bool, call: Call, givers: set[int], out: Any) -> None:
        """Which event gave what `out` is, and which ones only lead from one sum to the next."""
        kind, here = getattr(call.func, "__name__", ""), len(self.found.events) - 1
        end = self._end(out) if isinstance(out, Tensor) else None
        passes = kind in (*_RELU, *_PASSED_ON) or (call.func is F.batch_norm and end is not None and end[1] == "norm")
        if empty:
            self.found.onward |= dict.fromkeys(givers, here)
        elif not passes and kind not in _STAND_INS:
            self.forked |= givers
        if isinstance(out, Tensor) and (is_event or (passes and len(givers) == 1)):
            self._givers[id(out)] = weakref.ref(out), here if is_event else next(iter(givers))

    def _giver(self, tensor: Tensor) -> int | None:
        held, at = self._givers.get(id(tensor), (None, 0))
        return at if held is not None and held() is tensor else None

    def _norm(self, call: Call, before: dict[int, tuple[Site, str]], out: Tensor) -> None:
        given = call.named(_NORM)
        site, stage = before.get(id(given["input"]), (None, ""))
        if site is not None and stage == "product" and not given.get("training") and self.weights.name(given["running_mean"]):
            site.norm = Norm(given["running_mean"], given["running_var"], given.get("weight"), given.get("bias"), given.get("eps", 1e-5))
            self._mark(out, site, "norm")

    def _mark(self, out: Tensor, site: Site, stage: str) -> None:
        self._ends[id(out)] = weakref.ref(out), site, stage

    def _end(self, tensor: Tensor) -> tuple[Site, str] | None:
        """The site whose output `tensor` is, and whether it is that of its norm."""
        held, site, stage = self._ends.get(id(tensor), (None, None, ""))
        return (site, stage) if held is not None and site is not None and held() is tensor else None

    def _live(self) -> int:
        """The bytes of the tensors that are alive."""
        self._made = [made for made in self._made if made[0]() is not None]
        return sum({storage: size for _, storage, size in self._made}.values())


def structure(model: nn.Module, inputs: Arguments) -> Structure:
    """The structure of a network in eval mode, by one pass over `inputs`.

    What cannot be solved has a `refusal`; a norm or a sum counts only where nothing else reads what lies before it.
    """
    probe = Probe(model)
    with torch.no_grad(), probe:
        model(*inputs.args, **inputs.kwargs)
    sites = probe.found.sites
    probe.found.onward = {at: to for at, to in probe.found.onward.items() if at not in probe.forked}
    places = Counter(site.place for site in sites)
    norms = Counter(site.norm.mean.data_ptr() for site in sites if site.norm is not None)
    for site in sites:
        if site.norm is not None and (site.readers["product"] > 1 or norms[site.norm.mean.data_ptr()] > 1):
            site.norm = site.join = None
        if site.readers["norm" if site.norm is not None else "product"] > 1:
            site.join = None
        if places[site.place] > 1:
            site.refusal, site.join = f"it runs {places[site.place]} times in a pass", None
    return probe.found
