"""Data-parallel training: the shards of a batch, dealt out to processes, and one gradient of them all.

A recipe's `virtual_ranks` are the shards of every batch. Each has its own augmentation, dropout and batch-norm statistics, however many processes
compute them; one process computes all of them in turns.

- On a CPU, gradients, running statistics and losses of all shards are gathered and added in the order of the shards, never in that of the
  network. In fp32, with as many threads in each process, any number of processes that divides `virtual_ranks` gives the same bits.
- On several GPUs, DistributedDataParallel reduces gradients while backward runs. NCCL's order of summation depends on the number of GPUs and on
  their links: on the same machine with as many GPUs, with deterministic kernels, bits repeat; with another number of GPUs results agree to
  rounding.

Running statistics are the mean of the shards' (of each step on a CPU, at the end of an epoch on GPUs, which is the same up to rounding, for
they are linear in the batches' statistics). `sync_bn` normalises by the whole batch's statistics instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile import ranks
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import seeded, stream
from ltcompile.core.task import EVERYTHING, Batch, Shard, Task
from ltcompile.errors import InvalidSetting, TrainingFailed
from ltcompile.training.batch import split

CHUNK = 1 << 22  # values that are gathered at a time: so much memory a process

Gradients = Callable[[Batch, bool], tuple[Tensor, Tensor | None]]  # batch, whether to begin at zero -> mean loss, correct answers
State = list[Tensor]  # of torch's generators: the CPU's and, in trainings on one, the GPU's


class VirtualRanks:
    """The shards of each batch that this process computes, with their random states, and what the gradients of all shards add up to."""

    def __init__(self, model: nn.Module, count: int, device: torch.device) -> None:
        ranks.check_shares(count)
        each = count // ranks.world()
        self.count, self.device, self.model = count, device, model
        self.local = range(ranks.rank() * each, (ranks.rank() + 1) * each)
        self.reduces = device.type == "cuda" and ranks.world() > 1  # DistributedDataParallel does
        self._states: list[State] = []

    def wrapped(self, forward: nn.Module) -> nn.Module:
        """`forward` inside DistributedDataParallel, where that reduces gradients."""
        if not self.reduces:
            return forward
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its name before torch 2.14
        options: dict[str, Any] = {name: False}
        return nn.parallel.DistributedDataParallel(forward, **options)

    def seed(self, number: int, epoch: int) -> None:
        """Begin the shards' own streams of dropout and mixup."""
        self._states = []
        for index in self.local:
            with seeded(stream("dropout", number, epoch=epoch, level=index)):
                self._states.append(random_state(self.device))

    @property
    def states(self) -> list[State]:
        """The random states of all shards; every process must call this."""
        found = ranks.gathered(list(zip(self.local, self._states, strict=True)))
        return [state for _, state in sorted(found, key=lambda pair: pair[0])]

    @states.setter
    def states(self, states: list[State]) -> None:
        self._states = [states[index] for index in self.local]

    def step(self, forward: nn.Module, gradients: Gradients, batches: Sequence[Batch]) -> tuple[Tensor, Tensor | None]:
        """Leave the gradient of all shards' mean loss in the parameters; that loss, and how many answers were correct. `batches` are this process's."""
        return self._reduced(forward, gradients, batches) if self.reduces else self._gathered(gradients, batches)

    @torch.no_grad()
    def settle(self, *networks: nn.Module) -> None:
        """Give the networks of all processes the same running statistics."""
        for buffer in [b for network in networks for b in network.buffers() if b.is_floating_point()] if self.reduces else []:
            torch.distributed.all_reduce(buffer)
            buffer.div_(ranks.world())

    def _computed(self, i: int, gradients: Gradients, batch: Batch, fresh: bool) -> tuple[Tensor, Tensor | None]:
        """The gradients of this process's `i`-th shard, with its own random numbers."""
        set_random_state(self._states[i], self.device)
        found = gradients(batch, fresh)
        self._states[i] = random_state(self.device)
        return found

    def _gathered(self, gradients: Gradients, batches: Sequence[Batch]) -> tuple[Tensor, Tensor | None]:
        before, rows = [b.clone() for b in self.model.buffers()], []
        for i, batch in enumerate(batches):
            self._restore(before)
            loss, correct = self._computed(i, gradients, batch, True)
            rows.append(self._row(loss, correct))
        total = torch.cat([_added(piece) for piece in torch.stack(rows).split(CHUNK, 1)])
        total[:-1] /= self.count
        self._spread(total)
        return total[-2], total[-1] if correct is not None else None

    @torch.no_grad()
    def _row(self, loss: Tensor, correct: Tensor | None) -> Tensor:
        """One shard's gradients, running statistics, which gradients there are, loss and correct answers: (values,)."""
        trained = self._trained
        there = torch.tensor([p.grad is not None for p in trained], device=self.device)
        numbers = loss, torch.zeros_like(loss) if correct is None else correct
        parts = [*(torch.zeros_like(p) if p.grad is None else p.grad for p in trained), *self._averaged, there, *numbers]
        return torch.cat([part.detach().flatten().to(trained[0].dtype) for part in parts])

    @torch.no_grad()
    def _spread(self, total: Tensor) -> None:
        """Put the mean of all shards' rows into gradients and running statistics. A parameter that no shard uses has no gradient."""
        trained, averaged = self._trained, self._averaged
        sizes = [value.numel() for value in (*trained, *averaged)]
        values = total.split([*sizes, len(trained), 2])
        for p, value, there in zip(trained, values, values[-2].tolist(), strict=False):
            p.grad = (
                torch.empty_like(p).copy_(value.view_as(p)) if there else None
            )  # in its layout, which fused optimisers take for granted
        for buffer, value in zip(averaged, values[len(trained) : -2], strict=True):
            buffer.copy_(value.view_as(buffer))

    @torch.no_grad()
    def _restore(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.model.buffers(), values, strict=True):
            buffer.copy_(value)

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def _averaged(self) -> list[Tensor]:
        return [b for b in self.model.buffers() if b.is_floating_point()]

    def _reduced(self, forward: Any, gradients: Gradients, batches: Sequence[Batch]) -> tuple[Tensor, Tensor | None]:
        before, losses, counts, statistics = [b.clone() for b in self.model.buffers()], [], [], []
        for i, batch in enumerate(batches):
            self._restore(before)
            with forward.no_sync() if i + 1 < len(batches) else nullcontext():
                try:
                    loss, correct = self._computed(i, gradients, batch, i == 0)
                except torch.OutOfMemoryError as error:  # a part of a batch more in one process would leave the others waiting
                    raise TrainingFailed(
                        "a shard of the batch does not fit into the GPU's memory: take more virtual_ranks= or a smaller batch="
                    ) from error
            losses.append(loss / self.count)
            counts.append(torch.zeros_like(loss) if correct is None else correct.to(loss.dtype))
            statistics.append([b.clone() for b in self._averaged])
        for p in self._trained:
            if p.grad is not None:
                p.grad /= len(batches)
        for buffer, *values in zip(self._averaged, *statistics, strict=True):
            buffer.copy_(torch.stack(values).mean(0))
        found = torch.stack([torch.stack(losses).sum(), torch.stack(counts).sum()])
        torch.distributed.all_reduce(found)
        return found[0], found[1] if correct is not None else None


