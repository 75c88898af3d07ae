"""The similarity of tickets of one network: which weights they keep, on which images they agree, and how accurate their ensemble is.

Masks are compared as Paganini & Forde 2020 (arXiv:2001.05050) do, by Jaccard's distance. A ticket of filters has a mask as well: the
weights of the filters that went, and those that read them, are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.fields import short
from ltcompile.core.mask import WeightMask
from ltcompile.core.records import Record
from ltcompile.core.ticket import Ticket
from ltcompile.data import Dataset, Split, load_like
from ltcompile.errors import InvalidPlan, InvalidSetting, TicketMismatch
from ltcompile.pruned.ticket import check_ticket_fits, dense_network, ticket_network
from ltcompile.search.selection import Selection
from ltcompile.training import fitting, pick_device

BATCH = 256

# Masks


def weight_mask(model: nn.Module, selection: Selection) -> WeightMask:
    """Every weight (value of a matrix or filter) of the full network `model` that neither a plan nor a mask drops.

    Raises InvalidPlan where those do not fit the network, or leave no weight.
    """
    gone = selection.dropped(model)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    return WeightMask({name: ~gone[name].cpu() if name in gone else torch.ones(p.shape, dtype=torch.bool) for name, p in weights.items()})


@dataclass(frozen=True)
class Distances:
    """Jaccard's distances between two masks: of all weights, and parameter by parameter."""

    total: float
    layers: dict[str, float]


def distances(one: WeightMask, other: WeightMask) -> Distances:
    """1 - |kept by both| / |kept by either|; 0 where neither keeps anything. Raises InvalidPlan where the masks are of different networks."""
    _check_same([one, other])
    both = {name: int((kept & other.kept[name]).sum()) for name, kept in one.kept.items()}
    either = {name: int((kept | other.kept[name]).sum()) for name, kept in one.kept.items()}
    layers = {name: _distance(both[name], either[name]) for name in both}
    return Distances(_distance(sum(both.values()), sum(either.values())), layers)


def _distance(both: int, either: int) -> float:
    return 1 - both / either if either else 0.0


def intersection(masks: Sequence[WeightMask]) -> WeightMask:
    """What all of `masks` keep. Raises InvalidPlan where they are of different networks, or have no weight in common."""
    return _voted(masks, lambda votes: votes == len(masks))


def majority(masks: Sequence[WeightMask]) -> WeightMask:
    """What more than half of `masks` keep. Raises InvalidPlan as `intersection` does."""
    return _voted(masks, lambda votes: votes > len(masks) / 2)


def _voted(masks: Sequence[WeightMask], elected: Callable[[Tensor], Tensor]) -> WeightMask:
    _check_same(masks)
    return WeightMask({name: elected(torch.stack([mask.kept[name].int() for mask in masks]).sum(0)) for name in masks[0].kept})


def _check_same(masks: Sequence[WeightMask]) -> None:
    """Raises InvalidPlan unless the masks have the same parameters."""
    if not masks:
        raise InvalidPlan("there are no masks to compare; give at least one")
    first = {name: kept.shape for name, kept in masks[0].kept.items()}
    for mask in masks[1:]:
        if differing := sorted({name: kept.shape for name, kept in mask.kept.items()}.items() ^ first.items()):
            raise InvalidPlan(
                f"the masks are of different networks: they disagree about {short(differing[0][0])}; compare those of one network"
            )


# Answers


@dataclass(frozen=True)
class Answers:
    """The answers of a network to images: `probabilities` (N, classes) in float64 on the CPU, and the images' `labels` (N,)."""

    probabilities: Tensor
    labels: Tensor

    @property
    def classes(self) -> Tensor:
        """The likeliest class of each image (N,)."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        return (self.classes == self.labels).double().mean().item()


@torch.no_grad()
def answers(model: nn.Module, split: Split, device: torch.device) -> Answers:
    """The answers of `model`, in eval mode and fp32, to all images of `split`."""
    model.eval().to(device)
    found, labels, parts = [], [], 1

    def probabilities_of(images: Tensor, parts: int) -> Tensor:
        return torch.cat([model(part).double().softmax(1).cpu() for part in images.chunk(parts)])

    for images, targets in split.batches(BATCH, device, None, 0):
        probabilities, parts = fitting(partial(probabilities_of, images), len(images), parts)
        found.append(probabilities)
        labels.append(targets.cpu())
    return Answers(torch.cat(found), torch.cat(labels))


def agreement(one: Answers, other: Answers) -> float:
    """The share of images to which both give the same answer."""
    return (one.classes == other.classes).double().mean().item()


def ensemble(members: Sequence[Answers]) -> Answers:
    """The mean of the members' probabilities."""
    return Answers(torch.stack([each.probabilities for each in members]).mean(0), members[0].labels)


@dataclass(frozen=True)
class Unanimous(Record):
    """The shares of images to which all give the same answer, the right one, and none of them the right one."""

    same: float
    right: float
    wrong: float


def unanimous(members: Sequence[Answers]) -> Unanimous:
    """Over all `members`."""
    votes, labels = torch.stack([each.classes for each in members]), members[0].labels
    right = votes == labels
    each = ((votes == votes[0]).all(0), right.all(0), ~right.any(0))
    return Unanimous(*(which.double().mean().item() for which in each))


