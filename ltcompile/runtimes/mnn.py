"""MNN on the CPU, in fp32, or int8 as a file holds it. Reads .mnn files; ONNX files are converted first, by MNN's own converter."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltcompile.errors import Unavailable
from ltcompile.paths import write_bytes
from ltcompile.processors import processors
from ltcompile.runtimes import _devices
from ltcompile.runtimes._base import Array, Bound, Feeds, Options, Session, Subject, by_name
from ltcompile.runtimes._convert import End, ends, failed, layers_in, own_file, run

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

APART = READS_ONNX = THREADS = True
DEFAULT = False
READS = ".mnn"
IMPORTS = ("MNN", "onnx")
DEFAULT_THREADS = 4  # MNN's
NARROWED = {"int64": "int32", "bool": "int32", "float64": "float32"}  # what MNN computes these in
# The package's own command also installs and calls a logger of its makers, so its module is called here
CONVERTER = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
QUANTIZER = "import sys, _tools; _tools.mnnquant(['mnnquant', *sys.argv[1:]])"
RANGES = ("KL", "EMA")  # by the least divergence of a histogram; by moving averages of the extremes
PLAIN = re.compile(r"[\w.:-]+")


def unavailable(device: str) -> str | None:
    """Why MNN cannot run on `device`, or None."""
    if device == "cuda":
        return "MNN's wheel does not run on NVIDIA GPUs; use the device cpu"
    return _devices.missing(device) or (None if find_spec("MNN") else "MNN is not installed; pip install 'ltcompile[mnn]'")


def convert(onnx: Path, output: Path, precision: str = "fp32") -> None:
    """Write an ONNX file as MNN; "fp16" stores weights in half precision. Raises Unavailable where MNN's converter fails."""
    half = ["--fp16"] if precision == "fp16" else []
    files: list[str | Path] = ["--modelFile", onnx.resolve(), "--MNNModel", output.resolve(), "--bizCode", "ltcompile"]
    # The converter leaves an empty file where it runs.
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        text = run([sys.executable, "-P", "-c", CONVERTER, "-f", "ONNX", *files, *half], output.name, Path(folder))
    if not output.is_file():
        lacking = next((line[line.index("These Op") :].strip() for line in text.splitlines() if "These Op" in line), "")
        layers = layers_in(lacking or text.strip().rpartition("\n")[2], onnx)
        raise failed(output.name, f"MNN's converter writes no file. {lacking}{layers}", text)


def quantize(onnx: Path, output: Path, feeds: Mapping[str, Array], ranges: str) -> None:
    """Write an fp32 ONNX file as MNN in int8, by MNN's own quantiser, which takes `ranges` of activations from `feeds`: rows of each input.

    Raises Unavailable where it fails, or an input has a name that is not a file's.
    """
    inputs, outputs = ([end.name for end in side] for side in ends(onnx))
    if odd := [name for name in inputs if not PLAIN.fullmatch(name)]:
        raise Unavailable(f"MNN's quantiser takes inputs from files of their names, and {odd[0]!r} names none; give input_names=")
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        here, shapes = Path(folder), [{"name": name, "shape": list(feeds[name].shape)} for name in inputs]
        _with_pools(onnx, here / "network.onnx")
        convert(here / "network.onnx", here / "network.mnn")
        (sample := here / "samples" / "all").mkdir(parents=True)  # one of all rows: KL looks at the first alone
        for name in inputs:
            np.savetxt(sample / f"{name}.txt", feeds[name].ravel(), "%.9g")
        (sample / "input.json").write_text(json.dumps({"inputs": shapes, "outputs": outputs}))
        settings = {"path": f"{sample.parent}/", "used_sample_num": 1, "input_type": "sequence", "inputs": shapes, "batch_size": 1}
        settings |= {"feature_quantize_method": ranges, "weight_quantize_method": "MAX_ABS", "quant_bits": 8}
        (here / "settings.json").write_text(json.dumps(settings))
        text = run([sys.executable, "-P", "-c", QUANTIZER, "network.mnn", "int8.mnn", "settings.json"], output.name, here)
        if not (made := here / "int8.mnn").is_file():
            raise failed(output.name, f"MNN's quantiser writes no file with {ranges} ranges", text)
        write_bytes(output, made.read_bytes())


