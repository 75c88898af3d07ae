"""What criteria look at besides weights, as far as unlabelled inputs give it: activations, and how much the outputs depend on them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from ltcompile.core.streams import generator, seeded, stream
from ltcompile.errors import InvalidData, InvalidModel, InvalidSetting
from ltcompile.graph._copy import copied
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.rules import tensors_in
from ltcompile.graph.wrappers import unwrap
from ltcompile.prune import criteria
from ltcompile.prune.criteria import Evidence

Found = dict[tuple[str, str], Tensor]
BATCHES = 16  # that are read
ROWS = 8192  # places that second moments are taken at, of each batch
WIDEST = 4096  # channels that second moments are taken of
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase)


@seeded(0)
def from_inputs(criterion: str, model: nn.Module, inputs: Iterable[Example], seed: int = 0) -> Evidence:
    """What `criterion` needs, from the first batches of unlabelled inputs; `model` stays as it is.

    Raises:
        UnknownName: no such criterion. InvalidSetting: it needs labels. InvalidData: there are no inputs, or they are not finite.
    """
    evidence = Evidence(rng=generator(stream("random scores", seed)))
    needed = criteria.needs(criterion)
    if labelled := [kind for kind in needed if kind not in COLLECT]:
        able = ", ".join(name for name in criteria.names() if all(kind in COLLECT for kind in criteria.needs(name)))
        raise InvalidSetting(f"criterion {criterion!r} needs {', '.join(labelled)}, which take labels; from inputs alone score {able}")
    model = copied(unwrap(model)).eval()
    batches = [Arguments.of(batch) for batch in first_batches(inputs)]
    if needed and not batches:
        raise InvalidData("inputs= gives no inputs; pass an iterable of batches")
    if not all(t.isfinite().all() for batch in batches for t in batch.tensors if t.is_floating_point()):
        raise InvalidData("inputs= holds values that are not finite; leave them out")
    for kind in needed:
        setattr(evidence, kind, COLLECT[kind](model, batches, generator(stream("drawn labels", seed))))
    return evidence


def first_batches(inputs: Iterable[Example]) -> list[Example]:
    """The batches of `inputs` that are read. Raises InvalidData where they are not iterable."""
    if not isinstance(inputs, Iterable):
        raise InvalidData(f"inputs= takes an iterable of batches, not {type(inputs).__name__}")
    return list(islice(inputs, BATCHES))


@torch.no_grad()
def channel_means(model: nn.Module, batches: Iterable[Example], measure: Callable[[Tensor], Tensor]) -> Found:
    """(layer, axis) -> mean of `measure` over inputs and places, (C,): of what the layer reads ("in"), and makes ("out", "each").

    Of convolutions, linear layers and the norms with channels in dimension 1; each under every name that a member's axis may have.
    """
    means: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def record(name: str, layer: nn.Module, read: tuple[Tensor, ...], made: Tensor) -> None:
        for axes, values in ((("in",), read[0]), (("out", "each"), made)):
            found = _by_channel(measure(values), layer).double().mean(1)
            for axis in axes:
                means[name, axis].append(found)

    deque(_run(model, batches, record), maxlen=0)
    return {key: torch.stack(parts).mean(0) for key, parts in means.items()}


@torch.no_grad()
def second_moments(model: nn.Module, batches: Iterable[Example]) -> Found:
    """(layer, "in") -> covariance over inputs and places of the channels that a layer reads, in float64: (C, C)."""
    sums: dict[tuple[str, str], list[Tensor]] = {}

    def record(name: str, layer: nn.Module, read: tuple[Tensor, ...], made: Tensor) -> None:
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            return
        values = _by_channel(read[0], layer)
        if len(values) > WIDEST:
            return
        values = values[:, :: -(-values.shape[1] // ROWS)].double()
        parts = [torch.tensor(float(values.shape[1])), values.sum(1), values @ values.T]
        known = sums.get((name, "in"))
        sums[name, "in"] = parts if known is None else [a + b for a, b in zip(known, parts, strict=True)]

    deque(_run(model, batches, record), maxlen=0)
    return {key: square / n - torch.outer(total / n, total / n) for key, (n, total, square) in sums.items()}


def sensitivities(model: nn.Module, batches: Iterable[Example], rng: torch.Generator) -> Found:
    """(layer, "out") -> the sum over places of the mean squared derivative of the outputs by the layer's output, (C,).

    Outputs are in units of their standard deviation, and projected on random directions: for squared errors of the outputs, this is the
    diagonal of the Gauss-Newton matrix. No labels are needed.
    """
    return _gradients(model, batches, rng, lambda value, gradient: gradient.square().sum(-1), reads=False)


def responses(model: nn.Module, batches: Iterable[Example], rng: torch.Generator) -> Found:
    """(layer, "in") -> mean squared first-order change of the outputs, as `sensitivities` has them, without the channel: (C,)."""
    return _gradients(model, batches, rng, lambda value, gradient: (value * gradient).sum(-1).square(), reads=True)


@torch.no_grad()
def places(model: nn.Module, batches: Iterable[Example]) -> Found:
    """(layer, "out") -> the places of a layer's output, of one input, at which its weights multiply."""
    found: Found = {}

    def record(name: str, layer: nn.Module, read: tuple[Tensor, ...], made: Tensor) -> None:
        values = _places(read[0] if isinstance(layer, nn.modules.conv._ConvTransposeNd) else made, layer)
        found[name, "out"] = torch.tensor(float(values.shape[-1]))

    deque(_run(model, islice(batches, 1), record), maxlen=0)
    return found


