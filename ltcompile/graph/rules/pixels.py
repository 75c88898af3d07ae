"""What looks at pixels, and leaves images and channels in front of them."""

from __future__ import annotations

import numpy as np

from ltcompile.graph._labels import Atoms, Dims
from ltcompile.graph.rules._call import FIXED_SIZE, Call, Rule, aten, rule, tensors_in


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
    *aten("""avg_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d fractional_max_pool2d
  max_unpool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
  _upsample_nearest_exact2d reflection_pad2d replication_pad2d grid_sampler_2d""")
)(_spatial(2))
rule(
    *aten("""avg_pool1d max_pool1d_with_indices max_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d
  _upsample_nearest_exact1d reflection_pad1d replication_pad1d""")
)(_spatial(1))
rule(
    *aten("""avg_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d fractional_max_pool3d
  max_unpool3d upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d grid_sampler_3d""")
)(_spatial(3))


@rule("aten.pad")
def _pad(call: Call) -> Dims:
    """Padding that is labelled as one, such as circular: the padded dimensions are pixels."""
    dims: Dims = _spatial(len(call["pad"]) // 2)(call)[0]
    return dims


@rule("aten._fft_r2c", "aten._fft_c2r", "aten._fft_c2c")
def _fft(call: Call) -> Dims:
    dims = list(call.labels[call["self"]])
    for d in call["dim"]:
        call.labels.pin(dims[int(d)], f"{call.name} looks at all of them at once")
        dims[int(d)] = None
    return dims


@rule("aten.col2im")
def _col2im(call: Call) -> Dims:
    """(N, C k k, L) -> (N, C, H, W): the taps of one channel go together."""
    dims = call.labels[call["self"]]
    call.labels.pin(dims[-1], f"it is taken for pixels by {call.name}")
    return [*dims[:-2], _blocks(call, dims[-2], int(call.out.shape[-3])), None, None]


def _blocks(call: Call, atoms: Atoms | None, count: int) -> Atoms | None:
    """The `count` channels whose parts lie behind one another in `atoms`."""
    if atoms is None:
        return None
    blocks = atoms.reshape(count, -1)
    call.labels.join(blocks, np.broadcast_to(blocks[:, :1], blocks.shape), "")
    return np.ascontiguousarray(blocks[:, 0])


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def _channel_shuffle(call: Call) -> Dims:
    """(N, g n, ...) as g rows of n, transposed: the j-th channels of all rows go together, and the number of rows stays."""
    dims, groups = list(call.labels[call["self"]]), int(call["groups"])
    atoms = dims[1]
    if atoms is not None:
        rows = atoms.reshape(groups, -1)
        call.labels.join(rows, np.broadcast_to(rows[:1], rows.shape), "")
        dims[1] = np.repeat(rows[0], groups)
    return dims


@rule("aten.pixel_shuffle")
def _pixel_shuffle(call: Call) -> Dims:
    """(N, C r r, H, W) -> (N, C, H r, W r): the r r channels behind one pixel block go together."""
    dims = call.labels[call["self"]]
    return [*dims[:-3], _blocks(call, dims[-3], int(call.out.shape[-3])), None, None]


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


@rule("torchvision.roi_align", "torchvision.roi_pool")
def _regions(call: Call) -> tuple[Dims, ...]:
    """(N, C, H, W) and boxes (K, 5) -> (K, C, h, w), with which pooling gives the places of the largest values."""
    images, channels, *pixels = call.labels[call["input"]]
    for atoms in (images, *pixels):
        call.labels.pin(atoms, f"it is taken for images or pixels by {call.name}")
    return tuple([None, channels, None, None] for _ in tensors_in(call.out))


@rule("torchvision.ps_roi_align", "torchvision.ps_roi_pool")
def _position_sensitive(call: Call) -> tuple[Dims, ...]:
    """(N, C h w, H, W) and boxes -> (K, C, h, w), with the channels that were taken: those of one result go together."""
    images, channels, *pixels = call.labels[call["input"]]
    for atoms in (images, *pixels):
        call.labels.pin(atoms, f"it is taken for images or pixels by {call.name}")
    made: Dims = [None, _blocks(call, channels, int(tensors_in(call.out)[0].shape[1])), None, None]
    return tuple(list(made) for _ in tensors_in(call.out))


@rule("torchvision.deform_conv2d")
def _deformable(call: Call) -> Dims:
    """A convolution at moved places: the channels of what moves them stay."""
    labels, x, weight, bias = call.labels, call["input"], call["weight"], call["bias"]
    labels.pin_all([call["offset"], call["mask"]], "they say where a deformable convolution looks")
    inputs, kernel = labels[x], labels[weight]
    for atoms in (inputs[0], *inputs[2:], *kernel[2:]):
        labels.pin(atoms, "it lies along the images or pixels of a convolution")
    read = labels.meet(x, inputs[1], weight, kernel[1]) if call["groups"] == 1 else None
    if call["groups"] > 1 or call["offset_groups"] > 1:
        labels.pin_all([x, weight], "it is read or made by groups in a deformable convolution")
    elif not (labels.zero(x)[1] or labels.zero(weight)[1]):
        labels.pin(read, "it is summed over in a product of which no factor is zero for a masked channel")
    out = kernel[0]
    if labels[bias][0] is not None:  # else it is made of zeros, as many as there are filters
        out = labels.join(out, labels[bias][0], FIXED_SIZE)
    call.zero = [at == 1 and labels.zero(weight)[0] and labels[bias][0] is not None and labels.zero(bias)[0] for at in range(4)]
    return [None, out, None, None]
