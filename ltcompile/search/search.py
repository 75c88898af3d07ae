"""`find`: the search from its settings to its result. Every arm has a file of its own: a search is resumed by doing it again, and any number
of processes may do it at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ltcompile import ranks, tasks
from ltcompile.core.image_size import ImageSize, height_width
from ltcompile.core.lease import Observer, claim, this_process
from ltcompile.core.mask import WeightMask
from ltcompile.core.profile import Profile
from ltcompile.core.reached import Reached
from ltcompile.core.recipe import Recipe
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Task
from ltcompile.data import Dataset
from ltcompile.errors import InvalidFile, InvalidSetting
from ltcompile.paths import check_room, writing
from ltcompile.prune.budget import RelativeTimer
from ltcompile.search.config import SearchConfig
from ltcompile.search.coordinator import coordinate, open_workers
from ltcompile.search.disk_space import run_bytes
from ltcompile.search.job import SearchJob, prepare, recorded_profile
from ltcompile.search.listener import Listener, NullListener
from ltcompile.search.run import POLL_S, SearchResult, SearchRun
from ltcompile.search.sharing import Sharing
from ltcompile.search.source import Source, default_folder, recipe_for
from ltcompile.search.worker import check_workers, describe
from ltcompile.training import Trainer, pick_device


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
    skip_damaged: bool = False,
    checkpoint_minutes: float | None = None,
    listener: Listener | None = None,
    profile: Profile | None = None,
    measured: RelativeTimer | None = None,
    mask: WeightMask | None = None,
    trainer: Trainer | None = None,
    jobs: int | None = None,
    executor: str = "local",
    executor_options: Mapping[str, str] | None = None,
    retries: int = 2,
    source: Source | None = None,
) -> SearchResult:
    """Search for the smallest winning ticket of `model` on `data`, and write it to `folder`/ticket.pt.

    Where torchrun started several processes, all call this function with the same arguments: they train each arm together, and the first one
    writes; the others return when it is done.

    Args:
        data: the name of a data set, one that was loaded, or a task of one's own.
        task: what the network is for, by name, unless `data` is a task itself.
        recipe: how every arm is trained; by default the model's usual recipe, adapted to the data and to given weights.
        weights: trained weights to start from instead of fresh ones. For a `torchvision:` or `timm:` model, images are then prepared
            as for its published ones.
        folder: the run folder, by default runs/MODEL-DATA-REWIND.
        resume: continue the run in `folder` after its last completed epoch. Where another process is at work there, both share the arms.
        strict: refuse a folder with unreadable images instead of skipping them.
        skip_damaged: go without missing or damaged shards, and unreadable images of data that is streamed.
        checkpoint_minutes: save also within an epoch, so often; by default after every epoch.
        profile: the layers' times that `config.target_time` is a share of, or that say how widths share `config.target_energy`.
        measured: measures the share of the dense network's time that a cut takes at `config.on`, to correct the profile by
            (`profiling.stopwatch`); None where that is another machine. For a target of energy, `profiling.joulemeter`.
        mask: the mask that the one level takes instead of choosing one, such as that of a ticket of other data.
        trainer: what trains every network in the place of the project's own loop, which takes any task.
        jobs: train so many arms at a time, in processes of their own; None trains one after another in this process. Plans for a target of
            time then follow from `profile` alone, and `measured` times the result at the end, as no plan can be timed while others train.
        executor: what starts these processes: local, slurm or ray (`ltcompile.executors`).
        executor_options: its settings, such as slurm_partition or address.
        retries: how often an arm that failed in such a process is tried again.
        source: the names by which those processes load model and data, where `data` is an object.

    Raises:
        LtcompileError: one of its kinds, for a name, setting, data set or file that does not fit, or a training that fails.
    """
    with ranks.joined(device), contextlib.ExitStack() as stack:
        config, on = config or SearchConfig(), pick_device(device)
        if isinstance(data, str):
            size = None if image_size is None else height_width(image_size)
            source = Source(task, model, data, str(data_root), size, str(weights) if weights else None, strict, None, skip_damaged)
            with ranks.first_alone():
                data = source.load(download)
        found: Task = tasks.load(task).TASK(data) if isinstance(data, Dataset) else data
        recipe = recipe or recipe_for(model, found, weights)
        job = SearchJob(model, found, config, recipe, on, weights, profile, measured, mask, trainer, checkpoint_minutes=checkpoint_minutes)
        if jobs is not None and ranks.world() > 1:
            raise InvalidSetting(f"jobs={jobs}: torchrun's processes train each arm together, one after another; leave jobs= out")
        if jobs is not None:
            check_workers(job, source, jobs, executor)
        prepared = prepare(job)
        run = RunFolder(folder if folder is not None else default_folder(model, found, config))
        if resume and not run.path.exists():
            raise InvalidFile(f"there is no run to resume at {run.path}; leave resume= out to begin it")
        workers = stack.enter_context(open_workers(run.workers, jobs, executor, executor_options))
        with writing(run.settings):
            run.path.mkdir(parents=True, exist_ok=True)
        with ranks.first_alone():
            if not ranks.follows():
                check_room(run.path, run_bytes(prepared, jobs or 1) - run.bytes_written, "this search")
                run.begin(job.to_json(), resume)
                describe(run, job, source)
        if profile is not None and (jobs is not None or run.profile.exists()):
            job = replace(job, profile=recorded_profile(run, profile), by_tables=True)
            prepared = replace(prepared, job=job)
        search = SearchRun(prepared, run, listener or NullListener())
        if ranks.follows():
            search.follow()
            return _read(run, ranks.agreed(None))
        with _verdict(run) as wait:
            if workers is None:
                Sharing(search, in_order=True).work()
            else:
                coordinate(search, workers, jobs or 1, retries)
            wait()
            with ranks.alone():
                result = search.conclude()
        return replace(result, reached=ranks.agreed(result.reached))


def _read(run: RunFolder, reached: Reached | None) -> SearchResult:
    """What the first of several processes found."""
    ticket = run.finished()
    return SearchResult(ticket, ticket.history, ticket.verdict, run.path, reached)


@contextlib.contextmanager
def _verdict(run: RunFolder) -> Iterator[Callable[[], None]]:
    """Holds the lease on the verdict, so that workers leave it to this process; where another process has it, from the call that it gives on."""
    observer, info = Observer(), this_process()
    with contextlib.ExitStack() as stack:

        def take() -> bool:
            lease = claim(run.verdict, info, observer, time.monotonic())
            if lease is not None:
                stack.enter_context(lease.held())
            return lease is not None

        held = take()

        def wait() -> None:
            while not held and not take():
                time.sleep(POLL_S)

        yield wait
