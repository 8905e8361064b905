"""Requires: nothing. Ensures: ops that only move elements are merged with each other and gone where they do nothing.

    %a = transpose(%x) {perm=(0, 2, 1)} : f32[2,4,3]
    %b = relu(%a) : f32[2,4,3]                              ->    %b = relu(%x) : f32[2,3,4]
    %c = transpose(%b) {perm=(0, 2, 1)} : f32[2,3,4]

    reshape(reshape x), slice(slice x), pad(pad x), concat(concat x)   ->   one of them
    slice(concat(a, b)) that lies in a                                 ->   slice(a)
    gather(x, 1-D or scalar literal with even steps)                   ->   slice
    transpose of, reduction over dimensions of extent 1 only           ->   reshape
    conv(pad x) with zeros                                             ->   conv(x) with more padding
    map(reshape y) that drops unit dimensions of a convolution         ->   reshape(map y): the map joins the convolution
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...ir.graph import Graph, Node, Value
from ...ir.op import OPS
from ...ir.ops.conv import ConvAttrs
from ...ir.ops.elementwise import Map
from ...ir.ops.reduce import ReduceAttrs
from ...ir.ops.shape import ShapeAttrs, TransposeAttrs, expand, reshape, transpose
from ...ir.ops.slices import AxisAttrs, PadAttrs, SliceAttrs, concat
from .rewriting import Rewriter, copy_node, is_map, rewrite, rules

Ins = tuple[Value | None, ...]


def simplify_layout(g: Graph) -> Graph:
    return rewrite(g, _RULE)


def _reshape(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    (x,) = ins
    assert x is not None and isinstance(n.attrs, ShapeAttrs)
    while inner := r.producer(x, "reshape"):
        x = inner.operands[0]
    return None if x is ins[0] and x.type.shape != n.attrs.shape else reshape(r.b, x, n.attrs.shape)


def _transpose(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    (x,) = ins
    assert x is not None and isinstance(n.attrs, TransposeAttrs)
    perm = n.attrs.perm
    if inner := r.producer(x, "transpose"):
        assert isinstance(inner.attrs, TransposeAttrs)
        return transpose(r.b, inner.operands[0], tuple(inner.attrs.perm[p] for p in perm))
    real = [p for p in perm if x.type.shape[p] != 1]
    if real == sorted(real) or x.type.size == 0:  # nothing but unit dimensions changes place
        return reshape(r.b, x, n.outputs[0].type.shape)
    return _transpose_past_maps(r, n, x)


def _transpose_past_maps(r: Rewriter, n: Node, x: Value) -> Value | None:
    """transpose(map(… transpose(y))) -> map(… y) where the two cancel and nobody else reads what lies between."""
    assert isinstance(n.attrs, TransposeAttrs)
    between: list[Node] = []
    while m := r.private(x):
        if m.op == "transpose":
            assert isinstance(m.attrs, TransposeAttrs)
            if tuple(m.attrs.perm[p] for p in n.attrs.perm) != tuple(range(len(n.attrs.perm))):
                return None
            y = m.operands[0]
            for k in reversed(between):
                y = copy_node(r, k, [y if _is_main(v) else v for v in k.inputs])
            return y if between else None
        main = [v for v in m.operands if _is_main(v)]
        if not is_map(m) or len(m.outputs) != 1 or len(main) != 1 or main[0].type.shape != m.outputs[0].type.shape:
            return None
        between.append(m)
        x = main[0]
    return None


def _is_main(v: Value | None) -> bool:
    """An operand that a transpose of the result transposes too; single elements stay as they are."""
    return v is not None and v.type.size != 1


def _expand(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    (x,) = ins
    assert x is not None and isinstance(n.attrs, ShapeAttrs)
    if x.type.shape == n.attrs.shape:
        return x
    if inner := r.producer(x, "expand"):
        return expand(r.b, inner.operands[0], n.attrs.shape)
    inner = r.producer(x, "reshape")
    if inner is not None and x.type.shape == (1,) * (x.type.rank - inner.operands[0].type.rank) + inner.operands[0].type.shape:
        return expand(r.b, inner.operands[0], n.attrs.shape)  # broadcasting adds leading dimensions itself
    return reshape(r.b, x, n.attrs.shape) if x.type.size == n.outputs[0].type.size else None


def _slice(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    (x,) = ins
    a = n.attrs
    assert x is not None and isinstance(a, SliceAttrs)
    if a.sizes == x.type.shape and all(s == 1 or m <= 1 for s, m in zip(a.steps, a.sizes, strict=True)):
        return x
    if n.outputs[0].type.size == 0:
        return None
    if inner := r.producer(x, "slice"):
        b = inner.attrs
        assert isinstance(b, SliceAttrs)
        return _slice_op(r, inner.operands[0], [p + s * q for p, s, q in zip(b.starts, b.steps, a.starts, strict=True)],
                         [s * q for s, q in zip(b.steps, a.steps, strict=True)], a.sizes)
    return _slice_of_concat(r, x, a)


def _slice_op(r: Rewriter, x: Value, starts: list[int], steps: list[int], sizes: tuple[int, ...]) -> Value:
    if sizes == x.type.shape and all(s == 1 or m <= 1 for s, m in zip(steps, sizes, strict=True)):
        return x
    return r.b.op("slice", x, starts=tuple(starts), steps=tuple(steps), sizes=sizes)


def _slice_of_concat(r: Rewriter, x: Value, a: SliceAttrs) -> Value | None:
    inner = r.producer(x, "concat")
    if inner is None:
        return None
    assert isinstance(inner.attrs, AxisAttrs)
    k, begin = inner.attrs.axis, 0
    first = a.starts[k]
    last = first + (a.sizes[k] - 1) * a.steps[k]
    for part in inner.operands:
        end = begin + part.type.shape[k]
        if begin <= min(first, last) and max(first, last) < end:
            starts = [s - begin if d == k else s for d, s in enumerate(a.starts)]
            return _slice_op(r, part, starts, list(a.steps), a.sizes)
        begin = end
    return None


def _concat(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    assert isinstance(n.attrs, AxisAttrs)
    axis = n.attrs.axis
    parts: list[Value] = []
    for v in n.operands if ins == n.inputs else [v for v in ins if v is not None]:
        inner = r.private(v, "concat")
        parts += inner.operands if inner is not None and inner.attrs == n.attrs else (v,)
    parts = [v for v in parts if v.type.shape[axis]] or parts[:1]
    if (whole := _rejoined(r, parts, axis)) is not None:
        return whole
    return None if tuple(parts) == ins and len(parts) > 1 else concat(r.b, parts, axis)


def _rejoined(r: Rewriter, parts: list[Value], axis: int) -> Value | None:
    """x where `parts` are consecutive slices that together make up x."""
    source: Value | None = None
    at = 0
    for v in parts:
        n = r.producer(v, "slice")
        if n is None or (source is not None and n.operands[0] != source):
            return None
        source, a = n.operands[0], n.attrs
        assert isinstance(a, SliceAttrs)
        whole = (m for k, m in enumerate(source.type.shape) if k != axis)
        rest = tuple(m for k, m in enumerate(a.sizes) if k != axis)
        if a.starts[axis] != at or set(a.steps) != {1} or rest != tuple(whole):
            return None
        at += a.sizes[axis]
    return source if source is not None and at == source.type.shape[axis] else None


def _pad(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    (x,) = ins
    a = n.attrs
    assert x is not None and isinstance(a, PadAttrs)
    if not any((*a.before, *a.after)):
        return x
    inner = r.producer(x, "pad")
    if inner is None or a.mode != "constant":
        return None
    b = inner.attrs
    assert isinstance(b, PadAttrs)
    if b.mode != "constant" or b.value != a.value:
        return None
    return r.b.op("pad", inner.operands[0], before=tuple(map(sum, zip(a.before, b.before, strict=True))),
                  after=tuple(map(sum, zip(a.after, b.after, strict=True))), mode="constant", value=a.value)


def _conv(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """Zeros put around a convolution's input are its own padding."""
    inner = r.producer(ins[0], "pad")
    if inner is None or not isinstance(n.attrs, ConvAttrs):
        return None
    p = inner.attrs
    assert isinstance(p, PadAttrs)
    if p.mode != "constant" or p.value != 0 or any((*p.before[:2], *p.after[:2])):
        return None
    pads = tuple(a + b for a, b in zip(n.attrs.pads, (*p.before[2:], *p.after[2:]), strict=True))
    return r.b.emit("conv", (inner.operands[0], *ins[1:]), replace(n.attrs, pads=pads), hint=n.outputs[0].name)[0]


