"""Files for any network: every rank, several inputs and outputs under their own names, any batch, every dtype, against torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.errors import Disagreement, InvalidModel, InvalidSetting
from ltcompile.graph.outputs import outputs_of
from ltcompile.lower import export_onnx, export_program, exporter, fold_batch_norm, run_onnx

pytestmark = pytest.mark.filterwarnings("ignore")


def answers(path: Path, *tensors: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = dict(zip((end.name for end in session.get_inputs()), (t.numpy() for t in tensors), strict=True))
    names = [end.name for end in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, feeds), strict=True)}


def ends(path: Path) -> tuple[list[str], list[str]]:
    graph = onnx.load(path).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


class UNet(nn.Module):
    """A small U-Net as MONAI builds them: strided convolutions down, transposed ones up, instance norm, a skip by concatenation."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        up = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
        norm = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims]
        self.first = nn.Sequential(conv(1, 8, 3, padding=1), norm(8), nn.PReLU())
        self.down = nn.Sequential(conv(8, 16, 3, stride=2, padding=1), norm(16), nn.PReLU())
        self.up, self.last = up(16, 8, 2, stride=2), conv(16, 3, 1)

    def forward(self, volume: Tensor) -> Tensor:
        wide = self.first(volume)
        return self.last(torch.cat([wide, self.up(self.down(wide))], 1))


