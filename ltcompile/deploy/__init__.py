"""From a pruned network to a verified file: proven equal to the masked network, folded, quantised, written and read back."""

from ltcompile.deploy.job import Int8
from ltcompile.deploy.load import load_pruned
from ltcompile.deploy.shrink import Shrunk, shrink

__all__ = ["Int8", "Shrunk", "load_pruned", "shrink"]
