"""Run a study: each arm by `find` in a folder of its own, then what they say, in study.json. A study is resumed by doing it again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

from ltcompile import registry
from ltcompile.core.image_size import height_width
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import provenance
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.study import ArmNote, Study
from ltcompile.data import Dataset
from ltcompile.errors import InvalidFile, InvalidSetting, unknown
from ltcompile.executors import load as load_executor
from ltcompile.search import Listener, NullListener, Source, data_for, find, prize, recipe_for
from ltcompile.study._nouns import SIZES, Done, Findings, Scale, StudyArm
from ltcompile.training import pick_device

PACKAGE = "ltcompile.study"
INTERVALS = (
    "Intervals are two-sided 95 % intervals of Student's t over seeds; differences are paired by seed. Each claim is judged for itself, "
    "without a correction for there being several."
)
PICKED = "Levels, rates and winners are picked on validation images; test images serve for the reported figures alone, after that."

Watch = Callable[[StudyArm, Recipe], AbstractContextManager[Listener]]  # the listener of an arm


def names() -> list[str]:
    """The studies there are, as the command line spells them."""
    return [module.replace("_", "-") for module in registry.modules(PACKAGE)]


def load(name: str) -> ModuleType:
    """The study `name`, with dashes or underscores. Raises UnknownName."""
    if (spelt := name.replace("_", "-")) not in names():
        raise unknown("study", name, names())
    return registry.load(PACKAGE, "study", spelt.replace("-", "_"))


def scaled(study: ModuleType, scale: str, data: str | None = None, seeds: int | None = None) -> Scale:
    """One of a study's scales, on other data or with other seeds on request. Raises UnknownName, InvalidSetting."""
    if scale not in SIZES:
        raise unknown("scale", scale, list(SIZES))
    usual: Scale = study.SCALES[scale]
    return dataclasses.replace(usual, data=data or usual.data, seeds=usual.seeds if seeds is None else seeds)


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
    watch: Watch | None = None,
    workers: Mapping[str, Any] | None = None,
) -> Study:
    """Run every arm of the study `name`, and write what they say to `folder`/study.json.

    Args:
        data: other images than the scale's own.
        seeds: another number of them; fewer than three say next to nothing about the spread between trainings, and claims say so.
        folder: where the arms' run folders go, by default runs/NAME-SCALE.
        resume: continue after the last completed epoch of any arm; other settings are refused.
        watch: makes the listener of an arm's search.
        workers: `find`'s jobs, executor, executor_options and retries, for searches on images that a name gives; others run in this process.

    Raises:
        LtcompileError: as `find`; TicketMismatch where a resumed study was begun with other settings.
    """
    study = load(name)
    chosen, path, on = scaled(study, scale, data, seeds), Path(folder or default_folder(name, scale)), pick_device(device)
    arms: list[StudyArm] = study.arms(chosen)
    if workers:
        load_executor(workers["executor"])
        if not any(_source(arm, data_root) for arm in arms):
            raise InvalidSetting(f"jobs={workers['jobs']}: all searches of {name} make their own images in this process; leave jobs= out")
    begun = {arm.name for arm in arms if RunFolder(path / arm.name).begun}
    if resume and not path.exists():
        raise InvalidFile(f"there is no study to resume at {path}; leave resume= out to begin it")
    if begun and not resume:
        raise InvalidFile(f"{path} holds a study already; continue it with resume=True, or choose another folder=")
    images = _images(arms, data_root, download)
    done: dict[str, Done] = {}
    for arm in arms:
        source = _source(arm, data_root)
        how = {"device": str(on), "resume": arm.name in begun, "source": source, **(workers if workers and source else {})}
        done[arm.name] = _search(arm, images[arm.name], done, path, watch or _silently, how)
    findings: Findings = study.analyse(chosen, done, on)
    found = _study(name, scale, chosen, study, done, findings)
    found.save(path)
    return found


def default_folder(name: str, scale: str) -> Path:
    """runs/NAME-SCALE."""
    return Path("runs") / f"{name.replace('_', '-')}-{scale}"


def recipe_of(arm: StudyArm, images: Dataset) -> Recipe:
    """How all trainings of an arm are done: the model's usual recipe, adapted to the data, with the study's changes."""
    return dataclasses.replace(recipe_for(arm.model, images), **arm.recipe)


def _images(arms: list[StudyArm], root: str | Path, download: bool) -> dict[str, Dataset]:
    """Every arm's images, loaded once each, before anything is trained."""
    loaded: dict[tuple[Any, ...], Dataset] = {}
    for arm in arms:
        if _of_images(arm) not in loaded:
            whole = data_for(arm.model, arm.data, root, arm.image_size, download=download)
            loaded[_of_images(arm)] = whole if arm.train_images is None else whole.with_train_images(arm.train_images)
    own = {arm.name: loaded[_of_images(arm)] for arm in arms}
    return {arm.name: arm.change(own[arm.name]) if arm.change else own[arm.name] for arm in arms}


def _of_images(arm: StudyArm) -> tuple[Any, ...]:
    """What an arm's images depend on, before they are changed."""
    return arm.model, arm.data, arm.image_size, arm.train_images


def _source(arm: StudyArm, root: str | Path) -> Source | None:
    """The names by which other processes load an arm's images; None where they cannot train it."""
    if arm.change or arm.mask:
        return None
    size = None if arm.image_size is None else height_width(arm.image_size)
    return Source("classification", arm.model, arm.data, str(root), size, train_images=arm.train_images)


def _search(arm: StudyArm, images: Dataset, before: Mapping[str, Done], path: Path, watch: Watch, how: Mapping[str, Any]) -> Done:
    recipe, folder, mask = recipe_of(arm, images), path / arm.name, arm.mask(before) if arm.mask else None
    _share_dense(arm, before, folder)
    with watch(arm, recipe) as listener:
        found = find(arm.model, images, arm.config, recipe=recipe, folder=folder, listener=listener, mask=mask, **how)
    return Done(arm, found.rows, found.verdict, folder, images)


def _share_dense(arm: StudyArm, before: Mapping[str, Done], folder: Path) -> None:
    """Give a search the dense networks that one before it trained by the same recipe, from the same weights, on the same images; its other
    networks are then computed as those were.
    """
    for done in before.values():
        if _of_dense(done.arm) == _of_dense(arm):
            RunFolder(folder).copy_dense(RunFolder(done.folder), arm.config.all_seeds)


def _of_dense(arm: StudyArm) -> tuple[Any, ...]:
    """What the dense networks of a search, and what is written of them, depend on, apart from their seeds."""
    config = arm.config
    counted = config.prune, config.method, config.keep, config.only
    return _of_images(arm), arm.change, {**arm.recipe}, config.rewind_epoch, counted


@contextlib.contextmanager
def _silently(arm: StudyArm, recipe: Recipe) -> Iterator[Listener]:
    yield NullListener()


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
