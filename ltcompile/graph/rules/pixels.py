"""What looks at pixels, and leaves images and channels in front of them."""

from __future__ import annotations

import numpy as np

from ltcompile.graph._labels import Dims
from ltcompile.graph.rules._call import Call, Rule, aten, rule, tensors_in


def _spatial(count: int) -> Rule:
    def pool(call: Call) -> tuple[Dims, ...]:
        x = tensors_in(call.values.values())[0]
        dims = list(call.labels[x])
        for atoms in dims[-count:]:
            call.labels.pin(atoms, f"it is taken for pixels by {call.name}")
        kept: Dims = [*dims[:-count], *[None] * count]
        return tuple(list(kept) for _ in tensors_in(call.out))

    return pool


rule(
    *aten("""avg_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d 
  upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d reflection_pad2d 
  replication_pad2d grid_sampler_2d""")
)(_spatial(2))
rule(*aten("""avg_pool1d max_pool1d_with_indices max_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d reflection_pad1d"""))(
    _spatial(1)
)
rule(*aten("""avg_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d upsample_nearest3d upsample_trilinear3d"""))(
    _spatial(3)
)


@rule("aten.pixel_shuffle")
def _pixel_shuffle(call: Call) -> Dims:
    """(N, C r r, H, W) -> (N, C, H r, W r): the r r channels behind one pixel block go together."""
    dims = call.labels[call["self"]]
    atoms = dims[-3]
    if atoms is not None:
        blocks = atoms.reshape(call.out.shape[-3], -1)
        call.labels.join(blocks, np.broadcast_to(blocks[:, :1], blocks.shape), "")
        atoms = np.ascontiguousarray(blocks[:, 0])
    return [*dims[:-3], atoms, None, None]


@rule("aten.pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Dims:
    dims = call.labels[call["self"]]
    atoms = dims[-3]
    return [*dims[:-3], None if atoms is None else np.repeat(atoms, call.out.shape[-3] // len(atoms)), None, None]


@rule("aten.im2col")
def _im2col(call: Call) -> Dims:
    dims = call.labels[call["self"]]
    atoms = dims[-3]
    return [*dims[:-3], None if atoms is None else np.repeat(atoms, call.out.shape[-2] // len(atoms)), None]


@rule("aten.unfold")
def _unfold(call: Call) -> Dims:
    dims = list(call.labels[call["self"]])
    at = int(call["dimension"]) % len(dims)
    call.labels.pin(dims[at], "windows are taken of it")
    dims[at] = None
    return [*dims, None]
