"""Dense layers: plain loops, one output at a time."""

from __future__ import annotations

from collections.abc import Sequence

from ltcompile.engine.cpu.code import Buffer, Choice, Code, Convolution

_CALL = """
for (int p = 0; p < {p}; ++p)
  for (int q = 0; q < {q}; ++q)
    for (int k = 0; k < {lanes}; ++k) {{
      float best = 0;
      for (int i = 0; i < {pool}; ++i)
        for (int j = 0; j < {pool}; ++j) {{
          const int y = p * {pool} + i, x = q * {pool} + j, g = k / {kg} * {cg};
          float v = 0;
          if (k < {k}) {{
            v = $bias[k];
            for (int r = 0; r < {r}; ++r)
              for (int s = 0; s < {s}; ++s)
                for (int c = 0; c < {cg}; ++c)
                  v += $weight[((k * {cg} + c) * {r} + r) * {s} + s]
                    * $in0[(y * {sh} - {ph} + r * {dh}) * {row} + (x * {sw} - {pw} + s * {dw}) * {stride} + g + c];
            {residual}
            v = act_{activation}(v);
          }}
          best = (i + j == 0 || v > best || v != v) ? v : best;
        }}
      $out[p * {out_row} + q * {out_stride} + k] = best;
    }}
"""


def emit(op: Convolution, inputs: Sequence[Buffer], output: Buffer, choice: Choice | None = None) -> Code:
    """The code of a dense layer; the residual is the second of `inputs` where it has one."""
    x, (k, cg, r, s) = inputs[0], op.weight.shape
    residual = f"v += $in1[y * {inputs[1].row} + x * {inputs[1].stride} + k];" if op.residual else ""
    sizes = {"p": output.height, "q": output.width, "k": k, "kg": k // op.groups, "cg": cg, "r": r, "s": s, "lanes": output.lanes}
    steps = dict(zip(("sh", "sw", "ph", "pw", "dh", "dw"), (*op.stride, *op.padding, *op.dilation), strict=True))
    rows = {"row": x.row, "stride": x.stride, "out_row": output.row, "out_stride": output.stride}
    settings = {"pool": 2 if op.pool else 1, "activation": op.activation, "residual": residual}
    return Code(_CALL.format(**sizes, **steps, **rows, **settings), {"weight": op.weight, "bias": op.bias}, ("activations.h",))
