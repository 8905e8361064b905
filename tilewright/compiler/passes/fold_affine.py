"""Requires: nothing. Ensures: no batch norm is left; scaling and shifting of a contraction's channels by constants is
part of its weights and bias.

    %c = conv(%x, @w) : f32[1,8,5,5]               %r = reshape(@s) {shape=(8, 1, 1, 1)} : f32[8,1,1,1]
    %m = mul(%c, @s) : f32[1,8,5,5]          ->    %w = mul(@w, %r) : f32[8,3,3,3]
    %y = add(%m, @t) : f32[1,8,5,5]                %b = reshape(@t) {shape=(8,)} : f32[8]
                                                   %y = conv(%x, %w, %b) : f32[1,8,5,5]

The new weights are ops on the old ones, so they land in the preparation graph and the old ones stay updatable. Only
contractions that nobody else reads are changed. Sums are reassociated: results agree to rounding, not bit for bit.
"""
from __future__ import annotations

from ...ir.graph import Graph, Node, Value
from ...ir.ops.shape import expand, reshape
from ...ir.types import TensorType, broadcast_shapes
from .rewriting import Rewriter, copy_node, rewrite, rules

Ins = tuple[Value | None, ...]
CHANNEL_AXIS = {"conv": 1, "conv_transpose": 1, "matmul": -1}


def fold_affine(g: Graph) -> Graph:
    return rewrite(rewrite(g, rules({"batch_norm": (_batch_norm,)})), _RULE)


def _batch_norm(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """x * s + t with s = scale / sqrt(var + epsilon) and t = bias - mean * s, where all four are constants."""
    x, scale, bias, mean, var = ins[:5]
    if x is None or scale is None or bias is None or mean is None or var is None or len(n.outputs) != 1:
        return None
    if not all(map(r.static, (scale, bias, mean, var))) or len({v.type.dtype for v in (x, scale, bias, mean, var)}) > 1:
        return None
    b, dtype = r.b, x.type.dtype
    epsilon = b.constant(float(n.attrs.epsilon), dtype)  # type: ignore[attr-defined]
    s = b.op("div", scale, b.op("sqrt", b.op("add", var, epsilon)))
    t = b.op("sub", bias, b.op("mul", mean, s))
    shape = (s.type.size, *(1,) * (x.type.rank - 2))
    return b.op("add", b.op("mul", x, reshape(b, s, shape)), reshape(b, t, shape))


def channel_vector(r: Rewriter, v: Value | None, of: TensorType, axis: int) -> Value | None:
    """A constant that varies at most along `axis` of a tensor `of`, as a vector of 1 or all channels; None for others."""
    if v is None or not r.static(v) or v.type.rank > of.rank or v.type.dtype != of.dtype:
        return None
    shape = (1,) * (of.rank - v.type.rank) + v.type.shape
    axis %= of.rank
    if any(n != 1 for k, n in enumerate(shape) if k != axis) or shape[axis] not in (1, of.shape[axis]):
        return None
    return reshape(r.b, v, (shape[axis],))


def _operands(r: Rewriter, n: Node, ins: Ins) -> list[tuple[Value, Value]]:
    """(x, constant operand) in the orders that `n` allows."""
    x, y = ins
    if x is None or y is None:
        return []
    pairs = [(x, y)] if n.op in ("sub", "div") else [(x, y), (y, x)]
    return [(a, c) for a, c in pairs if a.type == n.outputs[0].type and r.static(c) and not r.static(a)]


def _contraction(r: Rewriter, x: Value) -> Node | None:
    """The contraction with constant weights that defines `x`, read by nobody else."""
    c = r.private(x, *CHANNEL_AXIS)
    if c is None or not x.type.dtype.is_float or not all(v is None or r.static(v) for v in c.inputs[1:]):
        return None
    return None if c.op == "conv_transpose" and c.attrs.groups != 1 else c  # type: ignore[attr-defined]


def _scale(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """mul and div by a channel vector."""
    for x, c in _operands(r, n, ins):
        if conv := _contraction(r, x):
            s = channel_vector(r, c, x.type, CHANNEL_AXIS[conv.op])
            if s is not None:
                return _scaled(r, conv, n.op, s)
        elif (inner := r.private(x, "add")) and (new := _scale_past_add(r, n, inner, c)) is not None:
            return new
    return None


def _scaled(r: Rewriter, c: Node, op: str, s: Value) -> Value:
    x, w, *bias = c.inputs
    assert x is not None and w is not None
    rank = w.type.rank
    axis = {"conv": 0, "conv_transpose": 1, "matmul": rank - 1}[c.op]
    w = r.b.op(op, w, reshape(r.b, s, tuple(s.type.size if k == axis else 1 for k in range(rank))))
    new_bias = [None if b is None else r.b.op(op, b, s) for b in bias]
    return copy_node(r, c, (x, w, *new_bias))


def _scale_past_add(r: Rewriter, n: Node, inner: Node, c: Value) -> Value | None:
    """(matmul(x, w) + t) * s -> matmul(x, w * s) + t * s;  (x * a + t) * s -> x * (a * s) + t * s."""
    for x, t in _operands(r, inner, inner.inputs):
        if (m := r.private(x, "mul")) and _grows_not(t, c) and x.type.dtype.is_float:
            for y, a in _operands(r, m, m.inputs):
                if _grows_not(a, c):
                    return r.b.op("add", r.b.op("mul", y, r.b.op(n.op, a, c)), r.b.op(n.op, t, c))
        if (m := _contraction(r, x)) and m.op == "matmul":
            s, shift = (channel_vector(r, v, x.type, -1) for v in (c, t))
            if s is not None and shift is not None:
                return r.b.op("add", _scaled(r, m, n.op, s), r.b.op(n.op, shift, s))
    return None


def _grows_not(s: Value, t: Value) -> bool:
    """Whether combining two constants gives one that is no larger than either."""
    return broadcast_shapes(s.type.shape, t.type.shape) in (s.type.shape, t.type.shape)


def _shift(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """add and sub of a channel vector, into the bias of a convolution."""
    for x, c in _operands(r, n, ins):
        conv = _contraction(r, x)
        t = channel_vector(r, c, x.type, 1) if conv is not None and conv.op != "matmul" else None
        if conv is None or t is None:
            continue
        old = conv.inputs[2] if len(conv.inputs) > 2 else None
        if old is not None:
            bias = r.b.op(n.op, old, t)
        else:
            bias = expand(r.b, t if n.op == "add" else r.b.op("neg", t), (x.type.shape[1],))
        return copy_node(r, conv, (*conv.inputs[:2], bias))
    return None


def _joined(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """(x + s) + t -> x + (s + t), (x * s) * t -> x * (s * t) for floating-point constants s and t that do not grow."""
    for x, t in _operands(r, n, ins):
        inner = r.private(x, n.op) if n.op in ("add", "mul") and x.type.dtype.is_float else None
        for y, s in _operands(r, inner, inner.inputs) if inner else ():
            if _grows_not(s, t):
                return r.b.op(n.op, y, r.b.op(n.op, s, t))
    return None


_RULE = rules({"mul": (_scale, _joined), "div": (_scale,), "add": (_shift, _joined), "sub": (_shift,)})