def _reduce(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """A reduction over dimensions of extent 1 is a reshape."""
    (x,) = ins
    assert x is not None and isinstance(n.attrs, ReduceAttrs)
    if n.attrs.kind not in ("sum", "mean", "prod", "max", "min", "any", "all") or any(x.type.shape[a] != 1 for a in n.attrs.axes):
        return None
    return reshape(r.b, x, n.outputs[0].type.shape)


def _gather(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """Evenly spaced positions known now are a slice."""
    x, index = ins
    at = r.literal(index)
    if x is None or at is None or at.ndim > 1 or at.size == 0:
        return None
    k = n.attrs.axis  # type: ignore[attr-defined]
    extent = x.type.shape[k]
    places = at.reshape(-1).astype(np.int64)
    places = np.where(places < 0, places + extent, places)
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    if step == 0 or (np.diff(places) != step).any() or places.min() < 0 or places.max() >= extent:
        return None
    shape = x.type.shape
    y = _slice_op(r, x, [int(places[0]) if d == k else 0 for d in range(len(shape))], [step if d == k else 1 for d in range(len(shape))],
                  tuple(len(places) if d == k else m for d, m in enumerate(shape)))
    return reshape(r.b, y, n.outputs[0].type.shape)


def _past_squeeze(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """A map of one squeezed convolution and of constants: made on what is squeezed."""
    found = [v for v in ins if v is not None and not r.static(v)]
    squeeze = r.private(found[0], "reshape") if len(found) == 1 and found[0].type.shape == n.outputs[0].type.shape else None
    y = squeeze.operands[0] if squeeze is not None else None
    if y is None or y.type.rank <= found[0].type.rank or not _from_conv(r, y):
        return None
    units, rest = [], list(found[0].type.shape)   # y's dimensions that the reshape takes away
    for k, d in enumerate(y.type.shape):
        if rest and d == rest[0]:
            rest.pop(0)
        elif d == 1:
            units.append(k)
        else:
            return None
    if rest:
        return None
    new = [v if v is None else y if v is found[0] else _with_units(r, v, units, y.type.rank) for v in ins]
    return reshape(r.b, r.b.emit(n.op, new, n.attrs)[0], n.outputs[0].type.shape)


def _from_conv(r: Rewriter, v: Value) -> bool:
    """Whether `v` is a convolution's result, perhaps with maps applied."""
    while not r.shared(v) and (n := r.producer(v)) is not None:
        if not is_map(n) or n.operands[0].type.shape != v.type.shape:
            return n.op == "conv"
        v = n.operands[0]
    return False


def _with_units(r: Rewriter, v: Value, units: Sequence[int], rank: int) -> Value:
    """`v`, which broadcasts against a shape of rank - len(units) dimensions, with the dimensions `units` of extent 1 put in."""
    shape = [1] * (rank - len(units) - v.type.rank) + list(v.type.shape)
    for k in units:
        shape.insert(k, 1)
    return reshape(r.b, v, tuple(shape))


_MAPS = {name: (_past_squeeze,) for name, op in OPS.items() if isinstance(op, Map)}
_RULE = rules({**_MAPS, "reshape": (_reshape,), "transpose": (_transpose,), "expand": (_expand,), "slice": (_slice,), "concat": (_concat,),
               "pad": (_pad,), "gather": (_gather,), "conv": (_conv,), "reduce": (_reduce,)})
