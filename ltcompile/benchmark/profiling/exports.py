"""The ONNX model of a network at many widths: exported once, where its file can be resized."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ltcompile.errors import InvalidModel, LtcompileError
from ltcompile.graph.inputs import Example
from ltcompile.lower import export_onnx
from ltcompile.lower.answers import answers, feeds, of_network
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.int8 import Int8Network
from ltcompile.lower.onnx_weights import channel_axes, with_weights
from ltcompile.numerics import compare
from ltcompile.runtimes._ort import run_once


@dataclass
class Exports:
    """ONNX models of cuts of `network`. `halve` gives one of them, at about half of all widths; `checked` are inputs that files are compared on,
    and calibrated with in int8; `example` is what is exported with."""

    network: nn.Module
    halve: Callable[[], nn.Module]
    example: Example
    checked: Inputs
    precision: str

    def of(self, cut: nn.Module) -> Any:
        """Raises InvalidModel where a cut cannot be exported."""
        try:
            return self._export(cut, self.precision) if self._axes is None else self._resized(self.whole, cut, self._axes)
        except (ValueError, RuntimeError) as error:
            raise InvalidModel(f"the network cannot be exported at other widths: {error}") from error

    @cached_property
    def whole(self) -> Any:
        """Of the network as it is."""
        return self._export(self.network, "int8") if self.precision == "int8" else self._float

    @cached_property
    def _float(self) -> Any:
        return self._export(self.network, "fp32")

    @cached_property
    def _axes(self) -> Mapping[str, int] | None:
        """The axes of reshapes that count channels, by which the file of the whole becomes the file of a cut: none, or what differs in the
        file of the half network. None where that does not work. It is tried once, on fp32, with its answer compared.
        """
        half = self.halve()
        if self._resizes(half, {}):
            return {}
        try:
            axes = channel_axes(self._float, self._export(half, "fp32"))
        except (LtcompileError, ValueError, RuntimeError):
            return None
        return axes if axes and self._resizes(half, axes) else None

    def _resizes(self, cut: nn.Module, axes: Mapping[str, int]) -> bool:
        """Whether the file that is made of the whole for a cut answers as the cut does."""
        try:
            found = run_once(self._resized(self._float, cut, axes).SerializeToString(), feeds(self.checked))
        except Exception:  # ONNX Runtime has its own types: the file counts channels in a place that we do not know
            return False
        return not compare(found, answers(of_network(cut), self.checked, self.checked.batch)).refusal

    def _resized(self, model: Any, cut: nn.Module, axes: Mapping[str, int]) -> Any:
        return with_weights(model, self.network.state_dict(), cut.state_dict(), axes)

    def _export(self, module: nn.Module, precision: str) -> Any:
        import onnx

        with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
            path = Path(folder) / "network.onnx"
            if precision == "int8":
                samples = dict(zip(self.checked.names, self.checked.tensors, strict=True))
                network = Int8Network(module, self.example, [samples], Path(folder))
                network.write()
                path = network.file
            else:
                export_onnx(module, self.example, path)
            return onnx.load(str(path))
