"""Decision forests of ai.onnx.ml as `tree_ensemble`: conditions of every mode, sums, means, least and largest values; and the
operator TreeEnsemble, of version 5. The older two are in ml_trees.py."""
from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from ...errors import ModelError, UnsupportedError
from ..builder import GraphBuilder
from ..forest import DEFAULT_LEFT, MEMBER, Field, MissingKind, before
from ..graph import Value
from ..op import OnnxNode, from_onnx
from ..types import F32, F64

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def conditions(modes: np.ndarray, feature: np.ndarray, split: np.ndarray, true: np.ndarray, false: np.ndarray, tracked: np.ndarray,
               members: Sequence[np.ndarray] = ()) -> Arrays:
    """Nodes, thresholds and words of a Forest. true, false: nodes or ~leaves. tracked: NaN goes to true. members: the numbers of
    each BRANCH_MEMBER, in order. What says "greater" or "not" is the other way round; NaN is in no comparison but "not equal"."""
    turned = np.isin(modes, ("BRANCH_GT", "BRANCH_GTE", "BRANCH_NEQ"))
    table = np.zeros((len(modes), len(Field)), np.int32)
    table[:, Field.FEATURE] = feature
    table[:, Field.LEFT], table[:, Field.RIGHT] = np.where(turned, false, true), np.where(turned, true, false)
    nan_left = ((tracked != 0) != turned) & (modes != "BRANCH_NEQ")
    table[:, Field.KIND] = MissingKind.NAN | np.where(nan_left, DEFAULT_LEFT, 0)
    words, rest = [np.zeros(0, np.uint32)], iter(members)
    for k in np.flatnonzero(np.isin(modes, ("BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER"))):
        numbers = next(rest) if modes[k] == "BRANCH_MEMBER" else split[k:k + 1]
        numbers = np.unique(numbers[~np.isnan(numbers)].astype(split.dtype)).view(np.uint32)
        table[k, Field.KIND] |= MEMBER
        table[k, Field.SET], table[k, Field.SET_WORDS] = sum(map(len, words)), len(numbers)
        words.append(numbers)
    return table, np.where(np.isin(modes, ("BRANCH_LT", "BRANCH_GTE")), before(split), split).astype(split.dtype), np.concatenate(words)


def aggregated(b: GraphBuilder, x: Value, arrays: Arrays, roots: Sequence[int], weights: tuple[np.ndarray, np.ndarray], base: np.ndarray,
               kind: str, name: str) -> Value:
    """[rows, columns]. weights: of the leaves [leaves, columns], and which of them are given. base: [columns]."""
    values, given = weights
    columns = len(base)
    least = kind in ("MIN", "MAX")
    if least:  # each tree has columns of its own, from which the least is chosen; a leaf that says nothing about one never is
        values = np.where(given, values, np.inf if kind == "MIN" else -np.inf).astype(values.dtype)
    trees = np.array([(r, t * columns if least else 0) for t, r in enumerate(roots)], np.int32).reshape(-1, 2)
    start = base if kind == "SUM" else np.zeros(columns * (len(roots) if least else 1), base.dtype)
    constants = [b.constant(a, name=m) for a, m in zip((*arrays, trees), ("nodes", "threshold", "words", "trees"), strict=True)]
    y = b.op("tree_ensemble", x, *constants, b.weight(f"{name}.values", values), b.constant(start, name="base"))
    if kind == "SUM":
        return y
    if kind == "AVERAGE":
        y = b.op("div", y, b.constant(np.array(len(roots), base.dtype)))
    else:
        y = b.op("reshape", y, shape=(x.type.shape[0], len(roots), columns))
        y = b.op("reduce", y, kind=kind.lower(), axes=(1,), keepdims=0)
        none = b.op("eq", y, b.constant(np.array(np.inf if kind == "MIN" else -np.inf, base.dtype)))
        y = b.op("where", none, b.constant(np.array(0, base.dtype)), y)
    return b.op("add", y, b.constant(base)) if base.any() else y


def transformed(b: GraphBuilder, y: Value, transform: str, where: str) -> Value:
    """After post_transform. Raises UnsupportedError for SOFTMAX_ZERO and PROBIT."""
    if transform == "NONE":
        return y
    if transform == "LOGISTIC":
        return b.op("sigmoid", y)
    if transform == "SOFTMAX" and y.type.shape[1] > 1:
        return b.op("softmax", y, axis=1)
    raise UnsupportedError(f"{where}: post_transform={transform} of {y.type.shape[1]} targets is not compiled; NONE, LOGISTIC and "
                           "SOFTMAX of several are")


