"""One arm of a search in a loop of the caller's own: the network to train, and where its metric goes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ltcompile.core.lease import Lease
from ltcompile.core.task import Score
from ltcompile.errors import InvalidModel, InvalidSetting
from ltcompile.graph.wrappers import unwrap
from ltcompile.training import ArmTraining

if TYPE_CHECKING:
    from ltcompile.search.own_loop import OwnLoop


class ArmToTrain:
    """One arm of a search, for the caller to train.

    `model` is the network, at its first weights: train it in place, at its own widths. `epochs` is how long, in the schedule of
    `Search(epochs=...)` from `first_epoch` on; `seed` is the seed of the arm's randomness; `folder` is for the caller's own checkpoints.
    """

    def __init__(self, search: OwnLoop, model: nn.Module, training: ArmTraining, lease: Lease | None = None) -> None:
        self._search, self.arm, self._lease, self.left_out = search, training.arm, lease, False
        self.model, self.first_epoch, self.epochs = model, training.first_epoch, training.recipe.epochs - training.first_epoch
        self.seed, self.name = training.arm.stream("training"), f"seed{training.arm.seed}/{training.arm.name}"
        self.folder = search.folder.own_checkpoints(training.arm)
        self._shapes, self._began = _shapes(model), time.monotonic()
        self.early: dict[str, Tensor] | None = None

    def __repr__(self) -> str:
        return f"<arm {self.name}, epochs {self.first_epoch} to {self.first_epoch + self.epochs}>"

    @property
    def lost(self) -> bool:
        """Whether another process trains this arm now, or has finished it."""
        return self._search.folder.training(self.arm).exists() or (self._lease is not None and self._lease.superseded)

    def keep_early(self) -> None:
        """Keep the weights as they are now, to rewind to. Call it after epoch `rewind_epoch` of every dense arm where rewind="weight"."""
        self.early = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def report(self, value: float, items: Sequence[float] | None = None) -> None:
        """Finish the arm: write its weights, and the metric's `value` on validation data, to the run folder.

        `items` holds the metric of each validation item where the value is their mean, or says which ones were correct (True, False): with
        fewer than three seeds a verdict pairs them. The order must be the same for all arms.

        Raises:
            InvalidSetting: the value is not finite, or `items` contradict it. InvalidModel: the network has other parameters than the arm's.
        """
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InvalidSetting(f"report({value!r}) of {self.name}: the metric must be a finite number; the arm is not finished")
        values = () if items is None else tuple(map(float, items))
        if items is not None and not math.isclose(mean := sum(values) / max(len(values), 1), value, rel_tol=1e-4, abs_tol=1e-6):
            raise InvalidSetting(f"report({value}) of {self.name}: the mean of its {len(values)} items is {mean:g}; report the same items")
        if (found := _shapes(self.model)) != self._shapes:
            name = next(n for n in [*self._shapes, *found] if self._shapes.get(n) != found.get(n))
            raise InvalidModel(
                f"{self.name}: {name} has shape {found.get(name, 'none')}, the arm's network {self._shapes.get(name, 'none')}; "
                "train arm.model in place, do not replace it or change its layers"
            )
        right_or_wrong = bool(values) and set(values) <= {0.0, 1.0}
        self._search._finish(self, Score(float(value), 0.0, _bits(values) if right_or_wrong else "", () if right_or_wrong else values))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in unwrap(model).state_dict().items()}


def _bits(items: Sequence[float]) -> str:
    """Hexadecimal bits, the first item in the highest."""
    return f"{int(''.join(str(int(i)) for i in items), 2):0{-(-len(items) // 4)}x}"
