"""Requires: nothing. Ensures: no two nodes apply one pure op to the same inputs; no two small literals are equal.

    %a = relu(%x) : f32[2]
    %b = relu(%x) : f32[2]            ->    %a = relu(%x) : f32[2]
    %y = add(%a, %b) : f32[2]               %y = add(%a, %a) : f32[2]

Weights stay apart even where their values are equal: they may be updated one by one.
"""
from __future__ import annotations

from collections.abc import Sequence

from ...ir.graph import Graph, Node, Value
from ...ir.text import attrs_text
from .rewriting import COMMUTATIVE, Rewriter, is_pure, rewrite

MERGE_BYTES = 1 << 16  # literals up to this size are compared by value


def cse(g: Graph) -> Graph:
    same = _equal_literals(g)
    seen: dict[tuple[object, ...], tuple[Value, ...]] = {}

    def merge(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
        ins = tuple(None if v is None else same.get(v.name, v) for v in ins)
        names = [None if v is None else v.name for v in ins]
        if n.op in COMMUTATIVE:
            names.sort(key=str)
        key = (n.op, *names, attrs_text(n.attrs), len(n.outputs))  # text: 0.0 and -0.0, 1 and True differ
        if is_pure(n) and key in seen:
            return seen[key]
        if ins != n.inputs:
            r.b.nodes.append(Node(n.op, ins, n.attrs, n.outputs, n.source))
            seen[key] = n.outputs
            return n.outputs
        seen[key] = n.outputs
        return None
    return rewrite(g, merge)


def _equal_literals(g: Graph) -> dict[str, Value]:
    """Name of each literal that repeats an earlier one -> that earlier one."""
    first: dict[tuple[object, bytes], Value] = {}
    same: dict[str, Value] = {}
    for k, c in g.constants.items():
        if not c.updatable and c.array.nbytes <= MERGE_BYTES:
            v = first.setdefault((c.value.type, c.array.tobytes()), c.value)
            if v is not c.value:
                same[k] = v
    return same
