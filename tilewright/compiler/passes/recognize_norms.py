"""Softmax and layer normalisation spelled out in reductions and arithmetic: rules of the pass `recognize`.

    %m = reduce(%x) {kind="mean", axes=(1,)} : f32[8,1]
    %d = sub(%x, %m) : f32[8,16]
    %q = mul(%d, %d) : f32[8,16]
    %v = reduce(%q) {kind="mean", axes=(1,)} : f32[8,1]
    %e = add(%v, 1e-05) : f32[8,1]
    %s = sqrt(%e) : f32[8,1]
    %n = div(%d, %s) : f32[8,16]
    %g = mul(%n, @gamma) : f32[8,16]
    %y = add(%g, @beta) : f32[8,16]            ->    %y = layer_norm(%x, @gamma, @beta) {axes=(1,)} : f32[8,16]
"""
from __future__ import annotations

import math

from ...ir.graph import Node, Value
from ...ir.ops.normalize import LayerNormAttrs
from ...ir.ops.reduce import ReduceAttrs
from ...ir.types import broadcast_shapes
from .rewriting import Rewriter, Rule

Ins = tuple[Value | None, ...]


def _reduction(r: Rewriter, v: Value | None, kind: str) -> tuple[Value, tuple[int, ...]] | None:
    """(x, axes) where v is a reduction of `kind` over axes of x that keeps them as 1."""
    n = r.producer(v, "reduce")
    if n is None or not isinstance(n.attrs, ReduceAttrs) or n.attrs.kind != kind or not n.attrs.keepdims or not n.attrs.axes:
        return None
    return n.operands[0], tuple(sorted(n.attrs.axes))


def mean_of(r: Rewriter, v: Value | None) -> tuple[Value, tuple[int, ...]] | None:
    """(x, axes) where v is the mean of x over axes: as such, or a sum divided by the count."""
    if (found := _reduction(r, v, "mean")) is not None:
        return found
    n = r.producer(v, "mul", "div")
    split = r.split_scalar(n) if n is not None else None
    total = _reduction(r, split[0], "sum") if split is not None else None
    if n is None or split is None or total is None:
        return None
    count = math.prod(total[0].type.shape[a] for a in total[1])
    return total if math.isclose(split[1], count if n.op == "div" else 1 / count, rel_tol=1e-6) else None


def _mean_square(r: Rewriter, v: Value | None) -> tuple[Value, tuple[int, ...]] | None:
    """(x, axes) where v is the mean of x * x."""
    found = mean_of(r, v)
    square = r.producer(found[0], "mul") if found is not None else None
    if found is None or square is None or square.inputs[0] is None or square.inputs[0] != square.inputs[1]:
        return None
    return square.inputs[0], found[1]


def _deviation(r: Rewriter, v: Value | None) -> tuple[Value, tuple[int, ...], float] | None:
    """(x, axes, epsilon) where v = sqrt(mean(x * x) + epsilon)."""
    root = r.producer(v, "sqrt")
    inner = r.producer(root.operands[0], "add") if root is not None else None
    split = r.split_scalar(inner) if inner is not None else None
    found = _mean_square(r, split[0]) if split is not None else None
    return None if found is None or split is None else (*found, float(split[1]))


def _inverse(r: Rewriter, v: Value | None) -> Value | None:
    """x where v = 1 / x."""
    n = r.producer(v, "reciprocal", "div")
    if n is None or (n.op == "div" and not r.is_scalar(n.inputs[0], 1.0)):
        return None
    return n.inputs[-1]


def _norm(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """d / sqrt(mean(d * d) + epsilon), the division perhaps as a product with the reciprocal. Where d = x - mean(x) this
    normalises x."""
    x, y = ins
    for d, rest in ((x, y),) if n.op == "div" else ((x, y), (y, x)):
        found = _deviation(r, rest if n.op == "div" else _inverse(r, rest))
        if d is None or found is None or found[0] != d or d.type != n.outputs[0].type:
            continue
        _, axes, epsilon = found
        centred = r.producer(d, "sub")
        mean = mean_of(r, centred.inputs[1]) if centred is not None else None
        if centred is not None and mean is not None and mean == (centred.inputs[0], axes):
            return r.b.op("layer_norm", mean[0], None, None, axes=axes, epsilon=epsilon)
        return r.b.op("layer_norm", d, None, None, axes=axes, epsilon=epsilon, center=0)
    return None


def _norm_affine(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """layer_norm(x) * scale and layer_norm(x, scale) + bias, for constants."""
    for v, c in (ins, ins[::-1]):
        norm = r.private(v, "layer_norm") if v is not None else None
        if norm is None or c is None or not r.static(c) or not _fits(norm, c):
            continue
        x, scale, bias = (*norm.inputs, None, None)[:3]
        assert isinstance(norm.attrs, LayerNormAttrs)
        if bias is None and not norm.attrs.statistics and (n.op == "add" or scale is None):
            return r.b.emit("layer_norm", (x, scale, c) if n.op == "add" else (x, c, None), norm.attrs)[0]
    return None


def _fits(norm: Node, c: Value) -> bool:
    t = norm.outputs[0].type
    return c.type.dtype == t.dtype and broadcast_shapes(c.type.shape, t.shape) == t.shape


def _softmax(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """exp(x - max(x)) / sum(exp(x - max(x))) over one axis."""
    e, total = ins[0], _reduction(r, ins[1], "sum")
    exp = r.producer(e, "exp")
    if exp is None or total is None or total[0] != e or len(total[1]) != 1:
        return None
    shifted = r.producer(exp.operands[0], "sub")
    top = _reduction(r, shifted.inputs[1], "max") if shifted is not None else None
    if shifted is None or top is None or top != (shifted.inputs[0], total[1]):
        return None
    return r.b.op("softmax", top[0], axis=total[1][0])


NORM_RULES: dict[str, tuple[Rule, ...]] = {"div": (_softmax, _norm), "mul": (_norm, _norm_affine), "add": (_norm_affine,)}
