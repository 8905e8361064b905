"""New columns from old: polynomials, splines, quantiles; and selectors, which only drop."""
from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import numpy as np

from ....ir.graph import Value
from ....ir.types import F64
from .columns import Columns, Dense, joined, num, pick_columns
from .estimator import Estimator, converts
from .search import lookup, positions


# -- selectors ---------------------------------------------------------------------------------------------------------
class _Selector(Protocol):
    def get_support(self) -> np.ndarray: ...


@converts("VarianceThreshold", "SelectKBest", "SelectPercentile", "SelectFpr", "SelectFdr", "SelectFwe", "GenericUnivariateSelect",
          "SelectFromModel", "RFE", "RFECV", "SequentialFeatureSelector")
def _select(e: Estimator, x: Columns) -> Columns:
    return x.select([int(k) for k in np.flatnonzero(cast(_Selector, e.model).get_support())])


# -- polynomials -------------------------------------------------------------------------------------------------------
@converts("PolynomialFeatures")
def _polynomial(e: Estimator, x: Columns) -> Columns:
    """Degree by degree: a term of degree d is one of degree d - 1 times a feature, the one that stands first in it."""
    powers = e.array("powers_")
    v, b = x.value(), x.b
    terms: dict[tuple[int, ...], tuple[int, int]] = {}  # sorted features -> (degree, column there)
    stages: list[Value] = [v]
    for j in range(x.width):
        terms[(j,)] = (1, j)
    wanted = [tuple(int(f) for f in np.repeat(np.arange(x.width), row)) for row in powers]
    for degree in range(2, max((len(w) for w in wanted), default=0) + 1):
        rows = sorted({w[k:] for w in wanted for k in range(len(w)) if len(w) - k == degree})
        if not rows:
            continue
        for k, r in enumerate(rows):
            terms[r] = (degree, k)
        rest = pick_columns(b, stages[-1], [terms[r[1:]][1] for r in rows])
        stages.append(b.op("mul", rest, pick_columns(b, v, [r[0] for r in rows])))
    out: list[Columns] = []
    run: list[tuple[int, int]] = []

    def close() -> None:
        if run:
            out.append(Columns(x.s, (Dense(stages[run[0][0] - 1], tuple(c for _, c in run)),)))
        run.clear()
    for w in wanted:
        at = terms[w] if w else (0, 0)
        if run and run[0][0] != at[0]:
            close()
        if w:
            run.append(at)
        else:
            out.append(x.dense(b.op("expand", num(b, v, 1), shape=(x.s.rows, 1))))
    close()
    return joined(x.s, out)


# -- splines -----------------------------------------------------------------------------------------------------------
class _Spline(Protocol):
    t: np.ndarray
    c: np.ndarray
    k: int

    def __call__(self, x: np.ndarray, nu: int = 0) -> np.ndarray: ...


@converts("SplineTransformer")
def _splines(e: Estimator, x: Columns) -> Columns:
    """Each piece of a spline is a polynomial; its coefficients are looked up by piece and evaluated around the piece's left
    knot, so that rounding differs from the library's recurrence in the last digits only."""
    if e.has("handle_missing") and e.text("handle_missing") != "error":
        raise e.refuse(f"handle_missing={e.text('handle_missing')!r}", "missing values are taken as errors only")
    how = e.text("extrapolation")
    if how == "error":
        raise e.refuse("extrapolation='error'", "compiled code does not raise for values; choose another extrapolation")
    v = x.value()
    wide = x.b.op("cast", v, dtype=F64) if v.type.dtype != F64 else v
    out = []
    for j, made in enumerate(e.list("bsplines_")):
        spline = cast(_Spline, made)
        y = _spline(x, pick_columns(x.b, wide, [j]), spline, how, e)
        keep = y.type.shape[1] if e.flag("include_bias") else y.type.shape[1] - 1
        out.append(x.dense(pick_columns(x.b, y, range(keep))))
    y = joined(x.s, out)
    return x.dense(y.value(x.dtype))


