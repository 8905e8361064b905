"""Measuring: right schedules get times; candidates that crash, hang, answer wrongly or eat memory are recorded as such, and
the tuner's own process goes on."""
from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.autotune.programs import matmul, softmax, task
from tilewright.autotune.builder import build, build_scheduled
from tilewright.autotune.built import Built
from tilewright.autotune.check import expected, make_inputs, usable
from tilewright.autotune.log import Steps
from tilewright.autotune.measure import Limits, Measurer, ProcessBuilder, Result
from tilewright.autotune.schedules import space_of
from tilewright.autotune.task import Task
from tilewright.backends.llvm.jit import compile_ir
from tilewright.backends.target import Target
from tilewright.errors import ScheduleError
from tilewright.ir.loops import Scheduled

HOST = Target.host()
FAST = Limits(build=60, run=60, setup=60, budget=0.01, memory=1024)
HEAD = "define void @tw_drive(ptr %args, ptr %ctx, i64 %repeats) nounwind {\n"
OUTPUT = "  %at = getelementptr ptr, ptr %args, i64 2\n  %y = load ptr, ptr %at\n"  # matmul: x, w, y, workspace
MMAP = {  # 64 MiB of fresh memory
    "x86_64": ('call i64 asm sideeffect "xorq %r9, %r9\\0Amovq $$34, %r10\\0Amovq $$-1, %r8\\0Asyscall", '
               '"={rax},{rax},{rdi},{rsi},{rdx},~{rcx},~{r11},~{r8},~{r9},~{r10},~{memory}"(i64 9, i64 0, i64 67108864, i64 3)'),
    "aarch64": ('call i64 asm sideeffect "svc #0", "={x0},{x8},{x0},{x1},{x2},{x3},{x4},{x5},~{memory}"'
                "(i64 222, i64 0, i64 67108864, i64 3, i64 34, i64 -1, i64 0)")}
EVIL = {
    "segfault": HEAD + "  store volatile i32 1, ptr inttoptr (i64 8 to ptr)\n  ret void\n}\n",
    "loop": HEAD + "  br label %again\nagain:\n  br label %again\n}\n",
    "nothing": HEAD + "  ret void\n}\n",
    "number": "",  # made from the right kernel, see `_build`
    "outside": "",
    "input": "",
    "memory": HEAD + "  br label %more\nmore:\n  %p = " + MMAP.get(HOST.arch, "add i64 0, 0") + """
  %base = inttoptr i64 %p to ptr
  br label %touch
touch:
  %i = phi i64 [ 0, %more ], [ %j, %touch ]
  %here = getelementptr i8, ptr %base, i64 %i
  store volatile i8 1, ptr %here
  %j = add i64 %i, 4096
  %end = icmp uge i64 %j, 67108864
  br i1 %end, label %more, label %touch
}
"""}
AFTER = {  # what a wrapper around the right kernel does besides
    "number": OUTPUT + "  %e = getelementptr float, ptr %y, i64 322\n  store float 7.0, ptr %e\n",
    "outside": OUTPUT + "  %e = getelementptr float, ptr %y, i64 -3\n  store float 7.0, ptr %e\n",
    "input": "  %x = load ptr, ptr %args\n  store float 7.0, ptr %x\n"}


def evil(t: Task, kind: str) -> Built:
    """Code that does what `kind` says."""
    if kind not in AFTER:
        return Built((compile_ir(f'target triple = "{HOST.triple}"\n' + EVIL[kind], HOST),), 0, ())
    from tilewright.autotune import builder
    from tilewright.backends.llvm.emit import emit_kernel, parallel_extent
    s: Scheduled = t.default()
    right = build_scheduled(t, s)
    text = emit_kernel(s, HOST, "k") + builder._drive_alone(3, max(1, parallel_extent(s))).replace("  ret void", AFTER[kind] + "  ret void")
    return Built((compile_ir(text, HOST),), right.workspace, right.packs)


class PlantedBuilder:
    """Builds in this process; schedules such as [["segfault", {}]] are faults."""

    def build(self, task: Task, steps: Steps, seconds: float) -> Built | str:
        kind = steps[0][0] if steps else ""  # type: ignore[index]
        if kind in EVIL:
            return evil(task, str(kind))
        try:
            return build(task, steps)
        except ScheduleError as e:
            return str(e)

    def close(self) -> None:
        pass


@pytest.fixture
def planted(request: pytest.FixtureRequest) -> Measurer:
    """`kind` of the test, if it has one: what never ends is given up sooner than what needs time on a busy machine."""
    endless = "kind" in request.fixturenames and request.getfixturevalue("kind") == "loop"
    return Measurer(HOST, limits=replace(FAST, run=10) if endless else FAST, builder=PlantedBuilder)


@pytest.mark.parametrize(("kind", "status", "words"), [
    ("segfault", "crash", "SIGSEGV"), ("loop", "timeout", "no answer"), ("nothing", "wrong_result", "elements"),
    ("number", "wrong_result", "1 of 323 elements"), ("outside", "wrong_result", "outside of the buffers"),
    ("input", "wrong_result", "input was written"), ("memory", "crash", "MiB of memory")])
