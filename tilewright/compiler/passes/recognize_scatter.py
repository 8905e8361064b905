"""Updates of whole rows, which exporters spell with an index an element: a rule of the pass `recognize`.

    %e = expand(%i) {shape=[9, 64]} : i64[9,64]        (%i: i64[9,1])
    %y = scatter_elements(%x, %e, %u) {axis=0}    ->    %y = scatter_nd(%x, reshape(%i), %u)    (%x: f32[5,64])

Sums over the edges of a graph look like this (scatter_add of PyTorch). An element is updated in the same order, so the bits are the
same; an index is looked at once a row, and the row is one vector loop.
"""
from __future__ import annotations

from ...ir.graph import Node, Value
from ...ir.ops.irregular import ScatterAttrs, ScatterNDAttrs
from .rewriting import Rewriter, Rule

Ins = tuple[Value | None, ...]


def _rows(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    x, index, updates = ins
    expand = r.producer(index, "expand")
    if x is None or updates is None or expand is None or not isinstance(n.attrs, ScatterAttrs) or n.attrs.axis:
        return None
    (narrow,) = expand.operands
    count, *row = updates.type.shape
    if not row or row != list(x.type.shape[1:]) or narrow.type.shape != (count, *(1 for _ in row)):
        return None
    at = r.b.op("reshape", narrow, shape=(count, 1))
    return r.b.emit("scatter_nd", (x, at, updates), ScatterNDAttrs(n.attrs.reduction))[0]


SCATTER_RULES: dict[str, tuple[Rule, ...]] = {"scatter_elements": (_rows,)}
