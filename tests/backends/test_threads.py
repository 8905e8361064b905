"""Several threads on one call, several calls at once, forks, ends of processes: the same bits, and nothing left behind."""
from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tilewright.backends.executable import Executable
from tilewright.backends.llvm.entry import emit_entry
from tilewright.backends.plan import KernelCall, Plan, PlanError, Slot
from tilewright.backends.saved import load
from tilewright.backends.target import Target
from tilewright.compiler.compile import compile as tw_compile
from tilewright.compiler.threads import PLAN_SECONDS, SHARE_SECONDS, Touch, phases, team, teams
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.types import F32, TensorType


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))


def mlp() -> Graph:
    """Row counts and widths that no number of threads divides."""
    b = GraphBuilder("mlp")
    x = b.input("x", TensorType(F32, (131, 197)))
    h = b.op("matmul", x, b.weight("w0", _weights(197, 389)))
    h = b.op("tanh", h)
    h = b.op("softmax", b.op("matmul", h, b.weight("w1", _weights(389, 211))), axis=1)
    return b.graph([h, b.op("reduce", h, kind="sum", axes=(0,), keepdims=False)])


def cnn() -> Graph:
    b = GraphBuilder("cnn")
    x = b.input("x", TensorType(F32, (1, 3, 61, 59)))
    h = b.op("conv", x, b.weight("w0", _weights(32, 3, 3, 3)), strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1)
    for k in range(3):
        a = b.op("conv", h, b.weight(f"a{k}", _weights(32, 32, 3, 3)), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1)
        h = b.op("add", h, b.op("relu", a))
    d = b.op("conv", h, b.weight("dw", _weights(32, 1, 3, 3)), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=32)
    return b.graph([b.op("reduce", d, kind="mean", axes=(2, 3), keepdims=False), d])


def norms() -> Graph:
    """Kernels with a workspace for each thread: rows too long for the stack."""
    b = GraphBuilder("norms")
    x = b.input("x", TensorType(F32, (37, 5003)))
    y = b.op("softmax", b.op("exp", b.op("softmax", x, axis=1)), axis=1)
    return b.graph([y, b.op("transpose", y, perm=(1, 0))])


MODELS: dict[str, Callable[[], Graph]] = {"mlp": mlp, "cnn": cnn, "norms": norms}


def _compiled(name: str, threads: int) -> Executable:
    return tw_compile(MODELS[name](), threads=threads)


def _argument(exe: Executable, seed: int = 0) -> np.ndarray:
    spec = exe.inputs[0]
    return np.random.default_rng(seed).standard_normal(tuple(int(d) for d in spec.shape), np.float32)  # pyright: ignore


def _outputs(exe: Executable, x: np.ndarray) -> list[bytes]:
    y = exe(x)
    return [np.asarray(a).tobytes() for a in (y if isinstance(y, tuple) else (y,))]


def _tasks() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("threads", [2, 3, 4, 7])
@pytest.mark.parametrize("name", MODELS)
def test_same_bits_for_every_number_of_threads(name: str, threads: int) -> None:
    alone, together = _compiled(name, 1), _compiled(name, threads)
    assert alone.single("test").plan.phases == () and together.single("test").plan.threads > 1, "the model is large enough to be divided"
    for seed in range(4):
        x = _argument(alone, seed)
        want = _outputs(alone, x)
        for _ in range(5):
            assert _outputs(together, x) == want


def test_workspaces_are_apart() -> None:
    """Each thread's workspace lies in the arena, and none overlaps with another."""
    plan = _compiled("norms", 3).single("test").plan
    calls = [c for c in plan.calls if isinstance(c, KernelCall) and c.workspace]
    for c in calls:
        assert c.workspace and c.workspace.offset + c.team * c.workspace_step <= plan.arena_bytes and c.workspace_step % 64 == 0


def test_one_thread_makes_no_thread() -> None:
    code = """
import os, sys, numpy as np
from tests.backends.test_threads import _compiled, _argument
from tilewright.backends import pool
exe = _compiled("mlp", 1); exe(_argument(exe))
print(len(os.listdir("/proc/self/task")), pool._code.cache_info().currsize)
"""
    out = _python(code).split()
    assert out == ["1", "0"]


def _python(code: str) -> str:
    """The output of a program that must end cleanly and soon."""
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert r.returncode == 0 and not r.stderr, (r.returncode, r.stderr)
    return r.stdout


