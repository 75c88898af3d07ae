"""The search itself. Per seed: the dense network, then one ticket per level. Over all seeds: the verdict on validation data, the
control arms at the chosen level, and one look at the test set. Every arm has a file of its own: a search is resumed by doing it again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ltcompile import tasks
from ltcompile.core.arm import Arm
from ltcompile.core.image_size import ImageSize, height_width
from ltcompile.core.mask import WeightMask
from ltcompile.core.profile import Profile
from ltcompile.core.reached import Reached
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Task
from ltcompile.core.ticket import Ticket
from ltcompile.data import SPLIT_SEED, VAL_SHARE, Dataset, DatasetOptions
from ltcompile.errors import InvalidFile, TrainingFailed
from ltcompile.models import default_recipe, least_size, preprocessing
from ltcompile.paths import check_room, locked
from ltcompile.prune.budget import RelativeTimer
from ltcompile.search.answers import compare_answers
from ltcompile.search.arm_runner import ArmRunner
from ltcompile.search.config import PRUNE, SearchConfig
from ltcompile.search.disk_space import run_bytes
from ltcompile.search.iterative_pruning import IterativePruning
from ltcompile.search.job import PreparedJob, SearchJob, prepare
from ltcompile.search.listener import Listener, NullListener
from ltcompile.search.result import build_ticket, measure_target, write_summary
from ltcompile.search.scored_masks import ScoredMasks
from ltcompile.search.verdict import choose_level, closest_level, judge
from ltcompile.training import Trainer, pick_device


@dataclass(frozen=True)
class SearchResult:
    """What a search found: the ticket of the level that the verdict names (or of the closest), all rows, the verdict, the run folder.

    `reached` is how the ticket stands to the target, where there was one: it may be of a level on the way there.
    """

    ticket: Ticket
    rows: tuple[Trained, ...]
    verdict: Verdict
    folder: Path
    reached: Reached | None = None


def find(
    model: str = "vgg16",
    data: str | Dataset | Task = "digits",
    config: SearchConfig | None = None,
    *,
    task: str = "classification",
    recipe: Recipe | None = None,
    data_root: str | Path = "data",
    image_size: ImageSize | None = None,
    download: bool = False,
    weights: str | Path | None = None,
    folder: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    strict: bool = False,
    listener: Listener | None = None,
    profile: Profile | None = None,
    measured: RelativeTimer | None = None,
    mask: WeightMask | None = None,
    trainer: Trainer | None = None,
) -> SearchResult:
    """Search for the smallest winning ticket of `model` on `data`, and write it to `folder`/ticket.pt.

    Args:
        data: the name of a data set, one that was loaded, or a task of one's own.
        task: what the network is for, by name, unless `data` is a task itself.
        recipe: how every arm is trained; by default the model's usual recipe, adapted to the data and to given weights.
        weights: trained weights to start from instead of fresh ones. For a `torchvision:` or `timm:` model, images are then prepared
            as for its published ones.
        folder: the run folder, by default runs/MODEL-DATA-REWIND.
        resume: continue the run in `folder` after its last completed epoch.
        strict: refuse a folder with unreadable images instead of skipping them.
        profile: the layers' times that `config.target_time` is a share of, or that say how widths share `config.target_energy`.
        measured: measures the share of the dense network's time that a cut takes at `config.on`, to correct the profile by
            (`profiling.stopwatch`); None where that is another machine. For a target of energy, `profiling.joulemeter`.
        mask: the mask that the one level takes instead of choosing one, such as that of a ticket of other data.
        trainer: what trains every network in the place of the project's own loop, which takes any task.

    Raises:
        LtcompileError: one of its kinds, for a name, setting, data set or file that does not fit, or a training that fails.
    """
    config, on = config or SearchConfig(), pick_device(device)
    if isinstance(data, str):
        data = task_for(task, model, data, data_root, image_size, weights=weights, download=download, strict=strict)
    found: Task = tasks.load(task).TASK(data) if isinstance(data, Dataset) else data
    recipe = recipe or recipe_for(model, found, weights)
    prepared = prepare(SearchJob(model, found, config, recipe, on, weights, profile, measured, mask, trainer))
    run = RunFolder(folder if folder is not None else default_folder(model, found, config))
    if resume and not run.path.exists():
        raise InvalidFile(f"there is no run to resume at {run.path}; leave resume= out to begin it")
    try:
        with locked(run.path):
            check_room(run.path, run_bytes(prepared) - run.bytes_written, "this search")
            run.begin(prepared.job.to_json(), resume)
            return _search(prepared, run, listener or NullListener())
    except torch.OutOfMemoryError as error:  # batches are computed in parts: it is the network itself
        raise TrainingFailed(
            "the GPU's memory does not hold the network, its gradients and momentum; end what else fills it, or train with device=cpu"
        ) from error


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
) -> Task:
    """The task on the data as `model` has to see it: large enough, and with `weights` prepared as for its published ones. Raises as `find`."""
    side = image_size or (least_size(model) if data == "mnist" and least_size(model) > 28 else None)
    size = None if side is None else height_width(side)
    prepared = preprocessing(model) if weights else None
    return tasks.load_task(task, data, Path(data_root), DatasetOptions(size, VAL_SHARE, SPLIT_SEED, download, strict, prepared))


def data_for(model: str, data: str, data_root: str | Path = "data", image_size: ImageSize | None = None, **options: Any) -> Dataset:
    """The data set of a classification as `model` has to see it; see `task_for`."""
    found: Dataset = task_for("classification", model, data, data_root, image_size, **options).data  # type: ignore[attr-defined]
    return found


def recipe_for(model: str, data: Dataset | Task, weights: str | Path | None = None) -> Recipe:
    """The model's usual recipe, at a fine-tuning rate where there are trained `weights`, adapted to the data. Raises UnknownName."""
    usual = default_recipe(model)
    return data.adapt(usual.fine_tuning() if weights else usual)


def _search(prepared: PreparedJob, folder: RunFolder, listener: Listener) -> SearchResult:
    began, config = time.perf_counter(), prepared.job.config
    runner, metric = ArmRunner(prepared, folder, listener), prepared.job.task.metric
    levels = (IterativePruning if config.method == PRUNE else ScoredMasks)(runner)
    rows = [row for seed in config.all_seeds for row in levels.run_levels(seed)]
    named, differences = choose_level(rows, config.margin_points, config.confidence, metric)
    level = named if named is not None else closest_level(differences)
    if config.controls:
        rows += [row for seed in config.all_seeds for row in levels.run_controls(seed, level, rows)]
    if config.full_curve:
        rows += [row for seed in config.all_seeds for row in levels.run_curve(seed)]
    verdict = judge(rows, config.margin_points, config.confidence, config.rewind, metric)
    shown = [config.full_curve or row.level == level or row.arm == "dense" for row in rows]
    rows = [_with_test(runner, row) if test else row for row, test in zip(rows, shown, strict=True)]
    ticket = build_ticket(runner, rows, verdict, level)
    folder.check_exists()
    ticket.save(folder.ticket)
    reached = measure_target(runner, ticket)
    compare_answers(runner, ticket)
    write_summary(runner, ticket, reached, time.perf_counter() - began)
    return SearchResult(ticket, tuple(rows), verdict, folder.path, reached)


def _with_test(runner: ArmRunner, row: Trained) -> Trained:
    return replace(row, test_score=runner.tested(Arm(row.seed, row.arm, row.level)).value)
