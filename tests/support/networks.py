"""Small networks, one for every way in which channels travel. All take images (N, 3, 16, 16) and give four logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt


class Net(nn.Module):
    """A network written as a function of its layers: `run(self, x)`; whatever has four dimensions at the end is averaged over pixels."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor], width: int, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(self, x)
        out: Tensor = self.head(x.mean((2, 3)) if x.dim() == 4 else x)
        return out


def conv(inputs: int, outputs: int, kernel: int = 1, **more: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


def cascaded_concat() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        for name in ("a", "b", "c"):
            x = torch.cat([x, F.relu(getattr(net, name)(x))], 1)
        return F.relu(net.d(x))

    return Net(run, 30, a=conv(3, 5), b=conv(8, 10), c=conv(18, 15), d=conv(33, 30))


def split() -> nn.Module:
    """Both halves of a chunk keep the same width."""

    def run(net: Net, x: Tensor) -> Tensor:
        a, b = net.stem(x).chunk(2, dim=1)
        return torch.cat([net.left(a), net.right(b).sigmoid()], 1)

    return Net(run, 14, stem=conv(3, 12, 3), left=conv(6, 5), right=conv(6, 9))


def concat_split() -> nn.Module:
    """Two branches joined, normalised together, and taken apart at their seam by the width of the first."""

    def run(net: Net, x: Tensor) -> Tensor:
        a, b = net.a(x), net.b(x)
        joined = net.bn(torch.cat([a, b], 1))
        return net.c(joined[:, : a.shape[1]]) + net.d(joined[:, a.shape[1] :])

    return Net(run, 8, a=conv(3, 6), b=conv(3, 10), bn=nn.BatchNorm2d(16), c=conv(6, 8), d=conv(10, 8))


class AttributeSplit(nn.Module):
    """Parts whose sizes are attributes, one of them a tuple: they are rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.first = (4, 8), 6
        self.stem, self.a, self.b = conv(3, 12), conv(4, 12), conv(8, 12)
        self.c, self.d, self.head = conv(6, 5), conv(6, 5), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).split(self.parts, dim=1)
        x = self.a(a).relu() + self.b(b)
        x = torch.cat([self.c(x[:, : self.first]), self.d(x[:, self.first :])], 1)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def reshape_into_conv() -> nn.Module:
    """A linear layer makes pixels of channels."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.squeeze(x.mean((2, 3))))
        return net.conv(net.grow(x).view(x.shape[0], -1, 4, 4))

    return Net(run, 6, squeeze=nn.Linear(3, 9), grow=nn.Linear(9, 8 * 16), conv=conv(8, 6, 3))


def linear_into_transposed() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        x = net.grow(x.flatten(1)).relu().unflatten(1, (-1, 2, 2))
        return net.last(net.up(x))

    return Net(run, 5, grow=nn.Linear(768, 7 * 4), up=nn.ConvTranspose2d(7, 6, 2, stride=2), last=conv(6, 5))


def shared_layer() -> nn.Module:
    """One layer that runs twice, and two layers that share one weight."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = F.relu(net.twice(F.relu(net.twice(x))))
        return net.b(F.relu(net.a(x)))

    net = Net(run, 8, stem=conv(3, 8), twice=conv(8, 8, 3), a=conv(8, 8), b=conv(8, 8))
    net.b.weight = net.a.weight
    return net


def grouped() -> nn.Module:
    """Groups of several channels: whole ones go."""

    def run(net: Net, x: Tensor) -> Tensor:
        return net.out(F.relu(net.bn(net.grouped(F.relu(net.expand(x))))))

    return Net(run, 6, expand=conv(3, 12), grouped=conv(12, 24, 3, groups=4), bn=nn.BatchNorm2d(24), out=conv(24, 6))


def single_channel() -> nn.Module:
    """A map of one channel gates many, and one is made by a convolution to one output."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.stem(x))
        x = x * net.gate(x).sigmoid()
        return net.back(net.one(x)) + net.skip(x)

    return Net(run, 5, stem=conv(3, 8, 3), gate=conv(8, 1), one=conv(8, 1, 3), back=conv(1, 5), skip=conv(8, 5))


class Parameters(nn.Module):
    """Bare parameters and buffers scale and shift channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8, 3), conv(8, 10), nn.Linear(10, 4)
        self.gamma, self.beta = nn.Parameter(torch.rand(8, 1, 1) + 0.5), nn.Parameter(torch.randn(1, 10, 1, 1))
        self.register_buffer("mean", torch.randn(10))
        self.matrix = nn.Parameter(torch.randn(10, 10) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.stem(x) * self.gamma)) + self.beta
        out: Tensor = self.head((x.mean((2, 3)) - self.mean) @ self.matrix)
        return out


def shuffle() -> nn.Module:
    """Channel shuffle between grouped halves, as in ShuffleNetV2."""

    def run(net: Net, x: Tensor) -> Tensor:
        x1, x2 = net.stem(x).chunk(2, dim=1)
        x = torch.cat([x1, F.relu(net.branch(x2))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)
        y1, y2 = x.chunk(2, dim=1)
        return net.out(torch.cat([y1, net.second(y2)], 1))

    return Net(run, 6, stem=conv(3, 12), branch=conv(6, 6), second=conv(6, 6), out=conv(12, 6))


def squeeze_excite() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        x = F.silu(net.stem(x))
        b, c = x.shape[:2]
        gate = net.up(F.relu(net.down(F.adaptive_avg_pool2d(x, 1).view(b, c)))).sigmoid().view(b, c, 1, 1)
        return net.out(x * gate)

    return Net(run, 6, stem=conv(3, 12, 3), down=nn.Linear(12, 5), up=nn.Linear(5, 12), out=conv(12, 6))


def norms() -> nn.Module:
    """Every norm there is, each after a convolution of its own."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.instance(net.a(x)))
        x = F.relu(net.group(net.b(x)))
        x = F.gelu(net.one_group(net.c(x)))
        x = net.layer(net.d(x).permute(0, 2, 3, 1))
        return net.rms(net.e(x)).permute(0, 3, 1, 2)

    return Net(
        run,
        8,
        a=conv(3, 6),
        instance=nn.InstanceNorm2d(6, affine=True),
        b=conv(6, 12, 3),
        group=nn.GroupNorm(4, 12),
        c=conv(12, 10),
        one_group=nn.GroupNorm(1, 10),
        d=conv(10, 9),
        layer=nn.LayerNorm(9),
        e=nn.Linear(9, 8),
        rms=nn.RMSNorm(8),
    )


class Vision(nn.Module):
    """Patches, a class token, positions, torch's own attention, layer norms and an MLP: a vision transformer of one block."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.hidden = width
        self.patches, self.token = nn.Conv2d(3, width, 4, stride=4), nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.ln1, self.ln2, self.ln3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross = nn.MultiheadAttention(width, heads, batch_first=False)
        self.mlp = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.patches(x).reshape(n, self.hidden, 16).transpose(1, 2)
        x = torch.cat([self.token.expand(n, -1, -1), x], 1) + self.positions
        y = self.ln1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        first = x[:, :1].transpose(0, 1)
        first = first + self.cross(first, self.ln3(x).transpose(0, 1), x.transpose(0, 1))[0]
        out: Tensor = self.head(self.mlp(self.ln2(first))[0])
        return out


class Heads(nn.Module):
    """Attention written out, whose output is shaped by the width of its input: heads and that width keep their ratio."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = 4, 6**-0.5
        self.stem, self.qkv, self.proj = conv(3, 24, 3), nn.Linear(24, 72), nn.Linear(24, 24)
        self.bias = nn.Parameter(torch.randn(4, 64, 64))
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.stem(x), 2).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attention = ((q * self.scale) @ k.transpose(-2, -1) + self.bias).softmax(-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))
        out: Tensor = self.head(x.mean(1))
        return out