def _with_pools(file: Path, output: Path) -> None:
    """Write an ONNX file with its means over height and width as global pools: ranges by KL end by SIGSEGV at a Reduction."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.shape_inference.infer_shapes(onnx.load(str(file)))
    graph, nodes = model.graph, list[Any]()
    axes = {
        tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT64
    }
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.value_info)}
    for node in graph.node:
        x, y, kept = node.input[0] if node.input else "", node.output[0], next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        over = axes.get(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        if over is None or ranks.get(x) != 4 or sorted(axis % 4 for axis in over) != [2, 3]:
            nodes.append(node)
            continue
        nodes.append(helper.make_node("GlobalAveragePool", [x], [y if kept else f"{y}/pooled"], name=node.name))
        nodes += [] if kept else [helper.make_node("Flatten", [f"{y}/pooled"], [y], name=f"{node.name}/flat")]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(output))


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The .mnn file, its inputs resized to what is bound.

    Raises:
        Unavailable: the subject has no file that MNN reads, or MNN cannot convert or open it.
    """
    import MNN

    with own_file(subject, "mnn", READS, convert) as path:
        network = MNN.Interpreter(str(path))
    threads = deployment.threads or min(DEFAULT_THREADS, processors())
    settings = {"backend": "CPU", "precision": "high", "numThread": threads}
    session = network.createSession(settings)
    if session is None:
        raise Unavailable(f"MNN cannot open {subject.what}: an operator has no CPU kernel; use another runtime")
    known = ends(subject.onnx) if subject.onnx is not None else None
    details = {"precision": "high", "threads": str(threads)}
    return _Session(network, session, known, deployment, details)


class _Session(Session):
    """One session, whose tensors all bindings share."""

    thread_safe = False

    def __init__(
        self, network: Any, session: Any, known: tuple[list[End], list[End]] | None, deployment: Deployment, details: dict[str, str]
    ) -> None:
        super().__init__(deployment, details)
        self._network, self._session = network, session
        self._x, self._y = network.getSessionInputAll(session), network.getSessionOutputAll(session)
        outputs = known[1] if known else [End(name, "", ()) for name in self._y]
        self._inputs = [end.name for end in known[0]] if known else list(self._x)
        self._outputs = {end.name: end.dtype for end in outputs if end.name in self._y}
        if len(self._outputs) != len(outputs):
            raise Unavailable(f"MNN leaves out an output of {', '.join(end.name for end in outputs)}; use another runtime")

    def bind(self, inputs: Feeds) -> Bound:
        import MNN

        kinds = {
            np.dtype("float32"): MNN.Halide_Type_Float,
            np.dtype("int32"): MNN.Halide_Type_Int,
            np.dtype("uint8"): MNN.Halide_Type_Uint8,
        }
        held, found = dict[str, Any](), dict[str, Any]()

        def placed(array: Array) -> Any:
            return MNN.Tensor(array.shape or (1,), kinds[array.dtype], array, MNN.Tensor_DimensionType_Caffe)

        def write(more: Feeds) -> None:
            for name, array in by_name(more, self._inputs).items():
                narrow = np.ascontiguousarray(array, NARROWED.get(str(array.dtype), array.dtype))
                held[name] = (narrow, placed(narrow))

        def call() -> None:
            self._resize({name: array.shape for name, (array, _) in held.items()})
            for name, (_, tensor) in held.items():
                self._x[name].copyFrom(tensor)
            self._network.runSession(self._session)
            for name in self._outputs:
                shape, whole = self._y[name].getShape(), self._y[name].getDataType() is MNN.Halide_Type_Int
                if name not in found or found[name].getShape() != shape:
                    found[name] = placed(np.zeros(shape, np.int32 if whole else np.float32))
                self._y[name].copyToHostTensor(found[name])

        def read() -> dict[str, Array]:
            arrays = {name: np.array(tensor.getNumpyData()).reshape(tensor.getShape()) for name, tensor in found.items()}
            return {name: array.astype(self._outputs[name] or array.dtype, copy=False) for name, array in arrays.items()}

        write(inputs)
        in_turn = self.in_turns(call)
        in_turn()
        return Bound(in_turn, read, write)

    def _resize(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Prepare for inputs of other shapes than before, which takes as long as opening the session."""
        changed = [name for name, shape in shapes.items() if name in self._x and tuple(self._x[name].getShape()) != (shape or (1,))]
        for name in changed:
            self._network.resizeTensor(self._x[name], shapes[name])
        if changed:
            self._network.resizeSession(self._session)