class Video(nn.Module):
    """What r3d and s3d are made of: a 3-D stem, a residual block in separate space and time, a mean over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 8, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(8), nn.ReLU())
        self.space, self.time = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
        self.pool, self.head = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.Linear(8, 5)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.pool(self.stem(clip))
        return self.head((x + self.time(F.relu(self.space(x)))).mean((2, 3, 4)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sequences of rows": (lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), (7, 16)),
    "signals": (lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()), (2, 20)),
    "images that are not square": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(320, 4)),
        (3, 7, 10),
    ),
    "volumes": (lambda: UNet(3), (1, 4, 6, 8)),
    "signals through a U-Net": (lambda: UNet(1), (1, 12)),
    "video": (Video, (3, 4, 12, 10)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_rank(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model, x = build().eval(), torch.randn(3, *shape)
    folded, _ = fold_batch_norm(model, x)
    export_onnx(folded, x[:1], tmp_path / "net.onnx")
    for images in (x, x[:1]):
        torch.testing.assert_close(run_onnx(tmp_path / "net.onnx", images), model(images).detach(), rtol=1e-4, atol=1e-5)
    export_program(model, x[:1], tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    for images in (x, x[:1]):
        torch.testing.assert_close(program(images), model(images))
    assert onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_networks_of_every_rank_are_cut_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 4, 6, 8)
    model = UNet(3).eval()
    small = lt.cut(model, lt.plan(model, x, ratio=0.5))
    export_onnx(small, x, tmp_path / "net.onnx")
    torch.testing.assert_close(run_onnx(tmp_path / "net.onnx", x), small(x).detach(), rtol=1e-4, atol=1e-5)
    held = {w.name: tuple(w.dims) for w in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert {name: shape for name, shape in held.items() if name.endswith("up.weight")} == {"up.weight": tuple(small.up.weight.shape)}
    assert small.up.weight.numel() < model.up.weight.numel()


class Point(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass
class Seen:
    boxes: Tensor
    scores: list[Tensor]
    loss: Tensor | None = None


GIVES: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "a tensor": (lambda y: y, ["output"]),
    "a tuple": (lambda y: (y, y + 1), ["output_0", "output_1"]),
    "a dict": (lambda y: {"mask": y, "classes": y.argmax(1), "number": 3}, ["mask", "classes"]),
    "a dataclass": (lambda y: Seen(y, [y, y * 2]), ["boxes", "scores.0", "scores.1"]),
    "a named tuple": (lambda y: Point(y, y.mean()), ["x", "y"]),
    "the name of an input": (lambda y: {"image": y}, ["image_out"]),
}


class Many(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.words, self.give = nn.Linear(4, 6), nn.Embedding(9, 6), give

    def forward(self, image: Tensor, tokens: Tensor, *, scale: Tensor | float = 1.0, how: str = "add") -> Any:
        return self.give((self.a(image) + self.words(tokens).mean(1)) * scale)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GIVES)
def test_inputs_and_outputs_keep_their_names(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    give, names = GIVES[kind]
    model, image, tokens = Many(give), torch.randn(3, 4), torch.randint(0, 9, (3, 5))
    example = {"scale": torch.tensor(2.0), "tokens": tokens[:2], "image": image[:2], "how": "add"}
    export_onnx(model, example, tmp_path / "net.onnx", {"producer": "me"})
    assert ends(tmp_path / "net.onnx") == (["image", "tokens", "scale"], names)
    with torch.no_grad():
        expected = outputs_of(model(image, tokens, scale=torch.tensor(3.0)))
    found = answers(tmp_path / "net.onnx", image, tokens, torch.tensor(3.0))
    for left, right in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(left, right)
    assert {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props} == {"producer": "me"}


@pytest.mark.slow
def test_a_dict_as_an_argument_and_names_of_ones_own(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3)

        def forward(self, d: dict[str, Tensor], *more: Tensor) -> Tensor:
            return self.a(d["img"]) + more[0]

    model, x = Net().eval(), torch.randn(2, 3, 6, 5)
    export_onnx(model, ({"img": x}, torch.ones(())), tmp_path / "net.onnx")
    assert ends(tmp_path / "net.onnx") == (["d.img", "more.0"], ["output"])
    torch.testing.assert_close(answers(tmp_path / "net.onnx", x, torch.ones(()))["output"], model({"img": x}, 1).detach())
    export_program(model, ({"img": x}, torch.ones(())), tmp_path / "net.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()({"img": x[:1]}, torch.ones(())), model({"img": x[:1]}, 1))
    export_onnx(model, ({"img": x}, torch.ones(())), tmp_path / "net.onnx", input_names=("images", "shift"), output_names=("logits",))
    assert ends(tmp_path / "net.onnx") == (["images", "shift"], ["logits"])
    with pytest.raises(InvalidSetting, match=r"input_names must be 2 different names, for d\.img, more\.0"):
        export_onnx(model, ({"img": x}, torch.ones(())), tmp_path / "net.onnx", input_names=("images",))


@pytest.mark.slow
def test_a_table_without_a_batch(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x @ table

    with pytest.raises(InvalidModel, match="if table has no batch, give an example with a batch of another length"):
        export_onnx(Net(), (torch.randn(4, 4), torch.randn(4, 2)), tmp_path / "net.onnx")
    export_onnx(Net(), (torch.randn(2, 4), torch.randn(4, 2)), tmp_path / "net.onnx")
    x, table = torch.randn(3, 4), torch.randn(4, 2)
    torch.testing.assert_close(answers(tmp_path / "net.onnx", x, table)["output"], x @ table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.slow
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 24, 3)).eval().to(dtype)
    x = torch.randn(2, 3, 8, 6, dtype=dtype)
    export_onnx(model, x, tmp_path / "net.onnx")
    export_program(model, x, tmp_path / "net.pt2")
    wide = x if dtype == torch.float16 else x.float()  # ONNX Runtime's CPU has no bfloat16
    expected = model(x).detach().float()
    torch.testing.assert_close(run_onnx(tmp_path / "net.onnx", wide).float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x).float(), expected)
    assert next(model.parameters()).dtype == dtype


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
@pytest.mark.slow
def test_wrapped_networks(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    plain, x = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), torch.randn(2, 2, 9)
    export_onnx(wrap(plain), x, tmp_path / "net.onnx")
    assert plain.training and {i.name for i in onnx.load(tmp_path / "net.onnx").graph.initializer} >= {"0.weight"}
    torch.testing.assert_close(run_onnx(tmp_path / "net.onnx", x), plain.eval()(x).detach())


class Fixed(nn.Module):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.a, self.batch = nn.Linear(6, 4), batch

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).reshape(self.batch, 4) if self.batch else self.a(x) * (1 if x.shape[0] < 3 else 2)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("write", [export_onnx, export_program])
def test_a_batch_in_the_code_is_refused(write: Callable[..., None], batch: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"does not run on a batch of 3.*any batch"):
        write(Fixed(batch).eval(), torch.randn(batch, 6), tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [export_onnx, export_program])
def test_code_that_needs_the_batch_is_refused(write: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="fixes the batch"):
        write(Fixed(0).eval(), torch.randn(2, 6), tmp_path / "net")
    assert not list(tmp_path.iterdir())


class Keeping(nn.Module):
    """Keeps anchors that follow the size of the input, as a YOLO does with dynamic=True."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.anchors = nn.Conv2d(1, 2, 3), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.anchors = torch.arange(float(y.shape[-1]))
        return y + self.anchors


