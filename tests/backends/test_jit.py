"""Compile, link, load and run handwritten kernels; the parallel build and its failures."""
from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.backends.kernels import binary_f32, table_f32
from tilewright.backends.cache import ObjectCache
from tilewright.backends.llvm import jit
from tilewright.backends.llvm.entry import CTX_FIELDS, emit_entry
from tilewright.backends.llvm.jit import Job, assembly, build, compile_ir, load, optimised_ir
from tilewright.backends.plan import KernelCall, Plan, Slot
from tilewright.backends.target import Target
from tilewright.errors import TargetError
from tilewright.ir.types import F32, I64, TensorType

HOST = Target.host()
NOWHERE = ObjectCache(None)
RUN = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 5)


def pointers(arrays: list[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays))


def run(library: jit.Library, inputs: list[np.ndarray], outputs: list[np.ndarray], weights: list[np.ndarray], arena_bytes: int) -> int:
    ctx = (ctypes.c_int64 * CTX_FIELDS)()
    arena = np.zeros(arena_bytes, np.uint8)
    return RUN(library.address("tw_run"))(pointers(inputs), pointers(outputs), pointers(weights), arena.ctypes.data, ctypes.addressof(ctx))


def test_plan_runs() -> None:
    t = TensorType(F32, (5,))
    table = Slot("arena", 0, 64)
    plan = Plan((("x", t), ("k", TensorType(I64, (5,)))), (("y", t),), (("w", t),), 256, (
        KernelCall("k_table", (Slot("input", 1), table), 1, Slot("arena", 0, 0)),
        KernelCall("k_add", (Slot("input", 0), table, Slot("arena", 0, 128))),
        KernelCall("k_twice", (Slot("arena", 0, 128), Slot("arena", 0, 128), Slot("arena", 0, 192))),
        KernelCall("k_mul", (Slot("arena", 0, 192), Slot("weight", 0), Slot("output", 0)))))
    texts = {"k_table": table_f32("k_table", 5), "k_add": binary_f32("k_add", 5), "k_twice": binary_f32("k_twice", 5),
             "k_mul": binary_f32("k_mul", 5, "fmul"), "tw_run": emit_entry(plan)}
    library = load([compile_ir(x, HOST) for x in texts.values()], ["tw_run"], HOST)
    x, w = np.arange(5, dtype=np.float32), np.full(5, 3, np.float32)
    k, y = np.array([0, 1, 2, 3, 3]), np.zeros(5, np.float32)
    assert run(library, [x, k], [y], [w], 256) == 0
    np.testing.assert_array_equal(y, (x + np.array([1.5, 2.5, 3.5, 4.5, 4.5], np.float32)) * 2 * 3)
    for bad in (4, -1):
        assert run(library, [x, np.array([0, 1, 2, 3, bad])], [y], [w], 256) == 1


def test_texts() -> None:
    assert "fadd" in optimised_ir(binary_f32("k", 8), HOST)
    assert "fadd" in assembly(binary_f32("k", 8), Target.parse("aarch64"))
    with pytest.raises(AssertionError, match=r"LLVM refused.*"):
        compile_ir("define void @k() { ret i32 0 }", HOST)
    with pytest.raises(TargetError, match=r"aarch64 processor"):
        load([], [], Target.parse("aarch64"))


def test_build_uses_the_cache(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    jobs = [Job.of(s, binary_f32(s, 8)) for s in ("a", "b", "a")]
    first = build(jobs, HOST, cache)
    assert first[0] == first[2] != first[1] and len(list(tmp_path.glob("*.o"))) == 2

    def never() -> str:
        raise AssertionError("the text of a cached job is not needed")
    assert build([Job(j.symbol, j.key, never) for j in jobs], HOST, cache) == first
    with pytest.raises(AssertionError, match=r"not needed"):
        build([Job("a", jobs[0].key, never)], Target.parse("aarch64"), cache)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_parallel_build(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(jit, "_PARALLEL_CHARS", 0)
    jobs = [Job.of(f"k{n}", binary_f32(f"k{n}", n)) for n in range(1, 12)]
    expected = [compile_ir(j.text(), HOST) for j in jobs]
    assert build(jobs, HOST, NOWHERE, workers) == expected


@pytest.mark.parametrize("how", ["killed", "exits", "absent", "garbage"])
def test_worker_that_dies(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(args: list[str], **options: object) -> subprocess.Popen[bytes]:
        if how == "absent":
            raise FileNotFoundError(args[0])
        if how != "killed":
            args = [sys.executable, "-c", {"exits": "raise SystemExit(3)", "garbage": "print('x' * 5)"}[how]]
        p = real(args, **options)  # pyright: ignore
        started.append(p)
        if how == "killed":
            os.kill(p.pid, signal.SIGKILL)
        return p
    monkeypatch.setattr(jit, "_PARALLEL_CHARS", 0)
    monkeypatch.setattr(jit.subprocess, "Popen", start)
    jobs = [Job.of(f"k{n}", binary_f32(f"k{n}", n)) for n in range(1, 6)]
    assert build(jobs, HOST, NOWHERE, 3) == [compile_ir(j.text(), HOST) for j in jobs]
    assert all(p.returncode is not None for p in started)


def test_ir_that_llvm_refuses_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_PARALLEL_CHARS", 0)
    jobs = [Job.of(f"k{n}", f"define void @k{n}() {{ ret i32 0 }}") for n in range(4)]
    with pytest.raises(AssertionError, match=r"LLVM refused"):
        build(jobs, HOST, NOWHERE, 2)


def test_libraries_are_distinct_and_unloaded() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:tilewright")
    gc.collect()
    before, kept = mapped(), []
    for n in range(40):
        library = load([compile_ir(binary_f32("k", 1, "fadd" if n % 2 else "fmul"), HOST)], ["k"], HOST)
        if n % 3 == 0:
            kept.append((n, library))
        x, y = np.array([3], np.float32), np.zeros(1, np.float32)
        call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(library.address("k"))
        call(x.ctypes.data, x.ctypes.data, y.ctypes.data, None, 0, 1, None)
        assert y[0] == (6 if n % 2 else 9)
    assert mapped() > before
    kept.clear()
    del library
    assert mapped() == before


def _refuse(*_: object) -> int:
    raise PermissionError(1, "not here")


def test_system_without_anonymous_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jit.tempfile, "tempdir", str(tmp_path))
    code = [compile_ir(binary_f32("k", 1), HOST)]
    with monkeypatch.context() as m:
        m.setattr(jit.os, "memfd_create", _refuse)
        assert load(code, ["k"], HOST).address("k")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(jit, "_open_library", _refuse)
    with pytest.raises(TargetError, match=r"does not let compiled code be loaded.*not here"):
        load(code, ["k"], HOST)
    assert not list(tmp_path.iterdir())


def test_no_growth_when_dropped() -> None:
    code = [compile_ir(binary_f32("k", 1), HOST)]

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])
    gc.disable()
    try:
        for n in range(1200):
            assert load(code, ["k"], HOST).address("k")
            if n == 200:
                before = pages()
        assert pages() - before < 200, "pages for 1000 libraries"
    finally:
        gc.enable()
