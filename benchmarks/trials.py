"""Builds and times many schedules of one task in this process: for data sets and for judging the search, not for tuning.

Tuning measures in processes that may die (`tilewright.autotune.measure`). Here thousands of schedules that legality has checked are
timed with less ceremony: each batch is compiled first, then timed in rounds, every schedule and the default by turns, under a lock
that keeps other timing runs on the machine away. What counts is the least time, over the default's in the same rounds.
"""
from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tilewright.autotune.task import Task
from tilewright.backends.llvm.emit import emit_kernel, parallel_extent, workspace_bytes
from tilewright.backends.llvm.jit import Library, compile_ir, load
from tilewright.backends.memory import address, aligned
from tilewright.backends.target import Target
from tilewright.errors import ScheduleError
from tilewright.ir.expr import Buffer
from tilewright.ir.loops import Pack, Scheduled

ROUNDS = 8             # of each batch; the least counts
SAMPLE_SECONDS = 4e-4  # that one sample lasts at least
MOST_IR = 1_500_000    # characters; above, LLVM takes many seconds
GROUP = Path("/proc/self/autogroup")
TOLERANCE = 1e-3       # of the largest result: catches wrong code, not rounding


@dataclass(frozen=True, slots=True)
class Timed:
    """One schedule's code with its arguments. Addresses are valid as long as the object lives."""

    library: Library
    arguments: np.ndarray
    kept: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    end: int


@cache
def _drive(target: Target, count: int) -> bytes:
    """void drive(ptr kernel, ptr args, i64 end, ptr ctx, i64 n): calls a kernel of `count` pointers n times."""
    loads = "\n".join(f"  %p{i} = getelementptr ptr, ptr %args, i64 {i}\n  %a{i} = load ptr, ptr %p{i}" for i in range(count))
    given = ", ".join(f"ptr %a{i}" for i in range(count))
    return compile_ir(f"""target triple = "{target.triple}"
define void @drive(ptr %kernel, ptr %args, i64 %end, ptr %ctx, i64 %n) {{
entry:
{loads}
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void %kernel({given}, i64 0, i64 %end, ptr %ctx)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}""", target)


