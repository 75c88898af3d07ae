"""ONNX and torch.export files for any batch, compared with the network before they are written."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltcompile.errors import Disagreement, InvalidModel, InvalidSetting, Unavailable
from ltcompile.graph._copy import copied
from ltcompile.graph.inputs import Example
from ltcompile.graph.outputs import outputs_of
from ltcompile.graph.ranking import Ranking
from ltcompile.graph.wrappers import unwrap
from ltcompile.lower import exporter
from ltcompile.lower.dynamic import ONE_BATCH, DynamicAxes, exported_with, rename_axes
from ltcompile.lower.exporter import quiet
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.onnx_padding import separate_pads
from ltcompile.lower.trace import BATCH, reason
from ltcompile.numerics import EXPORT_TOLERANCES, FP32_TOLERANCE, Items, compare
from ltcompile.paths import write_bytes
from ltcompile.runtimes._ort import run_once

CHECKED = 3  # examples for the comparison of file and network: not the exported batch size, and not one
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def export_onnx(
    model: nn.Module,
    example: Example,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic: Sequence[str] = (BATCH,),
) -> None:
    """Write `model` in eval mode to `path` as ONNX, weights inside; `model` itself stays as it is.

    Inputs are called as the forward's parameters. Outputs are called "output", or "output_0", ... of a sequence, or as the keys or
    fields of a dict, named tuple or dataclass. ONNX Runtime runs the file on three examples, and every output must be the network's;
    the file passes onnx.checker, and its filters have the module's shapes. A network in bfloat16, which ONNX Runtime
    does not compute on a CPU, is written in float32 with the same values. Wrappers of torch.compile and DataParallel are left out.

    Args:
        example: a tensor (N, ...), a tuple of arguments, or a dict of keyword arguments; other values become constants of the network.
            The first dimension of the first tensor is the batch, and so is that of tensors that are as long there. All others are fixed.
        metadata: texts that the file carries.
        input_names, output_names: other names, one for each tensor.
        dynamic: the axes that vary in the file; `lower.dynamic` says how they are named.

    Raises:
        InvalidModel: torch cannot export it, its code fixes the batch, or ONNX Runtime cannot run it. InvalidSetting: too few or many names.
        Disagreement: the file computes something else, or does not hold the module's filters. InvalidFile: it cannot be written.
    """
    import onnx

    network, inputs = _prepared(model, example, dynamic)
    expected, filters = _answers(network, inputs)
    flat = Flat(network, inputs)
    names = _checked_names(input_names, inputs.names, "input"), _checked_names(output_names, tuple(expected), "output")
    flat_inputs = replace(
        Inputs.of(flat, (inputs.resized(2) if BATCH in dynamic else inputs).tensors), names=tuple(names[0]), batched=inputs.batched
    )
    axes = DynamicAxes.of(flat_inputs, dynamic)
    if axes.only_batch:
        made = exporter.to_onnx(flat, flat_inputs, names[0], _apart(names[1], names[0]))
    else:
        program, axes = exported_with(flat, flat_inputs, dynamic)
        made = exporter.convert(program, names[0], _apart(names[1], names[0]))
    proto = _plain(made, metadata or {})
    rename_axes(proto.graph, names[0], axes)
    onnx.checker.check_model(proto, full_check=True)
    _check_shapes(filters, proto, path)
    data = proto.SerializeToString()
    for some in _sizes(inputs, axes):
        found = _run(data, dict(zip(names[0], some.tensors, strict=True)))
        answers = expected if some is inputs else _answers(network, some)[0]
        _compare(found, _called(answers, names[1]), _tolerance(network), path)
    write_bytes(path, data)


def export_program(
    model: nn.Module, example: Example, path: str | Path, metadata: Mapping[str, str] | None = None, *, dynamic: Sequence[str] = (BATCH,)
) -> None:
    """Write `model` in eval mode to `path` as a torch.export program, on the CPU and in its own dtype.

    The program is called as the module is, and gives what it gives; it is compared with the module on three examples.

    Raises:
        InvalidModel, Disagreement, InvalidFile: as `export_onnx`, whose `example` and `dynamic` it takes.
    """
    network, inputs = _prepared(model, example, dynamic, {})
    _answers(network, inputs)
    program, axes = exported_with(network, inputs.resized(2) if BATCH in dynamic else inputs, dynamic)
    for some in _sizes(inputs, axes):
        expected, _ = _answers(network, some)
        args, kwargs = some.arguments()
        with torch.no_grad():
            found = outputs_of(program.module()(*args, **kwargs))
        _compare(tuple(found.values()), expected, _tolerance(network), path)
    with quiet():
        torch.export.save(program, buffer := io.BytesIO(), extra_files=dict(metadata or {}))
    with buffer.getbuffer() as view:
        write_bytes(path, view)


def run_onnx(path: str | Path, images: Tensor) -> Tensor:
    """The first output of an ONNX file with one input for `images` (N, ...), by ONNX Runtime on the CPU."""
    return torch.from_numpy(next(iter(run_once(Path(path), images.numpy()).values())))


class Flat(nn.Module):
    """A network that takes its tensors as positional arguments, and returns the tensors of its output as a tuple."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network, self._inputs = network, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self._inputs.arguments(tensors)
        return tuple(outputs_of(self.network(*args, **kwargs)).values())


