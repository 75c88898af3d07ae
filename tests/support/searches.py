"""Short trainings and searches, and one that is stopped."""

from __future__ import annotations

from ltcompile.core.recipe import Recipe

QUICK = Recipe(epochs=2, batch=32, lr=0.02, schedule="cosine", flip=False, crop_pixels=2, precision="fp32", weight_decay=5e-4)


class Stop(Exception):
    pass


class StopAfter:
    """A listener that stops the search after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def started(self, *_: object) -> None: ...
    def finished(self, *_: object) -> None: ...
    def epoch(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            raise Stop
