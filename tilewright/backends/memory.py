"""Aligned memory, and addresses of arrays."""
from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import numpy as np

from ..errors import InputError
from .plan import ARENA_ALIGN


def aligned(size: int) -> np.ndarray:
    """`size` bytes of zeros at an address that is a multiple of 64. Raises InputError where there is not enough memory."""
    try:
        block = np.zeros(size + ARENA_ALIGN, np.uint8)
    except MemoryError:
        raise out_of_memory("the weights and intermediate values of a call", size) from None
    start = -address(block) % ARENA_ALIGN
    return block[start:start + size]


def trim() -> None:
    """Gives memory that was freed back to the system, where its C library keeps it: compiling leaves some 50 MB."""
    if sys.platform == "linux":
        give = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
        if give is not None:
            give(0)


def out_of_memory(what: str, size: int) -> InputError:
    """The error where `size` bytes for `what` cannot be had."""
    return InputError(f"{what} need {size / 2**30:,.1f} GiB, which this process cannot have; use smaller inputs")


def _reads_header() -> bool:
    """Whether an array's data pointer is the first field after the object header, as NumPy's C API says, here too."""
    if sys.implementation.name != "cpython":
        return False
    probe = np.zeros(3)
    return ctypes.c_void_p.from_address(id(probe) + object.__basicsize__).value == probe.ctypes.data


def _data_pointer(a: np.ndarray, cell: Callable[[int], ctypes.c_void_p] = ctypes.c_void_p.from_address,
                  at: int = object.__basicsize__) -> int:
    """What `a.ctypes.data` and `a.__array_interface__` give, five and ten times as fast."""
    return cell(id(a) + at).value or 0


def _ctypes_data(a: np.ndarray) -> int:
    return a.ctypes.data


address = _data_pointer if _reads_header() else _ctypes_data
