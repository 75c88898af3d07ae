"""Sums, means and maxima over dimensions, softmax and layer norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from ltcompile.engine.cpu.code import Array, Code
from ltcompile.engine.cpu.loops import nest
from ltcompile.engine.cpu.plan import Placed, Plan
from ltcompile.engine.cpu.pointwise import number
from ltcompile.errors import Unavailable
from ltcompile.lower.passes._fusion import argument
from ltcompile.lower.program import Node, Value

_HEADERS = ("activations.h", "sweep.h")


def reduce(plan: Plan, node: Node) -> None:
    """The sum, mean or maximum over some dimensions."""
    x, kind = plan.placed(node.args[0]), node.target.split(".")[1]
    rank = len(x.shape)
    dims = {d % rank for d in (argument(node, 1, None) or range(rank))}
    if node.kwargs:
        raise Unavailable(f"it has {', '.join(node.kwargs)}")
    plan.result(node)
    out = plan.values[node.name]
    kept = [d for d in range(rank) if d not in dims]
    view = out.tensor.view([x.shape[d] if d in kept else 1 for d in range(rank)])
    reduced = sorted(dims, key=lambda d: -x.strides[d])
    opening = "".join(f"for (int r{d} = 0; r{d} < {x.shape[d]}; r{d}++) " for d in reduced)
    at = " + ".join(f"r{d} * {x.strides[d]}" for d in reduced)
    outer = nest([x.shape[d] for d in kept], [[view.stride(d) for d in kept], [x.strides[d] for d in kept]])
    start = f"in0[{outer.offsets[1]} + c * {outer.inner[1]}]" if kind == "amax" else "0.0f"
    value = f"in0[{outer.offsets[1]} + c * {outer.inner[1]} + {at}]"
    body = f"v = larger({value}, v);" if kind == "amax" else f"v += {value};"
    factor = f" / {np.prod([x.shape[d] for d in reduced])}.0f" if kind == "mean" else ""
    text = (
        f"{outer.opening}for (int c = 0; c < {outer.size}; c++) {{ float v = {start}; {opening}{{ {body} }} "
        f"out[{outer.offsets[0]} + c * {outer.inner[0]}] = v{factor}; }}"
    )
    plan.clear(out.storage)
    plan.step(node.name, lambda: Code(text, headers=_HEADERS), out.address, in0=x.address)


def _softmax(plan: Plan, node: Node) -> None:
    x = plan.placed(node.args[0])
    dim = node.args[1] % len(x.shape)
    plan.result(node, x.channel)
    out = plan.values[node.name]
    others = [d for d in range(len(x.shape)) if d != dim]
    outer = nest([x.shape[d] for d in others], [[out.strides[d] for d in others], [x.strides[d] for d in others]])
    count, to, step = x.shape[dim], out.strides[dim], x.strides[dim]
    end = "largest + by_lane(sum, logf)"
    last = f"to[i * {to}] = from[i * {step}] - ({end})" if "log" in node.target else f"to[i * {to}] *= factor"
    text = f"""
{outer.opening}for (int c = 0; c < {outer.size}; c++) {{
  const float *from = in0 + {outer.offsets[1]} + c * {outer.inner[1]};
  float *to = out + {outer.offsets[0]} + c * {outer.inner[0]}, largest = from[0], sum = 0.0f;
  for (int i = 1; i < {count}; i++) largest = larger(from[i * {step}], largest);
  for (int i = 0; i < {count}; i++) sum += to[i * {to}] = exp_of(from[i * {step}] - largest);
  const float factor = 1.0f / sum;
  (void)factor;
  for (int i = 0; i < {count}; i++) {last};
}}
"""
    plan.clear(out.storage)
    plan.step(node.name, lambda: Code(text, headers=_HEADERS), out.address, in0=x.address)


def _affine(plan: Plan, node: Node, channels: int) -> tuple[dict[str, Array], str]:
    """The scale and shift of a norm (channels,), ones and zeros where it has none, and its epsilon in C++."""
    weight, bias = argument(node, 2, None), argument(node, 3, None)
    scale = np.ones(channels, np.float32) if weight is None else plan.constant(weight)
    shift = np.zeros(channels, np.float32) if bias is None else plan.constant(bias)
    return {"scale": scale, "shift": shift}, number(argument(node, 4, 1e-5))


def _layer_norm(plan: Plan, node: Node) -> None:
    x, shape = plan.placed(node.args[0]), node.args[1]
    if len(shape) != 1:
        raise Unavailable(f"it normalises over {len(shape)} dimensions")
    image = plan.image(node.args[0], channel=len(x.shape) - 1)
    out = plan.result(node, len(x.shape) - 1)
    count, a, b = shape[0], image.buffer, out.buffer
    arrays, eps = _affine(plan, node, count)
    text = f"""
