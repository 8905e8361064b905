"""Tables for the engines of decision forests: `Forest` -> arrays that generic code reads.

All engines begin with *ranks*. Each (feature, way of treating missing values) that nodes use becomes a group of sorted
thresholds; the rank of x is how many of them lie below it, and x <= threshold[k] is rank < k + 1. Ranks are one byte: a group
of more than LIMIT thresholds has several columns, the rank cut to [254 q, 254 q + 254]. A missing value has a rank that lies
on the right side of all thresholds. Each set of categories is a column of its own: rank 0 in the set, 1 outside. So is each
set of numbers, a group whose thresholds are the numbers before them and they themselves: the rank of a member is odd. So every
condition of every node is `rank[column] < k`, with k in 1 … 254.
"""
from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .forest import CATEGORICAL, DEFAULT_LEFT, MEMBER, MISSING, Field, Forest, MissingKind, before, depths, members

LIMIT = 254
CHUNK_CONDITIONS = 16384  # of 64 bytes each
_NUMBER = 3  # mode of a group: NaN has a rank among the thresholds


class Group(IntEnum):
    """Lines of the table of groups, i32."""

    FEATURE = 0
    LEVELS = 1   # of the binary search: 2^LEVELS - 1 >= COUNT
    FIRST = 2    # position of the thresholds, 2^LEVELS of them with padding
    COUNT = 3
    NAN = 4      # rank of NaN
    ZERO = 5     # rank of what counts as zero and is missing; -1: the search says it
    COLUMN = 6   # first column
    COLUMNS = 7
    PARITY = 8   # 1: not the rank counts, but whether it is even


@dataclass(frozen=True, eq=False, slots=True)
class Ranks:
    """groups: i32[9, G], of each field; `count` groups and more that repeat the last one, to a multiple of 32. thresholds: as
    the forest's, padded with infinity. sets: i32[S, 4]: feature, first word, words, column. words: u32. columns: in all.
    column, bound: of each node, the condition rank[column] < bound."""

    groups: np.ndarray
    count: int
    thresholds: np.ndarray
    sets: np.ndarray
    words: np.ndarray
    columns: int
    column: np.ndarray
    bound: np.ndarray