def _added(piece: Tensor) -> Tensor:
    """The sum over all shards of this process's (shards, values), in the order of the shards: (values,)."""
    rows = piece
    if ranks.world() > 1:
        found = [torch.empty_like(piece) for _ in range(ranks.world())]
        torch.distributed.all_gather(found, piece.contiguous())
        rows = torch.cat(found)
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


def random_state(device: torch.device) -> State:
    """The state of torch's global generators."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: State, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def local_batches(task: Task, size: int, device: torch.device, recipe: Recipe, seed: int, shards: Sequence[Shard]) -> Iterator[list[Batch]]:
    """This process's shards of each training batch. A task whose `batches` takes no shard makes whole batches, which are split."""
    if "shard" in inspect.signature(task.batches).parameters and list(shards) != [EVERYTHING]:
        reads: Any = task.batches
        for found in zip(*(reads("train", size, device, recipe, seed, shard=shard) for shard in shards), strict=True):
            yield list(found)
        return
    for whole in islice(task.batches("train", size, device, recipe, seed), shards[0].start, None):
        parts = split(whole, shards[0].count)
        yield [parts[shard.index] for shard in shards]


def shard_size(recipe: Recipe, count: int) -> int:
    """How many of `count` items a batch takes: the recipe's, or all where there are fewer, the same number in every shard. Raises InvalidSetting."""
    size = min(recipe.batch, count) // recipe.virtual_ranks * recipe.virtual_ranks
    if recipe.virtual_ranks > 1 and size < 2 * recipe.virtual_ranks:
        raise InvalidSetting(f"{count} training items are too few for virtual_ranks={recipe.virtual_ranks}: each needs two in a batch")
    return size


@contextmanager
def synchronised(model: nn.Module, recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Inside it, batch norms of `model` normalise by the statistics of all processes' shards, where the recipe says so; they share all tensors
    with the model's own, which are back in their places afterwards.

    Raises:
        InvalidSetting: a process computes several shards, or not on a GPU, where torch's SyncBatchNorm runs.
    """
    if not recipe.sync_bn or recipe.virtual_ranks == 1:
        yield
        return
    if ranks.world() != recipe.virtual_ranks or device.type != "cuda":
        raise InvalidSetting(
            f"sync_bn=True needs a GPU and a process for each of the {recipe.virtual_ranks} virtual ranks, not {ranks.world()} on {device.type}; "
            "start as many with --nproc-per-node, or leave sync_bn out"
        )
    swapped = list(_swap_norms(model))
    try:
        yield
    finally:
        for parent, name, norm in swapped:
            setattr(parent, name, norm.train(getattr(parent, name).training))


def _swap_norms(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Replace the batch norms below `model` by torch's SyncBatchNorm; where each was."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
                yield parent, name, child
