"""Requires: nothing. Ensures: no node has literal inputs only, unless its result exceeds the builder's fold limit.

    const @a: f32[2] = [1.0, 2.0]
    const @b: f32[] = 3.0
    %s = add(@a, @b) : f32[2]          ->   const @s: f32[2] = [4.0, 5.0]
    %y = mul(%x, %s) : f32[2]               %y = mul(%x, @s) : f32[2]

Weights are never folded: what depends on them alone goes to the preparation graph (`split_preparation`).
"""
from __future__ import annotations

from collections.abc import Sequence

from ...ir.graph import Graph, Node, Value
from .rewriting import Rewriter, is_pure, rewrite


def fold_constants(g: Graph) -> Graph:
    return rewrite(g, _fold)


def _fold(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
    if not n.operands or not is_pure(n) or any(v is not None and r.literal(v) is None for v in ins):
        return None
    return r.b.emit(n.op, ins, n.attrs, names=[v.name for v in n.outputs])
