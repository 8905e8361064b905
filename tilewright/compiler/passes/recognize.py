"""Requires: `simplify` and `cse` have run. Ensures: activations and normalisations that a model spells out in primitive
ops are one op each, whose code is better and whose fusion is known.

    %a = mul(%x, 0.70710678) : f32[8]
    %b = erf(%a) : f32[8]
    %c = add(%b, 1.0) : f32[8]                 ->    %y = gelu(%x) : f32[8]
    %d = mul(%x, %c) : f32[8]
    %y = mul(%d, 0.5) : f32[8]

Known: gelu (erf and tanh), swish, mish, hard_swish, hard_sigmoid, sigmoid, softmax, layer_norm and RMS norm with their
scale and bias. Constants must agree to 1e-4, or to the precision of half floats: exporters round sqrt(2) differently.
The norms' rules are in `recognize_norms`, of products with one-hot rows in `recognize_lookup`, of updated rows in `recognize_scatter`.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from ...ir.graph import Graph, Node, Value
from .recognize_lookup import LOOKUP_RULES
from .recognize_norms import NORM_RULES
from .recognize_scatter import SCATTER_RULES
from .rewriting import Rewriter, rewrite, rules

Ins = tuple[Value | None, ...]
CONSTANT_TOLERANCE = {"f16": 1e-3, "bf16": 8e-3}  # half an ulp or more; 1e-4 for wider types
MAX_FACTORS = 8


def recognize(g: Graph) -> Graph:
    return rewrite(g, _RULE)


@dataclass(frozen=True, slots=True)
class Product:
    """scale * factors[0] * factors[1] * …"""

    scale: float
    factors: tuple[Value, ...]


def product_of(r: Rewriter, n: Node, ins: Ins, depth: int = MAX_FACTORS) -> Product | None:
    """`n`'s result with multiplications, and divisions by numbers, taken apart as far as nobody else reads the parts."""
    x, y = ins
    if n.op not in ("mul", "div") or x is None or y is None or not n.outputs[0].type.dtype.is_float:
        return None
    scale, factors = 1.0, []
    for k, v in enumerate((x, y)):
        c = r.scalar(v)
        if c is not None:
            if n.op == "div" and (k == 0 or c == 0):
                return None
            scale = scale / c if n.op == "div" else scale * c
        elif n.op == "div" and k == 1:
            return None
        else:
            inner = r.private(v, "mul", "div")
            part = product_of(r, inner, inner.inputs, depth - 1) if inner is not None and depth else None
            scale *= part.scale if part else 1.0
            factors += part.factors if part else (v,)
    return Product(scale, tuple(factors))


def multiple_of(r: Rewriter, v: Value, x: Value) -> float | None:
    """c where v = c * x."""
    if v == x:
        return 1.0
    n = r.producer(v, "mul", "div")
    p = product_of(r, n, n.inputs) if n is not None else None
    if p is not None and p.factors == (x,):
        return p.scale
    inner = r.producer(v, "neg")
    return -1.0 if inner is not None and inner.inputs[0] == x else None


def close(a: float | int | bool | None, b: float, like: Value) -> bool:
    """Whether `a` is `b`, as a constant of like's type may be rounded."""
    return a is not None and math.isclose(a, b, rel_tol=CONSTANT_TOLERANCE.get(like.type.dtype.name, 1e-4))


def plus(r: Rewriter, v: Value, c: float) -> Value | None:
    """x where v = x + c."""
    n = r.producer(v, "add")
    found = r.split_scalar(n) if n is not None else None
    return found[0] if found is not None and close(found[1], c, v) else None


def clipped(r: Rewriter, v: Value, high: float) -> Value | None:
    """x where v = min(max(x, 0), high), in either order."""
    outer = r.producer(v, "min", "relu", "max")
    if outer is None:
        return None
    bounds: list[tuple[str, float]] = []
    x = v
    for _ in range(2):
        n = r.producer(x, "min", "max", "relu")
        if n is None or n.inputs[0] is None:
            return None
        found = (n.inputs[0], 0.0) if n.op == "relu" else r.split_scalar(n)
        if found is None:
            return None
        x = found[0]
        bounds.append(("max" if n.op == "relu" else n.op, found[1]))
    return x if sorted(bounds) == [("max", 0.0), ("min", high)] else None


