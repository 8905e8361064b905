"""Kernels between rows and stored points, as sklearn.metrics.pairwise has them, and the estimators that only weight them."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ....ir.graph import Value
from ....ir.types import F32, F64
from .columns import Columns, convert, dense, divided, inplace, num
from .estimator import Estimator, best, classes_named, converts, predicts
from .neighbors import gaps, squared_distances
from .project import projected

KERNELS = ("linear", "rbf", "laplacian", "poly", "polynomial", "sigmoid", "cosine", "chi2", "additive_chi2")


def rbf(x: Columns, points: np.ndarray, gamma: float) -> Value:
    """exp(-gamma |x - p|^2): [rows, points] in f64. Around the points' centre |x|^2 + |p|^2 - 2 x p is near the distance's size."""
    b, points = x.b, points.astype(np.float64)
    center = points.mean(0)
    v, points = b.op("sub", convert(b, x.value(), F64), x.s.const(center, "center")), points - center
    square = b.op("reduce", v, kind="sum_square", axes=(1,), keepdims=1)
    cross = dense(x.s, v).linear(2 * gamma * points.T, -gamma * (points * points).sum(1), "points")
    near = b.op("sub", cross, b.op("mul", square, num(b, square, gamma)))
    return b.op("exp", b.op("min", near, num(b, near, 0)))


def polynomial(x: Columns, points: np.ndarray, gamma: float, degree: float, coef0: float) -> Value:
    """(gamma x p + coef0)^degree: [rows, points] in f64."""
    b, points = x.b, points.astype(np.float64)
    y = dense(x.s, convert(b, x.value(), F64)).linear(gamma * points.T, np.full(len(points), coef0), "points")
    if degree != int(degree) or not 0 <= degree <= 16:
        return b.op("pow", y, num(b, y, degree))
    power = y if degree else b.op("expand", num(b, y, 1), shape=y.type.shape)
    for _ in range(1, int(degree)):
        power = b.op("mul", power, y)
    return power


def sigmoid(x: Columns, points: np.ndarray, gamma: float, coef0: float) -> Value:
    """tanh(gamma x p + coef0)"""
    return x.b.op("tanh", polynomial(x, points, gamma, 1, coef0))


def _laplacian(x: Columns, points: np.ndarray, gamma: float) -> Value:
    b = x.b
    d = b.op("reduce", b.op("abs", b.op("sub", *gaps(x, points))), kind="sum", axes=(2,), keepdims=0)
    return b.op("exp", b.op("mul", d, num(b, d, -gamma)))


def _additive_chi2(x: Columns, points: np.ndarray) -> Value:
    """-sum (x - p)^2 / (x + p), terms of two zeros left out."""
    b = x.b
    v, p = gaps(x, points)
    difference, total = b.op("sub", v, p), b.op("add", v, p)
    none = b.op("eq", total, num(b, total, 0))
    term = b.op("div", b.op("mul", difference, difference), b.op("where", none, num(b, total, 1), total))
    return b.op("neg", b.op("reduce", b.op("where", none, num(b, total, 0), term), kind="sum", axes=(2,), keepdims=0))


def _cosine(x: Columns, points: np.ndarray) -> Value:
    """The product of both brought to length 1; zeros stay."""
    b, v, points = x.b, convert(x.b, x.value(), F64), points.astype(np.float64)
    size = b.op("reduce", v, kind="l2", axes=(1,), keepdims=1)
    unit = divided(b, v, size)
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return dense(x.s, unit).linear((points / np.where(length == 0, 1, length)).T, None, "points")


def kernel(e: Estimator, x: Columns, points: np.ndarray, parameters: Mapping[str, object]) -> Value:
    """pairwise_kernels(x, points, metric=e.kernel, filter_params=True, **parameters): [rows, points] in f64."""
    kind = e.get("kernel")
    if not isinstance(points, np.ndarray):
        raise e.refuse("a model fitted on sparse data", "fit it on an array")
    if kind not in KERNELS:
        raise e.refuse(f"kernel={kind!r}", f"compiled are {', '.join(KERNELS)}")
    given = {k: float(v) for k, v in parameters.items() if v is not None}  # type: ignore[arg-type]
    gamma, coef0 = given.get("gamma", 1.0 if kind == "chi2" else 1 / points.shape[1]), given.get("coef0", 1.0)
    if kind == "linear":
        return polynomial(x, points, 1.0, 1, 0.0)
    if kind == "rbf":
        return rbf(x, points, gamma)
    if kind == "laplacian":
        return _laplacian(x, points, gamma)
    if kind == "sigmoid":
        return sigmoid(x, points, gamma, coef0)
    if kind == "cosine":
        return _cosine(x, points)
    if kind in ("poly", "polynomial"):
        return polynomial(x, points, gamma, given.get("degree", 3.0), coef0)
    y = _additive_chi2(x, points)
    return y if kind == "additive_chi2" else x.b.op("exp", x.b.op("mul", y, num(x.b, y, gamma)))


def _parameters(e: Estimator, gamma: str = "gamma") -> dict[str, object]:
    return {"gamma": e.get(gamma), "degree": e.get("degree"), "coef0": e.get("coef0")}


# -- estimators --------------------------------------------------------------------------------------------------------
@predicts("KernelRidge")
def _kernel_ridge(e: Estimator, x: Columns, method: str) -> Value:
    dual = e.array("dual_coef_")
    k = dense(x.s, kernel(e, x, e.array("X_fit_"), _parameters(e)))
    y = k.linear(dual[:, None] if dual.ndim == 1 else dual, None, "dual_coef")
    kind = F32 if x.dtype == F32 and dual.dtype == np.float32 else F64
    y = x.b.op("reshape", y, shape=(x.s.rows,)) if dual.ndim == 1 else y
    return convert(x.b, y, kind)


def _centred(e: Estimator, k: Value, x: Columns, weights: np.ndarray) -> Value:
    """(k - row means - fitted row means + fitted mean) @ weights as one product: its columns' sums are taken off."""
    rows, whole = np.asarray(e.array("K_fit_rows_"), np.float64), float(e.number("K_fit_all_"))
    column_sums = weights.sum(0)
    return dense(x.s, k).linear(weights - column_sums / len(rows), (whole * column_sums - rows @ weights), "alphas")


