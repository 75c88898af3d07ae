"""Answers in another precision are compared so closely that one wrong filter is seen, in any layer, and no honest runtime is refused.

The bounds are those of `numerics`; what it says about them is tried here on networks that were trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile import numerics
from ltcompile.core.deployment import Deployment
from ltcompile.errors import Disagreement
from ltcompile.lower import HalfInside, export_onnx, fold_batch_norm, run_onnx
from ltcompile.lower.evaluate import evaluator
from ltcompile.lower.fake_quantize import fake_quantized, in_half, unrounded
from ltcompile.lower.quantize import Quantizer, Scheme
from ltcompile.lower.simulate import in_double, rounded_network
from ltcompile.numerics import Expected
from ltcompile.runtimes import Subject, load

FILTERS = {"resnet20": 2, "vgg": 4}  # of each layer
CAUGHT = 0.95


@dataclass(frozen=True)
class Trained:
    """A folded network, its images (128 for comparisons, others for ranges), and its files in fp16 and int8."""

    name: str
    network: nn.Module
    images: Tensor
    quantizer: Quantizer
    int8: Any
    half: Path

    def exact(self) -> NDArray[np.float32]:
        with torch.no_grad():
            answer: NDArray[np.float32] = self.network(self.images).numpy()
        return answer

    def expected(self, precision: str) -> Expected:
        if precision == "int8":
            simulated = evaluator(fake_quantized(self.quantizer.plain, self.int8))(self.images.numpy())
        else:
            simulated = rounded_network(self.network, precision)(self.images).numpy()
        return Expected(self.exact(), simulated)


def small_vgg() -> nn.Module:
    layers: list[nn.Module] = []
    width = 1
    for wide in (8, 8, 16, 16, 24, 24):
        layers += [nn.Conv2d(width, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        if wide != width and width > 1:
            layers.append(nn.MaxPool2d(2))
        width = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet20": lambda: lt.build_model("resnet20", 10, 1, 8), "vgg": small_vgg}


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained on digits of 8x8 pixels, in seconds."""
    torch.manual_seed(0)
    data, network = lt.load_data("digits", image_size=8), NETWORKS[request.param]()
    images, labels = next(iter(data.train.batches(len(data.train), torch.device("cpu"), None, 0)))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(60):
        some = torch.randint(len(images), (64,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(network.train()(images[some]), labels[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    test, labels = next(iter(data.test.batches(128, torch.device("cpu"), None, 0)))
    folded, _ = fold_batch_norm(network.eval(), test[:2])
    assert float((folded(test).argmax(1) == labels).float().mean()) > 0.8
    path = tmp_path_factory.mktemp("networks")
    export_onnx(folded, test[:2], path / "plain.onnx")
    quantizer = Quantizer(path / "plain.onnx", images[:256].contiguous())
    quantizer.write(Scheme(), path / "int8.onnx")
    export_onnx(HalfInside(folded), test[:2], path / "fp16.onnx")
    return Trained(request.param, folded, test.contiguous(), quantizer, onnx.load(path / "int8.onnx"), path / "fp16.onnx")


def run(model: Any, images: Tensor) -> NDArray[np.float32]:
    """By ONNX Runtime, in a thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answer: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    return answer


def without_filters(trained: Trained, precision: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """What the network answers with one filter of zeros, layer by layer, a few of each."""
    if precision == "int8":
        for at, tensor in enumerate(trained.int8.graph.initializer):
            for filter_ in (
                range(0, tensor.dims[0], -(-tensor.dims[0] // FILTERS[trained.name])) if tensor.name.endswith("weight_quantized") else ()
            ):
                wrong, values = copy.deepcopy(trained.int8), numpy_helper.to_array(tensor).copy()
                values[filter_] = 0
                wrong.graph.initializer[at].CopyFrom(numpy_helper.from_array(values, tensor.name))
                yield f"{tensor.name}[{filter_}]", run(wrong, trained.images)
        return
    for name, layer in trained.network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            for filter_ in range(0, len(layer.weight), -(-len(layer.weight) // FILTERS[trained.name])):
                wrong = copy.deepcopy(trained.network)
                with torch.no_grad():
                    wrong.get_submodule(name).weight[filter_] = 0
                yield f"{name}[{filter_}]", rounded_network(wrong, precision)(trained.images).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
def test_a_wrong_filter_is_seen_in_any_layer(trained: Trained, precision: str) -> None:
    expected = trained.expected(precision)
    missed = {name: not expected.refusal(answer) for name, answer in without_filters(trained, precision)}
    assert len(missed) >= 20 and np.mean([*missed.values()]) <= 1 - CAUGHT, [name for name, left in missed.items() if left]


@pytest.mark.slow
def test_honest_runtimes_pass(trained: Trained, tmp_path: Path) -> None:
    onnx.save(trained.int8, tmp_path / "int8.onnx")
    for precision, file in (("int8", tmp_path / "int8.onnx"), ("fp16", trained.half)):
        expected = trained.expected(precision)
        for runtime in ("onnxruntime", "openvino"):
            session = load(Subject(runtime, None, file, precision), Deployment("cpu", runtime, 64, precision))
            compared = expected.compare(session.answers(trained.images.numpy()))
            assert not compared.refusal and compared.error <= compared.allowed, (precision, runtime)
            assert not expected.refusal(session.answers(trained.images[:1].numpy())), (precision, runtime)


@pytest.mark.slow
def test_every_weight_of_an_int8_file_is_the_networks(trained: Trained) -> None:
    """To the step, whatever it does to the answers."""
    honest = fake_quantized(trained.quantizer.plain, trained.int8)
    np.testing.assert_allclose(evaluator(honest)(trained.images.numpy()), evaluator(trained.int8)(trained.images.numpy()), atol=0.3)
    for at, tensor in enumerate(trained.int8.graph.initializer):
        if tensor.name.endswith("_quantized"):
            values, wrong = numpy_helper.to_array(tensor).copy(), copy.deepcopy(trained.int8)
            values.flat[0] = values.flat[0] + (3 if values.flat[0] < 0 else -3)
            wrong.graph.initializer[at].CopyFrom(numpy_helper.from_array(values, tensor.name))
            with pytest.raises(Disagreement, match="is not the network's: 3 steps apart"):
                fake_quantized(trained.quantizer.plain, wrong)


@pytest.mark.slow
def test_a_file_evaluates_to_what_it_means(trained: Trained) -> None:
    """Without a runtime; and without its rounding to what it was made of."""
    images = trained.images.numpy()
    half = onnx.load(trained.half)
    assert numerics.largest_error(evaluator(trained.quantizer.plain)(images), trained.exact()) < 1e-5
    assert numerics.largest_error(evaluator(unrounded(half))(images), trained.exact()) < 5e-3
    own = Expected(evaluator(unrounded(trained.int8))(images), evaluator(trained.int8)(images))
    assert not own.refusal(run(trained.int8, trained.images)) and own.noise > 0
    own = Expected(evaluator(unrounded(half))(images), evaluator(in_half(unrounded(half)))(images))
    assert not own.refusal(run_onnx(trained.half, trained.images)) and own.noise > 0


@pytest.mark.slow
def test_double_is_double_and_leaves_the_module(trained: Trained) -> None:
    before = {name: value.clone() for name, value in trained.network.state_dict().items()}
    with torch.no_grad():
        expected = copy.deepcopy(trained.network).double()(trained.images[:4].double())
    torch.testing.assert_close(in_double(trained.network, trained.images[:4]), expected, rtol=1e-12, atol=1e-12)
    rounded_network(trained.network, "bf16")(trained.images[:4])
    assert all(torch.equal(value, before[name]) for name, value in trained.network.state_dict().items())


def simulated(seed: int, noise: float, inputs: int = 128, classes: int = 10) -> tuple[Expected, NDArray[np.float64]]:
    """Exact answers, and two independent roundings of one size: the simulation's and a runtime's."""
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal((inputs, classes))
    return Expected(exact, exact + noise * rng.standard_normal(exact.shape)), exact + noise * rng.standard_normal(exact.shape)


class TestBounds:
    def test_independent_roundings_pass(self) -> None:
        """The worst of honest runtimes: none of its roundings is the simulation's."""
        refused = [bool(expected.refusal(found)) for expected, found in (simulated(seed, 0.05) for seed in range(1000))]
        assert np.mean(refused) <= 1e-3
        few = [bool(expected.refusal(found[:1])) for expected, found in (simulated(seed, 0.05) for seed in range(1000))]
        assert np.mean(few) <= 1e-3

    def test_errors_of_twice_the_rounding_and_shifts_of_half_of_it_do_not(self) -> None:
        for seed in range(50):
            expected, found = simulated(seed, 0.05)
            assert "off by" in expected.refusal(found + 2 * (found - expected.exact))
            assert "shifted by" in expected.refusal(expected.rounded + 0.4 * expected.noise)

    def test_a_shift_of_one_output_alone_is_no_rounding(self) -> None:
        for seed in range(50):
            expected, found = simulated(seed, 0.05)
            honest = 0.3 * found + 0.7 * np.asarray(expected.rounded)
            assert not expected.refusal(honest)
            honest[:, seed % 10] += 0.8 * expected.noise
            assert "an output is shifted by" in expected.refusal(honest)

    def test_inputs_that_are_all_alike_are_few(self) -> None:
        """An untrained network answers nearly the same to all, and rounds nearly the same."""
        rng = np.random.default_rng(0)
        exact = rng.standard_normal((1, 10)) + 0.01 * rng.standard_normal((128, 10))
        for _ in range(200):
            same = [exact + 0.05 * rng.standard_normal((1, 10)) for _ in range(2)]
            assert not Expected(exact, same[0]).refusal(same[1])

    def test_answers_that_are_none(self) -> None:
        expected, found = simulated(0, 0.05)
        assert "shape" in expected.refusal(found[:, :9]) and "not finite" in expected.refusal(found * np.nan)
        assert "does not hold" in Expected(expected.exact, expected.exact * np.inf).refusal(found)
        assert expected.refusal(np.roll(found, 1, axis=1)) and Expected(expected.exact).refusal(found)
        assert not Expected(expected.exact).refusal(expected.exact * (1 + 1e-5))

    @given(st.integers(1, 40))
    @settings(max_examples=30, deadline=None)
    def test_the_first_inputs_may_stand_alone(self, there: int) -> None:
        expected, found = simulated(0, 0.05)
        assert not expected.refusal(found[:there])

    def test_chunks_see_one_shape(self) -> None:
        seen: list[int] = []
        rows = np.arange(10, dtype=np.float32)[:, None]
        found = numerics.in_chunks(lambda chunk: (seen.append(len(chunk)), 2 * chunk)[1], rows, 4)
        assert seen == [4, 4, 4] and np.array_equal(found, 2 * rows)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_in_double(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    layer, words = kind(5, 4, bidirectional=True), torch.randn(3, 2, 5)
    found, expected = in_double(layer, words)[0], copy.deepcopy(layer).double()(words.double())[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert layer.weight_ih_l0.dtype == torch.float32