for (int p = 0; p < {b.height}; p++)
  for (int q = 0; q < {b.width}; q++) {{
    const float *from = in0 + p * {a.row} + q * {a.stride};
    float *to = out + p * {b.row} + q * {b.stride};
    const float mean = total<{count}>([&](auto width, int c) {{ return load<decltype(width)::value>(from + c); }}) / {count}.0f;
    const float squares = total<{count}>([&](auto width, int c) {{
      const auto v = load<decltype(width)::value>(from + c) - mean;
      return v * v;
    }});
    const float factor = 1.0f / sqrtf(squares / {count}.0f + {eps});
    sweep<{count}>([&](auto width, int c) {{
      constexpr int L = decltype(width)::value;
      store<L>(to + c, (load<L>(from + c) - mean) * factor * load<L>(scale + c) + load<L>(shift + c));
    }});
    for (int c = {count}; c < {b.lanes}; c++) to[c] = 0.0f;
  }}
"""
    plan.step(node.name, lambda: Code(text, arrays, _HEADERS), out.address, in0=image.address)


def _group_norm(plan: Plan, node: Node) -> None:
    x, groups = plan.placed(node.args[0]), node.args[1]
    if len(x.shape) != 4:
        raise Unavailable("it does not normalise images")
    image, out = plan.image(node.args[0]), plan.result(node, 1)
    channels, a, b = x.shape[1], image.buffer, out.buffer
    each = channels // groups
    arrays, eps = _affine(plan, node, channels)
    places = f"for (int p = 0; p < {b.height}; p++) for (int q = 0; q < {b.width}; q++)"
    start = f"const float *from = in0 + p * {a.row} + q * {a.stride} + g * {each};"
    text = f"""
