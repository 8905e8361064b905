"""Transformers undone: what TransformedTargetRegressor needs of them."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....ir.graph import Value
from ....ir.types import F64
from .columns import Columns, convert, inplace, num, pick_columns
from .estimator import Estimator
from .features import BOUNDS_THRESHOLD, interpolate
from .functions import traced


def inverted(model: object, x: Columns) -> Columns:
    """model.inverse_transform(x). Raises UnsupportedError for transformers that have no such converter."""
    e = Estimator(model)
    if e.name == "Pipeline":
        for _, step in reversed(list(e.list("steps"))):  # type: ignore[misc]
            x = x if step is None or step == "passthrough" else inverted(step, x)
        return x
    if e.name not in INVERSE:
        raise e.refuse("inverse_transform", f"compiled are those of {', '.join(sorted(INVERSE))}, and pipelines of them")
    return INVERSE[e.name](e, x)


def _scaled_back(x: Columns, times: np.ndarray | None, plus: np.ndarray | None) -> Columns:
    y = x.value()
    y = y if times is None else inplace(x.s, "mul", y, times, "scale")
    return x.dense(y if plus is None else inplace(x.s, "add", y, plus, "mean"))


def _standard(e: Estimator, x: Columns) -> Columns:
    return _scaled_back(x, e.array("scale_") if e.flag("with_std") else None, e.array("mean_") if e.flag("with_mean") else None)


def _max_abs(e: Estimator, x: Columns) -> Columns:
    return _scaled_back(x, e.array("scale_"), None)


def _robust(e: Estimator, x: Columns) -> Columns:
    return _scaled_back(x, e.array("scale_") if e.flag("with_scaling") else None, e.array("center_") if e.flag("with_centering") else None)


def _min_max(e: Estimator, x: Columns) -> Columns:
    return x.dense(inplace(x.s, "div", inplace(x.s, "sub", x.value(), e.array("min_"), "min"), e.array("scale_"), "scale"))


def _function(e: Estimator, x: Columns) -> Columns:
    return traced(e, x, "inverse_func", "inv_kw_args")


def _power(e: Estimator, x: Columns) -> Columns:
    """Yeo-Johnson: x >= 0: (l x + 1)^(1/l) - 1, else 1 - (1 - (2 - l) x)^(1/(2 - l)); Box-Cox: (l x + 1)^(1/l)."""
    if e.flag("standardize"):
        x = _standard(Estimator(e.get("_scaler")), x)
    b, v, lambdas = x.b, x.value(), e.array("lambdas_").astype(np.float64)
    if e.text("method") == "box-cox":
        return x.dense(b.op("exp", _root(x, v, lambdas)))
    zero = num(b, v, 0)
    positive = b.op("expm1", _root(x, b.op("max", v, zero), lambdas))
    negative = b.op("neg", b.op("expm1", _root(x, b.op("neg", b.op("min", v, zero)), 2 - lambdas)))
    y = b.op("where", b.op("ge", v, zero), positive, negative)
    return x.dense(b.op("where", b.op("isnan", v), v, y))


def _root(x: Columns, v: Value, power: np.ndarray) -> Value:
    """log((power v + 1)^(1 / power)); v itself for a power of 0."""
    b, kind = x.b, v.type.dtype.numpy
    none = np.abs(power) < np.spacing(1.0)
    p = x.s.const(np.where(none, 1, power).astype(kind), "lambdas")
    y = b.op("div", b.op("log1p", b.op("mul", v, p)), p)
    return b.op("where", b.constant(none[None]), v, y) if np.any(none) else y


def _quantiles(e: Estimator, x: Columns) -> Columns:
    quantiles, references = e.array("quantiles_").astype(np.float64), e.array("references_").astype(np.float64)
    normal, b, v = e.text("output_distribution") == "normal", x.b, x.value()
    w = convert(b, v, F64)
    if normal:
        w = b.op("mul", b.op("add", b.op("erf", b.op("mul", w, num(b, w, 1 / np.sqrt(2)))), num(b, w, 1)), num(b, w, 0.5))
    parts = []
    for j in range(x.width):
        one = pick_columns(b, w, [j])
        parts.append(interpolate(x, one, references[:, None], quantiles[:, j]))
    y = b.op("concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    near = num(b, w, BOUNDS_THRESHOLD if normal else 0.0)
    upper = b.op("gt" if normal else "ge", b.op("add", w, near), num(b, w, 1))
    lower = b.op("lt" if normal else "le", b.op("sub", w, near), num(b, w, 0))
    y = b.op("where", upper, x.s.const(quantiles[-1:], "last"), y)
    y = b.op("where", lower, x.s.const(quantiles[:1], "first"), y)
    return x.dense(convert(b, b.op("where", b.op("isnan", w), w, y), v.type.dtype))


INVERSE: dict[str, Callable[[Estimator, Columns], Columns]] = {
    "StandardScaler": _standard, "MaxAbsScaler": _max_abs, "RobustScaler": _robust, "MinMaxScaler": _min_max,
    "FunctionTransformer": _function, "PowerTransformer": _power, "QuantileTransformer": _quantiles}
