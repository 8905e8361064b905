"""FunctionTransformer: NumPy code is run once on a `Traced` table, which records what is done to it.

Traced are arithmetic, comparisons, NumPy's element-wise functions, columns by position (X[:, 1], X[:, [0, 2]], X[:, 1:3]),
reductions along rows (axis=1), stacking of columns, where, clip, digitize, searchsorted, isin, reshape to columns, astype. What
looks at values, at the number of rows or at other rows cannot be traced, and is refused.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ....errors import TilewrightError, UnsupportedError
from ....ir.graph import Value
from ....ir.types import BOOL, F32, F64, DType, dtype_of
from .columns import Columns, column, convert, dense, pick_columns
from .estimator import Estimator, converts
from .search import positions

UNARY = {"negative": "neg", "absolute": "abs", "fabs": "abs", "sqrt": "sqrt", "exp": "exp", "expm1": "expm1", "log": "log",
         "log1p": "log1p", "sin": "sin", "cos": "cos", "tan": "tan", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "sinh": "sinh",
         "cosh": "cosh", "tanh": "tanh", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "floor": "floor", "ceil": "ceil",
         "rint": "round", "trunc": "trunc", "sign": "sign", "isnan": "isnan", "isinf": "isinf", "logical_not": "not", "invert": "not",
         "reciprocal": "reciprocal"}
BINARY = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "power": "pow", "float_power": "pow", "maximum": "max",
          "minimum": "min", "fmod": "fmod", "remainder": "mod", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le",
          "equal": "eq", "not_equal": "ne", "logical_and": "and", "logical_or": "or", "logical_xor": "xor", "bitwise_and": "and",
          "bitwise_or": "or"}
REDUCED = {"sum": "sum", "mean": "mean", "max": "max", "amax": "max", "min": "min", "amin": "min", "prod": "prod",
           "any": "any", "all": "all"}


class Untraceable(TilewrightError):
    """What a function does is not a fixed formula of each row."""


class Rows:
    """The number of rows, which is not known while a function is traced."""

    def __index__(self) -> int:
        raise Untraceable("the number of rows is used")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows)

    def __hash__(self) -> int:
        return 0


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for an array [rows] or [rows, n] in a user's function."""

    __array_priority__ = 1000

    def __init__(self, x: Columns, value: Value) -> None:
        self._x, self.value = x, value

    # -- what NumPy code asks of arrays ------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[object, ...]:
        return (Rows(), *self.value.type.shape[1:])

    @property
    def ndim(self) -> int:
        return self.value.type.rank

    @property
    def dtype(self) -> np.dtype:
        return self.value.type.dtype.numpy

    def __len__(self) -> int:
        raise Untraceable("the number of rows is used")

    def __bool__(self) -> bool:
        raise Untraceable("it decides by values (if, and, or, not); numpy.where can be compiled")

    def __float__(self) -> float:
        raise Untraceable("a value is taken out of the table")

    def __iter__(self) -> object:
        raise Untraceable("it loops over rows")

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise Untraceable("it needs the numbers themselves")

    def __getitem__(self, key: object) -> Traced:
        b = self._x.b
        keys = key if isinstance(key, tuple) else (key,)
        if isinstance(key, str) or not isinstance(keys[0], slice) or keys[0] != slice(None):
            raise Untraceable(f"it takes [{key!r}]; columns are taken as X[:, k]")
        if len(keys) == 1:
            return self
        at = keys[1]
        if at is None:
            return self._new(column(b, self.value))
        n = self.value.type.shape[1] if self.ndim == 2 else 0
        if len(keys) > 2 or not n:
            raise Untraceable(f"it takes [{key!r}] of an array of {self.ndim} dimensions")
        if isinstance(at, (int, np.integer)):
            return self._new(b.op("reshape", pick_columns(b, self.value, [int(at) % n]), shape=self.value.type.shape[:1]))
        which = np.arange(n)[at]  # type: ignore[index]
        return self._new(pick_columns(b, self.value, [int(k) for k in which]))

    def _new(self, v: Value) -> Traced:
        return Traced(self._x, v)

    def astype(self, dtype: object, **_: object) -> Traced:
        return self._new(convert(self._x.b, self.value, dtype_of(dtype)))  # type: ignore[arg-type]

    def copy(self, *_: object) -> Traced:
        return self

    def reshape(self, *shape: object) -> Traced:
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        if wanted in ((-1, 1), (Rows(), 1)) and self.value.type.size == self.value.type.shape[0]:
            return self._new(self._x.b.op("reshape", self.value, shape=(self.value.type.shape[0], 1)))
        if wanted in ((-1,), (Rows(),)) and self.value.type.size == self.value.type.shape[0]:
            return self.ravel()
        raise Untraceable(f"reshape{wanted}")

    def ravel(self) -> Traced:
        if self.ndim == 2 and self.value.type.shape[1] != 1:
            raise Untraceable("ravel of several columns")
        return self._new(self._x.b.op("reshape", self.value, shape=self.value.type.shape[:1]))

    flatten = ravel

    def sum(self, axis: object = None, keepdims: bool = False) -> Traced:
        return self._reduce("sum", axis, keepdims)

    def mean(self, axis: object = None, keepdims: bool = False) -> Traced:
        return self._reduce("mean", axis, keepdims)

    def max(self, axis: object = None, keepdims: bool = False) -> Traced:
        return self._reduce("max", axis, keepdims)

    def min(self, axis: object = None, keepdims: bool = False) -> Traced:
        return self._reduce("min", axis, keepdims)

    def prod(self, axis: object = None, keepdims: bool = False) -> Traced:
        return self._reduce("prod", axis, keepdims)

    def clip(self, low: object = None, high: object = None) -> Traced:
        out = self
        for op, limit in (("max", low), ("min", high)):
            out = _apply(self._x, op, [out, limit]) if limit is not None else out
        return out

    def _reduce(self, kind: str, axis: object, keepdims: bool) -> Traced:
        if self.ndim != 2 or axis not in (1, -1):
            raise Untraceable(f"{kind} with axis={axis}; along each row, axis=1, can be compiled")
        return self._new(self._x.b.op("reduce", self.value, kind=kind, axes=(1,), keepdims=int(keepdims)))

    # -- NumPy's protocols -------------------------------------------------------------------------------------------------
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: object, **kwargs: object) -> Traced:
        if method == "reduce" and ufunc in (np.add, np.maximum, np.minimum, np.multiply):
            kind = {np.add: "sum", np.maximum: "max", np.minimum: "min", np.multiply: "prod"}[ufunc]
            return self._reduce(kind, kwargs.get("axis", 0), bool(kwargs.get("keepdims", False)))
        if method != "__call__" or any(k != "dtype" for k in kwargs):
            raise Untraceable(f"numpy.{ufunc.__name__}.{method} with {', '.join(kwargs) or 'no options'}")
        return self._ufunc(ufunc.__name__, inputs)

    def _ufunc(self, name: str, inputs: Sequence[object]) -> Traced:
        if name in BINARY:
            return _apply(self._x, BINARY[name], inputs)
        if name in UNARY:
            return _apply(self._x, UNARY[name], inputs)
        if name == "square":
            return self * self
        if name == "hypot":
            a, b = inputs
            return np.sqrt(a * a + b * b)  # type: ignore[operator,return-value]
        if name in ("exp2", "log2", "log10", "cbrt"):
            ln = {"log2": 1 / np.log(2), "log10": 1 / np.log(10)}
            if name in ln:
                return np.log(self) * ln[name]  # type: ignore[operator,return-value]
            return np.exp(self * np.log(2)) if name == "exp2" else np.sign(self) * np.exp(np.log(np.abs(self)) / 3)  # type: ignore
        if name in ("degrees", "rad2deg"):
            return self * (180 / np.pi)
        if name in ("radians", "deg2rad"):
            return self * (np.pi / 180)
        if name == "floor_divide":
            return np.floor(inputs[0] / inputs[1])  # type: ignore[operator,return-value]
        if name == "positive":
            return self
        if name == "isfinite":
            return _apply(self._x, "not", [np.isnan(self) | np.isinf(self)])
        raise Untraceable(f"numpy.{name}")

    def __array_function__(self, func: Callable[..., object], types: object, args: Sequence[object],
                           kwargs: Mapping[str, object]) -> object:
        made = _FUNCTIONS.get(func.__name__)
        if func.__name__ in REDUCED:
            rest = dict(zip(("axis",), args[1:], strict=False)) | dict(kwargs)
            return self._reduce(REDUCED[func.__name__], rest.get("axis"), bool(rest.get("keepdims", False)))
        if made is None:
            raise Untraceable(f"numpy.{func.__name__}")
        return made(self._x, *args, **kwargs)


