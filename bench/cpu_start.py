"""Seconds to generate and compile the C++ of VGG-16 with an empty cache, and to load a compiled engine in new processes.

python bench/cpu_start.py           in about three minutes; writes bench/results/cpu/MACHINE-start.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import finish, machine
from _cpu_networks import FIFTH, WHOLE, networks

import ltcompile as lt
from ltcompile.engine.cpu import native
from ltcompile.engine.cpu.generate import generate
from ltcompile.lower.lower import lower

_LOAD = """
import sys, time, torch, ltcompile, ltcompile.engine.build
start = time.perf_counter()
engine = ltcompile.load_engine(sys.argv[1])
print(time.perf_counter() - start, engine.decisions[1].by)
"""


def starts() -> dict[str, Any]:
    """Seconds to generate and compile, with an empty cache, and to load the engine of each in new processes once it is compiled."""
    found = dict[str, Any]()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as an installed package
    for name in (WHOLE, FIFTH, "VGG-16 at 5 %"):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = environment["XDG_CACHE_HOME"] = folder
            model, image = networks()[name]()
            program = lower(model.eval(), image).program
            before = time.perf_counter()
            unit = generate(program, threads=2)
            generated = time.perf_counter()
            native.Library(unit, 1)
            compiled = time.perf_counter()
            lt.compile(model, torch.randn(8, *image.shape[1:]), batch=[1], tune_seconds=0).save(path := Path(folder) / "network.engine")
            loads = [
                subprocess.run([sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True, check=True, env=environment).stdout
                for _ in range(6)
            ]
        seconds = sorted(float(line.split(" ", 1)[0]) for line in loads[1:])
        found[name] = {
            "generate_s": generated - before,
            "compile_s": compiled - generated,
            "load_s": seconds,
            "by": loads[0].split(" ", 1)[1].strip(),
        }
        print(name, found[name], flush=True)
    return found


if __name__ == "__main__":
    finish(f"cpu/{machine()}-start", {"bench": "cpu-start", "networks": starts()})
