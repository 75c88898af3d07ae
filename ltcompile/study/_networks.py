"""What a search left in its run folder: networks of its levels, and what they keep, in the places of the original network."""

from __future__ import annotations

from torch import Tensor, nn

from ltcompile.benchmark.similarity import weight_mask
from ltcompile.core.arm import Arm
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.run_folder import RunFolder
from ltcompile.graph import cut, embed
from ltcompile.models import build_model
from ltcompile.search import Selection, full_mask
from ltcompile.study._nouns import Done


def original(done: Done) -> nn.Module:
    """The unpruned network of a search, with arbitrary weights, in eval mode."""
    images = done.data.description
    return build_model(done.arm.model, images.classes, images.shape[0], images.shape[1]).eval()


def network(done: Done, seed: int, level: int) -> nn.Module:
    """The trained ticket of a level, or at level 0 the dense network, in eval mode; of filters, the cut one. Raises InvalidFile."""
    run, found = RunFolder(done.folder), original(done)
    if level and not _masked(done):
        found = cut(found, PruningPlan.load(run.plan(seed, level)))
    run.load_weights(found, Arm(seed, "ticket" if level else "dense", level), f"level {level}")
    return found


def weights(done: Done, seed: int, level: int) -> dict[str, Tensor]:
    """Parameter name -> the trained weights of a level, in the original's places with zeros for what is dropped. Raises InvalidFile."""
    found = network(done, seed, level)
    if level and not _masked(done):
        found = embed(found, PruningPlan.load(RunFolder(done.folder).plan(seed, level)), original(done))
    return {name: p.detach() for name, p in found.named_parameters() if p.dim() > 1}


def mask(done: Done, seed: int, level: int) -> WeightMask:
    """Which of the original's weights a level keeps; all of them at level 0. Raises InvalidFile."""
    whole = original(done)
    if not level:
        return full_mask({name: p for name, p in whole.named_parameters() if p.dim() > 1})
    return weight_mask(whole, Selection(*RunFolder(done.folder).load_selection(seed, level, _masked(done))))


def _masked(done: Done) -> bool:
    """Whether its tickets are unpruned networks with zeros."""
    return done.arm.config.prune != "filters"
