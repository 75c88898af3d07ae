# mypy: disable-error-code="import-untyped,untyped-decorator"
"""y[n, ...] = f_L(... f_2(f_1(x))): layers one after the other in one launch, a barrier of all programs between them.

Each f_i is one of the other kernels, with blocks of its own. What it launches by itself as program j is its item j here: P programs, all
resident at once, take the items j, j + P, ... of a layer, wait for one another, and go on. The results are those of separate launches, to
the bit. `fuse` makes one call of several; the operator takes layers as text, since operators take no objects.

Floor: x, weights and residuals read once, y written once; the flop of all layers; L - 1 barriers in the place of L - 1 launches.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

from ltcompile import kernels
from ltcompile.errors import BadSetting
from ltcompile.kernels._config import PERSISTENT_WARPS, PROGRAMS, Config, head_default, persistent_default, window_default
from ltcompile.kernels._launch import Call, interpreted, launch
from ltcompile.kernels._layout import IMAGE_STRIDE, nhwc

KINDS = ("conv2d", "depthwise", "grouped", "linear", "maxpool", "pooled_head")


# Several calls as one


@triton.jit
def _meet(arrived: tl.tensor, COUNT: tl.constexpr) -> None:
    """Wait until COUNT programs are here. What any of them wrote before is then seen by all.

    Program 0 adds 2^31 - (COUNT - 1) and each other one 1: the last to come, whoever it is, flips the sign, and the lower bits are zero
    again. So the counter is never reset (as in the barrier of CUDA's cooperative groups). One thread releases what the threads of its
    program have written, and one acquires, which empties the multiprocessor's L1 for all of its threads: plain loads need no bypass.
    """
    tl.debug_barrier()
    before = tl.atomic_add(arrived, tl.where(tl.program_id(0) == 0, (1 - COUNT) ^ -(2**31), 1), sem="release")
    now = before
    while (now ^ before) >= 0:
        now = tl.atomic_add(arrived, 0, sem="acquire")  # one value for all threads, so that they leave together
    tl.debug_barrier()


@triton.jit
def _persistent(
    tensors: tl.tuple,  # of each layer
    kernels: tl.tuple,
    constants: tl.tuple,  # of each layer
    items: tl.tuple,  # how many each layer has
    arrived: tl.tensor,  # (1,) int32, zero before the first launch, and left as the last one ended
    COUNT: tl.constexpr,
) -> None:
    for i in tl.static_range(len(items)):
        if i > 0:
            _meet(arrived, COUNT)
        for turn in range((items[i] + COUNT - 1) // COUNT):
            first = turn * COUNT
            if first + tl.program_id(0) < items[i]:
                kernels[i](*tensors[i], first, *constants[i])


def fuse(calls: Sequence[Call], programs: int | None = None) -> Call:
    """One call that does what `calls` do one after the other. It may be launched again and again, but not twice at the same time.

    Args:
        programs: how many share the work; a GPU refuses more than it can hold at once. By default one a multiprocessor, or fewer where
            no layer has work for them. Where Triton interprets it is always one, because programs then run one after the other.

    Raises:
        BadSetting: there are no calls, they differ in their warps, or one is dependent or persistent itself.
    """
    if len({call.warps for call in calls}) != 1 or any(call.cooperative or call.dependent for call in calls):
        told = ", ".join(f"{call.kernel.__name__} ({call.warps} warps)" for call in calls)
        raise BadSetting(
            f"one kernel cannot do {told or 'nothing'}: calls need the same warps, and may be neither dependent nor persistent"
        )
    calls = _sharing(_sharing(calls, "partial"), "arrived")
    given = [[call.arguments[name] for name in call.kernel.arg_names if name != "first"] for call in calls]
    x = calls[0].tensors["x"]
    multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else PROGRAMS
    count = 1 if interpreted(_persistent) else programs or min(multiprocessors, max(call.programs for call in calls))
    return Call(
        kernel=_persistent,
        programs=count,
        tensors={
            "tensors": tuple(tuple(value for value in values if isinstance(value, Tensor)) for values in given),
            "arrived": x.new_zeros(1, dtype=torch.int32),
        },
        numbers={},
        constants={
            "kernels": tuple(call.kernel for call in calls),
            "constants": tuple(tuple(tl.constexpr(value) for value in values if not isinstance(value, Tensor)) for values in given),
            "items": tuple(tl.constexpr(call.programs) for call in calls),
            "COUNT": count,
        },
        warps=calls[0].warps,
        stages=1,  # a loop that is pipelined says so itself
        cooperative=True,
    )


def _sharing(calls: Sequence[Call], name: str) -> list[Call]:
    """`calls` with the largest of their tensors of this name in all of them, which barriers keep apart."""
    largest = max((call.tensors[name] for call in calls if name in call.tensors), key=Tensor.numel, default=None)
    return [replace(call, tensors=call.tensors | {name: largest}) if name in call.tensors else call for call in calls]


def default(kind: str, y: Tensor, arguments: dict[str, Any]) -> Config:
    """The configuration of a kernel as a layer here, when nobody has measured.

    Args:
        y: its output.
        arguments: those of its operator.
    """
    channels = y.shape[-1]
    rows = y.numel() // channels * (4 if arguments.get("pool") else 1)
    if kind in ("conv2d", "linear"):
        return persistent_default(rows, channels, arguments["w"].shape[0], y.element_size())
    if kind == "grouped":
        return persistent_default(rows, channels, arguments["w"].shape[1], y.element_size(), arguments["w"].shape[2])
    if kind == "pooled_head":
        return head_default(rows, channels, arguments["x"].shape[-1])
    return window_default(rows, channels, PERSISTENT_WARPS)


# A network of layers


@dataclass(frozen=True)
class Layer:
    """A kernel, what it reads, and its settings, as its operator takes them.

    Layers count from 0; -1 is the network's input. A linear layer reads its source as (N, H W Cs), and its weights have that order.
    """

    kind: str
    source: int
    channels: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    activation: str = "none"
    pool: bool = False
    residual: int | None = None
    groups: int = 1
    in_channels: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadSetting(f"a layer is one of {', '.join(KINDS)}, not {self.kind!r}")
        taken = {"kind", "source", "channels", *self.takes}
        extra = [field.name for field in fields(self) if field.name not in taken and getattr(self, field.name) != field.default]
        if extra:
            raise BadSetting(f"the kernel {self.kind} has no {' and no '.join(extra)}")

    @property
    def takes(self) -> list[str]:
        """The arguments of its operator."""
        return list(inspect.signature(kernels.load(self.kind).empty).parameters)


def encode(layers: Sequence[Layer]) -> str:
    """Layers as text."""
    return json.dumps([asdict(layer) for layer in layers])


def decode(text: str) -> list[Layer]:
    """And back.

    Raises:
        BadSetting: there are none, it is not the text of layers, or a layer reads what comes behind it.
    """
    try:
        layers: list[Layer] = json.loads(text, object_hook=_layer)
        reads = [(layer.source, -1 if layer.residual is None else layer.residual) for layer in layers]
    except (ValueError, TypeError, AttributeError) as error:
        raise BadSetting(f"{text[:60]!r} is not the text of layers ({error}); write them with `encode`") from error
    behind = [i for i, sources in enumerate(reads) if not all(-1 <= source < i for source in sources)]
    if behind or not layers:
        what = f"layer {behind[0]} reads layers {reads[behind[0]]}" if behind else "there are no layers"
        raise BadSetting(f"{what}; the first layer reads -1, the input, and each one what lies before it")
    return layers


def _layer(row: dict[str, Any]) -> Layer:
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Layer(**settings)


def _steps(values: list[Tensor], weights: list[Tensor], biases: list[Tensor], layers: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kernel of each layer and its arguments. `values` begins with x, and grows by a layer's output before the next one is asked for.

    Raises:
        BadSetting: there are too few or too many weights, or the layers are none.
    """
    used = 0
    for i, layer in enumerate(decode(layers)):
        x, residual = values[layer.source + 1], None if layer.residual is None else values[layer.residual + 1]
        given = asdict(layer) | {"x": x.flatten(1) if layer.kind == "linear" else x, "residual": residual}
        if "w" in layer.takes:
            if used == min(len(weights), len(biases)):
                raise BadSetting(f"layer {i} ({layer.kind}) has no weights: there are {len(weights)} weights and {len(biases)} biases")
            given |= {"w": weights[used], "bias": biases[used]}
            used += 1
        yield layer.kind, {name: list(given[name]) if isinstance(given[name], tuple) else given[name] for name in layer.takes}
    if used != max(len(weights), len(biases)):
        raise BadSetting(f"there are {len(weights)} weights and {len(biases)} biases for {used} layers that have some")


def outputs(x: Tensor, weights: list[Tensor], biases: list[Tensor], layers: str) -> list[Tensor]:
    """The output of every layer, not filled. All but the last are what `prepare` takes as buffers."""
    values = [x]
    for kind, arguments in _steps(values, weights, biases, layers):
        values.append(kernels.load(kind).empty(**arguments))
    return values[1:]


def empty(x: Tensor, weights: list[Tensor], biases: list[Tensor], layers: str) -> Tensor:
    """The output, not filled."""
    return outputs(x, weights, biases, layers)[-1]


def reference(x: Tensor, weights: list[Tensor], biases: list[Tensor], layers: str) -> Tensor:
    values = [x]
    for kind, arguments in _steps(values, weights, biases, layers):
        values.append(kernels.load(kind).reference(**arguments))
    return values[-1]


def prepare(
    y: Tensor,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    layers: str,
    config: Sequence[Config] | None = None,
    buffers: Sequence[Tensor] | None = None,
    programs: int | None = None,
) -> Call:
    """The call that fills y, which has the shape of `empty`.

    Args:
        config: of each layer, all of the same warps.
        buffers: where the layers but the last write, of the shapes of `outputs`; they may overlap where their lives do not.
        programs: as `fuse` takes them.

    Raises:
        BadSetting: shapes, types, layers or configurations do not fit together.
    """
    values = [x, *(outputs(x, weights, biases, layers)[:-1] if buffers is None else buffers), y]
    count = len(decode(layers))
    if len(values) != count + 1 or len(config or values[1:]) != count:
        raise BadSetting(f"{count} layers take {count - 1} buffers and {count} configurations")
    steps = list(_steps(values, weights, biases, layers))
    chosen = config or [default(kind, out, arguments) for (kind, arguments), out in zip(steps, values[1:], strict=True)]
    calls = [
        kernels.load(kind).prepare(out, **arguments, config=how)
        for (kind, arguments), out, how in zip(steps, values[1:], chosen, strict=True)
    ]
    return fuse(calls, programs)


@custom_op("ltcompile::persistent", mutates_args=())
def persistent(x: Tensor, weights: list[Tensor], biases: list[Tensor], layers: str) -> Tensor:
    """x (N, H, W, Cs) or (N, Cs), weights and biases packed for the layers that have some, in their order, -> the last layer's output."""
    if x.device.type == "cpu":
        return reference(x, weights, biases, layers)
    y = empty(x, weights, biases, layers)
    launch(prepare(y, x, weights, biases, layers))
    return y


persistent.register_fake(empty)


# Cases

TOL = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}  # every layer rounds what the next one reads


