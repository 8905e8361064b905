"""Requires: nothing. Ensures: forests compare what scaling in front of them was made from, where that gives the same bits.

    %v = sub(%x, @mean) : f64[512,50]
    %s = div(%v, @scale) : f64[512,50]
    %c = cast(%s) : f32[512,50]
    %y = tree_ensemble(%c, @nodes, @threshold, …)       ->      %y = tree_ensemble(%x, @nodes.1, @threshold.1, …)

A column that follows from one number by steps that keep its order (`compiler/monotone.py`) lies below a threshold exactly where
the number is not above some other one: the last one whose image, computed step by step with all roundings, is not above the
threshold. Bisection over the floating-point numbers finds it. Where a step turns the order, the branches change places. What
becomes of NaN (an imputer may put a number in its place) is computed once for each threshold, and is the way that missing values go.

Where only columns are chosen, the nodes choose them.

Legal where, for each feature that the forest uses, the whole way from its root is such steps, and nobody else reads what lies
between; nodes that treat about 0 as missing or compare with sets need the root's own numbers. Casts alone are left in place, and
so is what is cast to f32 from f64: thresholds of f64 would take longer to search than the scaling (10,000 rows through 100 trees of
scikit-learn behind a MinMaxScaler: 3.9 ms as they are, 5.0 ms folded; 500 trees of LightGBM, which compares in f64: 7.3 and 6.7 ms).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.forest import CATEGORICAL, DEFAULT_LEFT, MEMBER, MISSING, Field, MissingKind
from ...ir.graph import Graph, Node, Value
from ...ir.types import F64
from ..monotone import Lines, Monotone, last_below
from .dce import dce
from .rewriting import Rewriter, rewrite


@dataclass(frozen=True, eq=False, slots=True)
class _Folded:
    """A forest over the columns `parts` of `roots`, cast first where `cast` is a node. x: what it was over."""

    m: Monotone
    x: Value
    roots: list[Value]
    parts: list[np.ndarray]
    nodes: np.ndarray
    threshold: np.ndarray
    cast: Node | None = None


def fold_thresholds(g: Graph, frozen: bool = False) -> Graph:
    """frozen: weights may become part of the thresholds; else literals alone."""
    found = {n.outputs[0].name: folded for n in g.nodes if n.op == "tree_ensemble" and (folded := _fold(g, n, frozen)) is not None}
    while True:  # all readers of what lies between have to go
        keep = {k for k, f in found.items() if _private(g, f, found)}
        if len(keep) == len(found):
            break
        found = {k: f for k, f in found.items() if k in keep}
    if not found:
        return g
    made: dict[str, Value] = {}

    def rule(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
        f = found.get(n.outputs[0].name)
        if f is None:
            return None
        x = _table(r, [made.get(v.name, v) for v in f.roots], f.parts)
        if f.cast is not None:
            x = r.b.emit("cast", (x,), f.cast.attrs)[0]
        rest = [v for v in ins[3:] if v is not None]
        y = r.b.op("tree_ensemble", x, r.b.constant(f.nodes, name="nodes"), r.b.constant(f.threshold, name="threshold"), *rest)
        made[n.outputs[0].name] = y
        return (y,)
    return dce(rewrite(g, rule))


def _fold(g: Graph, n: Node, frozen: bool) -> _Folded | None:
    """What takes the place of the forest's input, its nodes and thresholds."""
    x = n.operands[0]
    nodes, threshold = (c.array if (c := g.constants.get(v.name)) is not None and not c.updatable else None for v in n.operands[1:3])
    if nodes is None or threshold is None or not len(nodes) or not x.type.shape[0]:
        return None
    m = Monotone(g, frozen)
    used, of = np.unique(nodes[:, Field.FEATURE], return_inverse=True)
    lines = m.lines(x, used.astype(np.int64))
    if lines is None or (lines.root < 0).any():
        return None
    kind = nodes[:, Field.KIND]
    moved = ~lines.plain[of]
    roots = [m.roots[k] for k in np.unique(lines.root)]
    wide = F64.numpy if any(v.type.dtype == F64 for v in roots) else roots[0].type.dtype.numpy
    sets = (kind & (CATEGORICAL | MEMBER)) != 0
    if not _worth(m, x, len(roots)) or (moved & (sets | ((kind & MISSING) == MissingKind.ZERO))).any() \
            or wide.itemsize > threshold.itemsize or (wide != threshold.dtype and (kind & MEMBER).any()):
        return _behind_cast(g, n, used, of)
    parts, place = _places(lines, roots, m)
    new, t = nodes.copy(), threshold.astype(wide)
    new[:, Field.FEATURE] = place[of]
    _compare_roots(m, lines, x, used, of, nodes, threshold, new, t)
    return _Folded(m, x, roots, parts, new, t)


def _behind_cast(g: Graph, n: Node, used: np.ndarray, of: np.ndarray) -> _Folded | None:
    """Columns chosen before a cast are chosen behind it, by the nodes."""
    m, x = Monotone(g, False), n.operands[0]
    cast = m.producers.get(x.name)
    lines = m.lines(cast.operands[0], used.astype(np.int64)) if cast is not None and cast.op == "cast" else None
    if cast is None or lines is None or not lines.plain.all() or len(np.unique(lines.root)) != 1 or not m.inside:
        return None
    nodes, threshold = (g.constants[v.name].array for v in n.operands[1:3])
    root = m.roots[int(lines.root[0])]
    nodes = nodes.copy()
    nodes[:, Field.FEATURE] = lines.column[of]
    return _Folded(m, cast.operands[0], [root], [np.arange(root.type.shape[1])], nodes, threshold, cast)


def _worth(m: Monotone, x: Value, roots: int) -> bool:
    """Whether a step is spared: a choice of columns that the nodes can make, or arithmetic, not a cast alone."""
    steps = {m.producers[v].op for v in _between(m, x)} - {"cast"}
    return bool(steps if roots == 1 else steps - {"slice", "gather", "concat"})


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


def _private(g: Graph, f: _Folded, found: dict[str, _Folded]) -> bool:
    """Whether forests that are folded are the only readers of what lies between, where that is more than a choice of columns."""
    inside = set().union(*(_between(k.m, k.x) for k in found.values()))
    mine = {v for v in _between(f.m, f.x) if f.m.producers[v].op not in ("slice", "gather", "concat")}
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
