"""A program of torch.export, which PyTorch alone loads and runs."""

from __future__ import annotations

import torch
from torch import nn

from ltcompile.deploy.formats import metadata
from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower import export_program
from ltcompile.lower.answers import Run, of_network
from ltcompile.pruned import Pruned

SUFFIX = ".pt2"
PRECISIONS = ("fp32", "fp16")


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where torch cannot export the network, Disagreement where the file computes something else."""
    export_program(network, pruned.example, job.output, metadata(pruned, job), dynamic=job.dynamic)


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    return of_network(torch.export.load(job.output).module())
