"""Load a pruned network from a file of weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.tensors import read_safetensors
from ltcompile.deploy.changes import replace_layers, with_biases
from ltcompile.errors import InvalidFile, InvalidModel, InvalidPlan
from ltcompile.graph import cut
from ltcompile.models._weights import read_state_dict


def load_pruned(build: Callable[[], nn.Module], path: str | Path, plan: PruningPlan | str | Path | None = None) -> nn.Module:
    """The pruned network in `path`, in eval mode on the CPU: weights of the cut network, in .safetensors or a file of torch.save.

    Args:
        build: makes the unpruned network, as in `load_pruned(MyNet, "small.safetensors")`.
        plan: what was cut, or its file; a .safetensors file of `shrink` holds it.

    Raises:
        InvalidFile: the file cannot be read, or holds other weights. InvalidPlan: the plan is of another network. InvalidModel: `build` makes none.
    """
    path, network = Path(path), build()
    if not isinstance(network, nn.Module):
        raise InvalidModel(f"build() must make a torch.nn.Module, not a {type(network).__name__}")
    texts = read_safetensors(path, "file of weights")[1] if path.suffix == ".safetensors" else {}
    if plan is None and "plan" in texts:
        plan = _plan(path, texts["plan"])
    elif isinstance(plan, str | Path):
        plan = PruningPlan.load(plan)
    try:
        network = cut(network, plan) if plan is not None else network
        replace_layers(network, texts.get("changes", "{}"))
        weights = read_state_dict(path, network.state_dict())
        with_biases(network, weights)
        network.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}, assign=True
        )
    except InvalidPlan as error:
        raise InvalidPlan(f"{path} was cut from another network than build() makes: {error}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidFile(f"{path} does not hold the weights of this network: {reason}; pass the plan that it was cut by") from error
    return network.eval()


def _plan(path: Path, text: str) -> PruningPlan:
    try:
        return PruningPlan.from_json(json.loads(text))
    except (InvalidPlan, ValueError, RecursionError) as error:
        raise InvalidFile(f"{path} holds a plan that is not valid: {error}; write it again with shrink") from error