def _value(x: Columns, v: object, like: DType) -> Value:
    """An operand: a traced one, or numbers."""
    if isinstance(v, Traced):
        return v.value
    a = np.asarray(v)
    if a.dtype.kind not in "biuf":
        raise Untraceable(f"an operand of type {type(v).__name__}")
    scalar = isinstance(v, (bool, int, float))
    return x.b.constant(a.astype(like.numpy) if scalar or like.is_float and a.dtype.kind in "iub" else a)


def _apply(x: Columns, op: str, inputs: Sequence[object]) -> Traced:
    """One op of the graph on broadcast operands, of the type that NumPy gives them."""
    kinds = [i.value.type.dtype for i in inputs if isinstance(i, Traced)]
    like = F64 if F64 in kinds else kinds[0]
    values = [_value(x, i, like) for i in inputs]
    types = {v.type.dtype for v in values}
    if len(types) > 1:
        wide = F64 if F64 in types else F32 if F32 in types and not any(t.is_int for t in types) else F64
        values = [convert(x.b, v, wide) for v in values]
    elif op not in ("and", "or", "xor", "not", "eq", "ne") and types == {BOOL}:
        values = [convert(x.b, v, F64) for v in values]
    if op == "mod" and values[0].type.dtype.is_float:
        return Traced(x, _python_mod(x, *values))
    return Traced(x, x.b.op(op, *_aligned(x, values)))


