"""Which places of which tensors are the same channel.

Every dimension of every parameter and buffer gets one atom a position. Operations say which atoms must live and die together
(`join`), which must stay (`pin`, with the reason), and which counts must keep their ratio (`tie`). A channel is a connected
component of atoms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ltcompile.graph._ints import Int, Source

Atoms = np.ndarray  # (n,) int64
Dims = list[Atoms | None]  # one entry a dimension; None where its positions are no channels
INPUT = "it reads the network's input"
INSIDE_HEADS = "it lies inside the heads of an attention"
LOST = "it meets channels that cannot be followed"


@dataclass
class Slot:
    """A dimension of a parameter or buffer."""

    tensor: str
    dim: int
    atoms: Atoms


@dataclass
class Labels:
    """The atoms, what is known of them, and the labels of the tensors alive."""

    count: int = 0
    slots: list[Slot] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    joins: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    pins: list[tuple[Atoms, str]] = field(default_factory=list)
    ties: list[list[Atoms]] = field(default_factory=list)
    attributes: dict[Source, Atoms] = field(default_factory=dict)
    fixed_attributes: dict[Source, str] = field(default_factory=dict)
    quotients: list[tuple[Int, Int]] = field(default_factory=list)  # that the network computes with
    spared: frozenset[tuple[str, int]] = frozenset()  # dimensions of parameters that a mask leaves alone
    to_spare: set[tuple[str, int]] = field(default_factory=set)  # those that it must leave alone, as this run found

    def __post_init__(self) -> None:
        self._dims = WeakIdKeyDictionary()
        self._names = WeakIdKeyDictionary()
        self._sources = WeakIdKeyDictionary()  # tensors computed from parameters and buffers alone -> their names
        self._zero = WeakIdKeyDictionary()
        self._weighted = WeakIdKeyDictionary()  # tensors that depend on a parameter -> True

    def fresh(self, size: int) -> Atoms:
        """New atoms."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def register(self, name: str, tensor: Tensor) -> None:
        """Give every dimension of a parameter or buffer its atoms. A mask zeroes parameters, but for the dimensions that are spared."""
        dims: Dims = []
        for dim, size in enumerate(tensor.shape):
            atoms = self.fresh(int(size)) if size > 1 else None
            if atoms is not None:
                self.slots.append(Slot(name, dim, atoms))
            dims.append(atoms)
        self._dims[tensor], self._names[tensor], self._sources[tensor] = dims, name, frozenset({name})
        self._zero[tensor] = [isinstance(tensor, nn.Parameter) and (name, dim) not in self.spared for dim in range(tensor.dim())]

    def __getitem__(self, tensor: Tensor) -> Dims:
        """The labels of each dimension of `tensor`."""
        dims: Dims | None = self._dims.get(tensor)
        if dims is None:
            return [None] * tensor.dim()
        if (name := self._names.get(tensor)) is not None:
            self.used.add(name)
        return dims

    def registered(self, tensor: Tensor | None, dim: int) -> Atoms | None:
        """The atoms of a dimension of a parameter or buffer, which does not count as used for that."""
        dims: Dims | None = None if tensor is None else self._dims.get(tensor)
        return None if dims is None else dims[dim]

    def __setitem__(self, tensor: Tensor, dims: Dims) -> None:
        assert len(dims) == tensor.dim() and all(d is None or len(d) == n for d, n in zip(dims, tensor.shape, strict=True)), "shapes"
        self._dims[tensor] = [None if n == 1 else atoms for atoms, n in zip(dims, tensor.shape, strict=True)]

    def is_parameter(self, tensor: Tensor | None) -> bool:
        """Whether `tensor` is a registered parameter itself."""
        return isinstance(tensor, nn.Parameter) and tensor in self._names

    def zero(self, tensor: Tensor) -> list[bool]:
        """For each dimension, whether `tensor` is zero for the channels of it that a mask drops."""
        flags: list[bool] = self._zero.get(tensor) or [False] * tensor.dim()
        return flags

    def set_zero(self, tensor: Tensor, flags: list[bool]) -> None:
        self._zero[tensor] = flags

    def written(self, tensor: Tensor, zero: bool) -> None:
        """`tensor` was changed in place: what shares its memory is zero nowhere, unless what was written is."""
        memory = tensor.untyped_storage()._cdata
        for other in [t for t in self._zero if not zero and t.untyped_storage()._cdata == memory]:
            self._zero[other] = [False] * other.dim()

    def sources(self, tensors: list[Tensor]) -> frozenset[str] | None:
        """The parameters and buffers that `tensors` were computed from, if from nothing else."""
        found = [self._sources.get(t) for t in tensors]
        return frozenset().union(*(f for f in found if f)) if found and None not in found else None

    def computed_from(self, tensor: Tensor, names: frozenset[str] | None) -> None:
        if names is not None:
            self._sources[tensor] = names

    def spare(self, tensor: Tensor, dim: int, reason: str) -> None:
        """`tensor` must not be zero along `dim`: a mask leaves the parameters that it was computed from alone there, or its channels stay."""
        atoms, names = self[tensor][dim], self.sources([tensor]) or frozenset()
        if atoms is None:
            return
        slots = [s for s in self.slots if s.tensor in names and len(s.atoms) == len(atoms)]
        direct = [s for s in slots if np.isin(s.atoms, atoms).any()] or slots
        found = {(s.tensor, s.dim) for s in direct} - self.spared
        self.to_spare |= found
        if not found:
            self.pin(atoms, reason)

    def join(self, a: Atoms | None, b: Atoms | None, meets: str) -> Atoms | None:
        """Position by position the same channel; what meets an unlabelled dimension must stay."""
        if a is None or b is None:
            self.pin(a if b is None else b, meets)
            return None
        if a is not b:
            self.joins.append((a, b))
        return a

    def meet(self, x: Tensor, a: Atoms | None, y: Tensor, b: Atoms | None) -> Atoms | None:
        """As `join`, for a dimension of `x` and one of `y`: the reason says whether what has no labels is the network's input."""
        return self.join(a, b, LOST if self.weighted(x if a is None else y) else INPUT)

    def weighted(self, tensor: Tensor) -> bool:
        """Whether `tensor` depends on a parameter."""
        return self.is_parameter(tensor) or tensor in self._weighted

    def set_weighted(self, tensor: Tensor) -> None:
        self._weighted[tensor] = True

    def pin(self, atoms: Atoms | None, reason: str) -> None:
        if atoms is not None:
            self.pins.append((atoms, reason))

    def pin_all(self, tensors: Iterable[Tensor], reason: str) -> None:
        for tensor in tensors:
            for atoms in self[tensor]:
                self.pin(atoms, reason)

    def tie(self, *widths: Atoms) -> None:
        """All of them keep the same share of their channels."""
        if len({id(w) for w in widths}) > 1:
            self.ties.append(list(widths))

    def follow(self, source: Source, atoms: Atoms | None) -> None:
        """The attribute counts these channels, so it shrinks with them; one that also counts something else is left alone."""
        if atoms is None:
            self.fixed_attributes.setdefault(source, f"{source.layer}.{source.name} also counts what is no channel")
        elif source not in self.attributes:
            self.attributes[source] = atoms
        elif len(self.attributes[source]) == len(atoms):
            self.join(self.attributes[source], atoms, "")
