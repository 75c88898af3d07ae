"""Stands for NVIDIA's package where there is no GPU: the same names, whose engines are ONNX files that ONNX Runtime computes in place."""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

__version__ = "11.0, a stand-in"
MARK = b"engine"
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Logger:
    ERROR = 1

    def __init__(self, level: int) -> None: ...


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 1


class OnnxParser:
    def __init__(self, network: SimpleNamespace, _: Logger) -> None:
        self.network, self.num_errors = network, 0

    def parse(self, data: bytes) -> bool:
        model = onnx.load_from_string(data)
        self.errors = [f"In node {n.name} (parseGraph): No importer for {n.op_type}" for n in model.graph.node if n.op_type == "Bernoulli"]
        self.num_errors, self.network.data = len(self.errors), data
        shapes = {end.name: [d.dim_value or -1 for d in end.type.tensor_type.shape.dim] for end in model.graph.input}
        self.network.ends = [SimpleNamespace(name=name, shape=shape) for name, shape in shapes.items()]
        self.network.num_inputs, self.network.get_input = len(shapes), lambda at: self.network.ends[at]
        return not self.errors

    def get_error(self, at: int) -> str:
        return self.errors[at]


class Profile(dict):  # type: ignore[type-arg]
    def set_shape(self, name: str, least: tuple[int, ...], usual: tuple[int, ...], most: tuple[int, ...]) -> None:
        assert len(least) == len(usual) == len(most) and all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        self[name] = most


class Builder:
    def __init__(self, _: Logger) -> None: ...

    def create_network(self, flags: int) -> SimpleNamespace:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return SimpleNamespace()

    def create_builder_config(self) -> SimpleNamespace:
        config = SimpleNamespace(flags={BuilderFlag.TF32}, profile=None)
        config.clear_flag = config.flags.remove
        config.add_optimization_profile = lambda profile: setattr(config, "profile", profile)
        return config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: SimpleNamespace, config: SimpleNamespace) -> bytes | None:
        assert not config.flags and config.profile.keys() == {end.name for end in network.ends}
        most = str(max(shape[0] for shape in config.profile.values())).encode()
        return MARK + most + b"\n" + network.data


class Runtime:
    def __init__(self, _: Logger) -> None: ...

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        return Engine(data) if data.startswith(MARK) else None


class Engine:
    def __init__(self, data: bytes) -> None:
        most, _, model = data.removeprefix(MARK).partition(b"\n")
        self.most, self.session = int(most), onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = ({end.name: end for end in ends} for ends in (self.session.get_inputs(), self.session.get_outputs()))
        self.ends = self.inputs | self.outputs
        self.num_io_tensors, self.get_tensor_name = len(self.ends), lambda at: list(self.ends)[at]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return self.ends[name].type

    def get_tensor_profile_shape(self, name: str, _: int) -> list[list[int]]:
        return [[rows, *self.ends[name].shape[1:]] for rows in (1, 1, self.most)]

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses = engine, dict[str, tuple[int, ...]](), dict[str, int]()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[0] <= self.engine.most and list(shape[1:]) == self.engine.ends[name].shape[1:]

    def get_tensor_shape(self, name: str) -> list[int]:
        rows = next(iter(self.shapes.values()))[0]
        return [size if isinstance(size, int) else rows for size in self.engine.ends[name].shape]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        feeds = {name: self.at(name, self.shapes[name]) for name in self.engine.inputs}
        for name, found in zip(self.engine.outputs, self.engine.session.run(list(self.engine.outputs), feeds), strict=True):
            self.at(name, found.shape)[...] = found
        return True

    def at(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """What lies at the address of a tensor."""
        dtype = np.dtype(nptype(self.engine.get_tensor_dtype(name)))
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype).reshape(shape)


def nptype(kind: str) -> type:
    return TYPES[kind]
