"""Where the time of a call goes: the plan's calls one after the other on one thread, with the clock read between them.

The calls run in the order, on the memory and with the caches of a real call, so their times add up to it; only the clock's
reading (some 10 ns) comes on top. What a kernel does is known from compilation (`KernelCall.flops`, `.bytes`).
"""
from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .instance import Instance
from .llvm.entry import CTX_ERROR, CTX_FIELDS
from .llvm.jit import Library, compile_ir, load, load_image, require_host
from .memory import aligned
from .peak import f32_peak, memory_bandwidth
from .plan import KernelCall, Plan, Slot
from .target import Target

_WALK = "tw_profile"


@dataclass(frozen=True, slots=True)
class CallProfile:
    """One call of the plan; of one in a loop, all its steps together. Seconds: median, 10th and 90th percentile. flops and
    bytes: 0 where not known."""

    label: str
    symbol: str
    seconds: float
    low: float
    high: float
    flops: int
    bytes: int
    reads: tuple[int, ...] = ()

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        return self.flops / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """`calls` in the order of the plan. peak: of one core, in GFLOP/s of f32. memory: bytes a second of a core from memory.
    seconds: of all calls together, each one's median over `runs` runs. rows: that a run took, of a plan for any number of them
    (a whole block, or one where fewer were given than are worth a block); else 0."""

    calls: tuple[CallProfile, ...]
    seconds: float
    runs: int
    peak: float
    memory: float
    rows: int = 0

    def limit(self, c: CallProfile) -> float:
        """The most GFLOP/s that a call can reach by its operations and bytes, all of them from memory: the roofline."""
        return min(self.peak, c.flops / c.bytes * self.memory / 1e9) if c.bytes else self.peak

    def share(self, c: CallProfile) -> float:
        """GFLOP/s as a share of the peak of one core."""
        return c.gflops / self.peak if self.peak else 0.0

    @property
    def gflops(self) -> float:
        return sum(c.flops for c in self.calls) / self.seconds / 1e9 if self.seconds else 0.0

    def table(self) -> list[tuple[str, ...]]:
        """A heading and one row for each call."""
        head = ("#", "step", "time", "share", "GFLOP/s", "of peak", "bytes", "GB/s")
        return [head, *((str(k), c.label or c.symbol, time_text(c.seconds), f"{c.seconds / (self.seconds or 1):.1%}",
                         f"{c.gflops:.1f}" if c.flops else "", f"{self.share(c):.0%}" if c.flops else "", bytes_text(c.bytes),
                         f"{c.bandwidth / 1e9:.1f}") for k, c in enumerate(self.calls))]

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(len(r[c]) for r in rows) for c in range(len(rows[0]))]
        left = (1,)
        lines = ["  ".join(x.ljust(w) if c in left else x.rjust(w) for c, (x, w) in enumerate(zip(r, widths, strict=True))).rstrip()
                 for r in rows]
        return "\n".join([self.summary(), "", *lines])

    def summary(self) -> str:
        what = f", {self.rows} row{'s' * (self.rows > 1)} of a table" if self.rows else ""
        return (f"one thread{what}: {time_text(self.seconds)} for {len(self.calls)} calls (median of {self.runs} runs), "
                f"{self.gflops:.1f} GFLOP/s of {self.peak:.0f} that a core can do in f32; memory at {self.memory / 1e9:.1f} GB/s")


