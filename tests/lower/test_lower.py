"""Lowering: programs mean what the network computes, passes fuse what they may, and say why where they may not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from networks import shaken
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import ltcompile as lt
from ltcompile.errors import Disagreement, InvalidModel
from ltcompile.lower import operations
from ltcompile.lower.lower import Lowered, lower
from ltcompile.lower.passes import PASSES
from ltcompile.lower.program import Program, Value, capture


def targets(program: Program) -> Counter[str]:
    return Counter(node.target for node in program.nodes)


def lowered(*layers: nn.Module, side: int = 8) -> Lowered:
    torch.manual_seed(0)
    return lower(nn.Sequential(*layers), torch.randn(2, 3, side, side))


def test_every_network_lowers(network: nn.Module, images: Tensor) -> None:
    done = lower(network, images)
    with torch.no_grad():
        torch.testing.assert_close(done.program.run(images), network(images), rtol=1e-4, atol=1e-5)
    assert {n.name for n in done.captured} == set(done.outcomes) and done.errors.keys() == {"fold_batch_norm", *PASSES}
    assert not any(t.startswith("aten.conv2d.default") or t == "aten.linear.default" for t in targets(done.program))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg16", {"fused.conv2d": 13, "fused.pooled_head": 1}),
        ("resnet20", {"fused.conv2d": 21, "fused.pooled_head": 1}),
        ("torchvision:resnet18", {"fused.conv2d": 20, "aten.max_pool2d.default": 1, "fused.pooled_head": 1}),
    ],
)
def test_known_networks_are_all_fused(name: str, expected: dict[str, int]) -> None:
    model = shaken(lt.build_model(name))
    assert targets(lower(model, torch.randn(1, 3, 32, 32)).program) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        models.mobilenet_v3_small,
        models.shufflenet_v2_x0_5,
        lambda: models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=4),
        lambda: models.VisionTransformer(64, 16, 2, 3, 48, 96, num_classes=4),
    ],
    ids=["mobilenet", "shufflenet", "swin", "vit"],
)
def test_networks_from_torchvision(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert max(lower(shaken(build()), torch.randn(2, 3, 64, 64)).errors.values()) < 1e-5


class TestFusion:
    def test_the_whole_chain(self) -> None:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)

            def forward(self, x: Tensor) -> Tensor:
                return F.max_pool2d(F.relu(self.a(x) + self.b(x)), 2)

        done = lower(Block(), torch.randn(2, 3, 8, 8))
        assert targets(done.program) == {"fused.conv2d": 2}
        last = done.program.nodes[-1]
        assert last.args[3] == Value("conv2d_1") and last.kwargs["activation"] == "relu" and last.kwargs["pool"]
        assert done.outcomes["conv2d"] == "fused conv2d + residual + relu + 2x2 max pool" and done.outcomes["max_pool2d"] == "fused into a"

    @pytest.mark.parametrize(
        ("layers", "node", "why"),
        [
            ((nn.Conv2d(3, 4, 3, dilation=2),), "conv2d", "dilation"),
            ((nn.Conv2d(3, 4, 3, padding="same"), nn.Flatten()), "conv2d", "padding is not in numbers"),
            ((nn.Conv2d(3, 4, 3),), "conv2d", "it is the output"),
            ((nn.Conv2d(3, 4, 3), nn.Tanh()), "conv2d", "no epilogue does aten.tanh"),
            ((nn.Conv2d(3, 4, 2), nn.MaxPool2d(2)), "conv2d", "no epilogue does aten.max_pool2d"),  # 7 pixels wide
            ((nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2)), "conv2d", "no epilogue does aten.max_pool2d"),
            ((nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Tanh()), "adaptive_avg_pool2d", "aten.tanh.default follows"),
        ],
    )
    def test_refusals_say_why(self, layers: tuple[nn.Module, ...], node: str, why: str) -> None:
        assert why in lowered(*layers).outcomes[node]

    def test_what_is_used_twice_is_not_fused(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Conv2d(3, 4, 1)

            def forward(self, x: Tensor) -> Tensor:
                y = self.a(x)
                return F.relu(y) - y

        done = lower(Twice(), torch.randn(2, 3, 4, 4))
        assert "used by 2 operations" in done.outcomes["conv2d"] and "aten.relu.default" in targets(done.program)

    def test_a_residual_that_is_broadcast_is_not_fused(self) -> None:
        class Shifted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.shift = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(4, 1, 1))

            def forward(self, x: Tensor) -> Tensor:
                return self.a(x) + self.shift

        assert "aten.add.Tensor" in targets(lower(Shifted(), torch.randn(2, 3, 4, 4)).program)

    def test_relu6_however_it_is_written(self) -> None:
        class Clamped(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return F.hardtanh(x, 0.0, 6.0)

        for layer in (nn.ReLU6(), Clamped()):
            assert lowered(nn.Conv2d(3, 4, 1), layer, nn.Flatten()).program.nodes[0].kwargs["activation"] == "relu6"
        assert "aten.hardtanh.default" in targets(lowered(nn.Conv2d(3, 4, 1), nn.Hardtanh()).program)


class TestProgram:
    def test_what_needs_no_input_is_computed_once(self) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(4, 3, 1, 1))

            def forward(self, x: Tensor) -> Tensor:
                return F.conv2d(x, self.weight / self.weight.norm()) + torch.arange(4.0).view(1, 4, 1, 1) * torch.zeros_like(x)[:, :1]

        model, x = Scaled(), torch.randn(2, 3, 4, 4)
        program = capture(model, x)
        torch.testing.assert_close(program.run(x), model(x))
        assert targets(program) == {"aten.conv2d.default": 1, "aten.add.Tensor": 1}

    def test_the_list_of_operations_is_closed(self) -> None:
        for name in ("aten.set_.source_Tensor", "aten.from_file.default", "os.system", "fused.none", "aten.relu", "aten.__class__.default"):
            with pytest.raises(KeyError):
                operations.find(name)

    def test_every_operation_of_the_list_exists(self) -> None:
        assert all(callable(operations.find(f"aten.{name}")) for name in operations._ATEN)

    def test_what_programs_do_not_have(self) -> None:
        class Sorting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Module()
                self.inner.forward = lambda x: x.sort(1).values  # type: ignore[method-assign]

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x)  # type: ignore[no-any-return]

        with pytest.raises(InvalidModel, match=r"inner uses aten.sort"):
            capture(Sorting(), torch.randn(2, 3, 4, 4))

    def test_what_torch_cannot_trace(self) -> None:
        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + 1 if x.sum() > 0 else x

        with pytest.raises(InvalidModel, match="torch cannot export this network"):
            lower(Branching(), torch.randn(2, 3, 4, 4))

    def test_one_input_and_one_output(self) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x + 1, x - 1

        with pytest.raises(InvalidModel, match="one input and one output"):
            capture(Two(), torch.randn(2, 3, 4, 4))

    def test_a_wrong_pass_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(program: Program) -> tuple[Program, dict[str, str]]:
            return replace(program, constants={k: v * 1.01 for k, v in program.constants.items()}), {}

        monkeypatch.setitem(PASSES, "wrong", wrong)
        with pytest.raises(Disagreement, match="wrong changed the outputs"):
            lowered(nn.Conv2d(3, 4, 1))
