"""What runtimes without a batch share: a session that runs its rows one after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ltcompile.errors import InvalidSetting
from ltcompile.runtimes._base import Array, Bound, Feeds, Session, by_name

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment


class RowSession(Session):
    """A network whose inputs and outputs, (N, ...), are computed row by row; `outputs` are their names."""

    thread_safe = False

    def __init__(self, deployment: Deployment, details: Mapping[str, str], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__(deployment, {**details, "batch": "rows, one after the other"})
        self._inputs, self._outputs = inputs, outputs

    @abstractmethod
    def row(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """The outputs of one row, without the dimension of the batch."""

    def bind(self, inputs: Feeds) -> Bound:
        rows, found = list[list[Array]](), list[Sequence[Array]]()

        def write(more: Feeds) -> None:
            arrays = list(by_name(more, self._inputs).values())
            if len({len(array) if array.ndim else 0 for array in arrays}) != 1:
                raise InvalidSetting(f"{self.deployment.runtime} takes inputs of one batch size, not {[array.shape for array in arrays]}")
            rows[:] = [[np.ascontiguousarray(array[at]) for array in arrays] for at in range(len(arrays[0]))]

        def call() -> None:
            found[:] = [self.row(row) for row in rows]

        write(inputs)
        return Bound(
            self.in_turns(call), lambda: {name: np.stack([row[at] for row in found]) for at, name in enumerate(self._outputs)}, write
        )
