"""Run a study: its searches, each in a folder of its own, then what they say, in study.json. A study is resumed by doing it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ltcompile.core.recipe import Recipe
from ltcompile.core.records import provenance
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.study import ArmNote, Study
from ltcompile.errors import InvalidFile
from ltcompile.search import Listener, NullListener, prize
from ltcompile.study._nouns import Done, Findings, Scale, StudyArm
from ltcompile.study._searches import Listen, StudySearches, recipe_of
from ltcompile.study._studies import load, scaled
from ltcompile.study._taking_part import StudyJob

INTERVALS = (
    "Intervals are two-sided 95 % intervals of Student's t over seeds; differences are paired by seed. Each claim is judged for itself, "
    "without a correction for there being several."
)
PICKED = "Levels, rates and winners are picked on validation images; test images serve for the reported figures alone, after that."


def run(
    name: str,
    scale: str = "smoke",
    *,
    data: str | None = None,
    data_root: str | Path = "data",
    download: bool = False,
    seeds: int | None = None,
    folder: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    listen: Listen | None = None,
    workers: Mapping[str, Any] | None = None,
) -> Study:
    """Run every arm of the study `name`, and write what they say to `folder`/study.json.

    Args:
        data: other images than the scale's own.
        seeds: another number of them; fewer than three say next to nothing about the spread between trainings, and claims say so.
        folder: where the arms' run folders go, by default runs/NAME-SCALE.
        resume: continue after the last completed epoch of any arm; other settings are refused.
        listen: makes the listener of an arm's search.
        workers: `find`'s jobs, executor, executor_options and retries, to train arms of all searches side by side; by default this process
            trains one after another. What a study times, it times when all are trained.

    Raises:
        LtcompileError: as `find`; TicketMismatch where a resumed study was begun with other settings.
    """
    study = load(name)
    chosen, path = scaled(study, scale, data, seeds), Path(folder or default_folder(name, scale))
    if resume and not path.exists():
        raise InvalidFile(f"there is no study to resume at {path}; leave resume= out to begin it")
    if not resume and any(RunFolder(path / arm.name).begun for arm in study.arms(chosen)):
        raise InvalidFile(f"{path} holds a study already; continue it with resume=True, or choose another folder=")
    searches = StudySearches(study, chosen, path, data_root, device, listen or _silently, download=download, patient=workers is not None)
    with searches.begun(workers) as train:
        StudyJob(name, scale, data, str(Path(data_root).absolute()), seeds, searches.environment).save(path)
        train()
    done = {arm: searches.done(arm) for arm in searches.arms}
    findings: Findings = study.analyse(chosen, done, searches.device)
    found = _study(name, scale, chosen, study, done, findings)
    found.save(path)
    return found


def default_folder(name: str, scale: str) -> Path:
    """runs/NAME-SCALE."""
    return Path("runs") / f"{name.replace('_', '-')}-{scale}"


def _silently(arm: StudyArm, recipe: Recipe) -> Listener:
    return NullListener()


def _study(name: str, scale: str, chosen: Scale, study: ModuleType, done: dict[str, Done], findings: Findings) -> Study:
    first = next(iter(done.values())).arm.config
    return Study(
        name=name.replace("_", "-"),
        title=study.TITLE,
        source=study.SOURCE,
        scale=scale,
        about=[chosen.about, *findings.remarks, PICKED, INTERVALS],
        seeds=[*first.all_seeds],
        arms=[_note(each) for each in done.values()],
        claims=findings.claims,
        tables=findings.tables,
        figures=findings.figures,
        provenance=provenance(),
        maps=findings.maps,
    )


def _note(done: Done) -> ArmNote:
    arm, images = done.arm, done.data
    return ArmNote(
        name=arm.name,
        model=arm.model,
        data=images.description.name,
        images={"train": len(images.train), "val": len(images.val), "test": len(images.test)},
        config=_as_read(arm.config.to_json()),
        recipe=_as_read(recipe_of(arm, images).to_json()),
        summary=done.verdict.summary,
        flags=done.verdict.flags,
        prize=prize(done.verdict.flags),
        training_seconds=sum(row.seconds for row in done.rows),
    )


def _as_read(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file: lists for tuples."""
    return dict(json.loads(json.dumps(settings)))
