"""The scalar functions that expressions call: name, arity, NumPy meaning.

A new one is added here and in backends/llvm/scalar.py (its code); `select`, comparisons and predicates have dtype
rules of their own in `expr.call`. Semantics are IEEE and ONNX: min/max pass NaN, `div` of integers truncates toward
zero, `floordiv`/`mod` follow Python, `fmod` C; division of integers by zero gives 0 rather than a trap.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ScalarFunction:
    name: str
    arity: int
    numpy: Callable[..., np.ndarray]


def _int_div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.asarray(a).dtype.kind == "f" or np.asarray(a).dtype.name == "bfloat16":
        return np.divide(a, b)
    safe = np.where(b == 0, 1, b)
    q = np.abs(np.asarray(a).astype(object)) // np.abs(np.asarray(safe).astype(object)) if np.asarray(a).dtype.kind == "i" else a // safe
    if np.asarray(a).dtype.kind == "i":
        q = np.where((np.asarray(a) < 0) != (np.asarray(b) < 0), -q, q)
        q = (q.astype(object) if q.dtype == object else q)
        q = np.asarray([_wrap_int(v, np.asarray(a).dtype) for v in np.ravel(q)], np.asarray(a).dtype).reshape(np.shape(q))
    return np.where(b == 0, 0, q).astype(np.asarray(a).dtype)


def _wrap_int(v: int, dtype: np.dtype) -> int:
    bits = dtype.itemsize * 8
    v = int(v) & (2**bits - 1)
    return v - 2**bits if v >= 2 ** (bits - 1) else v


def _zero_safe(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def g(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if np.asarray(b).dtype.kind not in "iu":
            return f(a, b)
        return np.where(b == 0, 0, f(a, np.where(b == 0, 1, b))).astype(np.asarray(a).dtype)
    return g


def _erf(x: np.ndarray) -> np.ndarray:
    import math
    return np.vectorize(math.erf, otypes=[np.float64])(x.astype(np.float64)).astype(x.dtype) if x.size else x


def _shift(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def g(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        bits = np.asarray(a).dtype.itemsize * 8
        return np.where(b >= bits, 0, f(a, np.where(b >= bits, 0, b))).astype(np.asarray(a).dtype)
    return g


FUNCTIONS: dict[str, ScalarFunction] = {f.name: f for f in (
    *(ScalarFunction(n, 2, f) for n, f in {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _int_div,
        "floordiv": _zero_safe(np.floor_divide), "mod": _zero_safe(np.mod), "fmod": _zero_safe(np.fmod),
        "pow": np.power, "atan2": np.arctan2, "min": np.minimum, "max": np.maximum,
        "and": lambda a, b: np.logical_and(a, b) if a.dtype == bool else np.bitwise_and(a, b),
        "or": lambda a, b: np.logical_or(a, b) if a.dtype == bool else np.bitwise_or(a, b),
        "xor": lambda a, b: np.logical_xor(a, b) if a.dtype == bool else np.bitwise_xor(a, b),
        "shl": _shift(np.left_shift), "shr": _shift(np.right_shift),
        "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
        "ge": np.greater_equal}.items()),
    *(ScalarFunction(n, 1, f) for n, f in {
        "neg": np.negative, "abs": np.abs, "sign": np.sign, "sqrt": np.sqrt, "exp": np.exp, "log": np.log,
        "expm1": np.expm1, "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin,
        "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh,
        "acosh": np.arccosh, "atanh": np.arctanh, "erf": _erf, "floor": np.floor, "ceil": np.ceil,
        "round": np.rint, "trunc": np.trunc, "isnan": np.isnan, "isinf": np.isinf,
        "not": lambda a: np.logical_not(a) if a.dtype == bool else np.bitwise_not(a)}.items()),
    ScalarFunction("select", 3, lambda c, a, b: np.where(c, a, b)),
)}
