"""Where a search gets its task, its network and its recipe from, by names: what another process needs to do the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltcompile import tasks
from ltcompile.core.image_size import ImageSize, height_width
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Record
from ltcompile.core.task import Task
from ltcompile.data import SPLIT_SEED, VAL_SHARE, Dataset, DatasetOptions
from ltcompile.models import default_recipe, least_size, preprocessing
from ltcompile.search.config import SearchConfig


@dataclass(frozen=True)
class Source(Record):
    """The names of a search's task, network and data, as `find` takes them. `train_images`: so many of the training images alone."""

    task: str
    model: str
    data: str
    data_root: str = "data"
    image_size: tuple[int, ...] | None = None
    weights: str | None = None
    strict: bool = False
    train_images: int | None = None
    skip_damaged: bool = False

    def load(self, download: bool = False) -> Task:
        """The task. Raises as `find`."""
        where = self.task, self.model, self.data, self.data_root, self.image_size
        found = task_for(*where, weights=self.weights, download=download, strict=self.strict, skip_damaged=self.skip_damaged)
        if self.train_images is None:
            return found
        part: Task = tasks.load(self.task).TASK(found.data.with_train_images(self.train_images))  # type: ignore[attr-defined]
        return part

    def anywhere(self) -> Source:
        """With the folder of the data in full, for processes in other folders."""
        return replace(self, data_root=str(Path(self.data_root).absolute()))


def default_folder(model: str, data: Dataset | Task, config: SearchConfig) -> Path:
    """runs/MODEL-DATA-REWIND."""
    return Path("runs") / "-".join((model, data.description.name, config.rewind)).replace(":", "-").replace("/", "-")


def task_for(
    task: str,
    model: str,
    data: str,
    data_root: str | Path = "data",
    image_size: ImageSize | None = None,
    *,
    weights: str | Path | None = None,
    download: bool = False,
    strict: bool = False,
    skip_damaged: bool = False,
) -> Task:
    """The task on the data as `model` has to see it: large enough, and with `weights` prepared as for its published ones. Raises as `find`."""
    side = image_size or (least_size(model) if data == "mnist" and least_size(model) > 28 else None)
    size = None if side is None else height_width(side)
    prepared = preprocessing(model) if weights else None
    options = DatasetOptions(size, VAL_SHARE, SPLIT_SEED, download, strict, prepared, skip_damaged)
    return tasks.load_task(task, data, Path(data_root), options)


def data_for(model: str, data: str, data_root: str | Path = "data", image_size: ImageSize | None = None, **options: Any) -> Dataset:
    """The data set of a classification as `model` has to see it; see `task_for`."""
    found: Dataset = task_for("classification", model, data, data_root, image_size, **options).data  # type: ignore[attr-defined]
    return found


def recipe_for(model: str, data: Dataset | Task, weights: str | Path | None = None) -> Recipe:
    """The model's usual recipe, at a fine-tuning rate where there are trained `weights`, adapted to the data. Raises UnknownName."""
    usual = default_recipe(model)
    return data.adapt(usual.fine_tuning() if weights else usual)
