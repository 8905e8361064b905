"""What the environment says: the one module that reads it.

    TILEWRIGHT_DEBUG=1..6   how much to verify and report (0: nothing)
                            1 verify after every pass   2 and time the passes   3 and say what each pass changed
                            4 and print the graph before and after   5 and after every pass   6 and fused programs and loops
    TILEWRIGHT_DUMP=dir     a numbered snapshot of the graph after every pass, which the command line can run again
    TILEWRIGHT_CACHE=dir    where compiled objects are kept ("" or "0": nowhere; by default the user's cache folder)
    TILEWRIGHT_THREADS=n    default number of threads
    TILEWRIGHT_SLOW_CALLS=1 calls go through Python and ctypes instead of machine code made for CPython
"""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError


@dataclass(frozen=True, slots=True)
class Config:
    """Settings from the environment. `cache` is None where nothing may be cached, `threads` None where not given."""

    debug: int = 0
    dump: Path | None = None
    cache: Path | None = None
    threads: int | None = None
    slow_calls: bool = False

    @property
    def verify(self) -> bool:
        return self.debug >= 1


def read(env: Mapping[str, str] | None = None) -> Config:
    """The settings as they are now, from `env` (the process's environment where not given). Raises InputError where a
    variable's value makes no sense."""
    env = os.environ if env is None else env
    dump = env.get("TILEWRIGHT_DUMP")
    return Config(_number(env, "TILEWRIGHT_DEBUG", 0, 6) or 0, Path(dump) if dump else None, _cache(env),
                  _number(env, "TILEWRIGHT_THREADS", 1, 4096), bool(_number(env, "TILEWRIGHT_SLOW_CALLS", 0, 1)))


def _number(env: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = env.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or not low <= int(text) <= high:
        raise InputError(f"the environment variable {name} must be a number from {low} to {high}, it is {text!r}")
    return int(text)


def _cache(env: Mapping[str, str]) -> Path | None:
    given = env.get("TILEWRIGHT_CACHE")
    if given is not None:
        return None if given.strip() in ("", "0") else Path(given).expanduser()
    from platformdirs import user_cache_path
    return user_cache_path("tilewright", appauthor=False)