def _gradients(
    model: nn.Module, batches: Iterable[Example], rng: torch.Generator, measure: Callable[[Tensor, Tensor], Tensor], reads: bool
) -> Found:
    """The mean over inputs of `measure`, which takes a value and its gradient (N, C, places) to (N, C)."""
    total: dict[tuple[str, str], Tensor] = {}
    seen = 0

    def record(name: str, layer: nn.Module, read: tuple[Tensor, ...], made: Tensor) -> None:
        value, axis = (read[0], "in") if reads else (made, "out")
        if value.requires_grad and not isinstance(layer, nn.modules.batchnorm._NormBase):
            kept = value.detach().clone()  # the network may write over it
            value.register_hook(partial(add, (name, axis), layer, kept))

    def add(key: tuple[str, str], layer: nn.Module, value: Tensor, gradient: Tensor) -> None:
        found = measure(*(_places(t, layer) for t in (value, gradient))).double().sum(0)
        total[key] = total[key] + found if key in total else found

    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.enable_grad():
        for output in _run(model, batches, record):
            made = [t for t in tensors_in(output) if t.requires_grad]
            if not made or not all(t.isfinite().all() for t in made):
                raise InvalidModel("the network's outputs are not finite, or depend on none of its weights; look at its weights and inputs")
            seen += len(made[0])
            drawn = [torch.randn(t.shape, generator=rng).to(t) / t.detach().std().clamp_min(1e-12) for t in made]
            torch.autograd.backward(made, drawn)
            model.zero_grad(set_to_none=True)
    return {key: value / seen for key, value in total.items()}


def _run(model: nn.Module, batches: Iterable[Example], record: Callable[..., None]) -> Iterator[object]:
    """What `model` gives for each of the batches, with `record(name, layer, inputs, output)` behind each layer."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    hooks = [layer.register_forward_hook(partial(record, name)) for name, layer in layers]
    try:
        for batch in batches:
            inputs = Arguments.of(batch)
            yield model(*inputs.args, **inputs.kwargs)
    finally:
        for hook in hooks:
            hook.remove()


def _by_channel(values: Tensor, layer: nn.Module) -> Tensor:
    """(C, inputs and places)."""
    return values.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)


def _places(values: Tensor, layer: nn.Module) -> Tensor:
    """(N, C, places)."""
    values = values.movedim(-1, 1) if isinstance(layer, nn.Linear) else values
    return values.unsqueeze(-1) if values.dim() == 2 else values.flatten(2)


def _positive(values: Tensor) -> Tensor:
    return (values > 0).to(values.dtype)


COLLECT: dict[str, Callable[[nn.Module, Iterable[Example], torch.Generator], Found]] = {
    "activations": lambda model, batches, rng: channel_means(model, batches, torch.abs),
    "nonzeros": lambda model, batches, rng: channel_means(model, batches, _positive),
    "moments": lambda model, batches, rng: second_moments(model, batches),
    "sensitivities": sensitivities,
    "responses": responses,
    "places": lambda model, batches, rng: places(model, batches),
}
