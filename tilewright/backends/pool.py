"""The threads of this process: one pool for each thread count, made when first needed, shared by all executables.

A pool is memory that native code works on (`llvm/team.py`): its address goes into the context of a call, and the entry
point runs through it. Workers are started by the first call that needs them, and again in a forked child; idle ones sleep.
A call that finds the pool busy with another one runs on its caller's thread alone.
"""
from __future__ import annotations

import atexit
import ctypes
import mmap
import os
from functools import cache

from .cache import ObjectCache
from .llvm.jit import Job, Library, build, load
from .llvm.team import (
    HANDLE_BYTES,
    NEEDS,
    POOL_RUN,
    POOL_STOP,
    ROOMY,
    RUN,
    SPIN,
    STATE,
    STATE_BYTES,
    THREAD_BYTES,
    THREADS,
    emit_pool,
    supported,
)
from .once import once
from .target import Target

SPINS = 2000            # looks at a word before a thread sleeps: 20 to 50 µs
_CROWDED_SPINS = 1      # where there are more threads than cores; inside of a call PATIENCE times as many, a microsecond or two
_WIPE_ON_FORK = 18      # MADV_WIPEONFORK, Linux 4.14


@once
def pool(threads: int) -> int:
    """Address of this process's pool of that many threads, the caller's included. 0: none is needed, or the system has no
    memory or code for one."""
    host = Target.host()
    if threads < 2 or not supported(host):
        return 0
    size = STATE_BYTES + threads * THREAD_BYTES
    handle = _pages(mmap.PAGESIZE + size)
    if not handle:
        return 0
    state = handle + mmap.PAGESIZE
    if _libc().madvise(state, size, _WIPE_ON_FORK):
        os.register_at_fork(after_in_child=lambda: ctypes.memset(state, 0, size))
    code = _code()
    roomy = threads <= host.cores
    spins = SPINS if roomy else _CROWDED_SPINS
    for offset, value in ((RUN, code.address(POOL_RUN)), (STATE, state), (THREADS, threads), (SPIN, spins), (ROOMY, roomy)):
        assert offset + 8 <= HANDLE_BYTES
        ctypes.c_int64.from_address(handle + offset).value = value
    atexit.register(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address(POOL_STOP)), handle)
    return handle


@cache
def _code() -> Library:
    """The pool's functions. They stay in memory for good: workers may run them until the process is gone."""
    host = Target.host()
    objects = build([Job.of(POOL_RUN, emit_pool(host))], host, ObjectCache.default(), workers=1)
    library = load(objects, [POOL_RUN, POOL_STOP], host, NEEDS)
    library.keep()
    return library


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _pages(size: int) -> int:
    """Zeroed private memory that is never given back; 0 where there is none. (A `mmap` object would unmap it.)"""
    at = _libc().mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    return 0 if at in (None, ctypes.c_void_p(-1).value) else at
