"""How long the layers of one network take on one machine, at many widths; and so how long any cut of it will take."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ltcompile.core.deployment import Deployment
from ltcompile.core.records import Record, cpu_name, versions
from ltcompile.core.result_file import FORMAT, read_result
from ltcompile.core.surface import Alignment, Grid, Sample, Surface, fit_alignment
from ltcompile.errors import InvalidFile, ProfileMismatch
from ltcompile.paths import write_json
from ltcompile.processors import processors

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_RUNS = 128  # that a file may hold
MOST_MS, LEAST_MS, WIDEST = 1e9, 1e-7, 1 << 22
RELEVANT = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime"), "openvino": ("openvino",), "eager": ("torch",)}  # packages, by runtime
Why = Literal["dense", "grid", "alignment", "check"]


@dataclass(frozen=True)
class Run(Record):
    """One timing of the network, at widths of its own: layer -> (read, made); `layers_ms` add up to `ms`, the median of the whole.

    `spread` is p80 over p20. Why it was run: "grid" and "alignment" fit the law, "check" is held against it. `reference_ms` is the median of
    a small cut that ran in turns with it: how fast the machine was just then.
    """

    why: Why
    widths: dict[str, tuple[int, int]]
    ms: float
    spread: float
    layers_ms: dict[str, float]
    reference_ms: float


@dataclass(frozen=True)
class LayerKind(Record):
    """What a layer is, and whether the widths that it reads and makes can change."""

    kind: str
    reads: bool
    makes: bool


@dataclass(frozen=True)
class Profile(Record):
    """The timings of `model` (name and arguments, or as `named_network` describes one) at `target`, and the machine and versions that they hold for."""

    model: dict[str, Any]
    target: Deployment
    machine: dict[str, str]
    layers: dict[str, LayerKind]
    runs: tuple[Run, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises InvalidFile where a run lacks a layer, or a time is not a number above 0."""
        if len(self.runs) > MOST_RUNS or (
            self.runs and (self.runs[0].why != "dense" or self.runs[0].layers_ms.keys() != self.layers.keys())
        ):
            raise InvalidFile(
                f"a profile has up to {MOST_RUNS} runs, of which the first is the whole network's and has the time of every layer"
            )
        for run in self.runs:
            if run.widths.keys() != self.layers.keys() or not run.layers_ms.keys() <= self.layers.keys():
                raise InvalidFile("a run of the profile is of other layers")
            times, widths = ((run.ms, run.reference_ms, *run.layers_ms.values()), [width for pair in run.widths.values() for width in pair])
            if not all(LEAST_MS <= ms <= MOST_MS for ms in times) or not all(1 <= width <= WIDEST for width in widths):
                raise InvalidFile("the profile has times or widths that no layer has")

    @property
    def dense_ms(self) -> float:
        """The whole network's median, at the machine's usual pace."""
        return self.runs[0].ms * self.pace(self.runs[0].reference_ms)

    def pace(self, reference_ms: float) -> float:
        """What a time is multiplied by that was taken while the small cut took `reference_ms`: in the middle of all runs, one."""
        return self._usual_ms / reference_ms

    @property
    def spread(self) -> float:
        """p80 over p20 of a run's blocks, the median over runs."""
        return float(np.median([run.spread for run in self.runs]))

    @property
    def drift(self) -> float:
        """p90 over p10 of the times of the small cut: by how much the machine's speed changed meanwhile."""
        return float(np.divide(*np.quantile([run.reference_ms for run in self.runs], [0.9, 0.1])))

    @functools.cached_property
    def _usual_ms(self) -> float:
        """The median time of the small cut."""
        return float(np.median([run.reference_ms for run in self.runs]))

    def predict(self, widths: Mapping[str, tuple[Any, Any]]) -> Any:
        """Milliseconds at these widths: layer -> (read, made), numbers or arrays that broadcast."""
        return sum(surface(*widths[name]) for name, surface in self.surfaces.items())

    @functools.cached_property
    def surfaces(self) -> dict[str, Surface]:
        """Layer -> its time over widths."""
        timed = sorted(self.layers)
        grids = {name: Grid(self._samples(name, "dense", "grid")) for name in timed}
        alignment: dict[str, Alignment] = {}
        for kind in {self.layers[name].kind for name in timed}:
            alike = [name for name in timed if self.layers[name].kind == kind]
            alignment[kind] = fit_alignment(
                [(grids[n], self.layers[n].reads, self.layers[n].makes, self._samples(n, "alignment")) for n in alike]
            )
        return {n: Surface(grids[n], alignment[self.layers[n].kind], self.layers[n].reads, self.layers[n].makes) for n in timed}

    def errors(self) -> list[float]:
        """Of the runs that the law has not seen: predicted over measured, minus one."""
        return [float(self.predict(run.widths)) / (run.ms * self.pace(run.reference_ms)) - 1 for run in self.runs if run.why == "check"]

    @property
    def median_error(self) -> float:
        """The median of the absolute `errors`; nan where nothing was held back."""
        return float(np.median(np.abs(self.errors()))) if self.errors() else float("nan")

    def _samples(self, layer: str, *why: Why) -> list[Sample]:
        runs = [run for run in self.runs if run.why in why and layer in run.layers_ms]
        return [Sample(*run.widths[layer], run.layers_ms[layer] * self.pace(run.reference_ms)) for run in runs]

    def check_here(self) -> None:
        """Raises ProfileMismatch where it is of another machine or of other versions; it says which."""
        here = machine(self.target)
        for name in sorted({*here, *self.machine}):
            if (there := self.machine.get(name, "nothing")) != (now := here.get(name, "nothing")):
                raise ProfileMismatch(
                    f"the profile was made with {name} {there}, and here is {now}; make it again with `ltcompile profile`"
                )

    def check_fits(self, model: Mapping[str, Any], target: Deployment | None = None) -> None:
        """Raises ProfileMismatch where it is of another network, or for another target; it says what differs."""
        for name, there, expected in (
            ("name", self.model.get("name"), model["name"]),
            ("arguments", self.model.get("arguments"), model["arguments"]),
        ):
            if there != expected:
                raise ProfileMismatch(f"the profile is of a model with {name} {there}, not {expected}; make one with `ltcompile profile`")
        if target is not None and target != self.target:
            raise ProfileMismatch(f"the profile is for {self.target}, not for {target}; make one with `ltcompile profile` there")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "profile", "format": FORMAT, **super().to_json()}

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """What was written to `path`. Raises InvalidFile where it is missing, or no profile."""
        found: Profile = read_result(path, {"profile": cls}, "`ltcompile profile`")
        return found


def named_network(network: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """What a profile calls a network that no name builds: its class, the shapes of its inputs but for the batch, and a hash over the names
    and shapes of its tensors. Times do not depend on the values of weights.
    """
    shapes = [[name, list(value.shape), str(value.dtype)] for name, value in network.state_dict().items()]
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
    return {"name": f"{type(network).__name__}", "arguments": {"inputs": [list(t.shape[1:]) for t in inputs], "tensors": digest}}


def machine(target: Deployment) -> dict[str, str]:
    """What decides how fast a network runs here, as far as it can be named."""
    there = versions()
    found = {"cpu": cpu_name(), "threads": str(processors())}
    if target.device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "nothing"
    return found | {name: there[name] for name in RELEVANT.get(target.runtime, ()) if name in there}
