"""A `Pruned` from files: a network of the user's code, its weights, a plan and example inputs. Files are data."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.tensors import check_held, check_is_file, read_torch
from ltcompile.deploy.pruned import Pruned
from ltcompile.errors import InvalidFile, InvalidSetting
from ltcompile.graph import cut
from ltcompile.graph.inputs import Example
from ltcompile.models import own_network
from ltcompile.models._weights import read_state_dict

DTYPES = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}
INPUT = re.compile(r"(?:(\w+)=)?(\d+(?:x\d+)*)(?::(\w+))?")
MOST_VALUES = 1 << 28  # of an example
TENSORS = (".safetensors", ".pt", ".pth")


def pruned_from_files(model: str, weights: str | Path | None, plan: str | Path | None, example: str) -> Pruned:
    """The network that `model`, "package.module:factory", makes without arguments, ready for `shrink`.

    Args:
        weights: of the unpruned network, or with a plan also of the cut one: their shapes tell which.
        plan: a file of `PruningPlan.save`; the network is cut by it.
        example: see `read_example`.

    Raises:
        InvalidModel, UnknownName: the network cannot be made. InvalidFile: the weights fit neither. InvalidPlan: the plan is of another network.
    """
    dense, inputs = own_network(model).eval(), read_example(example)
    chosen = PruningPlan.load(plan) if plan is not None else None
    small = cut(dense, chosen).eval() if chosen is not None else dense
    if weights is not None:
        state = read_state_dict(Path(weights), dense.state_dict())
        fits = [network for network in (dense, small) if _shapes(network.state_dict()) == _shapes(state)]
        if not fits:
            raise InvalidFile(
                f"{weights} holds no weights of {model}{' or of what the plan leaves of it' if plan else ''}: {_first(state, small)}"
            )
        fits[0].load_state_dict(state)
        if chosen is not None and fits[0] is dense:
            small = cut(dense, chosen).eval()
    if chosen is None:
        return Pruned(small, inputs)
    return Pruned(small, inputs, dense, chosen)


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _first(state: dict[str, Tensor], network: nn.Module) -> str:
    """The first weight that does not fit."""
    own, there = _shapes(network.state_dict()), _shapes(state)
    name = next(name for name in sorted({*own, *there}) if own.get(name) != there.get(name))
    ours, theirs = (list(shapes[name]) if name in shapes else "missing" for shapes in (own, there))
    return f"{name} is {ours} in the network and {theirs} in the file"


def read_example(text: str) -> Example:
    """Inputs by their shapes, as in "1x3x32x32", "image=1x3x64x64,side=1x5" or "tokens=1x128:int64" (seeded noise; whole numbers are zero);
    or from a file of tensors (.safetensors, .pt), whose names are those of the forward's parameters.

    Raises:
        InvalidSetting: the text is neither. InvalidFile: the file cannot be read.
    """
    if text.endswith(TENSORS):
        return read_inputs(Path(text))
    found = [INPUT.fullmatch(part.strip()) for part in text.split(",")]
    if not text or None in found:
        raise InvalidSetting(f"example= takes shapes, as in 1x3x32x32 or image=1x3x64x64,side=1x5, or a file of tensors; not {text!r}")
    inputs: list[tuple[str | None, Tensor]] = []
    rng = torch.Generator().manual_seed(0)
    for match in found:
        assert match is not None
        name, shape, kind = match[1], [int(size) for size in match[2].split("x")], match[3] or "float32"
        if kind not in DTYPES or torch.Size(shape).numel() > MOST_VALUES:
            raise InvalidSetting(f"example=: {match[0]} must have at most {MOST_VALUES:,} values of {', '.join(DTYPES)}")
        inputs.append((name, torch.randn(shape, generator=rng) if kind == "float32" else torch.zeros(shape, dtype=DTYPES[kind])))
    if all(name is None for name, _ in inputs):
        return tuple(tensor for _, tensor in inputs)
    if any(name is None for name, _ in inputs):
        raise InvalidSetting(f"example= names some inputs and not others: {text!r}; name all or none")
    return {str(name): tensor for name, tensor in inputs}


def read_inputs(path: Path) -> dict[str, Tensor]:
    """Tensors by the names of the network's inputs. Raises InvalidFile."""
    value = read_torch(path, "file of inputs") if path.suffix != ".safetensors" else _safetensors(path)
    if not isinstance(value, dict) or not value:
        raise InvalidFile(f"{path} holds no inputs: names of the forward's parameters with a tensor each")
    check_held(value, path.stat().st_size)
    return value


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    check_is_file(path, "file of inputs")
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises its own types
        raise InvalidFile(f"{path} cannot be read as a file of inputs: {error}; take a fresh copy") from error
