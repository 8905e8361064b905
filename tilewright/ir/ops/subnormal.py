"""Weights without subnormal numbers, which a processor multiplies some hundred times slower than others."""
from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np

from ..expr import Expr, call, select, wrap
from ..graph import Attrs
from ..op import Sample, register
from .elementwise import Map, given

_CHUNK = 1 << 18  # elements looked at together: they stay in the second-level cache


@register
class FlushSubnormal(Map):
    """x, with 0 for numbers nearer to it than the smallest normal one (1.2e-38 in f32, 2.2e-308 in f64). No frontend makes it."""

    name = "flush_subnormal"

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        (x,) = xs
        return select(call("abs", x) < _tiny(x.dtype.numpy), wrap(0, x.dtype), x)

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        (x,) = given(*ins)
        return (np.where(np.abs(x) < _tiny(x.dtype), np.zeros((), x.dtype), x),)

    def samples(self) -> Iterable[Sample]:
        yield from super().samples()
        for d in ("f4", "f8"):
            tiny = _tiny(np.dtype(d))
            yield Sample((np.array([tiny, tiny / 2, -tiny / 4, -tiny, 0, np.nan, np.inf, 1, tiny * (1 - 2.0 ** -20)], d),))


def _tiny(dtype: np.dtype) -> float:
    return float(ml_dtypes.finfo(dtype).smallest_normal)


def flush_in_place(a: np.ndarray) -> None:
    """The same for a contiguous array, where it lies: only f32, other types are left as they are."""
    if a.dtype != np.float32:
        return
    bits = a.reshape(-1).view(np.uint32)
    for k in range(0, len(bits), _CHUNK):
        part = bits[k:k + _CHUNK]
        small = (part & 0x7FFFFFFF) - np.uint32(1) < 0x7FFFFF  # a zero wraps around to the largest number
        if small.any():
            part[small] = 0
