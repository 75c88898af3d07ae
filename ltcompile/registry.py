"""Find what a package offers: one file is one entry, so adding an X touches one file.

A registry lists module names without importing them; `load` imports one. A file that offers several names (a family of
networks) lists them in `NAMES`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from ltcompile.errors import unknown


@cache
def modules(package: str) -> tuple[str, ...]:
    """The public module names inside `package`, sorted."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))


@cache
def names(package: str) -> dict[str, str]:
    """Every offered name -> the module that offers it."""
    offered = {}
    for module in modules(package):
        for name in getattr(importlib.import_module(f"{package}.{module}"), "NAMES", (module,)):
            offered[name] = module
    return offered


def load_all(package: str) -> list[ModuleType]:
    """All modules that `package` offers, by name."""
    return [importlib.import_module(f"{package}.{module}") for module in modules(package)]


def load(package: str, kind: str, name: str) -> ModuleType:
    """The module that offers `name`.

    Raises:
        UnknownName: nothing in `package` offers it; the message lists what there is.
    """
    known = names(package)
    if not isinstance(name, str) or name not in known:
        raise unknown(kind, name, sorted(known))
    return importlib.import_module(f"{package}.{known[name]}")
