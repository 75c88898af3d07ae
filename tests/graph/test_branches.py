"""Removing a residual branch: the cut network is the masked one, and stays one that plans, files and traces know."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, conv, shaken
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import ltcompile as lt
from ltcompile.core.plan import Branch, PruningPlan
from ltcompile.errors import InvalidPlan
from ltcompile.graph import embed, trace
from ltcompile.graph.branches import branches
from ltcompile.lower import export_onnx, run_onnx
from ltcompile.models.resnet import ResNet

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def residual(kinds: list[tuple[str, int]], seed: int) -> nn.Module:
    """A chain of residual blocks: (kind, width of its branch), on eight channels; "down" doubles them and halves the sides."""
    torch.manual_seed(seed)
    layers: dict[str, nn.Module] = {"stem": conv(3, 8, 3)}
    width = 8
    for i, (kind, hidden) in enumerate(kinds):
        made = 2 * width if kind == "down" and width < 32 else width
        step = 2 if made > width else 1
        layers |= {f"a{i}": conv(width, hidden, 3, stride=step), f"an{i}": nn.BatchNorm2d(hidden), f"b{i}": conv(hidden, made, 3)}
        layers |= {f"bn{i}": nn.BatchNorm2d(made)} if kind != "plain" else {}
        layers |= {f"down{i}": conv(width, made, 1, stride=step)} if made > width else {}
        width = made

    def run(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        for i in range(len(kinds)):
            y = net.get_submodule(f"b{i}")(F.gelu(net.get_submodule(f"an{i}")(net.get_submodule(f"a{i}")(x))))
            y = net.get_submodule(f"bn{i}")(y) if hasattr(net, f"bn{i}") else y
            x = F.relu(y.add_(net.get_submodule(f"down{i}")(x) if hasattr(net, f"down{i}") else x))
        return x

    return shaken(Net(run, width, **layers), seed)


BLOCKS = st.lists(st.tuples(st.sampled_from(["same", "plain", "down"]), st.integers(2, 9)), min_size=1, max_size=4)


@settings(max_examples=6, deadline=None)
@given(BLOCKS, st.integers(0, 100), st.data())
def test_random_chains(kinds: list[tuple[str, int]], seed: int, data: st.DataObject) -> None:
    """Every branch is found; any of them go, with channels before or after; in both modes cut equals masked, and a tracing agrees."""
    model = residual(kinds, seed)
    found, refused = branches(model, IMAGES)
    assert [branch.layers[0] for branch in found] == [f"a{i}" for i in range(len(kinds))] and not refused
    gone = tuple(branch for branch in found if data.draw(st.booleans()))
    groups = trace(model, IMAGES)
    first = PruningPlan(groups, removed_branches=gone)
    some = {g.name: tuple(range(1, g.width)) for g in first.remaining() if not g.frozen and g.width > 2}
    plan = first.then(PruningPlan(first.remaining(), some))
    assert PruningPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    small, masked = lt.cut(model, plan), lt.mask(model, plan)
    for training in (False, True):
        torch.testing.assert_close(small.train(training)(IMAGES), masked.train(training)(IMAGES), rtol=1e-4, atol=1e-4)
    small.eval()
    torch.testing.assert_close(embed(small, plan, model).eval()(IMAGES), small(IMAGES), rtol=1e-4, atol=1e-4)
    assert {g.members for g in trace(small, IMAGES) if g.width > 1} == {g.members for g in plan.remaining() if g.width > 1}
    assert not any(plan.removes(name) for name in small.state_dict())


DEEPER = (("mobilenet_v2", 10), ("efficientnet_b0", 9), ("convnext_tiny", 18))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "count"),
    [("resnet18", 8), ("vit", 4), *(pytest.param(*more, marks=pytest.mark.slow) for more in DEEPER)],
)
def test_branches_of_public_networks(build: str, count: int) -> None:
    torch.manual_seed(0)
    vit = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    network = models.VisionTransformer(**vit) if build == "vit" else getattr(models, build)()
    found, refused = branches(network.eval(), torch.randn(2, 3, 32, 32))
    assert (len(found), refused) == (count, {})


def test_only_one_side_of_an_addition_goes() -> None:
    """Sides with as many weights each, what another layer reads too, and a stem are not branches."""
    equal = Net(lambda net, x: net.a(x) + net.b(x), 8, a=conv(3, 8), b=conv(3, 8))

    def tapped(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.a(x)
        return torch.cat([net.b(y) + x, y], 1)

    read_twice = Net(tapped, 16, stem=conv(3, 8), a=conv(8, 8), b=conv(8, 8))
    assert branches(equal, IMAGES)[0] == ()
    assert branches(read_twice, IMAGES)[0] == ()


@pytest.mark.slow
def test_a_file_holds_no_removed_branch(tmp_path: Path) -> None:
    """The ONNX file computes what the cut network does, without a node of the branches; momentum follows the cut."""
    import onnx

    model = residual([("same", 4), ("down", 4), ("plain", 4)], 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(IMAGES).sum().backward()
    optimizer.step()
    plan = PruningPlan(trace(model, IMAGES), removed_branches=branches(model, IMAGES)[0])
    small = lt.cut(model, plan, optimizer).eval()
    assert [id(p) for p in small.parameters()] == [id(p) for group in optimizer.param_groups for p in group["params"]]
    export_onnx(small, IMAGES, tmp_path / "small.onnx")
    torch.testing.assert_close(run_onnx(tmp_path / "small.onnx", IMAGES), small(IMAGES), rtol=1e-4, atol=1e-4)
    kinds = [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node]
    assert kinds.count("Conv") == 2 and not {"Add", "Erf", "Gelu", "Where", "Greater"} & set(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [[1], [1, 1]])  # the second changes the shape: no loader without ltcompile
def test_weights_are_loaded_again(blocks: list[int], tmp_path: Path) -> None:
    """By lt.load_pruned, and without ltcompile where torch's own modules stand for the branches."""

    def build() -> nn.Module:
        return ResNet(6, blocks, 4, 3)

    model = shaken(build(), 0).eval()
    removed = branches(model, IMAGES)[0]
    plan, path = PruningPlan(trace(model, IMAGES), removed_branches=removed), tmp_path / "small.safetensors"
    small = lt.cut(model, plan).eval()
    lt.shrink(lt.Pruned(small, IMAGES, dense=model, plan=plan), path)
    torch.testing.assert_close(lt.load_pruned(build, path)(IMAGES), small(IMAGES))
    loader = tmp_path / "small_load.py"
    assert loader.exists() == (not any(branch.stride for branch in removed))
    if loader.exists():
        torch.testing.assert_close(runpy.run_path(str(loader))["load"](build(), str(path))(IMAGES), small(IMAGES))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ((Branch(("a",), "a"), Branch(("a.b",), "a.b")), "share"),
        ((Branch(("a",), "a"), Branch(("a",), "a")), "share"),
        ((Branch(("nowhere",), "nowhere"),), "does not have"),
    ],
)
def test_invalid_branches(removed: tuple[Branch, ...], message: str) -> None:
    model = residual([("same", 4)], 0)
    with pytest.raises(InvalidPlan, match=message):
        lt.cut(model, PruningPlan(trace(model, IMAGES), removed_branches=removed))


@pytest.mark.parametrize(("layers", "zeroed"), [((), "a"), (("",), "a"), (("a", "a"), "a"), (("a",), "b")])
def test_a_branch_is_of_layers(layers: tuple[str, ...], zeroed: str) -> None:
    with pytest.raises(InvalidPlan, match="cannot be removed"):
        Branch(layers, zeroed)
