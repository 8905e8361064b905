"""Products with one-hot rows are look-ups: rules of the pass `recognize`.

    %h = eq(%i, @ramp) : bool[5,9]         (%i: i32[5,1], @ramp: i32[1,9] = 0, 1, … 8)
    %o = cast(%h) {dtype=f32} : f32[5,9]
    %y = matmul(%o, @table) : f32[5,7]     ->    %y = where(inside, gather(@table, %i), 0) : f32[5,7]

An index outside the table gives a row of zeros, as the product does. The table must be weights, and is taken to be finite:
in the product, a zero meets every entry, and an infinite one would make NaN of its column.
"""
from __future__ import annotations

import numpy as np

from ...ir.graph import Node, Value
from ...ir.ops.elementwise import scalar_like
from ...ir.ops.index import OneHotAttrs
from ...ir.types import I64
from .rewriting import Rewriter, Rule

Ins = tuple[Value | None, ...]
MIN_DEPTH = 4  # below, the product is as cheap


def _ramp(r: Rewriter, v: Value | None) -> bool:
    """Whether `v` is 0, 1, 2, … along its last dimension, the only one with more than one element."""
    a = r.literal(v)
    if a is None or a.ndim == 0 or a.dtype.kind not in "iu" or a.size != a.shape[-1]:
        return False
    return bool((a.reshape(-1) == np.arange(a.size)).all())


def _rows(r: Rewriter, v: Value | None) -> Value | None:
    """The indices, without the dimension of the table, where `v` is one-hot along its last dimension."""
    cast = r.producer(v, "cast")
    equal = r.producer(cast.operands[0], "eq") if cast is not None else None
    pairs = (equal.operands, equal.operands[::-1]) if equal is not None else ()
    for x, y in pairs:
        if v is not None and _ramp(r, y) and x.type.dtype.is_int and x.type.shape == (*v.type.shape[:-1], 1):
            return r.b.op("cast", r.b.op("reshape", x, shape=x.type.shape[:-1]), dtype=I64)
    n = r.producer(v, "one_hot")
    if n is None or not isinstance(n.attrs, OneHotAttrs) or n.attrs.axis != n.operands[0].type.rank or not n.operands[0].type.dtype.is_int:
        return None
    values = r.literal(n.operands[1])
    if values is None or values.tolist() != [0, 1]:
        return None
    at = r.b.op("cast", n.operands[0], dtype=I64)
    return r.b.op("where", r.b.op("lt", at, scalar_like(r.b, at, 0)), r.b.op("add", at, scalar_like(r.b, at, n.attrs.depth)), at)


def _lookup(r: Rewriter, n: Node, ins: Ins) -> Value | None:
    """matmul(one-hot rows, table)"""
    hot, table = ins
    if hot is None or table is None or table.type.rank != 2 or table.type.shape[0] < MIN_DEPTH or not r.static(table) \
            or not table.type.dtype.is_float or not _finite(r, table) or (at := _rows(r, hot)) is None:
        return None
    b, zero = r.b, scalar_like(r.b, at, 0)
    inside = b.op("and", b.op("ge", at, zero), b.op("lt", at, scalar_like(b, at, table.type.shape[0])))
    found = b.op("gather", table, b.op("where", inside, at, zero), axis=0)
    return b.op("where", b.op("reshape", inside, shape=(*inside.type.shape, 1)), found, scalar_like(b, found, 0))


def _finite(r: Rewriter, table: Value) -> bool:
    c = r.b.constants.get(table.name)
    return c is None or bool(np.isfinite(c.array.astype(np.float32)).all())


LOOKUP_RULES: dict[str, tuple[Rule, ...]] = {"matmul": (_lookup,)}
