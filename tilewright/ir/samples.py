"""Deterministic arrays for the ops' `samples()`."""
from __future__ import annotations

import zlib

import numpy as np

from .types import BF16, F16, DType

SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 0.0)


def values(shape: tuple[int, ...], dtype: DType, *, low: float = -4, high: float = 4, special: bool = False, seed: int = 0) -> np.ndarray:
    """Values in [low, high], the same in every process. `special` puts NaN, infinities and both zeros at the start."""
    rng = np.random.default_rng(zlib.crc32(repr((shape, dtype.name, seed)).encode()))
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_int:
        return rng.integers(max(int(low), 0) if dtype.kind == "u" else int(low), int(high) + 1, shape).astype(dtype.numpy)
    a = np.asarray(rng.uniform(low, high, shape)).astype(dtype.numpy)
    if special:
        k = min(a.size, len(SPECIAL))
        a.reshape(-1)[:k] = np.array(SPECIAL[:k], dtype.numpy)
    return a


def tolerance(dtype: DType, f32: float = 1e-5) -> float:
    """Relative tolerance for results that are rounded to `dtype` once or twice."""
    return {F16: 2e-3, BF16: 1.6e-2}.get(dtype, f32)