def _product(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """Activations that are products."""
    p = product_of(r, n, ins)
    if p is None or p.scale <= 0:
        return None
    if len(p.factors) == 1:
        return _hard_sigmoid(r, n, p)
    if len(p.factors) != 2:
        return None
    for x, gate in (p.factors, p.factors[::-1]):
        if x.type == gate.type == n.outputs[0].type:
            for rule in (_gelu, _tanh_gelu, _swish, _hard_swish, _mish):
                if (new := rule(r, x, gate, p.scale)) is not None:
                    return new
    return None


def _gelu(r: Rewriter, x: Value, gate: Value, scale: float) -> Value | None:
    """0.5 * x * (erf(x / sqrt 2) + 1)"""
    e = plus(r, gate, 1.0)
    n = r.producer(e, "erf")
    if n is None or not close(scale, 0.5, x) or not close(multiple_of(r, n.operands[0], x), math.sqrt(0.5), x):
        return None
    return r.b.op("gelu", x, approximate="none")


def _tanh_gelu(r: Rewriter, x: Value, gate: Value, scale: float) -> Value | None:
    """0.5 * x * (tanh(sqrt(2 / pi) * (x + 0.044715 x^3)) + 1)"""
    e = plus(r, gate, 1.0)
    n = r.producer(e, "tanh")
    outer = r.producer(n.operands[0], "mul", "div") if n is not None and close(scale, 0.5, x) else None
    p = product_of(r, outer, outer.inputs) if outer is not None else None
    if p is None or not close(p.scale, math.sqrt(2 / math.pi), x) or len(p.factors) != 1:
        return None
    total = r.producer(p.factors[0], "add")
    if total is None or x not in total.inputs:
        return None
    cube = r.producer(total.inputs[1 - total.inputs.index(x)], "mul", "div")
    q = product_of(r, cube, cube.inputs) if cube is not None else None
    if q is None or not close(q.scale, 0.044715, x) or not _is_cube(r, q.factors, x):
        return None
    return r.b.op("gelu", x, approximate="tanh")


def _is_cube(r: Rewriter, factors: tuple[Value, ...], x: Value) -> bool:
    """Whether the product of `factors` is x^3; a shared x * x counts."""
    powers = 0
    for f in factors:
        n = r.producer(f, "mul")
        powers += 1 if f == x else 2 if n is not None and n.inputs == (x, x) else 4
    return powers == 3


def _swish(r: Rewriter, x: Value, gate: Value, scale: float) -> Value | None:
    """x * sigmoid(alpha * x)"""
    n = r.producer(gate, "sigmoid")
    alpha = multiple_of(r, n.operands[0], x) if n is not None and scale == 1 else None
    return None if alpha is None else r.b.op("swish", x, alpha=alpha)


def _hard_swish(r: Rewriter, x: Value, gate: Value, scale: float) -> Value | None:
    """x * clip(x + 3, 0, 6) / 6, and x * hard_sigmoid(x) with alpha = 1/6."""
    n = r.producer(gate, "hard_sigmoid")
    if n is not None and scale == 1 and n.inputs[0] == x:
        known = close(n.attrs.alpha, 1 / 6, x) and close(n.attrs.beta, 0.5, x)  # type: ignore[attr-defined]
        return r.b.op("hard_swish", x) if known else None
    inner = clipped(r, gate, 6.0)
    if inner is None or not close(scale, 1 / 6, x) or plus(r, inner, 3.0) != x:
        return None
    return r.b.op("hard_swish", x)


def _mish(r: Rewriter, x: Value, gate: Value, scale: float) -> Value | None:
    """x * tanh(softplus(x))"""
    t = r.producer(gate, "tanh")
    s = r.producer(t.operands[0], "softplus") if t is not None and scale == 1 else None
    return r.b.op("mish", x) if s is not None and s.operands[0] == x else None


def _hard_sigmoid(r: Rewriter, n: Node, p: Product) -> Value | None:
    """clip(x + 3, 0, 6) / 6, unless it gates x itself: then hard_swish takes the whole."""
    inner = clipped(r, p.factors[0], 6.0)
    x = plus(r, inner, 3.0) if inner is not None and close(p.scale, 1 / 6, inner) else None
    if x is None or x.type != n.outputs[0].type:
        return None
    return r.b.op("hard_sigmoid", x, alpha=1 / 6, beta=0.5)


def _sigmoid(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """1 / (1 + exp(-x))"""
    bottom = ins[-1]
    if bottom is None or (n.op == "div" and not r.is_scalar(ins[0], 1.0)):
        return None
    e = plus(r, bottom, 1.0)
    n_exp = r.producer(e, "exp")
    negated = r.producer(n_exp.operands[0], "neg") if n_exp is not None else None
    if negated is None or negated.operands[0].type != n.outputs[0].type:
        return None
    return r.b.op("sigmoid", negated.operands[0])


_RULE = rules({**NORM_RULES, **LOOKUP_RULES, **SCATTER_RULES, "reciprocal": (_sigmoid,), "mul": (_product, *NORM_RULES.get("mul", ())),
               "div": (_product, _sigmoid, *NORM_RULES.get("div", ()))})
