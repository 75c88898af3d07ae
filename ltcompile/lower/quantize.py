"""Static int8 in an ONNX file: quantize and dequantize pairs around every product, one scale for each filter, ranges from images.

A `Quantizer` makes a float file ready once and takes each method's ranges once; it writes as many int8 files as are to be compared.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from ltcompile.errors import InvalidModel
from ltcompile.lower.exporter import quiet
from ltcompile.paths import write_bytes

CHUNK = 32
Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
WEIGHT_TOP = {8: 127, 7: 64}  # bits -> the largest magnitude that ONNX Runtime gives a weight
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_METHODS: dict[Method, tuple[str, dict[str, Any]]] = {  # ONNX Runtime's name, and what it gets instead of its defaults
    "minmax": ("MinMax", {}),
    # 128 bins, its default, would leave a single threshold to choose: the largest.
    "entropy": ("Entropy", {"num_bins": 512, "num_quantized_bins": 256}),
    # Symmetric, its default, would waste half of the numbers on what comes out of a ReLU.
    "percentile": ("Percentile", {"symmetric": False, "percentile": 99.99}),
}


@dataclass(frozen=True)
class Scheme:
    """How a file is quantized: whose ranges activations get, the bits that weights use, and the names of nodes that stay in float.

    Weights of seven bits never overflow: x86 without VNNI adds two products of a weight and an activation in 16 bits, and saturates.
    """

    ranges: Method = "minmax"
    weight_bits: int = 8
    float_nodes: tuple[str, ...] = ()


class Quantizer:
    """A float ONNX file that `export_onnx` wrote, and real inputs from which the ranges of its activations are taken.

    `inputs` are images (N, C, H, W), or a sequence of feeds, each with a tensor for every input of the file.

    Raises:
        InvalidModel: ONNX Runtime cannot quantize it.
    """

    def __init__(self, path: str | Path, inputs: Tensor | Sequence[Mapping[str, Tensor]]) -> None:
        self._model = prepared(path)
        name = self._model.graph.input[0].name
        self._feeds = [{name: chunk} for chunk in inputs.split(CHUNK)] if isinstance(inputs, Tensor) else inputs
        self._ranges: dict[Method, Any] = {}

    @property
    def plain(self) -> Any:
        """The float model that is quantized."""
        return self._model

    @property
    def products(self) -> tuple[str, ...]:
        """The names of the nodes that multiply with weights, in the order in which they run."""
        weights = {initializer.name for initializer in self._model.graph.initializer}
        return tuple(node.name for node in self._model.graph.node if node.op_type in PRODUCTS and node.input[1] in weights)

    def write(self, scheme: Scheme, output: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the network in int8 to `output`, with `metadata` in the file. Raises InvalidModel or InvalidFile."""
        import onnx
        from onnxruntime.quantization import QDQQuantizer, QuantType

        with _as_bad_model():
            quantizer = QDQQuantizer(
                copy.deepcopy(self._model),
                per_channel=True,
                reduce_range=scheme.weight_bits < 8,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self._range(scheme.ranges),
                nodes_to_quantize=[],
                nodes_to_exclude=list(scheme.float_nodes),
                op_types_to_quantize=_operations(),
                extra_options={},
            )
            proto = quantizer.quantize_model()
            quantizer.model.topological_sort()
            onnx.helper.set_model_props(proto, dict(metadata or {}))
            onnx.checker.check_model(proto)
        write_bytes(output, proto.SerializeToString())

    def _range(self, method: Method) -> Any:
        """The range of every activation by `method`, computed once."""
        if method not in self._ranges:
            self._ranges[method] = self._take(method)
        return copy.deepcopy(self._ranges[method])  # the quantizer changes them

    def _take(self, method: Method) -> Any:
        """Compute the ranges in chunks of inputs, because a collector of histograms keeps all activations of a chunk."""
        import onnx
        from onnxruntime.quantization import CalibrationMethod, create_calibrator

        name, options = _METHODS[method]
        with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
            plain, augmented = Path(folder) / "plain.onnx", Path(folder) / "augmented.onnx"
            onnx.save(self._model, str(plain))
            calibrator = create_calibrator(
                plain, _operations(), str(augmented), calibrate_method=CalibrationMethod[name], extra_options=options
            )
            for feed in self._feeds:
                calibrator.collect_data(_reader(feed))
            return calibrator.compute_data()


@contextlib.contextmanager
def _as_bad_model() -> Iterator[None]:
    """Raise errors of ONNX Runtime as InvalidModel."""
    with quiet():
        try:
            yield
        except Exception as error:  # it raises many types; all mean the same to a user
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidModel(f"ONNX Runtime cannot quantize this network: {reason}; leave it in fp32 or fp16") from error


def prepared(path: str | Path) -> Any:
    """The float model in `path` as it is quantized: constants folded, shapes inferred and every product named. Raises InvalidModel."""
    with _as_bad_model():
        return _prepared(path)


def _prepared(path: str | Path) -> Any:
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    return model


def _reader(feed: Mapping[str, Tensor]) -> Any:
    """One batch for a calibrator."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[dict[str, Any]] = iter([{name: tensor.numpy() for name, tensor in feed.items()}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    return Reader()


def _operations() -> list[str]:
    """All operations that ONNX Runtime can quantize."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry})
