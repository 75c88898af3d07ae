"""Files are data: no line of the project can execute what a file holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for folder in ("ltcompile", "models", "bench", "examples") for p in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput"}


def faults(source: str) -> Iterator[str]:
    """What in `source` could run code from a file or a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            home = "" if isinstance(node, ast.Import) else f"{node.module}."
            names = {f"{home}{alias.name}" for alias in node.names} - {"pickle.UnpicklingError"}  # it is raised, not used
            yield from (f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in CALLS:
            yield f"line {node.lineno}: calls {called}"
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if called in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
            yield f"line {node.lineno}: {called} that unpickles"
        if keywords.get("shell", "False") != "False":
            yield f"line {node.lineno}: a shell"


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_nothing_executes_what_a_file_holds(path: Path) -> None:
    assert list(faults(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from pickle import load", "import torch; torch.load(path)", "torch.load(path, weights_only=False)"),
        *("eval(text)", "exec(text)", "subprocess.run(line, shell=True)", "os.system(line)", "np.load(path, allow_pickle=True)"),
    ],
)
def test_the_search_finds(line: str) -> None:
    assert list(faults(line))


def test_there_are_sources() -> None:
    assert len(SOURCES) > 100
