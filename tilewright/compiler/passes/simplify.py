"""Requires: nothing. Ensures: the neutral, repeated and self-cancelling arithmetic below is gone. Values stay the same
(x + 0 may turn -0.0 into 0.0 and back; x*x*x rounds once more than pow).

    %a = mul(%x, 1.0) : f32[4]
    %b = cast(%a) {dtype=f64} : f64[4]      ->    %d = mul(%x, 0.125) : f32[4]
    %c = cast(%b) {dtype=f32} : f32[4]
    %d = div(%c, 8.0) : f32[4]                    (a division by anything but a power of two stays)

Shapes, slices and transposes have their own pass, `simplify_layout`.
"""
from __future__ import annotations

import math

import numpy as np

from ...ir.graph import Graph, Node, Value
from ...ir.ops.shape import expand
from ...ir.types import DType, broadcast_shapes
from .rewriting import Rewriter, copy_node, is_map, rewrite, rules

Ins = tuple[Value | None, ...]
IDEMPOTENT = ("relu", "abs", "floor", "ceil", "round", "trunc", "sign")


def simplify(g: Graph) -> Graph:
    return rewrite(g, _rule)


def _keep(r: Rewriter, n: Node, x: Value) -> Value | None:
    """`x` in place of `n`'s result, broadcast to its shape where that is needed."""
    t = n.outputs[0].type
    return expand(r.b, x, t.shape) if x.type.dtype == t.dtype else None


def _neutral(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """x + 0, 0 + x, x * 1, 1 * x, x - 0, x / 1, x ** 1."""
    unit = 0 if n.op in ("add", "sub") else 1
    found = r.split_scalar(n, ins)
    return _keep(r, n, found[0]) if found is not None and found[1] == unit else None


def _zero_times(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """x * 0 for integers; floats may be NaN or infinite."""
    found = r.split_scalar(n, ins)
    t = n.outputs[0].type
    if found is None or not t.dtype.is_int or found[1] != 0:
        return None
    return expand(r.b, r.b.constant(np.zeros((), t.dtype.numpy)), t.shape)


def _power_of_two(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """x / 2^k -> x * 2^-k, which is exact."""
    x, y = ins
    c = r.scalar(y)
    if x is None or y is None or c is None or not y.type.dtype.is_float or not math.isfinite(c) or c == 0:
        return None
    mantissa, exponent = math.frexp(abs(c))
    if mantissa != 0.5 or not -10 <= exponent <= 10:
        return None
    return r.b.op("mul", x, r.b.constant(np.full(y.type.shape, 1 / c, y.type.dtype.numpy)))


def _small_power(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """x ** 2, x ** 3; a broadcast of x by the exponent's shape stays a power."""
    x, c = ins[0], r.scalar(ins[1])
    if x is None or c not in (2, 3) or x.type != n.outputs[0].type:
        return None
    square = r.b.op("mul", x, x)
    return square if c == 2 else r.b.op("mul", square, x)


def _negated(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """x + (-y) -> x - y;  x - (-y) -> x + y."""
    x, y = ins
    if x is None or y is None:
        return None
    if inner := r.producer(y, "neg"):
        return r.b.op("sub" if n.op == "add" else "add", x, inner.inputs[0])
    if n.op == "add" and (inner := r.producer(x, "neg")):
        return r.b.op("sub", y, inner.inputs[0])
    return None


def _twice(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """neg(neg x), not(not x) -> x;  relu(relu x) -> relu x."""
    inner = r.producer(ins[0], n.op)
    if inner is None:
        return None
    return inner.outputs[0] if n.op in IDEMPOTENT else inner.inputs[0]


def _cast(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """A cast to the same type, or of a value that an earlier cast kept whole."""
    x, to = ins[0], n.outputs[0].type.dtype
    if x is None or x.type.dtype == to:
        return x
    inner = r.producer(x, "cast")
    if inner is None or not exactly_holds(x.type.dtype, inner.operands[0].type.dtype):
        return None
    source = inner.operands[0]
    return source if source.type.dtype == to else r.b.op("cast", source, dtype=to)


def exactly_holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`."""
    if wide == narrow or narrow.kind == "b":
        return True
    if wide.is_float and narrow.is_float:
        return wide.bits > narrow.bits
    if wide.is_float and narrow.is_int:
        return narrow.bits - (narrow.kind == "i") <= {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}[wide.name]
    if wide.is_int and narrow.is_int:
        return wide.bits > narrow.bits and (wide.kind == "i" or narrow.kind == "u")
    return False


def _bound(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """min(x, inf), max(x, -inf) -> x; a bound already applied inside is not applied twice."""
    found = r.split_scalar(n, ins)
    if found is None:
        return None
    x, c = found
    if isinstance(c, float) and math.isinf(c) and (c > 0) == (n.op == "min"):
        return _keep(r, n, x)
    if (inner := r.producer(x, n.op)) and (again := r.split_scalar(inner)) and again[1] == c:
        return _keep(r, n, x)
    if n.op == "max" and c == 0 and r.producer(x, "relu"):
        return _keep(r, n, x)
    return None


def _relu_as_max(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """max(x, 0) -> relu(x) for floats (both pass NaN), so that later rules know one spelling."""
    found = r.split_scalar(n, ins)
    if found is None or found[1] != 0 or found[0].type != n.outputs[0].type or not found[0].type.dtype.is_float:
        return None
    return r.b.op("relu", found[0])


def _where(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """where(true, x, y) -> x;  where(c, x, x) -> x."""
    cond, x, y = ins
    if x is None or y is None:
        return None
    known = r.scalar(cond)
    if known is not None:
        return _keep(r, n, x if known else y)
    return _keep(r, n, x) if x == y else None


def _broadcast(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """An expand, or a literal of equal elements, that feeds a map which broadcasts anyway goes."""
    if len(ins) < 2:
        return None
    best = list(ins)
    for k, v in enumerate(ins):
        small = _before_broadcast(r, v)
        if small is not None:
            trial = [*best[:k], small, *best[k + 1:]]
            if broadcast_shapes(*(x.type.shape for x in trial if x is not None)) == n.outputs[0].type.shape:
                best = trial
    return None if best == list(ins) else copy_node(r, n, best)


def _before_broadcast(r: Rewriter, v: Value | None) -> Value | None:
    if inner := r.producer(v, "expand"):
        return inner.operands[0]
    if v is None or v.type.size < 2 or r.scalar(v) is None:
        return None
    a = r.literal(v)
    assert a is not None
    return r.b.constant(a.reshape(-1)[0])


_TABLE = rules({
    "add": (_neutral, _negated), "sub": (_neutral, _negated), "mul": (_neutral, _zero_times), "div": (_neutral, _power_of_two),
    "pow": (_neutral, _small_power), "cast": (_cast,), "where": (_where,), "min": (_bound,), "max": (_bound, _relu_as_max),
    "neg": (_twice,), "not": (_twice,), **dict.fromkeys(IDEMPOTENT, (_twice,)),
})


def _rule(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    new = _TABLE(r, n, ins)
    if new is None and is_map(n) and len(ins) > 1:
        new = _broadcast(r, n, ins)
    assert new is None or isinstance(new, Value)
    return new
