"""Where a plan's weights lie: equal ones of several executables once, and those of one plan side by side.

    place = Placement(types)              types: of all weights that will be placed
    a = place.zeros(t);  a[...] = …       aligned memory for one of them, to be filled
    a = place.settled(a)                  what to use: an equal array that another plan holds, else `a`, read-only from now on
    arrays = place.finished(arrays)       other plans may find those that are new

Arrays are compared with their contents, so it does not matter where they came from (a file, a framework's memory, an update) and
whether it has changed since. Only weak references are kept: what nobody uses any more is freed.

A plan's weights share few large blocks, because large blocks of NumPy get large pages and small ones do not: a call reads every
weight, and with pages of 4 KiB it spends some 5% of its time finding out where they are.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from weakref import WeakValueDictionary

import numpy as np

from ..ir.types import TensorType
from .memory import aligned
from .plan import align_up

WORTH_SHARING = 16 << 10  # bytes of one weight; below, looking it up takes longer than it saves
LARGE = 4 << 20           # bytes of memory from which on NumPy asks for large pages
_BLOCK = 64 << 20         # bytes of one block at most: it lives as long as any weight in it
_SAMPLES = 1024           # elements that say which array may be equal
_STEP = 1 << 20           # bytes compared at once

_Key = tuple[str, tuple[int, ...], bytes]


@cache
def _known() -> WeakValueDictionary[_Key, np.ndarray]:
    """The placed weights of this process. Of unequal ones whose samples are equal, the last one is found."""
    return WeakValueDictionary()


def _key(a: np.ndarray) -> _Key:
    return a.dtype.str, a.shape, a.reshape(-1)[::max(1, a.size // _SAMPLES)].tobytes()


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two contiguous arrays of one type hold the same bytes."""
    x, y = (v.reshape(-1).view(np.uint8) for v in (a, b))
    return all(np.array_equal(x[k:k + _STEP], y[k:k + _STEP]) for k in range(0, len(x), _STEP))


def alone(t: TensorType) -> np.ndarray:
    """Zeros, 64-byte aligned, in memory of their own."""
    return aligned(t.bytes).view(t.dtype.numpy).reshape(t.shape) if t.size else np.empty(t.shape, t.dtype.numpy)


def _span(t: TensorType) -> int:
    """The bytes that a weight takes up in a block."""
    return align_up(t.bytes)


class Placement:
    """Memory for the weights of one plan. One weight is placed after the other: `settled` comes before the next `zeros`."""

    def __init__(self, types: Iterable[TensorType]) -> None:
        """`types`: of the weights that will be placed."""
        self._left = sum(_span(t) for t in types if t.bytes < LARGE)  # bytes of small weights still to come
        self._block = np.empty(0, np.uint8)
        self._used = 0
        self._last = 0  # bytes of the block that the last array has taken

    def zeros(self, t: TensorType) -> np.ndarray:
        """Zeros, 64-byte aligned."""
        self._last = 0
        if not t.size or t.bytes >= LARGE:
            return alone(t)
        need = _span(t)
        if need > len(self._block) - self._used:
            if self._left < LARGE:
                return alone(t)
            self._block, self._used = aligned(min(self._left, _BLOCK)), 0
        start = self._used
        self._used, self._left, self._last = start + need, self._left - need, need
        return self._block[start:start + t.bytes].view(t.dtype.numpy).reshape(t.shape)

    def settled(self, a: np.ndarray) -> np.ndarray:
        """The array to use instead of `a`, which came from `zeros` just before."""
        a.flags.writeable = False
        if a.nbytes < WORTH_SHARING:
            return a
        found = _known().get(_key(a))
        if found is None or not _equal(found, a):
            return a
        if self._last:
            self._used -= self._last
            self._left += self._last  # the place is for another one
            self._block[self._used:self._used + self._last] = 0
            self._last = 0
        return found

    def finished(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The settled arrays by name, to be found by other plans from now on. Where a block has become almost empty,
        because most weights were found elsewhere, it is not worth its pages: then its arrays move out."""
        moving = self._block if 0 < self._used < LARGE else None
        out = {k: _moved(a) if moving is not None and _owner(a) is _owner(moving) else a for k, a in arrays.items()}
        known = _known()
        for a in out.values():
            if a.nbytes >= WORTH_SHARING and known.setdefault(key := _key(a), a) is not a and not _equal(known[key], a):
                known[key] = a
        return out


def _owner(a: np.ndarray) -> object:
    """The array that holds the memory."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def _moved(a: np.ndarray) -> np.ndarray:
    """A copy in memory of its own."""
    out = aligned(a.nbytes).view(a.dtype).reshape(a.shape)
    out[...] = a
    out.flags.writeable = False
    return out
