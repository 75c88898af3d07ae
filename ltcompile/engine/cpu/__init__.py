"""The engine's compiler for small dense networks on a CPU, and what it competes with.

`candidates` says which runtimes may run a network here. A lowered, fused program of fixed batch becomes one C++ translation unit:

Activations are NHWC, one image at a time, float32 (bytes in int8, bf16 where only layers in bf16 read them), in buffers (H, W, C, border,
stride): `border` rows and columns of zeros on every side, as wide as the widest padding of their readers, and `stride` elements for each pixel,
C rounded up to a multiple of 8, above 16 of 16; lanes beyond C hold zeros. Buffers start at multiples of 64 bytes. A buffer may be a slice of
channels of a larger one (a concatenation).

The emitter of an operation, found by the name of its target, returns the call, the packed constants and the headers that it needs. Code
uses vector extensions of GCC and Clang, so that one text compiles for AVX-512, AVX2, NEON and plain C++; weights are in blocks of 16 output
channels for all of them. `tiles` models the time of a layer, `tuning` measures it, and include/threads.h shares the parts of steps.
"""

from ltcompile.engine.cpu.deployments import Source, Trial, build, candidates, label, thread_counts, trial

__all__ = ["Source", "Trial", "build", "candidates", "label", "thread_counts", "trial"]
