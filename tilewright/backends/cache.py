"""Object code on disk, so that a model compiles once.

Any number of processes may share the folder: an entry is written to a file of its own and renamed into place, and
carries a checksum, so that readers see all of it or nothing. Whatever is wrong with the folder (full, read-only,
corrupt) costs time, never an error and never a wrong result.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from functools import cache
from pathlib import Path

from .. import config

MAGIC = b"TWOB1\n"
LIMIT_BYTES = 2 << 30
_TOUCH_SECONDS = 3600  # how stale an entry's time of use may be; saves a write on each read
_SUFFIX = ".o"


@cache
def compiler_version() -> str:
    """Changes whenever the code that makes code does: a hash of the sources of this package's compiler, and LLVM's
    version. A version number would not tell two states of a checkout apart."""
    import llvmlite
    h = hashlib.sha256(llvmlite.__version__.encode())
    root = Path(__file__).parent.parent
    for folder in ("ir", "compiler", "backends"):
        for file in sorted((root / folder).rglob("*.py")):
            h.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return h.hexdigest()[:20]


@cache
def llvm_version() -> str:
    """Changes with LLVM and with the passes that are run on a module."""
    import llvmlite
    worker = Path(__file__).parent / "llvm" / "worker.py"
    return hashlib.sha256(llvmlite.__version__.encode() + worker.read_bytes()).hexdigest()[:20]


def cache_key(*parts: str) -> str:
    """A name for what follows from `parts` and nothing else."""
    h = hashlib.sha256()
    for p in parts:
        data = p.encode()
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()


class ObjectCache:
    """key (of `cache_key`) -> bytes. `folder` None: holds nothing."""

    def __init__(self, folder: Path | None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._writable = folder is not None

    @staticmethod
    def default() -> ObjectCache:
        """The user's cache, as TILEWRIGHT_CACHE says."""
        folder = config.read().cache
        return ObjectCache(folder / "objects" if folder else None)

    def get(self, key: str) -> bytes | None:
        """The entry, None where there is none or it is damaged (then it is removed)."""
        if self.folder is None:
            return None
        path = self.folder / (key + _SUFFIX)
        try:
            payload = _unpack(path.read_bytes(), key)
        except OSError:
            return None
        with contextlib.suppress(OSError):  # a folder that is read-only, or an entry another process replaced
            if payload is None:
                path.unlink()
            elif time.time() - path.stat().st_mtime > _TOUCH_SECONDS:
                os.utime(path)
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Stores an entry if that can be done. After the first failure this object stops trying."""
        if self.folder is None or not self._writable:
            return
        temporary = None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            with os.fdopen(handle, "wb") as f:
                f.write(_pack(payload, key))
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, self.folder / (key + _SUFFIX))
        except OSError:
            self._writable = False
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def prune(self) -> None:
        """Removes the entries used longest ago until the folder holds 3/4 of the limit, if it is over it, and what
        writers that died left behind. One process at a time; others go on at once."""
        if self.folder is None or not self._writable:
            return
        from filelock import FileLock, Timeout  # slow to import, and seldom needed
        try:
            with FileLock(self.folder / "prune.lock", timeout=0):
                self._prune()
        except (OSError, Timeout):
            return

    def _prune(self) -> None:
        assert self.folder is not None
        entries, now = [], time.time()
        for item in os.scandir(self.folder):
            with contextlib.suppress(OSError):  # another process may have removed it
                s = item.stat()
                if item.name.endswith(".tmp") and now - s.st_mtime > _TOUCH_SECONDS:
                    os.unlink(item.path)
                elif item.name.endswith(_SUFFIX):
                    entries.append((s.st_mtime, s.st_size, item.path))
        total = sum(size for _, size, _ in entries)
        if total <= self.limit_bytes:
            return
        for _, size, path in sorted(entries):
            if total <= self.limit_bytes * 3 // 4:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size


def _pack(payload: bytes, key: str) -> bytes:
    """magic, sha256 of (key, payload), payload. The key is in the sum: a renamed file is a damaged one."""
    return MAGIC + hashlib.sha256(key.encode() + payload).digest() + payload


def _unpack(data: bytes, key: str) -> bytes | None:
    head = len(MAGIC) + 32
    if data[:len(MAGIC)] != MAGIC or len(data) < head:
        return None
    payload = data[head:]
    return payload if hashlib.sha256(key.encode() + payload).digest() == data[len(MAGIC):head] else None