@dataclass(frozen=True)
class Case:
    n: int
    h: int
    w: int
    c: int
    layers: tuple[Layer, ...]
    config: tuple[Config, ...] | None = None

    @property
    def lanes(self) -> int:
        return self.layers[-1].channels


def chain(*widths: int, classes: int = 10) -> tuple[Layer, ...]:
    """A network like VGG: 3x3 convolutions of these widths, a pooling behind every second one, and a pooled head."""
    convs = [Layer("conv2d", i - 1, width, (3, 3), padding=(1, 1), activation="relu", pool=i % 2 == 1) for i, width in enumerate(widths)]
    return (*convs, Layer("pooled_head", len(widths) - 1, classes))


def _residual() -> tuple[Layer, ...]:
    """A stem, a block like ResNet's, one like MobileNet's, and a block that halves; three kinds of residuals."""
    three, one, by_two = (3, 3), (1, 1), (2, 2)
    return (
        Layer("conv2d", -1, 13, three, padding=one, activation="relu"),
        Layer("conv2d", 0, 37, three, padding=one, activation="relu"),
        Layer("conv2d", 1, 13, three, padding=one, activation="relu", residual=0),
        Layer("conv2d", 2, 61, activation="hardswish"),
        Layer("depthwise", 3, 61, three, padding=one, activation="hardswish"),
        Layer("conv2d", 4, 13, residual=2),
        Layer("grouped", 5, 26, three, by_two, one, "relu", groups=13, in_channels=13),
        Layer("conv2d", 5, 24, stride=by_two),
        Layer("conv2d", 6, 24, three, padding=one, activation="silu", residual=7, pool=True),
        Layer("pooled_head", 8, 10),
    )


