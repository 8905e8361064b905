"""Files read through the page cache: a model's weights take no memory of their own, and what was read can be let go.

    data = map_file(path);  a = np.frombuffer(memoryview(data)[…])    a's pages come from the file when they are touched
    release(a)                                                        and go; touching them again reads them again

The file must not change as long as arrays of it are in use: `check` says whether it has. Replacing it by another one (rename,
unlink) does no harm.
"""
from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import InputError


class MappedFile(mmap.mmap):
    """The bytes of a file. `path`, `stamp`: its name, size and time of change when it was mapped; `handle`: open on it."""

    path: Path
    stamp: tuple[int, int]
    handle: int
    begin: int

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # without a handle: it was never mapped
            os.close(self.handle)


def map_file(path: Path) -> bytes | MappedFile:
    """The file's bytes; read at once where it cannot be mapped (empty, or no regular file). Raises OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        made = MappedFile(handle, 0, access=mmap.ACCESS_READ)
    except (ValueError, OSError):
        os.close(handle)
        return path.read_bytes()
    made.path, made.handle, made.stamp = path, handle, _stamp(handle)
    made.begin = np.frombuffer(made, np.uint8, 1).__array_interface__["data"][0]
    return made


def _stamp(handle: int) -> tuple[int, int]:
    s = os.fstat(handle)
    return s.st_size, s.st_mtime_ns


def file_of(a: np.ndarray) -> MappedFile | None:
    """The mapped file whose bytes `a` shows."""
    at: object = a
    while isinstance(at, np.ndarray):
        at = at.base
    if isinstance(at, memoryview):
        at = at.obj
    return at if isinstance(at, MappedFile) else None


def release(a: np.ndarray) -> None:
    """Gives back the memory that holds the array's part of its file, if it is one. Neighbours are read again when used."""
    found = file_of(a)
    if found is None or not a.nbytes or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = a.__array_interface__["data"][0] - found.begin
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    with contextlib.suppress(OSError):
        found.madvise(mmap.MADV_DONTNEED, start, first + a.nbytes - start)


def release_file(f: MappedFile) -> None:
    """Gives back the memory that holds the file; what is used again is read again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError):
            f.madvise(mmap.MADV_DONTNEED)


def check(arrays: Iterable[np.ndarray | MappedFile]) -> None:
    """Raises InputError where a file behind one of the arrays has changed since it was mapped."""
    files = {id(f): f for a in arrays if (f := a if isinstance(a, MappedFile) else file_of(a)) is not None}
    for f in files.values():
        if _stamp(f.handle) != f.stamp:
            raise InputError(f"{f.path} has changed since the model was compiled from it; its weights are gone: compile it again")