@pytest.mark.parametrize("threads", [2, 4])
def test_many_callers(threads: int) -> None:
    """Eight Python threads on two executables: a busy pool leaves the others to their own threads."""
    exes = [_compiled("mlp", threads), _compiled("cnn", threads)]
    work = [(e, x, _outputs(e, x)) for e in exes for x in (_argument(e, s) for s in range(4))]

    def caller(k: int) -> None:
        for i in range(40):
            e, x, want = work[(k + i) % len(work)]
            assert _outputs(e, x) == want
    with ThreadPoolExecutor(8) as pool:
        for f in [pool.submit(caller, k) for k in range(8)]:
            f.result()


def test_fork_in_the_middle() -> None:
    """A child, forked while other threads run the model, computes with workers of its own; so does the parent afterwards."""
    exe = _compiled("mlp", 2)
    x = _argument(exe)
    want = _outputs(exe, x)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            assert _outputs(exe, x) == want
    callers = [threading.Thread(target=busy) for _ in range(2)]
    for t in callers:
        t.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:  # no pytest in here
                good = _tasks() == 1 and all(_outputs(exe, x) == want for _ in range(20)) and _tasks() == 2
                os._exit(0 if good else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for t in callers:
            t.join()
    assert _outputs(exe, x) == want


def test_forked_child_ends_cleanly() -> None:
    out = _python("""
import os, sys
from tests.backends.test_threads import _compiled, _argument, _outputs
exe = _compiled("mlp", 2); x = _argument(exe); want = _outputs(exe, x)
child = os.fork()
assert _outputs(exe, x) == want
if child == 0:
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert out.split() == ["0"]


def test_idle_pool_sleeps() -> None:
    exe = _compiled("mlp", 2)
    exe(_argument(exe))
    time.sleep(0.1)  # workers look for the next call for a while
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.05


def test_exits_while_calls_run() -> None:
    """The end of the process waits neither for a daemon thread that computes nor for workers."""
    _python("""
import sys, threading, time
from tests.backends.test_threads import _compiled, _argument
exe = _compiled("mlp", 3); x = _argument(exe)
def forever():
    while True:
        exe(x)
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.3)
""")


def test_calls_after_the_pool_has_stopped() -> None:
    """Functions that run at exit after the pool's own still compute."""
    out = _python("""
import atexit, sys
def late():
    assert _outputs(exe, x) == want
    print("right")
atexit.register(late)
from tests.backends.test_threads import _compiled, _argument, _outputs
exe = _compiled("mlp", 2); x = _argument(exe); want = _outputs(exe, x)
""")
    assert out.split() == ["right"]


def test_nothing_is_left_of_dropped_executables() -> None:
    x = _argument(_compiled("mlp", 2))

    def cycle() -> None:
        exe = _compiled("mlp", 2)
        exe(x)
        del exe
        gc.collect()
    for _ in range(3):
        cycle()
    threads, files = _tasks(), len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        cycle()
    assert (_tasks(), len(os.listdir("/proc/self/fd"))) == (threads, files)


# -- dividing ------------------------------------------------------------------------------------------------------------
def test_teams_follow_cost_and_trips() -> None:
    assert team(SHARE_SECONDS, 100, 4) == 1 and team(2 * SHARE_SECONDS, 100, 4) == 2
    assert team(1.0, 100, 4) == 4 and team(1.0, 3, 4) == 3 and team(1.0, 0, 4) == 1
    assert teams([1.0, 1e-9], [8, 8], 2) == (2, 1)
    assert teams([PLAN_SECONDS / 3] * 2, [8, 8], 2) == (1, 1), "too short to wake anyone"


def test_threads_meet_where_they_must() -> None:
    def touch(write: int, *read: int) -> list[Touch]:
        return [Touch(("arena", 0), 10 * k, 10 * k + 10, k == write) for k in (write, *read)]
    chain = [touch(1, 0), touch(2, 1), touch(3, 2), touch(4, 0), touch(0, 4)]
    assert phases(chain, (2, 2, 1, 2, 2)) == (0, 1, 2, 4), "call 3 reads nothing that was written meanwhile"
    assert phases(chain[:3], (2, 1, 1)) == (0, 1), "calls 1 and 2 run on the first thread one after the other"
    assert phases(chain, (1,) * 5) == ()
    assert phases([touch(1, 0), touch(0)], (2, 2)) == (0, 1), "writes what others may still be reading"


def test_plan_text_and_checks() -> None:
    plan = _compiled("norms", 3).single("test").plan
    assert Plan.from_json(plan.to_json()) == plan and plan.threads == 3
    call = KernelCall("k", (Slot("input"), Slot("output")), trips=8, team=2)
    t = TensorType(F32, (8,))
    for calls, starts in (((call,), (1,)), ((call, call), (0, 0)), ((call, call), (1, 0)), ((KernelCall("k", (), team=0),), ())):
        with pytest.raises(PlanError):
            Plan((("x", t),), (("y", t),), calls=calls, phases=starts).check()


def test_entry_of_one_thread_has_no_phases() -> None:
    call = KernelCall("k", (Slot("input"), Slot("output")), trips=8, team=2)
    t = TensorType(F32, (8,))
    serial = KernelCall("n", (Slot("output"),))
    assert "tw_share" not in emit_entry(Plan((("x", t),), (("y", t),), calls=(call, serial)))
    assert "tw_share" in emit_entry(Plan((("x", t),), (("y", t),), calls=(call, serial), phases=(0, 1)))


def test_threads_of_a_saved_model(tmp_path: Path) -> None:
    exe = _compiled("mlp", 2)
    exe.save(tmp_path / "m.twx")
    again = load(tmp_path / "m.twx")
    assert again.single("test").plan.threads == 2
    x = _argument(exe)
    assert _outputs(again, x) == _outputs(exe, x)


@pytest.mark.skipif(Target.host().arch != "x86_64", reason="names an x86 level")
def test_pool_code_for_other_processors() -> None:
    """The pool compiles for every processor it is meant for."""
    from tilewright.backends.llvm.jit import compile_ir
    from tilewright.backends.llvm.team import emit_pool
    for name in ("x86-64", "aarch64"):
        t = Target.parse(name)
        assert compile_ir(emit_pool(t), t)[:4] == b"\x7fELF"


CALLER = """
#include "m.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { void (*task)(void *, int); void *argument; int i; } Part;
static void *part(void *p) { Part *x = p; x->task(x->argument, x->i); return NULL; }
static void threaded(void *count, int n, void (*task)(void *, int), void *argument) {
    pthread_t t[16]; Part parts[16];
    for (int i = 0; i < n; i++) { parts[i] = (Part){task, argument, i}; pthread_create(&t[i], NULL, part, &parts[i]); }
    for (int i = 0; i < n; i++) pthread_join(t[i], NULL);
    ++*(int *)count;
}
static void backwards(void *count, int n, void (*task)(void *, int), void *argument) {
    while (n--) task(argument, n);
    ++*(int *)count;
}
static float x[131 * 197], want[2][131 * 211], y[2][131 * 211];
int main(void) {
    for (int i = 0; i < 131 * 197; i++) x[i] = (i * 37 % 101) / 50.f - 1;
    void *workspace = malloc(m_workspace_bytes());
    if (m_run(x, want[0], want[1], workspace)) return 1;
    for (int threads = 1; threads < 6; threads++) {
        int calls = 0;
        memset(y, 0, sizeof y);
        if (m_run_parallel(x, y[0], y[1], workspace, threads, threads % 2 ? threaded : backwards, &calls)) return 2;
        if (memcmp(y, want, sizeof y) || (threads > 1) != (calls > 0)) return 3;
    }
    if (m_run_parallel(x, y[0], y[1], workspace, 4, NULL, NULL) || memcmp(y, want, sizeof y)) return 4;
    if (m_run_parallel(x, y[0], y[1], NULL, 4, threaded, NULL) != 2) return 5;
    puts("right");
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_exported_code_runs_on_threads_of_its_caller(tmp_path: Path) -> None:
    _compiled("mlp", 3).export(tmp_path / "m.o")
    (tmp_path / "main.c").write_text(CALLER)
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "main.c", "m.o", "-pthread", "-o", "main"], cwd=tmp_path, check=True)
    assert subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "right\n"


def test_exported_code_of_one_thread_has_no_parallel_function(tmp_path: Path) -> None:
    _compiled("mlp", 1).export(tmp_path / "m.so")
    assert "parallel" not in (tmp_path / "m.h").read_text()
