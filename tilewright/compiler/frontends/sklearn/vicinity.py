"""Neighbours within a radius, outliers by local density, and cluster models that look for the nearest centre."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.types import F32, F64, I32, I64
from .columns import Columns, convert, dense, flat, num, pick_columns
from .estimator import Estimator, best, checked_index, classes_named, converts, predicts
from .mixture import outliers
from .neighbors import EUCLIDEAN, distances, inverse_distances, nearest, squared_distances
from .pairwise import gaps
from .project import projected


# -- within a radius ---------------------------------------------------------------------------------------------------
def _within(e: Estimator, x: Columns) -> Value:
    """[rows, training points]: weights of those within the radius, 0 for the others."""
    d, radius, b = distances(e, x), e.number("radius"), x.b
    how = e.get("weights")
    if how not in (None, "uniform", "distance"):
        raise e.refuse(f"weights={how!r}", "functions are not compiled")
    euclidean = e.text("effective_metric_") in EUCLIDEAN
    inside = b.op("le", d, num(b, d, radius * radius if euclidean else radius))
    if how in (None, "uniform"):
        return b.op("cast", inside, dtype=F64)
    if euclidean:  # from differences, as the library's trees have them: 0 for equal rows
        d = b.op("reduce", b.op("sub", *gaps(x, e.array("_fit_X"))), kind="l2", axes=(2,), keepdims=0)
    return b.op("where", inside, inverse_distances(x, d), num(b, d, 0))


@predicts("RadiusNeighborsRegressor")
def _radius_regressor(e: Estimator, x: Columns, method: str) -> Value:
    """NaN where none is near."""
    w, y, b = _within(e, x), e.array("_y").astype(np.float64), x.b
    sums = dense(x.s, w).linear(y[:, None] if y.ndim == 1 else y, None, "y")
    out = b.op("div", sums, b.op("reduce", w, kind="sum", axes=(1,), keepdims=1))
    return flat(b, out) if y.ndim == 1 else out


@predicts("RadiusNeighborsClassifier", methods=("predict", "predict_proba"))
def _radius_classifier(e: Estimator, x: Columns, method: str) -> Value:
    """Without an outlier label, a row with no neighbour is an error of the call, as in the library."""
    if e.flag("outputs_2d_"):
        raise e.refuse("several outputs", "one target is compiled")
    b, n = x.b, len(e.classes)
    votes = dense(x.s, _within(e, x)).linear(np.eye(n)[e.array("_y").astype(np.int64)], None, "classes")
    total = b.op("reduce", votes, kind="sum", axes=(1,), keepdims=1)
    none = b.op("eq", total, num(b, total, 0))
    label = e.get("outlier_label_")
    if label is None:
        at = checked_index(x.s, b.op("cast", none, dtype=I64), 1)
        share = b.op("div", votes, b.op("add", total, b.op("cast", at, dtype=F64)))
        return classes_named(e, x, best(x.s, share)) if method == "predict" else share
    outlier = np.flatnonzero(e.classes == np.asarray(label).reshape(-1)[0])
    if not len(outlier):
        raise e.refuse(f"outlier_label={label!r}", "it is none of the classes")
    share = b.op("where", none, b.constant(np.eye(n)[outlier]), b.op("div", votes, b.op("where", none, num(b, total, 1), total)))
    return classes_named(e, x, best(x.s, share)) if method == "predict" else share


# -- local density -----------------------------------------------------------------------------------------------------
@predicts("LocalOutlierFactor", methods=("predict", "decision_function", "score_samples"))
def _local(e: Estimator, x: Columns, method: str) -> Value:
    """The mean density of the neighbours over the row's own."""
    b, k = x.b, int(e.number("n_neighbors_"))
    near, at = nearest(e, x, k)
    far = b.op("gather", x.s.const(e.array("_distances_fit_X_")[:, k - 1].astype(np.float64), "reach"), at, axis=0)
    reach = b.op("reduce", b.op("max", near, far), kind="mean", axes=(1,), keepdims=1)
    density = b.op("div", num(b, reach, 1), b.op("add", reach, num(b, reach, 1e-10)))
    others = b.op("gather", x.s.const(e.array("_lrd").astype(np.float64), "density"), at, axis=0)
    y = b.op("neg", b.op("reduce", b.op("div", others, density), kind="mean", axes=(1,), keepdims=0))
    return outliers(x, convert(b, y, F32 if x.dtype == F32 and e.array("_lrd").dtype == np.float32 else F64), e.number("offset_"), method)


