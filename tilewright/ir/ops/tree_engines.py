"""The engines of decision forests as ops over tables (`ir/tree_tables.py`), which `compiler/passes/trees.py` puts in the place
of `tree_ensemble`. Their code is generic, and emitted by `backends/llvm/tree_*.py`: it does not grow with the forest.

    %r = tree_ranks(%x, @sizes, @groups, @thresholds, @sets, @words) {columns=300, slices=true} : u8[20,300,512]
    %y = tree_slices(%r, @sizes, @chunks, @conditions, @trees, @nodes, @values, @base) {planes=6, rows=10000} : f64[10000,1]
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ..forest import category
from ..graph import Attrs
from ..op import Op, Sample, register
from ..tree_rows import MOST_COLUMNS, make_rows, rows_fit
from ..tree_tables import LIMIT, Group, Ranks, make_ranks, make_slices, make_walks, shapes
from ..types import F32, F64, I32, I64, U8, U32, U64, TensorType
from .trees import random_forest, random_rows

BLOCK = 512  # rows that the engines for many rows take at once


class RankSize(IntEnum):
    """Elements of `sizes` of tree_ranks. The sizes of tables are read when the code runs, so that other forests of as many
    features and outputs find it in the cache."""

    COLUMNS = 0
    GROUPS = 1   # with those that repeat the last one, to fill vectors
    COUNT = 2    # without them
    SETS = 3


class Size(IntEnum):
    """Elements of `sizes` of the engines."""

    COLUMNS = 0
    TREES = 1
    PARTS = 2    # chunks of tree_slices, groups of tree_row


def rank_inputs(r: Ranks) -> tuple[np.ndarray, ...]:
    """What follows x."""
    sizes = np.array([r.columns, r.groups.shape[1], r.count, len(r.sets)], np.int64)
    return sizes, r.groups, r.thresholds, r.sets, r.words


def engine_sizes(r: Ranks, trees: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
    return np.array([r.columns, len(trees), 0 if parts is None else len(parts)], np.int64)


def cycles(op: str, attrs: Attrs, ins: Sequence[TensorType]) -> float:
    """About what a kernel takes on one core with vectors of 64 bytes; twice as much with 32."""
    rows = ins[0].shape[0] if op in ("tree_ranks", "tree_walk") else 1
    if op == "tree_ranks":
        return rows * (4 * ins[2].shape[1] + 2 * ins[4].shape[0]) + 12 * ins[2].shape[1]
    if op == "tree_row":
        return ins[3].shape[0] * ins[3].shape[2] / 64 * (3 + ins[0].shape[1] / 16) + 5 * ins[4].shape[0]
    trees = ins[4].shape[0]
    if op == "tree_walk":
        return rows * trees * float(walk_cycles(np.log2(max(2.0, ins[2].shape[0] / max(1, trees)))))
    assert isinstance(attrs, SlicesAttrs)
    return ins[0].shape[0] * slice_cycles(ins[3].shape[0], ins[5].shape[0], trees, attrs.planes, ins[6].shape[1])


def walk_cycles(depth: float | np.ndarray) -> float | np.ndarray:
    """Of one row in one tree whose leaves are `depth` conditions away in the mean."""
    return 8 + 2.2 * (depth + 2)


def slice_cycles(conditions: int, nodes: int, trees: int, planes: int, width: int) -> float:
    """Of a block of rows."""
    return 11 * conditions + 5 * nodes + trees * ((2 << planes) + 20 * planes + width * (250 if planes <= 6 else 900) + 60)


@dataclass(frozen=True, slots=True)
class RanksAttrs(Attrs):
    columns: int = 1
    slices: bool = False  # blocks of rows, column by column, for tree_slices; else row by row


@register
class TreeRanks(Op):
    """How many thresholds of each column lie below x: u8[rows, columns], or u8[blocks, columns, 512] whose last rows repeat
    the last one of x."""

    name, Attrs, native = "tree_ranks", RanksAttrs, True

    def infer(self, attrs: RanksAttrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        x, sizes, groups, thresholds, sets, words = (t or TensorType(F32, ()) for t in ins)
        if sizes != TensorType(I64, (len(RankSize),)) or x.rank != 2 or x.dtype not in (F32, F64) or thresholds.dtype != x.dtype \
                or thresholds.rank != 1 or groups.dtype != I32 or groups.shape[:1] != (len(Group),) \
                or sets.dtype != I32 or sets.shape[1:] != (4,) or words.dtype != U32:
            raise self.fail(f"{ins} are no tables for {attrs}")
        rows = x.shape[0]
        return (TensorType(U8, (-(-rows // BLOCK), attrs.columns, BLOCK) if attrs.slices else (rows, attrs.columns)),)

    def reference(self, attrs: RanksAttrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        x, _, groups, thresholds, sets, words = (a for a in ins if a is not None)
        out = np.zeros((len(x), attrs.columns), np.uint8)
        for g in groups.T:
            out[:, g[Group.COLUMN]:g[Group.COLUMN] + g[Group.COLUMNS]] = _ranks(x[:, g[Group.FEATURE]], g, thresholds)
        for feature, first, count, column in sets:
            code = category(x[:, feature])
            word = words[first + np.where(code < 0, count + 1, np.minimum(code >> 5, count))]
            out[:, column] = ~(word >> (code & 31).astype(np.uint32)) & 1
        if not attrs.slices:
            return (out,)
        blocks = -(-len(x) // BLOCK)
        padded = out[np.minimum(np.arange(blocks * BLOCK), len(x) - 1)] if blocks else out
        return (np.ascontiguousarray(padded.reshape(blocks, BLOCK, attrs.columns).transpose(0, 2, 1)),)

    def samples(self) -> Iterable[Sample]:
        for seed, slices in ((0, False), (1, True), (2, False), (3, True)):
            rng = np.random.default_rng(seed)
            dtype = np.dtype((np.float32, np.float64)[seed // 2])
            f = random_forest(rng, dtype, trees=40, leaves=60, features=4 if seed % 3 else 3)
            r = make_ranks(f)
            x = random_rows(rng, 9 if not slices else BLOCK + 70, 4, dtype)
            yield Sample((x, *rank_inputs(r)), RanksAttrs(r.columns, slices))
            if not slices:
                yield Sample((x[:1], *rank_inputs(r)), RanksAttrs(r.columns, slices))


def _ranks(x: np.ndarray, g: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[rows, columns of the group]"""
    own = thresholds[g[Group.FIRST]:g[Group.FIRST] + g[Group.COUNT]]
    rank = np.array([np.count_nonzero(~(v <= own)) for v in x], np.int64).reshape(-1)
    nan = np.isnan(x)
    if g[Group.PARITY]:
        rank = ~rank & 1
    if g[Group.ZERO] >= 0:
        rank[np.abs(np.where(nan, 0, x)) <= x.dtype.type(1.0000000180025095e-35)] = g[Group.ZERO]
    rank[nan] = g[Group.NAN]
    return np.clip(rank[:, None] - LIMIT * np.arange(g[Group.COLUMNS]), 0, LIMIT).astype(np.uint8)