def make_ranks(f: Forest) -> Ranks:
    kind = f.nodes[:, Field.KIND]
    categorical = (kind & CATEGORICAL) != 0
    column, bound = np.zeros(len(kind), np.int64), np.ones(len(kind), np.int64)
    groups, thresholds, columns = _numeric(f, np.flatnonzero((kind & (CATEGORICAL | MEMBER)) == 0), column, bound)
    groups, thresholds, columns = _members(f, np.flatnonzero(kind & MEMBER), column, groups, thresholds, columns)
    sets, columns = _sets(f, np.flatnonzero(categorical), column, columns)
    if not columns:  # leaves read some column too: one without thresholds, of rank 0
        groups, columns = np.array([[0, 0, 0, 0, 0, -1, 0, 1, 0]], np.int32), 1
    count = len(groups)
    groups = np.ascontiguousarray(groups[np.minimum(np.arange(-(-count // 32) * 32), count - 1)].T if count else groups.T)
    return Ranks(groups, count, thresholds, sets, f.words if len(f.words) else np.zeros(1, np.uint32), columns, column, bound)


def _numeric(f: Forest, numeric: np.ndarray, column: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Fills column and bound of the `numeric` nodes."""
    kind, feature = f.nodes[numeric, Field.KIND].astype(np.int64), f.nodes[numeric, Field.FEATURE].astype(np.int64)
    missing = kind & MISSING
    t = f.threshold[numeric] + f.threshold.dtype.type(0)  # -0.0 and 0.0 are one threshold
    mode = np.where(missing == MissingKind.NONE, 0, missing | (kind & DEFAULT_LEFT))
    goes_left = mode == MissingKind.NAN | DEFAULT_LEFT
    mode = np.where(_like_a_number(feature, mode, t), _NUMBER, mode)
    key = feature * 8 + mode
    first = np.where(np.isnan(t), 0, 1)                   # NaN, which all values are above, comes first
    order = np.lexsort((np.where(np.isnan(t), 0, t), first, key))
    k, v, n = key[order], t[order], first[order]
    new_key = np.r_[True, k[1:] != k[:-1]] if len(k) else np.zeros(0, bool)
    new = new_key | np.r_[True, (v[1:] != v[:-1]) & ((n[1:] != 0) | (n[:-1] != 0)) | (n[1:] != n[:-1])] if len(k) else new_key
    group = np.cumsum(new_key) - 1
    unique = np.cumsum(new) - 1
    starts = unique[new_key] if len(k) else np.zeros(0, np.int64)
    position = unique - starts[group]                     # of each node's threshold in its group
    counts = np.bincount(group[new], minlength=len(starts)).astype(np.int64)
    levels = np.array([int(c).bit_length() for c in counts], np.int64)
    wide = -(-counts // LIMIT)
    at = np.r_[0, np.cumsum(1 << levels)].astype(np.int64)
    columns = np.r_[0, np.cumsum(wide)].astype(np.int64)
    padded = np.full(max(int(at[-1]), 1), np.inf, f.threshold.dtype)
    padded[at[group[new]] + position[new]] = v[new]
    table = np.zeros((len(starts), len(Group)), np.int32)
    keys = k[new_key]
    table[:, Group.FEATURE], table[:, Group.LEVELS], table[:, Group.FIRST], table[:, Group.COUNT] = keys // 8, levels, at[:-1], counts
    table[:, Group.COLUMN], table[:, Group.COLUMNS] = columns[:-1], wide
    modes = keys % 8
    side = np.where((modes & DEFAULT_LEFT) != 0, 0, counts)
    zero = np.array([_rank(padded[a:a + c], 0.0) for a, c in zip(at[:-1], counts, strict=True)], np.int64)
    lowest = np.full(len(starts), 1 << 30, np.int64)  # threshold at which NaN goes left
    np.minimum.at(lowest, group, np.where(goes_left[order], position, 1 << 30))
    table[:, Group.NAN] = np.where(modes == 0, zero, np.where(modes == _NUMBER, lowest, side))
    table[:, Group.ZERO] = np.where((modes & MISSING) == MissingKind.ZERO, side, -1)
    column[numeric[order]] = columns[group] + position // LIMIT
    bound[numeric[order]] = position % LIMIT + 1
    return table, padded, int(columns[-1])


def _like_a_number(feature: np.ndarray, mode: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Nodes of features where NaN goes right at some thresholds and left at all that are higher, as a number between them would:
    one group does for both. So it is behind an imputer, or where NaN is read as 0 behind a scaler."""
    left, right = mode == MissingKind.NAN | DEFAULT_LEFT, mode == MissingKind.NAN
    features = int(feature.max(initial=-1)) + 1
    value = np.where(np.isnan(t), -np.inf, t).astype(np.float64)
    highest, lowest = np.full(features, -np.inf), np.full(features, np.inf)
    np.maximum.at(highest, feature[right], value[right])
    np.minimum.at(lowest, feature[left], value[left])
    both = np.zeros((2, features), bool)
    both[0, feature[left]], both[1, feature[right]] = True, True
    return (left | right) & (both.all(0) & (highest < lowest))[feature]


def _members(f: Forest, nodes: np.ndarray, column: np.ndarray, groups: np.ndarray, thresholds: np.ndarray,
             columns: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Fills column of the member `nodes`. Equal sets of a feature share a group."""
    known: dict[tuple[int, int, bytes], int] = {}
    rows, parts, at = [], [thresholds], len(thresholds)
    for n in nodes:
        kind, feature = int(f.nodes[n, Field.KIND]), int(f.nodes[n, Field.FEATURE])
        numbers = members(f.nodes[n], f.words, f.threshold.dtype)
        key = feature, kind, numbers.tobytes()
        if key not in known:
            known[key] = columns + len(rows)
            own = np.stack([before(numbers + numbers.dtype.type(0)), numbers + numbers.dtype.type(0)], 1).reshape(-1)
            count, levels = len(own), len(own).bit_length()
            padded = np.full(1 << levels, np.inf, own.dtype)
            padded[:count] = own  # rising; NaN, before -inf, comes first
            nan = 0 if kind & DEFAULT_LEFT else 1
            rows.append((feature, levels, at, count, nan, -1, known[key], 1, 1))
            parts.append(padded)
            at += len(padded)
        column[n] = known[key]
    table = np.array(rows, np.int32).reshape(-1, len(Group))
    return np.concatenate([groups, table]), np.concatenate(parts), columns + len(rows)


def _rank(thresholds: np.ndarray, x: float) -> int:
    return int(np.count_nonzero(~(x <= thresholds)))


def _sets(f: Forest, categorical: np.ndarray, column: np.ndarray, columns: int) -> tuple[np.ndarray, int]:
    """Fills column of the `categorical` nodes. Equal sets of a feature share one."""
    known: dict[tuple[int, bytes], int] = {}
    table: list[tuple[int, int, int, int]] = []
    for n in categorical:
        feature, start, count = (int(f.nodes[n, k]) for k in (Field.FEATURE, Field.SET, Field.SET_WORDS))
        key = feature, f.words[start:start + count + 2].tobytes()
        if key not in known:
            known[key] = columns + len(table)
            table.append((feature, start, count, columns + len(table)))
        column[n] = known[key]
    return np.array(table, np.int32).reshape(-1, 4), columns + len(table)


# -- walks -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False, slots=True)
class Walks:
    """nodes: u64[S], 64-bit records `child << 32 | column << 8 | bound`; the next is child + (rank[column] >= bound). A leaf
    is its own child, with bound 255, which no rank reaches. leaf: i32[S], the leaf's number. trees: i32[T, 4]: first record,
    depth, column of the result, 0."""

    nodes: np.ndarray
    leaf: np.ndarray
    trees: np.ndarray


def make_walks(f: Forest, r: Ranks) -> Walks:
    """Records of a tree lie together, breadth first; siblings are neighbours."""
    trees = len(f.trees)
    tree, node = np.arange(trees), f.trees[:, 0].astype(np.int64)
    levels: list[tuple[np.ndarray, np.ndarray]] = []  # (tree, node) of each level, in order of the trees
    while len(node):
        levels.append((tree, node))
        inner = node >= 0
        parents = node[inner]
        tree = np.repeat(tree[inner], 2)
        node = np.stack([f.nodes[parents, Field.LEFT], f.nodes[parents, Field.RIGHT]], 1).astype(np.int64).reshape(-1)
    size = np.zeros(trees, np.int64)
    before: list[np.ndarray] = []  # records of the tree in earlier levels
    for t, _ in levels:
        before.append(size.copy())
        size += np.bincount(t, minlength=trees)
    first = np.r_[0, np.cumsum(size)]
    records, leaf = np.zeros(int(first[-1]), np.uint64), np.zeros(int(first[-1]), np.int32)
    for k, (t, n) in enumerate(levels):
        slot = first[t] + before[k][t] + _within(t)
        inner = n >= 0
        leaf[slot[~inner]] = ~n[~inner]
        records[slot[~inner]] = slot[~inner].astype(np.uint64) << np.uint64(32) | np.uint64(255)
        if inner.any():
            ti, ni = t[inner], n[inner]
            child = first[ti] + before[k + 1][ti] + 2 * _within(ti)
            records[slot[inner]] = (child.astype(np.uint64) << np.uint64(32) | r.column[ni].astype(np.uint64) << np.uint64(8)
                                    | r.bound[ni].astype(np.uint64))
    table = np.zeros((trees, 4), np.int32)
    table[:, 0], table[:, 1], table[:, 2] = first[:-1], depths(f.nodes, f.trees[:, 0]), f.trees[:, 1]
    return Walks(records, leaf, table)


def _within(sorted_ids: np.ndarray) -> np.ndarray:
    """0, 1, 2, … within each run of equal ids."""
    n = len(sorted_ids)
    start = np.r_[True, sorted_ids[1:] != sorted_ids[:-1]]
    return np.arange(n) - np.maximum.accumulate(np.where(start, np.arange(n), 0))


# -- bit slices --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False, slots=True)
class Slices:
    """planes: bits of a leaf's number within its tree, 4 at least. most: conditions of a chunk. chunks: i32[J, 4]: first and
    last condition, first and last tree. conditions: u32, `column << 8 | bound`. trees: i32[T, 4]: end of its nodes, leaves,
    column of the result, 0. nodes:
    u32[M, 2]: condition within the chunk, `a | m << 16`: of the leaves [a, b) that reach it, [a, m) are on the left.
    leaves: i32[T << planes], the number of each leaf in the forest, 0 in the gaps."""

    planes: int
    most: int
    chunks: np.ndarray
    conditions: np.ndarray
    trees: np.ndarray
    nodes: np.ndarray
    leaves: np.ndarray


def make_slices(f: Forest, r: Ranks, s: Shapes, most_conditions: int = CHUNK_CONDITIONS) -> Slices:
    """`most_conditions`: as many as the second-level cache holds besides the rest, 64 bytes each."""
    order, owner, counts, begin, middle, leaf_tree, leaf_number, leaf_place = ranges(f, s)
    planes = max(4, int(counts.max(initial=1) - 1).bit_length())
    condition = r.column[order] << 8 | r.bound[order]
    sizes = np.bincount(owner, minlength=len(f.trees))
    ends = np.cumsum(sizes)
    chunks, conditions, local = _chunks(condition, sizes, ends, most_conditions)
    trees = np.zeros((len(f.trees), 4), np.int32)
    trees[:, 0], trees[:, 1], trees[:, 2] = ends, counts, f.trees[:, 1]
    nodes = np.stack([local, begin | middle << 16], 1).astype(np.uint32).reshape(-1, 2)
    leaves = np.zeros(len(f.trees) << planes, np.int32)
    leaves[(leaf_tree << planes) + leaf_place] = leaf_number
    most = int((chunks[:, 1] - chunks[:, 0]).max(initial=1))
    return Slices(planes, most, chunks, conditions, trees, nodes if len(nodes) else np.zeros((1, 2), np.uint32), leaves)


def _chunks(condition: np.ndarray, sizes: np.ndarray, ends: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parts of the forest whose conditions, each once and in order, are few enough."""
    rows, lists = [], []
    local = np.zeros(len(condition), np.int64)
    before = _before(condition)
    at, tree = 0, 0
    while tree < len(sizes):
        last = _fitting(before, sizes, ends, tree, most)
        begin, end = int(ends[tree] - sizes[tree]), int(ends[last - 1])
        unique, local[begin:end] = np.unique(condition[begin:end], return_inverse=True)
        rows.append((at, at + len(unique), tree, last))
        lists.append(unique)
        at, tree = at + len(unique), last
    return np.array(rows, np.int32).reshape(-1, 4), np.concatenate([*lists, [0]]).astype(np.uint32), local


def _before(condition: np.ndarray) -> np.ndarray:
    """i64: where the same condition stands before, -1 for the first one."""
    order = np.argsort(condition, kind="stable")
    out = np.full(len(condition), -1, np.int64)
    same = condition[order[1:]] == condition[order[:-1]]
    out[order[1:][same]] = order[:-1][same]
    return out


def _fitting(before: np.ndarray, sizes: np.ndarray, ends: np.ndarray, first: int, most: int) -> int:
    """The tree behind the last one that shares a chunk with `first`."""
    begin, width = int(ends[first] - sizes[first]), 2 * most
    while True:
        distinct = np.cumsum(before[begin:begin + width] < begin)  # each counts where it stands first
        if len(distinct) < width or distinct[-1] > most:
            break
        width *= 2
    end = begin + int(np.searchsorted(distinct, most, side="right"))
    return max(first + 1, int(np.searchsorted(ends, end, side="right")))


@dataclass(frozen=True, eq=False, slots=True)
class Shapes:
    """levels: (tree, node) of all inner nodes, level by level, in order of the trees. below: leaves below each node. counts:
    leaves of each tree."""

    levels: list[tuple[np.ndarray, np.ndarray]]
    below: np.ndarray
    counts: np.ndarray

    def mean_depths(self) -> np.ndarray:
        """f64[T]: conditions on the way to a leaf, the mean over a tree's leaves."""
        total = np.zeros(len(self.counts))
        for t, n in self.levels:
            total += np.bincount(t, self.below[n], len(total))
        return total / np.maximum(self.counts, 1)


def shapes(f: Forest) -> Shapes:
    tree, node = np.arange(len(f.trees)), f.trees[:, 0].astype(np.int64)
    levels = []
    while len(node):
        inner = node >= 0
        tree, node = tree[inner], node[inner]
        levels.append((tree, node))
        tree = np.repeat(tree, 2)
        node = np.stack([f.nodes[node, Field.LEFT], f.nodes[node, Field.RIGHT]], 1).astype(np.int64).reshape(-1)
    below = np.ones(len(f.nodes), np.int64)
    for _, n in reversed(levels):
        below[n] = _below(below, f.nodes[n, Field.LEFT]) + _below(below, f.nodes[n, Field.RIGHT])
    return Shapes(levels, below, _below(below, f.trees[:, 0]))


def _below(below: np.ndarray, children: np.ndarray) -> np.ndarray:
    c = children.astype(np.int64)
    return np.where(c >= 0, below[np.maximum(c, 0)] if len(below) else 1, 1)


def ranges(f: Forest, s: Shapes) -> tuple[np.ndarray, ...]:
    """Nodes ordered by tree and level, their trees; leaves of each tree; each node's a and m; the leaves' trees, numbers in
    the forest and places in their trees."""
    levels, below, counts = s.levels, s.below, s.counts
    start = np.zeros(len(f.nodes), np.int64)
    leaf_parts = [(np.flatnonzero(f.trees[:, 0] < 0), ~f.trees[f.trees[:, 0] < 0, 0].astype(np.int64))]
    leaf_place = [np.zeros(len(leaf_parts[0][0]), np.int64)]
    for t, n in levels:
        left, right = (f.nodes[n, c].astype(np.int64) for c in (Field.LEFT, Field.RIGHT))
        middle = start[n] + _below(below, left)
        for child, where in ((left, start[n]), (right, middle)):
            inner = child >= 0
            start[child[inner]] = where[inner]
            leaf_parts.append((t[~inner], ~child[~inner]))
            leaf_place.append(where[~inner])
    owner = np.concatenate([t for t, _ in levels]) if levels else np.zeros(0, np.int64)
    order = np.concatenate([n for _, n in levels]) if levels else np.zeros(0, np.int64)
    by_tree = np.argsort(owner, kind="stable")
    order, owner = order[by_tree], owner[by_tree]
    middle = start[order] + _below(below, f.nodes[order, Field.LEFT])
    return (order, owner, counts, start[order], middle, np.concatenate([t for t, _ in leaf_parts]),
            np.concatenate([n for _, n in leaf_parts]), np.concatenate(leaf_place))
