"""The search itself. Per seed: the dense network, then one ticket per level. Over all seeds: the verdict on validation data, the
control arms at the chosen level, and one look at the test set. Every training is a unit with a file of its own: a search is resumed
by doing it again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ltcompile.core.image_size import ImageSize
from ltcompile.core.mask import WeightMask
from ltcompile.core.profile import Profile
from ltcompile.core.reached import Reached
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.ticket import Ticket
from ltcompile.data import Dataset, load_data
from ltcompile.errors import BadFile, TrainingFailed
from ltcompile.models import default_recipe, least_size, preprocessing
from ltcompile.paths import check_room, locked
from ltcompile.prune.budget import Clock
from ltcompile.search.asked import Asked
from ltcompile.search.chosen import Chosen
from ltcompile.search.config import PRUNE, SearchConfig
from ltcompile.search.listener import Listener, Silence
from ltcompile.search.result import reached_by, ticket_of, write_search
from ltcompile.search.room import bytes_of_run, bytes_written
from ltcompile.search.rounds import Rounds
from ltcompile.search.run import RunFolder
from ltcompile.search.units import Unit, Units
from ltcompile.search.verdict import choose_level, closest_level, judge
from ltcompile.training import evaluate, pick_device


@dataclass(frozen=True)
class Found:
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
    data: str | Dataset = "digits",
    config: SearchConfig | None = None,
    *,
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
    measured: Clock | None = None,
    given: WeightMask | None = None,
) -> Found:
    """Search for the smallest winning ticket of `model` on `data`, and write it to `folder`/ticket.pt.

    Args:
        recipe: how every arm is trained; by default the model's usual recipe, adapted to the data and to given weights.
        weights: trained weights to start from instead of fresh ones. For a `torchvision:` or `timm:` model, images are then prepared
            as for its published ones.
        folder: the run folder, by default runs/MODEL-DATA-REWIND.
        resume: go on with the run in `folder` behind its last finished epoch.
        strict: refuse a folder with unreadable images instead of skipping them.
        profile: the layers' times that `config.target_time` is a share of, or that say how widths share `config.target_energy`.
        measured: the share of the whole network's time that a cut takes at `config.on`, to correct the profile by, as `profiling.stopwatch`
            tells it of this machine; None where that is elsewhere. For a target of energy what `profiling.joulemeter` tells.
        given: the mask that the one level takes instead of choosing one, such as that of a ticket of other data.

    Raises:
        LtcompileError: one of its kinds, for a name, setting, data set or file that does not fit, or a training that fails.
    """
    config = config or SearchConfig()
    on = pick_device(device)
    if isinstance(data, str):
        data = data_for(model, data, data_root, image_size, weights=weights, download=download, strict=strict)
    asked = Asked(model, data, config, recipe or recipe_for(model, data, weights), weights, on, profile, measured, given)
    path = Path(folder) if folder is not None else default_folder(model, data, config)
    if resume and not path.exists():
        raise BadFile(f"there is no run to resume at {path}; leave --resume out to begin it")
    try:
        with locked(path):
            check_room(path, bytes_of_run(asked) - bytes_written(path), "this search")
            return _search(asked, RunFolder(path, asked.to_json(), resume), listener or Silence())
    except torch.OutOfMemoryError as error:  # batches are computed in parts: it is the network itself
        raise TrainingFailed(
            "the GPU's memory does not hold the network, its gradients and momentum; end what else fills it, or train with --device cpu"
        ) from error


def default_folder(model: str, data: Dataset, config: SearchConfig) -> Path:
    """runs/MODEL-DATA-REWIND."""
    return Path("runs") / "-".join((model, data.description.name, config.rewind)).replace(":", "-").replace("/", "-")


def data_for(
    model: str,
    data: str,
    data_root: str | Path = "data",
    image_size: ImageSize | None = None,
    *,
    weights: str | Path | None = None,
    download: bool = False,
    strict: bool = False,
) -> Dataset:
    """The data set as `model` has to see it: large enough, and with `weights` prepared as for its published ones. Raises as `find`."""
    side = image_size or (least_size(model) if data == "mnist" and least_size(model) > 28 else None)
    prepared = preprocessing(model) if weights else None
    return load_data(data, data_root, side, download=download, preprocessing=prepared, strict=strict)


def recipe_for(model: str, data: Dataset, weights: str | Path | None = None) -> Recipe:
    """The model's usual recipe, at a fine-tuning rate where there are trained `weights`, adapted to the data. Raises UnknownName."""
    usual = default_recipe(model)
    return data.adapt(usual.fine_tuning() if weights else usual)


def _search(asked: Asked, folder: RunFolder, listener: Listener) -> Found:
    began, config = time.perf_counter(), asked.config
    units = Units(asked, folder, listener)
    rounds = (Rounds if config.method == PRUNE else Chosen)(asked, folder, units)
    rows = [row for seed in config.all_seeds for row in rounds.descend(seed)]
    named, differences = choose_level(rows, config.margin_points, config.confidence)
    level = named if named is not None else closest_level(differences)
    if config.controls:
        rows += [row for seed in config.all_seeds for row in rounds.controls(seed, level, rows)]
    if config.whole_curve:
        rows += [row for seed in config.all_seeds for row in rounds.curve(seed)]
    verdict = judge(rows, config.margin_points, config.confidence, config.rewind)
    looked_at = [config.whole_curve or row.level == level or row.arm == "dense" for row in rows]
    rows = [_tested(asked, units, row) if looked else row for row, looked in zip(rows, looked_at, strict=True)]
    ticket = ticket_of(asked, units, rows, verdict, level)
    folder.check_there()
    ticket.save(folder.path / "ticket.pt")
    reached = reached_by(asked, units, ticket)
    write_search(folder.path, asked, units, ticket, reached, time.perf_counter() - began)
    return Found(ticket, tuple(rows), verdict, folder.path, reached)


def _tested(asked: Asked, units: Units, row: Trained) -> Trained:
    """`row` with its accuracy on the test set, which nothing has looked at before."""
    model = units.trained(Unit(row.seed, row.arm, row.level)).to(asked.device)
    return replace(row, test_accuracy=evaluate(model, asked.data.test, asked.device).accuracy)
