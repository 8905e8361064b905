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
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind not in "iu":
        return np.divide(a, b)
    safe = np.where(b == 0, 1, b).astype(a.dtype)
    q = np.floor_divide(a, safe)
    if a.dtype.kind == "i":  # floor -> truncation: one more where the signs differ and it is not exact
        q = q + ((q * safe != a) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, 0, q).astype(a.dtype)


def _pow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer powers wrap; to a negative power, 1 and -1 give +-1 and all else 0."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind != "i" or not (b < 0).any():
        return np.power(a, b)
    odd = np.where(b % 2 == 0, 1, a)
    return np.where(b >= 0, np.power(a, np.maximum(b, 0)), np.where(np.abs(a) == 1, odd, 0)).astype(a.dtype)


def _zero_safe(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def g(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if np.asarray(b).dtype.kind not in "iu":
            return f(a, b)
        return np.where(b == 0, 0, f(a, np.where(b == 0, 1, b))).astype(np.asarray(a).dtype)
    return g


def _erf(x: np.ndarray) -> np.ndarray:
    import math
    return np.vectorize(math.erf, otypes=[np.float64])(x.astype(np.float64)).astype(x.dtype) if x.size else x


def _gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution's integral up to x; NaN at -inf, as the formula with erf has it."""
    import math
    with np.errstate(invalid="ignore"):
        share = np.vectorize(math.erfc, otypes=[np.float64])(x.astype(np.float64) * -math.sqrt(0.5)) if x.size else x
        return (x * 0.5 * share).astype(x.dtype)


def _exp_nonpos(x: np.ndarray) -> np.ndarray:
    """exp for x <= 0 without subnormal results: 0 instead."""
    y = np.exp(x)
    return np.where(y < np.finfo(x.dtype).tiny, np.zeros((), x.dtype), y)


def _shift(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def g(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        bits = np.asarray(a).dtype.itemsize * 8
        return np.where(b >= bits, 0, f(a, np.where(b >= bits, 0, b))).astype(np.asarray(a).dtype)
    return g


FUNCTIONS: dict[str, ScalarFunction] = {f.name: f for f in (
    *(ScalarFunction(n, 2, f) for n, f in {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _int_div,
        "floordiv": _zero_safe(np.floor_divide), "mod": _zero_safe(np.mod), "fmod": _zero_safe(np.fmod),
        "pow": _pow, "atan2": np.arctan2, "min": np.minimum, "max": np.maximum,
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
        "acosh": np.arccosh, "atanh": np.arctanh, "erf": _erf, "gelu": _gelu,
        "exp_nonpos": _exp_nonpos, "floor": np.floor, "ceil": np.ceil,
        "round": np.rint, "trunc": np.trunc, "isnan": np.isnan, "isinf": np.isinf,
        "not": lambda a: np.logical_not(a) if a.dtype == bool else np.bitwise_not(a)}.items()),
    ScalarFunction("select", 3, lambda c, a, b: np.where(c, a, b)),
)}
