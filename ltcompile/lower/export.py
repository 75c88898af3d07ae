"""ONNX and torch.export files with a dynamic batch, checked before anyone sees them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.errors import BadModel, Disagreement
from ltcompile.lower.trace import exported
from ltcompile.paths import write_bytes

INPUT, OUTPUT = "images", "logits"


def export_onnx(model: nn.Module, example: Tensor, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write `model` (eval mode, (N, C, H, W) -> (N, classes)) to `path`, weights inside, any batch size, with `metadata` in the file.

    The file passes onnx.checker, and its filters have the module's shapes.

    Raises:
        BadModel: torch cannot export it. Disagreement: the file does not hold the module's shapes. BadFile: it cannot be written.
    """
    import onnx

    batch = torch.export.Dim("batch", min=1)
    with quiet():
        try:
            program = torch.onnx.export(
                model.eval(),
                (_several(example),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                verbose=False,
                external_data=False,
            )
        except Exception as error:  # the exporter raises many types; all mean the same to a user
            raise BadModel(f"torch cannot export this network to ONNX: {str(error).splitlines()[0]}") from error
    assert program is not None
    proto = program.model_proto
    del proto.metadata_props[:]
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto, full_check=True)
    _check_shapes(_filters(model, example), proto, path)
    write_bytes(path, proto.SerializeToString())


def export_program(model: nn.Module, example: Tensor, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write `model` to `path` as a torch.export program with a dynamic batch. Raises BadModel or BadFile."""
    batch = torch.export.Dim("batch", min=1)
    program = exported(model, _several(example), ({0: batch},))
    with quiet():
        torch.export.save(program, buffer := io.BytesIO(), extra_files=dict(metadata or {}))
    write_bytes(path, buffer.getbuffer())


def run_onnx(path: str | Path, images: Tensor) -> Tensor:
    """The outputs of an ONNX file for `images`, by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def _several(example: Tensor) -> Tensor:
    """A batch of two: torch.export would take a batch of one for a constant."""
    return example[:1].repeat(2, 1, 1, 1).cpu()


@torch.no_grad()
def _filters(model: nn.Module, example: Tensor) -> list[tuple[int, ...]]:
    """The shapes of the filters of all convolutions that run: auxiliary heads do so in training alone."""
    ran: dict[nn.Module, tuple[int, ...]] = {}
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda layer, *_: ran.update({layer: tuple(layer.weight.shape)})) for m in convolutions]
    try:
        model(_several(example))
    finally:
        for hook in hooks:
            hook.remove()
    return list(ran.values())


def _check_shapes(filters: list[tuple[int, ...]], proto: Any, path: str | Path) -> None:
    """The file must hold as many filters as the network runs, not zeros in their place."""
    expected, found = Counter(filters), Counter(_filters_in(proto))  # there may be others, of code that convolves by itself
    if missing := sorted((expected - found).elements()):
        raise Disagreement(f"{path} would not hold the network's filters of shapes {missing}, but {sorted(found.elements())}")


def _filters_in(proto: Any) -> list[tuple[int, ...]]:
    """The shapes of what convolutions multiply by: initializers, or values that are computed from them (standardised filters)."""
    shapes = {i.name: tuple(i.dims) for i in proto.graph.initializer}
    shapes |= {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in proto.graph.value_info}
    weights = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
    return [shape for name in weights if len(shape := shapes.get(name, ())) == 4 and shape[0] > 0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters report their progress; our one line says enough."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
