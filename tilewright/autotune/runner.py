"""Runs candidates: `python -m tilewright.autotune.runner [--memory MIB] [--cold] < requests > replies`, pinned by its parent.

    {"op": "task", "task", "workload", "target", "threads", "seed"} + the default's object    -> {"base_ns": […]} or {"error"}
    {"op": "trial", "task", "best", "least", "budget"} + a candidate's object                 -> {"samples_ns", "base_ns"} or {"wrong"}

Machine code that was never run before runs here and nowhere else. Whatever it does to this process, the parent sees it end
and says which candidate it was. A candidate's times count only when its output is right, the bytes around its buffers are
untouched and its inputs are what they were.
"""
from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import BinaryIO, cast

import numpy as np

from ..backends.llvm.entry import CTX_ERROR, CTX_FIELDS, CTX_POOL
from ..backends.llvm.jit import load
from ..backends.pool import pool
from ..backends.target import Target
from ..ir.expr import Buffer
from ..ir.loops import Pack
from .built import DRIVE, Built
from .check import DRAWS, Arrays, Expected, against_meaning, expected, jittered, make_inputs, usable
from .samples import by_turns
from .task import Task, parse_workload
from .wire import Closed, Header, receive, send

GUARD = 256            # bytes before and after each buffer that no candidate may touch
MOST_TASKS = 4         # kept with their inputs; the one used longest ago goes
MOST_PACKED = 6        # layouts of weights kept for a task
FAR_PART = 4           # weights of more than this part of the second-level cache are not there when a model comes to them again
SAMPLE_NS = 60_000     # that a sample lasts at least, by repetition
OVER_MEMORY = 78       # exit code
_GUARD_BYTE = 0xA5
_PIECE = 1 << 16
Answer = Callable[[Header, list[bytes]], Header]


