"""Requires: nothing. Ensures: forests compare what scaling in front of them was made from, where that gives the same bits.

    %v = sub(%x, @mean) : f64[512,50]
    %s = div(%v, @scale) : f64[512,50]
    %c = cast(%s) : f32[512,50]
    %y = tree_ensemble(%c, @nodes, @threshold, …)       ->      %y = tree_ensemble(%x, @nodes.1, @threshold.1, …)

A column that follows from one number by steps that keep its order (`compiler/monotone.py`) lies below a threshold exactly where
the number is not above some other one: the last one whose image, computed step by step with all roundings, is not above the
threshold. Bisection over the floating-point numbers finds it. Where a step turns the order, the branches change places. What
becomes of NaN (an imputer may put a number in its place) is computed once for each threshold, and is the way that missing values go.

Legal where, for each feature that the forest uses, the whole way from its root is such steps, and nobody else reads what lies
between; nodes that treat about 0 as missing or compare with sets need the root's own numbers. Casts alone are left in place, and
so is what is cast to f32 from f64: thresholds of f64 would take longer to search than the scaling (10,000 rows through 100 trees of
scikit-learn behind a MinMaxScaler: 3.9 ms as they are, 5.0 ms folded; 500 trees of LightGBM, which compares in f64: 7.3 and 6.7 ms).
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir.forest import CATEGORICAL, DEFAULT_LEFT, MEMBER, MISSING, Field, MissingKind
from ...ir.graph import Graph, Node, Value
from ...ir.types import F64
from ..monotone import Lines, Monotone, last_below
from .dce import dce
from .rewriting import Rewriter, rewrite


def fold_thresholds(g: Graph, frozen: bool = False) -> Graph:
    """frozen: weights may become part of the thresholds; else literals alone."""
    found = {n.outputs[0].name: folded for n in g.nodes if n.op == "tree_ensemble" and (folded := _fold(g, n, frozen)) is not None}
    while True:  # all readers of what lies between have to go
        keep = {k for k, f in found.items() if _private(g, f[0], found)}
        if len(keep) == len(found):
            break
        found = {k: f for k, f in found.items() if k in keep}
    if not found:
        return g

    def rule(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if n.outputs[0].name not in found:
            return None
        _, roots, parts, nodes, threshold = found[n.outputs[0].name]
        x = _table(r, roots, parts)
        rest = [v for v in ins[3:] if v is not None]
        return (r.b.op("tree_ensemble", x, r.b.constant(nodes, name="nodes"), r.b.constant(threshold, name="threshold"), *rest),)
    return dce(rewrite(g, rule))


_Found = tuple[Monotone, list[Value], list[np.ndarray], np.ndarray, np.ndarray]


def _fold(g: Graph, n: Node, frozen: bool) -> _Found | None:
    """The values and their columns that take the place of the forest's input, its nodes and thresholds."""
    x = n.operands[0]
    nodes, threshold = (c.array if (c := g.constants.get(v.name)) is not None and not c.updatable else None for v in n.operands[1:3])
    if nodes is None or threshold is None or not len(nodes) or not x.type.shape[0]:
        return None
    m = Monotone(g, frozen)
    used, of = np.unique(nodes[:, Field.FEATURE], return_inverse=True)
    lines = m.lines(x, used.astype(np.int64))
    if lines is None or (lines.root < 0).any() or not _worth(m, x):
        return None
    kind = nodes[:, Field.KIND]
    plain = lines.plain[of]
    if (~plain & (((kind & (CATEGORICAL | MEMBER)) != 0) | ((kind & MISSING) == MissingKind.ZERO))).any():
        return None
    roots = [m.roots[k] for k in np.unique(lines.root)]
    wide = F64.numpy if any(v.type.dtype == F64 for v in roots) else roots[0].type.dtype.numpy
    if wide.itemsize > threshold.itemsize or (wide != threshold.dtype and (kind & MEMBER).any()):
        return None
    parts, place = _places(lines, roots, m)
    new, t = nodes.copy(), threshold.astype(wide)
    new[:, Field.FEATURE] = place[of]
    _compare_roots(m, lines, x, used, of, nodes, threshold, new, t)
    return m, roots, parts, new, t


