"""Which weights of a network stay: what an unstructured ticket has where a structured one has a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ltcompile.core.fields import short
from ltcompile.core.tensors import check_held, read_torch
from ltcompile.errors import InvalidFile, InvalidPlan
from ltcompile.paths import write_torch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class WeightMask:
    """Parameter name -> boolean tensor of its shape, on the CPU, True where the weight stays. Parameters without a name here stay whole.

    Raises:
        InvalidPlan: a mask is not a boolean tensor, or keeps nothing of any parameter.
    """

    kept: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        import torch

        for name, kept in self.kept.items():
            if not isinstance(kept, torch.Tensor) or kept.dtype != torch.bool or kept.device.type != "cpu":
                raise InvalidPlan(f"the mask of {short(name)} is not a boolean tensor on the CPU")
        if self.kept and not any(bool(kept.any()) for kept in self.kept.values()):
            raise InvalidPlan("the mask keeps no weight at all")

    @property
    def weights(self) -> tuple[int, int]:
        """All weights of the named parameters, before and after."""
        return sum(kept.numel() for kept in self.kept.values()), sum(int(kept.sum()) for kept in self.kept.values())

    @property
    def share(self) -> float:
        """The share of its weights that stays: P_m of Frankle & Carbin 2018."""
        before, after = self.weights
        return after / before if before else 1.0

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and what stays."""
        import numpy as np

        found = hashlib.sha256()
        for name, kept in sorted(self.kept.items()):
            found.update(f"{name} {tuple(kept.shape)}".encode())
            found.update(np.packbits(kept.flatten().numpy()).tobytes())
        return found.hexdigest()

    def dropped(self, model: nn.Module) -> dict[str, Tensor]:
        """Parameter name -> boolean tensor of its shape and on its device, True where the weight goes; as `graph.dropped_weights` does for a plan.

        Raises InvalidPlan where `model` has no such parameter.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, kept in self.kept.items():
            if name not in parameters or parameters[name].shape != kept.shape:
                there = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise InvalidPlan(
                    f"the mask has {short(tuple(kept.shape))} for {short(name)}, and the network {there}: it is of another network"
                )
        return {name: ~kept.to(parameters[name].device) for name, kept in self.kept.items()}

    def save(self, path: str | Path) -> None:
        """Raises InvalidFile where it cannot be written."""
        write_torch(path, {"kept": dict(self.kept)})

    @classmethod
    def load(cls, path: str | Path) -> WeightMask:
        """Raises InvalidFile where there is no valid mask."""
        path = Path(path)
        value = read_torch(path, "weight mask")
        try:
            check_held(value["kept"], path.stat().st_size)
            return cls(dict(value["kept"]))
        except (KeyError, TypeError, AttributeError, InvalidPlan) as error:
            raise InvalidFile(f"{path} is not a valid weight mask ({short(error)}); take a fresh copy") from error
