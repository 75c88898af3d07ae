"""Notices: warnings about what a user should know, although no action is needed."""

from __future__ import annotations

import functools
import warnings


class Notice(UserWarning):
    """The category of these warnings; the command line prints their text alone."""


@functools.cache
def notify(text: str) -> None:
    """Say `text` once in a process: a search builds its network again for every training."""
    warnings.warn(text, Notice, stacklevel=3)
