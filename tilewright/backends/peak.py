"""The ceilings that kernels are compared with: multiply-adds of one core, and bytes to and from memory.

The clock of a machine drifts, so a kernel and these loops belong in one run.
"""
from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .llvm.jit import Library, compile_ir, load
from .target import Target


@dataclass(frozen=True, slots=True)
class Peak:
    """`run(n)` does n rounds of the loop; each is `flops` floating-point operations (a multiply-add counts two)."""

    flops: int
    run: Callable[[int], float]
    code: Library  # owns it

    def gflops(self, seconds: float = 0.05) -> float:
        """GFLOP/s over about `seconds`."""
        rounds, spent = 20_000, 0.0
        while spent <= seconds:
            rounds *= 2
            begin = time.perf_counter()
            self.run(rounds)
            spent = time.perf_counter() - begin
        return rounds * self.flops / spent / 1e9


def f32_peak(target: Target) -> Peak:
    """The f32 loop for `target`, which this machine must be able to run.

    Independent chains of multiply-adds in registers, enough of them to hide the latency on two ports, no memory accesses.
    Emits, for 12 (of 16 registers) or 24 (of 32) accumulators of a whole vector each:
        for i in n: a[k] = a[k] * m + c   for each k
    """
    lanes, chains = target.vector_bytes // 4, accumulators(target)
    library = load([compile_ir(_loop(target, lanes, chains), target)], ["peak"], target)
    run = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(library.address("peak"))
    return Peak(2 * lanes * chains, run, library)


def accumulators(target: Target) -> int:
    """Of whole vectors, as many as hide the latency of multiply-adds and leave registers for their operands."""
    return 24 if target.vector_registers == 32 else 12


def multiply_add(target: Target, to: str, x: str, y: str, z: str) -> list[str]:
    """Lines of IR: to = x * y + z, whole vectors of f32; with `fma_declaration` at the module's head."""
    lanes = target.vector_bytes // 4
    vec = f"<{lanes} x float>"
    if target.has_fma:
        return [f"  {to} = call {vec} @llvm.fma.v{lanes}f32({vec} {x}, {vec} {y}, {vec} {z})"]
    return [f"  {to}.p = fmul {vec} {x}, {y}", f"  {to} = fadd {vec} {to}.p, {z}"]


def fma_declaration(target: Target) -> str:
    """What `multiply_add` needs at the module's head."""
    lanes = target.vector_bytes // 4
    return f"declare <{lanes} x float> @llvm.fma.v{lanes}f32({', '.join([f'<{lanes} x float>'] * 3)})" if target.has_fma else ""


def memory_bandwidth(size: int = 64 << 20, seconds: float = 0.1) -> float:
    """Bytes a second that one core reads or copies (read and written), whichever is more, of `size` bytes: best of
    several passes in about `seconds`."""
    source, target = np.ones(size // 4, np.float32), np.ones(size // 4, np.float32)
    passes = ((size, lambda: np.maximum.reduce(source)), (2 * size, lambda: np.copyto(target, source)))
    best, stop = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < stop:
        for moved, run in passes:
            begin = time.perf_counter()
            run()
            best = max(best, moved / (time.perf_counter() - begin))
    return best


def read_bandwidth(target: Target, size: int, seconds: float = 0.05) -> float:
    """Bytes a second that one core reads from the cache that `size` bytes fit into, or from memory: the best pass in about `seconds`.

    Emits:  for i in n: a[k] = a[k] ^ data[8 * i + k]   for each k < 8   (whole vectors)
    """
    step = 8 * target.vector_bytes
    data, n = np.ones(size // 4 + step, np.uint32), max(1, size // step)  # zeros would be one page of memory, again and again
    start = data.ctypes.data + -data.ctypes.data % target.vector_bytes
    library = load([compile_ir(_reader(target), target)], ["read"], target)
    run = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64)(library.address("read"))
    best, stop = 0.0, time.perf_counter() + seconds
    passes = max(1, (1 << 20) // size)  # so that reading the clock does not count
    while best == 0.0 or time.perf_counter() < stop:
        begin = time.perf_counter()
        for _ in range(passes):
            run(start, n)
        best = max(best, passes * n * step / (time.perf_counter() - begin))
    return best


def _reader(target: Target) -> str:
    lanes = target.vector_bytes // 4
    vec = f"<{lanes} x i32>"
    phis = "\n".join(f"  %a{k} = phi {vec} [ zeroinitializer, %entry ], [ %b{k}, %loop ]" for k in range(8))
    body = "\n".join(f"  %p{k} = getelementptr {vec}, ptr %p, i64 {k}\n  %v{k} = load {vec}, ptr %p{k}\n  %b{k} = xor {vec} %a{k}, %v{k}"
                     for k in range(8))
    total = "\n".join(f"  %t{k} = xor {vec} {'zeroinitializer' if k == 0 else f'%t{k - 1}'}, %b{k}" for k in range(8))
    return f"""
target triple = "{target.triple}"
define i32 @read(ptr %data, i64 %n) "prefer-vector-width"="{8 * target.vector_bytes}" {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %p = phi ptr [ %data, %entry ], [ %q, %loop ]
{phis}
{body}
  %q = getelementptr {vec}, ptr %p, i64 8
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
{total}
  %r = extractelement {vec} %t7, i32 0
  ret i32 %r
}}"""


def _loop(target: Target, lanes: int, chains: int) -> str:
    vec = f"<{lanes} x float>"
    start = "".join(f"\n  %s{k} = insertelement {vec} zeroinitializer, float {k + 1}.0, i32 0" for k in range(chains))
    phis = "\n".join(f"  %a{k} = phi {vec} [ %s{k}, %entry ], [ %b{k}, %loop ]" for k in range(chains))
    body = "\n".join(line for k in range(chains) for line in multiply_add(target, f"%b{k}", f"%a{k}", "%m", "%c"))
    total = "\n".join(f"  %t{k} = fadd {vec} {'zeroinitializer' if k == 0 else f'%t{k - 1}'}, %b{k}" for k in range(chains))
    return f"""
target triple = "{target.triple}"
{fma_declaration(target)}
define float @peak(i64 %n) "prefer-vector-width"="{8 * target.vector_bytes}" {{
entry:
  %m0 = insertelement {vec} poison, float {_hex(0.999)}, i32 0
  %m = shufflevector {vec} %m0, {vec} poison, <{lanes} x i32> zeroinitializer
  %c0 = insertelement {vec} poison, float {_hex(0.001)}, i32 0
  %c = shufflevector {vec} %c0, {vec} poison, <{lanes} x i32> zeroinitializer{start}
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
{phis}
{body}
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
{total}
  %r = extractelement {vec} %t{chains - 1}, i32 0
  ret float %r
}}"""


def _hex(x: float) -> str:
    """A float constant as LLVM wants it: the bits of the f64 that equals the f32."""
    return f"0x{int(np.float64(np.float32(x)).view(np.uint64)):016X}"
