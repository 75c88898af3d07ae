"""What the product imports is what its package declares: other packages may be there by chance, brought along by those of the tests."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BROUGHT = {"numpy", "pillow", "pyarrow"}  # by torchvision and by datasets, whose interfaces are made of their types


def imported() -> dict[str, set[str]]:
    """Top-level modules of others, and the files that import them."""
    found: dict[str, set[str]] = {}
    for path in (*(ROOT / "ltcompile").rglob("*.py"), *(ROOT / "models").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(str(path.relative_to(ROOT)))
    return {name: files for name, files in found.items() if name not in {*sys.stdlib_module_names, "ltcompile"}}


def test_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    users = [group for name, group in project["optional-dependencies"].items() if name not in ("dev", "docs")]
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for group in (project["dependencies"], *users) for line in group}
    known, missing = packages_distributions(), {}
    for name, files in imported().items():
        makers = {maker.lower().replace("_", "-") for maker in known.get(name, [])}
        if makers and not makers & (declared | BROUGHT):
            missing[name] = sorted(files)[:3]
    assert not missing
