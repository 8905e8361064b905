"""Requires: nothing. Ensures: `tree_ensemble` over literal trees is one of the engines of `ir/ops/tree_engines.py`, over tables.

    %y = tree_ensemble(%x, @nodes, @threshold, @words, @trees, @values, @base) : f64[512,1]

    ->  %r = tree_ranks(%x, @sizes, @groups, @thresholds, @sets, @words) {columns=50, slices=true} : u8[1,50,512]
        %v = gather(@values, @leaves) …                                        (of weights: part of the preparation)
        %y = tree_slices(%r, @sizes, @chunks, @conditions, @trees, @nodes, %v, @base) {rows=512, planes=6, …} : f64[512,1]

The engine is the one that costs least, by what one condition, node, leaf and row of each takes. Trees whose structure is not
known now, or which do not fit into the tables (more than 2^24 columns), keep their op, whose own loops then run.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...backends.llvm.tree_row import row_lanes, step_cycles
from ...backends.target import Target
from ...ir import tree_rows
from ...ir import tree_tables as tables
from ...ir.forest import Forest
from ...ir.graph import Graph, Node, Value
from ...ir.ops.tree_engines import BLOCK, SlicesAttrs, engine_sizes, rank_inputs, slice_cycles, walk_cycles
from .rewriting import Rewriter, rewrite

MOST_PLANES = 14  # 16,384 leaves of a tree: 1 MiB of masks
SCALAR_GATHERS = 3.0  # how much longer sliced rows take where values are loaded one by one
ONE_BY_ONE = 1.6  # how much longer walks take for one row
MOST_AT_ONCE = 64    # trees of one row, where a register has less


def choose_trees(g: Graph, target: Target) -> Graph:
    if not any(n.op == "tree_ensemble" for n in g.nodes):
        return g
    return rewrite(g, lambda r, n, ins: _engine(r, n, ins, target) if n.op == "tree_ensemble" else None)


def _engine(r: Rewriter, n: Node, ins: tuple[Value | None, ...], target: Target) -> Sequence[Value] | None:
    x, *rest = (v for v in ins if v is not None)
    nodes, threshold, words, trees = (r.literal(v) for v in rest[:4])
    if nodes is None or threshold is None or words is None or trees is None:
        return None
    values, base = rest[4:]
    f = Forest(nodes, threshold, words, trees, np.empty(values.type.shape, values.type.dtype.numpy),
               np.empty(base.type.shape, base.type.dtype.numpy))
    ranks = tables.make_ranks(f)
    if ranks.columns >= 1 << 24 or not len(f.trees) or not x.type.shape[0]:
        return None
    rows, shape = x.type.shape[0], tables.shapes(f)
    if rows == 1 and (lanes := _row_lanes(ranks, shape, target)):
        return _row(r, x, ranks, tree_rows.make_rows(f, ranks, shape, lanes), values, base)
    if rows > 1 and _slices_win(ranks, shape, rows, values.type.shape[1], target):
        return _sliced(r, x, ranks, tables.make_slices(f, ranks, shape, max(64, target.l2 // 128)), values, base)
    w = tables.make_walks(f, ranks)
    walks = _constants(r, engine_sizes(ranks, w.trees), w.nodes, w.leaf, w.trees)
    return (r.b.op("tree_walk", _ranks(r, x, ranks, False), *walks, values, base),)


def _slices_win(ranks: tables.Ranks, shape: tables.Shapes, rows: int, width: int, target: Target) -> bool:
    counts = shape.counts
    planes = max(4, int(counts.max() - 1).bit_length())
    if planes > MOST_PLANES:
        return False
    conditions = int(np.count_nonzero(np.diff(np.sort(ranks.column << 8 | ranks.bound)))) + 1
    narrow = 64 / target.vector_bytes
    sliced = -(-rows // BLOCK) * slice_cycles(conditions, len(ranks.column), len(counts), planes, width) * narrow
    walked = rows * float(np.sum(walk_cycles(shape.mean_depths()))) + rows * len(counts) * 3 * width
    return sliced < walked


def _ranks(r: Rewriter, x: Value, t: tables.Ranks, slices: bool) -> Value:
    return r.b.op("tree_ranks", x, *_constants(r, *rank_inputs(t)), columns=t.columns, slices=slices)


def _constants(r: Rewriter, *arrays: np.ndarray) -> list[Value]:
    return [r.b.constant(a, name="trees") for a in arrays]


def _row(r: Rewriter, x: Value, ranks: tables.Ranks, t: tree_rows.Rows, values: Value, base: Value) -> Sequence[Value]:
    sizes, ends, steps, trees, leaves = _constants(r, engine_sizes(ranks, t.trees, t.ends), t.ends, t.steps, t.trees, t.leaves)
    own = r.b.op("gather", values, leaves, axis=0)
    return (r.b.op("tree_row", _ranks(r, x, ranks, False), sizes, ends, steps, trees, own, base),)


def _row_lanes(ranks: tables.Ranks, shape: tables.Shapes, target: Target) -> int:
    """Trees that `tree_row` takes at once; 0 where it cannot, or where walks are faster. Two registers of them, where there are
    as many, wait less for each other."""
    n = row_lanes(target)
    if not n or not tree_rows.rows_fit(ranks, shape):
        return 0
    most = MOST_AT_ONCE // n if n < MOST_AT_ONCE else 2
    lanes = n * max(1, min(most, len(shape.counts) // n))
    scanned = tree_rows.row_steps(shape, lanes) * (lanes // n) * step_cycles(ranks.columns, target)
    return lanes if scanned < float(np.sum(ONE_BY_ONE * walk_cycles(shape.mean_depths()))) else 0


def _sliced(r: Rewriter, x: Value, ranks: tables.Ranks, t: tables.Slices, values: Value, base: Value) -> Sequence[Value]:
    own = r.b.op("gather", values, *_constants(r, t.leaves), axis=0)
    own = r.b.op("reshape", own, shape=(len(t.trees), 1 << t.planes, values.type.shape[1]))
    own = r.b.op("transpose", own, perm=(0, 2, 1))
    attrs = SlicesAttrs(x.type.shape[0], t.planes, t.most)
    parts = _constants(r, engine_sizes(ranks, t.trees, t.chunks), t.chunks, t.conditions, t.trees, t.nodes)
    return r.b.emit("tree_slices", (_ranks(r, x, ranks, True), *parts, own, base), attrs)