_SPLIT = Config(16, 64, 32, split_k=4, swapped=True)
CASES = [
    Case(3, 4, 4, 3, chain(37, 61, 13), (Config(32, 16, 32), _SPLIT, _SPLIT, Config(16, 16, 16))),
    Case(3, 1, 1, 61, (Layer("linear", -1, 13, activation="sigmoid"),)),
    Case(3, 4, 4, 3, _residual()),
    Case(
        1,
        11,
        11,
        3,
        (
            Layer("conv2d", -1, 13, (7, 7), (2, 2), (3, 3), "sigmoid"),
            Layer("maxpool", 0, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
            Layer("conv2d", 1, 37, (3, 3), padding=(1, 1), activation="gelu", pool=True),
            Layer("linear", 2, 61, activation="relu"),
            Layer("linear", 3, 10),
        ),
    ),
    Case(1, 8, 8, 3, chain(13, 37, 61, 24, 53, 37, 13), (*[Config(32, 32, 128)] * 7, Config(1, 16, 16))),
]


def sample(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Random arguments of the operator."""
    x = nhwc(torch.randn(case.n, case.c, case.h, case.w, dtype=dtype, device=device), IMAGE_STRIDE if case.c <= IMAGE_STRIDE else None)
    values, widths, weights, biases = [x], [case.c], list[Tensor](), list[Tensor]()
    layers = encode(case.layers)
    steps = _steps(values, weights, biases, layers)
    for layer in case.layers:
        width = widths[layer.source + 1]
        if "w" in layer.takes:
            w, bias = _packed(layer, values[layer.source + 1], width)
            weights.append(w)
            biases.append(bias)
        kind, given = next(steps)
        values.append(kernels.load(kind).empty(**given))
        widths.append(layer.channels or width)
    return {"x": x, "weights": weights, "biases": biases, "layers": layers}


def _packed(layer: Layer, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Random weights for a layer that reads the `width` channels of x."""
    groups = width if layer.kind == "depthwise" else layer.groups
    shape = {"linear": x.shape[1:].numel(), "pooled_head": width}.get(layer.kind, width // groups)
    window = layer.kernel if layer.kind in ("conv2d", "depthwise", "grouped") else ()
    weight = torch.randn(layer.channels, shape, *window, device=x.device) / (shape * layer.kernel[0] * layer.kernel[1]) ** 0.5
    rest = {"conv2d": (x.dtype, x.shape[-1]), "grouped": (groups, x.dtype)}.get(layer.kind, (x.dtype,))
    packed: tuple[Tensor, Tensor] = kernels.load(layer.kind).pack(weight, torch.randn(layer.channels, device=x.device), *rest)
    return packed
