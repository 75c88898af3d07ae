"""CUDA graphs of PyTorch's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def record(work: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of `work`; other threads may use the GPU meanwhile."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph
