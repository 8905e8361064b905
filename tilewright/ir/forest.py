"""Decision forests as arrays: what the op `tree_ensemble` computes, and its meaning in NumPy.

Every library's trees become this one form (`compiler/frontends/trees/`), exactly:

    condition of a numeric node      x <= threshold, compared in the threshold's type, goes left
    missing values of a node         by MissingKind: NaN stands for 0; or NaN (or NaN and about 0) goes the default way
    condition of a categorical node  bit `int(x)` of the node's set, set: goes left
    condition of a member node       x equals one of the node's numbers: goes left; NaN goes the default way
    a result                         base + the trees' leaf values, added in the order of the trees, in the values' type

A strict comparison x < t is x <= the number before t. A threshold NaN is never reached: everything but missing values
goes right. Thresholds that a library holds as f64 and compares with f32 data are rounded down to f32, which changes nothing.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold: what is not larger counts as zero


class Field(IntEnum):
    """Columns of `Forest.nodes`."""

    FEATURE = 0
    LEFT = 1      # a node, or ~leaf
    RIGHT = 2
    KIND = 3      # MissingKind, DEFAULT_LEFT, CATEGORICAL
    SET = 4       # categorical: position of the set's first word in `words`; member: of its first number's bits
    SET_WORDS = 5  # and how many 32-bit words it has; two more follow: all ones or zeros for values beyond it, and for NaN.
    #               Member: how many words its numbers have, which are rising and of the thresholds' type


class MissingKind(IntEnum):
    NONE = 0  # NaN is read as 0
    NAN = 1   # NaN goes the default way
    ZERO = 2  # NaN and |x| <= 1e-35 go the default way


MISSING = 3
DEFAULT_LEFT, CATEGORICAL, MEMBER = 4, 8, 16


@dataclass(frozen=True, eq=False, slots=True)
class Forest:
    """nodes: i32[M, 6], see Field. threshold: f32|f64[M]. words: u32[W]. trees: i32[T, 2], root (a node or ~leaf) and the
    first column of the result that the tree adds to. values: [L, width]: a leaf adds to `width` columns. base: [columns]."""

    nodes: np.ndarray
    threshold: np.ndarray
    words: np.ndarray
    trees: np.ndarray
    values: np.ndarray
    base: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The constant inputs of `tree_ensemble`, in order."""
        return self.nodes, self.threshold, self.words, self.trees, self.values, self.base


def reaches(x: np.ndarray, nodes: np.ndarray, threshold: np.ndarray, words: np.ndarray, root: int) -> np.ndarray:
    """The leaf of each row of x[N, F], i64[N], in the tree at `root`."""
    at = np.full(len(x), root, np.int64)
    rows = np.flatnonzero(at >= 0)
    while len(rows):
        n = nodes[at[rows]]
        left = goes_left(x[rows, n[:, Field.FEATURE]], n, threshold[at[rows]], words)
        at[rows] = np.where(left, n[:, Field.LEFT], n[:, Field.RIGHT])
        rows = rows[at[rows] >= 0]
    return ~at


def goes_left(x: np.ndarray, nodes: np.ndarray, threshold: np.ndarray, words: np.ndarray) -> np.ndarray:
    """bool[n]: the decision of nodes[k] on the value x[k]."""
    kind = nodes[:, Field.KIND]
    missing, nan = kind & MISSING, np.isnan(x)
    x0 = np.where(nan & (missing != MissingKind.NAN), 0, x).astype(x.dtype)
    by_default = ((missing == MissingKind.NAN) & nan) | ((missing == MissingKind.ZERO) & (np.abs(x0) <= x.dtype.type(ZERO)))
    out = np.where(by_default, (kind & DEFAULT_LEFT) != 0, x0 <= threshold)
    sets = np.flatnonzero(kind & CATEGORICAL)
    if len(sets):
        out[sets] = _in_set(x[sets], nodes[sets], words)
    for k in np.flatnonzero(kind & MEMBER):
        out[k] = bool(kind[k] & DEFAULT_LEFT) if nan[k] else bool((x[k] == members(nodes[k], words, threshold.dtype)).any())
    return out


def members(node: np.ndarray, words: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The numbers of a member node."""
    return words[node[Field.SET]:node[Field.SET] + node[Field.SET_WORDS]].view(dtype)


def _in_set(x: np.ndarray, nodes: np.ndarray, words: np.ndarray) -> np.ndarray:
    first, count = nodes[:, Field.SET].astype(np.int64), nodes[:, Field.SET_WORDS].astype(np.int64)
    code = category(x)
    word = np.where(code < 0, count + 1, np.minimum(code >> 5, count))
    return (words[first + word] >> (code & 31).astype(np.uint32) & 1).astype(bool)


def category(x: np.ndarray) -> np.ndarray:
    """i64: the number of a category, x without its fraction; -1 for NaN; 2^31 - 1, which is in no set, for what is none."""
    whole = np.trunc(np.where(np.isnan(x), 0, x))
    code = np.where((whole >= 0) & (whole < 2.0**31 - 128), whole, 2**31 - 1).astype(np.int64)
    # -0.5 is cut to -0.0, which is a category
    return np.where(np.isnan(x), -1, code)


def predict(x: np.ndarray, f: Forest) -> np.ndarray:
    """[N, columns] in the type of the values."""
    width = f.values.shape[1]
    out = np.empty((len(x), len(f.base)), f.values.dtype)
    out[:] = f.base
    with np.errstate(all="ignore"):
        for root, column in f.trees:
            out[:, column:column + width] += f.values[reaches(x, f.nodes, f.threshold, f.words, int(root))]
    return out


def depths(nodes: np.ndarray, roots: Sequence[int] | np.ndarray) -> np.ndarray:
    """i64 for each root: the most conditions on a way to a leaf."""
    out = np.zeros(len(roots), np.int64)
    tree, at = np.arange(len(roots)), np.asarray(roots, np.int64)
    level = 0
    while True:
        inner = at >= 0
        tree, at = tree[inner], at[inner]
        if not len(at):
            return out
        level += 1
        out[tree] = level
        if level > len(nodes):
            raise ValueError("the trees have cycles")
        tree, at = np.concatenate([tree, tree]), np.concatenate([nodes[at, Field.LEFT], nodes[at, Field.RIGHT]]).astype(np.int64)


def round_down(threshold: np.ndarray) -> np.ndarray:
    """f32: the largest numbers not above the f64 `threshold`. For f32 x, x <= t and x <= round_down(t) are the same."""
    with np.errstate(over="ignore"):
        t = threshold.astype(np.float32)
    above = t.astype(np.float64) > threshold
    t[above] = np.nextafter(t[above], np.float32(-np.inf))
    return t


def before(threshold: np.ndarray) -> np.ndarray:
    """t' such that x < t is x <= t', for x of the same type; NaN, which nothing is below, for -inf."""
    return np.where(threshold == -np.inf, threshold.dtype.type(np.nan), np.nextafter(threshold, threshold.dtype.type(-np.inf)))
