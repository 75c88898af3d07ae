"""PyTorch's ONNX exporter: seconds a network, however small it is."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ltcompile.errors import InvalidModel
from ltcompile.lower.dynamic import exported_with
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.trace import BATCH, reason


def to_onnx(network: nn.Module, inputs: Inputs, input_names: Sequence[str], output_names: Sequence[str]) -> Any:
    """The `onnx.ModelProto` of `network`, for any batch; `inputs` hold two examples. Raises InvalidModel where torch cannot export it."""
    return convert(exported_with(network, inputs, (BATCH,))[0], input_names, output_names)


def convert(program: ExportedProgram, input_names: Sequence[str], output_names: Sequence[str]) -> Any:
    """The `onnx.ModelProto` of a program. Raises InvalidModel."""
    with quiet():
        try:
            made = torch.onnx.export(
                _with_attention_of_four(program),
                dynamo=True,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
                external_data=False,
            )
        except Exception as error:  # the exporter raises many types; all mean the same to a user
            raise InvalidModel(f"torch cannot export this network to ONNX: {reason(error)}") from error
    assert made is not None
    return made.model_proto


def _with_attention_of_four(program: ExportedProgram) -> ExportedProgram:
    """`program`; in torch's plain formula where an attention has not four dimensions, the only number that the exporter takes."""
    operator = torch.ops.aten.scaled_dot_product_attention.default
    ranks = {node.args[0].meta["val"].dim() for node in program.graph.nodes if node.target is operator}
    return program if ranks <= {4} else program.run_decompositions({operator: attention})


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(..., L, E), (..., S, E), (..., S, V) -> (..., L, V), without dropout; with `enable_gqa`, several heads (..., H, L, E) share keys."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.size(-3) // x.size(-3), -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


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
