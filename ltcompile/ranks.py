"""The processes of one data-parallel training, as torchrun starts them: who this one is, and what all of them agree on.

All processes run the same search in step. The first one (rank 0) alone writes files and decides what a clock or a random choice decides; the
others read what it wrote. Outside `joined` there is one process, and every function here is its own answer.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from ltcompile.errors import InvalidSetting, TrainingFailed
from ltcompile.processors import processors

T = TypeVar("T")
REPORT_S = 10.0
PATIENCE = timedelta(days=2)  # for the others, while one measures or loads; torchrun ends them where one fails
_joined = False
_stopping = 0  # the number of a signal that this process received


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


@contextmanager
def joined(device: str | None = None) -> Iterator[None]:
    """Inside it, this process is one of those that torchrun started together; does nothing where it started none, or inside itself.

    Tensors on a CPU go through gloo, those on GPUs through NCCL, one GPU a process; `device` is "cpu", "cuda" or None for a GPU where there is
    one. Processes that share a GPU use gloo. A process group of the caller's own is used as it is.
    """
    global _joined  # noqa: PLW0603
    if _joined or not launched():
        yield
        return
    import torch
    from torch import distributed

    backend, local, own = "gloo", int(os.environ["LOCAL_RANK"]), not distributed.is_initialized()
    if device != "cpu" and torch.cuda.is_available():
        shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count()
        backend = f"cpu:gloo,cuda:{'gloo' if shared else 'nccl'}"
        torch.cuda.set_device(local % torch.cuda.device_count())
    if own:
        distributed.init_process_group(backend, timeout=PATIENCE)
    _joined = True
    try:
        wait_for_all()  # or one that ends soon takes with it what the others find each other by
        yield
    finally:
        _joined = False
        if own:
            distributed.destroy_process_group()


def world() -> int:
    """How many processes there are."""
    if not _joined:
        return 1
    from torch import distributed

    return distributed.get_world_size()


def rank() -> int:
    if not _joined:
        return 0
    from torch import distributed

    return distributed.get_rank()


def follows() -> bool:
    """Whether another process writes the files and prints."""
    return rank() > 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside it, this process does by itself what all could do together."""
    global _joined  # noqa: PLW0603
    before, _joined = _joined, False
    try:
        yield
    finally:
        _joined = before


def own_processors() -> int:
    """How many processors are this process's share of those that it may use."""
    return max(1, processors() // (int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _joined else 1))


def wait_for_all() -> None:
    """Returns once every process has called it."""
    if world() > 1:
        gathered([])


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process runs the block before all others do: what it downloads or caches is there for them."""
    if follows():
        wait_for_all()
    yield
    if not follows():
        wait_for_all()


def agreed(value: T) -> T:
    """The first process's `value`, in all of them."""
    if world() == 1:
        return value
    from torch import distributed

    found = [value]
    distributed.broadcast_object_list(found, src=0)
    return found[0]


def gathered(values: list[T]) -> list[T]:
    """The `values` of all processes, dealt out by turns: the first of each, then the second of each, and so on."""
    if world() == 1:
        return values
    from torch import distributed

    found: list[list[T]] = [[] for _ in range(world())]
    distributed.all_gather_object(found, values)
    return [each[i] for i in range(max(map(len, found))) for each in found if i < len(each)]


def largest(*numbers: int) -> list[int]:
    """For each number from 0 to 255, the largest of all processes'."""
    if world() == 1:
        return list(numbers)
    import torch
    from torch import distributed

    found = torch.tensor(numbers, dtype=torch.uint8)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return [int(each) for each in found.tolist()]


def request_stop(number: int) -> bool:
    """Lets all processes stop together at the next batch, as the signal of that number requires; False where this is the only one, or the stop was
    requested before.
    """
    global _stopping  # noqa: PLW0603
    if world() == 1 or _stopping:
        return False
    _stopping = number
    return True


def stopping() -> int:
    """The number of the signal that this process received; 0 where it received none."""
    return _stopping


def reports(error: Exception) -> bool:
    """Whether this process prints an error, and ends with its exit code.

    Of processes that have the same error, the first one does; an error that another process's end has caused is that one's to print. The others
    wait meanwhile: torchrun ends them as soon as one has ended, and passes on the exit codes that it finds then.
    """
    caused, first = peer_ended(error), os.environ.get("RANK", "0") == "0"
    if not launched() or (first and not caused):
        return True
    if _stopping:  # it is to end
        return first
    for number in (signal.SIGINT, signal.SIGTERM):  # by which torchrun ends this process
        signal.signal(number, signal.SIG_DFL)
    time.sleep(2 * REPORT_S if caused else REPORT_S)
    return first or not caused


def peer_ended(error: Exception) -> bool:
    """Whether an error says that another process does not answer any more."""
    return launched() and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl", "connection"))


def check_shares(count: int) -> None:
    """Raises InvalidSetting where `count` virtual ranks cannot be dealt out to the processes evenly."""
    if count % world():
        raise InvalidSetting(
            f"virtual_ranks={count} cannot be shared by {world()} processes; start as many as divide it, or begin a run with another number"
        )


def launch(processes: int, arguments: list[str]) -> int:
    """Run `python -m ltcompile ARGUMENTS` in so many processes of this machine by torchrun's launcher; the first exit code that is not 0, or 0.

    A signal ends all of them. Raises TrainingFailed where a signal that this process did not receive ended one.
    """
    import logging
    import sys

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # the processes say themselves what is wrong
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, processors() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ltcompile", *arguments)
    except ChildFailedError as error:
        if codes := [failure.exitcode for failure in error.failures.values() if failure.exitcode > 0]:
            return max(codes)
        rank, first = min(error.failures.items(), key=lambda pair: pair[1].timestamp)
        raise TrainingFailed(
            f"process {rank} of {processes} was ended by signal {-first.exitcode}, as for want of memory; continue with resume=True"
        ) from None
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
