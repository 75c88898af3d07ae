"""The search: train, score, prune, rewind, judge."""

from ltcompile.search.config import SearchConfig
from ltcompile.search.search import Found, find

__all__ = ["Found", "SearchConfig", "find"]