def _worth(m: Monotone, x: Value) -> bool:
    """Whether some step is spared that is no mere cast or choice of columns."""
    return any(m.producers[v].op not in ("cast", "slice", "gather", "concat") for v in _between(m, x))


def _between(m: Monotone, x: Value) -> set[str]:
    """The values on the way from the roots to x."""
    seen: set[str] = set()
    stack = [x]
    while stack:
        v = stack.pop()
        if v.name in m.inside and v.name not in seen and v not in m.roots:
            seen.add(v.name)
            stack += m.producers[v.name].operands
    return seen


def _private(g: Graph, m: Monotone, found: dict[str, _Found]) -> bool:
    """Whether forests that are folded are the only readers of what lies between."""
    trees = {n.outputs[0].name: n for n in g.nodes if n.outputs and n.outputs[0].name in found}
    inside = set().union(*(_between(f[0], trees[k].operands[0]) for k, f in found.items()))
    mine = next(_between(f[0], trees[k].operands[0]) for k, f in found.items() if f[0] is m)
    if any(v.name in mine for v in g.outputs):
        return False
    return all(u.outputs[0].name in inside or u.outputs[0].name in found for name, us in g.users().items() if name in mine for u in us)


def _places(lines: Lines, roots: Sequence[Value], m: Monotone) -> tuple[list[np.ndarray], np.ndarray]:
    """Which columns of each root the new input has, and where it has that of each line. A single root is read in place."""
    if len(roots) == 1:
        return [np.arange(roots[0].type.shape[1])], lines.column
    parts, place, at = [], np.zeros(len(lines.root), np.int64), 0
    for v in roots:
        own = lines.root == m.roots.index(v)
        columns, where = np.unique(lines.column[own], return_inverse=True)
        parts.append(columns)
        place[own] = at + where
        at += len(columns)
    return parts, place


def _table(r: Rewriter, roots: Sequence[Value], parts: Sequence[np.ndarray]) -> Value:
    if len(roots) == 1:
        return roots[0]
    wide = max((v.type.dtype for v in roots), key=lambda d: d.bytes)
    cols = [r.b.op("gather", v, r.b.constant(p.astype(np.int64)), axis=1) for v, p in zip(roots, parts, strict=True)]
    return r.b.op("concat", *(v if v.type.dtype == wide else r.b.op("cast", v, dtype=wide) for v in cols), axis=1)


def _compare_roots(m: Monotone, lines: Lines, x: Value, used: np.ndarray, of: np.ndarray, nodes: np.ndarray, threshold: np.ndarray,
                   new: np.ndarray, t: np.ndarray) -> None:
    """Fills in kinds, children and thresholds of the nodes that compare what is no root itself."""
    some = np.flatnonzero(~lines.plain[of])
    bits = threshold.view(np.int32 if threshold.itemsize == 4 else np.int64)
    pairs, at = np.unique(np.stack([of[some], bits[some]], 1), axis=0, return_inverse=True)
    line, at = pairs[:, 0].astype(np.int64), at.reshape(-1)
    bound = np.ascontiguousarray(pairs[:, 1].astype(bits.dtype)).view(threshold.dtype)
    turned = lines.turn[line] < 0
    for k in np.unique(lines.root[line]):
        own = np.flatnonzero(lines.root[line] == k)

        def below(v: np.ndarray, which: np.ndarray, own: np.ndarray = own) -> np.ndarray:
            p = own[which]
            return (m.at(x, used[line[p]], v) <= bound[p]) ^ turned[p]
        found = np.zeros(len(pairs), t.dtype)
        found[own] = last_below(below, len(own), m.roots[k].type.dtype.numpy)
        mine = np.isin(at, own)
        t[some[mine]] = found[at[mine]]
    image = m.at(x, used[line], np.full(len(line), np.nan))
    kind = nodes[some, Field.KIND]
    stays = np.isnan(image)[at]
    by_rule = np.where((kind & MISSING) == MissingKind.NAN, (kind & DEFAULT_LEFT) != 0, threshold[some] >= 0)
    left = np.where(stays, by_rule, (image <= bound)[at]) ^ turned[at]
    new[some, Field.KIND] = MissingKind.NAN | np.where(left, DEFAULT_LEFT, 0)
    swap = some[turned[at]]
    new[swap, Field.LEFT], new[swap, Field.RIGHT] = nodes[swap, Field.RIGHT], nodes[swap, Field.LEFT]
