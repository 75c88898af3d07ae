"""PyTorch's ONNX exporter: seconds a network, however small it is."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ltcompile.errors import InvalidModel
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.trace import exported_for_any_batch, reason


def to_onnx(network: nn.Module, inputs: Inputs, input_names: Sequence[str], output_names: Sequence[str]) -> Any:
    """The `onnx.ModelProto` of `network`, for any batch; `inputs` hold two examples. Raises InvalidModel where torch cannot export it."""
    return convert(exported_for_any_batch(network, inputs), input_names, output_names)


def convert(program: ExportedProgram, input_names: Sequence[str], output_names: Sequence[str]) -> Any:
    """The `onnx.ModelProto` of a program. Raises InvalidModel."""
    with quiet():
        try:
            made = torch.onnx.export(
                program, dynamo=True, input_names=input_names, output_names=output_names, verbose=False, external_data=False
            )
        except Exception as error:  # the exporter raises many types; all mean the same to a user
            raise InvalidModel(f"torch cannot export this network to ONNX: {reason(error)}") from error
    assert made is not None
    return made.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters report their progress; our one line says enough."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
