"""One page that tells a run: what was found, what it is worth, and how it was checked."""

from ltcompile.reporting.page import report

__all__ = ["report"]
