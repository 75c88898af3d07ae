"""ncnn on the CPU, in fp32. Reads .param files with their .bin; ONNX files are converted first, by pnnx."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltcompile.errors import Unavailable
from ltcompile.paths import write_bytes
from ltcompile.processors import processors
from ltcompile.runtimes import _devices
from ltcompile.runtimes._base import Array, Options, Session, Subject
from ltcompile.runtimes._convert import ends, failed, own_file, run
from ltcompile.runtimes._rows import RowSession

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

APART = READS_ONNX = THREADS = True
DEFAULT = False
READS = ".param"
IMPORTS = ("ncnn", "onnx")
TYPES = {"float32": "f32", "int64": "i64", "int32": "i32"}


def unavailable(device: str) -> str | None:
    """Why ncnn cannot run on `device`, or None."""
    if device == "cuda":
        return "ncnn's CUDA is Vulkan, which is not used; use the device cpu"
    missing = [name for name in ("ncnn", "pnnx") if not find_spec(name)]
    return _devices.missing(device) or (f"{missing[0]} is not installed; pip install 'ltcompile[ncnn]'" if missing else None)


def convert(onnx: Path, output: Path, precision: str = "fp32") -> None:
    """Write an ONNX file as ncnn, OUTPUT.param and OUTPUT.bin, for one row; "fp16" stores weights in half precision.

    Raises:
        Unavailable: pnnx fails, a size besides the batch varies, or ncnn lacks an operator.
    """
    shapes = []
    for end in ends(onnx)[0]:
        if end.dtype not in TYPES or None in end.shape[1:] or len(end.shape) < 2:
            raise Unavailable(f"ncnn takes inputs of fixed shapes behind the batch, not {end.name} {end.dtype} {list(end.shape)}")
        shapes.append(f"[{','.join(map(str, (1, *end.shape[1:])))}]{TYPES[end.dtype]}")
    spec = find_spec("pnnx")
    assert spec is not None and spec.submodule_search_locations
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        (Path(folder) / "network.onnx").write_bytes(onnx.read_bytes())
        program = Path(spec.submodule_search_locations[0]) / "pnnx"
        settings = [f"inputshape={','.join(shapes)}", f"fp16={int(precision == 'fp16')}"]
        text = run([program, "network.onnx", *settings], output.name, Path(folder))
        made = Path(folder) / "network.ncnn.param"
        if not made.is_file():
            raise failed(output.name, "pnnx writes no file", text)
        _check_operators(made.read_text(), output.name)
        write_bytes(output.with_suffix(".bin"), made.with_suffix(".bin").read_bytes())
        write_bytes(output, made.read_bytes())


def _check_operators(param: str, name: str) -> None:
    """Raises Unavailable where a layer's type is not one of ncnn's."""
    import ncnn

    for line in param.splitlines()[2:]:
        kind, layer = line.split()[:2]
        if ncnn.layer_to_index(kind) == -1 if hasattr(ncnn, "layer_to_index") else ("." in kind or "::" in kind):
            raise Unavailable(f"ncnn has no operator {kind!r}, which {name} needs for its layer {layer!r}; use another format")


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The .param file, which computes one row after the other.

    Raises:
        Unavailable: the subject has no file that ncnn reads, or ncnn cannot open it.
    """
    import ncnn

    network = ncnn.Net()
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    network.opt.use_bf16_storage = network.opt.use_vulkan_compute = False
    network.opt.num_threads = deployment.threads or min(network.opt.num_threads, processors())
    with own_file(subject, "ncnn", READS, convert) as path:
        if network.load_param(str(path)) or network.load_model(str(path.with_suffix(".bin"))):
            raise Unavailable(f"ncnn cannot open {subject.what}: a layer is unknown, or the .bin file is another one; use another runtime")
    known = ends(subject.onnx) if subject.onnx is not None else None
    blobs = [sorted(names, key=lambda name: int(name.lstrip("inout") or 0)) for names in (network.input_names(), network.output_names())]
    return _Session(network, blobs, [[end.name for end in one] for one in known] if known else blobs, deployment)


class _Session(RowSession):
    """`blobs` are what ncnn calls the inputs and outputs, `names` what users do."""

    def __init__(self, network: Any, blobs: list[list[str]], names: list[list[str]], deployment: Deployment) -> None:
        super().__init__(deployment, {"precision": "fp32", "threads": str(network.opt.num_threads)}, *names)
        self._network, self._blobs = network, blobs

    def row(self, inputs: Sequence[Array]) -> list[Array]:
        import ncnn

        extractor = self._network.create_extractor()
        mats = [ncnn.Mat(np.ascontiguousarray(array, np.int32 if array.dtype.kind in "iu" else np.float32)) for array in inputs]
        for name, mat in zip(self._blobs[0], mats, strict=True):
            extractor.input(name, mat)
        found = [extractor.extract(name) for name in self._blobs[1]]
        if any(code for code, _ in found):
            raise Unavailable("ncnn cannot run the network on these inputs; use another runtime")
        return [np.array(mat) for _, mat in found]
