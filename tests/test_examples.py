"""The tutorials run as they are written, with fewer images and epochs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORTER = {
    "photos\n": "photos 150\n",
    "resnet18.pth 6": "resnet18.pth 1",
    "--rounds 2": "--rounds 1",
    "--epochs 4": "--epochs 1",
    "--batch 16 --seconds 1": "--seconds 0.5",
}


def test_own_images(tmp_path: Path) -> None:
    folder = EXAMPLES / "own_images"
    script = "".join(re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL))
    for written, shorter in SHORTER.items():
        assert written in script, f"{written!r} is no longer in the tutorial"
        script = script.replace(written, shorter, 1)
    for line in script.replace("\\\n", " ").splitlines():
        command, *words = shlex.split(line)
        if command == "ltcompile":
            done = call(*words, cwd=tmp_path)
        else:
            done = subprocess.run(
                [sys.executable, folder / words[0], *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    run = tmp_path / "runs/photos"
    search, shrunk = (json.loads((run / name).read_text()) for name in ("search.json", "small.json"))
    assert search["data"]["sizes"] == {"train": 90, "val": 30, "test": 30} and search["data"]["mean"][0] == 0.485
    assert shrunk["macs"] < 0.2 * shrunk["dense_macs"] and shrunk["equality_error"] < 1e-5
    assert "resnet18" in (run / "report.html").read_text()
