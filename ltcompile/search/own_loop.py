"""A search whose arms the caller trains, in a loop of the caller's own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltcompile.core.arm import Arm
from ltcompile.core.lease import LEASE_S, Lease, LeaseLost, Observer, claim, this_process
from ltcompile.core.notice import notify
from ltcompile.core.plan import PruningPlan
from ltcompile.core.profile import Profile
from ltcompile.core.reached import Reached
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Metric, Part, Score, Task
from ltcompile.errors import InvalidSetting
from ltcompile.graph import Example, embed
from ltcompile.graph.inputs import Arguments
from ltcompile.graph.wrappers import unwrap
from ltcompile.paths import write_json
from ltcompile.prune import criteria
from ltcompile.prune.budget import RelativeTimer
from ltcompile.search.config import PRUNE, SearchConfig
from ltcompile.search.job import PreparedJob, SearchJob, prepare, recorded_profile
from ltcompile.search.listener import NullListener
from ltcompile.search.own_arm import ArmToTrain
from ltcompile.search.result import measure_target
from ltcompile.search.run import POLL_S, SPACE_S, SearchRun
from ltcompile.search.sharing import Sharing
from ltcompile.search.verdict import judge, typical_seed
from ltcompile.training import ArmTraining, Epoch, Outcome, Progress


@dataclass(frozen=True)
class _Data:
    """What a run folder says of data that the search never sees."""

    name: str = "own"
    task: str = "own"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name}


@dataclass(frozen=True)
class _Task(Task):
    """A task whose data and evaluation are the caller's."""

    metric: Metric
    example: Example
    description: _Data = _Data()
    sizes: Mapping[Part, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the example's types and shapes; its values may be others."""
        return ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in Arguments.of(self.example).tensors)

    def _by_caller(self, *_: Any) -> Any:
        raise NotImplementedError("the caller trains and evaluates")

    batches = loss = evaluate = _by_caller  # type: ignore[assignment]


@dataclass(frozen=True)
class Found:
    """What a search in one's own loop found: the network that the verdict names (or of the closest or the named level), and every arm.

    `dense` is the full-width network that holds `small`'s weights and zeros where `plan` drops channels. `reached` is how `small` stands to
    the search's target, where it had one.
    """

    small: nn.Module
    dense: nn.Module
    plan: PruningPlan
    example: Example
    row: Trained
    rows: tuple[Trained, ...]
    metric: Metric
    verdict: Verdict
    reached: Reached | None = None


