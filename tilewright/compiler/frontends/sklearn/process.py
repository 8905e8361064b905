"""Gaussian processes: a kernel's values against the training rows, times what was solved for. In f64, as the library."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.types import F64, I64
from .columns import Columns, convert, dense, flat, num
from .estimator import Estimator, classes_named, predict, predicts
from .linear import two
from .neighbors import gaps, squared_distances
from .pairwise import polynomial

# Approximates a sigmoid by five error functions (Williams and Barber 1998, appendix A), with the library's numbers.
LAMBDAS = np.array([0.41, 0.4, 0.37, 0.44, 0.39])
COEFS = np.array([-1854.8214151, 3516.89893646, 221.29346712, 128.12323805, -2010.49422654])


def covariance(e: Estimator, k: object, x: Columns, points: np.ndarray) -> Value:
    """k(x, points): [rows, points] in f64. Raises UnsupportedError for kernels of other classes."""
    b, own = x.b, Estimator(k)
    if own.name in ("Sum", "Product"):
        one, other = (covariance(e, own.get(a), x, points) for a in ("k1", "k2"))
        return b.op("add" if own.name == "Sum" else "mul", one, other)
    if own.name == "Exponentiation":
        y = covariance(e, own.get("kernel"), x, points)
        power = own.number("exponent")
        return b.op("mul", y, y) if power == 2 else b.op("pow", y, num(b, y, power))
    if own.name in ("ConstantKernel", "WhiteKernel"):  # noise is none of another row's
        v = own.number("constant_value") if own.name == "ConstantKernel" else 0.0
        return b.op("expand", b.constant(np.array([[v]])), shape=(x.s.rows, len(points)))
    if own.name == "DotProduct":
        return polynomial(x, points, 1.0, 1, own.number("sigma_0") ** 2)
    if own.name in ("RBF", "Matern", "RationalQuadratic"):
        return _stationary(own, x, points)
    if own.name == "ExpSineSquared":
        d = b.op("sqrt", _exact_squares(x, points))
        s = b.op("sin", b.op("mul", d, num(b, d, np.pi / own.number("periodicity"))))
        s = b.op("div", s, num(b, s, own.number("length_scale")))
        return b.op("exp", b.op("mul", b.op("mul", s, s), num(b, s, -2)))
    raise e.refuse(f"the kernel {own.name}", "compiled are RBF, Matern, RationalQuadratic, ExpSineSquared, DotProduct, ConstantKernel, "
                   "WhiteKernel, and their sums, products and powers")


def _exact_squares(x: Columns, points: np.ndarray) -> Value:
    return x.b.op("reduce", x.b.op("sub", *gaps(x, points)), kind="sum_square", axes=(2,), keepdims=0)


def _stationary(own: Estimator, x: Columns, points: np.ndarray) -> Value:
    b = x.b
    length = np.asarray(own.get("length_scale"), np.float64)
    v = convert(b, x.value(), F64)
    x, points = dense(x.s, b.op("div", v, x.s.const(np.atleast_1d(length), "length_scale"))), points.astype(np.float64) / length
    if own.name == "RationalQuadratic":
        d, alpha = squared_distances(x, points), own.number("alpha")
        base = b.op("add", b.op("mul", d, num(b, d, 1 / (2 * alpha))), num(b, d, 1))
        return b.op("exp", b.op("mul", b.op("log", base), num(b, d, -alpha)))
    nu = own.number("nu") if own.name == "Matern" else np.inf
    if nu == np.inf:
        d = squared_distances(x, points)
        return b.op("exp", b.op("mul", d, num(b, d, -0.5)))
    if nu not in (0.5, 1.5, 2.5):
        raise own.refuse(f"nu={nu}", "compiled are 0.5, 1.5, 2.5 and infinity; others need Bessel functions")
    d = b.op("sqrt", _exact_squares(x, points))  # a root of what cancels would lose half the digits
    k = b.op("mul", d, num(b, d, np.sqrt(2 * nu)))
    near = b.op("exp", b.op("neg", k))
    if nu == 0.5:
        return near
    more = b.op("add", k, num(b, k, 1))
    more = more if nu == 1.5 else b.op("add", more, b.op("div", b.op("mul", k, k), num(b, k, 3)))
    return b.op("mul", more, near)


@predicts("GaussianProcessRegressor")
def _regressor(e: Estimator, x: Columns, method: str) -> Value:
    if not hasattr(e.model, "X_train_"):
        raise e.refuse("a process without data", "it was not fitted")
    alpha = e.array("alpha_").astype(np.float64)
    std, mean = np.asarray(e.get("_y_train_std"), np.float64), np.asarray(e.get("_y_train_mean"), np.float64)
    k = dense(x.s, covariance(e, e.get("kernel_"), x, e.array("X_train_")))
    weights = (alpha[:, None] if alpha.ndim == 1 else alpha) * std.reshape(1, -1)
    y = k.linear(weights, np.broadcast_to(mean.reshape(-1), weights.shape[1:]), "alpha")
    return flat(x.b, y) if y.type.shape[1] == 1 else y


@predicts("_BinaryGaussianProcessClassifierLaplace", methods=("predict", "predict_proba"))
def _laplace(e: Estimator, x: Columns, method: str) -> Value:
    b, points = x.b, e.array("X_train_")
    k = covariance(e, e.get("kernel_"), x, points)
    mean = dense(x.s, k).linear((e.array("y_train_") - e.array("pi_")).astype(np.float64)[:, None], None, "latent")
    if method == "predict":
        return classes_named(e, x, b.op("cast", flat(b, b.op("gt", mean, num(b, mean, 0))), dtype=I64))
    scale = e.array("W_sr_").astype(np.float64)
    own = float(np.asarray(e.get("kernel_").diag(points[:1]))[0])  # type: ignore[attr-defined]
    if not getattr(e.get("kernel_"), "is_stationary", bool)():
        raise e.refuse("predict_proba with a kernel that is not stationary", "its diagonal depends on the row")
    v = dense(x.s, k).linear((np.linalg.inv(e.array("L_").astype(np.float64)) * scale).T, None, "variance")
    var = b.op("sub", b.constant(np.array([[own]])), b.op("reduce", v, kind="sum_square", axes=(1,), keepdims=1))
    alpha = b.op("div", num(b, var, 0.5), var)
    gamma = b.op("mul", mean, b.constant(LAMBDAS[None]))
    inner = b.op("sqrt", b.op("div", alpha, b.op("add", alpha, b.constant((LAMBDAS ** 2)[None]))))
    # sqrt(pi / alpha) / (2 sqrt(2 pi var)) is 1 / 2
    integrals = b.op("mul", b.op("erf", b.op("mul", gamma, inner)), b.constant(COEFS[None] / 2))
    p = b.op("reduce", integrals, kind="sum", axes=(1,), keepdims=1)
    return two(x, b.op("add", p, num(b, p, 0.5 * float(COEFS.sum()))))


@predicts("GaussianProcessClassifier", methods=("predict", "predict_proba"))
def _classifier(e: Estimator, x: Columns, method: str) -> Value:
    return predict(e.get("base_estimator_"), x, method)
