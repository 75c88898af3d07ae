"""The search: train, score, prune, rewind, judge."""

from ltcompile.finding.choose import Scope, choose, plan
from ltcompile.finding.config import SearchConfig
from ltcompile.finding.search import Found, find

__all__ = ["Found", "Scope", "SearchConfig", "choose", "find", "plan"]