_PREFIX = "network."  # of the names of parameters in a Flat
_WIDENED = {torch.bfloat16: torch.float32}


def _sizes(inputs: Inputs, axes: DynamicAxes) -> list[Inputs]:
    """The inputs that a file is compared on: of their own size, and of a larger one where that may vary."""
    return [inputs, axes.resized(inputs, 3)] if axes.sides else [inputs]


def _prepared(
    model: nn.Module, example: Example, dynamic: Sequence[str], dtypes: Mapping[torch.dtype, torch.dtype] = _WIDENED
) -> tuple[nn.Module, Inputs]:
    """A copy of the network in eval mode on the CPU, with dtypes replaced as in `dtypes`, and three examples for it, or as many as there are."""
    network = unwrap(model)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_meta:
            raise InvalidModel(f"{name} is on the meta device and has no values; load the network's weights before it is exported")
    inputs = Inputs.of(network, example).on_cpu(dtypes)
    inputs = inputs.resized(CHECKED) if BATCH in dynamic else inputs
    network = copied(network).cpu().eval().requires_grad_(False)
    network._apply(lambda tensor: tensor.to(dtypes.get(tensor.dtype, tensor.dtype)))
    return network, inputs


@torch.no_grad()
def _answers(network: nn.Module, inputs: Inputs) -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
    """The outputs for `inputs`, and the shapes of the filters of all convolutions that ran; auxiliary heads run only in training.

    Filters of the same values count once, as they are once in the file.
    """
    ran: dict[nn.Module, Tensor] = {}
    convolutions = [m for m in network.modules() if isinstance(m, _CONVOLUTIONS)]
    hooks = [m.register_forward_hook(lambda layer, *_: ran.update({layer: layer.weight})) for m in convolutions]
    args, kwargs = inputs.arguments()
    ranking = Ranking()
    try:
        with ranking:
            output = network(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(inputs.names, inputs.tensors, strict=True))
        batched = [name for name, has in zip(inputs.names, inputs.batched, strict=True) if has]
        hint = f"; if {' or '.join(batched[1:])} has no batch, give an example with a batch of another length" if len(batched) > 1 else ""
        raise InvalidModel(
            f"the network does not run on a batch of {inputs.batch}, made of the example ({shapes}): {reason(error)}; "
            f"a file is for any batch: no number in the code may stand for it{hint}; {ONE_BATCH}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return ranking.named(outputs_of(output)), [shape for shape, _ in {(tuple(weight.shape), _hash(weight)) for weight in ran.values()}]


def _hash(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).digest()


def _checked_names(wanted: Sequence[str] | None, own: tuple[str, ...], kind: str) -> list[str]:
    if wanted is None:
        return list(own)
    if len(wanted) != len(own) or len(set(wanted)) < len(wanted):
        raise InvalidSetting(f"{kind}_names must be {len(own)} different names, for {', '.join(own)}; not {list(wanted)}")
    return list(wanted)


def _apart(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The names of outputs, with "_out" behind those that inputs have: a value of an ONNX graph has one name."""
    return [f"{name}_out" if name in taken else name for name in names]


def _plain(proto: Any, metadata: Mapping[str, str]) -> Any:
    """The file with the network's parameter names and `metadata`, without the exporter's notes, which hold paths of this machine."""
    graph = proto.graph
    del proto.metadata_props[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    for value in (*graph.initializer, *graph.value_info):
        value.name = value.name.removeprefix(_PREFIX)
    for node in graph.node:
        node.input[:] = [name.removeprefix(_PREFIX) for name in node.input]
        node.output[:] = [name.removeprefix(_PREFIX) for name in node.output]
    for key, text in metadata.items():
        proto.metadata_props.add(key=key, value=text)
    separate_pads(graph)
    return proto


def _run(data: bytes, feeds: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """All outputs of an ONNX file by ONNX Runtime on the CPU; inputs that the network does not read are left out."""
    try:
        found = run_once(data, {name: tensor.numpy() for name, tensor in feeds.items()})
    except Unavailable as error:
        hint = "; it has no fp64 for many operations: export model.float()" if any(t.dtype == torch.float64 for t in feeds.values()) else ""
        raise InvalidModel(f"ONNX Runtime cannot run this network: {reason(error.__cause__ or error)}{hint}") from error
    return tuple(torch.from_numpy(value) for value in found.values())


def _tolerance(network: nn.Module) -> float:
    dtypes = {tensor.dtype for tensor in (*network.parameters(), *network.buffers())}
    return max(EXPORT_TOLERANCES.get(str(dtype), FP32_TOLERANCE) for dtype in (torch.float32, *dtypes))


def _called(answers: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The answers under the names of a file's outputs."""
    return {
        Items(new, old.axis, old.ranking) if isinstance(old, Items) else new: answers[old] for old, new in zip(answers, names, strict=True)
    }


def _compare(found: Sequence[Tensor], expected: Mapping[str, Tensor], tolerance: float, path: str | Path) -> None:
    """Raises Disagreement where an output of the file is not the network's."""
    if len(found) != len(expected):
        raise Disagreement(f"{path} would give {len(found)} outputs, and the network gives {len(expected)}; please report this network")
    ours, theirs = ({name: _array(value) for name, value in zip(expected, side, strict=True)} for side in (found, expected.values()))
    if refusal := compare(ours, theirs, tolerance=tolerance).refusal:
        hint = "does the network draw random numbers? If not, please report it"
        if tolerance > FP32_TOLERANCE and any(isinstance(name, Items) for name in expected):
            hint = "in half precision rounding decides which items it picks; write the file in fp32"
        raise Disagreement(f"{path} would not compute what the network does: {refusal}; {hint}")


def _array(value: Tensor) -> NDArray[Any]:
    return np.atleast_1d((value.float() if value.dtype == torch.bfloat16 else value).numpy())


def _check_shapes(filters: list[tuple[int, ...]], proto: Any, path: str | Path) -> None:
    """Raises Disagreement where the file does not hold all filters that the network runs."""
    expected, found = Counter(filters), Counter(_filters_in(proto))  # there may be others, of code that convolves by itself
    if missing := sorted((expected - found).elements()):
        raise Disagreement(f"{path} would not hold the network's filters of shapes {missing}, but {sorted(found.elements())}")


def _filters_in(proto: Any) -> list[tuple[int, ...]]:
    """The shapes of the weights of convolutions: initializers, or values that are computed from them (standardised filters)."""
    shapes = {i.name: tuple(i.dims) for i in proto.graph.initializer}
    shapes |= {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in proto.graph.value_info}
    weights = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
    return [shape for name in weights if len(shape := shapes.get(name, ())) >= 3 and shape[0] > 0]
