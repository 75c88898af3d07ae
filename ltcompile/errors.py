"""Everything that can go wrong by a user's hand, as one small tree.

Each message says what is wrong, where, and what to do now; the command line prints it and exits with 2.
"""

from __future__ import annotations


class LtcompileError(Exception):
    """Base of all errors that a user can cause and fix."""


class UnknownName(LtcompileError):
    """A model, data set, criterion or runtime that does not exist."""


class InvalidData(LtcompileError):
    """A data set that is missing, corrupt or unfit for training."""


class InvalidPlan(LtcompileError):
    """A pruning plan that contradicts itself or the network it is applied to."""


class InvalidModel(LtcompileError):
    """A network that cannot be built, traced or cut."""


class InvalidSetting(LtcompileError):
    """A setting outside its range, or settings that contradict each other."""


class InvalidFile(LtcompileError):
    """A file that cannot be read as what it should be, or a place that cannot be written."""


class DiskFull(InvalidFile):
    """A file that cannot be written for lack of space."""


class TicketMismatch(LtcompileError):
    """A ticket that does not fit the model, the data or the run that it is used with."""


class EngineMismatch(LtcompileError):
    """An engine that was tuned on another machine or with other versions."""


class ProfileMismatch(LtcompileError):
    """A profile of another network, target or machine than the one it is used for."""


class Unavailable(LtcompileError):
    """A runtime or device that this machine lacks."""


class Crashed(Unavailable):
    """A runtime whose process ended, or did not answer in time."""


class DeviceLost(LtcompileError):
    """A GPU that answers no more in this process."""


class Disagreement(LtcompileError):
    """Two networks that must compute the same do not."""


class TrainingFailed(LtcompileError):
    """Training cannot continue: a loss is not finite, or memory does not hold the network."""


SHOWN = 100  # names that an error lists


def unknown(kind: str, name: str, known: list[str]) -> UnknownName:
    """The error for a name that is in no registry: near misses first, then all there is."""
    import difflib

    near = difflib.get_close_matches(str(name), known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    more = f" and {len(known) - SHOWN:,} more" if len(known) > SHOWN else ""
    return UnknownName(f"there is no {kind} named {name!r}.{hint} Known: {', '.join(known[:SHOWN])}{more}")
