"""The weights of the network, for `load_pruned` and for the loader that is written next to the file."""

from __future__ import annotations

import copy
import json

from torch import nn

from ltcompile.deploy.changes import changes
from ltcompile.deploy.formats import metadata
from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower import HalfInside
from ltcompile.lower.answers import Run, of_network
from ltcompile.paths import write_bytes
from ltcompile.pruned import Pruned

SUFFIX = ".safetensors"
PRECISIONS = ("fp32", "fp16")


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Weights under the names of the network's own code, what changes its layers, and the plan."""
    from safetensors.torch import save

    texts = metadata(pruned, job)
    if job.base is not None:
        texts["changes"] = json.dumps(changes(job.base, pruned.small)[0])
    if pruned.plan is not None:
        texts["plan"] = json.dumps(pruned.plan.to_json())
    state = _inside(network).state_dict()
    write_bytes(job.output, save({name: value.detach().clone().contiguous() for name, value in state.items()}, texts))


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    from safetensors.torch import load_file

    fresh = copy.deepcopy(network)
    _inside(fresh).load_state_dict(load_file(job.output))
    return of_network(fresh.eval())


def _inside(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, HalfInside) else network
