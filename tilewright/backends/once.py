"""What exists once in a process, whichever of its threads asks first."""
from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from threading import Lock
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def once(make: Callable[P, T]) -> Callable[P, T]:
    """`functools.cache` where threads that ask at the same time wait for the first: `cache` lets each of them make one and keeps the
    last, so that native code which somebody holds the address of would be unloaded. A forked child does not wait for threads that
    it does not have."""
    cached, lock = cache(make), Lock()

    def renew() -> None:
        nonlocal lock
        lock = Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)

    @wraps(make)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return cached(*args, **kwargs)
    return locked
