"""All modules of torch.nn and torchvision.ops between two layers: cut right, left alone for a stated reason, or refused by an error of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision import ops

import ltcompile as lt
from ltcompile.errors import InvalidModel

WIDTH = 8
SHAPES = {"0d": (4, 5, WIDTH), "1d": (2, WIDTH, 12), "2d": (2, WIDTH, 6, 6), "3d": (2, WIDTH, 4, 4, 4)}
Op = Callable[[Tensor], Any]


class Between(nn.Module):
    """A layer, `op`, and a layer that reads what it gives, whatever that is: channels last for "0d", else behind the images."""

    def __init__(self, op: Op, rank: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = {"0d": nn.Linear, "1d": nn.Conv1d, "2d": nn.Conv2d, "3d": nn.Conv3d}[rank]
        extra = () if rank == "0d" else (1,)
        self.op, self.channels = op, -1 if rank == "0d" else 1
        self.first = made(3, WIDTH, *extra)
        shape = [n if i != (len(SHAPES[rank]) - 1 if rank == "0d" else 1) else 3 for i, n in enumerate(SHAPES[rank])]
        self.x = torch.randn(shape, dtype=torch.double)
        self.double()
        with torch.no_grad():
            out = self._tensor(op(self.first(self.x)))
        self.flat = out.dim() != self.x.dim()
        self.last = (nn.Linear(out.flatten(1).shape[1], 4) if self.flat else made(out.shape[self.channels], 4, *extra)).double()
        self.eval()

    @staticmethod
    def _tensor(found: Any) -> Tensor:
        """The floating-point tensors of a result as one."""
        first, *others = (t for t in tree_leaves(found) if isinstance(t, Tensor) and t.is_floating_point())
        first = first.reshape(1, 1) if first.dim() < 2 else first
        return first + sum(t.mean() for t in others)

    def forward(self, x: Tensor) -> Tensor:
        made = self._tensor(self.op(self.first(x).relu()))
        out: Tensor = self.last(made.flatten(1) if self.flat else made)
        return out


def outcome(op: Op, rank: str) -> str:
    """Why the first layer stays; "" where it is cut, which is compared with the mask."""
    model = Between(op, rank)
    try:
        plan = lt.plan(model, model.x, 0.5, "local")
    except InvalidModel as error:
        return str(error)
    with torch.no_grad():
        made, expected = lt.cut(model, plan)(model.x), lt.mask(model, plan)(model.x)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(made, expected, rtol=1e-7, atol=1e-7)
    return plan.frozen.get("first", "")


class Twice(nn.Module):
    """A module that is called with the same tensor several times, or with others as well."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.module, x)


def seeded(shape: tuple[int, ...], kind: str = "rand") -> Tensor:
    values = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=values, dtype=torch.double) if kind == "rand" else torch.randint(0, 4, shape, generator=values)


def loss(made: nn.Module, target: Callable[[Tensor], Tensor], shape: Callable[[Tensor], Tensor] = lambda x: x) -> nn.Module:
    return Twice(made, lambda m, x: x * (1 + m(shape(x), target(shape(x))).mean()))


def pooled(pool: str, unpool: str) -> nn.Module:
    made = getattr(nn, pool)(2, return_indices=True)
    return Twice(made, lambda m, x: getattr(nn, unpool)(2)(*m(x)))


def sampled(pool: nn.Module, x: Tensor, rank: int) -> Tensor:
    """Its windows without chance."""
    pool._random_samples = torch.full((*x.shape[:2], rank), 0.3, dtype=x.dtype, device=x.device)
    return pool(x)


def by_rank(name: str) -> str:
    return next((f"{n}d" for n in (1, 2, 3) if f"{n}d" in name), "0d")


LIKE = lambda x: torch.full_like(x, 0.5)  # noqa: E731
SIGNS = lambda x: torch.ones(x.shape[:1], dtype=x.dtype)  # noqa: E731
CLASSES = lambda x: torch.zeros(x.shape[0], dtype=torch.long)  # noqa: E731
FIVE = torch.ones(5, 2, dtype=torch.long), torch.tensor([4] * 5), torch.tensor([2] * 5)
ROWS = lambda x: x.flatten(0, -2)  # noqa: E731

