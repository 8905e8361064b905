"""The object cache: nothing that happens to its folder may show."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tilewright.backends import cache as cache_module
from tilewright.backends.cache import ObjectCache, cache_key, compiler_version

KEY = cache_key("a", "b")


def test_round_trip(tmp_path: Path) -> None:
    c = ObjectCache(tmp_path / "new" / "folder")
    assert c.get(KEY) is None
    c.put(KEY, b"code")
    assert c.get(KEY) == b"code" and ObjectCache(tmp_path / "new" / "folder").get(KEY) == b"code"
    c.put(KEY, b"other")
    assert c.get(KEY) == b"other"
    assert [p.suffix for p in (tmp_path / "new" / "folder").iterdir()] == [".o"]


def test_no_folder() -> None:
    c = ObjectCache(None)
    c.put(KEY, b"code")
    c.prune()
    assert c.get(KEY) is None


def test_keys_do_not_run_together() -> None:
    assert len({cache_key("ab", "c"), cache_key("a", "bc"), cache_key("abc"), cache_key("abc", "")}) == 4
    assert len(compiler_version()) == 20


@pytest.mark.parametrize("damage", [
    lambda b: b[:-1], lambda b: b[:10], lambda b: b"", lambda b: b + b"x", lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:],
    lambda b: b"ELF" + b[3:], lambda b: bytes(len(b))])
def test_damaged_entries_are_ignored_and_replaced(tmp_path: Path, damage) -> None:
    c = ObjectCache(tmp_path)
    c.put(KEY, b"some code" * 10)
    file = tmp_path / (KEY + ".o")
    file.write_bytes(damage(file.read_bytes()))
    assert c.get(KEY) is None and not file.exists()
    c.put(KEY, b"code")
    assert c.get(KEY) == b"code"


def test_an_entry_under_another_name_is_damaged(tmp_path: Path) -> None:
    c = ObjectCache(tmp_path)
    c.put(KEY, b"code")
    (tmp_path / (KEY + ".o")).rename(tmp_path / (cache_key("x") + ".o"))
    assert c.get(cache_key("x")) is None


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    c = ObjectCache(tmp_path / "f")
    c.put(KEY, b"code")
    c.prune()
    assert c.get(KEY) is None


@pytest.mark.parametrize("error", [28, 30, 13, 122])  # ENOSPC, EROFS, EACCES, EDQUOT
def test_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def fail(_: int) -> None:
        raise OSError(error, "no")
    c = ObjectCache(tmp_path)
    monkeypatch.setattr(cache_module.os, "fsync", fail)
    c.put(KEY, b"code")
    assert c.get(KEY) is None and not list(tmp_path.iterdir())
    monkeypatch.undo()
    c.put(KEY, b"code")
    assert c.get(KEY) is None, "one failure is enough for one compilation"


def test_read_only_folder(tmp_path: Path) -> None:
    ObjectCache(tmp_path).put(KEY, b"code")
    tmp_path.chmod(0o500)
    try:
        c = ObjectCache(tmp_path)
        assert c.get(KEY) == b"code"
        c.put(cache_key("new"), b"code")
        c.prune()
    finally:
        tmp_path.chmod(0o700)


def test_prune_keeps_what_was_used_last(tmp_path: Path) -> None:
    c = ObjectCache(tmp_path, limit_bytes=5000)
    keys = [cache_key(str(k)) for k in range(10)]
    for age, k in enumerate(keys):
        c.put(k, bytes(1000))
        then = time.time() - 10_000 * (10 - age)
        os.utime(tmp_path / (k + ".o"), (then, then))
    old = tmp_path / "dead.tmp"
    old.write_bytes(b"x")
    os.utime(old, (1, 1))
    assert c.get(keys[0]) is not None  # used now
    c.prune()
    assert not old.exists()
    assert [k for k in keys if c.get(k) is not None] == [keys[0], keys[8], keys[9]]


RACE = """
import sys
from pathlib import Path
from tilewright.backends.cache import ObjectCache, cache_key
cache = ObjectCache(Path(sys.argv[1]), limit_bytes=200_000)
for round in range(40):
    for k in range(8):
        key = cache_key(str(k))
        expected = bytes([k]) * 9000
        found = cache.get(key)
        assert found is None or found == expected
        cache.put(key, expected)
    cache.prune()
assert cache._writable
"""


def test_eight_processes(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)]) for _ in range(8)]
    assert [p.wait(120) for p in running] == [0] * 8
    c = ObjectCache(tmp_path)
    assert all(c.get(cache_key(str(k))) == bytes([k]) * 9000 for k in range(8))
    assert not list(tmp_path.glob("*.tmp"))