def _spline(x: Columns, v: Value, s: _Spline, how: str, e: Estimator) -> Value:
    b, k = x.b, int(s.k)
    knots = np.unique(np.asarray(s.t, np.float64)[k:len(s.t) - k])
    low, high = float(knots[0]), float(knots[-1])
    if how == "periodic":
        v = b.op("add", num(b, v, low), b.op("mod", b.op("sub", v, num(b, v, low)), num(b, v, high - low)))
    inside = v if how in ("continue", "periodic") else b.op("min", b.op("max", v, num(b, v, low)), num(b, v, high))
    left = knots[:-1]
    middle = (left + knots[1:]) / 2  # derivatives in the middle are those of this piece alone
    half = left - middle
    derivatives = np.stack([s(middle, nu=d) for d in range(k + 1)], 1)  # [pieces, k + 1, splines]
    taylor = np.stack([sum((derivatives[:, d + i] * (half[:, None] ** i) / _factorial(i) for i in range(k + 1 - d)),
                           start=np.zeros_like(derivatives[:, 0])) / _factorial(d) for d in range(k + 1)], 1)
    piece = b.op("sub", positions(x.s, inside, [knots[:-1]]), b.constant(np.array(1, np.int64)))
    piece = b.op("reshape", b.op("max", piece, b.constant(np.array(0, np.int64))), shape=(x.s.rows,))
    step = b.op("sub", inside, b.op("reshape", b.op("gather", x.s.const(left, "knots"), piece, axis=0), shape=v.type.shape))
    y = b.op("gather", x.s.const(taylor[:, k], f"spline{k}"), piece, axis=0)
    for d in range(k - 1, -1, -1):
        y = b.op("add", b.op("mul", y, step), b.op("gather", x.s.const(taylor[:, d], f"spline{d}"), piece, axis=0))
    if how != "linear":
        return y
    ends = np.array([low, high])
    slope = np.asarray(s(ends, nu=1))
    slope[0, min(k + 1, slope.shape[1]):] = 0
    over = b.op("max", b.op("sub", v, num(b, v, high)), num(b, v, 0))
    under = b.op("min", b.op("sub", v, num(b, v, low)), num(b, v, 0))
    y = b.op("add", y, b.op("mul", over, x.s.const(slope[1:], "slope")))
    return b.op("add", y, b.op("mul", under, x.s.const(slope[:1], "slope")))


def _factorial(n: int) -> float:
    return float(np.prod(np.arange(1, n + 1)))


# -- quantiles ---------------------------------------------------------------------------------------------------------
BOUNDS_THRESHOLD = 1e-7  # sklearn/preprocessing/_data.py


@converts("QuantileTransformer")
def _quantiles(e: Estimator, x: Columns) -> Columns:
    quantiles = e.array("quantiles_").astype(np.float64)  # [n, columns]
    references = e.array("references_").astype(np.float64)
    normal = e.text("output_distribution") == "normal"
    v, b = x.value(), x.b
    w = b.op("cast", v, dtype=F64) if v.type.dtype != F64 else v
    first, last = x.s.const(quantiles[:1], "first"), x.s.const(quantiles[-1:], "last")
    up = interpolate(x, w, quantiles, references)
    down = interpolate(x, b.op("neg", w), -quantiles[::-1], -references[::-1])
    y = b.op("mul", b.op("sub", up, down), num(b, w, 0.5))
    if normal:
        lower = b.op("lt", b.op("sub", w, num(b, w, BOUNDS_THRESHOLD)), first)
        upper = b.op("gt", b.op("add", w, num(b, w, BOUNDS_THRESHOLD)), last)
    else:
        lower, upper = b.op("eq", w, first), b.op("eq", w, last)
    y = b.op("where", upper, num(b, y, 1), y)
    y = b.op("where", lower, num(b, y, 0), y)
    if normal:
        y = normal_quantile(x, y)
    y = b.op("where", b.op("isnan", w), w, y)
    return x.dense(b.op("cast", y, dtype=v.type.dtype) if v.type.dtype != F64 else y)


