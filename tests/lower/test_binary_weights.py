"""Signs in ONNX files: the same weights in fewer bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from attached import IMAGES, NETWORKS, answers, attached, built, close, layers
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ltcompile.errors import InvalidModel
from ltcompile.lower import export_onnx, fold_batch_norm, run_onnx
from ltcompile.lower.binary_weights import write_binary_weights
from ltcompile.search import methods


class TestSigns:
    @staticmethod
    def ticket(network: str) -> nn.Module:
        """With batch norm's statistics of some images, so that folding multiplies each filter by its own number."""
        model = attached("biprop", network)
        model.train()(IMAGES)
        methods.bake(model)
        return fold_batch_norm(model.eval(), IMAGES)[0]

    @pytest.mark.parametrize("network", NETWORKS)
    @pytest.mark.slow
    def test_the_same_weights_in_fewer_bytes(self, network: str, tmp_path: Path) -> None:
        folded, float_file, signs_file = self.ticket(network), tmp_path / "float.onnx", tmp_path / "signs.onnx"
        export_onnx(folded, IMAGES, float_file, {"producer": "x"})
        reported = write_binary_weights(float_file, signs_file, IMAGES)
        assert reported.error <= 1e-5 and (reported.bytes_before, reported.bytes) == (float_file.stat().st_size, signs_file.stat().st_size)
        saved = sum(3 * layer.weight.numel() for layer in layers(folded).values())
        assert reported.bytes < reported.bytes_before - 0.9 * saved + 300 * len(layers(folded))
        close(run_onnx(signs_file, IMAGES), answers(folded))
        model = onnx.load(signs_file)
        assert {p.key: p.value for p in model.metadata_props} == {"producer": "x"}
        held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        expected = {}
        for name, layer in layers(folded).items():
            signs, scale = held[f"{name}.weight_signs"], held[f"{name}.weight_scale"]
            assert signs.dtype == np.int8 and set(np.unique(signs)) == {-1, 0, 1} and f"{name}.weight" not in held
            assert np.array_equal(signs * scale, layer.weight.detach().numpy())
            expected[f"{name}.weight"] = f"signs with {scale.size} scales" if scale.size > 1 else "signs with 1 scale"
        assert reported.outcomes == expected
        assert any("scales" in t for t in reported.outcomes.values()) == (network == "vgg")

    @pytest.mark.slow
    def test_in_place_and_any_batch(self, tmp_path: Path) -> None:
        folded, path = self.ticket("conv2"), tmp_path / "net.onnx"
        export_onnx(folded, IMAGES, path)
        write_binary_weights(path, path, IMAGES)
        for batch in (1, 3, 9):
            images = torch.randn(batch, 1, 16, 16)
            close(run_onnx(path, images), answers(folded, images))

    @pytest.mark.slow
    def test_a_mixed_network(self, tmp_path: Path) -> None:
        """Weights of values that are not binary stay as they are."""
        folded, path = self.ticket("conv2"), tmp_path / "net.onnx"
        nn.init.normal_(folded.get_submodule("2").weight)  # type: ignore[arg-type]
        export_onnx(folded, IMAGES, path)
        reported = write_binary_weights(path, path, IMAGES).outcomes
        assert {n for n, t in reported.items() if not t.startswith("signs")} == {"2.weight"} and "differ in more" in reported["2.weight"]
        close(run_onnx(path, IMAGES), answers(folded))

    @pytest.mark.slow
    def test_refuses_floats(self, tmp_path: Path) -> None:
        export_onnx(built("lenet300"), IMAGES, tmp_path / "net.onnx")
        with pytest.raises(InvalidModel, match="biprop"):
            write_binary_weights(tmp_path / "net.onnx", tmp_path / "signs.onnx", IMAGES)
        assert not (tmp_path / "signs.onnx").exists()

    @pytest.mark.parametrize("each", [False, True])
    @pytest.mark.parametrize("product", ["MatMul", "Gemm", "GemmT", "ConvTranspose"])
    def test_filters_lie_along_the_product_s_axis(self, product: str, each: bool, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        axis = 0 if product == "GemmT" else 1
        shape = (12, 16, 3, 3) if product == "ConvTranspose" else (16, 12) if product == "GemmT" else (12, 16)
        scale = rng.random(16).astype(np.float32) + 0.5 if each else np.float32(0.7)
        along = [16 if d == axis else 1 for d in range(len(shape))]
        weight = rng.integers(-1, 2, shape).astype(np.float32) * (scale.reshape(along) if each else scale)
        kind, attributes = ("Gemm", {"transB": 1}) if product == "GemmT" else (product, {})
        node = helper.make_node(kind, ["images", "w"], ["logits"], **attributes)
        images = torch.randn((2, 12, 5, 5) if product == "ConvTranspose" else (2, 12))
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(images.shape))],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 16, 7, 7] if product == "ConvTranspose" else [2, 16])],
            [numpy_helper.from_array(weight.astype(np.float32), "w")],
        )
        path = tmp_path / "net.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        expected = run_onnx(path, images)
        assert write_binary_weights(path, path, images).outcomes == {"w": "signs with 16 scales" if each else "signs with 1 scale"}
        close(run_onnx(path, images), expected)
