"""What exists once in a process is made once, also where several threads ask first."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from tilewright.backends.once import once

FIRST = """
import threading
import numpy as np, tilewright as tw
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.types import F32, TensorType

def model(n):
    b = GraphBuilder("g")
    return b.graph((b.op("tanh", b.input("x", TensorType(F32, (3, n)))),))

def run(n):
    x = np.ones((3, n), np.float32)
    np.testing.assert_allclose(tw.compile(model(n), threads=2)(x), np.tanh(x), rtol=1e-6)
    right.append(n)

import tilewright.compiler.compile
right = []
threads = [threading.Thread(target=run, args=(n,)) for n in range(5, 13)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print(len(right))
"""


def test_threads_that_ask_at_once_get_the_same() -> None:
    made: list[int] = []

    @once
    def slow(k: int) -> object:
        made.append(k)
        time.sleep(0.05)
        return object()
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(slow(3))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert made == [3] and len(found) == 8 and len(set(map(id, found))) == 1
    assert slow(4) is not slow(3) and made == [3, 4]


def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    go = threading.Event()

    @once
    def blocked(k: int) -> int:
        return k if k else go.wait() + 1
    t = threading.Thread(target=blocked, args=(0,))
    t.start()
    if not (child := os.fork()):
        os._exit(blocked(7))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go.set()
    t.join()
    assert code == 7


def test_the_first_models_of_a_process_compile_in_several_threads(tmp_path: Path) -> None:
    """The native class of executables and the code behind it were made by each thread, and unloaded under the others' feet."""
    environment = {**os.environ, "TILEWRIGHT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "8"), done.stderr