# Constructor arguments, or how a module is called; by default it takes the width, where it takes one, and a tensor.
MADE: dict[str, Callable[[], nn.Module]] = {
    "AdaptiveLogSoftmaxWithLoss": lambda: Twice(nn.AdaptiveLogSoftmaxWithLoss(WIDTH, 6, [3]), lambda m, x: m.log_prob(ROWS(x))),
    "Bilinear": lambda: Twice(nn.Bilinear(WIDTH, WIDTH, 6), lambda m, x: m(x, x)),
    "ChannelShuffle": lambda: nn.ChannelShuffle(2),
    "CosineSimilarity": lambda: Twice(nn.CosineSimilarity(-1), lambda m, x: m(x, x.flip(1)).unsqueeze(-1)),
    "PairwiseDistance": lambda: Twice(nn.PairwiseDistance(), lambda m, x: m(x, x.flip(1)).unsqueeze(-1)),
    "Embedding": lambda: Twice(nn.Embedding(4, WIDTH), lambda m, x: x + m(seeded((4, 5), "int"))),
    "EmbeddingBag": lambda: Twice(nn.EmbeddingBag(4, WIDTH), lambda m, x: x + m(seeded((5, 3), "int"))),
    "Flatten": nn.Flatten,
    "Unflatten": lambda: nn.Unflatten(1, (2, WIDTH // 2)),
    "Fold": lambda: Twice(nn.Fold((6, 6), 3, padding=1), lambda m, x: m(nn.functional.unfold(x, 3, padding=1))),
    "Unfold": lambda: Twice(nn.Unfold(3, padding=1), lambda m, x: m(x)),
    "GroupNorm": lambda: nn.GroupNorm(2, WIDTH),
    "GRUCell": lambda: Twice(nn.GRUCell(WIDTH, 6), lambda m, x: m(ROWS(x))),
    "LSTMCell": lambda: Twice(nn.LSTMCell(WIDTH, 6), lambda m, x: m(ROWS(x))[0]),
    "RNNCell": lambda: Twice(nn.RNNCell(WIDTH, 6), lambda m, x: m(ROWS(x))),
    "GRU": lambda: Twice(nn.GRU(WIDTH, 6, 2, bidirectional=True), lambda m, x: m(x)[0]),
    "LSTM": lambda: Twice(nn.LSTM(WIDTH, 6, 2), lambda m, x: m(x)[0]),
    "RNN": lambda: Twice(nn.RNN(WIDTH, 6), lambda m, x: m(x)[0]),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
    "CrossMapLRN2d": lambda: nn.CrossMapLRN2d(3),
    "MaxUnpool1d": lambda: pooled("MaxPool1d", "MaxUnpool1d"),
    "MaxUnpool2d": lambda: pooled("MaxPool2d", "MaxUnpool2d"),
    "MaxUnpool3d": lambda: pooled("MaxPool3d", "MaxUnpool3d"),
    "FractionalMaxPool2d": lambda: Twice(nn.FractionalMaxPool2d(2, output_size=3), lambda m, x: sampled(m, x, 2)),
    "FractionalMaxPool3d": lambda: Twice(nn.FractionalMaxPool3d(2, output_size=2), lambda m, x: sampled(m, x, 3)),
    "LPPool1d": lambda: nn.LPPool1d(2, 2),
    "LPPool2d": lambda: nn.LPPool2d(2, 2),
    "LPPool3d": lambda: nn.LPPool3d(2, 2),
    "MultiheadAttention": lambda: Twice(nn.MultiheadAttention(WIDTH, 2), lambda m, x: m(x, x, x)[0]),
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "PixelUnshuffle": lambda: nn.PixelUnshuffle(2),
    "PReLU": lambda: nn.PReLU(WIDTH),
    "Threshold": lambda: nn.Threshold(0.1, 0.0),
    "Upsample": lambda: nn.Upsample(scale_factor=2),
    "UpsamplingBilinear2d": lambda: nn.UpsamplingBilinear2d(scale_factor=2),
    "UpsamplingNearest2d": lambda: nn.UpsamplingNearest2d(scale_factor=2),
    "Transformer": lambda: Twice(nn.Transformer(WIDTH, 2, 1, 1, 12), lambda m, x: m(x, x)),
    "TransformerDecoder": lambda: Twice(nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 2, 12), 1), lambda m, x: m(x, x)),
    "TransformerDecoderLayer": lambda: Twice(nn.TransformerDecoderLayer(WIDTH, 2, 12, batch_first=True), lambda m, x: m(x, x)),
    "TransformerEncoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True), 2),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True, norm_first=True),
    "Softmax": lambda: nn.Softmax(-1),
    "Softmin": lambda: nn.Softmin(-1),
    "LogSoftmax": lambda: nn.LogSoftmax(-1),
    "Sequential": lambda: nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh()),
    "BCELoss": lambda: loss(nn.BCELoss(), LIKE, torch.sigmoid),
    "DataParallel": lambda: nn.DataParallel(nn.Linear(WIDTH, 6)),
    "CTCLoss": lambda: Twice(nn.CTCLoss(), lambda m, x: x * (1 + m(x.log_softmax(-1), *FIVE))),
    "CrossEntropyLoss": lambda: loss(nn.CrossEntropyLoss(), CLASSES, ROWS),
    "NLLLoss": lambda: loss(nn.NLLLoss(), CLASSES, ROWS),
    "NLLLoss2d": lambda: loss(nn.NLLLoss(), lambda x: torch.zeros(2, 6, 6, dtype=torch.long)),
    "MultiMarginLoss": lambda: loss(nn.MultiMarginLoss(), CLASSES, ROWS),
    "MultiLabelMarginLoss": lambda: loss(nn.MultiLabelMarginLoss(), lambda x: torch.zeros(x.shape, dtype=torch.long), ROWS),
    "CosineEmbeddingLoss": lambda: Twice(nn.CosineEmbeddingLoss(), lambda m, x: x * (1 + m(ROWS(x), ROWS(x).flip(0), SIGNS(ROWS(x))))),
    "MarginRankingLoss": lambda: Twice(nn.MarginRankingLoss(), lambda m, x: x * (1 + m(x, x.flip(0), torch.ones_like(x)))),
    "GaussianNLLLoss": lambda: Twice(nn.GaussianNLLLoss(), lambda m, x: x * (1 + m(x, LIKE(x), LIKE(x)))),
    "TripletMarginLoss": lambda: Twice(nn.TripletMarginLoss(), lambda m, x: x * (1 + m(x, x.flip(0), x.roll(1, 0)))),
    "TripletMarginWithDistanceLoss": lambda: Twice(
        nn.TripletMarginWithDistanceLoss(), lambda m, x: x * (1 + m(x, x.flip(0), x.roll(1, 0)))
    ),
}
RANKS = {  # where the name does not say
    **dict.fromkeys(("ChannelShuffle", "Fold", "Unfold", "GroupNorm", "LocalResponseNorm", "PixelShuffle", "PixelUnshuffle"), "2d"),
    **dict.fromkeys(("Upsample", "CrossMapLRN2d", "Unflatten", "Flatten", "PReLU", "SyncBatchNorm"), "2d"),
}
NO_LAYERS = {
    "Module": "the base of all",
    "Container": "a base without a forward",
    **dict.fromkeys(("ModuleList", "ModuleDict", "ParameterList", "ParameterDict"), "holds others, and has no forward"),
    **dict.fromkeys(("RNNBase", "RNNCellBase"), "a base without a forward"),
    "LinearCrossEntropyLoss": "it takes no features, but a head's weight",
}
ALL = sorted(name for name, value in vars(nn).items() if inspect.isclass(value) and issubclass(value, nn.Module))
SIZES = {"kernel_size": 2, "padding": 1, "output_size": 2, "in_channels": WIDTH, "out_channels": 6, "num_features": WIDTH}
SIZES |= {"in_features": WIDTH, "out_features": 6, "normalized_shape": WIDTH, "value": 1.0}


