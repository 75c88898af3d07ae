"""The ticket: everything needed to make the small network, in one file that is only data."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained, Verdict
from ltcompile.errors import BadFile, LtcompileError, StaleTicket
from ltcompile.paths import atomic

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
KIND = "ltcompile ticket"


@dataclass(frozen=True)
class Ticket:
    """The winning network of a search, before it is built.

    `weights` is the state dict of the cut network; `plan` says how it lies in the original; `model` has `name` and `arguments`;
    `data` is a data description (class names, shape, mean, std); `initial_seed` gave the original its first weights.
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

    def __post_init__(self) -> None:
        import torch

        for name, value in self.weights.items():
            if not isinstance(value, torch.Tensor) or (value.is_floating_point() and not bool(torch.isfinite(value).all())):
                raise BadFile(f"the ticket's weight {name!r} is no tensor of finite numbers")
        check_model(self.model)
        if not isinstance(self.data.get("class_names"), list | tuple) or len(self.data.get("shape", ())) != 3:
            raise BadFile("the ticket does not describe its data")

    @property
    def checksum(self) -> str:
        """SHA-256 over the description and all weights."""
        return _checksum(self._header(), self.weights)

    @property
    def row(self) -> Trained:
        """The row of the history that this ticket is."""
        return next(r for r in self.history if (r.arm, r.level, r.seed) == ("ticket", self.level, self.seed))

    def _header(self) -> str:
        value = {
            "model": dict(self.model),
            "plan": self.plan.to_json(),
            "initial_seed": self.initial_seed,
            "recipe": self.recipe.to_json(),
            "data": dict(self.data),
            "config": dict(self.config),
            "history": [r.to_json() for r in self.history],
            "verdict": self.verdict.to_json(),
            "level": self.level,
            "seed": self.seed,
            "provenance": dict(self.provenance),
        }
        return json.dumps(value, sort_keys=True, allow_nan=False)

    def to_json(self) -> dict[str, Any]:
        """All but the weights, with the checksum."""
        value: dict[str, Any] = json.loads(self._header())
        return {"format": FORMAT, "checksum": self.checksum, **value}

    def save(self, path: str | Path) -> None:
        """Write the ticket, atomically. Raises BadFile where the place cannot be written."""
        import torch

        value = {
            "kind": KIND,
            "format": FORMAT,
            "header": self._header(),
            "checksum": self.checksum,
            "weights": {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()},
        }
        with atomic(path) as scratch:
            torch.save(value, scratch)

    @classmethod
    def load(cls, path: str | Path) -> Ticket:
        """Read a ticket; nothing in the file is executed, and every field is checked.

        Raises:
            BadFile: missing, truncated, tampered with, or no ticket. StaleTicket: of another format version.
        """
        value = _read(Path(path))
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise BadFile(f"{path} is no ltcompile ticket; `ltcompile find` writes one")
        if value.get("format") != FORMAT:
            raise StaleTicket(f"{path} has ticket format {value.get('format')!r}, this ltcompile reads {FORMAT}; update ltcompile")
        header, weights = value.get("header"), value.get("weights")
        if not isinstance(header, str) or not isinstance(weights, dict) or _checksum(header, weights) != value.get("checksum"):
            raise BadFile(f"{path} is damaged or was changed: its checksum does not fit; take a fresh copy")
        try:
            fields = json.loads(header)
            fields["plan"] = PruningPlan.from_json(fields["plan"])
            fields["recipe"] = Recipe.from_json(fields["recipe"])
            fields["history"] = tuple(Trained.from_json(r) for r in fields["history"])
            fields["verdict"] = Verdict.from_json(fields["verdict"])
            return cls(weights=weights, **fields)
        except LtcompileError as error:
            raise BadFile(f"{path} is no valid ticket: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise BadFile(f"{path} is no valid ticket: {error!r}") from error


def check_model(model: Any) -> None:
    """Raises BadFile unless `model` is a name with arguments in their ranges: it comes from a file and decides what is built."""
    ranges = {"classes": (2, 1_000_000), "in_channels": (1, 1024), "image_size": (1, 4096)}
    arguments = model.get("arguments") if isinstance(model, Mapping) else None
    if not isinstance(arguments, Mapping) or not isinstance(model.get("name"), str) or set(arguments) != set(ranges):
        raise BadFile("it does not say which model it belongs to")
    for name, (low, high) in ranges.items():
        if type(arguments[name]) is not int or not low <= arguments[name] <= high:
            raise BadFile(f"its model's {name} is {arguments[name]!r}, not within {low}..{high}")


def _read(path: Path) -> Any:
    import torch

    if not path.is_file():
        raise BadFile(f"there is no ticket at {path}")
    if not zipfile.is_zipfile(path):
        raise BadFile(f"{path} is no ltcompile ticket, or only the beginning of one; take a fresh copy")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a broken archive
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadFile(f"{path} cannot be read as a ticket: {first}") from error


def _checksum(header: str, weights: Mapping[str, Any]) -> str:
    import torch

    digest = hashlib.sha256(header.encode())
    for name in sorted(weights, key=str):
        tensor = weights[name]
        if not isinstance(tensor, torch.Tensor):
            return "no tensor"
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
