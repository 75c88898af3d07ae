"""Multi-head attention whose inner width may differ from the width that it reads and writes.

torch's own module computes its head size from the width of its input, so it cannot lose heads alone. The surgeon puts this one,
with the same parameters under the same names, in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Drop-in for nn.MultiheadAttention (same embedding for keys and values, no added bias or zero tokens), which TorchScript takes too."""

    merge_masks = nn.MultiheadAttention.merge_masks  # which TorchScript compiles in torch's transformer layers; it never runs

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias, self.out_proj = whole.in_proj_weight, whole.in_proj_bias, whole.out_proj
        self.num_heads, self.head_dim = whole.num_heads, whole.head_dim
        self.dropout, self.batch_first = float(whole.dropout), whole.batch_first
        self._qkv_same_embed_dim = False  # so that torch's transformer layers call it, and no fused kernel with their own widths
        self.train(whole.training)

    @property
    def embed_dim(self) -> int:
        """The width that it reads and writes, E."""
        return self.out_proj.out_features

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention.forward: (N, L, E) if batch_first, else (L, N, E); the second value is the attention."""
        q, k, v = self._heads(query, 0), self._heads(key, 1), self._heads(value, 2)  # (N, heads, L, head_dim)
        allowed = _added(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        attention: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            looks = (scores if allowed is None else scores + allowed).softmax(-1)  # (N, heads, L, S)
            x = F.dropout(looks, dropout, self.training) @ v
            attention = looks.mean(1) if average_attn_weights else looks
        else:
            x = F.scaled_dot_product_attention(q, k, v, allowed, dropout)
        x = self.out_proj(x.transpose(1, 2).flatten(2))
        return (x if self.batch_first else x.transpose(0, 1)), attention

    def _heads(self, x: Tensor, part: int) -> Tensor:
        """Queries, keys or values (part 0, 1 or 2) of `x`, (N, heads, L, head_dim)."""
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias  # (heads * head_dim, E)
        x = F.linear(x if self.batch_first else x.transpose(0, 1), weight, None if bias is None else bias.chunk(3)[part])
        heads: Tensor = x.unflatten(-1, (self.num_heads, self.head_dim))
        return heads.transpose(1, 2)


def _added(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one tensor to add to the scores (N, heads, L, S): minus infinity at masked positions."""
    added: Tensor | None = None
    if attn_mask is not None:
        scores = _floats(attn_mask, q)
        added = scores if scores.dim() < 3 else scores.unflatten(0, (q.shape[0], -1))  # from (N * heads, L, S)
    if key_padding_mask is not None:
        padding = _floats(key_padding_mask, q)[:, None, None, :]
        added = padding if added is None else added + padding
    return added


def _floats(mask: Tensor, q: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf")) if mask.dtype == torch.bool else mask.to(q.dtype)


def is_replaceable(module: nn.Module) -> bool:
    """Whether `Attention` computes what `module` does."""
    return (
        type(module) is nn.MultiheadAttention
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
    )


def replace_attention(model: nn.Module, paths: set[str] | None = None) -> None:
    """Put `Attention` in the place of torch's module, in place, everywhere or at `paths`; one module at two paths stays one."""
    made: dict[nn.Module, Attention] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if path and is_replaceable(module) and (paths is None or path in paths):
            assert isinstance(module, nn.MultiheadAttention)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made.setdefault(module, Attention(module)))