def in_real(b: GraphBuilder, x: Value) -> tuple[Value, np.dtype]:
    """x in f32 or f64, and that type."""
    if x.type.dtype not in (F32, F64):
        x = b.op("cast", x, dtype=F32)
    return x, np.dtype(x.type.dtype.numpy)


def _choice(n: OnnxNode, name: str, default: int, known: Sequence[str]) -> str:
    k = int(cast(int, n.attrs.get(name, default)))
    if not 0 <= k < len(known):
        raise ModelError(f"TreeEnsemble {n.name!r}: {name}={k} has no meaning; expected 0 to {len(known) - 1}")
    return known[k]


@from_onnx("TreeEnsemble", domain="ai.onnx.ml")
def ensemble(n: OnnxNode, b: GraphBuilder) -> Value:
    kind, transform = _choice(n, "aggregate_function", 1, AGGREGATES), _choice(n, "post_transform", 0, TRANSFORMS)
    x, dtype = in_real(b, n.need(0))
    arrays, roots = _trees(n, dtype, x.type.shape[1])
    targets, weight, target = int(cast(int, n.attrs.get("n_targets", 1))), _reals(n, "leaf_weights", dtype), _ints(n, "leaf_targetids")
    if len(target) != len(weight) or target.min(initial=0) < 0 or target.max(initial=0) >= targets:
        raise ModelError(f"TreeEnsemble {n.name!r}: leaf_targetids are not one for each of leaf_weights, from 0 to {targets - 1}")
    values, given = np.zeros((len(weight), targets), dtype), np.zeros((len(weight), targets), bool)
    values[np.arange(len(weight)), target], given[np.arange(len(weight)), target] = weight, True
    y = aggregated(b, x, arrays, roots, (values, given), np.zeros(targets, dtype), kind, n.name or "TreeEnsemble")
    y = transformed(b, y, transform, f"TreeEnsemble {n.name!r}")
    return y if y.type.dtype == n.need(0).type.dtype else b.op("cast", y, dtype=n.need(0).type.dtype)


def _ints(n: OnnxNode, name: str) -> np.ndarray:
    return np.asarray(n.attrs.get(name, ()), np.int64).reshape(-1)


def _reals(n: OnnxNode, name: str, dtype: np.dtype) -> np.ndarray:
    return np.asarray(n.attrs.get(name, ())).reshape(-1).astype(dtype)


def _trees(n: OnnxNode, dtype: np.dtype, features: int) -> tuple[Arrays, list[int]]:
    """Conditions and roots. Raises ModelError where they are no trees."""
    modes, split, feature = _ints(n, "nodes_modes"), _reals(n, "nodes_splits", dtype), _ints(n, "nodes_featureids")
    roots = _ints(n, "tree_roots")
    count, leaves = len(modes), len(_ints(n, "leaf_targetids"))
    to_leaf, to = ([_ints(n, f"nodes_{k}{what}") for k in ("true", "false")] for what in ("leafs", "nodeids"))
    if [len(a) for a in (*to_leaf, *to)] != [count] * 4:
        raise ModelError(f"TreeEnsemble {n.name!r}: its attributes are no trees: their lengths differ")
    ends = [np.where(leaf != 0, ~at, at) for leaf, at in zip(to_leaf, to, strict=True)]
    tracked = _ints(n, "nodes_missing_value_tracks_true")
    tracked = tracked if len(tracked) else np.zeros(count, np.int64)
    if not count or not len(roots) or {len(split), len(feature), len(tracked)} != {count}:
        raise ModelError(f"TreeEnsemble {n.name!r}: its attributes are no trees: there are no nodes or roots, or lengths differ")
    below = np.concatenate(ends)
    inner = np.concatenate([below[below >= 0], roots])
    inside = modes.min() >= 0 and modes.max() < len(MODES) and feature.min() >= 0 and feature.max() < features
    if not inside or inner.min() < 0 or inner.max() >= count or (~below.min()) >= leaves or np.bincount(inner).max() > 1:
        raise ModelError(f"TreeEnsemble {n.name!r}: its attributes are no trees: an index is out of range, or a node has two parents")
    listed = _reals(n, "membership_values", dtype)
    members = np.split(listed, np.flatnonzero(np.isnan(listed)))[:-1]
    if len(members) != np.count_nonzero(modes == MODES.index("BRANCH_MEMBER")):
        raise ModelError(f"TreeEnsemble {n.name!r}: membership_values has {len(members)} sets, each ended by NaN; expected one for each "
                         "BRANCH_MEMBER")
    return conditions(np.array(MODES)[modes], feature, split, ends[0], ends[1], tracked, members), roots.tolist()
