"""Scalers, and element-wise maps of single columns. Scaling is kept apart from what it scales where a product follows."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.types import F32
from .columns import SAFE_SHIFT, Columns, as_bool, divided, inplace, num
from .estimator import Estimator, converts


def scaled(x: Columns, minus: np.ndarray | None, over: np.ndarray | None) -> Columns:
    """(x - minus) / over, in x's type."""
    kind = x.dtype.numpy
    n = x.width

    def exact() -> Value:
        y = x.value()
        if minus is not None:
            y = inplace(x.s, "sub", y, minus.astype(kind), "mean")
        return y if over is None else inplace(x.s, "div", y, over.astype(kind), "scale")
    factor = np.ones(n) if over is None else 1 / over.astype(np.float64)
    shift = np.zeros(n) if minus is None else -minus.astype(np.float64) * factor
    safe = x.dtype != F32 or bool(np.all(np.abs(shift) <= SAFE_SHIFT))
    return x.affine(factor, shift, exact, x.dtype, safe)


@converts("StandardScaler")
def _standard(e: Estimator, x: Columns) -> Columns:
    mean = e.array("mean_") if e.flag("with_mean") else None
    return scaled(x, mean, e.array("scale_") if e.flag("with_std") else None)


@converts("MaxAbsScaler")
def _max_abs(e: Estimator, x: Columns) -> Columns:
    y = scaled(x, None, e.array("scale_"))
    return _clipped(y, -1.0, 1.0) if e.has("clip") and e.flag("clip") else y


@converts("RobustScaler")
def _robust(e: Estimator, x: Columns) -> Columns:
    center = e.array("center_") if e.flag("with_centering") else None
    scale = e.array("scale_") if e.flag("with_scaling") else None
    if x.dtype == F32:  # the differences are taken in the wider type
        y = x.value()
        y = inplace(x.s, "sub", y, center, "center") if center is not None else y
        return x.dense(inplace(x.s, "div", y, scale, "scale") if scale is not None else y)
    return scaled(x, center, scale)


@converts("MinMaxScaler")
def _min_max(e: Estimator, x: Columns) -> Columns:
    factor, shift = e.array("scale_"), e.array("min_")

    def exact() -> Value:
        return inplace(x.s, "add", inplace(x.s, "mul", x.value(), factor, "scale"), shift, "min")
    safe = x.dtype != F32 or bool(np.all(np.abs(shift) <= SAFE_SHIFT))
    y = x.affine(factor, shift, exact, x.dtype, safe)
    low, high = (float(v) for v in e.array("feature_range"))
    return _clipped(y, low, high) if e.flag("clip") else y


def _clipped(x: Columns, low: float, high: float) -> Columns:
    v = x.value()
    return x.dense(x.b.op("min", x.b.op("max", v, num(x.b, v, low)), num(x.b, v, high)))


@converts("Normalizer")
def _normalizer(e: Estimator, x: Columns) -> Columns:
    """A row of zeros stays one."""
    v, b = x.value(), x.b
    kind = {"l1": "sum", "l2": "l2", "max": "max"}[e.text("norm")]
    size = b.op("reduce", b.op("abs", v) if kind != "l2" else v, kind=kind, axes=(1,), keepdims=1)
    return x.dense(divided(b, v, size))


@converts("Binarizer")
def _binarizer(e: Estimator, x: Columns) -> Columns:
    v, t = x.value(), e.number("threshold")
    if v.type.dtype == F32:
        t = float(np.float32(t))  # a Python number is brought to the array's type
    return x.dense(as_bool(x.b, x.b.op("gt", v, num(x.b, v, t)), v))


@converts("PowerTransformer")
def _power(e: Estimator, x: Columns) -> Columns:
    lambdas = e.array("lambdas_").astype(np.float64)
    make = _yeo_johnson if e.text("method") == "yeo-johnson" else _box_cox
    v = x.value()
    parts = make(x, v, lambdas)
    y = x.dense(parts)
    if not e.flag("standardize"):
        return y
    inner = Estimator(e.get("_scaler"))
    return scaled(y, inner.array("mean_"), inner.array("scale_"))


def _yeo_johnson(x: Columns, v: Value, lambdas: np.ndarray) -> Value:
    """x >= 0: ((x + 1)^l - 1) / l, or log(x + 1) for l = 0; x < 0: -((1 - x)^(2 - l) - 1) / (2 - l), or -log(1 - x) for l = 2.
    Powers less 1 are expm1(l log1p(x)) as in SciPy."""
    b, zero = x.b, num(x.b, v, 0)
    positive = _power_or_log(x, b.op("log1p", b.op("max", v, zero)), lambdas, np.abs(lambdas) < np.spacing(1.0))
    other = 2 - lambdas
    negative = _power_or_log(x, b.op("log1p", b.op("neg", b.op("min", v, zero))), other, np.abs(other) < np.spacing(1.0))
    y = b.op("where", b.op("ge", v, zero), positive, b.op("neg", negative))
    return b.op("where", b.op("isnan", v), v, y)


def _box_cox(x: Columns, v: Value, lambdas: np.ndarray) -> Value:
    """(x^l - 1) / l as expm1(l log x) / l; log x for l = 0."""
    return _power_or_log(x, x.b.op("log", v), lambdas, np.abs(lambdas) < 1e-19)


def _power_or_log(x: Columns, log: Value, power: np.ndarray, is_log: np.ndarray) -> Value:
    """expm1(power log) / power, column by column; log itself where is_log."""
    b, kind = x.b, log.type.dtype.numpy
    p = x.s.const(np.where(is_log, 1, power).astype(kind), "lambdas")
    y = b.op("div", b.op("expm1", b.op("mul", log, p)), p)
    return b.op("where", b.constant(is_log[None]), log, y) if np.any(is_log) else y
