"""No line of the project can execute what a file holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for folder in ("ltcompile", "models", "kernels", "bench", "examples") for p in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code", "pickletools"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.fromfile", "pandas.read_pickle", "pd.read_pickle"),
    *("torch.jit.load", "torch.export.load", "torch.hub.load", "torch.package.PackageImporter", "torch.utils.cpp_extension.load"),
    *("importlib.import_module", "importlib.util.spec_from_file_location", "ctypes.CDLL"),
}
ENDINGS = {"aoti_load_package", "load_library", "LoadLibrary", "load_inline"}  # whatever they are called on
TRUSTED = {  # what a name from a file, or a file itself, cannot reach; each with the reason
    ("ltcompile/__init__.py", "importlib.import_module"): "names of the table above it",
    ("kernels/__init__.py", "importlib.import_module"): "names of the table above it",
    ("ltcompile/cli/__init__.py", "importlib.import_module"): "the names of commands above it",
    ("ltcompile/registry.py", "importlib.import_module"): "names that the package was found to offer",
    ("models/__init__.py", "importlib.import_module"): "timm; and package.module:factory, on the user's word",
    ("models/__init__.py", "importlib.util.spec_from_file_location"): "file.py:factory, on the user's word",
    ("models/_published.py", "importlib.import_module"): "timm",
    ("ltcompile/runtimes/__init__.py", "importlib.import_module"): "the packages that a module of it lists as IMPORTS",
    ("ltcompile/runtimes/tensorrt.py", "importlib.import_module"): "tensorrt",
    ("ltcompile/runtimes/tensorrt.py", "ctypes.CDLL"): "a library of the installed tensorrt",
    ("ltcompile/engine/cpu/native.py", "ctypes.CDLL"): "libraries that it has just compiled, or keeps in the user's cache",
    ("ltcompile/core/memory.py", "ctypes.CDLL"): "the C library",
    ("ltcompile/engine/cpu/matrix.py", "ctypes.CDLL"): "the C library",
    ("ltcompile/benchmark/energy.py", "ctypes.CDLL"): "the driver's library",
    ("bench/rehearsal.py", "runpy"): "a script of this folder, or pytest, that its command names",
    ("bench/rehearsal.py", "runpy.run_module"): "the same",
    ("bench/rehearsal.py", "runpy.run_path"): "the same",
    ("bench/reference_scripts.py", "runpy"): "a script of examples/",
    ("bench/reference_scripts.py", "torch.load without weights_only=True"): "the checkpoint that the published script has just written",
    ("ltcompile/runtimes/torch_compile.py", "aoti_load_package"): "the package that it has just made",
    ("ltcompile/deploy/formats/pt2.py", "torch.export.load"): "the file that it has just written",
}


def names(tree: ast.AST) -> dict[str, str]:
    """What each name stands for that is imported or defined anywhere."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        if isinstance(node, ast.FunctionDef):
            found[node.name] = f"here.{node.name}"
    return found


def faults(source: str) -> Iterator[tuple[int, str]]:
    """What in `source` could run code from a file or a string: lines and calls, under whatever name they were imported."""
    tree = ast.parse(source)
    known = names(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            home = "" if isinstance(node, ast.Import) else f"{node.module}."
            imported = {f"{home}{alias.name}" for alias in node.names} - {"pickle.UnpicklingError"}  # it is raised, not used
            yield from ((node.lineno, name) for name in imported if name.split(".")[0] in MODULES)
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):  # called, or handed to what calls it
            written = ast.unparse(node)
            first, dot, rest = written.partition(".")
            if (meant := f"{known.get(first, first)}{dot}{rest}".replace("numpy.", "np.")) in CALLS:
                yield node.lineno, meant
            if written.rpartition(".")[2] in ENDINGS:
                yield node.lineno, written.rpartition(".")[2]
        if isinstance(node, ast.Call):
            yield from _loads(node, known)


def _loads(node: ast.Call, known: dict[str, str]) -> Iterator[tuple[int, str]]:
    first, dot, rest = ast.unparse(node.func).partition(".")
    called, keywords = f"{known.get(first, first)}{dot}{rest}", {k.arg: ast.unparse(k.value) for k in node.keywords}
    if called == "torch.load" and keywords.get("weights_only") != "True":
        yield node.lineno, "torch.load without weights_only=True"
    if called == "numpy.load" and keywords.get("allow_pickle", "False") != "False":
        yield node.lineno, "numpy.load that unpickles"
    if called == "PIL.Image.open" and "formats" not in keywords:
        yield node.lineno, "PIL.Image.open of formats that start other programs"
    if keywords.get("shell", "False") != "False":
        yield node.lineno, "a shell"


@pytest.mark.slow
def test_nothing_executes_what_a_file_holds() -> None:
    found = []
    for path in SOURCES:
        where = str(path.relative_to(ROOT)).replace("ltcompile/models/", "models/").replace("ltcompile/kernels/", "kernels/")
        found += [(where, *fault) for fault in faults(path.read_text()) if (where, fault[1]) not in TRUSTED]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import pickle",
            "from pickle import load",
            "import torch; torch.load(path)",
            "import torch; torch.load(path, weights_only=False)",
        ),
        *("eval(text)", "exec(text)", "subprocess.run(line, shell=True)", "import os; os.system(line)", "import marshal, shelve"),
        "import numpy as np; np.load(path, allow_pickle=True)",
        "from torch import load as read; read(path)",
        "import torch as t; t.jit.load(path)",
        "from builtins import eval as calculate; calculate(text)",
        "list(map(eval, texts))",
        "from importlib import import_module; import_module(name)",
        "import importlib as i; i.import_module(name)",
        "__import__(name)",
        "from PIL import Image; Image.open(path)",
        "from os import system; system(line)",
        "anything.load_library(path)",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert list(faults(line))


def test_there_are_sources() -> None:
    assert len(SOURCES) > 100
    assert all((ROOT / file).exists() for file, _ in TRUSTED)
