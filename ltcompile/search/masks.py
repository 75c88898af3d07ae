"""Unstructured cuts: which weights may go, and which of them a round drops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import Group
from ltcompile.core.streams import generator
from ltcompile.errors import InvalidSetting
from ltcompile.graph._groups import makes_output
from ltcompile.prune.choose import Scope
from ltcompile.prune.limits import Limits

OUTPUT_RATE = 0.5  # of the others' (Frankle & Carbin 2018, section 2: the connections to the outputs)
_ROUNDING = 1e-9


def maskable(model: nn.Module, limits: Limits, kinds: tuple[type[nn.Module], ...]) -> dict[str, Tensor]:
    """Parameter name -> the weights of every layer of `kinds` that the limits leave to be cut; biases and norms are never masked.

    Raises InvalidSetting where a pattern matches no layer, or nothing is left.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    limits.check_names(layers)
    found: dict[str, Tensor] = {
        f"{name}.weight".lstrip("."): layer.get_parameter("weight") for name, layer in layers.items() if limits.allows(name)
    }
    if not found:
        raise InvalidSetting(f"the limits leave no weights to cut, of {len(layers)} layers; look at keep= and only=")
    return found


def full_mask(weights: Mapping[str, Tensor]) -> WeightMask:
    """The mask that keeps all of `weights`."""
    return WeightMask({name: torch.ones(value.shape, dtype=torch.bool) for name, value in weights.items()})


def layer_rates(mask: WeightMask, limits: Limits, groups: Iterable[Group], rate: float, levels: int) -> dict[str, float]:
    """Parameter name -> the share of its surviving weights that one of `levels` rounds at `rate` drops, layer by layer.

    The output layer's are dropped at half the rate of the rest; what has a ratio of its own reaches it by equal steps.
    """
    outputs = {m.layer for g in groups if makes_output(g) for m in g.producers}
    found = {}
    for name in mask.kept:
        layer = name.rpartition(".")[0]
        ratio = limits.ratio_of(layer)
        usual = rate * (OUTPUT_RATE if layer in outputs else 1)
        found[name] = usual if ratio is None else 1 - (1 - ratio) ** (1 / levels)
    return found


def prune_mask(mask: WeightMask, scores: Mapping[str, Tensor], rates: Mapping[str, float], scope: Scope) -> WeightMask:
    """`mask` without its weights of lowest `scores`, which are in the shapes of their parameters; of equal ones, the first stay.

    "local" drops the share `rates` of each parameter's; "global" as many in all, wherever they lie. Every parameter keeps a weight.
    """
    survivors = {name: kept.flatten().nonzero().flatten().numpy() for name, kept in mask.kept.items()}
    values = {name: scores[name].flatten().numpy()[places] for name, places in survivors.items()}
    counts = {name: math.floor(rates[name] * len(places) + _ROUNDING) for name, places in survivors.items()}
    if scope == "global":
        counts = _global_counts(values, sum(counts.values()))
    kept = {}
    for name, before in mask.kept.items():
        worst_first = np.argsort(-values[name], kind="stable")[::-1]
        gone = survivors[name][worst_first[: min(counts[name], len(worst_first) - 1)]]
        flat = before.flatten().clone()
        flat[torch.from_numpy(gone)] = False
        kept[name] = flat.view_as(before)
    return WeightMask(kept)


def _global_counts(values: Mapping[str, np.ndarray], total: int) -> dict[str, int]:
    """How many of each parameter's values are among the `total` lowest of all."""
    owners = np.repeat(np.arange(len(values)), [len(v) for v in values.values()])
    lowest = np.argsort(np.concatenate(list(values.values())), kind="stable")[:total]
    return dict(zip(values, np.bincount(owners[lowest], minlength=len(values)).tolist(), strict=True))


def shuffle_mask(mask: WeightMask, seed: int, gone: Mapping[str, Tensor] | None = None) -> WeightMask:
    """A random mask that keeps as many weights of every parameter: the control for what a mask knows beyond its counts.

    `gone` says, by parameter, where filters that went leave no place (True).
    """
    rng, kept = generator(seed), {}
    for name, before in mask.kept.items():
        places = (~gone[name].flatten()).nonzero().flatten() if gone and name in gone else torch.arange(before.numel())
        after = torch.zeros(before.numel(), dtype=torch.bool)
        after[places] = before.flatten()[places][torch.randperm(len(places), generator=rng)]
        kept[name] = after.view_as(before)
    return WeightMask(kept)