def interpolate(x: Columns, v: Value, xs: np.ndarray, ys: np.ndarray) -> Value:
    """numpy.interp(v[:, j], xs[:, j], ys): linear between the points, constant beyond them."""
    b, n = x.b, len(xs)
    columns = [xs[:, j] for j in range(xs.shape[1])]
    at = b.op("sub", positions(x.s, v, columns), b.constant(np.array(1, np.int64)))
    at = b.op("max", b.op("min", at, b.constant(np.array(n - 2, np.int64))), b.constant(np.array(0, np.int64)))
    with np.errstate(all="ignore"):
        slope = [np.nan_to_num((ys[1:] - ys[:-1]) / (c[1:] - c[:-1]), nan=0.0, posinf=0.0) for c in columns]
    base = b.op("gather", x.s.const(np.ascontiguousarray(ys), "references"), at, axis=0)
    ahead = b.op("sub", v, lookup(x.s, [c[:-1] for c in columns], at, "knots"))
    y = b.op("add", b.op("mul", lookup(x.s, [*slope], at, "slope"), ahead), base)
    first, last = x.s.const(xs[:1], "first"), x.s.const(xs[-1:], "last")
    y = b.op("where", b.op("lt", v, first), num(b, v, float(ys[0])), y)
    return b.op("where", b.op("ge", v, last), num(b, v, float(ys[-1])), y)


def normal_quantile(x: Columns, p: Value) -> Value:
    """The inverse of the normal distribution, clipped as the library clips it: Chebyshev series in (p - 1/2)^2 for the middle
    and in sqrt(-log(tail)) for the tails, fitted to SciPy's to about 1e-14."""
    from scipy.special import ndtri  # pyright: ignore[reportMissingImports]  (scikit-learn needs it)
    b = x.b
    least, most = float(ndtri(BOUNDS_THRESHOLD - np.spacing(1))), float(ndtri(1 - (BOUNDS_THRESHOLD - np.spacing(1))))
    q = b.op("sub", p, num(b, p, 0.5))
    edge = 0.45

    def middle(s: np.ndarray) -> np.ndarray:
        root = np.sqrt(np.maximum(s, 1e-12))
        return ndtri(0.5 + root) / root
    inner = b.op("mul", q, chebyshev(x, b.op("mul", q, q), middle, 0.0, edge * edge, 40))
    tail = b.op("max", b.op("min", p, b.op("sub", num(b, p, 1), p)), num(b, p, BOUNDS_THRESHOLD / 2))
    root = b.op("sqrt", b.op("neg", b.op("log", tail)))
    far = float(np.sqrt(-np.log(BOUNDS_THRESHOLD / 2)))
    outer = chebyshev(x, root, lambda r: -ndtri(np.exp(-r * r)), float(np.sqrt(-np.log(0.5 - edge))) - 0.01, far, 30)
    outer = b.op("where", b.op("lt", q, num(b, q, 0)), b.op("neg", outer), outer)
    y = b.op("where", b.op("le", b.op("abs", q), num(b, q, edge)), inner, outer)
    return b.op("min", b.op("max", y, num(b, y, least)), num(b, y, most))


def chebyshev(x: Columns, v: Value, f: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int) -> Value:
    """The series of f on [low, high], summed by Clenshaw's recurrence."""
    b = x.b
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    c = np.polynomial.chebyshev.chebfit(nodes, f(low + (nodes + 1) * (high - low) / 2), degree)
    t = b.op("sub", b.op("mul", v, num(b, v, 2 / (high - low))), num(b, v, (high + low) / (high - low)))
    twice = b.op("mul", t, num(b, v, 2))
    later, last = num(b, v, 0), num(b, v, float(c[-1]))
    for k in range(degree - 1, 0, -1):
        last, later = b.op("add", b.op("sub", b.op("mul", twice, last), later), num(b, v, float(c[k]))), last
    return b.op("add", b.op("sub", b.op("mul", t, last), later), num(b, v, float(c[0])))