class Trials:
    """Times schedules of one task. `lock`: a file to hold while timing; `core`: where timing runs (None: anywhere)."""

    def __init__(self, task: Task, lock: Path | None = None, core: int | None = None, seed: int = 0) -> None:
        self.task, self.lock, self.core = task, lock, core
        rng = np.random.default_rng(seed)
        self.inputs = {b.name: _filled(b, rng) for b in task.program.inputs}
        self._packed: dict[Pack, np.ndarray] = {}
        self._context = aligned(1024)
        self.default = self.build(task.default())
        if self.default is None:
            raise ScheduleError(f"the code of the default schedule of {task.label} is longer than {MOST_IR} characters, too long to time")
        self._run(self.default, 1)
        self._expected = [o.copy() for o in self.default.outputs]

    def build(self, s: Scheduled) -> Timed | None:
        """None where the code would be too long to compile."""
        text = emit_kernel(s, self.task.target, "kernel")
        if len(text) > MOST_IR:
            return None
        count = len(s.program.inputs) + len(s.program.outputs) + 1
        library = load([compile_ir(text, self.task.target), _drive(self.task.target, count)], ["kernel", "drive"], self.task.target)
        packs = {f"{p.buffer}_packed": p for p in s.packs}
        inputs = [self._laid_out(packs[b.name]) if b.name in packs else self.inputs[b.name] for b in s.program.inputs]
        outputs = tuple(_memory(b) for b in s.program.outputs)
        kept = (*inputs, *outputs, aligned(workspace_bytes(s) + 64))
        arguments = np.array([address(a) for a in kept], np.uint64)
        return Timed(library, arguments, kept, outputs, max(1, parallel_extent(s)))

    def times(self, made: Sequence[Timed | None]) -> list[tuple[float, float] | None]:
        """(seconds, the default's seconds in the same rounds) of one run of each; None: not built, or a wrong result."""
        assert self.default is not None
        good = [m is not None and self._right(m) for m in made]
        least = [np.inf] * len(made)
        with self._alone():
            base, n = self._sample(self.default, 1), 1
            while base * n < SAMPLE_SECONDS:
                n *= 2
                base = min(base, self._sample(self.default, n))
            base = np.inf
            for r in range(ROUNDS):
                base = min(base, self._sample(self.default, n))
                for k, m in enumerate(made):
                    if m is not None and good[k] and (r < 2 or least[k] < 4 * base):
                        least[k] = min(least[k], self._sample(m, n if r else 1))
        return [(float(x), float(base)) if ok and np.isfinite(x) else None for x, ok in zip(least, good, strict=True)]

    def _right(self, m: Timed) -> bool:
        self._run(m, 1)
        for got, want in zip(m.outputs, self._expected, strict=True):
            scale = float(np.max(np.abs(want), initial=1e-30)) if want.dtype.kind == "f" else 1.0
            if not np.allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=TOLERANCE * scale):
                return False
        return True

    def _run(self, m: Timed, n: int) -> None:
        drive = _DRIVE(m.library.address("drive"))
        drive(m.library.address("kernel"), m.arguments.ctypes.data, m.end, self._context.ctypes.data, n)

    def _sample(self, m: Timed, n: int) -> float:
        begin = time.perf_counter()
        self._run(m, n)
        return (time.perf_counter() - begin) / n

    def _laid_out(self, p: Pack) -> np.ndarray:
        if p not in self._packed:
            if len(self._packed) > 64:
                self._packed.clear()
            a = self.inputs[p.buffer]
            a = np.pad(a, [(0, n - m) for n, m in zip(p.padded, a.shape, strict=True)]).reshape(p.split).transpose(p.perm)
            out = aligned(a.nbytes).view(a.dtype).reshape(p.shape)
            out[...] = a.reshape(p.shape)
            self._packed[p] = out
        return self._packed[p]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the lock, on one core, at a high priority where the system lets; without a lock at a normal one."""
        cores, nice, group = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0), _group_nice()
        with contextlib.ExitStack() as held:
            if self.lock is not None:
                fcntl.flock(held.enter_context(self.lock.open("w")), fcntl.LOCK_EX)
            try:
                if self.core is not None:
                    os.sched_setaffinity(0, {self.core})
                _prefer(-15 if self.lock is not None else 0, -15 if self.lock is not None else group)
                yield
            finally:
                os.sched_setaffinity(0, cores)
                _prefer(nice, group)


def _group_nice() -> int:
    """The nice value of this session's group of processes, which Linux shares processors among before it looks at processes; 0 where
    there are no such groups."""
    with contextlib.suppress(OSError):  # the file is empty for a session that was never given a group
        if found := re.search(r"nice (-?\d+)", GROUP.read_text()):
            return int(found[1])
    return 0


def _prefer(nice: int, group: int) -> None:
    """Sets the nice values of the process and of its session's group, as far as the system lets."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    if group != _group_nice():
        with contextlib.suppress(OSError):
            GROUP.write_text(str(group))


_DRIVE: Callable[[int], Callable[..., None]] = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)


def _memory(b: Buffer) -> np.ndarray:
    """Zeros of the buffer's strides, 64-byte aligned."""
    size = 1 + sum((n - 1) * s for n, s in zip(b.shape, b.strides, strict=True)) if 0 not in b.shape else 0
    flat = aligned(max(size, 1) * b.dtype.bytes).view(b.dtype.numpy)
    return np.lib.stride_tricks.as_strided(flat, b.shape, [s * b.dtype.bytes for s in b.strides])


def _filled(b: Buffer, rng: np.random.Generator) -> np.ndarray:
    a = _memory(b)
    a[...] = rng.uniform(0.1, 1.0, b.shape).astype(b.dtype.numpy) if b.dtype.is_float else rng.integers(0, 2, b.shape).astype(b.dtype.numpy)
    return a
