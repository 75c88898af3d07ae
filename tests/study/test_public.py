"""Studies stand on what a user could import: no private module or name, and of packages with a public face nothing private."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

from ltcompile import study

FILES = sorted(Path(study.__file__).parent.glob("*.py"))
NOUNS = "ltcompile.core."  # every module of it is public
MODULES = {"ltcompile.benchmark.similarity", "ltcompile.benchmark.sweep"}  # public next to the packages that hold them


def is_public(module: str, names: set[str]) -> bool:
    """Whether `module` is public, and what it says of itself (`__all__`) holds `names`."""
    if any(part.startswith("_") for part in (*module.split("."), *names)):
        return False
    if module.count(".") > 1:
        return module.startswith(NOUNS) or module in MODULES
    return names <= {"registry", *getattr(importlib.import_module(module), "__all__", names)}


def test_studies_import_public_names_alone() -> None:
    found = [
        (file.name, node.lineno, node.module, {alias.name for alias in node.names})
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ltcompile") and "ltcompile.study" not in (node.module or "")
    ]
    assert len(found) > 50
    assert not [(file, line, module) for file, line, module, names in found if not is_public(module or "", names)]
    assert not is_public("ltcompile.search.masks", {"full_mask"}) and not is_public("ltcompile.search", {"ArmRunner"})
