"""What the tests share: networks of every shape that the surgeon promises to handle, and a finished search."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from networks import NETWORKS, shaken
from quickly import KEPT_EXPORTS, exported_once, sample_no_load, share_tables, timed_at_once, unoptimised
from torch import Tensor, nn

import ltcompile as lt

torch.set_num_threads(1)  # the command-line tests start processes of their own, whose threads would wait for these
# The processes of tests have one thread each, and inductor compiles C++ without a pool of processes that each import PyTorch.
os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
# The C library keeps what is freed, in workers and the processes that they start: else the system clears memory for every large tensor.
os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
share_tables()
sample_no_load()
settings.register_profile("loaded machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other work must not fail a test
settings.load_profile("loaded machine")
gc.set_threshold(20_000)  # exporters and tracing make many objects that live: looking at them again and again takes a tenth of the time


@pytest.fixture(scope="module", autouse=True)
def collected() -> None:
    """What is there already is not looked at again when garbage is collected, as it is before timings: hundreds of imported modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return shaken(NETWORKS[request.param]())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search of LeNet-5 on digits, with two seeds and all controls. The workers share one search."""
    folder = tmp_path_factory.mktemp("runs") / "lenet"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _search(folder)
        return folder
    shared = shared_folder(tmp_path_factory) / "lenet"
    with open(f"{shared}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "ticket.pt").exists():
            _search(shared)
    return Path(shutil.copytree(shared, folder, ignore=shutil.ignore_patterns("*lock")))


def _search(folder: Path) -> None:
    recipe = lt.Recipe(epochs=5, batch=64, lr=0.04, schedule="cosine", warmup_epochs=1, flip=False, crop_pixels=2, weight_decay=0.0)
    config = lt.SearchConfig(rounds=2, rate=0.3, seeds=2, margin_points=2.0)
    lt.find("lenet5", "digits", config, recipe=recipe, image_size=16, folder=folder)


@pytest.fixture(scope="session", autouse=True)
def kept_exports(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The processes of this run keep exported files in one folder: workers, and the forks in which commands run."""
    os.environ[KEPT_EXPORTS] = str(shared_folder(tmp_path_factory) / "exports")


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder of this run, which its workers share."""
    return factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()


@pytest.fixture(scope="module", autouse=True)
def shortened(request: pytest.FixtureRequest) -> Iterator[None]:
    """Networks are exported once in a run, of one structure or equal ones, but for tests of exports; C++ is compiled without optimisation;
    timings take no pauses, but for tests that compare times.
    """
    package, name = request.path.parent.name, request.path.stem
    with contextlib.ExitStack() as stack:
        if package not in ("lower", "golden"):
            stack.enter_context(exported_once(widths=package not in ("deploy", "graph")))
            stack.enter_context(unoptimised())
        if package != "golden" and name not in ("test_timing", "test_measure"):
            stack.enter_context(timed_at_once())
        yield


@pytest.fixture(scope="module")
def cached_exports() -> Iterator[None]:
    """For modules that export networks and do not test how."""
    with exported_once():
        yield