@converts("NeighborhoodComponentsAnalysis")
def _components(e: Estimator, x: Columns) -> Columns:
    return projected(x, e.array("components_").T, None, "components")


# -- centres -----------------------------------------------------------------------------------------------------------
@converts("Birch")
def _birch(e: Estimator, x: Columns) -> Columns:
    centers = e.array("subcluster_centers_")
    d = x.b.op("sqrt", squared_distances(x, centers))
    return x.dense(convert(x.b, d, F32 if x.dtype == F32 and centers.dtype == np.float32 else F64))


@predicts("Birch", "MeanShift", "AffinityPropagation")
def _to_center(e: Estimator, x: Columns, method: str) -> Value:
    centers = e.get("subcluster_centers_" if e.name == "Birch" else "cluster_centers_")
    if not isinstance(centers, np.ndarray) or not len(centers):
        raise e.refuse("a model without centres", "it did not converge, or was fitted on sparse data")
    at = x.b.op("arg_reduce", squared_distances(x, centers), kind="min", axis=1, keepdims=0)
    if e.name != "Birch":
        return at
    labels = e.array("subcluster_labels_")
    return at if np.array_equal(labels, np.arange(len(labels))) else x.b.op("gather", x.b.constant(labels.astype(np.int64)), at, axis=0)


@predicts("BisectingKMeans")
def _bisecting(e: Estimator, x: Columns, method: str) -> Value:
    """Down the tree of bisections, at each to the nearer of two centres: all bisections are decided, and followed by selects."""
    b = x.b
    base = e.array("_X_mean").astype(np.float64) if hasattr(e.model, "_X_mean") else 0.0
    pairs: list[tuple[np.ndarray, float]] = []

    def plan(node: object) -> int | tuple[int, object, object]:
        left, right = getattr(node, "left", None), getattr(node, "right", None)
        if left is None:
            return int(node.label)  # type: ignore[attr-defined]
        p, q = (np.asarray(c.center, np.float64) + base for c in (left, right))  # type: ignore[union-attr]
        pairs.append((2 * (q - p), float(p @ p - q @ q)))  # |x - p|^2 - |x - q|^2
        k = len(pairs) - 1
        return k, plan(left), plan(right)
    whole = plan(e.get("_bisecting_tree"))
    if isinstance(whole, int):
        return b.op("expand", b.constant(np.array([whole], np.int32)), shape=(x.s.rows,))
    wide = dense(x.s, convert(b, x.value(), F64))
    y = wide.linear(np.stack([w for w, _ in pairs], 1), np.array([c for _, c in pairs]), "bisections")
    further = b.op("gt", y, num(b, y, 0))

    def chosen(node: object) -> Value:
        if isinstance(node, int):
            return b.constant(np.array(node, np.int32))
        k, left, right = node  # type: ignore[misc]
        side = flat(b, pick_columns(b, further, [k]))
        return b.op("where", side, chosen(right), chosen(left))
    return convert(b, chosen(whole), I32)


@converts("FeatureAgglomeration")
def _agglomerated(e: Estimator, x: Columns) -> Columns:
    """The mean of each cluster of columns."""
    if e.get("pooling_func") is not np.mean:
        raise e.refuse("pooling_func", "compiled is numpy.mean")
    labels = e.array("labels_").astype(np.int64)
    w = np.eye(int(labels.max()) + 1)[labels]
    return projected(dense(x.s, convert(x.b, x.value(), F64)), w / w.sum(0), None, "clusters")
