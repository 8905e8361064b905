"""`Traced`: what stands for a table while a user's NumPy or pandas code is run once, and records what is done to it.

Traced are arithmetic, comparisons, NumPy's element-wise functions, columns by position (X[:, 1], X[:, [0, 2]], X[:, 1:3]) or by
name (X["a"], X.a, X[["a", "b"]], X.assign(…), X["c"] = …), reductions along rows (axis=1), products with fixed matrices, and the
functions of `functions.py`. What looks at values, at the number of rows or at other rows cannot be traced, and is refused.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ....errors import TilewrightError
from ....ir.graph import Value
from ....ir.types import BOOL, F32, F64, DType, dtype_of
from .columns import Columns, column, convert, dense, pick_columns

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

    def __init__(self, x: Columns, value: Value, names: Sequence[str] | None = None) -> None:
        """names: of the columns of a data frame; a value [rows] is a column of one."""
        self._x, self.value, self._names = x, value, None if names is None else tuple(names)

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
        if isinstance(key, str) or (isinstance(key, (list, tuple)) and key and all(isinstance(k, str) for k in key)):
            return self._named(key)
        if isinstance(key, Traced):
            raise Untraceable("it selects rows by values; numpy.where can be compiled")
        keys = key if isinstance(key, tuple) else (key,)
        if not isinstance(keys[0], slice) or keys[0] != slice(None):
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

    # -- what pandas code asks of frames -----------------------------------------------------------------------------------
    def _place(self, name: str) -> int:
        if self._names is None or name not in self._names:
            raise Untraceable(f"it takes the column {name!r}, of " + (f"{', '.join(map(repr, self._names))}" if self._names is not None
                                                                     else "a table whose columns have no names"))
        return self._names.index(name)

    def _named(self, key: str | Sequence[object]) -> Traced:
        if isinstance(key, str):
            at = self._place(key)
            return self._new(self._x.b.op("reshape", pick_columns(self._x.b, self.value, [at]), shape=self.value.type.shape[:1]))
        names = [str(k) for k in key]
        return Traced(self._x, pick_columns(self._x.b, self.value, [self._place(n) for n in names]), names)

    def __getattr__(self, name: str) -> Traced:
        if name.startswith("_") or self._names is None or name not in self._names:
            raise AttributeError(f"it uses .{name} of the table, which cannot be traced")
        return self._named(name)

    def __setitem__(self, key: object, value: object) -> None:
        """X["c"] = …, and X[:, k] = …"""
        b, n = self._x.b, self.value.type.shape[1] if self.ndim == 2 else 0
        if isinstance(key, str) and self._names is not None:
            at, names = (self._names.index(key), self._names) if key in self._names else (n, (*self._names, key))
        elif isinstance(key, tuple) and len(key) == 2 and key[0] == slice(None) and isinstance(key[1], (int, np.integer)) and n:
            at, names = int(key[1]) % n, self._names
        else:
            raise Untraceable(f"it assigns to [{key!r}]; columns are assigned to as X[:, k] = …")
        given = operand(self._x, value, self.value.type.dtype)
        if given.type.rank == 0:
            new = b.op("expand", given, shape=(self._x.s.rows, 1))
        else:
            new = column(b, given) if given.type.rank == 1 else given
        wide = F32 if self.value.type.dtype == F32 and new.type.dtype == F32 else F64
        parts = [pick_columns(b, self.value, range(at)), new, pick_columns(b, self.value, range(at + 1, n))]
        kept = [convert(b, p, wide) for p in parts if p.type.shape[1]]
        self.value, self._names = b.op("concat", *kept, axis=1) if len(kept) > 1 else kept[0], names

    def assign(self, **columns: object) -> Traced:
        out = Traced(self._x, self.value, self._names)
        for name, v in columns.items():
            out[name] = v(out) if callable(v) else v
        return out

    def drop(self, *_: object, columns: str | Iterable[str]) -> Traced:
        gone = {columns} if isinstance(columns, str) else set(columns)
        return self._named([n for n in self._names or () if n not in gone])

    def to_numpy(self, *_: object, **__: object) -> Traced:
        return self._new(self.value)

    @property
    def values(self) -> Traced:
        return self.to_numpy()

    @property
    def columns(self) -> list[str]:
        if self._names is None:
            raise Untraceable("it asks for the names of columns that have none")
        return list(self._names)

    @property
    def iloc(self) -> Traced:
        return self._new(self.value)

    @property
    def loc(self) -> _Located:
        return _Located(self)

    # -- what both do ------------------------------------------------------------------------------------------------------
    def _new(self, v: Value) -> Traced:
        return Traced(self._x, v)

    def astype(self, dtype: object, **_: object) -> Traced:
        return self._new(convert(self._x.b, self.value, dtype_of(dtype)))  # type: ignore[arg-type]

    def copy(self, *_: object, **__: object) -> Traced:
        return Traced(self._x, self.value, self._names)

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

    def abs(self) -> Traced:
        return np.abs(self)  # type: ignore[return-value]

    def any(self, axis: object = None, keepdims: bool = False) -> Traced:
        return self._reduce("any", axis, keepdims)

    def all(self, axis: object = None, keepdims: bool = False) -> Traced:
        return self._reduce("all", axis, keepdims)

    def var(self, axis: object = None, keepdims: bool = False, ddof: int = 0) -> Traced:
        gap = self - self._reduce("mean", axis, True)
        n = self.value.type.shape[1]
        return (gap * gap)._reduce("sum", axis, keepdims) / float(n - ddof)

    def std(self, axis: object = None, keepdims: bool = False, ddof: int = 0) -> Traced:
        return np.sqrt(self.var(axis, keepdims, ddof))  # type: ignore[return-value]

    def dot(self, other: object) -> Traced:
        return _product(self._x, self, other)

    def clip(self, low: object = None, high: object = None) -> Traced:
        out = self
        for op, limit in (("max", low), ("min", high)):
            out = apply(self._x, op, [out, limit]) if limit is not None else out
        return out

    def _reduce(self, kind: str, axis: object, keepdims: bool) -> Traced:
        if self.ndim != 2 or axis not in (1, -1):
            raise Untraceable(f"{kind} with axis={axis}; along each row, axis=1, can be compiled")
        v = self.value
        if kind in ("any", "all"):
            v = v if v.type.dtype == BOOL else apply(self._x, "ne", [self, 0.0]).value
        elif not v.type.dtype.is_float:
            v = convert(self._x.b, v, F64)
        return self._new(self._x.b.op("reduce", v, kind=kind, axes=(1,), keepdims=int(keepdims)))

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
            return apply(self._x, BINARY[name], inputs)
        if name in UNARY:
            return apply(self._x, UNARY[name], inputs)
        if name == "square":
            return self * self
        if name in _TWO:
            return _TWO[name](self._x, *inputs)
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
            return apply(self._x, "not", [np.isnan(self) | np.isinf(self)])
        raise Untraceable(f"numpy.{name}")

    def __array_function__(self, func: Callable[..., object], types: object, args: Sequence[object],
                           kwargs: Mapping[str, object]) -> object:
        from .functions import FUNCTIONS
        made = FUNCTIONS.get(func.__name__)
        if func.__name__ in REDUCED:
            rest = dict(zip(("axis",), args[1:], strict=False)) | dict(kwargs)
            if rest.get("where") is not None or rest.get("out") is not None:
                raise Untraceable(f"numpy.{func.__name__} with where= or out=")
            return self._reduce(REDUCED[func.__name__], rest.get("axis"), bool(rest.get("keepdims", False)))
        if made is None:
            raise Untraceable(f"numpy.{func.__name__}")
        return made(self._x, *args, **kwargs)


def operand(x: Columns, v: object, like: DType) -> Value:
    """An operand: a traced one, or numbers."""
    if isinstance(v, Traced):
        return v.value
    a = np.asarray(v)
    if a.dtype.kind not in "biuf":
        raise Untraceable(f"an operand of type {type(v).__name__}")
    scalar = isinstance(v, (bool, int, float))
    return x.b.constant(a.astype(like.numpy) if scalar or like.is_float and a.dtype.kind in "iub" else a)


def apply(x: Columns, op: str, inputs: Sequence[object]) -> Traced:
    """One op of the graph on broadcast operands, of the type that NumPy gives them."""
    kinds = [i.value.type.dtype for i in inputs if isinstance(i, Traced)]
    like = F64 if F64 in kinds else kinds[0]
    values = [operand(x, i, like) for i in inputs]
    types = {v.type.dtype for v in values}
    if len(types) > 1:
        wide = F64 if F64 in types else F32 if F32 in types and not any(t.is_int for t in types) else F64
        values = [convert(x.b, v, wide) for v in values]
    elif op not in ("and", "or", "xor", "not", "eq", "ne") and types == {BOOL}:
        values = [convert(x.b, v, F64) for v in values]
    if op == "mod" and values[0].type.dtype.is_float:
        return Traced(x, _python_mod(x, *values))
    return Traced(x, x.b.op(op, *aligned(x, values)))


def _python_mod(x: Columns, a: Value, m: Value) -> Value:
    """a % m of the sign of m."""
    r = x.b.op("fmod", *aligned(x, [a, m]))
    other = x.b.op("and", x.b.op("ne", r, x.b.constant(np.zeros((), r.type.dtype.numpy))),
                   x.b.op("ne", x.b.op("lt", r, x.b.constant(np.zeros((), r.type.dtype.numpy))),
                          x.b.op("lt", m, x.b.constant(np.zeros((), r.type.dtype.numpy)))))
    return x.b.op("where", other, x.b.op("add", r, m), r)


def aligned(x: Columns, values: Sequence[Value]) -> list[Value]:
    """[rows] and [rows, n] do not broadcast, as they would not in NumPy."""
    ranks = {v.type.rank for v in values if v.type.rank and v.type.shape[0] == x.s.rows}
    if ranks == {1, 2} and x.s.rows > 1:
        raise Untraceable("[rows] and [rows, n] are combined, which NumPy does not broadcast; keep the columns' dimension")
    return list(values)


class _Located:
    """frame.loc[:, names]"""

    def __init__(self, frame: Traced) -> None:
        self._frame = frame

    def __getitem__(self, key: object) -> Traced:
        if not isinstance(key, tuple) or len(key) != 2 or key[0] != slice(None):
            raise Untraceable(f"it takes loc[{key!r}]; columns are taken as loc[:, name]")
        return self._frame[key[1]]


# -- functions of two operands that no op has ---------------------------------------------------------------------------
def _product(x: Columns, a: object, w: object) -> Traced:
    """a @ w for a fixed vector or matrix w."""
    if not isinstance(a, Traced) or isinstance(w, Traced) or a.ndim != 2:
        raise Untraceable("a product whose right side is no fixed matrix")
    m = np.asarray(w)
    if m.ndim not in (1, 2) or m.shape[0] != a.value.type.shape[1]:
        raise Untraceable(f"a product with an array of shape {list(m.shape)}")
    y = dense(x.s, a.value if a.value.type.dtype.is_float else convert(x.b, a.value, F64)).linear(m[:, None] if m.ndim == 1 else m)
    return Traced(x, y if m.ndim == 2 else x.b.op("reshape", y, shape=y.type.shape[:1]))


def _hypot(x: Columns, a: object, b: object) -> Traced:
    return np.sqrt(a * a + b * b)  # type: ignore[operator,return-value]


def _arctan2(x: Columns, y: object, a: object) -> Traced:
    """The angle of (a, y): the arc tangent of the smaller over the larger, turned into its octant."""
    y, a = (v if isinstance(v, Traced) else _full(x, v) for v in (y, a))
    steep, none = np.abs(y) > np.abs(a), (y == 0) & (a == 0)
    below = where(x, steep, y, a)
    angle = np.arctan(where(x, steep, a, y) / where(x, none, 1.0, below))
    half = where(x, y < 0, -np.pi / 2, np.pi / 2)
    flat = where(x, a < 0, angle + half * 2.0, angle)
    return where(x, none, 0.0, where(x, steep, half - angle, flat))


def _full(x: Columns, v: object) -> Traced:
    return Traced(x, x.b.op("expand", x.b.constant(np.array(v, np.float64)), shape=(x.s.rows,)))


def where(x: Columns, condition: object, yes: object, no: object) -> Traced:
    """numpy.where"""
    if not isinstance(condition, Traced):
        raise Untraceable("numpy.where with a fixed condition")
    kinds = [v.value.type.dtype for v in (yes, no) if isinstance(v, Traced)]
    like = F32 if kinds and all(k == F32 for k in kinds) else F64
    mask = condition.value if condition.value.type.dtype == BOOL else apply(x, "ne", [condition, 0.0]).value
    a, b = (convert(x.b, operand(x, v, like), like) for v in (yes, no))
    return Traced(x, x.b.op("where", *aligned(x, [mask, a, b])))


_TWO: dict[str, Callable[..., Traced]] = {
    "hypot": _hypot, "arctan2": _arctan2, "matmul": _product,
    "copysign": lambda x, a, s: where(x, s < 0, -np.abs(a), np.abs(a)),
    "heaviside": lambda x, a, h: where(x, a > 0, 1.0, where(x, a < 0, 0.0, h)),
    "fmax": lambda x, a, b: where(x, np.isnan(a), b, where(x, np.isnan(b), a, np.maximum(a, b))),
    "fmin": lambda x, a, b: where(x, np.isnan(a), b, where(x, np.isnan(b), a, np.minimum(a, b))),
    "logaddexp": lambda x, a, b: np.maximum(a, b) + np.log1p(np.exp(-np.abs(a - b)))}
