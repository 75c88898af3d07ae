"""Axes of the inputs that vary in a file: the batch, and sides that a user names.

"batch" is the first axis of all tensors that have the batch in front. "length", "depth", "height" and "width" are places of tensors
(N, C, length), (N, C, height, width) and (N, C, depth, height, width); "length" is also the second axis of whole numbers (N, length), as of
tokens. "NAME.AXIS" is an axis of the input called NAME. What has one name has one size. Networks that halve and join again take
multiples only, so the smallest power of two is found for which the network runs and exports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ltcompile.errors import InvalidModel, InvalidSetting
from ltcompile.graph.wrappers import in_eval_mode
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.trace import BATCH, export, exported_for_any_batch, reason

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
SIDES = {3: {2: "length"}, 4: {2: "height", 3: "width"}, 5: {2: "depth", 3: "height", 4: "width"}}  # rank -> axis -> name
ONE_BATCH = "or write a file for the example's batch alone, with an empty dynamic (--dynamic '')"
LEAST = (1, 2, 4)  # sizes that are tried as the least of an axis, as multiples


@dataclass(frozen=True)
class DynamicAxes:
    """Per input tensor, axis -> name; and the number that all sizes but the batch are multiples of."""

    names: tuple[Mapping[int, str], ...]
    multiple: int = 1

    @classmethod
    def of(cls, inputs: Inputs, dynamic: Sequence[str]) -> DynamicAxes:
        """Raises InvalidSetting where a name is not an axis of these inputs, with those that are."""
        known = [_known(*each) for each in zip(inputs.names, inputs.tensors, inputs.batched, strict=True)]
        if isinstance(dynamic, str) or (unknown := [name for name in dynamic if not any(name in axes for axes in known)]):
            there = sorted({name for axes in known for name in axes})
            raise InvalidSetting(
                f"dynamic names axes that vary, of {', '.join(there)}; not {dynamic if isinstance(dynamic, str) else unknown[0]!r}"
            )
        return cls(tuple({axis: name for name, axis in axes.items() if name in dynamic} for axes in known))

    @property
    def sides(self) -> list[str]:
        """The names but for the batch, each once."""
        return sorted({name for axes in self.names for name in axes.values()} - {BATCH})

    @property
    def only_batch(self) -> bool:
        return {name for axes in self.names for name in axes.values()} == {BATCH}

    def resized(self, inputs: Inputs, steps: int) -> Inputs:
        """`inputs` with side i larger by (`steps` + i) multiples, rounded up; values repeat."""
        return inputs.with_tensors([self._resized(tensor, axes, steps) for tensor, axes in zip(inputs.tensors, self.names, strict=True)])

    def _resized(self, tensor: Tensor, axes: Mapping[int, str], steps: int) -> Tensor:
        for axis, name in axes.items():
            if name != BATCH:
                old = tensor.shape[axis]
                new = (-(-old // self.multiple) + steps + self.sides.index(name)) * self.multiple
                tensor = tensor.index_select(axis, torch.arange(new) % old)
        return tensor

    def dims(self, least: int) -> list[dict[int, Any] | None]:
        """What torch.export takes for each tensor."""
        known: dict[str, Any] = {BATCH: Dim(BATCH, min=1)}
        for name in self.sides:
            plain = name.replace(".", "_")
            known[name] = Dim(plain, min=least) if self.multiple == 1 else self.multiple * Dim(f"{plain}_over_{self.multiple}", min=least)
        return [{axis: known[name] for axis, name in axes.items()} or None for axes in self.names]


def exported_with(network: nn.Module, inputs: Inputs, dynamic: Sequence[str]) -> tuple[ExportedProgram, DynamicAxes]:
    """The graph of `network` in eval mode with the axes `dynamic` open; and these axes.

    Raises:
        InvalidSetting: a name is not an axis. InvalidModel: the network's code fixes an axis, or torch cannot trace it.
    """
    axes = DynamicAxes.of(inputs, dynamic)
    if axes.only_batch:
        try:
            return exported_for_any_batch(network, inputs), axes
        except InvalidModel as error:
            raise InvalidModel(f"{error}; {ONE_BATCH}") from error
    if not axes.sides:
        return _fixed(network, inputs), axes
    last = "its code fixes them"
    for trial in _trials(axes):
        if refusal := _refusal(network, trial.resized(inputs, 1)):
            last = refusal
            continue
        for least in LEAST:
            try:
                return export(network, trial.resized(inputs, least), trial.dims(least)), trial
            except Exception as error:  # the exporter raises many types
                last = reason(error)
    raise InvalidModel(
        f"torch cannot export this network with dynamic {', '.join(axes.sides)}: {last}; leave out the axis that it needs fixed"
    )


def _fixed(network: nn.Module, inputs: Inputs) -> ExportedProgram:
    try:
        return export(network, inputs, None)
    except Exception as error:
        raise InvalidModel(f"torch cannot export this network: {reason(error)}") from error


def _trials(axes: DynamicAxes) -> Iterator[DynamicAxes]:
    return (DynamicAxes(axes.names, multiple) for multiple in MULTIPLES)


def _refusal(network: nn.Module, inputs: Inputs) -> str:
    """Why the network does not run on these sizes, or ""."""
    args, kwargs = inputs.arguments()
    try:
        with in_eval_mode(network), torch.no_grad():
            network(*args, **kwargs)
    except Exception as error:  # code of the user's
        return reason(error)
    return ""


def _known(name: str, tensor: Tensor, batched: bool) -> dict[str, int]:
    """Name -> axis, of one input."""
    axes = {f"{name}.{axis}": axis for axis in range(1 if batched else 0, tensor.dim())}
    if batched:
        axes |= {BATCH: 0} | {side: axis for axis, side in SIDES.get(tensor.dim(), {}).items()}
        if tensor.dim() == 2 and not tensor.is_floating_point():
            axes["length"] = 1
    return axes


def rename_axes(graph: Any, names: Sequence[str], axes: DynamicAxes) -> None:
    """Give the open axes of an ONNX graph their names: `names` are the inputs', in the order of `axes`; the exporter invents symbols."""
    import re

    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}
    known: dict[str, str] = {}  # the exporter's symbol -> ours
    for name, own in zip(names, axes.names, strict=True):
        for axis, ours in own.items():
            symbol = types[name].shape.dim[axis].dim_param
            plain = symbol.rpartition("*")[2].strip("() ")
            known[plain] = ours if plain == symbol else f"({ours}//{axes.multiple})"
            types[name].shape.dim[axis].dim_param = ours
    if not known:
        return
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, known))})\b")
    for dim in (dim for value in types.values() for dim in value.shape.dim if dim.dim_param):
        dim.dim_param = pattern.sub(lambda found: known[found[0]], dim.dim_param)