class Memory:
    """One buffer of a program as the kernel sees it: strided, with guards around."""

    def __init__(self, b: Buffer, values: np.ndarray | None = None) -> None:
        size = 0 if 0 in b.shape else b.dtype.bytes * (1 + sum((n - 1) * s for n, s in zip(b.shape, b.strides, strict=True)))
        raw = np.empty(size + 2 * GUARD + 64, np.uint8)
        start = GUARD + -(raw.ctypes.data + GUARD) % 64
        raw[:start] = raw[start + size:] = _GUARD_BYTE
        self._raw, self._start, self._size = raw, start, size
        inner = raw[start:start + size].view(b.dtype.numpy)
        self.array = np.lib.stride_tricks.as_strided(inner, b.shape, [s * b.dtype.bytes for s in b.strides]) if size else \
            np.zeros(b.shape, b.dtype.numpy)
        if values is not None:
            self.array[...] = values
        self.address = raw.ctypes.data + start

    def clear(self) -> None:
        self._raw[self._start:self._start + self._size] = _GUARD_BYTE

    def intact(self) -> bool:
        """Whether nobody wrote outside."""
        around = (self._raw[:self._start], self._raw[self._start + self._size:])
        return all(bool((x == _GUARD_BYTE).all()) for x in around)

    def checksum(self) -> int:
        """Of the first and last bytes and of pieces between them, where the buffer is large."""
        data = memoryview(self._raw)[self._start:self._start + self._size]  # pyright: ignore[reportArgumentType]  (numpy before 3.12)
        if self._size <= 16 * _PIECE:
            return zlib.adler32(data)
        found = zlib.adler32(data[-_PIECE:])
        for at in range(0, self._size, self._size // 15):
            found = zlib.adler32(data[at:at + _PIECE], found)
        return found


class Code:
    """A loaded kernel with its arguments in place. `run(n)` runs it n times."""

    def __init__(self, built: Built, target: Target, args: Sequence[int], ctx: np.ndarray, alive: object) -> None:
        self._library, self._alive = load(built.objects, [DRIVE], target), alive
        self._table = (ctypes.c_void_p * len(args))(*args)
        self._drive = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(self._library.address(DRIVE))
        self._at, self._ctx = ctypes.addressof(self._table), ctx.ctypes.data
        self.repeats = 1

    def run(self, times: int = 1) -> None:
        self._drive(self._at, self._ctx, times)

    def sample(self) -> int:
        """ns a run."""
        begin = time.perf_counter_ns()
        self._drive(self._at, self._ctx, self.repeats)
        return max(1, (time.perf_counter_ns() - begin) // self.repeats)


class Bench:
    """One task: its inputs, what it must answer, and the default kernel that candidates are timed beside."""

    def __init__(self, task: Task, base: Built, seed: int, flush: np.ndarray | None) -> None:
        self.task, self._flush = task, flush
        p = task.program
        self._packed: OrderedDict[Pack, np.ndarray] = OrderedDict()
        self.ctx = np.zeros(CTX_FIELDS, np.int64)
        self.ctx[CTX_POOL] = pool(task.threads)
        self.outputs = [Memory(b) for b in p.outputs]
        self.wanted: list[Expected] = []
        self.problem: str | None = None
        for positive in (False, True):
            self.arrays = make_inputs(p, seed, positive)
            self.inputs = [Memory(b, a) for b, a in zip(p.inputs, self.arrays, strict=True)]
            self._packed.clear()
            self.base = self.code(base)
            self.base.run()
            if usable([o.array for o in self.outputs]):
                break
        self._references(base, seed)
        self.sums = [m.checksum() for m in self.inputs]
        self._settle(self.base)
        self.base_ns = min(self._sample(self.base) for _ in range(5))

    def _references(self, base: Built, seed: int) -> None:
        p, rng = self.task.program, np.random.default_rng(seed + 1)
        reference = [o.array.copy() for o in self.outputs]
        draws: list[Arrays] = []
        for _ in range(DRAWS):
            noisy = [Memory(b, a) for b, a in zip(p.inputs, jittered(self.arrays, p, rng), strict=True)]
            packed, self._packed = self._packed, OrderedDict()
            self.code(base, noisy).run()
            self._packed = packed
            draws.append([o.array.copy() for o in self.outputs])
        self.wanted = [expected(b.name, b.dtype, r, [d[k] for d in draws])
                       for k, (b, r) in enumerate(zip(p.outputs, reference, strict=True))]
        self.problem = against_meaning(p, self.arrays, self.wanted)
        if self.ctx[CTX_ERROR]:
            self.problem = "an index is out of range"
            self.ctx[CTX_ERROR] = 0

    def code(self, built: Built, inputs: Sequence[Memory] | None = None) -> Code:
        ins = list(self.inputs if inputs is None else inputs)
        by_name = {b.name: k for k, b in enumerate(self.task.program.inputs)}
        args = [m.address for m in ins]
        alive: list[object] = [ins]
        for pack in built.packs:
            k = by_name[pack.buffer]
            packed = self._pack(pack, ins[k].array)
            args[k] = packed.ctypes.data
            alive.append(packed)
        space = np.zeros(built.workspace + 64, np.uint8)
        alive.append(space)
        args += [m.address for m in self.outputs] + [space.ctypes.data + -space.ctypes.data % 64]
        return Code(built, self.task.target, args, self.ctx, alive)

    def _pack(self, pack: Pack, a: np.ndarray) -> np.ndarray:
        """The input as the kernel reads it; layouts are kept, because candidates share them."""
        if pack not in self._packed:
            padded = np.pad(a.reshape(a.shape), [(0, p - n) for p, n in zip(pack.padded, a.shape, strict=True)])
            self._packed[pack] = _aligned(padded.reshape(pack.split).transpose(pack.perm).reshape(pack.shape))
            while len(self._packed) > MOST_PACKED:
                self._packed.popitem(last=False)
        self._packed.move_to_end(pack)
        return self._packed[pack]

    def wrong(self, code: Code) -> str | None:
        """Runs a candidate once; what is wrong with its answer, None where nothing is."""
        for m in self.outputs:
            m.clear()
        code.run()
        if self.ctx[CTX_ERROR]:
            self.ctx[CTX_ERROR] = 0
            return "an index is out of range"
        for e, m in zip(self.wanted, self.outputs, strict=True):
            if found := e.wrong(m.array):
                return found
        if not all(m.intact() for m in (*self.inputs, *self.outputs)):
            return "memory outside of the buffers was written"
        if [m.checksum() for m in self.inputs] != self.sums:
            return "an input was written"
        return None

    def _settle(self, code: Code) -> None:
        """Chooses how many runs make a sample."""
        once = min(code.sample() for _ in range(2))
        code.repeats = 1 if self._flush is not None else max(1, SAMPLE_NS // once)
        if code.repeats > 1:
            code.sample()

    def times(self, code: Code, best: float, least: int, budget_ns: int) -> tuple[list[int], list[int]]:
        """Samples of a candidate and of the default, by turns. best: how many times faster than the default the best candidate so
        far is. least: the default's least time so far, ns, in this process or before."""
        self._settle(code)
        self.base_ns = min(self.base_ns, least)
        samples, beside = by_turns(self.base, code, best, self.base_ns, budget_ns, None if self._flush is None else self._sweep)
        self.base_ns = min(self.base_ns, *beside)
        return samples, beside

    def _sample(self, code: Code) -> int:
        if self._flush is not None:
            self._sweep()
        return code.sample()

    def _sweep(self) -> None:
        """Empties the caches."""
        assert self._flush is not None
        self._flush += 1


def mostly_weights(task: Task, cache: int) -> bool:
    """Whether a kernel reads weights more than anything else, and so many that they are not in the second-level cache, of `cache`
    bytes, when their model comes to them again: it is timed with that cache emptied, or kernels that do not fetch ahead look good."""
    sizes = {b.name: 0 if 0 in b.shape else b.dtype.bytes * math.prod(b.shape) for b in (*task.program.inputs, *task.program.outputs)}
    weights = sum(sizes[name] for name in task.packable)
    return weights > max(cache // FAR_PART, sum(sizes.values()) - weights)


def _aligned(a: np.ndarray) -> np.ndarray:
    raw = np.empty(a.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start:start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


class Runner:
    """The process's state: tasks by their hash."""

    def __init__(self, cold: bool) -> None:
        self._benches: OrderedDict[str, Bench] = OrderedDict()
        host = Target.host()
        self._cold, self._cache = cold, host.l2 or 1 << 20
        self._flush = np.zeros(max(2 * host.l2, 4 << 20), np.uint8)

    def answer(self, r: Header, blobs: list[bytes]) -> Header:
        key = cast(str, r["task"])
        built = Built.of(r, blobs)
        if r["op"] == "task":
            target = Target.from_json(json.loads(cast(str, r["target"])))
            while len(self._benches) >= MOST_TASKS:
                self._benches.popitem(last=False)
            task = parse_workload(cast(str, r["workload"]), target, cast(int, r["threads"]))
            cold = self._cold or mostly_weights(task, self._cache)
            bench = Bench(task, built, cast(int, r["seed"]), self._flush if cold else None)
            if bench.problem is None:
                self._benches[key] = bench
            return {"base_ns": bench.base_ns, "error": bench.problem}
        if key not in self._benches:
            return {"unknown": True}
        self._benches.move_to_end(key)
        bench = self._benches[key]
        code = bench.code(built)
        if found := bench.wrong(code):
            return {"wrong": found}
        samples, base = bench.times(code, cast(float, r["best"]), cast(int, r["least"]), int(cast(float, r["budget"]) * 1e9))
        return {"samples_ns": samples, "base_ns": base}


def _watch(limit: int) -> None:
    """Ends the process when it has more than `limit` bytes in memory. Runs beside the kernel, which holds no lock of Python."""
    page = os.sysconf("SC_PAGESIZE")
    while True:
        with open("/proc/self/statm", "rb") as f:
            resident = int(f.read().split()[1]) * page
        if resident > limit:
            os.write(2, f"more than {limit >> 20} MiB of memory\n".encode())
            os._exit(OVER_MEMORY)
        time.sleep(0.01)


def serve(requests: BinaryIO, replies: BinaryIO, memory_mib: int, make: Callable[[], Answer]) -> None:
    """Answers requests by what `make` makes, until there are no more, in no more memory than that."""
    if os.path.exists("/proc/self/statm"):
        threading.Thread(target=_watch, args=(memory_mib << 20,), daemon=True).start()
    answer = make()
    while True:
        try:
            r, blobs = receive(requests)
        except Closed:
            return
        send(replies, answer(r, blobs))


if __name__ == "__main__":
    from .process import child
    _parser = argparse.ArgumentParser()
    _parser.add_argument("--memory", type=int, default=4096)
    _parser.add_argument("--cold", action="store_true")
    _given = _parser.parse_args()
    serve(*child(), _given.memory, lambda: Runner(_given.cold).answer)
