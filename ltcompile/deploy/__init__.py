"""From a ticket to a smaller dense network, proven equal to the masked one, and to the file that deploys it."""

from ltcompile.deploy.int8 import Int8
from ltcompile.deploy.rebuild import check_ticket_fits, dense_network, named_network, small_network
from ltcompile.deploy.shrink import Shrunk, shrink

__all__ = ["Int8", "Shrunk", "check_ticket_fits", "dense_network", "named_network", "shrink", "small_network"]
