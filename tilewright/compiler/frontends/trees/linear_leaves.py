"""LightGBM's linear trees: the leaf that a row reaches is a linear model of it (src/io/tree.cpp, Tree::PredictLinear).

    value of a tree = const + sum of coef[j] * x[feature[j]];  the leaf's plain value, where one of these x is NaN

The leaf of each tree is found by the forest's engines, its numbers are gathered from tables [leaves, most features of a leaf].
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ....errors import ModelError
from ....ir.builder import GraphBuilder
from ....ir.forest import Forest
from ....ir.graph import Value
from ....ir.types import F64
from .table import emit, scalar

Numbers = Callable[[Mapping[str, str], str, type, int], np.ndarray]


@dataclass(frozen=True, eq=False, slots=True)
class LinearLeaves:
    """Of all leaves, tree by tree. const, plain: f64[L]. feature: i64[L, K]; coef: f64[L, K]; used: bool[L, K], which are there."""

    const: np.ndarray
    plain: np.ndarray
    feature: np.ndarray
    coef: np.ndarray
    used: np.ndarray


def is_linear(tree: Mapping[str, str]) -> bool:
    return tree.get("is_linear", "0") == "1"


def linear_leaves(trees: Sequence[Mapping[str, str]], leaves: Sequence[int], features: int, numbers: Numbers) -> LinearLeaves:
    """numbers(tree, key, type, count): a line of a tree. Raises ModelError for features that are not there."""
    parts: list[tuple[np.ndarray, ...]] = []
    for t, n in zip(trees, leaves, strict=True):
        plain = numbers(t, "leaf_value", np.float64, n)
        if not is_linear(t):
            parts.append((plain, plain, np.zeros(n, np.int64), np.zeros(0, np.int64), np.zeros(0)))
            continue
        each = numbers(t, "num_features", np.int64, n)
        if (each < 0).any():
            raise ModelError("the LightGBM model is damaged: num_features is negative")
        total = int(each.sum())
        parts.append((numbers(t, "leaf_const", np.float64, n), plain, each, numbers(t, "leaf_features", np.int64, total),
                      numbers(t, "leaf_coeff", np.float64, total)))
    const, plain, each, feature, coef = (np.concatenate([p[k] for p in parts]) for k in range(5))
    if len(feature) and (feature.min() < 0 or feature.max() >= features):
        raise ModelError(f"the LightGBM model is damaged: a leaf's feature is not among the {features}")
    used = np.arange(max(1, int(each.max(initial=0)))) < each[:, None]
    out = LinearLeaves(const, plain, np.zeros(used.shape, np.int64), np.zeros(used.shape), used)
    out.feature[used], out.coef[used] = feature, coef
    return out


def linear_sums(b: GraphBuilder, x: Value, leaf: Forest, t: LinearLeaves, columns: int) -> Value:
    """f64[rows, columns]: the sums over the trees, of which tree k adds to column k % columns. leaf: gives each tree's leaf, as its
    position in the tables."""
    at = emit(b, x, leaf)
    rows, trees = at.type.shape
    most = t.used.shape[1]
    wide = x if x.type.dtype == F64 else b.op("cast", x, dtype=F64)

    def of(table: Value) -> Value:
        return b.op("gather", table, at, axis=0)
    used = of(b.constant(t.used))
    where = b.op("reshape", of(b.constant(t.feature)), shape=(rows, trees * most))
    v = b.op("reshape", b.op("gather_elements", wide, where, axis=1), shape=(rows, trees, most))
    v = b.op("where", used, v, scalar(b, v, 0))  # infinity times nothing is nothing
    missing = b.op("reduce", b.op("isnan", v), kind="any", axes=(2,), keepdims=0)
    terms = b.op("reduce", b.op("mul", v, of(b.weight("leaf_coeff", t.coef))), kind="sum", axes=(2,), keepdims=0)
    whole = b.op("add", of(b.weight("leaf_const", t.const)), terms)
    y = b.op("where", missing, of(b.weight("leaf_values", t.plain)), whole)
    y = b.op("reshape", y, shape=(rows, trees // columns, columns))
    return b.op("reduce", y, kind="sum", axes=(1,), keepdims=0)
