"""The search: train, score, prune, rewind, judge."""

from ltcompile.find.choose import Scope, choose, plan
from ltcompile.find.config import SearchConfig
from ltcompile.find.search import Found, find

__all__ = ["Found", "Scope", "SearchConfig", "choose", "find", "plan"]
