"""Programs in the kernels' layout: memory never overlaps, they compute what networks compute, and they survive JSON."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_support import pictures, placed, run_twice, small, with_cudnn
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, shaken
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.engine.executable import Executable, buffers, persistent_refusal
from ltcompile.engine.memory import Buffer, plan_memory
from ltcompile.errors import InvalidFile, InvalidSetting
from ltcompile.lower import serialization
from ltcompile.lower.lower import lower, to_layout
from ltcompile.numerics import largest_error


def living_bytes(buffers: Sequence[Buffer]) -> int:
    """The largest sum of bytes that live at one step: no arena can be smaller."""
    return max((sum(b.size_bytes for b in buffers if b.first <= step <= b.last) for step in {b.first for b in buffers}), default=0)


class TestMemory:
    @given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 30), st.integers(0, 10)), max_size=40))
    @settings(deadline=None, max_examples=200)
    def test_no_two_living_buffers_overlap(self, drawn: list[tuple[int, int, int]]) -> None:
        there = [Buffer(str(i), size, first, first + length) for i, (size, first, length) in enumerate(drawn)]
        plan = plan_memory(there)
        for a in there:
            assert plan.offsets[a.name] % 256 == 0 and plan.offsets[a.name] + a.size_bytes <= plan.size_bytes
            for b in there:
                apart = (
                    plan.offsets[a.name] + a.size_bytes <= plan.offsets[b.name]
                    or plan.offsets[b.name] + b.size_bytes <= plan.offsets[a.name]
                )
                assert a is b or apart or not a.overlaps(b)
        assert plan.size_bytes >= living_bytes(there)

    @pytest.mark.slow
    def test_a_chain_takes_two_buffers_and_a_network_little_more_than_its_floor(self) -> None:
        chain = [Buffer(str(i), 1024, i, i + 1) for i in range(9)]
        assert plan_memory(chain).size_bytes == 2048
        program = placed(shaken(lt.build_model("resnet20")), pictures(2, 32))
        there = buffers(program, {})
        assert plan_memory(there).size_bytes <= 1.05 * living_bytes(there) < 0.3 * sum(b.size_bytes for b in there)


class TestLayout:
    @pytest.mark.slow
    def test_every_network_runs_in_planned_memory_and_survives_json(self, network: nn.Module, images: Tensor) -> None:
        lowered = lower(network, images).program
        program, half = (to_layout(lowered, images, precision).program for precision in ("fp32", "fp16"))
        with torch.no_grad():
            expected = network(images)
        for choices in ({}, with_cudnn(program)):
            found = run_twice(Executable(program, torch.device("cpu"), choices), images)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        again = serialization.from_json(json.loads(json.dumps(serialization.to_json(half))), half.constants)
        assert torch.equal(again.run(images), half.run(images))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "side", "left"),
        [
            ("vgg16", 32, set()),
            ("torchvision:resnet18", 64, set()),
            ("torchvision:mobilenet_v2", 64, set()),
            ("torchvision:regnet_y_400mf", 64, {"aten.mean.dim", "aten.mul.Tensor"}),
            ("torchvision:alexnet", 64, {"aten.adaptive_avg_pool2d.default", "aten.reshape.default"}),
        ],
    )
    def test_known_networks_run_on_our_kernels(self, name: str, side: int, left: set[str]) -> None:
        targets = Counter(n.target for n in placed(shaken(lt.build_model(name)), pictures(2, side), "fp16").nodes)
        assert {t for t in targets if t.startswith("aten.")} - {"aten._to_copy.default"} == left
        assert targets["layout.enter"] == 1 + (name.endswith("alexnet"))  # its pool leaves the layout

    def test_a_flatten_becomes_a_view(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)).eval()
        program = placed(model, pictures())
        assert [n.target for n in program.nodes] == [
            "layout.enter",
            "kernel.conv2d",
            "aten.reshape.default",
            "kernel.linear",
            "layout.leave",
        ]
        torch.testing.assert_close(program.run(pictures()), model(pictures()), rtol=1e-4, atol=1e-5)

    def test_what_a_precision_cannot_hold_is_refused(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
        with torch.no_grad():
            model[0].weight[0, 0] = 1e5
        program = lower(model, pictures()).program
        with pytest.raises(InvalidSetting, match=r"fp16 does not fit this network: .* beyond 65504"):
            to_layout(program, pictures(), "fp16")
        assert to_layout(program, pictures(), "bf16").error < 0.06

    def test_biases_stay_in_fp32(self) -> None:
        """They are not rounded, and a large one is not refused."""
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).eval()
        with torch.no_grad():
            model[0].bias[0] = -1e5
        program = placed(model, pictures(), "fp16")
        biases = [value for name, value in program.constants.items() if name.endswith(".bias") and value.dtype == torch.float32]
        for layer, found in zip((model[0], model[3]), biases, strict=True):
            assert torch.equal(found[:4], layer.bias)
        assert largest_error(program.run(pictures()), model(pictures()).detach()) < 5e-3

    def test_outcomes_name_what_is_left_to_pytorch_and_why(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 4, 1)).eval()
        outcomes = to_layout(lower(model, pictures()).program, pictures(), "fp32").outcomes
        assert outcomes["softplus"] == "left to PyTorch: no kernel does it" and outcomes["conv2d"].startswith("our conv2d, stride 8")


class TestSerialization:
    @pytest.fixture(scope="class")
    @classmethod
    def program(cls) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        program = lower(small(), pictures()).program
        return serialization.to_json(program), program.constants

    @pytest.mark.parametrize(
        "target", ["aten.set_.source_Tensor", "os.system", "fused.nothing", "kernel.persistent", "aten.nothing.default"]
    )
    def test_only_known_operations(self, program: Any, target: str) -> None:
        value, constants = copy.deepcopy(program)
        value["nodes"][0]["target"] = target
        with pytest.raises(InvalidFile, match="which programs do not have"):
            serialization.from_json(value, constants)

    @pytest.mark.parametrize("harm", ["no nodes", "a later value", "given twice", "no output", "not a dictionary"])
    def test_damage_is_reported(self, program: Any, harm: str) -> None:
        value, constants = copy.deepcopy(program)
        if harm == "no nodes":
            del value["nodes"]
        elif harm == "a later value":
            value["nodes"].reverse()
        elif harm == "given twice":
            value["nodes"].append(value["nodes"][-1])
        elif harm == "no output":
            value["output"] = "nothing"
        with pytest.raises(InvalidFile, match="this is not a program"):
            serialization.from_json([] if harm == "not a dictionary" else value, constants)

    def test_infinities_and_nested_values(self) -> None:
        program = lower(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), pictures()).program
        node = replace(program.nodes[-1], kwargs={**program.nodes[-1].kwargs, "a": [float("-inf"), [None, True]]})
        written = json.loads(json.dumps(serialization.to_json(replace(program, nodes=(node,)))))
        assert serialization.from_json(written, program.constants).nodes[0].kwargs["a"] == [float("-inf"), [None, True]]


@pytest.mark.slow
def test_why_a_network_is_not_one_kernel() -> None:
    assert persistent_refusal(placed(small(), pictures())) == ""
    concatenating = placed(shaken(NETWORKS["cascaded_concat"]()), pictures(1, 16))
    assert "aten.cat.default, which is none of our kernels" in persistent_refusal(concatenating)
    assert persistent_refusal(placed(nn.Sequential(nn.Softplus()).eval(), pictures())) == "none of our kernels runs in it"