def test_what_a_network_keeps_is_as_before_and_no_warning(tmp_path: Path) -> None:
    network = Keeping()
    export_onnx(network, torch.randn(1, 1, 6, 6), tmp_path / "keeping.onnx")
    assert len(network.anchors) == 0


def refused() -> dict[str, tuple[Any, Any, str]]:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 6, 6)
    return {
        "scripted": (torch.jit.script(net), x, "TorchScript"),
        "lazy": (nn.Sequential(nn.LazyConv2d(4, 3)), x, "no weights yet"),
        "meta": (nn.Conv2d(3, 4, 3).to("meta"), x, "weight is on the meta device"),
        "a string": (net, "x", "must be a tensor, a tuple"),
        "no tensor": (net, (3,), "holds no tensor"),
        "none": (net, {"x": x}, "does not fit Sequential.forward: missing"),
        "another shape": (net, torch.randn(2, 5, 6, 6), r"does not run on a batch of 3, made of the example \(input \(3, 5, 6, 6\)\)"),
        "an empty batch": (net, x[:0], "one or more"),
        "no output": (nn.ModuleDict(), x, "does not run|forward"),
        "noise": (Noise(), x, "outputs are off by .*random numbers"),
        "fp64": (nn.Conv2d(3, 4, 3).double(), x.double(), r"export model.float\(\)"),
    }


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize("kind", refused())
def test_refusals(kind: str, tmp_path: Path) -> None:
    model, example, reported = refused()[kind]
    with pytest.raises((InvalidModel, InvalidSetting, Disagreement), match=reported) as caught:
        export_onnx(model, example, tmp_path / "net.onnx")
    assert "\x1b" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_files_hold_no_paths_of_this_machine(tmp_path: Path) -> None:
    export_onnx(Video().eval(), torch.randn(1, 3, 4, 12, 10), tmp_path / "net.onnx")
    assert str(Path(__file__).parent).encode() not in (tmp_path / "net.onnx").read_bytes()


class Attention(nn.Module):
    """Tokens (N, 5, 6), whose attention has `rank` dimensions."""

    def __init__(self, rank: int, mask: Tensor | None, **options: Any) -> None:
        super().__init__()
        self.rank, self.options, self.project, self.last = rank, options, nn.Linear(6, 24), nn.Linear(8, 3)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).chunk(3, -1)
        if self.rank == 5:
            parts = [part.reshape(x.shape[0], 1, 5, 2, 4).transpose(2, 3) for part in parts]
        y = F.scaled_dot_product_attention(*parts, self.mask, **self.options)
        return self.last(y if self.rank == 3 else y.transpose(2, 3).reshape(x.shape[0], 5, 8))


@pytest.mark.parametrize(
    ("rank", "mask", "options"),
    [
        (3, None, {}),
        (3, torch.ones(5, 5, dtype=torch.bool).tril(), {}),
        (5, None, {"is_causal": True}),
        (5, torch.linspace(-1, 1, 25).view(5, 5), {"scale": 0.3}),
    ],
    ids=["3", "3-mask", "5-causal", "5-added"],
)
def test_attention_of_any_number_of_dimensions(rank: int, mask: Tensor | None, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_onnx(Attention(rank, mask, **options), torch.randn(2, 5, 6), tmp_path / "network.onnx")  # compares it with torch


def test_heads_that_share_keys() -> None:
    query, key, value = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 5, 6), torch.randn(2, 2, 5, 3)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(exporter.attention(query, key, value, enable_gqa=True), expected)
