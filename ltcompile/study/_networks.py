"""What a search left in its run folder: networks of its levels, and what they keep, in the places of the original network."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ltcompile.benchmark.likeness import weight_mask
from ltcompile.benchmark.subjects import read_weights
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.graph import cut, embed
from ltcompile.models import build_model
from ltcompile.search.kept import Kept
from ltcompile.search.masks import everything
from ltcompile.study._nouns import Done


def original(done: Done) -> nn.Module:
    """The whole network of a search, with weights of no matter, in eval mode."""
    told = done.data.description
    return build_model(done.arm.model, told.classes, told.shape[0], told.shape[1]).eval()


def network(done: Done, seed: int, level: int) -> nn.Module:
    """The trained ticket of a level, or at level 0 the dense network, in eval mode; of filters, the cut one. Raises BadFile."""
    whole, folder = original(done), done.folder / f"seed{seed}"
    found = whole if not level or _masked(done) else cut(whole, PruningPlan.load(folder / f"plan-{level}.json"))
    found.load_state_dict(read_weights(_unit(done, seed, level), f"level {level}"))
    return found


def weights(done: Done, seed: int, level: int) -> dict[str, Tensor]:
    """Parameter name -> the trained weights of a level, in the original's places with zeros for what is dropped. Raises BadFile."""
    found = network(done, seed, level)
    if level and not _masked(done):
        found = embed(found, PruningPlan.load(done.folder / f"seed{seed}" / f"plan-{level}.json"), original(done))
    return {name: p.detach() for name, p in found.named_parameters() if p.dim() > 1}


def mask(done: Done, seed: int, level: int) -> WeightMask:
    """Which of the original's weights a level keeps; all of them at level 0. Raises BadFile."""
    whole, folder = original(done), done.folder / f"seed{seed}"
    if not level:
        return everything({name: p for name, p in whole.named_parameters() if p.dim() > 1})
    found = WeightMask.load(folder / f"mask-{level}.pt") if _masked(done) else None
    return weight_mask(whole, Kept(PruningPlan.load(folder / f"plan-{level}.json"), found))


def _masked(done: Done) -> bool:
    """Whether its tickets are whole networks with zeros."""
    return done.arm.config.prune != "filters"


def _unit(done: Done, seed: int, level: int) -> Path:
    return done.folder / f"seed{seed}" / (f"ticket-{level}.pt" if level else "dense-0.pt")