# Tickets


@dataclass(frozen=True)
class Compared(Record):
    """A ticket among others: the share of the network's weights that it keeps, and its accuracy as a share of one."""

    name: str
    level: int
    seed: int
    weights_share: float
    accuracy: float


@dataclass(frozen=True)
class Pair(Record):
    """Two tickets: Jaccard's distance of what they keep, in total and by parameter, and the share of images that they answer alike."""

    first: str
    second: str
    distance: float
    layers: dict[str, float]
    agreement: float


@dataclass(frozen=True)
class Similarity(Record):
    """A comparison of tickets of one network, on the test images of `data`; accuracies are fractions of one."""

    model: dict[str, Any]
    data: str
    images: int
    tickets: list[Compared]
    pairs: list[Pair]
    unanimous: Unanimous
    ensemble_accuracy: float


def similarity(
    tickets: Sequence[str | Path],
    *,
    data: str | None = None,
    data_root: str | Path = "data",
    model: str | None = None,
    device: str | None = None,
) -> Similarity:
    """Compare two or more files of tickets of one network: masks, and answers to test images.

    Args:
        data: whose test images; by default those of the tickets' own data. Each ticket sees them prepared as it was trained.
        model: names your own `package.module:factory` again, where the tickets need it.

    Raises:
        InvalidFile: one is not a ticket. TicketMismatch: they are of different networks or classes, or do not fit the data. InvalidSetting: there are
        fewer than two, or they are of different data and `data` does not say which to take. InvalidData, UnknownName: as `load_data`.
    """
    loaded = [(str(path), Ticket.load(path)) for path in tickets]
    if len(loaded) < 2:
        raise InvalidSetting(
            f"{', '.join(name for name, _ in loaded) or 'nothing'} has nothing to be compared with; give at least two tickets"
        )
    for name, ticket in loaded:
        check_ticket_fits(ticket, model)
        _check_alike(loaded[0], (name, ticket))
    on, source = pick_device(device), data or _common_data(loaded)
    sets: dict[str, Dataset] = {}
    masks, answered = [], []
    for _, ticket in loaded:
        network = dense_network(ticket)
        masks.append(weight_mask(network, Selection(ticket.plan, ticket.mask)))
        answered.append(answers(ticket_network(ticket, network), _images(ticket, source, data_root, sets).test, on))
    compared = [
        Compared(name, ticket.level, ticket.seed, mask.share, said.accuracy)
        for (name, ticket), mask, said in zip(loaded, masks, answered, strict=True)
    ]
    return Similarity(
        model=dict(loaded[0][1].model),
        data=source,
        images=len(answered[0].labels),
        tickets=compared,
        pairs=_pairs([name for name, _ in loaded], masks, answered),
        unanimous=unanimous(answered),
        ensemble_accuracy=ensemble(answered).accuracy,
    )


def _pairs(names: Sequence[str], masks: Sequence[WeightMask], answered: Sequence[Answers]) -> list[Pair]:
    found = []
    for i, j in combinations(range(len(names)), 2):
        apart = distances(masks[i], masks[j])
        found.append(Pair(names[i], names[j], apart.total, apart.layers, agreement(answered[i], answered[j])))
    return found


def _check_alike(first: tuple[str, Ticket], other: tuple[str, Ticket]) -> None:
    """Raises TicketMismatch where two tickets are of different networks or of different classes."""
    (name, one), (path, two) = first, other
    if dict(one.model) != dict(two.model):
        raise TicketMismatch(
            f"{path} is a ticket of {_network_of(two.model)}, and {name} one of {_network_of(one.model)}; compare tickets of the same network"
        )
    if list(one.data["class_names"]) != list(two.data["class_names"]):
        raise TicketMismatch(
            f"{path} has the classes {short(list(two.data['class_names']))}, and {name} {short(list(one.data['class_names']))}: "
            "their answers do not compare; compare tickets of the same classes"
        )


def _network_of(model: Mapping[str, Any]) -> str:
    return f"{short(model['name'])} with {', '.join(f'{name} {short(value)}' for name, value in model['arguments'].items())}"


def _common_data(loaded: Sequence[tuple[str, Ticket]]) -> str:
    """The name of the data that all tickets were found on. Raises InvalidSetting where that is not one."""
    names = sorted({ticket.data["name"] for _, ticket in loaded})
    if len(names) > 1:
        raise InvalidSetting(f"the tickets were found on {' and '.join(names)}; pass data=, whose test images they are compared on")
    return str(names[0])


def _images(ticket: Ticket, name: str, root: str | Path, sets: dict[str, Dataset]) -> Dataset:
    """The data set `name`, prepared as the ticket wants it; `sets` keeps what was loaded. Raises as `load_like`, TicketMismatch."""
    key = str({k: ticket.data.get(k) for k in ("shape", "mean", "std", "interpolation")})
    if key not in sets:
        sets[key] = load_like(ticket.data, name, root)
    there, class_names = sets[key].description, list(ticket.data["class_names"])
    if list(there.class_names) != class_names or list(there.shape) != list(ticket.data["shape"]):
        raise TicketMismatch(
            f"the tickets have {len(class_names)} classes and images {tuple(ticket.data['shape'])}, {name} has {there.classes} and "
            f"{there.shape}; pass the data that they were found on"
        )
    return sets[key]
