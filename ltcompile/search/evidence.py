"""What criteria look at besides weights, from a few training batches before a round's cut: gradients, curvature, activations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator, stream
from ltcompile.data import Split
from ltcompile.errors import InvalidModel
from ltcompile.graph._copy import copied
from ltcompile.graph.wrappers import unwrap
from ltcompile.prune import criteria
from ltcompile.prune.criteria import Evidence
from ltcompile.training import fitting, to_memory_format

BATCHES = 8
GRADIENT_BATCH = 32  # images: the squares of smaller batches' gradients vary less around what single images say
DRAWS = 4  # labels drawn for each image

Batches = Iterable[tuple[Tensor, Tensor]]


def gather(criterion: str, model: nn.Module, split: Split | None, recipe: Recipe, seed: int, device: torch.device) -> Evidence:
    """What `criterion` needs to score a copy of `model` in eval mode, and no more. `seed` picks the batches of `split`, and all chance; a
    criterion that looks at weights alone needs no split.

    Raises:
        UnknownName: no such criterion. InvalidModel: its curvature is needed, and the network's logits are not finite.
    """
    evidence = Evidence(rng=generator(stream("random scores", seed)))
    if split is None or not criteria.needs(criterion):
        return evidence
    model = copied(unwrap(model)).eval()
    collect: dict[str, Callable[[Batches], object]] = {
        "curvature": partial(loss_curvature, model, seed=stream("drawn labels", seed)),
        "activations": partial(channel_means, model, measure=torch.abs),
        "nonzeros": partial(channel_means, model, measure=_positive),
    }
    layout = to_memory_format(model, device)
    batch = min(recipe.batch, len(split))

    def batches(parts: int) -> Batches:
        for images, labels in islice(split.batches(batch, device, recipe, stream("scoring batches", seed)), BATCHES):
            pieces = images.contiguous(memory_format=layout).tensor_split(parts)
            yield from zip(pieces, labels.tensor_split(parts), strict=True)

    def collected(kind: str, parts: int) -> object:
        return collect[kind](batches(parts))

    if "gradients" in criteria.needs(criterion):
        evidence.gradients = BatchGradients(model, split, recipe, stream("scoring batches", seed), device, layout)
    for kind in (kind for kind in criteria.needs(criterion) if kind != "gradients"):
        parts = -(-batch // GRADIENT_BATCH) if kind == "curvature" else 1
        found, _ = fitting(partial(collected, kind), batch, parts)  # all kinds are means, in however many parts
        setattr(evidence, kind, found)
    return evidence


@dataclass
class BatchGradients:
    """Parameter name -> gradient of the mean loss of a mini-batch, one mapping a mini-batch.

    Each is computed, by the network as it is then, when its turn comes: one set of gradients is in memory at a time.
    """

    model: nn.Module
    split: Split
    recipe: Recipe
    seed: int
    device: torch.device
    layout: torch.memory_format
    parts: int = 1

    @property
    def batch(self) -> int:
        return min(GRADIENT_BATCH, self.recipe.batch, len(self.split))

    def __len__(self) -> int:
        return min(BATCHES * self.recipe.batch, len(self.split)) // self.batch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for images, labels in islice(self.split.batches(self.batch, self.device, self.recipe, self.seed), len(self)):
            work = partial(loss_gradients, self.model, images.contiguous(memory_format=self.layout), labels)
            found, self.parts = fitting(work, len(images), self.parts)
            yield found


def loss_gradients(model: nn.Module, images: Tensor, labels: Tensor, parts: int = 1) -> dict[str, Tensor]:
    """Parameter name -> gradient of the mean loss; zeros where it does not depend on it. Computed in so many parts of the images."""
    trained = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    with torch.enable_grad():
        for few, theirs in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            loss = F.cross_entropy(model(few), theirs) * (len(few) / len(images))
            found = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
            torch._foreach_add_(list(total.values()), found)
    return total


def loss_curvature(model: nn.Module, batches: Batches, seed: int) -> dict[str, Tensor]:
    """Parameter name -> diagonal of the Gauss-Newton matrix of the mean loss of all images, which is never negative.

    The Gauss-Newton-Bartlett estimate (Liu et al. 2023, arXiv:2305.14342): with labels drawn from the network's own softmax the gradients of
    images are independent with mean zero, so the square of their sum over a batch estimates the sum of their squares, without bias. That
    takes a network that computes each image by itself, as in eval mode. The batches' own labels do not matter.

    Raises:
        InvalidModel: logits are not finite.
    """
    parameters = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    values = list(parameters.values())
    diagonal, seen = [torch.zeros_like(p) for p in values], 0
    rng = generator(seed)
    for images, _ in batches:
        logits = model(images)
        for labels in _drawn_labels(logits, rng):
            loss = F.cross_entropy(logits, labels, reduction="sum")
            gradients = torch.autograd.grad(loss, values, retain_graph=True, materialize_grads=True)
            torch._foreach_addcmul_(diagonal, gradients, gradients)
        seen += DRAWS * len(images)
    torch._foreach_div_(diagonal, seen)
    return dict(zip(parameters, diagonal, strict=True))


@torch.no_grad()
def _drawn_labels(logits: Tensor, rng: torch.Generator) -> Tensor:
    """Labels with the probabilities that the logits (N, classes) give them: (DRAWS, N), on their device."""
    if not logits.isfinite().all():
        raise InvalidModel("the network's logits are not finite, so it has no curvature: train it again, with a smaller learning rate")
    shares = logits.double().softmax(1).cpu()  # the generator is the CPU's: one stream for every device
    return torch.multinomial(shares, DRAWS, replacement=True, generator=rng).T.to(logits.device)


@torch.no_grad()
def channel_means(model: nn.Module, batches: Batches, measure: Callable[[Tensor], Tensor]) -> dict[tuple[str, str], Tensor]:
    """(layer, axis) -> mean of `measure` over images and places, (C,): of what the layer reads ("in"), and makes ("out", "each").

    Of convolutions, linear layers and the norms with channels in dimension 1; each under every name that a member's axis may have.
    """
    means: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def record(name: str, layer: nn.Module, read: tuple[Tensor, ...], made: Tensor) -> None:
        channel_dim = -1 if isinstance(layer, nn.Linear) else 1
        for axes, values in ((("in",), read[0]), (("out", "each"), made)):
            found = measure(values).movedim(channel_dim, 0).flatten(1).double().mean(1)
            for axis in axes:
                means[name, axis].append(found)

    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(partial(record, name)) for name, layer in layers]
    try:
        for images, _ in batches:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {key: torch.stack(parts).mean(0) for key, parts in means.items()}


def _positive(values: Tensor) -> Tensor:
    return (values > 0).to(values.dtype)
