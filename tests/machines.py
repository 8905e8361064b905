"""Running compiled code on other machines: many calls in one static C program, under qemu where the processor differs.

Inputs come through stdin and outputs go to stdout, so that one process serves hundreds of kernels. All buffers are
aligned to their elements and no further, which is all that generated code may assume.
"""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tilewright.backends.executable import Executable
from tilewright.backends.target import Target, runs_here
from tilewright.ir.types import TensorSpec

GCC = {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc"}
LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")
LONG = bool(os.environ.get("TILEWRIGHT_LONG"))

MAIN = r"""#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static char *make(size_t n, size_t unit) { char *p = aligned_alloc(64, (n + 191) / 64 * 64); memset(p, 0x77, n + unit); return p + unit; }
static void *get(size_t n, size_t unit) { char *p = make(n, unit); if (n && fread(p, 1, n, stdin) != n) exit(99); return p; }
static void *room(size_t n, size_t unit) { return make(n, unit); }
static void put(const void *p, size_t n) { if (n && fwrite(p, 1, n, stdout) != n) exit(98); }
%s
int main(void) {
%s
  return 0;
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


@cache
def targets() -> tuple[Target, ...]:
    """This machine and the x86 levels below it."""
    return tuple(t for t in map(Target.parse, ("native", *LEVELS)) if runs_here(t))


@dataclass(frozen=True)
class CCall:
    """One C function to call: its name, arguments' arrays, outputs to make, and what follows the pointers."""

    name: str
    inputs: Sequence[np.ndarray]
    outputs: Sequence[tuple[tuple[int, ...], np.dtype]]
    workspace: int
    kernel: int | None = None  # trips of a bare kernel; None: an exported model

    def source(self) -> tuple[str, str]:
        """(declaration, statements)."""
        n = len(self.inputs) + len(self.outputs)
        lines = [f"    void *i{k} = get({a.nbytes}, {a.itemsize});" for k, a in enumerate(self.inputs)]
        sizes = [(int(np.prod(s)) * d.itemsize, d.itemsize) for s, d in self.outputs]
        lines += [f"    void *o{k} = room({size}, {unit});" for k, (size, unit) in enumerate(sizes)]
        args = [f"i{k}" for k in range(len(self.inputs))] + [f"o{k}" for k in range(len(self.outputs))]
        lines.append(f"    void *w = room({self.workspace + 64}, {64 if self.kernel is not None else 1});")
        if self.kernel is None:
            kind, more = "int", ""
            lines.append(f"    if ({self.name}({', '.join([*args, 'w'])})) return 1;")
        else:
            kind, more = "void", ", int64_t, int64_t, void *"
            first = self.kernel // 3
            lines.append("    int64_t flag[8] = {0};")
            parts = [(a, b) for a, b in ((first, self.kernel), (0, first)) if a < b]
            lines += [f"    {self.name}({', '.join([*args, 'w'])}, {a}, {b}, flag);" for a, b in parts]
            lines.append("    if (flag[0]) return 1;")
        lines += [f"    put(o{k}, {size});" for k, (size, _) in enumerate(sizes)]
        body = "\n".join(lines)
        return f"{kind} {self.name}({', '.join(['void *'] * (n + 1))}{more});", "  {\n" + body + "\n  }"


def run_calls(calls: Sequence[CCall], objects: Sequence[bytes | Path], target: Target, folder: Path) -> list[list[np.ndarray]]:
    """The outputs of each call."""
    native = runs_here(target)
    compiler, runner = need(GCC[target.arch]), [] if native else [need(f"qemu-{target.arch}")]
    parts = [c.source() for c in calls]
    (folder / "main.c").write_text(MAIN % ("\n".join(d for d, _ in parts), "\n".join(s for _, s in parts)))
    files = []
    for k, o in enumerate(objects):
        files.append(str(o) if isinstance(o, Path) else f"part{k}.o")
        if isinstance(o, bytes):
            (folder / f"part{k}.o").write_bytes(o)
    subprocess.run([compiler, "-static", "-O0", "-o", "all", "main.c", *files], cwd=folder, check=True)
    data = b"".join(np.ascontiguousarray(a).tobytes() for c in calls for a in c.inputs)
    done = subprocess.run([*runner, "./all"], cwd=folder, input=data, stdout=subprocess.PIPE, check=True).stdout
    results, at = [], 0
    for c in calls:
        row = []
        for shape, d in c.outputs:
            size = int(np.prod(shape)) * d.itemsize
            row.append(np.frombuffer(done[at:at + size], d).reshape(shape))
            at += size
        results.append(row)
    assert at == len(done)
    return results


def run_models(models: Sequence[tuple[str, Executable, Sequence[np.ndarray]]], target: Target, folder: Path) -> list[list[np.ndarray]]:
    """The outputs of compiled models (C identifier, executable for `target`, inputs), exported and linked into one program."""
    calls, files = [], []
    for name, exe, inputs in models:
        path = folder / f"{name}.o"
        exe.export(path, header=False)
        files.append(path)
        outs = [(tuple(int(n) for n in o.shape), o.dtype) for o in exe.outputs if isinstance(o, TensorSpec)]
        calls.append(CCall(f"{name}_run", inputs, outs, exe.instances()[0].plan.arena_bytes + 64))
    return run_calls(calls, files, target, folder)
