"""The studies on real MNIST and CIFAR-10.

    python bench/studies.py --data-root DIR                   all of them at scale small, one after another: hours on two cores
    python bench/studies.py --data-root DIR masks locality    some of them
    python bench/studies.py --data-root DIR --scale medium --seeds 1 structured-tickets

A study that was begun resumes in its run folder. Each leaves study.json in a folder of bench/results/studies (NAME, or NAME-medium), of which
`ltcompile report` makes the page with figures and tables again, and a chapter in claims.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from _common import RESULTS

from ltcompile.core.study import FILE, Claim, Study
from ltcompile.study import default_folder, names

HERE = RESULTS / "studies"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; all by default")
    arguments.add_argument("--data-root", type=Path, required=True, help="folder with CIFAR-10 and MNIST in torchvision's layout")
    arguments.add_argument("--scale", default="small", help="small or medium")
    arguments.add_argument("--seeds", type=int, help="the scale's by default")
    options = arguments.parse_args()
    for name in options.names or names():
        folder = default_folder(name, options.scale)
        command = [sys.executable, "-m", "ltcompile", "study", name, "--scale", options.scale, "--data-root", str(options.data_root)]
        command += [] if options.seeds is None else ["--seeds", str(options.seeds)]
        subprocess.run([*command, *["--resume"] * folder.exists()], check=True)
        result = HERE / (name if options.scale == "small" else folder.name)
        result.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / FILE, result / FILE)
        found = [Study.load(path) for path in sorted(HERE.glob(f"*/{FILE}"))]
        (HERE / "claims.md").write_text("\n".join(["# Claims, and what was found", *map(chapter, found)]))


def chapter(study: Study) -> str:
    """Where a study's numbers come from, and its claims."""
    seconds = sum(arm.training_seconds for arm in study.arms)
    where = study.provenance
    heading = f"## {study.name}" + (f", {study.scale}" if study.scale != "small" else "")
    lines = ["", heading, "", f"{study.title} ({study.source}).", "", study.about[0], ""]
    lines += [
        f"{len(study.arms)} searches over seeds {', '.join(map(str, study.seeds))}; their trainings took {seconds / 60:.0f} minutes, on "
        f"{where['machine']['threads']} thread of {where['machine']['cpu']} ({where['machine']['simd']}), at {str(where['commit'])[:12]}.",
        "",
    ]
    return "\n".join([*lines, "| claim | found (95 % interval) | holds if | |", "| --- | --- | --- | --- |", *map(row, study.claims), ""])


def row(claim: Claim) -> str:
    said = f"{claim.found} {claim.unit}; {claim.number}".replace("|", "\\|")
    return f"| {claim.statement} | {said} | {claim.side} {claim.bound:g} | **{claim.answer}** |"


if __name__ == "__main__":
    main()