def gated() -> nn.Module:
    """A gated linear unit: both halves go together."""

    def run(net: Net, x: Tensor) -> Tensor:
        return net.out(F.glu(net.stem(x), dim=1))

    return Net(run, 6, stem=conv(3, 16, 3), out=conv(8, 6))


def pixel_shuffle() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.out(F.pixel_shuffle(net.stem(x), 2))

    return Net(run, 6, stem=conv(3, 20), out=conv(5, 6, 3))


class Auxiliary(nn.Module):
    """A second head that runs in training alone: it is cut with the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.aux, self.body, self.head = conv(3, 8), conv(8, 4), conv(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        out: Tensor = self.head(self.body(x).mean((2, 3)))
        return out + self.aux(x).mean((2, 3)) if self.training else out


MICRO: dict[str, Callable[[], nn.Module]] = {
    "cascaded_concat": cascaded_concat,
    "split": split,
    "concat_split": concat_split,
    "attribute_split": AttributeSplit,
    "reshape_into_conv": reshape_into_conv,
    "linear_into_transposed": linear_into_transposed,
    "shared_layer": shared_layer,
    "grouped": grouped,
    "single_channel": single_channel,
    "parameters": Parameters,
    "shuffle": shuffle,
    "squeeze_excite": squeeze_excite,
    "norms": norms,
    "vision": Vision,
    "heads": Heads,
    "gated": gated,
    "pixel_shuffle": pixel_shuffle,
    "auxiliary": Auxiliary,
}


class Branches(nn.Module):
    """A concatenation of branches of different widths, behind which the channels are shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 9, 1)
        self.bn = nn.BatchNorm2d(14)
        self.c = nn.Conv2d(14, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(torch.cat([self.a(x), self.b(x)], 1)))
        out: Tensor = self.head(self.c(y).sigmoid().mean((2, 3)))
        return out


class Depthwise(nn.Module):
    """An inverted residual: expand, depthwise, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.bn1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depthwise, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.project = nn.Conv2d(24, 8, 1)
        self.act = nn.PReLU(24)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.act(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        out: Tensor = self.head((x + self.project(y)).mean((2, 3)))
        return out


class Transposed(nn.Module):
    """A small encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 7, 3, stride=2, padding=1), nn.ConvTranspose2d(7, 5, 2, stride=2)
        self.norm = nn.InstanceNorm2d(5, affine=True)
        self.last = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(self.up(F.gelu(self.down(x)))).relu()).mean((2, 3))
        return out


def flattening() -> nn.Module:
    """A flatten that turns each channel into 16 inputs of a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 20), nn.Sigmoid(), nn.Linear(20, 4)
    )


NETWORKS = {
    **{
        name: lambda name=name: lt.build_model(name, classes=4, in_channels=3, image_size=16)
        for name in ("lenet5", "lenet300", "conv2", "resnet20")
    },
    "branches": Branches,
    "depthwise": Depthwise,
    "transposed": Transposed,
    "flattening": flattening,
    **MICRO,
}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` in eval mode with random batch-norm statistics and parameters: nothing is zero or one by luck."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for value, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5), (module.running_var, 0.5)):
                    if value is not None:
                        value.copy_(torch.rand(value.shape, generator=generator) + low)
    return model.eval()
