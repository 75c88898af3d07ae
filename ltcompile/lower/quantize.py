"""Static int8 in an ONNX file: quantise and dequantise pairs around every product, one scale for each filter, ranges from images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ltcompile.errors import BadModel
from ltcompile.lower.export import quiet

CHUNK = 32


def quantize_onnx(path: str | Path, images: Tensor, output: str | Path) -> None:
    """Write `path` with int8 weights and activations to `output`; ranges are those of `images` (N, C, H, W), as many as are real.

    Raises:
        BadModel: ONNX Runtime cannot quantise it.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self._chunks: Iterator[dict[str, Any]] = ({name: chunk.numpy()} for chunk in images.split(CHUNK))

        def get_next(self) -> dict[str, Any] | None:
            return next(self._chunks, None)

    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(output),
                Images(_input_name(prepared)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # it raises many types; all mean the same to a user
            raise BadModel(f"ONNX Runtime cannot quantise this network: {str(error).splitlines()[0]}") from error


def _input_name(path: Path) -> str:
    import onnx

    return str(onnx.load(str(path), load_external_data=False).graph.input[0].name)
