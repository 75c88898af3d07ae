"""The search: train, score, prune, rewind, judge."""

from ltcompile.search.conditions import NONTRIVIAL_SHARE, Conditions, Margins, conditions_met, margins_of, prize
from ltcompile.search.config import SearchConfig
from ltcompile.search.listener import Listener, NullListener
from ltcompile.search.masks import full_mask, shuffle_mask
from ltcompile.search.search import SearchResult, data_for, default_folder, find, recipe_for, task_for
from ltcompile.search.selection import Selection

__all__ = [
    "NONTRIVIAL_SHARE",
    "Conditions",
    "Listener",
    "Margins",
    "NullListener",
    "SearchConfig",
    "SearchResult",
    "Selection",
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
