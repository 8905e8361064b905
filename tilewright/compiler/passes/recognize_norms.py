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
from dataclasses import dataclass

from ...ir.graph import Node, Value
from ...ir.ops.normalize import LayerNormAttrs
from ...ir.ops.reduce import ReduceAttrs
from ...ir.types import broadcast_shapes
from .rewriting import Rewriter, Rule

Ins = tuple[Value | None, ...]


Moments = tuple[Value, tuple[int, ...]]  # a tensor and the axes it was reduced over


def _bare(r: Rewriter, v: Value | None) -> Value | None:
    """`v` before reshapes that only add or remove dimensions of extent 1."""
    while v is not None and (n := r.producer(v, "reshape")) and _units_aside(n.operands[0]) == _units_aside(v):
        v = n.operands[0]
    return v


def _units_aside(v: Value) -> list[int]:
    return [d for d in v.type.shape if d != 1]


def _rows_of(v: Value | None, x: Value, axes: tuple[int, ...]) -> bool:
    """Whether `v` has one element a row of x, and broadcasts to x that way."""
    return v is not None and v.type.shape == tuple(1 if k in axes else d for k, d in enumerate(x.type.shape))


def _reduction(r: Rewriter, v: Value | None, kind: str) -> Moments | None:
    """(x, axes) where v is a reduction of `kind` over axes of x, perhaps reshaped."""
    n = r.producer(_bare(r, v), "reduce")
    if n is None or not isinstance(n.attrs, ReduceAttrs) or n.attrs.kind != kind or not n.attrs.axes:
        return None
    return n.operands[0], tuple(sorted(n.attrs.axes))


def mean_of(r: Rewriter, v: Value | None) -> Moments | None:
    """(x, axes) where v is the mean of x over axes: as such, or a sum divided by the count."""
    if (found := _reduction(r, v, "mean")) is not None:
        return found
    n = r.producer(_bare(r, v), "mul", "div")
    split = r.split_scalar(n) if n is not None else None
    total = _reduction(r, split[0], "sum") if split is not None else None
    if n is None or split is None or total is None:
        return None
    count = math.prod(total[0].type.shape[a] for a in total[1])
    return total if math.isclose(split[1], count if n.op == "div" else 1 / count, rel_tol=1e-6) else None


def _squared(r: Rewriter, v: Value | None) -> Value | None:
    """x where v = x * x."""
    n = r.producer(v, "mul")
    return n.inputs[0] if n is not None and n.inputs[0] == n.inputs[1] else None


def _mean_square(r: Rewriter, v: Value | None) -> Moments | None:
    """(x, axes) where v is the mean of x * x."""
    found = mean_of(r, v)
    x = _squared(r, found[0]) if found is not None else None
    return None if found is None or x is None else (x, found[1])


def _variance(r: Rewriter, v: Value | None) -> Moments | None:
    """(x, axes) where v = mean(x * x) - mean(x)^2, perhaps kept from being negative: how Flax computes it."""
    v = _bare(r, v)
    positive = r.producer(v, "relu")
    n = r.producer(_bare(r, positive.operands[0]) if positive is not None else v, "sub")
    if n is None:
        return None
    square, mean = _mean_square(r, n.inputs[0]), mean_of(r, _squared(r, _bare(r, n.inputs[1])))
    return square if square is not None and square == mean else None


@dataclass(frozen=True, slots=True)
class Deviation:
    """sqrt(variance(x) + epsilon) if `centred`, else sqrt(mean(x * x) + epsilon)."""

    x: Value
    axes: tuple[int, ...]
    epsilon: float
    centred: bool


def _deviation(r: Rewriter, v: Value | None) -> Deviation | None:
    root = r.producer(_bare(r, v), "sqrt")
    inner = r.producer(_bare(r, root.operands[0]), "add") if root is not None else None
    split = r.split_scalar(inner) if inner is not None else None
    if split is None:
        return None
    if (found := _mean_square(r, split[0])) is not None:
        return Deviation(*found, float(split[1]), False)
    found = _variance(r, split[0])
    return None if found is None else Deviation(*found, float(split[1]), True)


def _inverse(r: Rewriter, v: Value | None) -> Value | None:
    """x where v = 1 / x."""
    n = r.producer(_bare(r, v), "reciprocal", "div")
    if n is None or (n.op == "div" and not r.is_scalar(n.inputs[0], 1.0)):
        return None
    return n.inputs[-1]


def _norm(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """d / deviation, the division perhaps as a product with the reciprocal, and that already scaled by a constant."""
    x, y = ins
    for d, rest in ((x, y),) if n.op == "div" else ((x, y), (y, x)):
        if d is None or rest is None or d.type != n.outputs[0].type:
            continue
        if (new := _normalised(r, d, rest, rest if n.op == "div" else _inverse(r, rest), None)) is not None:
            return new
        scaled = r.producer(rest, "mul") if n.op == "mul" else None
        for inverse, scale in (scaled.inputs, scaled.inputs[::-1]) if scaled is not None else ():
            if scale is not None and r.static(scale) and broadcast_shapes(scale.type.shape, d.type.shape) == d.type.shape and \
                    (new := _normalised(r, d, inverse, _inverse(r, inverse), scale)) is not None:
                return new
    return None


def _normalised(r: Rewriter, d: Value, row: Value | None, deviation: Value | None, scale: Value | None) -> Value | None:
    """layer_norm for d / deviation * scale, where `row` is what d meets: the deviation or its inverse, one a row."""
    found = _deviation(r, deviation)
    if found is None or not _rows_of(row, d, found.axes):
        return None
    centred = r.producer(d, "sub")
    mean = mean_of(r, centred.inputs[1]) if centred is not None and _rows_of(centred.inputs[1], d, found.axes) else None
    whole = centred is not None and mean is not None and mean == (centred.inputs[0], found.axes)
    if found.x == d and not found.centred:
        x = mean[0] if mean is not None and whole else d
        return r.b.op("layer_norm", x, scale, None, axes=found.axes, epsilon=found.epsilon, center=int(whole))
    if found.centred and mean is not None and whole and found.x == mean[0]:
        return r.b.op("layer_norm", mean[0], scale, None, axes=found.axes, epsilon=found.epsilon)
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
    if exp is None or e is None or total is None or total[0] != e or len(total[1]) != 1 or not _rows_of(ins[1], e, total[1]):
        return None
    shifted = r.producer(exp.operands[0], "sub")
    top = _reduction(r, shifted.inputs[1], "max") if shifted is not None else None
    if shifted is None or top is None or top != (shifted.inputs[0], total[1]) or not _rows_of(shifted.inputs[1], e, total[1]):
        return None
    return r.b.op("softmax", top[0], axis=total[1][0])


NORM_RULES: dict[str, tuple[Rule, ...]] = {"div": (_softmax, _norm), "mul": (_norm, _norm_affine), "add": (_norm_affine,)}
