"""Tree ensembles of ai.onnx.ml: TreeEnsembleRegressor and TreeEnsembleClassifier.

Sums are in f32 (f64 for f64 input), base values first, then the trees in order.
"""
from __future__ import annotations

from typing import cast

import numpy as np

from ...errors import ModelError, UnsupportedError
from ..builder import GraphBuilder
from ..forest import Field
from ..graph import Value
from ..op import OnnxNode, from_onnx
from ..types import F32, I64
from .ml_forest import AGGREGATES, MODES, Arrays, aggregated, conditions, in_real, transformed


def _ints(n: OnnxNode, name: str) -> np.ndarray:
    return np.asarray(n.attrs.get(name, ()), np.int64).reshape(-1)


def _reals(n: OnnxNode, name: str, dtype: np.dtype) -> np.ndarray:
    """The attribute or, of f64, its form as a tensor."""
    wide = n.attrs.get(f"{name}_as_tensor")
    return np.asarray(n.attrs.get(name, ()) if wide is None else wide).reshape(-1).astype(dtype)


def _sums(n: OnnxNode, b: GraphBuilder, x: Value, prefix: str, ids: str, columns: int, kind: str = "SUM") -> Value:
    """[rows, columns]: base + sums (or another aggregate) of the leaves' weights."""
    x, dtype = in_real(b, x)
    tree, node = _ints(n, "nodes_treeids"), _ints(n, "nodes_nodeids")
    keys = {(int(t), int(k)): i for i, (t, k) in enumerate(zip(tree, node, strict=True))}
    modes = np.array([str(m) for m in cast("tuple[str, ...]", n.attrs.get("nodes_modes", ()))])
    if unknown := set(modes) - {*MODES[:-1], "LEAF"}:
        raise UnsupportedError(f"{n.op_type} {n.name!r}: nodes of mode {', '.join(sorted(unknown))} are not compiled")
    leaf = modes == "LEAF"
    place = np.where(leaf, -np.cumsum(leaf), np.cumsum(~leaf) - 1)
    arrays = _nodes(n, modes, keys, place, dtype)
    values, given = np.zeros((int(leaf.sum()), columns), dtype), np.zeros((int(leaf.sum()), columns), bool)
    parts = (_ints(n, f"{prefix}_treeids"), _ints(n, f"{prefix}_nodeids"), _ints(n, ids), _reals(n, f"{prefix}_weights", dtype))
    for t, k, column, weight in zip(*parts, strict=True):
        at = keys.get((int(t), int(k)))
        if at is None or not leaf[at] or not 0 <= column < columns:
            raise ModelError(f"{n.op_type} {n.name!r}: a weight belongs to no leaf or no result")
        values[~place[at], column] += weight
        given[~place[at], column] = True
    child = {int(c) for c in arrays[0][:, [Field.LEFT, Field.RIGHT]].reshape(-1)}
    roots = [int(p) for p in place if int(p) not in child]
    base = _reals(n, "base_values", dtype)
    base = np.ascontiguousarray(np.broadcast_to(base if len(base) else np.zeros(1, dtype), (columns,)))
    return aggregated(b, x, arrays, roots, (values, given), base, kind, n.name or n.op_type)


def _nodes(n: OnnxNode, modes: np.ndarray, keys: dict[tuple[int, int], int], place: np.ndarray, dtype: np.dtype) -> Arrays:
    inner = np.flatnonzero(modes != "LEAF")
    tree, yes, no = _ints(n, "nodes_treeids"), _ints(n, "nodes_truenodeids"), _ints(n, "nodes_falsenodeids")
    tracked = _ints(n, "nodes_missing_value_tracks_true")
    tracked = tracked[inner] if len(tracked) else np.zeros(len(inner), np.int64)
    try:
        true, false = (np.array([place[keys[int(tree[i]), int(side[i])]] for i in inner], np.int64) for side in (yes, no))
    except KeyError as e:
        raise ModelError(f"{n.op_type} {n.name!r}: there is no node {e}") from None
    return conditions(modes[inner], _ints(n, "nodes_featureids")[inner], _reals(n, "nodes_values", dtype)[inner], true, false, tracked)


@from_onnx("TreeEnsembleRegressor", domain="ai.onnx.ml")
def regressor(n: OnnxNode, b: GraphBuilder) -> Value:
    kind, transform = str(n.attrs.get("aggregate_function", "SUM")), str(n.attrs.get("post_transform", "NONE"))
    if kind not in AGGREGATES:
        raise ModelError(f"TreeEnsembleRegressor {n.name!r}: aggregate_function={kind}; expected one of {', '.join(AGGREGATES)}")
    y = _sums(n, b, n.need(0), "target", "target_ids", int(cast(int, n.attrs.get("n_targets", 1))), kind)
    y = y if y.type.dtype == F32 else b.op("cast", y, dtype=F32)
    return transformed(b, y, transform, f"TreeEnsembleRegressor {n.name!r}")


@from_onnx("TreeEnsembleClassifier", domain="ai.onnx.ml")
def classifier(n: OnnxNode, b: GraphBuilder) -> tuple[Value, ...]:
    labels, transform = _ints(n, "classlabels_int64s"), str(n.attrs.get("post_transform", "NONE"))
    ids = np.unique(_ints(n, "class_ids"))
    if not len(labels):
        raise UnsupportedError(f"TreeEnsembleClassifier {n.name!r}: labels that are strings are not compiled; export with integer labels")
    if transform not in ("NONE", "SOFTMAX", "LOGISTIC") or (len(labels) == 2 and len(ids) == 1 and transform == "SOFTMAX"):
        raise UnsupportedError(f"TreeEnsembleClassifier {n.name!r}: post_transform={transform} is not compiled for {len(labels)} classes")
    y = _sums(n, b, n.need(0), "class", "class_ids", len(labels))
    y = y if y.type.dtype == F32 else b.op("cast", y, dtype=F32)
    if len(labels) == 2 and len(ids) == 1:  # one score for two classes
        score = b.op("slice", y, starts=(0, int(ids[0])), steps=(1, 1), sizes=(y.type.shape[0], 1))
        positive = bool((_reals(n, "class_weights", np.dtype(np.float32)) >= 0).all())
        limit = b.constant(np.array(0.5 if positive else 0.0, np.float32))
        index = b.op("cast", b.op("gt", score, limit), dtype=I64)
        index = b.op("reshape", index, shape=y.type.shape[:1])
        one = b.constant(np.array(1, np.float32))
        if transform == "LOGISTIC":
            score = b.op("sigmoid", score)
        other = b.op("sub", one, score) if positive or transform == "LOGISTIC" else b.op("neg", score)
        y = b.op("concat", other, score, axis=1)
    else:
        index = b.op("arg_reduce", y, kind="max", axis=1, keepdims=0)
        if transform != "NONE":
            y = b.op("softmax", y, axis=1) if transform == "SOFTMAX" else b.op("sigmoid", y)
    return b.op("gather", b.constant(labels), index, axis=0), y
