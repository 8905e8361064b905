"""Whether answers stay right and nothing is left behind: many threads on one executable, executables made and dropped, forks.

    python -m benchmarks.soak --seconds 60 --cycles 1000

Three parts, each after a warm-up of its own kind, with forks in the middle of the first two:

    calls   eight Python threads call one executable for --seconds; every answer has the same bits as the first one
    cycles  --cycles executables are compiled (from the cache), called and dropped
    cold    a twentieth as many go through LLVM; llvmlite 0.50 itself keeps 1.5 KiB for each module, which is allowed for

What is compared before and after: resident memory, Python's memory blocks, mappings, threads, open files, child processes.
Exits with 1 where an answer is wrong, a child does not end well or something grew.
"""
from __future__ import annotations

import argparse
import gc
import itertools
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.backends.executable import Executable
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import run_graph
from tilewright.ir.types import F32, TensorType

CALLERS = 8
FORKS = 10          # in each part, if it is long enough
CHILD_SECONDS = 60  # a child that takes longer hangs
KIB, MIB = 1 << 10, 1 << 20
LLVM_KEEPS = 8 * KIB  # for each executable that goes through LLVM: its kernel and its entry point, with some to spare


@dataclass(frozen=True)
class State:
    """What this process holds: bytes of resident memory, and counts."""

    memory: int
    blocks: int
    mappings: int
    threads: int
    files: int
    children: int

    @staticmethod
    def now() -> State:
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        tasks = list(Path("/proc/self/task").iterdir())
        children = sum(len((t / "children").read_text().split()) for t in tasks if (t / "children").exists())
        return State(int(status["VmRSS"].split()[0]) * KIB, sys.getallocatedblocks(), Path("/proc/self/maps").read_text().count("\n"),
                     len(tasks), len(os.listdir("/proc/self/fd")), children)

    def __str__(self) -> str:
        rest = ", ".join(f"{getattr(self, f.name):,} {f.name}" for f in fields(self)[1:])
        return f"{self.memory / MIB:.2f} MiB, {rest}"


ALLOWED = State(MIB, 1000, 8, 0, 0, 0)  # growth over a whole part that is no leak: pages and caches that fill up late


class Failed(Exception):
    """What went wrong, in a sentence."""


# -- models --------------------------------------------------------------------------------------------------------------
def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))


def network() -> Graph:
    """Convolutions, Winograd's among them, a residual, a matrix product and a softmax; large enough for several threads."""
    b = GraphBuilder("network")
    x = b.input("x", TensorType(F32, (1, 32, 41, 43)))
    h = x
    for k in range(2):
        c = b.op("conv", h, b.weight(f"w{k}", _weights(32, 32, 3, 3)), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1)
        h = b.op("add", h, b.op("relu", c))
    rows = b.op("reshape", h, shape=(32, 41 * 43))
    return b.graph([b.op("softmax", b.op("matmul", rows, b.weight("fc", _weights(41 * 43, 97))), axis=1)])


def tiny() -> Graph:
    b = GraphBuilder("tiny")
    x = b.input("x", TensorType(F32, (16,)))
    return b.graph([b.op("relu", b.op("add", x, x))])


def rows_model() -> bytes:
    """ONNX, y = relu(x w) for any number of rows."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", size]) for n, size in (("x", 24), ("y", 17)))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "rows", [x], [y], [numpy_helper.from_array(_weights(24, 17), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 32, 41, 43), np.float32)


def answer(exe: Executable, x: np.ndarray) -> bytes:
    return np.asarray(exe(x)).tobytes()


def check_against_numpy(exe: Executable, graph: Graph, x: np.ndarray) -> None:
    """Raises Failed where `exe` is not within 1e-4 of NumPy's result (relative to the largest)."""
    want, got = next(iter(run_graph(graph, {"x": x}).values())), np.asarray(exe(x))
    if not np.abs(got - want).max() <= 1e-4 * np.abs(want).max():
        raise Failed(f"{graph.name}: the answer differs from NumPy's by {np.abs(got - want).max():.2g}")


