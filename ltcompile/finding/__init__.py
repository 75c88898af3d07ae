"""The search: train, score, prune, rewind, judge."""

from ltcompile.finding.choose import Scope, choose
from ltcompile.finding.config import SearchConfig
from ltcompile.finding.limits import Limits
from ltcompile.finding.planning import plan
from ltcompile.finding.search import Found, find

__all__ = ["Found", "Limits", "Scope", "SearchConfig", "choose", "find", "plan"]
