"""From a pruned network to a verified file: proven equal to the masked network, folded, quantised, written and read back."""

from ltcompile.deploy.job import Int8
from ltcompile.deploy.load import load_pruned
from ltcompile.deploy.pruned import Metric, Pruned, Result
from ltcompile.deploy.rebuild import check_ticket_fits, dense_network, named_network, small_network
from ltcompile.deploy.shrink import Shrunk, shrink

__all__ = [
    "Int8",
    "Metric",
    "Pruned",
    "Result",
    "Shrunk",
    "check_ticket_fits",
    "dense_network",
    "load_pruned",
    "named_network",
    "shrink",
    "small_network",
]
