"""What a process may have only one of."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def openvino_core() -> Any:
    """The process's only core. Each one swaps the main thread's signal stack for its own (OpenVINO pull request 11894); when two are
    dropped in the order they were made, the thread is left with an unmapped one, and the next signal kills the process.
    """
    import openvino

    return openvino.Core()
