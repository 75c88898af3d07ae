"""The searches of a study: images, recipes, and what they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ltcompile.core.image_size import height_width
from ltcompile.core.mask import WeightMask
from ltcompile.core.recipe import Recipe
from ltcompile.core.run_folder import RunFolder
from ltcompile.data import Dataset
from ltcompile.search import Listener, Searches, SearchPart, Source, data_for, recipe_for
from ltcompile.study._nouns import Done, Scale, StudyArm
from ltcompile.tasks import Classification
from ltcompile.training import pick_device

Listen = Callable[[StudyArm, Recipe], Listener]  # makes the listener of a search


class StudySearches(Searches):
    """The searches of a study in `folder`, for one of the processes that share them. Loads all images.

    Args:
        listen: makes the listener of a search.
        more: as `Searches` has it.

    Raises:
        LtcompileError: as `find`, of images and settings.
    """

    def __init__(
        self,
        study: ModuleType,
        scale: Scale,
        folder: Path,
        data_root: str | Path,
        device: str | None,
        listen: Listen,
        *,
        download: bool = False,
        **more: Any,
    ) -> None:
        arms: list[StudyArm] = study.arms(scale)
        self.arms, self.images = {arm.name: arm for arm in arms}, _images(arms, data_root, download)
        dense = dense_sources(arms)
        parts = [self._part(arm, _source(arm, data_root), dense[arm.name]) for arm in arms]
        super().__init__(folder, parts, pick_device(device), lambda part: listen(self.arms[part.name], part.recipe), **more)

    def _part(self, arm: StudyArm, source: Source | None, dense: str | None) -> SearchPart:
        images = self.images[arm.name]

        def mask() -> WeightMask:
            assert arm.mask is not None
            return arm.mask({name: self.done(name) for name in arm.after})

        common = arm.name, arm.model, Classification(images), arm.config, recipe_of(arm, images)
        return SearchPart(*common, source=source, dense=dense, after=arm.after, mask=mask if arm.mask else None)

    def done(self, name: str) -> Done:
        """A search that is concluded. Raises InvalidFile."""
        ticket = RunFolder(self.path / name).finished()
        return Done(self.arms[name], ticket.history, ticket.verdict, self.path / name, self.images[name])


def dense_sources(arms: list[StudyArm]) -> dict[str, str | None]:
    """Search -> the first one that trains the same dense networks: by the same recipe, from the same weights, on the same images. None of itself."""
    first: list[StudyArm] = []
    found: dict[str, str | None] = {}
    for arm in arms:
        found[arm.name] = next((other.name for other in first if _of_dense(other) == _of_dense(arm)), None)
        if found[arm.name] is None:
            first.append(arm)
    return found


def recipe_of(arm: StudyArm, images: Dataset) -> Recipe:
    """How all trainings of an arm are done: the model's usual recipe, adapted to the data, with the study's changes."""
    return dataclasses.replace(recipe_for(arm.model, images), **arm.recipe)


def _images(arms: list[StudyArm], root: str | Path, download: bool) -> Mapping[str, Dataset]:
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


def _of_dense(arm: StudyArm) -> tuple[Any, ...]:
    """What the dense networks of a search, and what is written of them, depend on, apart from their seeds."""
    config = arm.config
    counted = config.prune, config.method, config.keep, config.only
    return _of_images(arm), arm.change, {**arm.recipe}, config.rewind_epoch, counted


def _source(arm: StudyArm, root: str | Path) -> Source | None:
    """The names by which a worker of this search alone loads its images; None where it needs the study."""
    if arm.change or arm.mask:
        return None
    size = None if arm.image_size is None else height_width(arm.image_size)
    return Source("classification", arm.model, arm.data, str(root), size, train_images=arm.train_images)