def profile(instance: Instance, inputs: Sequence[np.ndarray], seconds: float = 1.0) -> Profile:
    """Runs `instance` for about `seconds`, at least five times after one that does not count. Raises TargetError where
    the code is for another kind of machine."""
    require_host(instance.target)
    plan, inputs, rows = _for_one_run(instance.plan, inputs)
    walk = Walk(instance, inputs, plan)
    walk.run()
    stamps, stop = [], time.perf_counter() + seconds
    begin, first = time.perf_counter_ns(), walk.run()
    stamps.append(first)
    while len(stamps) < 5 or time.perf_counter() < stop:
        stamps.append(walk.run())
    ticks = max(1, int(stamps[-1][0]) - int(first[0]))
    tick = (walk.began - begin) / 1e9 / ticks  # the clock's unit, from the starts of the first and the last run
    steps = np.diff(np.array(stamps), axis=1).astype(np.float64) * tick
    low, median, high = np.percentile(steps, (10, 50, 90), axis=0) if plan.calls else np.zeros((3, 0))
    calls = tuple(CallProfile(c.label, c.symbol, float(m), float(lo), float(hi), n * c.flops, n * c.bytes, c.reads)
                  for c, n, lo, m, hi in zip(plan.calls, plan.times, low, median, high, strict=True))
    loop = f32_peak(instance.target)
    peak = max(loop.gflops(0.002) for _ in range(50))  # the ceiling is what the core can do undisturbed: by short bursts
    return Profile(calls, sum(c.seconds for c in calls), len(stamps), peak, memory_bandwidth(), rows)


def _for_one_run(plan: Plan, inputs: Sequence[np.ndarray]) -> tuple[Plan, Sequence[np.ndarray], int]:
    """The calls to run, on inputs of exactly the sizes that they read. Of a plan by rows: those for a block, which is filled up
    with the first rows, or those for one row where a call would take the rows one by one."""
    way = plan.by_rows
    if way is None:
        return plan, inputs, 0
    rows = way.block if len(inputs[0]) >= way.turn else 1
    taken = [np.resize(a, (rows, *a.shape[1:])) if a.size else np.zeros((rows, *a.shape[1:]), a.dtype) for a in inputs]
    if rows > 1:
        return plan, taken, rows
    row = {kind: tuple((n, type(t)(t.dtype, (1, *t.shape[1:]))) for n, t in types)
           for kind, types in (("inputs", plan.inputs), ("outputs", plan.outputs))}
    return replace(plan, calls=way.calls, by_rows=None, phases=(), **row), taken, 1


class Walk:
    """The calls of a plan with all their pointers resolved. `began`: when the last run started, in ns."""

    def __init__(self, instance: Instance, inputs: Sequence[np.ndarray], plan: Plan | None = None) -> None:
        """plan: the calls to run, the instance's for a block or those for one row (default: all that a call runs)."""
        plan = plan or instance.plan
        self._arena = aligned(plan.arena_bytes)
        outputs = [aligned(t.bytes) for _, t in plan.outputs]
        self._alive = (list(inputs), outputs, instance.weight_arrays)
        bases = {"input": [a.ctypes.data for a in inputs], "output": [a.ctypes.data for a in outputs],
                 "weight": [a.ctypes.data for a in instance.weight_arrays], "arena": [self._arena.ctypes.data]}

        def pointer(s: Slot | None) -> int:
            return 0 if s is None else bases[s.kind][s.index] + s.offset
        pointers = [pointer(s) for c in plan.calls for s in (*c.args, c.workspace)]
        self._kernels: Library = load_image(instance.image, plan.symbols)
        functions = [self._kernels.address(c.symbol) for c in plan.calls]
        self._code = load([compile_ir(walk_ir(plan, instance.target), instance.target)], [_WALK], instance.target)
        self._functions, self._pointers = np.array([0, *functions], np.uint64), np.array([0, *pointers], np.uint64)
        self._ctx, self._stamps = np.zeros(CTX_FIELDS, np.int64), np.zeros(len(plan.calls) + 1, np.int64)
        self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(self._code.address(_WALK))
        self._args = [a.ctypes.data for a in (self._functions, self._pointers, self._ctx, self._stamps)]
        self.began = 0

    def run(self) -> np.ndarray:
        """The clock before the first call and after each: of a loop's calls, as if all steps of one came together."""
        self.began = time.perf_counter_ns()
        self._stamps[:] = 0
        self._call(*self._args)
        self._ctx[CTX_ERROR] = 0  # an index out of range is the caller's to find: a profile measures
        return np.cumsum(self._stamps)


