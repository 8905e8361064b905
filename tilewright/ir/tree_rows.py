"""Tables of `tree_row`, which takes one row through many trees at once: one lane of a register for each tree.

The nodes of a tree are numbered from left to right, so that node i stands between leaves i and i + 1. Where its condition is
false, all leaves of its left part, first … i, are out of reach, and the leaf that is reached is the first one that is not
out of reach. One scan finds it, because a node's part begins before or behind the leaf found so far, never inside of what is
out of reach:

    leaf = 0;  for i in nodes: if (rank[column] >= bound && first <= leaf) leaf = i + 1

So all trees do the same in every step, whatever their shape, and nothing is looked up but ranks, which are in registers.
(The idea to find a leaf by what is out of reach is that of QuickScorer, Lucchese et al., SIGIR 2015; its masks are not needed.)
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .forest import Forest
from .tree_tables import Ranks, Shapes, ranges

MOST_LEAVES, MOST_COLUMNS = 256, 256  # numbers of one byte


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Trees are sorted by size into groups of `lanes`. ends: i32[G], behind the last step of each group. steps: u8[S, 3, lanes],
    of each step the column, bound and first leaf of a node of each tree; a bound of 255 is never reached. trees: i32[T, 4]:
    position among the sorted trees, first leaf, column of the result, 0. leaves: i32[L], the numbers of the leaves in the
    forest, tree by tree, from left to right."""

    ends: np.ndarray
    steps: np.ndarray
    trees: np.ndarray
    leaves: np.ndarray


def rows_fit(r: Ranks, s: Shapes) -> bool:
    return r.columns <= MOST_COLUMNS and int(s.counts.max(initial=0)) <= MOST_LEAVES


def row_steps(s: Shapes, lanes: int) -> int:
    """Steps of all groups."""
    return int(np.sort(s.counts - 1)[::-1][::lanes].sum())


def make_rows(f: Forest, r: Ranks, s: Shapes, lanes: int) -> Rows:
    """Requires `rows_fit`."""
    order, owner, counts, first, middle, leaf_tree, leaf_number, leaf_place = ranges(f, s)
    by_size = np.argsort(-counts, kind="stable")
    place = np.zeros(len(counts), np.int64)
    place[by_size] = np.arange(len(counts))
    sizes = counts[by_size[::lanes]] - 1
    ends = np.cumsum(sizes)
    steps = np.zeros((max(1, int(ends[-1])), 3, lanes), np.uint8)
    steps[:, 1] = 255
    group, lane = place[owner] // lanes, place[owner] % lanes
    step = ends[group] - sizes[group] + middle - 1
    for k, values in enumerate((r.column[order], r.bound[order], first)):
        steps[step, k, lane] = values
    begin = np.cumsum(counts) - counts
    leaves = np.zeros(int(counts.sum()), np.int32)
    leaves[begin[leaf_tree] + leaf_place] = leaf_number
    trees = np.stack([place, begin, f.trees[:, 1].astype(np.int64), np.zeros_like(place)], 1)
    return Rows(ends.astype(np.int32), steps, trees.astype(np.int32), leaves)
