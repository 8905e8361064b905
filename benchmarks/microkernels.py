"""The compiler's single-precision matmul microkernels beside the multiply-add peak of the same core, in one run.

    python -m benchmarks.microkernels                      # every instruction set that runs here
    python -m benchmarks.microkernels --target native --all --need 0.9

A microkernel computes one register tile y[MR,NR] = x[MR,K] @ w[K,NR] from operands that stay in the first-level cache: w
packed and 64-byte aligned as the runtime aligns weights, x in rows of its own. It is made the way every kernel is, from a
tensor program through its schedule and the emitter to loaded code, and called in a loop of machine code, so that a round
is what a tile costs inside a kernel: call, accumulators cleared, K steps, tile stored. The clock drifts; so kernels and
peak take turns, and each counts with its best round.

`*` marks the tiles that the default schedule chooses for the layers in LAYERS; --need is asked of those.
"""
from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.peak import f32_peak
from tilewright.backends.cache import ObjectCache
from tilewright.backends.llvm.emit import emit_kernel
from tilewright.backends.llvm.jit import Job, Library, build, load
from tilewright.backends.memory import aligned
from tilewright.backends.target import Target, runs_here
from tilewright.compiler.schedule.contraction import Tile, choose_tile, find_roles, schedule_contraction
from tilewright.ir.expr import Axis, Buffer, Reduce, Var
from tilewright.ir.program import Compute, Program
from tilewright.ir.types import F32

TARGETS = ("native", "x86-64-v4", "x86-64-v3", "x86-64", "aarch64")
LAYERS = (  # (M, K, N): 1x1 convolutions of ResNet-50 as pixels x channels, layers of BERT, VGG-19 and a batched classifier
    (3136, 64, 64), (3136, 64, 256), (784, 512, 128), (784, 128, 512), (196, 1024, 256), (196, 256, 1024), (49, 2048, 512), (49, 512, 2048),
    (128, 384, 384), (128, 384, 1536), (128, 1536, 384), (16, 384, 384), (512, 768, 3072), (32, 4096, 1000), (64, 1024, 1024))
ROUND_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Kernel:
    """One microkernel's loop: `run(x, w, y, n)` computes the tile n times. `operands` are kept alive."""

    tile: Tile
    k: int
    lanes: int
    run: Callable[[int, int, int, int], None]
    addresses: tuple[int, int, int]
    operands: tuple[np.ndarray, ...]
    library: Library
    chosen: bool

    @property
    def flops(self) -> int:
        return 2 * self.tile.columns * self.tile.vectors * self.lanes * self.k

    @property
    def name(self) -> str:
        return f"{self.tile.columns}x{self.tile.vectors * self.lanes}"

    def rate(self, count: float) -> float:
        """GFLOP/s over about `count` operations."""
        n = max(1, round(count / self.flops))
        begin = time.perf_counter()
        self.run(*self.addresses, n)
        return n * self.flops / (time.perf_counter() - begin) / 1e9


def matmul(m: int, k: int, n: int) -> Program:
    """y[m,n] = x[m,k] @ w[k,n] as the compiler lowers it."""
    x, w, y = Buffer("x0", F32, (m, k)), Buffer("x1", F32, (k, n)), Buffer("y0", F32, (m, n))
    i, j, r = Axis("i0", m), Axis("i1", n), Axis("r0", k)
    return Program("matmul", (x, w), (y,), (Compute(y, (i, j), Reduce("sum", (r,), x[Var(i), Var(r)] * w[Var(r), Var(j)])),))


