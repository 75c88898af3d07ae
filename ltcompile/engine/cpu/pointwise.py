"""Operations on single elements: activations, arithmetic with broadcasting, batch norms that could not be folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ltcompile.engine.cpu.code import Array, literal
from ltcompile.engine.cpu.plan import Placed, Plan
from ltcompile.errors import Unavailable
from ltcompile.lower.passes._fusion import argument
from ltcompile.lower.program import Node

_UNARY = {  # of x0
    **{name: f"act_{name}(x0)" for name in ("relu", "relu6", "silu", "hardswish", "tanh")},
    "neg": "-x0",
    "abs": "(x0 < 0.0f ? -x0 : x0)",
    "sqrt": "by_lane(x0, sqrtf)",
    "sin": "by_lane(x0, sinf)",
    "erf": "erf_of(x0)",
    "mish": "(x0 * act_tanh(by_lane(x0, [](float v) { return v > 20.0f ? v : log1pf(expf(v)); })))",
}
_UNARY_OF_ZERO = {  # whose value at zero is not zero
    "sigmoid": "act_sigmoid(x0)",
    "hardsigmoid": "act_hardsigmoid(x0)",
    "exp": "exp_of(x0)",
    "cos": "by_lane(x0, cosf)",
    "log": "by_lane(x0, logf)",
    "rsqrt": "(1.0f / by_lane(x0, sqrtf))",
}
_BINARY = {"mul": "x0 * x1", "div": "x0 / x1", "maximum": "larger(x0, x1)", "minimum": "smaller(x0, x1)"}
_POWERS = {1: "x0", 2: "x0 * x0", 3: "x0 * x0 * x0", 0.5: "by_lane(x0, sqrtf)", -1: "1.0f / x0", -0.5: "1.0f / by_lane(x0, sqrtf)"}


def number(value: float) -> str:
    """A C++ literal of a float. Raises Unavailable where it is infinite or NaN."""
    if not np.isfinite(np.float32(value)):
        raise Unavailable(f"it uses the number {value}")
    return f"({literal(value)})"


def same(number_text: str) -> str:
    return f"all<L>({number_text})"


def apply(plan: Plan, node: Node, operands: list[Any], expression: str, keeps_zero: bool = True) -> None:
    """The result of an expression of operands that are arguments, constants of the program or arrays."""
    inputs = [_operand(plan, value) for value in operands]
    like = next((x for x in inputs if isinstance(x, Placed) and x.shape == tuple(node.shape)), None)
    channel = like.channel if like is not None else None
    plan.result(node, channel)
    plan.pointwise(plan.values[node.name], inputs, expression, node.name, channel, keeps_zero)


def _operand(plan: Plan, value: Any) -> Placed | Array:
    if isinstance(value, np.ndarray):
        return value
    return plan.constant(value) if plan.is_constant(value) else plan.placed(value)


def _unary(expression: str, keeps_zero: bool) -> Callable[[Plan, Node], None]:
    return lambda plan, node: apply(plan, node, [node.args[0]], expression, keeps_zero)


def _binary(expression: str) -> Callable[[Plan, Node], None]:
    def rule(plan: Plan, node: Node) -> None:
        if node.kwargs:
            raise Unavailable(f"it has {', '.join(node.kwargs)}")
        operands = [np.float32(a).reshape(1) if isinstance(a, int | float) else a for a in node.args[:2]]
        apply(plan, node, operands, expression, keeps_zero=expression == "x0 * x1")

    return rule


def _sum(sign: str, reverse: bool = False) -> Callable[[Plan, Node], None]:
    def rule(plan: Plan, node: Node) -> None:
        alpha = node.kwargs.get("alpha", argument(node, 2, 1))
        operands = [np.float32(a).reshape(1) if isinstance(a, int | float) else a for a in node.args[:2]]
        second = "x1" if alpha == 1 else f"{number(alpha)} * x1"
        if reverse:
            apply(plan, node, operands, f"x1 {sign} ({'x0' if alpha == 1 else f'{number(alpha)} * x0'})", False)
        else:
            scalar = any(isinstance(a, np.ndarray) for a in operands)
            apply(plan, node, operands, f"x0 {sign} {second}", not scalar and not any(plan.is_constant(a) for a in operands))

    return rule


def _gelu(plan: Plan, node: Node) -> None:
    if node.kwargs.get("approximate", "none") == "none":
        return apply(plan, node, [node.args[0]], "act_gelu(x0)")
    inner = "0.7978845608028654f * (x0 + 0.044715f * x0 * x0 * x0)"
    return apply(plan, node, [node.args[0]], f"0.5f * x0 * (1.0f + act_tanh(Vector<L>({inner})))")


def _clamp(plan: Plan, node: Node) -> None:
    low, high = argument(node, 1, node.kwargs.get("min")), argument(node, 2, node.kwargs.get("max"))
    _between(plan, node, low, high)


def _hardtanh(plan: Plan, node: Node) -> None:
    _between(plan, node, argument(node, 1, -1.0), argument(node, 2, 1.0))


def _between(plan: Plan, node: Node, low: Any, high: Any) -> None:
    text, keeps = "x0", True
    if low is not None:
        text, keeps = f"(x0 < {number(low)} ? {same(number(low))} : x0)", low <= 0
    if high is not None:
        text, keeps = f"not_above<Vector<L>>({text}, {same(number(high))})", keeps and high >= 0
    apply(plan, node, [node.args[0]], text, keeps)


def _leaky_relu(plan: Plan, node: Node) -> None:
    apply(plan, node, [node.args[0]], f"(x0 < 0.0f ? x0 * {number(argument(node, 1, 0.01))} : x0)")


def _elu(plan: Plan, node: Node) -> None:
    alpha, scale, inside = (number(argument(node, at, 1.0)) for at in (1, 2, 3))
    apply(plan, node, [node.args[0]], f"{scale} * (x0 < 0.0f ? {alpha} * (exp_of(Vector<L>({inside} * x0)) - 1.0f) : x0)")


def _power(plan: Plan, node: Node) -> None:
    power = node.args[1]
    if power not in _POWERS:
        raise Unavailable(f"its power is {power}")
    apply(plan, node, [node.args[0]], _POWERS[power], power > 0)


def _batch_norm(plan: Plan, node: Node) -> None:
    x, weight, bias, mean, variance = node.args[:5]
    eps = float(node.args[6])
    scale = 1 / np.sqrt(plan.constant(variance).astype(np.float64) + eps)
    if weight is not None:
        scale = scale * plan.constant(weight)
    shift = -plan.constant(mean) * scale + (0 if bias is None else plan.constant(bias))
    shape = plan.placed(x).shape
    across = (1, -1, *[1] * (len(shape) - 2))
    operands = [x, scale.astype(np.float32).reshape(across), shift.astype(np.float32).reshape(across)]
    normed = Node(node.name, node.target, (), {}, shape, node.layer)
    apply(plan, normed, operands, "x0 * x1 + x2", keeps_zero=False)
    plan.values[node.name] = [plan.values[node.name]]  # PyTorch returns the saved statistics too


RULES: dict[str, Callable[[Plan, Node], None]] = {
    **{f"aten.{name}.default": _unary(text, True) for name, text in _UNARY.items()},
    **{f"aten.{name}.default": _unary(text, False) for name, text in _UNARY_OF_ZERO.items()},
    **{f"aten.{name}.{kind}": _binary(text) for name, text in _BINARY.items() for kind in ("Tensor", "Scalar", "default")},
    **{f"aten.{name}.{kind}": _sum(sign) for name, sign in (("add", "+"), ("sub", "-")) for kind in ("Tensor", "Scalar")},
    "aten.rsub.Scalar": _sum("-", reverse=True),
    "aten.gelu.default": _gelu,
    "aten.clamp.default": _clamp,
    "aten.clamp_min.default": _clamp,
    "aten.hardtanh.default": _hardtanh,
    "aten.leaky_relu.default": _leaky_relu,
    "aten.elu.default": _elu,
    "aten.pow.Tensor_Scalar": _power,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
}
