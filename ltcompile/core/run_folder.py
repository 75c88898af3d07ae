"""The layout of a run folder, for every reader and writer of one. No other module names its files.

config.json            the settings; a resumed run must have the same
job.json               what a worker needs besides: data, versions
execution.json         how trainings are computed: precision, compiled or not, and the times behind that choice
seed0/ticket-3.pt      weights, row, epochs and health of a finished arm (kind-level)
seed0/ticket-3.partial.pt, seed0/plan-3.json, seed0/early.pt
seed0/ticket-3.jsonl   a line per epoch of an arm; history.jsonl: of all arms, once the search is finished
seed0/ticket-3.lease-0 which process trains an arm (`core.lease`)
level.json             the level of the controls, once all tickets are trained
workers/               logs of workers, and a note of each whose versions differ from the run's
seed0/mask-3.pt        the mask of a level, where the search prunes single weights
search.json, ticket.pt the result of the search
pictures.json          a few test inputs with the answers of the dense network and of the ticket
bench.json, formats.json, sweep.json, picked.pt
own-search.json, plan.json, small.pt    the result of a search in one's own training loop
command.json, seed0/first.pt    of one whose loop is a command: what it is about, and first weights
profile.json           the latency tables that all processes of a search for a measured time plan by
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcompile import ranks
from ltcompile.core.arm import Arm
from ltcompile.core.fields import SchemaError, T, from_json
from ltcompile.core.lease import Files, Held, lease_file, lease_numbers
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.tensors import check_finite, check_held, read_torch
from ltcompile.core.ticket import Ticket
from ltcompile.errors import InvalidFile, TicketMismatch
from ltcompile.paths import read_json, wait_for_space, write_bytes, write_json, write_text, write_torch, writing

if TYPE_CHECKING:
    from torch import Tensor, nn

REPEAT = "resume=True repeats that training"


class RunFolder:
    """The files of one search. All writes but those of histories and leases are atomic; reads execute nothing. Where the disk is full, trainings
    wait for space for `space_s` before DiskFull is raised.
    """

    def __init__(self, path: str | Path, space_s: float = 0.0) -> None:
        self.path, self.space_s = Path(path), space_s
        self.settings, self.execution = self.path / "config.json", self.path / "execution.json"
        self.history = self.path / "history.jsonl"
        self.summary, self.ticket = self.path / "search.json", self.path / "ticket.pt"
        self.pictures = self.path / "pictures.json"
        self.bench, self.sweep, self.picked = self.path / "bench.json", self.path / "sweep.json", self.path / "picked.pt"
        self.formats = self.path / "formats.json"
        self.own_summary, self.own_plan, self.own_weights = (self.path / name for name in ("own-search.json", "plan.json", "small.pt"))
        self.own_dense = self.path / "dense.pt"
        self.command, self.profile = self.path / "command.json", self.path / "profile.json"
        self.job, self.level, self.workers = self.path / "job.json", self.path / "level.json", self.path / "workers"

    # Names

    def training(self, arm: Arm) -> Path:
        return self.path / f"seed{arm.seed}" / f"{arm.name}.pt"

    def checkpoint(self, arm: Arm) -> Path:
        """The state of an unfinished arm after its last completed epoch."""
        return self.path / f"seed{arm.seed}" / f"{arm.name}.partial.pt"

    @property
    def verdict(self) -> str:
        """What the names of the leases on the verdict begin with."""
        return f"{self.path}/verdict"

    def stem(self, arm: Arm) -> str:
        """What the names of an arm's leases begin with."""
        return f"{self.path}/seed{arm.seed}/{arm.name}"

    def epochs(self, arm: Arm) -> Path:
        """The history of an arm."""
        return self.path / f"seed{arm.seed}" / f"{arm.name}.jsonl"

    def first_weights(self, seed: int) -> Path:
        """The network before any training, where a script builds it."""
        return self.path / f"seed{seed}" / "first.pt"

    def early(self, seed: int) -> Path:
        """The dense network at the rewind epoch."""
        return self.path / f"seed{seed}" / "early.pt"

    def plan(self, seed: int, level: int) -> Path:
        return self.path / f"seed{seed}" / f"plan-{level}.json"

    def mask(self, seed: int, level: int) -> Path:
        return self.path / f"seed{seed}" / f"mask-{level}.pt"

    @property
    def begun(self) -> bool:
        return self.settings.exists()

    @property
    def bytes_written(self) -> int:
        """The bytes of trainings, checkpoints and masks."""
        sizes = 0
        for file in self.path.glob("seed*/*.pt"):
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that another process removes
                sizes += file.stat().st_size
        return sizes

    # Begin or resume

    def begin(self, settings: dict[str, Any], resume: bool, tidy: bool = True) -> None:
        """Write the settings of a new run, or compare them with those of the run to resume; `tidy`: remove what an interruption left.

        A folder whose run was stopped before it wrote its settings counts as empty.

        Raises:
            InvalidFile: the folder holds a run and `resume` is false. TicketMismatch: that run has other settings.
        """
        settings = json.loads(json.dumps(settings))
        if self.begun and not resume:
            raise InvalidFile(f"{self.path} holds a run already; continue it with resume=True, or choose another folder=")
        self.write(lambda: write_json(self.settings, settings, once=True))
        if message := differences(self.read_settings(), settings):
            raise TicketMismatch(
                f"{self.path} was started with other settings ({message}); resume with the same, or start a new run in another folder="
            )
        if tidy:
            self.tidy()

    def tidy(self) -> None:
        """Remove what an interruption left of finished arms, checkpoints and leases, and the record of failures: failed arms are tried again."""
        for seed in self.path.glob("seed*/"):
            self._tidy(seed)

    def read_settings(self) -> dict[str, Any]:
        """The settings of the run. Raises InvalidFile."""
        found = read_json(self.settings, "run to resume")
        if not isinstance(found, dict):
            raise InvalidFile(f"{self.settings} holds no settings of a run; remove {self.path}, or choose another folder=")
        return found

    def read_setting(self, name: str, shape: type[T]) -> T:
        """One of the settings, as a `shape`. Raises InvalidFile."""
        try:
            found: T = from_json(self.read_settings()[name], shape, name)
        except (KeyError, TypeError, SchemaError) as error:
            raise InvalidFile(f"{self.settings} does not hold the settings of a run ({error})") from error
        return found

    def _tidy(self, seed: Path) -> None:
        names = {file.name for file in seed.iterdir()}
        for name in names:
            if name.endswith(".partial.pt") and name.replace(".partial.pt", ".pt") in names:
                (seed / name).unlink(missing_ok=True)
        for arm, numbers in lease_numbers(list(names)).items():
            failed = Held.parse(Files().read(lease_file(str(seed / arm), numbers[-1])) or b"").state == "failed"
            for number in numbers if failed or f"{arm}.pt" in names else ():
                Files().remove(lease_file(str(seed / arm), number))

    def check_exists(self) -> None:
        """Raises InvalidFile where the folder was removed while the search ran: what it had trained is gone with it."""
        if not self.begun:
            raise InvalidFile(
                f"{self.path} was removed or moved while the search ran; put it back and continue with resume=True, or begin again"
            )

    # Write

    def save(self, path: Path, value: dict[str, Any]) -> None:
        """Write tensors and plain values to a file of the run. Raises InvalidFile where it cannot be written."""
        self.check_exists()
        self.write(lambda: write_torch(path, value))

    def write(self, write: Callable[[], object]) -> None:
        """Call `write`, again where the disk is full. Raises DiskFull where it stays so."""
        wait_for_space(write, self.space_s)

    def save_selection(self, seed: int, level: int, plan: PruningPlan, mask: WeightMask | None) -> None:
        """Write what a level keeps, unless it is there: the mask first, since the plan's file says that both are."""
        self.check_exists()
        if mask:
            self.write(lambda: mask.save(self.mask(seed, level)))
        self.write(lambda: write_json(self.plan(seed, level), plan.to_json(), once=True))

    def own_checkpoints(self, arm: Arm) -> Path:
        """The folder for the checkpoints of a loop of the caller's own, which is made where it is not there."""
        folder = self.path / f"seed{arm.seed}" / arm.name

        def make() -> None:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)

        self.write(make)
        return folder

    def log(self, arm: Arm, row: dict[str, Any]) -> None:
        """Append an epoch to the history of an arm."""
        line, file = _line(arm, row), self.epochs(arm)
        if ranks.follows():
            return
        size = file.stat().st_size if file.exists() else 0

        def append() -> None:
            with writing(file, len(line)), file.open("a", encoding="utf-8") as history:
                history.truncate(size)  # what a full disk took of it
                history.write(line)

        self.write(append)

    def write_epochs(self, arm: Arm, rows: list[dict[str, Any]]) -> None:
        """Write the whole history of an arm."""
        text = "".join(_line(arm, row) for row in rows)
        self.write(lambda: write_text(self.epochs(arm), text))

    def write_history(self, arms: list[Arm]) -> None:
        """Write the history of all arms, which are finished, as one file."""
        for arm in arms:
            if not self.epochs(arm).exists():  # of a training that came from another run (`copy_dense`)
                self.write_epochs(arm, self.load(self.training(arm))["epochs"])
        whole = b"".join(self.epochs(arm).read_bytes() for arm in arms)
        self.write(lambda: write_bytes(self.history, whole))

    def copy_dense(self, source: RunFolder, seeds: range) -> None:
        """Copy how `source` computes, and its dense networks of `seeds`, to where this folder has none yet.

        Both runs must train the same dense network by the same recipe on the same data.
        """
        pairs = [(source.execution, self.execution)]
        for seed in seeds:  # dense-0.pt says that both are there
            dense = Arm(seed, "dense", 0)
            pairs += [(source.early(seed), self.early(seed)), (source.training(dense), self.training(dense))]
        for there, here in pairs:
            if there.exists() and not here.exists():
                write_bytes(here, there.read_bytes())

    # Read

    def load(self, path: Path) -> dict[str, Any]:
        """What `save` wrote. Raises InvalidFile where it is missing or damaged."""
        if not path.exists():
            raise InvalidFile(f"{path} is gone; {REPEAT}")
        value = read_torch(path, "training of a run", f"remove it, and {REPEAT}")
        if not isinstance(value, dict):
            raise InvalidFile(f"{path} is not a training of a run; remove it, and {REPEAT}")
        return value

    def load_into(self, model: nn.Module, path: Path) -> dict[str, Any]:
        """Give `model` the weights in a file of the run, in place; all that `save` wrote. Raises InvalidFile as `load` does, or where they do not fit."""
        value = self.load(path)
        with self.fitting(path):
            model.load_state_dict(value["weights"])
        return value

    @contextlib.contextmanager
    def fitting(self, path: Path) -> Iterator[None]:
        """Turns an error in using the contents of `path` into an InvalidFile."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, InvalidFile) as error:
            message = " ".join(str(error).split())[:300]
            raise InvalidFile(f"{path} does not fit this run ({message}); remove it, and {REPEAT}") from error

    def load_selection(self, seed: int, level: int, masked: bool = False) -> tuple[PruningPlan, WeightMask | None]:
        """What a level keeps, with its mask where there is one or (`masked`) must be. Raises InvalidFile where a file is missing or damaged."""
        plan, file = PruningPlan.load(self.plan(seed, level)), self.mask(seed, level)
        return plan, WeightMask.load(file) if masked or file.exists() else None

    def weights(self, arm: Arm, what: str) -> dict[str, Tensor]:
        """The weights of a finished arm, which an error calls `what`. Raises InvalidFile."""
        path = self.training(arm)
        saved = read_torch(path, "file of a run")
        try:
            found = dict(saved["weights"])
            check_held(found, path.stat().st_size)
            check_finite(found)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, InvalidFile) as error:
            raise _state_dict_error(path, what, error) from error
        return found

    def load_weights(self, model: nn.Module, arm: Arm, what: str) -> None:
        """Give `model` the weights of a finished arm, in place. Raises InvalidFile."""
        try:
            model.load_state_dict(self.weights(arm, what))
        except RuntimeError as error:
            raise _state_dict_error(self.training(arm), what, error) from error

    def finished(self) -> Ticket:
        """The ticket of a finished search. Raises InvalidFile where there is none."""
        if not self.path.is_dir():
            raise InvalidFile(f"{self.path} is not a run folder; name one that `ltcompile find` made")
        for file in (self.summary, self.ticket):
            if not file.is_file():
                raise InvalidFile(
                    f"{self.path} holds no finished search: it has no {file.name}; make it with `ltcompile find`, or continue it with resume=True"
                )
        return Ticket.load(self.ticket)


def _state_dict_error(path: Path, what: str, error: Exception) -> InvalidFile:
    """The error for a file of a run that does not hold the weights of `what`."""
    message = (str(error).splitlines() or [type(error).__name__])[0]
    return InvalidFile(f"{path} does not hold the weights of {what}: {message}; remove it, and search again with resume=True")


def differences(there: dict[str, Any], settings: dict[str, Any]) -> str:
    """In which settings two runs differ, in words; empty where in none."""
    found = []
    for k in sorted(set(settings) | set(there)):
        old, new = there.get(k), settings.get(k)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{k}.{inner}" for inner in differences(old, new).split("; ") if inner]
        elif old != new:
            found.append(f"{k}: {old!r} there, {new!r} requested")
    return "; ".join(found)


def _line(arm: Arm, row: dict[str, Any]) -> str:
    return json.dumps({"seed": arm.seed, "unit": arm.name, **row}) + "\n"