@converts("KernelPCA")
def _kernel_pca(e: Estimator, x: Columns) -> Columns:
    values, vectors = e.array("eigenvalues_").astype(np.float64), e.array("eigenvectors_").astype(np.float64)
    used = values != 0
    scaled = np.where(used, vectors / np.sqrt(np.where(used, values, 1)), 0)
    k = kernel(e, x, e.array("X_fit_"), dict(_parameters(e, "gamma_"), **_own(e)))
    y = _centred(Estimator(e.get("_centerer")), k, x, scaled)
    return x.dense(convert(x.b, y, F32 if x.dtype == F32 and e.array("eigenvectors_").dtype == np.float32 else F64))


def _own(e: Estimator) -> dict[str, object]:
    given = e.get("kernel_params")
    return dict(given) if isinstance(given, Mapping) else {}


@converts("KernelCenterer")
def _centerer(e: Estimator, x: Columns) -> Columns:
    y = _centred(e, convert(x.b, x.value(), F64), x, np.eye(x.width))
    return x.dense(convert(x.b, y, x.dtype))


@converts("Nystroem")
def _nystroem(e: Estimator, x: Columns) -> Columns:
    given = _own(e) | {k: e.get(k) for k in ("gamma", "degree", "coef0") if e.has(k)}
    weights = e.array("normalization_")
    y = dense(x.s, kernel(e, x, e.array("components_"), given)).linear(weights.T, None, "normalization")
    return x.dense(convert(x.b, y, F32 if x.dtype == F32 and weights.dtype == np.float32 else F64))


@predicts("LabelPropagation", "LabelSpreading", methods=("predict", "predict_proba"))
def _spread(e: Estimator, x: Columns, method: str) -> Value:
    if e.get("kernel") != "rbf":
        raise e.refuse(f"kernel={e.get('kernel')!r}", "compiled is 'rbf'")
    near = rbf(x, e.array("X_"), e.number("gamma"))
    p = dense(x.s, near).linear(e.array("label_distributions_"), None, "labels")
    b = x.b
    total = b.op("reduce", p, kind="sum", axes=(1,), keepdims=1)
    p = divided(b, p, total)
    return classes_named(e, x, best(x.s, p)) if method == "predict" else p


# -- samplers ----------------------------------------------------------------------------------------------------------
def _cosines(e: Estimator, x: Columns, factor: float) -> Columns:
    """cos(x @ weights + offset) * factor, in x's type."""
    y = projected(x, e.array("random_weights_"), None, "random_weights").value()
    y = inplace(x.s, "add", y, e.array("random_offset_"), "random_offset")
    y = x.b.op("cos", y)
    return x.dense(x.b.op("mul", y, num(x.b, y, factor)))


