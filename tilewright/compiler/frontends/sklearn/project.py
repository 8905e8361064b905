"""Projections: PCA and its kin, all of them one matrix and one shift."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.types import F32, F64
from .columns import SAFE_SHIFT, Columns
from .estimator import Estimator, converts, predicts
from .scale import scaled


def projected(x: Columns, matrix: np.ndarray, center: np.ndarray | None, name: str) -> Columns:
    """(x - center) @ matrix, in the wider type of x and the matrix. In f32 the centre is taken off first where much of the
    value would cancel otherwise."""
    wide = F32 if x.dtype == F32 and matrix.dtype == np.float32 else F64
    shift = np.zeros(matrix.shape[1]) if center is None else -(center.astype(np.float64) @ matrix.astype(np.float64))
    size = np.linalg.norm(matrix.astype(np.float64), axis=0)
    safe = wide != F32 or center is None or bool(np.all(np.abs(shift) <= SAFE_SHIFT * size))

    def exact() -> Value:
        if safe:
            return x.linear(matrix, shift, name)
        return scaled(x, center, None).linear(matrix, None, name)
    return x.affine(matrix, shift, exact, wide, safe)


@converts("PCA", "IncrementalPCA")
def _pca(e: Estimator, x: Columns) -> Columns:
    matrix = e.array("components_").T
    if e.flag("whiten"):
        scale = np.sqrt(e.array("explained_variance_"))
        scale = np.maximum(scale, np.finfo(scale.dtype).eps)
        matrix = (matrix.astype(np.float64) / scale).astype(np.result_type(matrix, scale))
    mean = e.array("mean_") if e.has("mean_") else None
    return projected(x, matrix, mean, "components")


@converts("TruncatedSVD")
def _svd(e: Estimator, x: Columns) -> Columns:
    return projected(x, e.array("components_").T, None, "components")


@converts("FastICA")
def _ica(e: Estimator, x: Columns) -> Columns:
    mean = e.array("mean_") if e.get("whiten") and e.has("mean_") else None
    return projected(x, e.array("components_").T, mean, "components")


@converts("FactorAnalysis")
def _factor(e: Estimator, x: Columns) -> Columns:
    """(x - mean) (W / psi)' (I + (W / psi) W')^-1"""
    w = e.array("components_").astype(np.float64)
    over = w / e.array("noise_variance_")
    return projected(x, over.T @ np.linalg.inv(np.eye(len(w)) + over @ w.T), e.array("mean_"), "components")


@converts("LinearDiscriminantAnalysis")
def _discriminant(e: Estimator, x: Columns) -> Columns:
    if e.text("solver") == "lsqr":
        raise e.refuse("transform with solver='lsqr'", "the library has none either")
    most = int(e.number("_max_components"))
    center = e.array("xbar_") if e.text("solver") == "svd" else None
    return projected(x, e.array("scalings_")[:, :most], center, "scalings")


@converts("PLSRegression", "PLSCanonical", "CCA")
def _pls(e: Estimator, x: Columns) -> Columns:
    return projected(scaled(x, e.array("_x_mean"), e.array("_x_std")), e.array("x_rotations_"), None, "rotations")


@converts("PLSSVD")
def _pls_svd(e: Estimator, x: Columns) -> Columns:
    return projected(scaled(x, e.array("_x_mean"), e.array("_x_std")), e.array("x_weights_"), None, "weights")


@predicts("PLSRegression", "PLSCanonical", "CCA", methods=("predict",))
def _pls_predict(e: Estimator, x: Columns, method: str) -> Value:
    y = scaled(x, e.array("_x_mean"), None).linear(e.array("coef_").T, np.atleast_1d(e.array("intercept_")))
    return x.b.op("reshape", y, shape=(x.s.rows,)) if e.flag("_predict_1d") else y


@converts("GaussianRandomProjection", "SparseRandomProjection")
def _random(e: Estimator, x: Columns) -> Columns:
    matrix = e.get("components_")
    if not isinstance(matrix, np.ndarray):
        matrix = matrix.toarray()  # type: ignore[attr-defined]
    return projected(x, np.asarray(matrix).T, None, "components")
