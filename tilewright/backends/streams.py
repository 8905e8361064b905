"""The ceiling of products that stream their weights: multiply-adds while lines are on their way from behind the second-level cache.

Only so many lines can be outstanding, and what asks for one more holds up the multiply-adds behind it. So the greater of the two times is
not always in reach; how near a core comes to it, in the minutes that matter, is measured.
"""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from .llvm.jit import Library, compile_ir, load
from .peak import accumulators, fma_declaration, multiply_add
from .target import Target

LINE = 64             # bytes
LEAST_CACHE = 1 << 20  # bytes; where the size of the second-level cache is not known
WAYS = ("stay", "prefetch", "load")  # how lines come: not at all; by prefetches; by loads alone, which the hardware may foresee


@dataclass(frozen=True, slots=True)
class Stream:
    """A round is `adds` multiply-adds of whole vectors and `lines` lines of 64 bytes. `run(panel, cold, n)` does n rounds, with lines
    from `cold` on, and returns n * adds if the panel holds ones; pointers as integers."""

    adds: int
    lines: int
    panel_bytes: int
    call: Callable[[int, int, int, float], float]
    code: Library  # owns it

    def run(self, panel: int, cold: int, rounds: int) -> float:
        return self.call(panel, cold, rounds, 1.0)


def stream(target: Target, adds_per_line: float, way: str) -> Stream:
    """The loop for `target`, which this machine must be able to run. way: one of WAYS.

    Emits, for as many accumulators as the peak's loop has, lines spread evenly over the multiply-adds:
        for i in n:
            for k in adds:  a[k % chains] = w * x + a[k % chains]
        w: each vector of a line, loaded from `panel` (a part of the second-level cache, round and round) when its turn comes
        "prefetch": beside it, once a line, prefetch(cold), cold += 64.  "load": w comes from cold itself
    """
    chains = accumulators(target)
    lines = max(1, -(-2 * chains // max(1, round(adds_per_line))))
    adds, panel = max(1, round(lines * adds_per_line)), 1 << ((target.l2 or LEAST_CACHE) // 4).bit_length() - 1
    library = load([compile_ir(stream_ir(target, chains, adds, lines, panel, way), target)], ["stream"], target)
    call = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float)(library.address("stream"))
    return Stream(adds, lines, panel, call, library)


def stream_ir(target: Target, chains: int, adds: int, lines: int, panel: int, way: str) -> str:
    """panel: a power of two. See `stream`. The loads are volatile, so that those of lines that no multiply-add is left for happen, too."""
    lanes, size = target.vector_bytes // 4, target.vector_bytes
    vec, per_line = f"<{lanes} x float>", max(1, LINE // size)
    loads, body, w = lines * per_line, [], 0
    for k in range(adds):
        while w * adds < (k + 1) * loads and w < loads:  # its turn has come
            if way == "prefetch" and w % per_line == 0:
                body += [f"  %c{w} = getelementptr i8, ptr %cold, i64 {w // per_line * LINE}",
                         f"  call void @llvm.prefetch.p0(ptr %c{w}, i32 0, i32 2, i32 1)"]
            source = ("%cold", w * size) if way == "load" else ("%near", w * size)
            body += [f"  %p{w} = getelementptr i8, ptr {source[0]}, i64 {source[1]}", f"  %w{w} = load volatile {vec}, ptr %p{w}"]
            w += 1
        a = f"%b{k - chains}" if k >= chains else f"%a{k}"
        body += multiply_add(target, f"%b{k}", f"%w{w - 1}", "%x", a)
    last = [max((k for k in range(c, adds, chains)), default=None) for c in range(chains)]
    phis = [f"  %a{c} = phi {vec} [ zeroinitializer, %entry ], [ {f'%b{k}' if k is not None else f'%a{c}'}, %loop ]"
            for c, k in enumerate(last)]
    ends = [f"%b{k}" if k is not None else f"%a{c}" for c, k in enumerate(last)]
    total = [f"  %t{c} = fadd {vec} {'zeroinitializer' if c == 0 else f'%t{c - 1}'}, {e}" for c, e in enumerate(ends)]
    return "\n".join([f"""
target triple = "{target.triple}"
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
{fma_declaration(target)}
define float @stream(ptr %panel, ptr %begin, i64 %n, float %one) "prefer-vector-width"="{8 * size}" {{
entry:
  %x0 = insertelement {vec} poison, float %one, i32 0
  %x = shufflevector {vec} %x0, {vec} poison, <{lanes} x i32> zeroinitializer
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %at = phi i64 [ 0, %entry ], [ %behind, %loop ]
  %cold = phi ptr [ %begin, %entry ], [ %further, %loop ]""", *phis, "  %near = getelementptr i8, ptr %panel, i64 %at", *body, f"""
  %further = getelementptr i8, ptr %cold, i64 {lines * LINE}
  %moved = add i64 %at, {loads * size}
  %behind = and i64 %moved, {panel - 1}
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:""", *total, f"  %r = extractelement {vec} %t{chains - 1}, i32 0", "  ret float %r", "}"])
