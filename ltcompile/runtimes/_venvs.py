"""Environments of their own for converters and runtimes that are heavy, or need other versions than PyTorch's here: made only on request."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ltcompile.errors import Unavailable, unknown
from ltcompile.paths import cache_folder, check_room, write_json
from ltcompile.runtimes import _web
from ltcompile.runtimes._convert import run

PACKAGES = {  # what is installed, and the gigabytes that it takes
    "litert": (("litert-torch", "ai-edge-litert"), 8),
    "executorch": (("executorch", "torch"), 7),
    "coreml": (("coremltools", "torch"), 7),
}
INSTALL_S = 7200
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"


def folder(name: str) -> Path:
    """Where the environment of a format is, or would be. Raises UnknownName where no format needs one."""
    if name == _web.NAME:
        return _web.folder()
    if name not in PACKAGES:
        raise unknown("format to install", name, [*PACKAGES, _web.NAME])
    return cache_folder() / "venvs" / name


def python(name: str) -> Path | None:
    """The interpreter of an environment that was installed completely, or None."""
    there = folder(name)
    return there / "bin" / "python" if (there / "installed.json").is_file() else None


def missing(name: str) -> str | None:
    """Why the environment cannot be used and what to do, or None."""
    if python(name) is not None:
        return None
    packages, size = PACKAGES[name]
    return f"run `ltcompile doctor --install {name}` first ({size} GB: {' and '.join(packages)} in an environment of their own)"


def need(name: str) -> Path:
    """The interpreter of an environment. Raises Unavailable where it is not installed."""
    if (found := python(name)) is None:
        raise Unavailable(str(missing(name)))
    return found


def install(name: str) -> dict[str, str]:
    """Make the environment of a format with pip, or fetch what a page needs; the versions. What was there is replaced.

    Raises:
        UnknownName: no format needs it. InvalidFile: there is no space. Unavailable: pip fails, such as without a network; its log is kept.
    """
    if name == _web.NAME:
        return _web.install()
    there = folder(name)
    packages, size = PACKAGES[name]
    there.mkdir(parents=True, exist_ok=True)
    (there / "installed.json").unlink(missing_ok=True)
    check_room(there, size << 30, f"the environment of {name}")
    log = cache_folder() / "logs" / f"install-{name}.log"
    try:
        run([sys.executable, "-m", "venv", "--clear", there], f"the environment of {name}", kept=log)
        pip: list[str | Path] = [
            there / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
        ]
        run([*pip, *packages], f"the environment of {name}", kept=log, timeout_s=INSTALL_S)
        versions: dict[str, str] = json.loads(run([there / "bin" / "python", "-c", VERSIONS, *packages], f"{name}'s versions", kept=log))
    except Unavailable as error:
        raise Unavailable(f"{error}; check the network (pip reads PIP_INDEX_URL and the like), and install again") from error
    write_json(there / "installed.json", versions)
    return versions
