"""Native code for irregular ops (scatter, top-k, …): their numba kernels behind one C signature.

    int32_t kernel(void *in0, …, void *out0, …)    // 0 = fine, 1 = an index was outside its dimension

Shapes and element types are baked in. float16 and bfloat16 buffers are seen as uint16 (numba has no arithmetic for them
on CPUs; kernels only move them), tensors of rank 0 as one element of rank 1. numba is imported where it is used.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..ir import ops as _ops  # noqa: F401  (registers every op)
from ..ir.graph import Attrs
from ..ir.op import OPS
from ..ir.types import DType, TensorType


@dataclass(frozen=True)
class HostKernel:
    """Compiled code; valid for as long as this object lives."""

    address: int
    keep: object = field(repr=False)  # numba's cfunc, which owns the code

    def __call__(self, buffers: Sequence[np.ndarray]) -> int:
        """Runs on C-contiguous arrays (inputs, then outputs) and returns the kernel's code; for tests and slow paths."""
        import ctypes
        return ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * len(buffers))(self.address)(*(a.ctypes.data for a in buffers))


def compile_host_kernel(op: str, attrs: Attrs, in_types: Sequence[TensorType | None], out_types: Sequence[TensorType]) -> HostKernel:
    """The kernel of an irregular op for these types. Absent optional inputs (None) have no buffer.

    Takes about a second the first time; equal requests share one kernel for the life of the process.
    """
    return _compile(op, attrs, tuple(in_types), tuple(out_types))


@functools.lru_cache(maxsize=256)
def _compile(op: str, attrs: Attrs, in_types: tuple[TensorType | None, ...], out_types: tuple[TensorType, ...]) -> HostKernel:
    import numba
    from numba import types
    function = OPS[op].kernel(attrs, *in_types)
    assert function is not None, f"{op} is not an irregular op"
    buffers = [t for t in (*in_types, *out_types) if t is not None]
    jitted = numba.njit(function, error_model="numpy")
    arrays = tuple(numba.typeof(np.empty((0,) * max(t.rank, 1), _memory(t.dtype))) for t in buffers)
    jitted.compile(arrays)
    returns_code = jitted.overloads[arrays].signature.return_type != types.none
    entry = numba.cfunc(types.int32(*[types.voidptr] * len(buffers)), error_model="numpy")(_entry(jitted, buffers, returns_code))
    assert entry.address is not None
    return HostKernel(entry.address, entry)


def _memory(dtype: DType) -> np.dtype:
    """The NumPy dtype a kernel sees."""
    return np.dtype(np.uint16) if dtype.is_float and dtype.bits == 16 else dtype.numpy


def _entry(jitted: Callable[..., object], buffers: Sequence[TensorType], returns_code: bool) -> Callable[..., int]:
    """The function numba compiles to the C signature, written out as text since its argument list varies:

        def entry(p0, p1):
            return kernel(carray(p0, (3, 4), t0), carray(p1, (3, 4), t1))
    """
    from numba import carray  # pyright: ignore[reportPrivateImportUsage]
    scope: dict[str, object] = {"kernel": jitted, "carray": carray, **{f"t{k}": _memory(t.dtype) for k, t in enumerate(buffers)}}
    arrays = ", ".join(f"carray(p{k}, {t.shape or (1,)!r}, t{k})" for k, t in enumerate(buffers))
    body = f"    return kernel({arrays})" if returns_code else f"    kernel({arrays})\n    return 0"
    exec(f"def entry({', '.join(f'p{k}' for k in range(len(buffers)))}):\n{body}\n", scope)  # our own text
    return scope["entry"]  # type: ignore[return-value]