def test_a_fault_is_recorded_as_its_class_and_the_next_candidate_is_measured(planted: Measurer, kind: str, status: str, words: str) -> None:
    t = task()
    with planted as m:
        before, fault, after = m.submit(t, []), m.submit(t, [[kind, {}]]), m.submit(t, [])
        assert before.result(120).ok
        found = fault.result(120)
        assert (found.status, found.samples_ns, found.speedup) == (status, (), 0.0)
        assert words in (found.error or "")
        assert after.result(120).ok


def test_faults_in_a_row_leave_no_process_behind(planted: Measurer) -> None:
    t = task()
    with planted as m:
        found = [m.submit(t, [[kind, {}]]) for kind in ("segfault", "number", "segfault", "segfault")]
        assert [f.result(120).status for f in found] == ["crash", "wrong_result", "crash", "crash"]
        child = m._runner._child
    assert child is None or child.poll() is not None


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("program", [matmul(), softmax(), matmul(40, 512, 300)], ids=["matmul", "softmax", "larger"])
def test_points_of_the_space_are_right_and_have_times(program: object, threads: int) -> None:
    t = task(program, threads)  # type: ignore[arg-type]
    space, rng = space_of(t), random.Random(1)
    schedules = [[], *(space.to_json(space.sample(rng)) for _ in range(4))]
    with Measurer(HOST, threads, limits=FAST, cores=(*range(threads - 1), *sorted(os.sched_getaffinity(0)))[:threads]) as m:
        for s, f in [(s, m.submit(t, s)) for s in schedules]:
            r = f.result(120)
            assert r.ok, (s, r)
            assert len(r.samples_ns) == len(r.base_ns) >= 2
            assert r.seconds > 0


def test_what_is_no_schedule_is_a_compile_error() -> None:
    t = task()
    with Measurer(HOST, limits=FAST) as m:
        found = m.submit(t, [["no such sketch", {}]]).result(120)
        assert found.status == "compile_error"
        assert "no such sketch" in (found.error or "")
        assert m.submit(t, []).result(120).ok


def test_a_builder_that_hangs_or_dies_is_replaced() -> None:
    t = task()
    builder = ProcessBuilder()
    assert isinstance(builder.build(t, [], 60), Built)
    child = builder._process._child
    assert child is not None
    child.kill()
    child.wait()
    with pytest.raises(Exception, match="SIGKILL"):
        builder.build(t, [], 60)
    assert isinstance(builder.build(t, [], 60), Built)
    builder.close()


def test_cold_caches_are_slower_or_the_same() -> None:
    t = task(matmul(64, 256, 256))
    with Measurer(HOST, limits=FAST, cold=True) as m:
        found = m.submit(t, []).result(120)
    assert found.ok
    assert len(found.samples_ns) >= 2


def test_cancelled_trials_are_not_built() -> None:
    m = Measurer(HOST, limits=FAST)
    futures = [m.submit(task(), []) for _ in range(20)]
    m.shutdown(cancel_futures=True)
    assert all(f.done() for f in futures)


@pytest.mark.parametrize(("shape", "far"), [((16, 384, 1536), True), ((16, 64, 64), False), ((4096, 384, 1536), False)],
                         ids=["weights", "few", "activations"])
def test_large_weights_are_not_where_the_last_run_left_them(shape: tuple[int, int, int], far: bool) -> None:
    from tilewright.autotune.runner import mostly_weights
    assert mostly_weights(task(matmul(*shape)), 2 << 20) is far


def test_speedup_and_drift() -> None:
    r = Result("ok", (200, 100, 210), None, (300, 320, 315), nominal_ns=240)
    assert r.speedup == 1.5  # of the pairs; one sample was lucky
    assert r.seconds == pytest.approx(160e-9)  # the machine was faster before
    assert Result("crash").seconds == float("inf")


def test_workers_end_with_their_parent() -> None:
    import signal
    import subprocess
    import sys
    code = ("import time; from tests.autotune.programs import task; from tilewright.autotune.measure import Measurer;"
            "t = task(); m = Measurer(t.target); assert m.submit(t, []).result().ok;"
            "print(m._runner._child.pid, flush=True); time.sleep(60)")
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert p.stdout
    pid = int(p.stdout.readline())
    p.send_signal(signal.SIGKILL)
    p.wait()
    p.stdout.close()
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the runner outlived the tuner")


def test_inputs_are_valid_and_the_same_for_a_seed() -> None:
    p = task().program
    a, b, c = make_inputs(p, 1), make_inputs(p, 1), make_inputs(p, 2)
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert any((x != y).any() for x, y in zip(a, c, strict=True))
    assert usable(a)


def test_expected_takes_reordered_sums_and_refuses_wrong_ones() -> None:
    import numpy as np

    from tilewright.ir.types import F32
    rng = np.random.default_rng(0)
    want = rng.standard_normal(100).astype("f4")
    draws = [want + rng.standard_normal(100).astype("f4") * 1e-6 for _ in range(6)]
    e = expected("y", F32, want, draws)
    assert e.wrong(want + np.float32(1e-6)) is None
    assert "1 of 100" in (e.wrong(np.where(np.arange(100) == 7, want + np.float32(1e-4), want)) or "")
    assert e.wrong(np.where(np.arange(100) == 7, np.float32("nan"), want)) is not None
