"""Who races on an NVIDIA GPU, all in fp16 from float32 images on the device to float32 answers there."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ltcompile import runtimes
from ltcompile.benchmark.competitors import _torch
from ltcompile.benchmark.competitors.entrant import ENGINE, MAX_DROP, Entrant, Network, Ready
from ltcompile.engine.gpu import Gpu, Graph
from ltcompile.errors import Unavailable
from ltcompile.runtimes import _ort

FP16, CUDA, TRT = "fp16", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ONNXRUNTIME = {"prefer_nhwc": "1", "enable_cuda_graph": "1"}
TENSORRT = {"trt_fp16_enable": "1", "trt_cuda_graph_enable": "1"}


def _engine(network: Network, images: Tensor) -> Ready:
    made = Gpu(FP16).make(network.module, images, [len(images)], MAX_DROP, lambda _: None)
    (part,), graph = made.parts, made.runs[len(images)]
    assert isinstance(graph, Graph)
    answers: list[Tensor] = []

    def write(images: Tensor) -> None:
        answers[:] = [graph(images.cuda())]  # by the graph that is replayed from here on, on the same memory

    def answer() -> Tensor:
        return answers[0].cpu()

    write(images)
    return Ready(graph.graph.replay, answer, write, part.decision.by, part)


def _through_onnx(network: Network, images: Tensor, backend: str, provider: str, settings: dict[str, str]) -> Ready:
    """The float16 file in ONNX Runtime's `provider`, on the stream of everyone else, whose events alone say when it has ended."""
    import onnxruntime
    from onnxruntime import OrtValue

    if reason := runtimes.unavailable(backend, "cuda"):
        raise Unavailable(reason)
    stream = {"user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}
    rest = [] if provider == CUDA else [(CUDA, stream)]
    session = _ort.open_session(network.half_onnx(), [(provider, settings | stream), *rest], len(images))
    source, target, binding = session.get_inputs()[0], session.get_outputs()[0], session.io_binding()
    answer = OrtValue.ortvalue_from_shape_and_type([len(images), *target.shape[1:]], np.float32, "cuda")
    placed = OrtValue.ortvalue_from_numpy(images.numpy(), "cuda")
    binding.bind_ortvalue_input(source.name, placed)
    binding.bind_ortvalue_output(target.name, answer)
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    call = functools.partial(session.run_with_iobinding, binding, options)
    for _ in range(_torch.WARMUPS):  # its CUDA graph is recorded by the first
        call()
    return Ready(call, lambda: torch.from_numpy(answer.numpy()), lambda images: placed.update_inplace(images.numpy()))


def _compiled(mode: str | None) -> Callable[[Network, Tensor], Ready]:
    return functools.partial(_torch.compiled, device="cuda", precision=FP16, mode=mode)


ENTRANTS = (
    Entrant(ENGINE, FP16, "its CUDA graph, replayed", _engine),
    Entrant("eager", FP16, "channels_last, cudnn.benchmark", functools.partial(_torch.eager, device="cuda", precision=FP16)),
    Entrant(
        "eager, recorded", FP16, "channels_last, cudnn.benchmark, CUDA graph", functools.partial(_torch.eager_recorded, precision=FP16)
    ),
    Entrant("torch.compile", FP16, "channels_last, freezing", _compiled(None)),
    Entrant("torch.compile, reduce-overhead", FP16, "channels_last, freezing", _compiled("reduce-overhead")),
    Entrant("torch.compile, max-autotune", FP16, "channels_last, freezing", _compiled("max-autotune")),
    Entrant(
        "torch.compile, max-autotune, recorded",
        FP16,
        "channels_last, freezing, CUDA graph",
        functools.partial(_torch.compiled_recorded, precision=FP16),
    ),
    Entrant("AOTInductor", FP16, "channels_last, freezing, max_autotune", functools.partial(_torch.ahead_of_time, precision=FP16)),
    Entrant(
        "onnxruntime",
        FP16,
        "prefer_nhwc, CUDA graph, bound buffers",
        functools.partial(_through_onnx, backend="onnxruntime", provider=CUDA, settings=ONNXRUNTIME),
    ),
    Entrant(
        "tensorrt",
        FP16,
        "fp16, CUDA graph, bound buffers",
        functools.partial(_through_onnx, backend="tensorrt", provider=TRT, settings=TENSORRT),
    ),
)
