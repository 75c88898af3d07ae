"""`lt.repair`: a cut network computes what the dense one does, as far as its widths allow, by least squares on unlabelled inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from support.networks import Net, conv
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.errors import InvalidData, InvalidModel, InvalidPlan, InvalidSetting
from ltcompile.graph import trace
from ltcompile.graph.branches import branches
from ltcompile.graph.inputs import Arguments
from ltcompile.recovery import RepairReport
from ltcompile.recovery._calls import Call
from ltcompile.recovery._inputs import Chunk
from ltcompile.recovery._report import best_of
from ltcompile.recovery._solve import RIDGES, Moments, Rows, assign, matrix, solve

X = torch.randn(2, 3, 16, 16)


def images(count: int = 96, seed: int = 0) -> Tensor:
    """Smooth images, so that channels of a network are correlated."""
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, 16, mode="bilinear")


def residual() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.bn(net.stem(x)))
        x = F.relu(net.bn2(net.b(F.relu(net.bn1(net.a(x))))) + x)
        return F.relu(net.bn3(net.c(x)) + net.bn4(net.short(x)))

    norms = {name: nn.BatchNorm2d(width) for name, width in {"bn": 12, "bn1": 16, "bn2": 12, "bn3": 14, "bn4": 14}.items()}
    return Net(run, 14, stem=conv(3, 12, 3), a=conv(12, 16, 3), b=conv(16, 12, 3), c=conv(12, 14, 3), short=conv(12, 14), **norms)


def grouped() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.bn(net.stem(x)))
        return F.relu(net.point(F.relu(net.depth(x)))) + net.pairs(net.point2(x))

    depth, pairs = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(16, 16, 3, padding=1, groups=4)
    return Net(run, 16, stem=conv(3, 12, 3), bn=nn.BatchNorm2d(12), depth=depth, point=conv(12, 16), point2=conv(12, 16), pairs=pairs)


def transposed() -> nn.Module:
    def run(net: Net, x: Tensor) -> Tensor:
        return F.relu(net.up(F.relu(net.down(x))))

    return Net(run, 10, down=conv(3, 12, 3, stride=2), up=nn.ConvTranspose2d(12, 10, 3, stride=2, padding=1, output_padding=1))


def in_place() -> nn.Module:
    """Sums and activations are written over what they read, and nothing is bound again."""

    def run(net: Net, x: Tensor) -> Tensor:
        x = F.relu_(net.bn(net.stem(x)))
        y = net.b(F.relu_(net.a(x)))
        y.add_(x)
        z = net.c(F.relu_(y))
        z += y
        return z

    layers = {"a": conv(12, 16, 3), "b": conv(16, 12, 3), "c": conv(12, 12, 3)}
    return Net(run, 12, stem=conv(3, 12, 3), bn=nn.BatchNorm2d(12), **layers)


class Transformer(nn.Module):
    """Attention, and two linear layers, both with a residual sum; images are rows of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(48, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm, self.up, self.down, self.head = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(F.unfold(x, 4, stride=4).transpose(1, 2))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        out: Tensor = self.head(x.mean(1))
        return out


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose batch norms have statistics of images, and scales and shifts that are not 1 and 0."""
    torch.manual_seed(0)
    net = build().train()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.3, 0.6)
            m.momentum = None
    with torch.no_grad():
        net(images())
    return net.eval()


def error(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((one.eval()(x) - other.eval()(x)).norm() / (other(x) - other(x).mean(0)).norm())


NETWORKS = [residual, grouped, transposed, Transformer, in_place]


@pytest.mark.parametrize("build", NETWORKS)
def test_a_repaired_network_is_nearer_to_the_dense_one_on_other_images(build: Callable[[], nn.Module]) -> None:
    dense = seeded(build)
    plan = lt.plan(dense, X, ratio=0.4)
    small, reports = lt.cut(dense, plan).eval(), list[RepairReport]()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    repaired = lt.repair(small, plan, dense, images(60).split(20), on_report=reports.append)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items()), "the caller's network stays as it is"
    assert error(repaired, dense, images(32, 1)) < 0.75 * error(small, dense, images(32, 1))
    (report,) = reports
    assert report.repaired <= report.recalibrated and set(report.layers) == {n for n, p in dense.named_parameters() if p.dim() > 1}
    assert all(layer.after <= layer.before and not layer.reason for layer in report.layers.values())
    again = lt.repair(small, plan, dense, images(60).split(20))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in repaired.state_dict().items()), "it is deterministic"


@pytest.mark.parametrize("build", [residual, Transformer, in_place])
def test_a_network_without_branches_is_nearer_to_the_dense_one(build: Callable[[], nn.Module]) -> None:
    dense = seeded(build)
    found, _ = branches(dense, X)
    narrow = lt.plan(dense, X, ratio=0.3)
    for plan in [lt.PruningPlan(trace(dense, X), removed_branches=found), lt.PruningPlan(narrow.groups, narrow.kept, found[:1])]:
        small, reports = lt.cut(dense, plan).eval(), list[RepairReport]()
        repaired = lt.repair(small, plan, dense, images(120).split(20), on_report=reports.append)
        assert error(repaired, dense, images(32, 1)) < 0.8 * error(small, dense, images(32, 1))
        assert set(reports[0].layers) == {name for name, p in small.named_parameters() if p.dim() > 1}


class Added(nn.Module):
    """What two branches add without a ReLU, the stem could give as well, where nothing else reads what it gives."""

    def __init__(self, forked: bool) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = conv(3, 8, 3), conv(8, 8), conv(8, 8), nn.Linear(16, 4)
        self.forked = forked

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.stem(x)
        x = x + self.first(x)
        x = x + self.second(x)
        out: Tensor = self.head(torch.cat([F.relu(x), F.relu(y if self.forked else x)], 1).mean((2, 3)))
        return out


@pytest.mark.parametrize("forked", [False, True])
def test_what_goes_on_to_the_sum_of_a_removed_branch_makes_up_for_it(forked: bool) -> None:
    """Unless something else reads it too."""
    dense, reports = seeded(lambda: Added(forked)), list[RepairReport]()
    found, _ = branches(dense, X)
    plan = lt.PruningPlan(trace(dense, X), removed_branches=found)
    assert len(found) == 2
    small = lt.cut(dense, plan)
    repaired = lt.repair(small, plan, dense, images().split(32), on_report=reports.append)
    assert error(small, dense, images(32, 1)) > 0.1
    stem = reports[0].layers["stem.weight"]
    if forked:
        assert stem.ridge is None and stem.before < 1e-6
    else:
        assert stem.before > 0.1 and stem.after < 1e-3 and error(repaired, dense, images(32, 1)) < 1e-3


@pytest.mark.parametrize("build", NETWORKS)
def test_where_nothing_is_cut_nothing_changes(build: Callable[[], nn.Module]) -> None:
    dense = seeded(build)
    plan = lt.PruningPlan(trace(dense, X))
    repaired = lt.repair(lt.cut(dense, plan), plan, dense, [images(24)])
    assert all(torch.equal(repaired.state_dict()[name], value) for name, value in dense.state_dict().items())


def test_channels_that_are_combinations_of_others_are_made_up_for() -> None:
    """The stem has 16 outputs of rank 8, and what is cut of them costs nothing."""
    torch.manual_seed(0)
    stem, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 6, 3, padding=1)
    with torch.no_grad():
        mixing = torch.randn(8, 8)
        stem.weight[8:] = torch.einsum("oi,i...->o...", mixing, stem.weight[:8])
        stem.bias[8:] = mixing @ stem.bias[:8]
    dense = nn.Sequential(stem, second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    groups = trace(dense, X)
    plan = lt.PruningPlan(groups, {groups[0].name: tuple(range(8))})
    small = lt.cut(dense, plan)
    repaired = lt.repair(small, plan, dense, images().split(32))
    assert error(small, dense, images(32, 1)) > 0.1 and error(repaired, dense, images(32, 1)) < 1e-5


@pytest.mark.slow
def test_a_norm_starts_from_the_same_function_in_training_mode() -> None:
    dense = seeded(residual)
    plan = lt.plan(dense, X, ratio=0.4)
    repaired = lt.repair(lt.cut(dense, plan), plan, dense, [images(200)])
    with torch.no_grad():
        evaluated = repaired.eval()(images(200))
        apart = (repaired.train()(images(200)) - evaluated).std() / evaluated.std()
    assert float(apart) < 0.05


class Shared(nn.Module):
    """One convolution in two places, which no single least-squares problem is about."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = conv(3, 8, 3), conv(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.twice(F.relu(self.twice(F.relu(self.stem(x)))))).mean((2, 3)))
        return out


def test_what_cannot_be_solved_is_left_alone_with_a_reason() -> None:
    dense, reports = seeded(Shared), list[RepairReport]()
    groups = trace(dense, X)
    plan = lt.PruningPlan(groups, {groups[0].name: (0, 1, 2, 3, 4)})
    small = lt.cut(dense, plan)
    repaired = lt.repair(small, plan, dense, [images()], on_report=reports.append)
    assert "2 times" in reports[0].layers["twice.weight"].reason and torch.equal(repaired.twice.weight, small.twice.weight)
    assert reports[0].repaired < reports[0].as_cut


def test_the_dense_network_may_hold_less_in_memory_than_all_inputs() -> None:
    """With little memory, the first layers see fewer inputs; all others see all."""
    dense = seeded(residual)
    plan = lt.plan(dense, X, ratio=0.4)
    small = lt.cut(dense, plan)
    repaired = lt.repair(small, plan, dense, images(200).split(20), memory=1)
    assert error(repaired, dense, images(32, 1)) < 0.75 * error(small, dense, images(32, 1))


def test_where_the_cut_or_batch_norm_alone_is_nearer_that_network_is_returned() -> None:
    dense, reports = seeded(residual), list[RepairReport]()
    plan = lt.plan(dense, X, ratio=0.4)
    small, spoiled = lt.cut(dense, plan), lt.cut(dense, plan)
    spoiled.head.weight.data.fill_(9.0)
    with torch.no_grad():
        chunks = [Chunk(Arguments.of(images(20, seed)), seed == 1, dense(images(20, seed))) for seed in (0, 1)]
    found = best_of(small, spoiled, chunks, reports.append, {})
    assert torch.equal(found.head.weight, small.head.weight)
    assert reports[0].repaired == min(reports[0].recalibrated, reports[0].as_cut) == pytest.approx(error(found, dense, images(20, 1)))


def batches(*values: float) -> Iterator[Tensor]:
    return (torch.full((4, 3, 16, 16), value) for value in values)


def test_refusals() -> None:
    dense = seeded(residual)
    plan = lt.plan(dense, X, ratio=0.4)
    small = lt.cut(dense, plan)
    with pytest.raises(InvalidData, match="not finite"):
        lt.repair(small, plan, dense, batches(0.0, float("nan")))
    with pytest.raises(InvalidSetting, match="passes=-1"):
        lt.repair(small, plan, dense, [images(8)], passes=-1)
    with pytest.raises(InvalidData, match="two at least"):
        lt.repair(small, plan, dense, [])
    with pytest.raises(InvalidData, match="two at least"):
        lt.repair(small, plan, dense, [images(1)])
    with pytest.raises(InvalidData, match="constant"):
        lt.repair(small, plan, dense, batches(1.0, 1.0))
    with pytest.raises(InvalidData, match="inputs give picture, and the network takes"):
        lt.repair(small, plan, dense, [{"picture": images(8)}])
    with pytest.raises(InvalidPlan, match="outputs"):
        lt.repair(dense, plan, dense, [images(8)])
    with pytest.raises(InvalidModel, match="does not run"):
        lt.repair(small, plan, dense, [torch.randn(8, 5, 16, 16)])
    with pytest.raises(InvalidModel, match="another order"):
        lt.repair(seeded(grouped), plan, dense, [images(8)])


CALLS = [
    (torch.conv2d, (2, 6, 9, 8), (4, 6, 3, 3), {"stride": 2, "padding": 1, "dilation": 2}),
    (torch.conv2d, (2, 6, 9, 8), (4, 3, 3, 5), {"padding": "same", "groups": 2}),
    (torch.conv1d, (2, 6, 9), (6, 1, 3), {"groups": 6}),
    (torch.conv3d, (2, 3, 5, 4, 6), (4, 3, 2, 1, 3), {"padding": (0, 1, 2)}),
    (torch.conv_transpose2d, (2, 6, 5, 4), (6, 4, 3, 2), {"stride": (2, 3), "padding": 1, "output_padding": (1, 0), "dilation": 2}),
    (torch.conv_transpose1d, (2, 6, 9), (6, 2, 4), {"stride": 2, "groups": 3}),
    (F.linear, (2, 7, 5), (3, 5), {}),
]


@pytest.mark.parametrize(("func", "shape", "weights", "options"), CALLS)
def test_rows_times_matrix_are_the_products_outputs(
    func: Callable[..., Tensor], shape: tuple[int, ...], weights: tuple[int, ...], options: dict[str, object]
) -> None:
    torch.manual_seed(0)
    call = Call(func, (torch.randn(shape), torch.randn(weights)), options)
    out = call.result()
    rows = Rows(call, out, 25, torch.Generator().manual_seed(0))
    multiplied = (rows.of_input(call) @ matrix(call)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(multiplied, rows.of_output(out), rtol=1e-4, atol=1e-4)
    before = call.product["weight"].clone()
    assign(call, matrix(call))
    assert torch.equal(call.product["weight"], before)


def test_the_ridge_is_that_of_the_least_error_on_held_out_rows() -> None:
    """Against ridge regression on centred rows, for each strength."""
    torch.manual_seed(0)
    fit_x, held_x = (torch.randn(2, 40, 30, dtype=torch.float64) + 1 for _ in range(2))
    weights = torch.randn(2, 30, 3, dtype=torch.float64)
    fit_y, held_y = (part @ weights + 4 * torch.randn(2, 40, 3, dtype=torch.float64) for part in (fit_x, held_x))
    found = solve(Moments.of(fit_x, fit_y), Moments.of(held_x, held_y), True)
    errors = {}
    for ridge in RIDGES:
        centred = fit_x - fit_x.mean(1, keepdim=True)
        gram = centred.transpose(1, 2) @ centred / 40
        size = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        change = torch.linalg.solve(gram + ridge * size * torch.eye(30), centred.transpose(1, 2) @ fit_y / 40)
        missing = held_y - held_x @ change - (fit_y - fit_x @ change).mean(1, keepdim=True)
        errors[ridge] = float(missing.square().sum((0, 2)).mean())
    assert found.ridge == min(errors, key=lambda ridge: errors[ridge])
    assert found.after == pytest.approx(min(errors.values()))


@pytest.mark.parametrize(
    "build", [Transformer, pytest.param(residual, marks=pytest.mark.slow), pytest.param(grouped, marks=pytest.mark.slow)]
)
def test_refinement_comes_nearer_to_the_dense_network_on_other_images(build: Callable[[], nn.Module]) -> None:
    dense = seeded(build)
    plan = lt.plan(dense, X, ratio=0.4)
    small = lt.cut(dense, plan).eval()
    solved, refined = (lt.repair(small, plan, dense, images(200).split(20), passes=passes) for passes in (0, 6))
    assert error(refined, dense, images(64, 1)) < error(solved, dense, images(64, 1))
    assert not any(weight.grad is not None for weight in [*small.parameters(), *dense.parameters(), *refined.parameters()])


def test_refinement_makes_up_for_a_removed_branch_and_needs_little_memory() -> None:
    dense = seeded(residual)
    found, _ = branches(dense, X)
    plan = lt.PruningPlan(trace(dense, X), removed_branches=found)
    small = lt.cut(dense, plan).eval()
    solved, refined = (lt.repair(small, plan, dense, images(200).split(20), passes=passes, memory=1 << 20) for passes in (0, 6))
    assert error(refined, dense, images(64, 1)) < error(solved, dense, images(64, 1))
