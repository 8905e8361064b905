"""Exported files, used as a C programmer would: linked, loaded, called; on AArch64 under qemu."""
from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.backends.kernels import binary_f32
from tests.backends.models import arguments, executable, expected
from tilewright.backends.executable import Executable
from tilewright.backends.instance import Instance
from tilewright.backends.llvm.elf import ElfError, combine, relocatable
from tilewright.backends.llvm.entry import emit_entry
from tilewright.backends.llvm.export import c_type, identifier
from tilewright.backends.llvm.jit import compile_ir
from tilewright.backends.llvm.linker import shared_library
from tilewright.backends.plan import KernelCall, Plan, Slot
from tilewright.backends.saved import load
from tilewright.backends.target import Target
from tilewright.errors import InputError
from tilewright.ir.types import BF16, BOOL, F32, U16, TensorSpec, TensorType

N = 300
HOST = Target.host()
X, K = arguments(N)
GCC = {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc"}

MAIN = r"""
#include "net.h"
#include <stdio.h>
#include <stdlib.h>
int main(void) {
  static float x[%(n)d], y[%(n)d];
  static int64_t k[%(n)d];
  for (int i = 0; i < %(n)d; i++) { x[i] = (float)i - 2; k[i] = i %% 4; }
  char *workspace = malloc(net_workspace_bytes() + 1);
  if (net_run(x, k, y, NULL) != 2) return 3;
  if (net_run(x, k, y, workspace + 1) != 0) return 4;
  for (int i = 0; i < %(n)d; i++) printf("%%a\n", y[i]);
  k[5] = 4;
  return net_run(x, k, y, workspace) == 1 ? 0 : 5;
}
"""


def need(program: str) -> str:
    """The program's path. Where it is missing, tests are skipped with the reason; in CI they fail."""
    found = shutil.which(program)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed, and CI needs it")
        pytest.skip(f"{program} is not installed")
    return found


def run_c(folder: Path, arch: str, *files: str) -> np.ndarray:
    (folder / "main.c").write_text(MAIN % {"n": N})
    compiler = "gcc" if arch == HOST.arch else GCC[arch]
    command = [need(compiler), "-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c11", "main.c", *files, "-o", "main"]
    subprocess.run([*command, *(["-static"] if arch != HOST.arch else [])], cwd=folder, check=True)
    start = [] if arch == HOST.arch else [need(f"qemu-{arch}")]
    env = {**os.environ, "LD_LIBRARY_PATH": "."}
    done = subprocess.run([*start, "./main"], cwd=folder, check=True, capture_output=True, text=True, env=env)
    return np.array([float.fromhex(v) for v in done.stdout.split()], np.float32)


@pytest.mark.parametrize("suffix", [".o", ".a", ".so"])
def test_c_program(tmp_path: Path, suffix: str) -> None:
    executable(N).export(tmp_path / f"net{suffix}")
    np.testing.assert_array_equal(run_c(tmp_path, HOST.arch, f"net{suffix}"), expected(X, K))


@pytest.mark.parametrize("target", ["aarch64", "aarch64+dotprod", "x86-64"])
@pytest.mark.parametrize("suffix", [".o", ".a"])
def test_c_program_for_another_machine(tmp_path: Path, target: str, suffix: str) -> None:
    t = Target.parse(target)
    executable(N, t).export(tmp_path / f"net{suffix}")
    np.testing.assert_array_equal(run_c(tmp_path, t.arch, f"net{suffix}"), expected(X, K))


def test_aarch64_shared_library(tmp_path: Path) -> None:
    executable(N, Target.parse("aarch64")).export(tmp_path / "net.so")
    (tmp_path / "main.c").write_text(MAIN % {"n": N})
    subprocess.run([need(GCC["aarch64"]), "main.c", "net.so", "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run([need("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", "-E", f"LD_LIBRARY_PATH={tmp_path}", "./main"],
                          cwd=tmp_path, check=True, capture_output=True, text=True)
    got = np.array([float.fromhex(v) for v in done.stdout.split()], np.float32)
    np.testing.assert_array_equal(got, expected(X, K))


@pytest.mark.parametrize("saved", [False, True])
def test_shared_library_without_a_toolchain(tmp_path: Path, saved: bool) -> None:
    exe = executable(N)
    if saved:
        exe.save(tmp_path / "net.twx")
        exe = load(tmp_path / "net.twx")
        (tmp_path / "net.twx").unlink()
    exe.update_weights({"w": np.arange(N, dtype=np.float32)})
    exe.export(tmp_path / "net.so", header=False)
    assert [p.name for p in tmp_path.iterdir()] == ["net.so"]
    library = ctypes.CDLL(str(tmp_path / "net.so"))
    library.net_workspace_bytes.restype = ctypes.c_size_t
    work, y = np.zeros(library.net_workspace_bytes(), np.uint8), np.zeros(N, np.float32)
    assert library.net_run(*(ctypes.c_void_p(a.ctypes.data) for a in (X, K, y, work))) == 0
    np.testing.assert_array_equal(y, expected(X, K, np.arange(N)))


@pytest.mark.parametrize("target", ["native", "aarch64"])
@pytest.mark.parametrize("suffix", [".o", ".so"])
def test_only_two_symbols_are_visible(tmp_path: Path, target: str, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    executable(N, Target.parse(target)).export(path)
    done = subprocess.run([need("readelf"), "-aW", str(path)], check=True, capture_output=True, text=True)
    assert "Warning" not in done.stderr and "Error" not in done.stderr
    visible = {line.split()[-1] for line in done.stdout.splitlines() if " GLOBAL " in line and " UND " not in line}
    assert visible == {"net_run", "net_workspace_bytes"}
    assert "GNU_STACK      0x000000 0x0000000000000000 0x0000000000000000 0x000000 0x000000 RW " in done.stdout or suffix == ".o"


def test_two_models_link_into_one_program(tmp_path: Path) -> None:
    for name in ("one", "two"):
        executable(N).export(tmp_path / f"{name}.o")
    (tmp_path / "main.c").write_text('#include "one.h"\n#include "two.h"\nint main(void) { return !(one_workspace_bytes() == '
                                     "two_workspace_bytes() && one_run != two_run); }\n")
    subprocess.run([need("gcc"), "main.c", "one.o", "two.o", "-o", "main"], cwd=tmp_path, check=True)
    subprocess.run(["./main"], cwd=tmp_path, check=True)


def test_texts(tmp_path: Path) -> None:
    exe = executable(N, Target.parse("aarch64"))
    exe.export(tmp_path / "net.ll")
    exe.export(tmp_path / "net.s")
    assert "define i32 @net_run" in (tmp_path / "net.ll").read_text() and "fmul" in (tmp_path / "net.s").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.ll", "net.s"]


def test_header(tmp_path: Path) -> None:
    executable(N).export(tmp_path / "1-net.int.o")
    text = (tmp_path / "1-net.int.h").read_text()
    assert "int m1_net_int_run(const float *x, const int64_t *k, float *y, void *workspace);" in text
    assert [c_type(t) for t in (BF16, BOOL, U16)] == ["uint16_t", "uint8_t", "uint16_t"]
    taken = {"int"}
    assert [identifier(n, taken) for n in ("int", "a/b", "a.b", "_x", "9", "")] == ["int_1", "a_b", "a_b_1", "m_x", "m9", "x"]


@pytest.mark.parametrize("name", ["net.exe", "net", "net.wasm"])
def test_other_suffixes(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"suffix must be one of .o, .a, .so, .ll, .s"):
        executable(N).export(tmp_path / name)


def test_no_weights_and_no_workspace(tmp_path: Path) -> None:
    t = TensorType(F32, (4,))
    plan = Plan((("a", t), ("b", t)), (("y", t),), (), 0, (KernelCall("k", (Slot("input"), Slot("input", 1), Slot("output"))),))
    i = Instance(plan, [compile_ir(binary_f32("k", 4), HOST), compile_ir(emit_entry(plan), HOST)], HOST)
    specs = [TensorSpec(n, (4,), np.dtype(np.float32)) for n in "aby"]
    Executable(specs[:2], specs[2:], i, HOST, "net").export(tmp_path / "net.so")
    library = ctypes.CDLL(str(tmp_path / "net.so"))
    a, y = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    assert library.net_run(*(ctypes.c_void_p(v.ctypes.data) for v in (a, a, y)), None) == 0
    np.testing.assert_array_equal(y, a + a)


def test_objects_that_cannot_be_linked() -> None:
    one = compile_ir(binary_f32("k", 4), HOST)
    for bad in (b"", b"x" * 100, one[:80], one[:-30], b"\x7fELF" + bytes(100)):
        with pytest.raises(ElfError):
            combine([bad])
    with pytest.raises(ElfError, match=r"k is defined twice"):
        combine([one, one])
    with pytest.raises(ElfError, match=r"different machines"):
        combine([one, compile_ir(binary_f32("j", 4), Target.parse("aarch64" if HOST.arch == "x86_64" else "x86-64"))])
    with pytest.raises(ElfError, match=r"not defined: z"):
        relocatable(combine([one]), ["z"])
    calls = compile_ir("declare void @far(ptr)\ndefine void @k(ptr %p) { call void @far(ptr %p)\n ret void }", HOST)
    with pytest.raises(ElfError, match=r"undefined symbols: far"):
        shared_library(combine([calls]), ["k"], "x.so")


GOT = """
@counter = global i64 5
@where = global ptr @counter
@far = external global i64
define i64 @tw_read() {
  %a = load i64, ptr @counter
  %p = load ptr, ptr @where
  %b = load i64, ptr %p
  %c = add i64 %a, %b
  %d = load i64, ptr @zeros
  %e = add i64 %c, %d
  store i64 %e, ptr @zeros
  ret i64 %e
}
@zeros = internal global [100 x i64] zeroinitializer
"""


def test_data_bss_and_got(tmp_path: Path) -> None:
    """Data that objects refer to through the GOT, a pointer in data, zeroed memory: not what kernels use, but what LLVM may emit."""
    path = tmp_path / "data.so"
    path.write_bytes(b"".join(shared_library(combine([compile_ir(GOT, HOST)]), ["tw_read", "counter"], "data.so")))
    library = ctypes.CDLL(str(path))
    library.tw_read.restype = ctypes.c_int64
    assert [library.tw_read() for _ in range(3)] == [10, 20, 30]
    ctypes.c_int64.in_dll(library, "counter").value = 1
    assert library.tw_read() == 32


@pytest.mark.parametrize("suffix", ["so", "o"])
def test_data_bss_and_got_on_aarch64(tmp_path: Path, suffix: str) -> None:
    image = combine([compile_ir(GOT, Target.parse("aarch64"))])
    chunks = shared_library(image, ["tw_read"], "data.so") if suffix == "so" else relocatable(image, ["tw_read"])
    (tmp_path / f"data.{suffix}").write_bytes(b"".join(chunks))
    (tmp_path / "main.c").write_text("long tw_read(void);\nint main(void) { tw_read(); tw_read(); return tw_read() != 30; }\n")
    subprocess.run([need(GCC["aarch64"]), "main.c", f"data.{suffix}", "-o", "main"], cwd=tmp_path, check=True)
    command = [need("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", "-E", f"LD_LIBRARY_PATH={tmp_path}", "./main"]
    subprocess.run(command, cwd=tmp_path, check=True)