def build(name: str) -> nn.Module:
    if name in MADE:
        return MADE[name]().double()
    kind = getattr(nn, name)
    needed = [
        p for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty and p.name not in ("self", "args", "kwargs")
    ]
    made: nn.Module = kind(**{p.name: SIZES[p.name] for p in needed})
    return (loss(made, LIKE) if isinstance(made, nn.modules.loss._Loss) else made).double()


BOX = [[0.0, 0.0, 5.0, 5.0]]


def boxes_of(x: Tensor) -> Tensor:
    """Boxes made of features (n, 4)."""
    corners = x.flatten(0, -2)[:, :4].abs()
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:] + 1], 1)


def by_boxes(function: Callable[..., Any], *others: Any) -> tuple[str, Callable[[], Op]]:
    return (
        "0d",
        lambda: lambda x: x * (1 + function(boxes_of(x), *(boxes_of(x).flip(0) if o == "boxes" else o for o in others)).double().mean()),
    )


def pyramid(x: Tensor) -> dict[str, Tensor]:
    return {"0": x, "1": nn.functional.avg_pool2d(x, 2)}


def regions(module: nn.Module) -> nn.Module:
    return Twice(module, lambda m, x: m(x, [torch.tensor(BOX, dtype=x.dtype, device=x.device)] * len(x)))


