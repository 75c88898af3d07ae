"""The search: train, score, prune, rewind, judge."""

from ltcompile.search.conditions import NONTRIVIAL_SHARE, Conditions, Margins, conditions_met, margins_of, prize
from ltcompile.search.config import SearchConfig
from ltcompile.search.listener import Listener, NullListener
from ltcompile.search.masks import full_mask, shuffle_mask
from ltcompile.search.run import SearchResult
from ltcompile.search.search import find
from ltcompile.search.selection import Selection
from ltcompile.search.several import Searches, SearchPart
from ltcompile.search.source import Source, data_for, default_folder, recipe_for, task_for
from ltcompile.search.status import RunStatus, RunWatch

__all__ = [
    "NONTRIVIAL_SHARE",
    "Conditions",
    "Listener",
    "Margins",
    "NullListener",
    "RunStatus",
    "RunWatch",
    "SearchConfig",
    "SearchPart",
    "SearchResult",
    "Searches",
    "Selection",
    "Source",
    "conditions_met",
    "data_for",
    "default_folder",
    "find",
    "full_mask",
    "margins_of",
    "prize",
    "recipe_for",
    "shuffle_mask",
    "task_for",
]
