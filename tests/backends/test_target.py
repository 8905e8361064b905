"""Targets: names, features, what the host tells, and the errors."""
from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.backends.target import Target, known_targets, runs_here, usable_cores
from tilewright.errors import TargetError


@pytest.mark.parametrize(("name", "bytes_", "registers", "fma", "masks"), [
    ("x86-64", 16, 16, False, False), ("x86-64-v2", 16, 16, False, False), ("x86-64-v3", 32, 16, True, False),
    ("x86-64-v4", 64, 32, True, True), ("x86-64-v3+avx512f", 64, 32, True, True), ("x86-64+avx512vnni", 64, 32, True, True),
    ("aarch64", 16, 32, True, False), ("aarch64+neon+dotprod", 16, 32, True, False)])
def test_parse(name: str, bytes_: int, registers: int, fma: bool, masks: bool) -> None:
    t = Target.parse(name)
    assert (t.vector_bytes, t.vector_registers, t.has_fma, t.has_masks) == (bytes_, registers, fma, masks)
    assert Target.parse(str(t)) == t
    assert Target.from_json(t.to_json()) == t


def test_features_follow() -> None:
    assert Target.parse("aarch64+dotprod").has("dotprod") and not Target.parse("aarch64").has("dotprod")
    assert Target.parse("x86-64+avx2").has("sse4.2") and not Target.parse("x86-64+avx2").has_fma


@pytest.mark.parametrize("name", ["", "pentium", "native+avx2", "x86-64-v9"])
def test_unknown_target_lists_the_known(name: str) -> None:
    with pytest.raises(TargetError, match=r"x86-64-v3.*aarch64"):
        Target.parse(name)


def test_unknown_feature_lists_the_known() -> None:
    with pytest.raises(TargetError, match=r"'neon' in target .*avx512f"):
        Target.parse("x86-64-v3+neon")


def test_host() -> None:
    host = Target.host()
    assert Target.parse("native") == host == Target.parse(str(host))
    assert host.cores >= 1 and host.vector_bytes >= 16 and min(host.l1d, host.l2, host.l3) >= 0
    assert runs_here(host)
    assert runs_here(Target.parse("x86-64" if host.arch == "x86_64" else "aarch64"))
    assert not runs_here(Target.parse("aarch64" if host.arch == "x86_64" else "x86-64"))
    assert not runs_here(Target.parse("x86-64-v4+amx-int8+avx512fp16")) or host.has("amx-int8")
    assert "native" in known_targets()


@pytest.mark.parametrize("data", [None, [], {}, {"name": 1}, {**Target.parse("x86-64").to_json(), "cores": True}])
def test_from_json_refuses_anything_else(data: object) -> None:
    with pytest.raises(TargetError):
        Target.from_json(data)


def test_cgroup_quota_limits_cores(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path, own) == 1
    (tmp_path / "a" / "cpu.max").write_text("garbage\n")
    assert usable_cores(tmp_path, own) == usable_cores(tmp_path / "absent", tmp_path / "absent")
    v1 = tmp_path / "cpu,cpuacct"
    v1.mkdir()
    own.write_text("4:cpu,cpuacct:/\n")
    (v1 / "cpu.cfs_quota_us").write_text("100000")
    (v1 / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path, own) == 1