_SIZES = TensorType(I64, (len(Size),))


class Engine(Op):
    """Base: from ranks to y[rows, columns]; the last two inputs are values and base."""

    native = True

    def result(self, rows: int, ins: tuple[TensorType | None, ...]) -> tuple[TensorType, ...]:
        values, base = ins[-2], ins[-1]
        if values is None or base is None or base.rank != 1 or values.dtype != base.dtype or values.rank < 2 \
                or values.dtype not in (F32, F64, I32) or any(t is None for t in ins) or not 0 < values.shape[1] <= base.shape[0]:
            raise self.fail(f"{ins} are no tables")
        return (TensorType(values.dtype, (rows, base.shape[0])),)


@register
class TreeWalk(Engine):
    """Several rows of a tree at once (or several trees of one row), record by record. Inputs: ranks u8[rows, columns], sizes
    i64[3], and nodes, leaf, trees of `Walks`; values [L, width] in the forest's order."""

    name = "tree_walk"

    def infer(self, attrs: Attrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        r, sizes, nodes, leaf, trees = (t or TensorType(F32, ()) for t in ins[:5])
        if sizes != _SIZES or r.dtype != U8 or r.rank != 2 or nodes.dtype != U64 \
                or leaf != TensorType(I32, nodes.shape) or trees.dtype != I32:
            raise self.fail(f"{ins} are no tables")
        return self.result(r.shape[0], ins)

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        r, _, nodes, leaf, trees, values, base = (a for a in ins if a is not None)
        out = np.tile(base, (len(r), 1))
        for root, depth, column, _ in trees:
            at = np.full(len(r), root, np.int64)
            for _ in range(depth):
                n = nodes[at].astype(np.int64)
                at = (n >> 32) + (r[np.arange(len(r)), n >> 8 & 0xFFFFFF] >= (n & 255))
            out[:, column:column + values.shape[1]] += values[leaf[at]]
        return (out,)

    def samples(self) -> Iterable[Sample]:
        for seed, rows in enumerate((1, 9, 1, 300, 21)):
            x, f, r = _sample(seed, rows)
            w = make_walks(f, r)
            ranks = TreeRanks().reference(RanksAttrs(r.columns), x, *rank_inputs(r))
            yield Sample((*ranks, engine_sizes(r, w.trees), w.nodes, w.leaf, w.trees, f.values, f.base))


def _sample(seed: int, rows: int, leaves: int = 12, trees: int = 21) -> tuple:
    rng = np.random.default_rng(seed)
    dtype = np.dtype((np.float32, np.float64)[seed % 2])
    values = np.dtype((np.float64, np.float32, np.int32)[seed % 3])
    f = random_forest(rng, dtype, trees, leaves, 4, width=1 + seed % 2, columns=1 + 2 * (seed % 2), values=values, unbalanced=seed == 2)
    return random_rows(rng, rows, 4, dtype), f, make_ranks(f)


@dataclass(frozen=True, slots=True)
class SlicesAttrs(Attrs):
    rows: int = 1
    planes: int = 4
    conditions: int = 1  # of a chunk at most


@register
class TreeSlices(Engine):
    """Bit-sliced: 512 rows at once, one bit each. Inputs: ranks u8[blocks, columns, 512], sizes i64[3], and chunks, conditions,
    trees, nodes of `Slices`; values [T, width, 1 << planes]."""

    name, Attrs = "tree_slices", SlicesAttrs

    def infer(self, attrs: SlicesAttrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        r, sizes, chunks, conditions, trees, nodes, values = (t or TensorType(F32, ()) for t in ins[:7])
        if sizes != _SIZES or r.dtype != U8 or r.shape[2:] != (BLOCK,) or r.shape[0] != -(-attrs.rows // BLOCK) or chunks.dtype != I32 \
                or conditions.dtype != U32 or trees.dtype != I32 or nodes.dtype != U32 or nodes.shape[1:] != (2,) \
                or values.shape[0] != trees.shape[0] or values.shape[2:] != (1 << attrs.planes,) or not 4 <= attrs.planes <= 16:
            raise self.fail(f"{ins} are no tables for {attrs}")
        return self.result(attrs.rows, ins)

    def reference(self, attrs: SlicesAttrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        r, _, chunks, conditions, trees, nodes, values, base = (a for a in ins if a is not None)
        r = r.transpose(0, 2, 1).reshape(-1, r.shape[1])[:attrs.rows]
        out = np.tile(base, (len(r), 1))
        for first, last, tree, end in chunks:
            c = conditions[first:last]
            masks = r[:, c >> 8] < (c & 255).astype(np.uint8)
            for t in range(tree, end):
                reach = np.zeros((len(r), 1 << attrs.planes), bool)
                reach[:, 0] = True
                for condition, span in nodes[trees[t - 1, 0] if t else 0:trees[t, 0]]:
                    a, m = span & 0xFFFF, span >> 16
                    reach[:, m] = reach[:, a] & ~masks[:, condition]
                    reach[:, a] &= masks[:, condition]
                out[:, trees[t, 2]:trees[t, 2] + values.shape[1]] += values[t].T[np.argmax(reach, 1)]
        return (out,)

    def samples(self) -> Iterable[Sample]:
        for seed, (rows, leaves) in enumerate(((70, 12), (BLOCK + 1, 2), (3 * BLOCK, 60), (5, 300), (600, 100), (520, 30))):
            x, f, r = _sample(seed, rows, leaves)
            s = make_slices(f, r, shapes(f), 200)
            ranks = TreeRanks().reference(RanksAttrs(r.columns, True), x, *rank_inputs(r))
            values = f.values[s.leaves].reshape(len(s.trees), 1 << s.planes, -1).transpose(0, 2, 1)
            attrs = SlicesAttrs(rows, s.planes, s.most)
            tables = s.chunks, s.conditions, s.trees, s.nodes, np.ascontiguousarray(values)
            yield Sample((*ranks, engine_sizes(r, s.trees, s.chunks), *tables, f.base), attrs)


@register
class TreeRow(Engine):
    """One row, a tree in each lane. Inputs: ranks u8[1, columns], sizes i64[3], and ends, steps and trees of `Rows`; values
    [leaves, width] in the order of `Rows.leaves`."""

    name = "tree_row"

    def infer(self, attrs: Attrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        r, sizes, ends, steps, trees = (t or TensorType(F32, ()) for t in ins[:5])
        if r.dtype != U8 or r.rank != 2 or r.shape[0] != 1 or r.shape[1] > MOST_COLUMNS or sizes != _SIZES \
                or ends.dtype != I32 or steps.dtype != U8 or steps.shape[1:2] != (3,) or trees != TensorType(I32, (*trees.shape[:1], 4)):
            raise self.fail(f"{ins} are no tables")
        return self.result(1, ins)

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        r, _, ends, steps, trees, values, base = (a for a in ins if a is not None)
        out, found, begin = base.copy(), [], 0
        for end in ends:
            leaf = np.zeros(steps.shape[2], np.int64)
            for k, (column, bound, first) in enumerate(steps[begin:end]):
                leaf[(r[0, np.minimum(column, r.shape[1] - 1)] >= bound) & (first <= leaf)] = k + 1
            found.append(leaf)
            begin = end
        for place, first, column, _ in trees:
            out[column:column + values.shape[1]] += values[first + np.concatenate(found)[place]]
        return (out[None],)

    def samples(self) -> Iterable[Sample]:
        for seed, (trees, leaves) in enumerate(((21, 12), (12, 64), (2, 256), (70, 3))):
            x, f, r = _sample(seed, 1, leaves, trees)
            assert rows_fit(r, shapes(f))
            ranks = TreeRanks().reference(RanksAttrs(r.columns), x, *rank_inputs(r))
            for lanes in (64, 128):
                t = make_rows(f, r, shapes(f), lanes)
                yield Sample((*ranks, engine_sizes(r, t.trees, t.ends), t.ends, t.steps, t.trees, f.values[t.leaves], f.base))