class OwnLoop:
    """A search whose arms the caller trains; `lt.Search` is one of settings by their names.

    Args:
        build, example, folder, metric, epochs, lease_s: as `lt.Search` has them.
        config: the search.
        profile: the layers' times, where the target is one of time.
        measured: the share of the dense network's time that a cut takes, to correct plans by; one process at a time then trains.

    Raises:
        InvalidSetting: settings contradict each other, or the criterion needs data. InvalidModel: the network cannot be traced or cut.
        TicketMismatch: the folder holds a search with other settings, or of inputs of other shapes.
    """

    _tidies = True  # at its beginning, forget which arms failed

    def __init__(
        self,
        build: Callable[[], nn.Module],
        example: Example,
        folder: str | Path,
        metric: Metric,
        config: SearchConfig,
        *,
        epochs: int = 1,
        profile: Profile | None = None,
        measured: RelativeTimer | None = None,
        lease_s: float = LEASE_S,
    ) -> None:
        check_supported(config)
        job = SearchJob(
            "own",
            _Task(metric, example),
            config,
            Recipe(epochs=epochs, precision="fp32", compile="never"),
            torch.device("cpu"),
            profile=profile,
            measured=measured,
            trainer=self._train,
            build=build,
        )
        self.folder, self.lease_s = RunFolder(folder, SPACE_S), lease_s
        self._prepared: PreparedJob = prepare(job)
        self._finished: tuple[ArmToTrain, Score] | None = None
        self._found: Found | None = None
        self.folder.begin(job.to_json(), resume=self.folder.begun, tidy=self._tidies)
        if profile is not None:  # plans of all processes follow from one
            self._prepared = replace(self._prepared, job=replace(job, profile=recorded_profile(self.folder, profile)))
        self._run = SearchRun(self._prepared, self.folder, NullListener())

    def __iter__(self) -> Iterator[ArmToTrain]:
        """Arms that are not finished and that no other process trains, each as soon as those before it are finished.

        It waits while other processes train what the next arms need, and ends when all are finished. Raises InvalidSetting where one was not
        reported.
        """
        with alone(self.folder, self.lease_s) if self._prepared.job.measured else contextlib.nullcontext():
            yield from self._shared()

    def _shared(self) -> Iterator[ArmToTrain]:
        sharing = Sharing(self._run, in_order=True, lease_s=self.lease_s)
        (pool,) = sharing.pools.values()
        for _, arm, lease in sharing.leases():
            try:
                with lease.held(self.lease_s / 6, sharing.watch):
                    yield (pending := self.arm_to_train(arm, lease))
                    if pending.left_out:
                        raise LeaseLost(arm.name)
                    if not self.folder.training(arm).exists():
                        lease.end("left")  # the arm has not failed
                        raise InvalidSetting(
                            f"{pending.name} was trained, and nothing reported; call arm.report(value) at the end of the loop's body"
                        )
            except LeaseLost:
                pool.gave_up(arm, time.monotonic())
            else:
                pool.finish(arm)
        self.folder.tidy()

    def arm_to_train(self, arm: Arm, lease: Lease | None = None) -> ArmToTrain:
        """An arm whose predecessors are finished; `lease` is this process's on it."""
        self._run.runner.lease = lease
        try:
            self._run.trainings.train(arm)
        except _Pending as pending:
            return ArmToTrain(self, pending.model, pending.training, lease)
        finally:
            self._run.runner.lease = None
        raise AssertionError("the trainer stops at an arm that is not reported")

    def result(self, level: int | None = None) -> Found:
        """The network, the rows of all arms and the verdict; with `level`, the network of that round in the place of the verdict's.

        Raises InvalidSetting while arms are unfinished, or where there is no such round.
        """
        if (pending := self.unfinished()) is not None:
            name = f"seed{pending.seed}/{pending.name}"
            raise InvalidSetting(f"the search is not finished: {name} is still to be trained; iterate over the search first")
        if self._found is None:
            self._found = self._conclude()
        if level is None:
            return self._found
        if not 1 <= level <= (last := self._prepared.job.config.levels):
            raise InvalidSetting(f"level={level} is not a round of the search; choose 1 to {last}")
        return self._network(level, self._found.rows, self._found.verdict)

    @property
    def arms(self) -> list[Arm]:
        """All arms; while the level is not known, without controls."""
        graph = self._run.graph
        done = all(self.folder.training(arm).exists() for arm in graph.tickets)
        return graph.arms(self._run.level() if done else None)

    def unfinished(self) -> Arm | None:
        """The first arm, in the order of one process, that is not finished; None where all are."""
        return next((arm for arm in self.arms if not self.folder.training(arm).exists()), None)

    def _finish(self, arm: ArmToTrain, score: Score) -> None:
        """Write a trained arm to its file, unless another process took it over: its trainer hands over the weights."""
        if arm.lost:
            arm.left_out = True
            notify(f"{arm.name}: another process took it over, as this one showed no sign of life; what is reported here is left out")
            return
        self._check_items(arm, score)
        self._finished = arm, score
        try:
            self._run.trainings.train(arm.arm)
        finally:
            self._finished = None
        if self.unfinished() is None:
            self._found = self._conclude()

    def _check_items(self, arm: ArmToTrain, score: Score) -> None:
        """Raises InvalidSetting where items cannot be paired with those of the seed's dense network."""
        dense = Arm(arm.arm.seed, "dense", 0)
        if arm.arm == dense:
            return
        there = self._run.runner.row(dense)
        if (len(there.val_items), len(there.val_correct)) != (len(score.values), len(score.items)):
            raise InvalidSetting(f"{arm.name}: its items are not those of seed{dense.seed}/{dense.name}; report the same for all arms")

    def _conclude(self) -> Found:
        """The result, from finished arms."""
        config, metric, run = self._prepared.job.config, self._prepared.job.task.metric, self._run
        level = run.level()
        arms = run.graph.arms(level)
        rows = [run.runner.row(arm) for arm in arms]
        verdict = judge(rows, config.margin_points, config.confidence, config.rewind, metric)
        found = self._network(level, tuple(rows), verdict)
        seed, reached = found.row.seed, found.reached
        if reached is not None and reached.missed_by:
            notify(f"{self.folder.path}: {reached}")
        summary = {
            "kind": "own search",
            "format": 1,
            "metric": metric.name,
            **{key: value for key, value in metric.to_json().items() if key != "name"},
            "config": config.to_json(),
            "rows": [row.to_json() for row in rows],
            "verdict": verdict.to_json(),
            "ticket": {"seed": seed, "level": level, "won": verdict.won},
            "target": reached.to_json() if reached else None,
        }
        self.folder.write_history(arms)
        self.folder.write(lambda: found.plan.save(self.folder.own_plan))
        self.folder.save(self.folder.own_weights, found.small.state_dict())
        self.folder.save(self.folder.own_dense, run.runner.trained(Arm(seed, "dense", 0)).state_dict())
        self.folder.write(lambda: write_json(self.folder.own_summary, summary))  # the last: it says that the others are there
        return found

    def _network(self, level: int, rows: tuple[Trained, ...], verdict: Verdict) -> Found:
        """The ticket of a round: that of the seed with the median metric."""
        job = self._prepared.job
        tickets = [row for row in rows if (row.arm, row.level) == ("ticket", level)]
        seed = typical_seed(tickets, job.task.metric)
        arm, row = Arm(seed, "ticket", level), next(row for row in tickets if row.seed == seed)
        small, plan = self._run.runner.trained(arm), self._run.runner.selection(arm).plan
        dense = embed(small, plan, job.initial(seed)).eval()
        return Found(small.eval(), dense, plan, job.example, row, rows, job.task.metric, verdict, measure_target(self._run.runner, row))

    def _train(self, model: nn.Module, task: Any, training: ArmTraining, state: dict[str, Any] | None, save: Progress) -> Outcome:
        """The trainer of the arms: it takes what was reported, or stops the search for the caller to train."""
        if self._finished is None or self._finished[0].arm != training.arm:
            raise _Pending(model, training)
        arm, score = self._finished
        seconds = time.monotonic() - arm._began
        model.load_state_dict(unwrap(arm.model).state_dict())
        epochs = training.recipe.epochs - training.first_epoch
        rows = [Epoch(e + training.first_epoch, 0.0, 0.0, 0.0, score.loss, score.value, seconds / epochs, 0.0) for e in range(epochs)]
        if training.arm.kind == "dense" and (at := self._prepared.job.config.rewind_epoch):
            if arm.early is None:
                raise InvalidSetting(f"{arm.name}: rewind=weight needs the weights after epoch {at}; call arm.keep_early() then")
            save(rows[at - 1], {"model": arm.early, "epochs": [row.to_json() for row in rows[:at]]})
        return Outcome(rows, score)