def walk_ir(plan: Plan, target: Target) -> str:
    """LLVM IR text of

        void tw_profile(ptr functions, ptr pointers, ptr ctx, ptr stamps) {
          stamps[0] = t0 = clock();
          functions[1](pointers[1], pointers[2], …, 0, trips, ctx);  t1 = clock(); stamps[1] += t1 - t0;  …
        }

    (element 0 of both tables is not used; a loop of the plan is one here, whose pointers move on with each step). The clock
    is the processor's: of its cycles at the nominal rate on x86-64, the generic timer on AArch64; `profile` compares it with
    the system's."""
    clock = "llvm.readcyclecounter" if target.arch == "x86_64" else "llvm.readsteadycounter"
    lines = [f'target triple = "{target.triple}"', f"declare i64 @{clock}()",
             f"define void @{_WALK}(ptr %functions, ptr %pointers, ptr %ctx, ptr %stamps) nounwind {{",
             "entry:", f"  %begin = call i64 @{clock}()", "  store volatile i64 %begin, ptr %stamps", "  br label %call0"]
    first, ends = {x.first: x for x in plan.loops}, {x.last - 1: x for x in plan.loops}
    at, step = 1, ""
    for k, c in enumerate(plan.calls):
        lines.append(f"call{k}:")
        if x := first.get(k):
            step = f"%step{k}"
            lines.append(f"  {step} = phi i64 [ 0, {f'%done{k - 1}' if k else '%entry'} ], [ %next{k}, %again{k} ]")
        lines += _timed_call(c, k, at, step, clock)
        at += len(c.args) + 1
        if x := ends.get(k):
            n = x.first
            lines += [f"  br label %again{n}", f"again{n}:", f"  %next{n} = add i64 {step}, 1",
                      f"  %more{n} = icmp ult i64 %next{n}, {x.trips}", f"  br i1 %more{n}, label %call{n}, label %done{k}"]
            step = ""
        else:
            lines.append(f"  br label %done{k}")
        lines += [f"done{k}:", f"  br label %call{k + 1}"]
    return "\n".join([*lines, f"call{len(plan.calls)}:", "  ret void", "}", ""])


def _timed_call(c: KernelCall, k: int, at: int, step: str, clock: str) -> list[str]:
    """The call at position k with its pointers from `at` on in the table, and what it took added to its sum."""
    lines = [f"  %f{k}_at = getelementptr ptr, ptr %functions, i64 {k + 1}", f"  %f{k} = load ptr, ptr %f{k}_at"]
    slots = (*c.args, c.workspace)
    args = []
    for j, s in enumerate(slots, at):
        lines += [f"  %p{j}_at = getelementptr ptr, ptr %pointers, i64 {j}", f"  %p{j} = load ptr, ptr %p{j}_at"]
        args.append(f"ptr %p{j}")
        if s is not None and s.step and step:
            lines += [f"  %m{j} = mul i64 {step}, {s.step}", f"  %q{j} = getelementptr i8, ptr %p{j}, i64 %m{j}"]
            args[-1] = f"ptr %q{j}"
    lines.append(f"  %a{k} = call i64 @{clock}()")
    lines.append(f"  call void %f{k}({', '.join(args)}, i64 0, i64 {c.trips}, ptr %ctx)")
    return [*lines, f"  %b{k} = call i64 @{clock}()", f"  %d{k} = sub i64 %b{k}, %a{k}",
            f"  %s{k} = getelementptr i64, ptr %stamps, i64 {k + 1}", f"  %o{k} = load volatile i64, ptr %s{k}",
            f"  %n{k} = add i64 %o{k}, %d{k}", f"  store volatile i64 %n{k}, ptr %s{k}"]


def time_text(seconds: float) -> str:
    """"1.23 ms", with three significant digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:#.3g}".rstrip(".") + " " + unit
    return f"{seconds * 1e9:.0f} ns"


def bytes_text(n: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"
