"""ltcompile: make a convolutional network smaller and really faster.

import ltcompile as lt

model = lt.build_model("vgg16", classes=10)
plan = lt.plan(model, example, ratio=0.5)       # which channels go
small = lt.cut(model, plan)                     # smaller, dense, equal to lt.mask(model, plan)

found = lt.find("vgg16", "digits")              # search, with controls and a verdict
shrunk = lt.shrink(found.ticket, "small.onnx")  # verified file

engine = lt.compile(small, images, device="cpu")  # the fastest that this machine has
engine.save("small.engine")                       # lt.load_engine brings it back without the model's code
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Deployment": "ltcompile.core.deployment",
    "Limits": "ltcompile.prune",
    "Metric": "ltcompile.core.task",
    "MetricValue": "ltcompile.pruned",
    "Profile": "ltcompile.core.profile",
    "Pruned": "ltcompile.pruned",
    "PruningPlan": "ltcompile.core.plan",
    "Recipe": "ltcompile.core.recipe",
    "Regulariser": "ltcompile.prune.regularisers",
    "Schedule": "ltcompile.prune.schedule",
    "Search": "ltcompile.benchmark.own_search",
    "SearchConfig": "ltcompile.search",
    "SearchResult": "ltcompile.search",
    "Ticket": "ltcompile.core.ticket",
    "WeightMask": "ltcompile.core.mask",
    "attach": "ltcompile.search.attach",
    "bench": "ltcompile.benchmark.bench",
    "build_model": "ltcompile.models",
    "compile": "ltcompile.engine",
    "cut": "ltcompile.graph",
    "embed": "ltcompile.graph",
    "find": "ltcompile.search",
    "load_data": "ltcompile.data",
    "load_engine": "ltcompile.engine",
    "load_pruned": "ltcompile.deploy",
    "mask": "ltcompile.graph",
    "plan": "ltcompile.benchmark.planning",
    "profile": "ltcompile.benchmark.profiling",
    "repair": "ltcompile.recovery",
    "report": "ltcompile.reporting",
    "report_metric": "ltcompile.search.attach",
    "sensitivity": "ltcompile.prune.sensitivity",
    "shrink": "ltcompile.deploy",
    "similarity": "ltcompile.benchmark.similarity",
    "size": "ltcompile.graph",
    "squeeze": "ltcompile.graph",
    "stopwatch": "ltcompile.benchmark.profiling",
    "sweep": "ltcompile.benchmark.sweep",
    "verify": "ltcompile.verification",
}
__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ltcompile' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
