"""Which places of which tensors are the same channel.

Every dimension of every parameter and buffer gets one atom a position. Operations say which atoms must live and die together
(`join`), which must stay (`pin`, with the reason), and which counts must keep their ratio (`tie`). A channel is a connected
component of atoms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ltcompile.graph._ints import Int, Source

Atoms = np.ndarray  # (n,) int64
Dims = list[Atoms | None]  # one entry a dimension; None where its positions are no channels


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

    def __post_init__(self) -> None:
        self._dims = WeakIdKeyDictionary()
        self._names = WeakIdKeyDictionary()
        self._weights = WeakIdKeyDictionary()  # tensors computed from parameters alone

    def fresh(self, size: int) -> Atoms:
        """New atoms."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def register(self, name: str, tensor: Tensor) -> None:
        """Give every dimension of a parameter or buffer its atoms."""
        dims: Dims = []
        for dim, size in enumerate(tensor.shape):
            atoms = self.fresh(int(size)) if size > 1 else None
            if atoms is not None:
                self.slots.append(Slot(name, dim, atoms))
            dims.append(atoms)
        self._dims[tensor], self._names[tensor], self._weights[tensor] = dims, name, True

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

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether `tensor` was computed from parameters alone: what a mask zeroes in them is zero in it."""
        return tensor in self._weights

    def mark_weight(self, tensor: Tensor) -> None:
        self._weights[tensor] = True

    def join(self, a: Atoms | None, b: Atoms | None, meets: str) -> Atoms | None:
        """Position by position the same channel; what meets an unlabelled dimension must stay."""
        if a is None or b is None:
            self.pin(a if b is None else b, meets)
            return None
        if a is not b:
            self.joins.append((a, b))
        return a

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
