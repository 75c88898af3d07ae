"""What the benchmarks share: a line of JSON at the end, and a file of it under bench/results/."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from ltcompile.core.records import cpu_name, provenance
from ltcompile.paths import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def finish(name: str, result: dict[str, Any]) -> None:
    """Write bench/results/NAME.json with provenance, and print the result as one line of JSON."""
    command = shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *map(without_folder, sys.argv[1:])])
    write_json(RESULTS / f"{name}.json", {**result, "provenance": {**provenance(), "command": command}})
    print(json.dumps(result))


def without_folder(word: str) -> str:
    """An argument as it is written down: of an absolute path the last part alone, since folders are of one machine."""
    start, equals, path = word.rpartition("=")
    return f"{start}{equals}{Path(path).name}" if Path(path).is_absolute() else word


def machine() -> str:
    """The name of this machine's file: its processor and its number of cores."""
    return re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {os.cpu_count()} cores".lower().replace("(r)", "")).strip("-")
