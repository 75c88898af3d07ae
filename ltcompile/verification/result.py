"""Results of a verification: values, checks and the outcome of all of them."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

from ltcompile.core.interval import wilson
from ltcompile.core.records import Record, cpu_name
from ltcompile.verification.network import gpu_name

Verdict = Literal["confirmed", "not confirmed", "not comparable"]
REPEATED = ("accuracy", "latency", "speedup")  # what is confirmed by repeating it alone
CLAIMS = ("answers", *REPEATED)
What = Literal["file", "answers", "ticket", "size", "accuracy", "speedup", "latency"]


@dataclass(frozen=True)
class Value(Record):
    """A number, with its 95 % interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Check(Record):
    """One claim compared with what was found.

    `claimed` and `found` are bytes of a size, a share of an accuracy, a ratio of a speedup, milliseconds a batch of a latency, and
    None for what is not a number or was not repeated. `on` is the deployment of what was timed, as `Deployment` writes it.
    """

    what: What
    claim: str
    verdict: Verdict
    reason: str
    claimed: Value | None = None
    found: Value | None = None
    on: str | None = None


@dataclass(frozen=True)
class Verified:
    """All checks of one file on this machine.

    `busy_share` is how much of it other work took just before (None: not known), `required` the kinds of claims that must be confirmed.
    """

    target: str
    sha256: str
    claims: str
    checks: Sequence[Check]
    busy_share: float | None
    required: Sequence[str] = ()

    @property
    def outcome(self) -> Verdict:
        """ "not confirmed" if one check is; "not comparable" if no claim, or not every required one, was repeated; else "confirmed".

        Size and SHA-256 identify the file: they can refute a claim, but confirm neither accuracy nor speed.
        """
        if any(check.verdict == "not confirmed" for check in self.checks):
            return "not confirmed"
        repeated = any(check.what in REPEATED and check.verdict == "confirmed" for check in self.checks)
        return "confirmed" if repeated and not self.missing else "not comparable"

    @property
    def missing(self) -> list[str]:
        """The required kinds without a claim, or with one that is not confirmed."""
        found = {what: [check.verdict for check in self.checks if check.what == what] for what in self.required}
        return [what for what, verdicts in found.items() if set(verdicts) != {"confirmed"}]

    def to_json(self) -> dict[str, Any]:
        """The checks as JSON, with the machine, versions and the present time."""
        return {
            "kind": "verified",
            "format": 1,
            "target": self.target,
            "sha256": self.sha256,
            "claims": self.claims,
            "outcome": self.outcome,
            "required": list(self.required),
            "missing": self.missing,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "busy_share": self.busy_share,
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "gpu": gpu_name(), "system": platform.platform()},
            "versions": _versions(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def share_of(share: float, images: int) -> Value:
    """The fraction of `images` that are classified correctly, with Wilson's 95 % interval."""
    return Value(share, *wilson(share, images))


def _versions() -> dict[str, str]:
    import numpy as np
    import onnxruntime

    found = {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    try:
        return found | {"ltcompile": metadata.version("ltcompile")}
    except metadata.PackageNotFoundError:  # a copy that is not installed
        return found
