"""Models that compare rows with stored ones: clusters' centres, nearest neighbours by brute force."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.ops.nearest import MOST, point_tiles
from ....ir.types import F32, F64, I32
from .columns import Columns, convert, dense, divided, flat, num
from .estimator import Estimator, best, classes_named, converts, predicts


def _centred(x: Columns, points: np.ndarray) -> tuple[Value, np.ndarray, Value]:
    """Rows and points around the points' centre, so that little cancels, and the rows' squares [rows, 1]; f64."""
    b, points = x.b, points.astype(np.float64)
    center = points.mean(0)
    v = b.op("sub", convert(b, x.value(), F64), x.s.const(center, "center"))
    return v, points - center, b.op("reduce", v, kind="sum_square", axes=(1,), keepdims=1)


def squared_distances(x: Columns, points: np.ndarray) -> Value:
    """[rows, points] in f64; never below 0."""
    b = x.b
    v, p, own = _centred(x, points)
    d = b.op("add", dense(x.s, v).linear(-2 * p.T, (p * p).sum(1), "points"), own)
    return b.op("max", d, num(b, d, 0))


# -- k-means -----------------------------------------------------------------------------------------------------------
@converts("KMeans", "MiniBatchKMeans", "BisectingKMeans")
def _to_centers(e: Estimator, x: Columns) -> Columns:
    centers = e.array("cluster_centers_")
    d = x.b.op("sqrt", squared_distances(x, centers))
    return x.dense(convert(x.b, d, F32 if x.dtype == F32 and centers.dtype == np.float32 else F64))


@predicts("KMeans", "MiniBatchKMeans")
def _nearest_center(e: Estimator, x: Columns, method: str) -> Value:
    d = squared_distances(x, e.array("cluster_centers_"))
    return x.b.op("cast", x.b.op("arg_reduce", d, kind="min", axis=1, keepdims=0), dtype=I32)


@predicts("NearestCentroid")
def _centroid(e: Estimator, x: Columns, method: str) -> Value:
    if e.text("metric") != "euclidean" or e.has("deviations_") and e.has("shrink_threshold"):
        raise e.refuse(f"metric={e.text('metric')!r} or shrink_threshold", "compiled is the Euclidean distance to plain centroids")
    d = squared_distances(x, e.array("centroids_"))
    return classes_named(e, x, x.b.op("arg_reduce", d, kind="min", axis=1, keepdims=0))


# -- nearest neighbours ------------------------------------------------------------------------------------------------
EUCLIDEAN = ("euclidean", "l2", "minkowski")


def gaps(x: Columns, points: np.ndarray, name: str = "points") -> tuple[Value, Value]:
    """The rows [rows, 1, columns] and points [1, points, columns] in f64, to be subtracted."""
    v = x.b.op("reshape", convert(x.b, x.value(), F64), shape=(x.s.rows, 1, x.width))
    return v, x.s.const(points.astype(np.float64)[None], name)


def _metric(e: Estimator) -> tuple[str, np.ndarray]:
    """The metric's name, and the training points."""
    metric = e.text("effective_metric_")
    if metric not in ("euclidean", "l2", "minkowski", "manhattan", "l1", "cityblock", "chebyshev") or (
            metric == "minkowski" and e.number("p") != 2):
        raise e.refuse(f"metric={metric!r}", "compiled are Euclidean, Manhattan and Chebyshev distances")
    points = e.get("_fit_X")
    if not isinstance(points, np.ndarray):
        raise e.refuse("a model fitted on sparse data", "fit it on an array")
    return metric, points


def distances(e: Estimator, x: Columns) -> Value:
    """[rows, training points] in f64; squares of them where they are Euclidean."""
    metric, points = _metric(e)
    b = x.b
    if metric in EUCLIDEAN:
        return squared_distances(x, points)
    gap = b.op("abs", b.op("sub", *gaps(x, points)))
    return b.op("reduce", gap, kind="max" if metric == "chebyshev" else "sum", axes=(2,), keepdims=0)


