"""Every scalar function on AArch64: one static program of all kernels, run under qemu-aarch64."""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.backends.scalar_kernels import Kernel, object_code
from tests.backends.test_scalar import ULP, check_as_numpy, check_ulps, dtypes_of, operands, result_of
from tilewright.ir.functions import FUNCTIONS
from tilewright.ir.types import F32, F64

TARGET = "aarch64+neon"
NEEDED = ("aarch64-linux-gnu-gcc", "qemu-aarch64")
MISSING = [p for p in NEEDED if not shutil.which(p)]

MAIN = """#include <stdio.h>
#include <stdlib.h>
%(declarations)s
static struct { void (*f)(void *, void *, void *, void *, long); int arity; int size[3]; int out; long n; long lanes; } all[] = {
%(table)s
};
int main(void) {
  for (unsigned k = 0; k < sizeof all / sizeof *all; k++) {
    void *p[3] = {0, 0, 0}, *out = malloc(all[k].n * all[k].out);
    for (int j = 0; j < all[k].arity; j++) {
      p[j] = malloc(all[k].n * all[k].size[j]);
      if (fread(p[j], all[k].size[j], all[k].n, stdin) != (size_t)all[k].n) return 1;
    }
    all[k].f(p[0], p[1], p[2], out, all[k].n / all[k].lanes);
    fwrite(out, all[k].out, all[k].n, stdout);
  }
  return 0;
}
"""


def run_all(kernels: list[Kernel], inputs: list[list[np.ndarray]], folder: Path) -> list[np.ndarray]:
    """The outputs of the kernels; inputs go through stdin, outputs come through stdout."""
    rows = []
    for k, xs in zip(kernels, inputs, strict=True):
        sizes = ", ".join(str(x.itemsize) for x in xs)
        rows.append(f"  {{{k.name}, {k.arity}, {{{sizes}}}, {k.result.bytes}, {xs[0].size}, {max(k.lanes, 1)}}},")
    declarations = "\n".join(f"void {k.name}(void *, void *, void *, void *, long);" for k in kernels)
    (folder / "main.c").write_text(MAIN % {"declarations": declarations, "table": "\n".join(rows)})
    (folder / "kernels.o").write_bytes(object_code(kernels, TARGET))
    subprocess.run([NEEDED[0], "-static", "-O1", "-o", "all", "main.c", "kernels.o"], cwd=folder, check=True)
    data = b"".join(x.tobytes() for xs in inputs for x in xs)
    out = subprocess.run([NEEDED[1], "./all"], cwd=folder, input=data, stdout=subprocess.PIPE, check=True).stdout
    results, at = [], 0
    for k, xs in zip(kernels, inputs, strict=True):
        size = xs[0].size * k.result.bytes
        results.append(np.frombuffer(out[at:at + size], k.result.numpy))
        at += size
    assert at == len(out)
    return results


@pytest.fixture(autouse=True)
def tools() -> None:
    if MISSING:
        assert not os.environ.get("CI"), f"CI must have {MISSING}"
        pytest.skip(f"not installed: {', '.join(MISSING)}")


def test_every_dtype_as_numpy(tmp_path: Path) -> None:
    kernels = [Kernel(fn, d, result_of(fn, d), lanes, f.arity) for fn, f in FUNCTIONS.items() for d in dtypes_of(fn)
               for lanes in ((5,) if fn == "pow" else (0, 5))]
    inputs = [operands(k.fn, k, 200) for k in kernels]
    for k, xs, got in zip(kernels, inputs, run_all(kernels, inputs, tmp_path), strict=True):
        check_as_numpy(k, xs, got)


def test_error_in_ulps(tmp_path: Path) -> None:
    kernels = [Kernel(fn, d, d, 4 if d is F32 else 2, FUNCTIONS[fn].arity) for fn in ULP for d in (F32, F64)]
    inputs = [operands(k.fn, k, 8000) for k in kernels]
    for k, xs, got in zip(kernels, inputs, run_all(kernels, inputs, tmp_path), strict=True):
        check_ulps(k, xs, got, ULP[k.fn][k.dtype is F64])
