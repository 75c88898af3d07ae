"""The studies there are, by name, and the scales that they are done at."""

from __future__ import annotations

import dataclasses
from types import ModuleType

from ltcompile import registry
from ltcompile.errors import unknown
from ltcompile.study._nouns import Scale

PACKAGE = "ltcompile.study"


def names() -> list[str]:
    """The studies there are, as the command line spells them."""
    return [module.replace("_", "-") for module in registry.modules(PACKAGE)]


def load(name: str) -> ModuleType:
    """The study `name`, with dashes or underscores. Raises UnknownName."""
    if (spelt := name.replace("_", "-")) not in names():
        raise unknown("study", name, names())
    return registry.load(PACKAGE, "study", spelt.replace("-", "_"))


def scaled(study: ModuleType, scale: str, data: str | None = None, seeds: int | None = None) -> Scale:
    """One of a study's scales, on other data or with other seeds on request. Raises UnknownName, InvalidSetting."""
    if scale not in study.SCALES:
        raise unknown("scale", scale, list(study.SCALES))
    usual: Scale = study.SCALES[scale]
    return dataclasses.replace(usual, data=data or usual.data, seeds=usual.seeds if seeds is None else seeds)
