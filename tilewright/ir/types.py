"""Element types and tensor types.

>>> TensorType(F32, (8, 64))
f32[8,64]
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

Dim = int | str  # a str is a symbolic dimension; it never reaches a pass, only the frontends and the executable's specs


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: `kind` is f(loat), i(nt), u(int) or b(ool); `bits` is its size in memory (bool: one byte)."""

    name: str
    kind: str
    bits: int

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def numpy(self) -> np.dtype:
        return _NUMPY[self.name]

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_int(self) -> bool:
        """Signed or unsigned integer; bool is neither."""
        return self.kind in "iu"

    def __repr__(self) -> str:
        return self.name


F16, BF16, F32, F64 = DType("f16", "f", 16), DType("bf16", "f", 16), DType("f32", "f", 32), DType("f64", "f", 64)
I8, I16, I32, I64 = (DType(f"i{b}", "i", b) for b in (8, 16, 32, 64))
U8, U16, U32, U64 = (DType(f"u{b}", "u", b) for b in (8, 16, 32, 64))
BOOL = DType("bool", "b", 8)

DTYPES = {d.name: d for d in (F16, BF16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, BOOL)}
_NUMPY = {
    "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64), "bool": np.dtype(np.bool_),
    **{f"{k}{b}": np.dtype(f"{'int' if k == 'i' else 'uint'}{b}") for k in "iu" for b in (8, 16, 32, 64)},
}
_FROM_NUMPY = {v: DTYPES[k] for k, v in _NUMPY.items()}


def dtype_of(x: np.dtype | type | str) -> DType:
    """The DType of a NumPy dtype. Raises TypeError for dtypes that have none (strings, objects, complex)."""
    try:
        return _FROM_NUMPY[np.dtype(x).newbyteorder("=")]
    except KeyError:
        raise TypeError(f"no tilewright dtype for {np.dtype(x)}") from None


@dataclass(frozen=True, slots=True)
class TensorType:
    """The type of a value in a graph: element type and concrete shape (row-major)."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.bytes

    def __repr__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


UNKNOWN_RANK = ("...",)  # the shape of a TensorSpec whose rank the model leaves open


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of an executable: symbolic dimensions are strings."""

    name: str
    shape: tuple[Dim, ...]
    dtype: np.dtype

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype}[{','.join(map(str, self.shape))}]"


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    """NumPy's broadcast of `shapes`, or None where they do not fit."""
    rank = max((len(s) for s in shapes), default=0)
    out = []
    for dims in zip(*((1,) * (rank - len(s)) + tuple(s) for s in shapes), strict=True):
        big = {d for d in dims if d != 1}
        if len(big) > 1:
            return None
        out.append(big.pop() if big else 1)
    return tuple(out)