def nearest(e: Estimator, x: Columns, k: int) -> tuple[Value, Value]:
    """Distances and positions [rows, k] in the training set, nearest first. Of equal distances the first come first, where the
    library's trees may choose others."""
    metric, points = _metric(e)
    if metric not in EUCLIDEAN:
        near, at = x.b.emit("topk", (distances(e, x),), axis=1, k=k, largest=False)
        return near, at
    if k <= MOST:
        v, p, own = _centred(x, points)
        tiles, squares = point_tiles(p)
        near, at = x.b.emit("nearest", (v, own, x.s.const(tiles, "points"), x.s.const(squares, "squares")), k=k)
    else:
        near, at = x.b.emit("topk", (squared_distances(x, points),), axis=1, k=k, largest=False)
    if e.text("_fit_method") != "brute":
        return _exact(x, points.astype(np.float64), at), at
    return x.b.op("sqrt", near), at


def _neighbors(e: Estimator, x: Columns) -> tuple[Value, Value | None]:
    """Positions [rows, k] in the training set, nearest first, and their weights."""
    near, at = nearest(e, x, int(e.number("n_neighbors")))
    how = e.get("weights")
    if how in (None, "uniform"):
        return at, None
    if how != "distance":
        raise e.refuse(f"weights={how!r}", "functions are not compiled")
    return at, inverse_distances(x, near)


def inverse_distances(x: Columns, near: Value) -> Value:
    """1 / distance; where a distance is 0, 1 for such and 0 for others."""
    b = x.b
    zero = b.op("eq", near, num(b, near, 0))
    some = b.op("gt", b.op("reduce", b.op("cast", zero, dtype=F64), kind="max", axes=(1,), keepdims=1), num(b, near, 0))
    inverse = b.op("div", num(b, near, 1), b.op("where", zero, num(b, near, 1), near))
    return b.op("where", some, b.op("cast", zero, dtype=F64), inverse)


def _exact(x: Columns, points: np.ndarray, at: Value) -> Value:
    """The distances to the points `at` [rows, k] from differences: 0 for equal rows, as the library's trees have it."""
    b = x.b
    gap = b.op("sub", b.op("reshape", convert(b, x.value(), F64), shape=(x.s.rows, 1, x.width)),
               b.op("gather", x.s.const(points, "points"), at, axis=0))
    return b.op("reduce", gap, kind="l2", axes=(2,), keepdims=0)


@predicts("KNeighborsRegressor")
def _knn_regressor(e: Estimator, x: Columns, method: str) -> Value:
    at, weights = _neighbors(e, x)
    y, b = e.array("_y").astype(np.float64), x.b
    single = y.ndim == 1
    found = b.op("gather", x.s.const(y[:, None] if single else y, "y"), at, axis=0)  # [rows, k, targets]
    if weights is None:
        out = b.op("reduce", found, kind="mean", axes=(1,), keepdims=0)
    else:
        w = b.op("reshape", weights, shape=(*weights.type.shape, 1))
        out = b.op("div", b.op("reduce", b.op("mul", found, w), kind="sum", axes=(1,), keepdims=0),
                   b.op("reduce", w, kind="sum", axes=(1,), keepdims=0))
    return flat(b, out) if single else out


@predicts("KNeighborsClassifier", methods=("predict", "predict_proba"))
def _knn_classifier(e: Estimator, x: Columns, method: str) -> Value:
    if e.flag("outputs_2d_"):
        raise e.refuse("several outputs", "one target is compiled")
    at, weights = _neighbors(e, x)
    b, n = x.b, len(e.classes)
    labels = e.array("_y").astype(np.int64)
    found = b.op("gather", x.s.const(np.eye(n)[labels], "classes"), at, axis=0)  # [rows, k, classes]
    if weights is not None:
        found = b.op("mul", found, b.op("reshape", weights, shape=(*weights.type.shape, 1)))
    votes = b.op("reduce", found, kind="sum", axes=(1,), keepdims=0)
    if method == "predict":
        return classes_named(e, x, best(x.s, votes))
    total = b.op("reduce", votes, kind="sum", axes=(1,), keepdims=1)
    return divided(b, votes, total)
