"""What a user should know, but need not mend: a warning whose text stands for itself."""

from __future__ import annotations

import functools
import warnings


class Notice(UserWarning):
    """The category of these warnings; the command line prints their text alone."""


@functools.cache
def notify(text: str) -> None:
    """Say `text` once in a process: a search builds its network anew for every training."""
    warnings.warn(text, Notice, stacklevel=3)