for (int g = 0; g < {groups}; g++) {{
  float sum = 0.0f, squares = 0.0f;
  {places} {{
    {start}
    sum += total<{each}>([&](auto width, int c) {{ return load<decltype(width)::value>(from + c); }});
  }}
  const float mean = sum / {each * b.height * b.width}.0f;
  {places} {{
    {start}
    squares += total<{each}>([&](auto width, int c) {{
      const auto v = load<decltype(width)::value>(from + c) - mean;
      return v * v;
    }});
  }}
  const float factor = 1.0f / sqrtf(squares / {each * b.height * b.width}.0f + {eps});
  {places} {{
    {start}
    float *to = out + p * {b.row} + q * {b.stride} + g * {each};
    sweep<{each}>([&](auto width, int c) {{
      constexpr int L = decltype(width)::value;
      store<L>(to + c, (load<L>(from + c) - mean) * factor * load<L>(scale + g * {each} + c) + load<L>(shift + g * {each} + c));
    }});
  }}
}}
"""
    plan.clear(plan.values[node.name].storage)
    plan.step(node.name, lambda: Code(text, arrays, _HEADERS), out.address, in0=image.address)


_MATMUL = """
for (int i = 0; i < {rows}; i++) {{
  const float *a = in0 + {a} + i * {a_row};
  float *to = out + {out} + i * {out_row};
  sweep<{columns}>([&](auto width, int c) {{
    constexpr int L = decltype(width)::value;
    Vector<L> sum = all<L>(0.0f);
    for (int k = 0; k < {inner}; k++) sum += a[k * {a_step}] * load<L>(in1 + {b} + k * {b_row} + c);
    store<L>(to + c, sum);
  }});
}}
"""


def _matmul(plan: Plan, node: Node) -> None:
    x, y = plan.placed(node.args[0]), plan.placed(node.args[1])
    if len(x.shape) != len(y.shape) or x.shape[:-2] != y.shape[:-2] or len(x.shape) < 3:
        raise Unavailable("its operands are broadcast")
    plan.result(node, len(x.shape) - 1)
    multiply(plan, node.name, plan.values[node.name], x, y)


def multiply(plan: Plan, name: str, out: Placed, x: Placed, y: Placed) -> None:
    """A step out = x y, (1, ..., I, K) times (1, ..., K, J), the rows of `out` in one piece; y is copied where its rows are not."""
    if y.strides[-1] != 1:
        copy, _ = plan.new(f"{name}.rows", y.shape, len(y.shape) - 1)
        plan.copy(copy, y, f"{name}.rows")
        y = copy
    lead = list(range(len(x.shape) - 2))
    outer = nest([1, 1, *[x.shape[d] for d in lead]], [[0, 0, *[v.strides[d] for d in lead]] for v in (out, x, y)])
    offsets = [f"{offset} + h * {step}" for offset, step in zip(outer.offsets, outer.inner, strict=True)]
    text = f"{outer.opening}for (int h = 0; h < {outer.size}; h++) {{" + _MATMUL.format(
        rows=x.shape[-2], columns=y.shape[-1], inner=x.shape[-1], a=offsets[1], b=offsets[2], out=offsets[0],
        a_row=x.strides[-2], a_step=x.strides[-1], b_row=y.strides[-2], out_row=out.strides[-2],
    ) + "}"  # fmt: skip
    plan.clear(out.storage)
    plan.step(name, lambda: Code(text, headers=_HEADERS), out.address, in0=x.address, in1=y.address)


def _attention(plan: Plan, node: Node) -> None:
    """softmax(q k^T scale) v, without a mask."""
    q, k, v = (plan.placed(value) for value in node.args[:3])
    mask, causal = argument(node, 3, node.kwargs.get("attn_mask")), argument(node, 5, node.kwargs.get("is_causal", False))
    if mask is not None or causal or node.kwargs.get("enable_gqa"):
        raise Unavailable("it has a mask")
    scale: Any = node.kwargs.get("scale") or q.shape[-1] ** -0.5
    shape = (*q.shape[:-1], k.shape[-2])
    scores = Node(f"{node.name}.scores", "", (), {}, shape)
    plan.result(scores, len(shape) - 1)
    scored = plan.values[scores.name]
    multiply(plan, scores.name, scored, q, Placed(k.storage, k.tensor.transpose(-1, -2)))
    scaled, _ = plan.new(f"{node.name}.scaled", shape, len(shape) - 1)
    plan.pointwise(scaled, [scored], f"x0 * {number(scale)}", f"{node.name}.scaled")
    plan.values[f"{node.name}.scaled"] = scaled
    _softmax(plan, Node(f"{node.name}.softmax", "aten.softmax.int", (Value(f"{node.name}.scaled"), -1), {}, shape))
    plan.result(node, len(shape) - 1)
    multiply(plan, node.name, plan.values[node.name], plan.values[f"{node.name}.softmax"], v)


RULES = {
    **dict.fromkeys(("aten.sum.dim_IntList", "aten.amax.default"), reduce),
    **dict.fromkeys(("aten.softmax.int", "aten.log_softmax.int"), _softmax),
    "aten.layer_norm.default": _layer_norm,
    "aten.group_norm.default": _group_norm,
    **dict.fromkeys(("aten.matmul.default", "aten.bmm.default"), _matmul),
    "aten.scaled_dot_product_attention.default": _attention,
}
