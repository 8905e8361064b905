"""FunctionTransformer: NumPy functions on `Traced` tables, and the estimator itself."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ....errors import TilewrightError, UnsupportedError
from ....ir.types import F32, F64
from .columns import Columns, column, convert, dense
from .estimator import Estimator, converts
from .features import interpolate
from .search import positions
from .traced import Traced, Untraceable, apply, operand, where


def _stack_columns(x: Columns, arrays: Sequence[object], axis: int = 1, **_: object) -> Traced:
    if axis not in (1, -1):
        raise Untraceable(f"arrays are joined along axis {axis}")
    parts = []
    for a in arrays:
        v = a.value if isinstance(a, Traced) else None
        if v is None:
            raise Untraceable("an array of its own is joined to the table")
        parts.append(column(x.b, v) if v.type.rank == 1 else v)
    wide = F32 if all(p.type.dtype == F32 for p in parts) else F64
    return Traced(x, x.b.op("concat", *(convert(x.b, p, wide) for p in parts), axis=1))


def _digitize(x: Columns, v: Traced, bins: object, right: bool = False) -> Traced:
    edges = np.asarray(bins, np.float64)
    if np.all(np.diff(edges) >= 0):
        return _searched(x, v, edges, not right)
    if np.any(np.diff(edges) > 0):
        raise Untraceable("numpy.digitize with bins in no order")
    return len(edges) - _searched(x, v, edges[::-1], not right)


def _searched(x: Columns, v: object, edges: np.ndarray, right: bool) -> Traced:
    if not isinstance(v, Traced):
        raise Untraceable("bins that depend on the table")
    wide = convert(x.b, v.value, F64)
    shape = wide.type.shape
    flat = wide if wide.type.rank == 2 else column(x.b, wide)
    at = positions(x.s, flat, [edges] * flat.type.shape[1], right)
    return Traced(x, x.b.op("reshape", at, shape=shape))


def _searchsorted(x: Columns, edges: object, v: object, side: str = "left", **_: object) -> Traced:
    if isinstance(edges, Traced):
        raise Untraceable("numpy.searchsorted in the table itself")
    return _searched(x, v, np.asarray(edges, np.float64), side == "right")


def _isin(x: Columns, v: Traced, among: object, **_: object) -> Traced:
    out: Traced | None = None
    for a in np.asarray(among).reshape(-1):
        same = apply(x, "eq", [v, float(a)])
        out = same if out is None else apply(x, "or", [out, same])
    if out is None:
        raise Untraceable("numpy.isin of nothing")
    return out


def _norm(x: Columns, v: Traced, ord: object = None, axis: object = None, keepdims: bool = False) -> Traced:
    if ord not in (None, 2):
        raise Untraceable(f"numpy.linalg.norm of order {ord}")
    return v._reduce("l2", axis, keepdims)


def _nan_to_num(x: Columns, v: Traced, copy: bool = True, nan: float = 0.0, **limits: object) -> Traced:
    if limits:
        raise Untraceable("numpy.nan_to_num with limits")
    info = np.finfo(v.dtype)
    return where(x, np.isnan(v), float(nan), v.clip(float(info.min), float(info.max)))


def _select(x: Columns, conditions: Sequence[object], choices: Sequence[object], default: object = 0) -> Traced:
    """The first choice whose condition holds."""
    out = default
    for c, v in reversed(list(zip(conditions, choices, strict=True))):
        out = where(x, c, v, out)
    if not isinstance(out, Traced):
        raise Untraceable("numpy.select of nothing")
    return out


def _interp(x: Columns, v: object, xp: object, fp: object, **limits: object) -> Traced:
    if limits or not isinstance(v, Traced) or isinstance(xp, Traced) or isinstance(fp, Traced):
        raise Untraceable("numpy.interp between points of the table, or with left= or right=")
    wide, xs, ys = convert(x.b, v.value, F64), np.asarray(xp, np.float64), np.asarray(fp, np.float64)
    flat = wide if wide.type.rank == 2 else column(x.b, wide)
    if len(xs) < 2:
        raise Untraceable("numpy.interp between fewer than two points")
    y = interpolate(x, flat, np.repeat(xs[:, None], flat.type.shape[1], 1), ys)
    y = x.b.op("where", x.b.op("isnan", flat), flat, y)
    return Traced(x, x.b.op("reshape", y, shape=wide.type.shape))


def _diff(x: Columns, v: Traced, n: int = 1, axis: int = -1, **_: object) -> Traced:
    if v.ndim != 2 or axis not in (1, -1) or n != 1:
        raise Untraceable(f"numpy.diff along axis {axis}, {n} times")
    return v[:, 1:] - v[:, :-1]


def _average(x: Columns, v: Traced, axis: object = None, weights: object = None, keepdims: bool = False, **_: object) -> Traced:
    if weights is None:
        return v.mean(axis, keepdims)
    if isinstance(weights, Traced):
        raise Untraceable("numpy.average with weights of the table")
    w = np.asarray(weights, np.float64)
    return (v * w).sum(axis, keepdims) / float(w.sum())


def _position(x: Columns, v: Traced, axis: object, kind: str) -> Traced:
    if v.ndim != 2 or axis not in (1, -1):
        raise Untraceable(f"numpy.arg{kind} with axis={axis}")
    return Traced(x, x.b.op("arg_reduce", v.value, kind=kind, axis=1, keepdims=0))


def _cumsum(x: Columns, v: Traced, axis: object = None, **_: object) -> Traced:
    if v.ndim != 2 or axis not in (1, -1):
        raise Untraceable(f"numpy.cumsum with axis={axis}")
    return Traced(x, x.b.op("cumsum", v.value if v.value.type.dtype.is_float else convert(x.b, v.value, F64), axis=1))


def _count(x: Columns, v: Traced, axis: object = None, keepdims: bool = False) -> Traced:
    return where(x, apply(x, "ne", [v, 0.0]), 1.0, 0.0).sum(axis, keepdims)


def _like(x: Columns, v: Traced, fill: object) -> Traced:
    given = operand(x, fill, v.value.type.dtype)
    return Traced(x, x.b.op("expand", convert(x.b, given, v.value.type.dtype), shape=v.value.type.shape))


def _close(x: Columns, a: Traced, b: object, rtol: float = 1e-5, atol: float = 1e-8, **_: object) -> Traced:
    return np.abs(a - b) <= np.abs(b) * rtol + atol  # type: ignore[operator,return-value]


def _tile(x: Columns, v: Traced, repeats: object) -> Traced:
    if v.ndim != 2 or not isinstance(repeats, tuple) or len(repeats) != 2 or repeats[0] != 1:
        raise Untraceable(f"numpy.tile {repeats!r} times; (1, n) can be compiled")
    return _stack_columns(x, [v] * int(repeats[1]))


def _delete(x: Columns, v: Traced, at: object, axis: object = None) -> Traced:
    if v.ndim != 2 or axis not in (1, -1):
        raise Untraceable(f"numpy.delete with axis={axis}")
    return v[:, np.delete(np.arange(v.value.type.shape[1]), at)]  # type: ignore[arg-type]


def _refused(what: str) -> Traced:
    raise Untraceable(what)


def _rounded(v: Traced, decimals: int) -> Traced:
    if not decimals:
        return np.rint(v)  # type: ignore[return-value]
    scale = 10.0 ** decimals
    return np.rint(v * scale) / scale  # type: ignore[operator,return-value]


FUNCTIONS: dict[str, Callable[..., object]] = {
    "concatenate": lambda x, arrays, axis=0, **k: _stack_columns(x, arrays, axis),
    "hstack": lambda x, arrays, **k: _stack_columns(x, arrays),
    "column_stack": lambda x, arrays: _stack_columns(x, arrays),
    "stack": lambda x, arrays, axis=0, **k: _stack_columns(x, arrays, axis),
    "where": where, "clip": lambda x, v, low=None, high=None, **k: v.clip(low, high), "digitize": _digitize,
    "searchsorted": _searchsorted, "isin": _isin, "norm": _norm, "nan_to_num": _nan_to_num, "copy": lambda x, v, **k: v,
    "ravel": lambda x, v, **k: v.ravel(), "reshape": lambda x, v, shape, **k: v.reshape(shape),
    "round": lambda x, v, decimals=0, **k: _rounded(v, decimals),
    "around": lambda x, v, decimals=0, **k: _rounded(v, decimals),
    "expand_dims": lambda x, v, axis: v[:, None] if axis in (1, -1) else v.reshape(0),
    "select": _select, "interp": _interp, "dot": lambda x, a, b: np.matmul(a, b), "var": lambda x, v, axis=None, **k: v.var(axis, **k),
    "std": lambda x, v, axis=None, **k: v.std(axis, **k), "ptp": lambda x, v, axis=None: v.max(axis) - v.min(axis), "diff": _diff,
    "average": _average, "argmax": lambda x, v, axis=None: _position(x, v, axis, "max"),
    "argmin": lambda x, v, axis=None: _position(x, v, axis, "min"), "cumsum": _cumsum, "count_nonzero": _count,
    "zeros_like": lambda x, v, **k: _like(x, v, 0.0), "ones_like": lambda x, v, **k: _like(x, v, 1.0),
    "full_like": lambda x, v, fill, **k: _like(x, v, fill), "isclose": _close,
    "atleast_2d": lambda x, v: v if v.ndim == 2 else v.reshape(1), "squeeze": lambda x, v, axis=None: v.ravel(),
    "take": lambda x, v, at, axis=None, **k: v[:, at] if axis in (1, -1) else v[at], "fix": lambda x, v: np.trunc(v),
    "tile": _tile, "flip": lambda x, v, axis=None: v[:, ::-1] if axis in (1, -1) else _refused(f"numpy.flip along axis {axis}"),
    "fliplr": lambda x, v: v[:, ::-1], "delete": _delete}


@converts("FunctionTransformer")
def _function(e: Estimator, x: Columns) -> Columns:
    return traced(e, x, "func", "kw_args")


def traced(e: Estimator, x: Columns, attribute: str, options: str) -> Columns:
    """What the function e.attribute makes of x. Raises UnsupportedError with what of it cannot be traced."""
    f, given = e.get(attribute), e.get(options) or {}
    if f is None:
        return x
    assert callable(f) and isinstance(given, Mapping)
    name = getattr(f, "__name__", type(f).__name__)
    names = None if e.flag("validate") or not e.has("feature_names_in_") else [str(n) for n in e.list("feature_names_in_")]
    try:
        y = f(Traced(x, x.value(), names if names is not None and len(names) == x.width else None), **given)
    except (TilewrightError, TypeError, AttributeError, ValueError, IndexError, KeyError, NotImplementedError) as problem:
        raise UnsupportedError(f"FunctionTransformer: the function {name!r} cannot be traced: {problem}") from None
    if not isinstance(y, Traced) or y.ndim not in (1, 2):
        raise UnsupportedError(f"FunctionTransformer: the function {name!r} returns {type(y).__name__}, expected a table made of its "
                               "argument")
    v = y.value
    if v.type.rank == 1:
        v = column(x.b, v)
    return dense(x.s, v if v.type.dtype in (F32, F64) else convert(x.b, v, F64))