def _python_mod(x: Columns, a: Value, m: Value) -> Value:
    """a % m of the sign of m."""
    r = x.b.op("fmod", *_aligned(x, [a, m]))
    other = x.b.op("and", x.b.op("ne", r, x.b.constant(np.zeros((), r.type.dtype.numpy))),
                   x.b.op("ne", x.b.op("lt", r, x.b.constant(np.zeros((), r.type.dtype.numpy))),
                          x.b.op("lt", m, x.b.constant(np.zeros((), r.type.dtype.numpy)))))
    return x.b.op("where", other, x.b.op("add", r, m), r)


def _aligned(x: Columns, values: Sequence[Value]) -> list[Value]:
    """[rows] and [rows, n] do not broadcast, as they would not in NumPy."""
    ranks = {v.type.rank for v in values if v.type.rank and v.type.shape[0] == x.s.rows}
    if ranks == {1, 2} and x.s.rows > 1:
        raise Untraceable("[rows] and [rows, n] are combined, which NumPy does not broadcast; keep the columns' dimension")
    return list(values)


# -- functions ---------------------------------------------------------------------------------------------------------
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


def _where(x: Columns, condition: object, yes: object, no: object) -> Traced:
    if not isinstance(condition, Traced):
        raise Untraceable("numpy.where with a fixed condition")
    kinds = [v.value.type.dtype for v in (yes, no) if isinstance(v, Traced)]
    like = F32 if kinds and all(k == F32 for k in kinds) else F64
    a, b = (convert(x.b, _value(x, v, like), like) for v in (yes, no))
    return Traced(x, x.b.op("where", *_aligned(x, [condition.value, a, b])))


def _digitize(x: Columns, v: Traced, bins: object, right: bool = False) -> Traced:
    edges = np.asarray(bins, np.float64)
    if np.any(np.diff(edges) < 0):
        raise Untraceable("numpy.digitize with falling bins")
    return _searched(x, v, edges, not right)


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
        same = _apply(x, "eq", [v, float(a)])
        out = same if out is None else _apply(x, "or", [out, same])
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
    return _where(x, np.isnan(v), float(nan), v.clip(float(info.min), float(info.max)))


_FUNCTIONS: dict[str, Callable[..., object]] = {
    "concatenate": lambda x, arrays, axis=0, **k: _stack_columns(x, arrays, axis),
    "hstack": lambda x, arrays, **k: _stack_columns(x, arrays),
    "column_stack": lambda x, arrays: _stack_columns(x, arrays),
    "stack": lambda x, arrays, axis=0, **k: _stack_columns(x, arrays, axis),
    "where": _where, "clip": lambda x, v, low=None, high=None, **k: v.clip(low, high), "digitize": _digitize,
    "searchsorted": _searchsorted, "isin": _isin, "norm": _norm, "nan_to_num": _nan_to_num, "copy": lambda x, v, **k: v,
    "ravel": lambda x, v, **k: v.ravel(), "reshape": lambda x, v, shape, **k: v.reshape(shape),
    "round": lambda x, v, decimals=0, **k: _rounded(v, decimals),
    "around": lambda x, v, decimals=0, **k: _rounded(v, decimals),
    "expand_dims": lambda x, v, axis: v[:, None] if axis in (1, -1) else v.reshape(0)}


def _rounded(v: Traced, decimals: int) -> Traced:
    if not decimals:
        return np.rint(v)  # type: ignore[return-value]
    scale = 10.0 ** decimals
    return np.rint(v * scale) / scale  # type: ignore[operator,return-value]


@converts("FunctionTransformer")
def _function(e: Estimator, x: Columns) -> Columns:
    f = e.get("func")
    if f is None:
        return x
    assert callable(f)
    options = e.get("kw_args") or {}
    assert isinstance(options, Mapping)
    name = getattr(f, "__name__", type(f).__name__)
    try:
        y = f(Traced(x, x.value()), **options)
    except (TilewrightError, TypeError, AttributeError, ValueError, IndexError, NotImplementedError) as problem:
        raise UnsupportedError(f"FunctionTransformer: the function {name!r} cannot be traced: {problem}") from None
    if not isinstance(y, Traced) or y.ndim not in (1, 2):
        raise UnsupportedError(f"FunctionTransformer: the function {name!r} returns {type(y).__name__}, expected a table made of its "
                               "argument")
    v = y.value
    if v.type.rank == 1:
        v = column(x.b, v)
    return dense(x.s, v if v.type.dtype in (F32, F64) else convert(x.b, v, F64))