def chosen_tiles(target: Target) -> dict[Tile, list[tuple[int, int, int]]]:
    """The register tiles that default schedules of LAYERS run most of the time in, each with its layers."""
    out: dict[Tile, list[tuple[int, int, int]]] = {}
    for layer in LAYERS:
        roles = find_roles(matmul(*layer).computes[0], frozenset({"x1"}))
        assert roles is not None
        t = choose_tile(roles, target.vector_bytes // 4, target)
        blocks = -(-layer[0] // t.columns)  # blocks differ by at most one row: the larger ones come first
        out.setdefault(Tile(1, -(-layer[0] // blocks), t.vectors), []).append(layer)
    return out


def all_tiles(target: Target) -> Iterator[Tile]:
    """Every register tile that fits the target's registers and hides the latency of its multiply-adds."""
    spare, busy = (1, 8) if target.has_fma else (2, 4)
    for vectors in range(1, 7):
        most = (target.vector_registers - spare - vectors) // vectors
        yield from (Tile(1, c, vectors) for c in range(-(-busy // vectors), most + 1))


def depth(tile: Tile, lanes: int, target: Target) -> int:
    """Steps K, a multiple of 16, with which x, w and y together fill no more than 5/8 of the first-level cache."""
    n = tile.vectors * lanes
    k = (target.l1d * 5 // 8 // 4 - tile.columns * n) // (tile.columns + n)
    return max(16, min(256, k // 16 * 16))


def make(target: Target, tiles: dict[Tile, bool]) -> list[Kernel]:
    """Compiles all kernels of a target; tile -> whether the default schedule chooses it."""
    lanes = target.vector_bytes // 4
    scheduled = []
    for t in tiles:
        k = depth(t, lanes, target)
        s = schedule_contraction(matmul(t.columns, k, t.vectors * lanes), target, frozenset({"x1"}), t)
        assert s is not None
        scheduled.append((t, k, s))
    texts = [text for i, (_, _, s) in enumerate(scheduled) for text in (emit_kernel(s, target, f"k{i}"), _loop(i, target))]
    library = load(build([Job.of(f"m{i}", t) for i, t in enumerate(texts)], target, ObjectCache.default()),
                   [f"loop{i}" for i in range(len(scheduled))], target)
    rng = np.random.default_rng(0)
    out = []
    for i, (t, k, _) in enumerate(scheduled):
        x, w, y = (_operand(rng, shape) for shape in ((t.columns, k), (k, t.vectors * lanes), (t.columns, t.vectors * lanes)))
        run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)(library.address(f"loop{i}"))
        out.append(Kernel(t, k, lanes, run, (x.ctypes.data, w.ctypes.data, y.ctypes.data), (x, w, y), library, tiles[t]))
        run(*out[-1].addresses, 1)
        np.testing.assert_allclose(y, x.astype(np.float64) @ w, rtol=1e-4, atol=1e-4)
    return out


def _operand(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    a = aligned(4 * shape[0] * shape[1]).view(np.float32).reshape(shape)
    a[...] = rng.standard_normal(shape)
    return a


def _loop(i: int, target: Target) -> str:
    """for n: k(x, w, y), with the arguments of a kernel of one part and no workspace."""
    return f"""target triple = "{target.triple}"
declare void @k{i}(ptr, ptr, ptr, ptr, i64, i64, ptr)
define void @loop{i}(ptr %x, ptr %w, ptr %y, i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void @k{i}(ptr %x, ptr %w, ptr %y, ptr null, i64 0, i64 1, ptr null)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}"""


def measure(target: Target, kernels: list[Kernel], rounds: int) -> tuple[float, list[float]]:
    """Best GFLOP/s of the peak loop and of each kernel, by turns: the peak has one before every kernel's."""
    peak, best = f32_peak(target), [0.0] * len(kernels)
    top = peak.gflops()
    count = top * 1e9 * ROUND_SECONDS
    for _ in range(rounds):
        for i, k in enumerate(kernels):
            n = max(1, round(count / peak.flops))
            begin = time.perf_counter()
            peak.run(n)
            top = max(top, n * peak.flops / (time.perf_counter() - begin) / 1e9)
            best[i] = max(best[i], k.rate(count))
    return top, best


def report(target: Target, everything: bool, rounds: int) -> float:
    """Prints the table of a target; returns the smallest share of the peak among the chosen kernels."""
    chosen = chosen_tiles(target)
    tiles = dict.fromkeys(chosen, True)
    if everything:
        tiles |= {t: False for t in all_tiles(target) if t not in tiles}
    kernels = make(target, dict(sorted(tiles.items(), key=lambda x: (x[0].vectors, x[0].columns))))
    peak, rates = measure(target, kernels, rounds)
    print(f"\n{target} ({8 * target.vector_bytes}-bit vectors, {target.vector_registers} registers): peak {peak:.1f} GFLOP/s")
    print("  tile      K   GFLOP/s  of peak   default for (M, K, N)")
    for k, r in zip(kernels, rates, strict=True):
        layers = chosen.get(k.tile, [])
        where = ", ".join(map(str, layers[:2])) + (f" and {len(layers) - 2} more" if len(layers) > 2 else "")
        print(f"{'*' if k.chosen else ' '} {k.name:<7}{k.k:>4}{r:>10.1f}{r / peak:>9.1%}   {where}")
    return min(r / peak for k, r in zip(kernels, rates, strict=True) if k.chosen)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--target", action="append", help="instruction set, may be repeated (default: all that run here)")
    ap.add_argument("--all", action="store_true", help="every register tile, not only those that default schedules choose")
    ap.add_argument("--need", type=float, default=0.0, help="least share of the peak; exit code 1 if a chosen kernel has less")
    ap.add_argument("--rounds", type=int, default=200)
    a = ap.parse_args()
    targets = [t for t in map(Target.parse, a.target or TARGETS) if runs_here(t)]
    if not a.target and Target.host().arch == "x86_64" and Target.host().vector_bytes == 64:
        targets = [t for t in targets if t.name != "x86-64-v4"]  # the same kernels as native
    low = {str(t): report(t, a.all, a.rounds) for t in targets}
    print("\nleast share of the peak: " + ", ".join(f"{t} {x:.1%}" for t, x in low.items()))
    return 1 if min(low.values()) < a.need else 0


if __name__ == "__main__":
    sys.exit(main())
