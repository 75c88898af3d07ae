"""The random streams of a search: each a function of what it is for, and of nothing that ran before. No seed is made elsewhere.

    number = first 63 bits of SHA-256(purpose, seed, arm, level, epoch)

Equal on purpose: the dense network, the dense control and all rewound tickets of a seed start from the same "first weights", so that they
compare in pairs; every other control has "fresh weights" of its own. Searches with the same seeds (the arms of a study) share the streams
of the same trainings, so that they compare in pairs too. Training and validation splits are the same for all seeds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Purpose = Literal[
    "first weights",  # of a seed
    "fresh weights",  # of a training that starts from neither the first weights nor an earlier training
    "training",  # the parent of "projections", and of the three after it, which have an epoch
    "projections",  # between layers of a network and of its teacher
    "batches",
    "dropout",
    "augmentation",  # of a virtual rank, where there are several
    "shards",  # their order in an epoch; its parent is its batches'
    "shuffled shards",  # the images that a virtual rank reads of them
    "alternate flips",  # which images are mirrored in even epochs; the same for all seeds
    "method",  # what a method draws besides weights: scores, frozen weights
    "scoring",  # the parent of the next three
    "scoring batches",
    "drawn labels",  # of curvature
    "random scores",
    "shuffled mask",
    "chance mask",  # of a study that only looks at it
    "shuffled data",  # of a study
    "test split",
    "validation split",
    "training images",
    "trial",  # of the ways to compute a training
    "int8 fine-tuning",
    "int8 calibration",
    "repair",
]

_STATE_WORDS = 624  # of the Mersenne twister, behind 24 bytes of a generator's state, 8 bytes each
_STATE_START = 24


def stream(purpose: Purpose, seed: int, *, arm: str = "", level: int = 0, epoch: int = 0) -> int:
    """The number of a stream, in [0, 2^63). A stream's number can be the `seed` of further ones."""
    text = json.dumps([purpose, seed, arm, level, epoch])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(number: int) -> torch.Generator:
    """A generator on the CPU for a stream.

    torch's own seeding of its CPU generator keeps the low 32 bits of a seed, among which two of the 100,000 streams of a long search would
    probably coincide. All 624 words of the state are set instead (numpy's SeedSequence).
    """
    import numpy as np
    import torch

    found = torch.Generator().manual_seed(number)
    state = found.get_state()
    words = np.random.SeedSequence(number).generate_state(_STATE_WORDS).astype(np.int64)
    state[_STATE_START : _STATE_START + 8 * _STATE_WORDS] = torch.from_numpy(words).view(torch.uint8)
    found.set_state(state)
    return found


@contextlib.contextmanager
def seeded(number: int) -> Iterator[None]:
    """Inside it, torch's global generators draw from a stream; afterwards, they are as they were. It also decorates functions."""
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(number)
        torch.set_rng_state(generator(number).get_state())
        yield
