"""The most multiply-adds one core does in a second: the ceiling that kernels are compared with.

    python -m benchmarks.peak

Independent chains of fused multiply-adds in registers, enough of them to hide the latency on two FMA ports, no memory
accesses. The clock of a machine drifts, so a kernel and this loop belong in one run, measured by turns.
"""
from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from llvmlite import binding as llvm

from tilewright.backends.target import Target


@dataclass(frozen=True)
class Peak:
    """`run(n)` does n rounds of the loop; each is `flops` floating-point operations (a multiply-add counts two)."""

    flops: int
    run: Callable[[int], float]
    _engine: llvm.ExecutionEngine  # owns the code

    def gflops(self, seconds: float = 0.05) -> float:
        """GFLOP/s over about `seconds`."""
        rounds, spent = 20_000, 0.0
        while spent < seconds:
            rounds *= 2
            begin = time.perf_counter()
            self.run(rounds)
            spent = time.perf_counter() - begin
        return rounds * self.flops / spent / 1e9


def f32_peak(target: Target) -> Peak:
    """The f32 loop for `target`, which this machine must be able to run.

    Emits, for 12 (of 16 registers) or 24 (of 32) accumulators of a whole vector each:
        for i in n: a[k] = a[k] * m + c   for each k
    """
    lanes, chains = target.vector_bytes // 4, 24 if target.vector_registers == 32 else 12
    vec = f"<{lanes} x float>"
    multiply_add = (
        (lambda k: f"  %b{k} = call {vec} @llvm.fma.v{lanes}f32({vec} %a{k}, {vec} %m, {vec} %c)") if target.has_fma else
        (lambda k: f"  %p{k} = fmul {vec} %a{k}, %m\n  %b{k} = fadd {vec} %p{k}, %c"))
    start = "".join(f"\n  %s{k} = insertelement {vec} zeroinitializer, float {k + 1}.0, i32 0" for k in range(chains))
    phis = "\n".join(f"  %a{k} = phi {vec} [ %s{k}, %entry ], [ %b{k}, %loop ]" for k in range(chains))
    body = "\n".join(multiply_add(k) for k in range(chains))
    total = "\n".join(f"  %t{k} = fadd {vec} {'zeroinitializer' if k == 0 else f'%t{k - 1}'}, %b{k}" for k in range(chains))
    fma = f"declare {vec} @llvm.fma.v{lanes}f32({vec}, {vec}, {vec})" if target.has_fma else ""
    ir = f"""
target triple = "{target.triple}"
{fma}
define float @peak(i64 %n) "prefer-vector-width"="{8 * target.vector_bytes}" {{
entry:
  %m0 = insertelement {vec} poison, float 0.999, i32 0
  %m = shufflevector {vec} %m0, {vec} poison, <{lanes} x i32> zeroinitializer
  %c0 = insertelement {vec} poison, float 0.001, i32 0
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
    ir = ir.replace("float 0.999", _hex(0.999)).replace("float 0.001", _hex(0.001))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(ir)
    module.verify()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(cpu=target.cpu, features=target.features, opt=3)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(engine.get_function_address("peak"))
    return Peak(2 * lanes * chains, run, engine)


def _hex(x: float) -> str:
    """A float constant as LLVM wants it: the bits of the f64 that equals the f32."""
    return f"float 0x{int(np.float64(np.float32(x)).view(np.uint64)):016X}"


def main() -> None:
    target = Target.host()
    loop = f32_peak(target)
    samples = [loop.gflops() for _ in range(9)]
    print(f"f32 multiply-add peak of one core of {target.cpu}: median {np.median(samples):.1f} GFLOP/s, best {max(samples):.1f}")


if __name__ == "__main__":
    main()
