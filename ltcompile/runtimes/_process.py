"""What a process may have only one of."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

SHAPES = 256  # compilations of one forward(), over all networks of that class in this process; PyTorch's default is 8
_SETTINGS = threading.RLock()


@functools.cache
def openvino_core() -> Any:
    """The process's only core. Each one swaps the main thread's signal stack for its own (OpenVINO pull request 11894); when two are
    dropped in the order they were made, the thread is left with an unmapped one, and the next signal kills the process.
    """
    import openvino

    return openvino.Core()


@contextlib.contextmanager
def freezing() -> Iterator[None]:
    """First calls of torch.compile's functions in it compile with frozen weights, one thread at a time.

    Set for all of PyTorch meanwhile: as an option of one torch.compile it would come after tracing, and two networks of one class and shape
    would then share the first one's frozen weights.
    """
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    with _SETTINGS, inductor.patch(freezing=True), dynamo.patch(recompile_limit=SHAPES):
        yield