def check_supported(config: SearchConfig) -> None:
    """Raises InvalidSetting where a search in a loop of the caller's own cannot be done with `config`."""
    if needed := criteria.needs(config.criterion):
        free = ", ".join(name for name in criteria.names() if not criteria.needs(name))
        raise InvalidSetting(
            f"criterion={config.criterion} needs {', '.join(needed)} of data that lt.Search does not see; choose one of {free}"
        )
    if config.prune != "filters":
        raise InvalidSetting(f"prune={config.prune}: lt.Search prunes filters; lt.find masks weights")
    if config.method != PRUNE:
        raise InvalidSetting(f"method={config.method} changes how a network trains, which is up to your loop; leave it out, or use lt.find")
    own = "takes the loop of lt.find"
    for name, reason in {"depth": "needs data that lt.Search does not see", "masked": own, "full_curve": own}.items():
        if getattr(config, name):
            raise InvalidSetting(f"{name}=True {reason}; leave it out, or use lt.find")


@contextlib.contextmanager
def alone(folder: RunFolder, lease_s: float = LEASE_S) -> Iterator[None]:
    """Waits until no other process measures in this folder, and keeps others waiting: times are right while nothing else runs."""
    observer, info = Observer(lease_s), this_process()
    while (lease := claim(f"{folder.path}/measuring", info, observer, time.monotonic())) is None:
        time.sleep(POLL_S)
    with lease.held(lease_s / 6):
        yield


class _Pending(Exception):
    """The search stops at an arm that the caller has to train."""

    def __init__(self, model: nn.Module, training: ArmTraining) -> None:
        super().__init__(training.arm.name)
        self.model, self.training = model, training