class Deformable(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.moves, self.conv = nn.Conv2d(WIDTH, 18, 3, padding=1), ops.DeformConv2d(WIDTH, 6, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x, self.moves(x))
        return out


SCORES = torch.linspace(1, 0, 20, dtype=torch.double)
OPS: dict[str, tuple[str, Callable[[], Op]]] = {
    "Conv2dNormActivation": ("2d", lambda: ops.Conv2dNormActivation(WIDTH, 6)),
    "Conv3dNormActivation": ("3d", lambda: ops.Conv3dNormActivation(WIDTH, 6)),
    "DeformConv2d": ("2d", Deformable),
    "deform_conv2d": ("2d", lambda: lambda x: ops.deform_conv2d(x, torch.zeros(2, 2, 6, 6).to(x), torch.ones(6, x.shape[1], 1, 1).to(x))),
    "DropBlock2d": ("2d", lambda: ops.DropBlock2d(0.1, 3)),
    "DropBlock3d": ("3d", lambda: ops.DropBlock3d(0.1, 3)),
    "drop_block2d": ("2d", lambda: lambda x: ops.drop_block2d(x, 0.1, 3, training=False)),
    "drop_block3d": ("3d", lambda: lambda x: ops.drop_block3d(x, 0.1, 3, training=False)),
    "FeaturePyramidNetwork": ("2d", lambda: Twice(ops.FeaturePyramidNetwork([WIDTH, WIDTH], 6), lambda m, x: m(pyramid(x)))),
    "FrozenBatchNorm2d": ("2d", lambda: ops.FrozenBatchNorm2d(WIDTH)),
    "MLP": ("0d", lambda: ops.MLP(WIDTH, [6, 5])),
    "MultiScaleRoIAlign": (
        "2d",
        lambda: Twice(ops.MultiScaleRoIAlign(["0"], 3, 2), lambda m, x: m(pyramid(x), [torch.tensor(BOX).to(x)] * 2, [(6, 6)] * 2)),
    ),
    "PSRoIAlign": ("2d", lambda: regions(ops.PSRoIAlign(2, 1.0, 2))),
    "PSRoIPool": ("2d", lambda: regions(ops.PSRoIPool(2, 1.0))),
    "RoIAlign": ("2d", lambda: regions(ops.RoIAlign(3, 1.0, 2))),
    "RoIPool": ("2d", lambda: regions(ops.RoIPool(3, 1.0))),
    **{
        name: (
            "2d",
            lambda name=name: (
                regions(Twice(nn.Identity(), lambda m, x: x)) and (lambda x: getattr(ops, name)(x, [torch.tensor(BOX).to(x)] * 2, 2))
            ),
        )
        for name in ("ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool")
    },
    "Permute": ("2d", lambda: ops.Permute([0, 1, 3, 2])),
    "SqueezeExcitation": ("2d", lambda: ops.SqueezeExcitation(WIDTH, 4)),
    "StochasticDepth": ("2d", lambda: ops.StochasticDepth(0.1, "row")),
    "stochastic_depth": ("2d", lambda: lambda x: ops.stochastic_depth(x, 0.1, "row", training=False)),
    "sigmoid_focal_loss": ("0d", lambda: lambda x: x + ops.sigmoid_focal_loss(x, torch.full_like(x, 0.3))),
    "box_area": by_boxes(ops.box_area),
    "box_convert": by_boxes(ops.box_convert, "xyxy", "cxcywh"),
    "clip_boxes_to_image": by_boxes(ops.clip_boxes_to_image, (6, 6)),
    "remove_small_boxes": by_boxes(ops.remove_small_boxes, 0.5),
    "nms": by_boxes(ops.nms, SCORES, 0.5),
    "batched_nms": by_boxes(ops.batched_nms, SCORES, torch.zeros(20, dtype=torch.long), 0.5),
    "masks_to_boxes": ("0d", lambda: lambda x: x * (1 + ops.masks_to_boxes(x > -9).to(x).mean())),
    **{name: by_boxes(getattr(ops, name), "boxes") for name in ops.__all__ if "box_iou" in name},
}
ALL_OPS = sorted(ops.__all__)


def test_the_walk_takes_in_all() -> None:
    assert len(ALL) > 150 and {"Conv2d", "LSTM", "MSELoss"} <= set(ALL)
    assert set(OPS) == set(ALL_OPS), "an operation of torchvision's is new, or gone: say how to call it"
    assert not set(MADE) - set(ALL) and not set(NO_LAYERS) & set(MADE)


LOOKS = "looks at all of them at once"
LOSSES = {
    **dict.fromkeys(("HingeEmbeddingLoss", "KLDivLoss", "L1Loss", "MarginRankingLoss", "PoissonNLLLoss"), "aten.mean"),
    **dict.fromkeys(("TripletMarginLoss", "TripletMarginWithDistanceLoss", "PairwiseDistance"), "aten.norm"),
    **{"GaussianNLLLoss": "aten.any", "HuberLoss": "aten.huber_loss", "MSELoss": "aten.mse_loss", "MultiLabelSoftMarginLoss": "aten.sum"},
    **{"SmoothL1Loss": "aten.smooth_l1_loss", "SoftMarginLoss": "aten.soft_margin_loss"},
}
STAYS = {  # why the layer in front of it stays; those that are not named here let it be cut
    **dict.fromkeys(("Softmax", "Softmin", "LogSoftmax", "Softmax2d", "CTCLoss", "CrossEntropyLoss"), f"softmax {LOOKS}"),
    **dict.fromkeys(("BCELoss", "BCEWithLogitsLoss"), LOOKS),
    **{name: f"{operation} {LOOKS}" for name, operation in LOSSES.items()},
    **dict.fromkeys(("MultiLabelMarginLoss", "MultiMarginLoss", "NLLLoss", "NLLLoss2d"), "loss"),
    "CrossMapLRN2d": "it reaches aten.resize_as_, which cannot be followed",
    "LocalResponseNorm": "it is taken for pixels by aten.avg_pool3d",
    "Unflatten": "sizes that are fixed in the network's code",
}
STAYS_OPS = {
    **dict.fromkeys((name for name in ALL_OPS if "box" in name or "nms" in name), "a slice takes a fixed part of it"),
    **dict.fromkeys(("DropBlock2d", "DropBlock3d"), f"aten.sum {LOOKS}"),  # of the noise, in training
    "masks_to_boxes": f"aten.any {LOOKS}",
}


@pytest.mark.filterwarnings("ignore:(reduction. 'mean' divides|enable_nested_tensor is True):UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in NO_LAYERS])
def test_modules_of_torch(name: str) -> None:
    if name.startswith("Lazy"):
        with pytest.raises(InvalidModel, match="has no weights yet; run the network once"):
            lt.plan(nn.Sequential(build(name)), torch.randn(SHAPES[by_rank(name)]))
        return
    found = outcome(build(name), RANKS.get(name, by_rank(name)))
    assert STAYS.get(name, "") in found and bool(found) == (name in STAYS), found


@pytest.mark.parametrize("name", ALL_OPS)
def test_operations_of_torchvision(name: str) -> None:
    rank, made = OPS[name]
    op = made()
    found = outcome(op.double() if isinstance(op, nn.Module) else op, rank)
    assert STAYS_OPS.get(name, "") in found and bool(found) == (name in STAYS_OPS), found


def test_bilinear_forms_are_counted() -> None:
    model = Between(build("Bilinear"), "0d")
    rows = 5
    assert lt.size(model, model.x).macs == rows * (3 * WIDTH + 6 * WIDTH * WIDTH + 6 * 4)
    assert lt.size(nn.Bilinear(5, 6, 7), (torch.randn(2, 5), torch.randn(2, 6))).macs == 5 * 6 * 7


class Followed(nn.Module):
    """A recurrent layer between convolutions and a head."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.r = nn.Conv1d(3, WIDTH, 3), kind(WIDTH, 6, **options)
        width = (options.get("proj_size") or 6) * (2 if options.get("bidirectional") else 1)
        self.f, self.last = nn.Linear(width, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        made, states = self.r(self.a(x).sigmoid().permute(2, 0, 1))
        out: Tensor = self.last(self.f(made[-1]).relu()) + sum(s.mean() for s in tree_leaves(states))
        return out


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}, {"batch_first": False, "proj_size": 3}])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_feeds_and_what_follows_a_recurrent_layer_is_cut(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    if "proj_size" in options and kind is not nn.LSTM:
        options = {"num_layers": 3}
    model, x = Followed(kind, **options).eval().double(), torch.randn(2, 3, 9, dtype=torch.double)
    plan = lt.plan(model, x, 0.5, "local")
    small = lt.cut(model, plan)
    torch.testing.assert_close(small(x), lt.mask(model, plan)(x), rtol=1e-9, atol=1e-9)
    assert (small.a.out_channels, small.r.input_size, small.r.hidden_size, small.f.out_features) == (4, 4, 6, 5)
    assert "hidden state of a recurrent layer" in plan.frozen["r"] and model.r.input_size == WIDTH
    small.train()(x).sum().backward()
    assert {g.members for g in lt.plan(small, x, 0.5, "local").groups} == {g.members for g in plan.remaining()}


class Single(nn.Module):
    """A convolution by bare parameters, of which the code takes a single filter by its number."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * (2 / self.weight[0].numel()) ** 0.5, padding=1)


def test_layers_that_stay_are_named() -> None:
    """Whole layers without filters that are listed for torch's modules, each with its reason; what can be cut is not listed."""
    model = nn.Sequential(Single(3, 8), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 16, 2, 2, groups=2))
    model.extend([nn.ReLU(), nn.Conv2d(16, 6, 1), nn.Conv2d(6, 4, 1)])
    frozen = lt.plan(model, torch.randn(2, 3, 8, 8), 0.5).frozen
    assert frozen.keys() == {"0", "2", "4", "7"}
    assert "a single one of them is taken" in frozen["0"] and "grouped transposed" in frozen["2"] and "grouped transposed" in frozen["4"]
    with pytest.raises(InvalidModel, match="0: a single one of them is taken by its number"):
        lt.plan(nn.Sequential(Single(3, 8), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.randn(2, 3, 8, 8))
    head = Twice(
        nn.ModuleDict({"used": nn.Conv2d(3, 8, 1), "last": nn.Conv2d(8, 4, 1), "other": nn.Conv2d(3, 8, 1)}),
        lambda m, x: m["last"](m["used"](x)),
    )
    assert "does not run" in lt.plan(head, torch.randn(2, 3, 8, 8)).frozen["module.other"]


LOST = "it meets channels that cannot be followed"
INPUT = "it reads the network's input"
REASONS: dict[str, tuple[Callable[[nn.ModuleDict, Tensor], Tensor], dict[str, str]]] = {
    "computed weights": (
        lambda m, x: nn.functional.conv2d(m["a"](x), torch.fake_quantize_per_tensor_affine(m["b"].weight, 0.1, 0, -128, 127)),
        {"a": LOST},
    ),
    "a norm behind what cannot be followed": (
        lambda m, x: m["b"](m["norm"](torch.fake_quantize_per_tensor_affine(m["a"](x), 0.1, 0, -128, 127))),
        {"norm": LOST},
    ),
    "a norm of the images": (lambda m, x: m["b"](m["a"](m["images"](x * 2))), {"images": INPUT}),
}


@pytest.mark.parametrize("case", REASONS)
def test_only_what_reads_the_networks_input_is_said_to(case: str) -> None:
    forward, expected = REASONS[case]
    layers = {"images": nn.BatchNorm2d(3), "a": nn.Conv2d(3, 8, 1), "norm": nn.BatchNorm2d(8), "b": nn.Conv2d(8, 8, 1)}
    model = Twice(nn.ModuleDict({**layers, "c": nn.Conv2d(8, 6, 1), "d": nn.Conv2d(6, 4, 1)}), lambda m, x: m["d"](m["c"](forward(m, x))))
    frozen = {name.removeprefix("module."): reason for name, reason in lt.plan(model, torch.randn(2, 3, 8, 8)).frozen.items()}
    assert {name: frozen.get(name) for name in expected} == expected
    assert INPUT not in {reason for name, reason in frozen.items() if name != "images"}


PIXELWISE: dict[str, Op] = {
    "circular": lambda x: nn.functional.pad(x, (1,) * 4, mode="circular"),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "rotated by half": lambda x: torch.rot90(x, 2, (-1, -2)),
    "sort": lambda x: x.sort(-1)[0],
    "topk": lambda x: x.topk(2, -1)[0],
    "median": lambda x: x.median(-1, keepdim=True)[0],
    "kthvalue": lambda x: x.kthvalue(2, 2, keepdim=True)[0],
    "cummax": lambda x: x.cummax(2)[0],
    "gather": lambda x: x.gather(3, x.argsort(3)),
    "fft": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=x.shape[-2:]),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(torch.stack([x, x * 2], -1)) ** 2).sum(-1),
    "index_add": lambda x: x.index_add(0, torch.tensor([1]), x[:1]),
    "grid_sample": lambda x: nn.functional.grid_sample(x, torch.zeros(len(x), 3, 3, 2).to(x), align_corners=False),
    "noise made from nothing": lambda x: x * torch.ones(x.shape[0], x.shape[1], 1, 1).to(x) + x.new_zeros(x.size()),
}


@pytest.mark.parametrize("kind", PIXELWISE)
def test_operations_that_work_channel_by_channel(kind: str) -> None:
    assert outcome(PIXELWISE[kind], "2d") == ""


class BareWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.rest = nn.ParameterList([torch.randn(6, 8, 1, 1), torch.randn(4, 6, 1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for weight in self.rest:
            x = nn.functional.conv2d(x, weight)
        return x


def test_a_bare_weight_that_makes_the_output_is_named_among_the_frozen() -> None:
    plan = lt.plan(BareWeights(), torch.randn(2, 3, 8, 8), 0.5, "local")
    assert plan.widths == {"first": (8, 4), "rest.0.0": (6, 3), "rest.1.0": (4, 4)}
    assert plan.frozen == {"rest.1.0": "it produces the network's output"}
