"""The ticket: everything needed to make the small network, in one file that is only data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcompile.core.description import Description
from ltcompile.core.fields import SchemaError, from_json, short
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.task import ACCURACY, Metric
from ltcompile.core.tensors import check_finite, check_held, read_torch
from ltcompile.errors import InvalidFile, LtcompileError, TicketMismatch
from ltcompile.paths import write_torch

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
KIND = "ltcompile ticket"
CLASSIFICATION = "classification"
MOST_PIXELS = 1 << 24  # of an image, of which a file is checked on sixteen


@dataclass(frozen=True)
class Ticket:
    """The winning network of a search, before it is built.

    `weights` is the state dict of the cut network; `plan` says how it lies in the original; `model` has `name` and `arguments`;
    `data` is the description of task and data (`Description`), `metric` what the values of rows are; `initial_seed` gave the original its
    first weights. With a `mask`, of single weights, `plan` keeps everything, and `weights` are the whole network's, with zeros.
    """

    model: Mapping[str, Any]
    plan: PruningPlan
    weights: Mapping[str, Tensor]
    initial_seed: int
    recipe: Recipe
    data: Mapping[str, Any]
    config: Mapping[str, Any]
    history: tuple[Trained, ...]
    verdict: Verdict
    level: int
    seed: int
    provenance: Mapping[str, Any] = field(default_factory=dict)
    mask: WeightMask | None = None
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        """Raises InvalidFile or InvalidData where the parts contradict each other."""
        check_finite(self.weights)
        if self.mask is not None and not self.plan.is_identity:
            raise InvalidFile("it has a mask of the whole network, and a plan that cuts some of it away")
        _check_masked(self.weights, self.mask)
        check_model(self.model, self.data)
        self._trained("ticket", self.level)

    @property
    def checksum(self) -> str:
        """SHA-256 over the description, all weights, and the mask if there is one."""
        return _checksum(self._header(), self.weights, self._mask())

    @property
    def task(self) -> str:
        """The name of its task."""
        return str(self.data.get("task", CLASSIFICATION))

    @property
    def row(self) -> Trained:
        """The row of the history that this ticket is."""
        return self._trained("ticket", self.level)

    @property
    def dense_row(self) -> Trained:
        """The row of the dense network that this ticket began as."""
        return self._trained("dense", 0)

    def _trained(self, arm: str, level: int) -> Trained:
        for row in self.history:
            if (row.arm, row.level, row.seed) == (arm, level, self.seed):
                return row
        raise InvalidFile(f"the ticket's history has no row of the {arm} network of level {level} and seed {self.seed}")

    def _mask(self) -> dict[str, Tensor]:
        return dict(self.mask.kept) if self.mask else {}

    def _header(self) -> str:
        return json.dumps({name: _plain(getattr(self, name)) for name in _FIELDS}, sort_keys=True, allow_nan=False)

    def to_json(self) -> dict[str, Any]:
        """All but the weights, with the checksum."""
        value: dict[str, Any] = json.loads(self._header())
        return {"format": FORMAT, "checksum": self.checksum, **value}

    def save(self, path: str | Path) -> None:
        """Write the ticket, atomically. Raises InvalidFile where the place cannot be written."""
        value = {
            "kind": KIND,
            "format": FORMAT,
            "header": self._header(),
            "checksum": self.checksum,
            "weights": {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()},
        }
        if self.mask:
            value["mask"] = self._mask()
        write_torch(path, value)

    @classmethod
    def load(cls, path: str | Path) -> Ticket:
        """Read a ticket; nothing in the file is executed, and every field is checked.

        Raises:
            InvalidFile: missing, truncated, tampered with, or no ticket. TicketMismatch: of another format version.
        """
        path = Path(path)
        value = read_torch(path, "ticket")
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise InvalidFile(f"{path} is not an ltcompile ticket; `ltcompile find` writes one")
        if (format := short(value.get("format"))) != str(FORMAT):
            raise TicketMismatch(f"{path} has ticket format {format}, this ltcompile reads {FORMAT}; update ltcompile")
        try:
            header, weights, kept = value["header"], value["weights"], value.get("mask", {})
            for tensors in (weights, kept):
                check_held(tensors, path.stat().st_size)
            if _checksum(header, weights, kept) != value["checksum"]:
                raise InvalidFile("it is damaged or was changed, as its checksum does not fit; take a fresh copy")
            return cls(weights=weights, mask=WeightMask(dict(kept)) if kept else None, **_fields(json.loads(header)))
        except LtcompileError as error:
            raise InvalidFile(f"{path} is not a valid ticket: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InvalidFile(f"{path} is not a valid ticket: {error!r}; take a fresh copy") from error


_FIELDS: dict[str, Any] = {
    "model": dict[str, Any],
    "plan": PruningPlan,
    "initial_seed": int,
    "recipe": Recipe,
    "data": dict[str, Any],
    "metric": Metric,
    "config": dict[str, Any],
    "history": tuple[Trained, ...],
    "verdict": Verdict,
    "level": int,
    "seed": int,
    "provenance": dict[str, Any],
}


def _plain(value: Any) -> Any:
    """A field as JSON holds it."""
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(row) for row in value] if isinstance(value, tuple) else value.to_json() if hasattr(value, "to_json") else value


def _fields(header: dict[str, Any]) -> dict[str, Any]:
    """All but the weights, each as its type. Raises SchemaError where one is missing, unknown or of another type."""
    if header.keys() != _FIELDS.keys():
        raise SchemaError(f"it lacks or does not know {', '.join(sorted(header.keys() ^ _FIELDS.keys()))}")
    return {name: from_json(header[name], hint, name) for name, hint in _FIELDS.items()}


def check_model(model: Any, data: Any) -> None:
    """Raises InvalidFile or InvalidData unless `model` is a name with arguments that fit a description of `data`.

    Both come from a file, and decide what is built.
    """
    arguments = model.get("arguments") if isinstance(model, Mapping) else None
    if not isinstance(arguments, Mapping) or not isinstance(model.get("name"), str) or not isinstance(data, Mapping):
        raise InvalidFile("it does not say which model and data it belongs to")
    description = Description.from_json(data)
    if math.prod(description.shape) > MOST_PIXELS:
        raise InvalidFile(f"its images of {short(description.shape)} have more than {MOST_PIXELS:,} values")
    expected = description.arguments
    if dict(arguments) != expected:
        raise InvalidFile(f"its model is built with {short(dict(arguments))}, and its data requires {expected}")


def _check_masked(weights: Mapping[str, Tensor], mask: WeightMask | None) -> None:
    """Raises InvalidFile unless what `mask` drops is zero."""
    for name, kept in mask.kept.items() if mask else ():
        if name not in weights or weights[name].shape != kept.shape or bool((weights[name].detach().cpu()[~kept] != 0).any()):
            raise InvalidFile(f"its mask does not fit its weights at {short(name)}")


def _checksum(header: str, weights: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256(header.encode())
    for name, tensor in [*sorted(weights.items()), *sorted(mask.items())]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
