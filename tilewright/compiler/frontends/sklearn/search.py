"""Where numbers lie among sorted ones, and which of some categories they are."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....errors import UnsupportedError
from ....ir.graph import Value
from ....ir.types import F64, I64
from .columns import Columns, Scope, Text, column, flat, num
from .estimator import checked_index

UNROLLED = 12  # comparisons that are cheaper one after another than a binary search


def positions(s: Scope, x: Value, edges: Sequence[np.ndarray], right: bool = True) -> Value:
    """i64[rows, n]: numpy.searchsorted(edges[j], x[:, j], side) for x[rows, n]. NaN lies behind all edges, as in NumPy."""
    b, n = s.b, x.type.shape[1]
    most = max((len(e) for e in edges), default=0)
    op = "le" if right else "lt"
    kind = x.type.dtype.numpy
    if kind == np.float32 and any(np.asarray(e).dtype == np.float64 for e in edges):
        x, kind = b.op("cast", x, dtype=F64), np.dtype(np.float64)
    table = np.full((max(1, 1 << most.bit_length()) - 1 if most > UNROLLED else most, n), np.inf, kind)
    for j, e in enumerate(edges):
        table[:len(e), j] = e
    if most <= UNROLLED:
        found = b.constant(np.zeros((1, n), kind))
        for row in table:
            found = b.op("add", found, b.op("cast", b.op(op, s.const(row[None], "edges"), x), dtype=x.type.dtype))
        at = b.op("cast", found, dtype=I64) if most else b.op("expand", b.constant(np.zeros((1, n), np.int64)), shape=x.type.shape)
    else:
        size = len(table)
        flat_table = s.const(np.ascontiguousarray(table.T).reshape(-1), "edges")
        start = np.arange(n, dtype=np.int64)[None] * size
        at, step = b.constant(np.zeros((1, n), np.int64)), (size + 1) // 2
        while step:
            seen = b.op("gather", flat_table, b.op("add", at, b.constant(start + step - 1)), axis=0)
            more = b.op("add", at, b.constant(np.array(step, np.int64)))
            at = b.op("where", b.op(op, seen, x), more, at)
            step //= 2
    lengths = b.constant(np.array([[len(e) for e in edges]], np.int64))
    at = b.op("min", at, lengths)  # the filling, +inf, is not below +inf
    return b.op("where", b.op("isnan", x), b.op("expand", lengths, shape=x.type.shape), at)


def lookup(s: Scope, tables: Sequence[np.ndarray], at: Value, name: str = "table") -> Value:
    """[rows, n]: tables[j][at[:, j]]"""
    starts = np.cumsum([0, *(len(t) for t in tables)])[:-1].astype(np.int64)[None]
    joined = np.concatenate([np.asarray(t) for t in tables])
    return s.b.op("gather", s.const(joined, name), s.b.op("add", at, s.b.constant(starts)), axis=0)


def category(x: Columns, k: int, categories: np.ndarray, where: str, must_be_known: bool) -> Value:
    """i64[rows]: the position of column k's value in `categories`, their number where it is none of them; with must_be_known
    the call fails for such."""
    part = x.column(k).parts[0]
    if isinstance(part, Text):
        return _known(x, _text_category(x.s, part, categories, must_be_known), categories, must_be_known)
    if np.asarray(categories).dtype.kind not in "biuf":
        try:
            numbers = np.asarray(categories, np.float64)
        except (TypeError, ValueError):
            raise UnsupportedError(f"{where}: the categories of column {k} are strings, the column holds numbers; compile with inputs= a "
                                   "data frame or an object array like the one it was fitted on") from None
    else:
        numbers = np.asarray(categories)
    return _known(x, flat(x.b, _number_category(x.s, x.column(k).value(), numbers.astype(np.float64))), categories, must_be_known)


def _known(x: Columns, index: Value, categories: np.ndarray, must_be_known: bool) -> Value:
    return checked_index(x.s, index, len(categories)) if must_be_known else index


def _text_category(s: Scope, part: Text, categories: np.ndarray, must_be_known: bool) -> Value:
    b, n = s.b, len(categories)
    codes = [part.codes.code(c) for c in categories]
    part.codes.strict = part.codes.strict or must_be_known
    code = b.op("cast", part.numbers(s), dtype=I64)
    if codes == list(range(n)):
        known = b.op("and", b.op("ge", code, num(b, code, 0)), b.op("lt", code, num(b, code, n)))
        return flat(b, b.op("where", known, code, num(b, code, n)))
    size = max(codes, default=0) + 3  # code -1 first, and one past the end
    table = np.full(size, n, np.int64)
    for k, c in enumerate(codes):
        table[c + 1] = k
    at = b.op("min", b.op("add", code, num(b, code, 1)), num(b, code, size - 1))
    return flat(b, b.op("gather", b.constant(table), b.op("max", at, num(b, at, 0)), axis=0))


def _number_category(s: Scope, x: Value, categories: np.ndarray) -> Value:
    """[rows, 1]"""
    b, n = s.b, len(categories)
    nan = np.flatnonzero(np.isnan(categories))
    finite = np.flatnonzero(~np.isnan(categories))
    values = categories[finite]
    none = b.constant(np.array(n, np.int64))
    if x.type.dtype != F64:
        x = b.op("cast", x, dtype=F64)
    if len(values) and np.array_equal(values, np.arange(len(values))) and np.array_equal(finite, np.arange(len(values))):
        inside = b.op("and", b.op("ge", x, num(b, x, 0)), b.op("lt", x, num(b, x, len(values))))
        safe = b.op("where", inside, x, num(b, x, 0))
        whole = b.op("and", inside, b.op("eq", b.op("floor", safe), safe))
        at = b.op("where", whole, b.op("cast", safe, dtype=I64), none)
    elif not len(values):
        at = b.op("where", b.op("isnan", x), none, none)
    else:
        order = np.argsort(values, kind="stable")
        rank = positions(s, x, [values[order]], right=False)  # of the equal one
        rank = b.op("min", rank, num(b, rank, len(values) - 1))
        found = b.op("eq", b.op("gather", s.const(np.append(values[order], np.inf), "categories"), rank, axis=0), x)
        at = b.op("where", found, b.op("gather", b.constant(np.append(finite[order], n).astype(np.int64)), rank, axis=0), none)
    return b.op("where", b.op("isnan", x), b.constant(np.array(nan[0], np.int64)), at) if len(nan) else at


def as_column(s: Scope, index: Value) -> Value:
    return column(s.b, index)
