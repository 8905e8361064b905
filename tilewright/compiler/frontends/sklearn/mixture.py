"""Normal distributions: discriminants with a covariance for each class, Gaussian mixtures, outliers by Mahalanobis distance."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.types import F32, F64
from .columns import Columns, convert, dense, num, pick_columns
from .estimator import Estimator, best, classes_named, predicts
from .neighbors import gaps


def _centred_square(x: Columns, center: np.ndarray, root: np.ndarray) -> Value:
    """[rows, 1]: |(x - center) @ root|^2 in f64; the centre is taken off first, so that nothing cancels."""
    b = x.b
    v = b.op("sub", convert(b, x.value(), F64), x.s.const(center.astype(np.float64), "center"))
    return b.op("reduce", dense(x.s, v).linear(root.astype(np.float64), None, "root"), kind="sum_square", axes=(1,), keepdims=1)


def squares(x: Columns, centers: np.ndarray, roots: np.ndarray) -> Value:
    """[rows, n]: |(x - centers[k]) @ roots[k]|^2 in f64, for roots [n, columns, columns]."""
    parts = [_centred_square(x, c, r) for c, r in zip(centers, roots, strict=True)]
    return x.b.op("concat", *parts, axis=1) if len(parts) > 1 else parts[0]


# -- discriminants -----------------------------------------------------------------------------------------------------
@predicts("QuadraticDiscriminantAnalysis", methods=("predict", "predict_proba", "predict_log_proba", "decision_function"))
def _quadratic(e: Estimator, x: Columns, method: str) -> Value:
    b, n = x.b, len(e.classes)
    scalings = [np.asarray(s, np.float64) for s in e.list("scalings_")]
    roots = [np.asarray(r, np.float64) * s ** -0.5 for r, s in zip(e.list("rotations_"), scalings, strict=True)]
    parts = [_centred_square(x, m, r) for m, r in zip(e.array("means_"), roots, strict=True)]
    square = b.op("concat", *parts, axis=1)
    base = np.log(e.array("priors_").astype(np.float64)) - 0.5 * np.array([np.log(s).sum() for s in scalings])
    y = b.op("sub", x.s.const(base[None], "priors"), b.op("mul", square, num(b, square, 0.5)))
    if method == "predict":
        return classes_named(e, x, best(x.s, y))
    if method == "decision_function":
        if n > 2:
            return y
        first, second = (pick_columns(b, y, [k]) for k in (0, 1))
        return b.op("reshape", b.op("sub", second, first), shape=(x.s.rows,))
    return b.op("log_softmax" if method == "predict_log_proba" else "softmax", y, axis=1)


# -- mixtures ----------------------------------------------------------------------------------------------------------
def _roots(e: Estimator, n: int, width: int) -> np.ndarray:
    """[n, width, width]: the Cholesky factors of the precisions."""
    given, kind = e.array("precisions_cholesky_").astype(np.float64), e.text("covariance_type")
    if kind == "full":
        return given
    if kind == "tied":
        return np.broadcast_to(given, (n, width, width))
    return np.stack([np.diag(np.broadcast_to(given[k], (width,))) for k in range(n)])


def _log_weights(e: Estimator) -> np.ndarray:
    """What the library adds to each component's log density."""
    weights = e.model._estimate_log_weights()  # type: ignore[attr-defined]
    return np.asarray(weights, np.float64)


@predicts("GaussianMixture", "BayesianGaussianMixture", methods=("predict", "predict_proba", "score_samples"))
def _mixture(e: Estimator, x: Columns, method: str) -> Value:
    b, means = x.b, e.array("means_").astype(np.float64)
    n, width = means.shape
    roots = _roots(e, n, width)
    base = np.array([np.log(np.abs(np.diag(r))).sum() for r in roots]) - 0.5 * width * np.log(2 * np.pi) + _log_weights(e)
    if e.name == "BayesianGaussianMixture":
        from scipy.special import digamma  # pyright: ignore[reportMissingImports]  (scikit-learn needs it)
        freedom = e.array("degrees_of_freedom_").astype(np.float64)
        spread = width * np.log(2.0) + digamma(0.5 * (freedom - np.arange(width)[:, None])).sum(0)
        base = base - 0.5 * width * np.log(freedom) + 0.5 * (spread - width / e.array("mean_precision_").astype(np.float64))
    if e.text("covariance_type") in ("diag", "spherical"):
        square = _diagonal(x, means, np.stack([np.diag(r) for r in roots]))
    else:
        square = squares(x, means, roots)
    joint = b.op("sub", x.s.const(base[None], "weights"), b.op("mul", square, num(b, square, 0.5)))
    if method == "predict":
        return best(x.s, joint)
    y = b.op("softmax", joint, axis=1) if method == "predict_proba" else b.op("reduce", joint, kind="log_sum_exp", axes=(1,), keepdims=0)
    return convert(b, y, F32 if x.dtype == F32 and e.array("means_").dtype == np.float32 else F64)


def _diagonal(x: Columns, means: np.ndarray, roots: np.ndarray) -> Value:
    """[rows, n]: sum over columns of ((x - mean) root)^2"""
    b = x.b
    gap = b.op("mul", b.op("sub", *gaps(x, means, "means")), x.s.const(roots[None], "roots"))
    return b.op("reduce", gap, kind="sum_square", axes=(2,), keepdims=0)


# -- outliers ----------------------------------------------------------------------------------------------------------
@predicts("EllipticEnvelope", methods=("predict", "decision_function", "score_samples"))
def _envelope(e: Estimator, x: Columns, method: str) -> Value:
    """(x - location)' precision (x - location)"""
    b = x.b
    v = b.op("sub", convert(b, x.value(), F64), x.s.const(e.array("location_").astype(np.float64), "location"))
    precision = np.asarray(e.model.get_precision(), np.float64)  # type: ignore[attr-defined]
    d = b.op("reduce", b.op("mul", dense(x.s, v).linear(precision, None, "precision"), v), kind="sum", axes=(1,), keepdims=0)
    y = b.op("neg", d)
    return outliers(x, y, e.number("offset_"), method)


def outliers(x: Columns, scores: Value, offset: float, method: str) -> Value:
    """score_samples, decision_function = scores - offset, or predict: 1 for what is at least 0, else -1."""
    if method == "score_samples":
        return scores
    b = x.b
    y = b.op("sub", scores, num(b, scores, offset))
    if method == "decision_function":
        return y
    return b.op("where", b.op("ge", y, num(b, y, 0)), b.constant(np.array(1, np.int64)), b.constant(np.array(-1, np.int64)))