@converts("RBFSampler")
def _rbf_sampler(e: Estimator, x: Columns) -> Columns:
    return _cosines(e, x, float((2.0 / e.number("n_components")) ** 0.5))


@converts("SkewedChi2Sampler")
def _skewed_chi2(e: Estimator, x: Columns) -> Columns:
    v = x.value()
    shifted = dense(x.s, x.b.op("log", x.b.op("add", v, num(x.b, v, e.number("skewedness")))))
    return _cosines(e, shifted, float(np.sqrt(2.0) / np.sqrt(e.number("n_components"))))


@converts("AdditiveChi2Sampler")
def _chi2_sampler(e: Estimator, x: Columns) -> Columns:
    b, v, steps = x.b, x.value(), int(e.number("sample_steps"))
    interval = e.number("sample_interval") if e.has("sample_interval") else {1: 0.8, 2: 0.5, 3: 0.4}[steps]
    none = b.op("eq", v, num(b, v, 0))
    safe = b.op("where", none, num(b, v, 1), v)

    def kept(y: Value) -> Value:
        return b.op("where", none, num(b, v, 0), y)
    out = [kept(b.op("sqrt", b.op("mul", safe, num(b, v, interval))))]
    log = b.op("mul", b.op("log", safe), num(b, v, interval))
    double = b.op("mul", b.op("mul", safe, num(b, v, 2)), num(b, v, interval))
    for j in range(1, steps):
        factor = b.op("sqrt", b.op("div", double, num(b, v, float(np.cosh(np.pi * j * interval)))))
        turn = b.op("mul", log, num(b, v, j))
        out += [kept(b.op("mul", factor, b.op(f, turn))) for f in ("cos", "sin")]
    return x.dense(b.op("concat", *out, axis=1))


@converts("PolynomialCountSketch")
def _sketch(e: Estimator, x: Columns) -> Columns:
    """Circular convolution of `degree` sketches, which are signed sums of columns: by the definition instead of by FFT."""
    b, n, degree = x.b, int(e.number("n_components")), int(e.number("degree"))
    at, sign = e.array("indexHash_").astype(np.int64), e.array("bitHash_").astype(np.float64)
    gamma, coef0 = e.number("gamma"), e.number("coef0")
    out: Value | None = None
    for d in range(degree):
        w = np.zeros((at.shape[1], n))
        np.add.at(w, (np.arange(at.shape[1]), at[d]), sign[d])
        c = np.sqrt(coef0) * w[-1] if coef0 else None
        wide = dense(x.s, convert(b, x.value(), F64))
        one = wide.linear(np.sqrt(gamma) * w[:x.width], c, "hash")
        if out is None:
            out = one
            continue
        turn = (np.arange(n)[:, None] - np.arange(n)[None]) % n  # y[k] = sum_j out[j] one[k - j]
        turned = b.op("gather", one, b.constant(turn.astype(np.int64)), axis=1)  # [rows, k, j]
        out = b.op("reduce", b.op("mul", turned, b.op("reshape", out, shape=(x.s.rows, 1, n))), kind="sum", axes=(2,), keepdims=0)
    assert out is not None
    return x.dense(out)


@predicts("KernelDensity", methods=("score_samples",))
def _density(e: Estimator, x: Columns, method: str) -> Value:
    """log of the mean of Gaussian kernels around the training points."""
    if e.text("kernel") != "gaussian" or e.text("metric") != "euclidean":
        raise e.refuse(f"kernel={e.text('kernel')!r}, metric={e.text('metric')!r}", "compiled is the Gaussian one of Euclidean distances")
    if e.number("rtol") or e.number("atol"):
        raise e.refuse(f"rtol={e.number('rtol')}, atol={e.number('atol')}", "the library stops at a tolerance of its trees; set both to 0")
    tree = e.get("tree_")
    points = np.asarray(tree.data, np.float64)  # type: ignore[attr-defined]
    weights = getattr(tree, "sample_weight", None)
    h, n, width = e.number("bandwidth_"), len(points), points.shape[1]
    logs = np.zeros(n) if weights is None else np.log(np.asarray(weights, np.float64))
    total = np.log(n if weights is None else np.asarray(weights, np.float64).sum())
    b, d = x.b, squared_distances(x, points)
    terms = b.op("add", b.op("mul", d, num(b, d, -0.5 / h ** 2)), x.s.const(logs[None], "weights"))
    y = b.op("reduce", terms, kind="log_sum_exp", axes=(1,), keepdims=0)
    return b.op("sub", y, num(b, y, total + width * (np.log(h) + 0.5 * np.log(2 * np.pi))))

