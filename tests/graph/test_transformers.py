"""Attention of Hugging Face's networks: widths of queries and keys go together, and all else but the classes can be cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from networks import shaken
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 4}
STAGES = {"depths": [1, 1], "num_labels": 4}


def vit() -> tuple[Any, Any]:
    return hf.ViTForImageClassification(hf.ViTConfig(**SIZES, image_size=16, patch_size=8)), torch.randn(2, 3, 16, 16)


def bert() -> tuple[Any, Any]:
    words = torch.randint(0, 50, (2, 7))
    model = hf.BertForSequenceClassification(hf.BertConfig(**SIZES, vocab_size=50, max_position_embeddings=8))
    return model, {"input_ids": words, "attention_mask": (torch.arange(7) < torch.tensor([[7], [5]])).long()}


def swin() -> tuple[Any, Any]:
    config = hf.SwinConfig(**STAGES, image_size=16, patch_size=2, embed_dim=16, num_heads=[2, 4], window_size=4)
    return hf.SwinForImageClassification(config), torch.randn(2, 3, 16, 16)


def segformer() -> tuple[Any, Any]:
    stages = {"hidden_sizes": [16, 32], "num_attention_heads": [2, 4], "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]}
    config = hf.SegformerConfig(**STAGES, **stages, num_encoder_blocks=2, mlp_ratios=[2, 2], decoder_hidden_size=16)
    return hf.SegformerForImageClassification(config), torch.randn(2, 3, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("build", [vit, bert, swin, segformer])
def test_all_groups_but_the_classes_are_cut_right(build: Any) -> None:
    torch.manual_seed(0)
    model, example = build()
    model, config = shaken(model), model.config.to_dict()
    plan = lt.plan(model, example, 0.5, "local")
    frozen = {name: reason for name, reason in plan.frozen.items() if "relative_position_bias" not in name}  # whose rows are places
    assert list(frozen.values()) == ["it produces the network's output"]
    assert all(after == before // 2 for name, (before, after) in plan.widths.items() if name not in plan.frozen)
    assert any("q_proj" in name or "query" in name for name in plan.widths), "queries, keys and values can be cut"
    small, masked = lt.cut(model, plan).double(), lt.mask(model, plan).double()
    inputs = example if isinstance(example, dict) else {"pixel_values": example.double()}
    torch.testing.assert_close(small(**inputs).logits, masked(**inputs).logits, rtol=1e-6, atol=1e-6)  # softmax may run in float32
    assert model.config.to_dict() == config, "the caller's settings stay as they are"
    small.float().train()(**{k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}).logits.sum().backward()


class OneHead(nn.Module):
    """Values of another size than keys', so that torch computes the attention by its plain formula, whose scale it takes from their size."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.scale, self.first, self.last = scale, nn.Conv2d(3, 16, 1), nn.Linear(12, 4)
        self.query, self.key, self.value = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).flatten(2).transpose(1, 2)[:, None]  # (N, 1, pixels, 16)
        return self.last(F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), scale=self.scale)).mean((1, 2))


@pytest.mark.parametrize("scale", [None, 0.3])
def test_queries_and_keys_stay_where_their_size_is_the_scale(scale: float | None) -> None:
    plan = lt.plan(OneHead(scale), torch.randn(2, 3, 6, 6), 0.5, "local", check=False)  # by the labels alone
    inside = dict.fromkeys(("query", "key"), "it lies inside the heads of an attention") if scale is None else {}
    assert plan.frozen == inside | {"last": "it produces the network's output"}
