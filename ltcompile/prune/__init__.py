"""What is cut: criteria, rankings, limits, targets and latency planning."""

from ltcompile.prune.choose import Scope, choose
from ltcompile.prune.limits import Limits
from ltcompile.prune.planning import plan

__all__ = ["Limits", "Scope", "choose", "plan"]
