"""Distillation by features: layers of the small network follow the dense network's of the same names.

As FitNets (Romero et al. 2015, arXiv:1412.6550), for any number of layers. Where widths differ, a 1x1 projection without bias turns the small
network's channels into the dense network's. Projections are trained with the network and dropped at the end. The
loss of a layer is the squared error over the dense network's squared values; layers count alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile.core.streams import seeded, stream
from ltcompile.errors import InvalidSetting
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.wrappers import in_eval_mode

Outputs = dict[str, Tensor]
TINY = 1e-12


class Features:
    """The layers `names` of `model` and `teacher`, and the `projections` between them, in order; `seed` is the training's.

    Raises:
        InvalidSetting: a network has no layer of a name, or two outputs are not tensors that agree but for one axis, that of their channels.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module, names: Sequence[str], example: Example, device: torch.device, seed: int
    ) -> None:
        self._student, self._teacher = (_layers(network, names) for network in (model, teacher))
        inputs = Arguments.of(example).map(lambda t: t.to(device))
        found = []
        for network, layers in ((model, self._student), (teacher, self._teacher)):
            with in_eval_mode(network), torch.no_grad(), _recorded(layers) as outputs:
                network(*inputs.args, **inputs.kwargs)
            found.append(outputs)
        self._axes = {name: _axis(name, *(outputs.get(name) for outputs in found)) for name in names}
        with seeded(stream("projections", seed)):
            self.projections = nn.ModuleList(
                nn.Identity() if axis is None else nn.Linear(found[0][name].shape[axis], found[1][name].shape[axis], bias=False)
                for name, axis in self._axes.items()
            ).to(device)

    @contextmanager
    def watching(self, teach: Callable[[Any], Any], inputs: Any) -> Iterator[Callable[[], Tensor]]:
        """Inside it the network runs on `inputs`; gives what computes the mean loss over the layers then. `teach` runs the teacher, if nothing has."""
        with _recorded(self._student) as student, _recorded(self._teacher) as taught:

            def loss() -> Tensor:
                if not taught:
                    teach(inputs)
                pairs = zip(self._axes.items(), self.projections, strict=True)
                return torch.stack([_distance(projection, student[name], taught[name], axis) for (name, axis), projection in pairs]).mean()

            yield loss


def _layers(network: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    known = dict(network.named_modules())
    if missing := [name for name in names if not name or name not in known]:
        raise InvalidSetting(f"distill_layers={list(names)}: {type(network).__name__} has no layer {missing[0]!r}; name one of its modules")
    return {name: known[name] for name in names}


@contextmanager
def _recorded(layers: dict[str, nn.Module]) -> Iterator[Outputs]:
    """Inside it, what each layer gives last."""
    found: Outputs = {}

    def keep(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        found[name] = output

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(partial(keep, name)).remove)
        yield found


def _axis(name: str, ours: Any, theirs: Any) -> int | None:
    """The axis of the channels, where their number differs."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        raise InvalidSetting(f"distill_layers: {name!r} does not run, or gives no tensor; name a layer whose output is one")
    differing = [axis for axis, (a, b) in enumerate(zip(ours.shape, theirs.shape, strict=False)) if a != b]
    if ours.dim() != theirs.dim() or len(differing) > 1 or 0 in differing:
        raise InvalidSetting(
            f"distill_layers: {name!r} gives {tuple(ours.shape)}, and the teacher's {tuple(theirs.shape)}; only channels may differ"
        )
    return differing[0] if differing else None


def _distance(projection: nn.Module, ours: Tensor, theirs: Tensor, axis: int | None) -> Tensor:
    ours, theirs = ours.float(), theirs.float()
    if axis is not None:
        ours = projection(ours.movedim(axis, -1)).movedim(-1, axis)
    return F.mse_loss(ours, theirs) / theirs.square().mean().clamp_min(TINY)