# -- forks ---------------------------------------------------------------------------------------------------------------
def in_child(work: Callable[[], bool]) -> None:
    """Forks; the child does `work` and ends. Raises Failed where that is false, raises or hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python advises against forks beside threads: they are the point here
        child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    end = time.monotonic() + CHILD_SECONDS
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if code := os.waitstatus_to_exitcode(status):
                raise Failed(f"a forked child {'computed something else' if code == 1 else f'ended with {code}'}")
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise Failed(f"a forked child did not end within {CHILD_SECONDS} s")


# -- the parts -----------------------------------------------------------------------------------------------------------
def grown(before: State, after: State, allowed: State) -> list[str]:
    """A phrase for each thing that grew by more than is allowed."""
    rows = zip(fields(State), astuple(before), astuple(after), astuple(allowed), strict=True)
    return [f"{f.name} grew from {a:,} to {b:,}" for f, a, b, limit in rows if b - a > limit]


def calls(seconds: float) -> tuple[str, State, State]:
    """Eight threads on one executable, with forks in the middle."""
    graph = network()
    exe = tw.compile(graph, threads=2)
    work = [(x, answer(exe, x)) for x in map(image, range(4))]
    check_against_numpy(exe, graph, work[0][0])

    def caller(k: int, end: float) -> int:
        for n in itertools.count():
            if time.monotonic() >= end:
                return n
            x, want = work[(k + n) % len(work)]
            if answer(exe, x) != want:
                raise Failed(f"thread {k}: call {n} gave other bits than the first call")
        return 0
    with ThreadPoolExecutor(CALLERS) as pool:
        def run(duration: float, forks: int) -> int:
            end = time.monotonic() + duration
            callers = [pool.submit(caller, k, end) for k in range(CALLERS)]
            for _ in range(forks):
                time.sleep(duration / (forks + 1))
                in_child(lambda: all(answer(exe, x) == want for x, want in work * 2))
            return sum(f.result() for f in callers)
        run(max(0.3, seconds / 10), 1)
        before, forks = State.now(), min(FORKS, 1 + int(seconds))
        total = run(seconds, forks)
        after = State.now()
    return f"{total} calls from {CALLERS} threads in {seconds:g} s, {forks} forks", before, after


def cycles(count: int) -> tuple[str, State, State]:
    """Executables compiled, called, dropped; with forks while one is alive."""
    graph, model, x, rows = network(), rows_model(), image(0), np.ones((5, 24), np.float32)
    onnx.checker.check_model(onnx.load_from_string(model))
    first = tw.compile(graph, threads=1)
    check_against_numpy(first, graph, x)
    want, want_rows = answer(first, x), [answer(tw.compile(model), rows[:n]) for n in (5, 2)]

    def cycle(k: int) -> bool:
        if k % 2:
            exe = tw.compile(model, threads=1)
            return [answer(exe, rows[:n]) for n in (5, 2)] == want_rows
        return answer(tw.compile(network(), threads=1 + k // 2 % 2), x) == want

    def several(numbers: range, fork_at: set[int]) -> None:
        for k in numbers:
            if not cycle(k):
                raise Failed(f"executable {k} gave other bits than the first one")
            if k in fork_at:
                alive = tw.compile(network(), threads=2)
                in_child(lambda k=k, alive=alive: answer(alive, x) == want and cycle(k))
    several(range(max(8, count // 10)), {3})
    before, forks = State.now(), min(FORKS, 1 + count // 20)
    several(range(count), {count * k // forks for k in range(forks)})
    return f"{count} executables compiled, called and dropped, {forks} forks", before, State.now()


def cold(count: int) -> tuple[str, State, State]:
    """The same through LLVM each time."""
    x = np.arange(-8, 8, dtype=np.float32)

    def several(n: int) -> None:
        for k in range(n):
            if answer(tw.compile(tiny(), threads=1, cache=False), x) != np.maximum(x + x, 0).tobytes():
                raise Failed(f"executable {k} is wrong")
    several(max(8, count // 5))
    before = State.now()
    several(count)
    return f"{count} executables through LLVM", before, State.now()


def soak(seconds: float, count: int, tell: Callable[[str], None]) -> list[str]:
    """All parts; what is wrong, in phrases."""
    wrong: list[str] = []
    many = max(8, count // 20)
    llvm = State(ALLOWED.memory + many * LLVM_KEEPS, *astuple(ALLOWED)[1:])
    parts: Sequence[tuple[str, Callable[[], tuple[str, State, State]], State]] = (
        ("calls", lambda: calls(seconds), ALLOWED), ("cycles", lambda: cycles(count), ALLOWED), ("cold", lambda: cold(many), llvm))
    for name, part, allowed in parts:
        begin = time.monotonic()
        try:
            did, before, after = part()
        except Failed as e:
            wrong.append(f"{name}: {e}")
            tell(wrong[-1])
            continue
        tell(f"{name}: {did} ({time.monotonic() - begin:.1f} s)\n  before: {before}\n  after:  {after}")
        wrong += [f"{name}: {w}" for w in grown(before, after, allowed)]
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long the threads call (default 60)")
    parser.add_argument("--cycles", type=int, default=1000, help="how many executables come and go (default 1000)")
    options = parser.parse_args(argv)
    wrong = soak(options.seconds, max(1, options.cycles), lambda line: print(line, flush=True))
    print("\n".join(wrong) if wrong else "right answers, nothing left behind")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
