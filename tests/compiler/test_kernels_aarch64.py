"""Kernels on AArch64 under qemu, all in one program: the small programs under default and random schedules, and contractions of
typical and ragged shapes as the register tiles that the default schedule chooses and as random microkernels."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.compiler.programs import PROGRAMS, matmul_relu, program_inputs, random_inputs
from tests.compiler.test_random_schedules import check
from tests.compiler.test_windows import program as windows
from tests.machines import LONG, CCall, need, run_calls
from tilewright.backends.llvm.emit import emit_kernel, parallel_extent, workspace_bytes
from tilewright.backends.llvm.jit import compile_ir
from tilewright.backends.target import Target
from tilewright.compiler.schedule.default import default_schedule
from tilewright.compiler.schedule.random import random_schedule
from tilewright.compiler.schedule.windows import Strips, schedule_windows
from tilewright.ir.expr import Buffer
from tilewright.ir.interpreter import run_program
from tilewright.ir.loops import Scheduled
from tilewright.ir.program import Program, compute, reduce
from tilewright.ir.types import F32

TARGET = Target.parse("aarch64")
GEMMS = [(1, 100, 64), (5, 17, 12), (14, 32, 8), (15, 33, 9), (29, 7, 31), (37, 41, 197), (128, 64, 48), (3, 5, 2), (26, 16, 3)]
SEEDS = 40 if LONG else 6


def strided_convolution() -> Program:
    """A 3x3 of stride 2 on channel blocks of 4, 13 x 11 points: tiles of two axes with ragged ends."""
    x, w = Buffer("x", F32, (2, 27, 23, 4)), Buffer("w", F32, (8, 8, 3, 3))
    y = compute("y", F32, (8, 13, 11), lambda o, p, q: reduce(
        "sum", (8, 3, 3), lambda c, r, t: x[c // 4, 2 * p + r, 2 * q + t, c % 4] * w[o, c, r, t]))
    return Program("strided_convolution", (x, w), (y.buffer,), (y,))


def run(scheduled: list[tuple[str, Program, Scheduled]], folder: Path) -> None:
    need("qemu-aarch64")
    calls, objects = [], []
    for k, (_, p, s) in enumerate(scheduled):
        objects.append(compile_ir(emit_kernel(s, TARGET, f"kernel{k}"), TARGET))
        arrays = list(program_inputs(s, random_inputs(p)).values())
        outs = [(b.shape, b.dtype.numpy) for b in s.program.outputs]
        calls.append(CCall(f"kernel{k}", arrays, outs, workspace_bytes(s), parallel_extent(s)))
    for (name, p, s), got in zip(scheduled, run_calls(calls, objects, TARGET, folder), strict=True):
        for (_, want), g in zip(run_program(p, random_inputs(p)).items(), got, strict=True):
            check(p.name, np.asarray(g), want, f"{name}\n{s}")


def test_default_and_random_schedules(tmp_path: Path) -> None:
    cases = []
    for name, (p, packable) in PROGRAMS.items():
        cases.append((name, p, default_schedule(p, TARGET, packable)))
        cases += [(f"{name} {seed}", p, random_schedule(p, seed, packable)) for seed in range(SEEDS)]
    run(cases, tmp_path)


def test_microkernels(tmp_path: Path) -> None:
    w = frozenset({"w"})
    programs = [*(matmul_relu(*g) for g in GEMMS), strided_convolution()]
    cases = [(p.name, p, default_schedule(p, TARGET, packable)) for p in programs for packable in (w, frozenset[str]())]
    assert sum(s.stages[0].tensorize is not None for _, _, s in cases) >= len(programs)
    for p in programs:
        drawn = (random_schedule(p, seed, w) for seed in range(200))
        cases += [(p.name, p, s) for s in drawn if any(st.tensorize is not None for st in s.stages)][:3 * SEEDS if LONG else 3]
    run(cases, tmp_path)


def test_depthwise_convolutions_in_strips(tmp_path: Path) -> None:
    p, cases = windows(), []
    for cut in (Strips(1, 1), Strips(2, 1), Strips(3, 2), Strips(5, 2)):
        s = schedule_windows(p, TARGET, frozenset({"w"}), cut)
        assert s is not None
        cases.append((str(cut), p, s))
    run(cases, tmp_path)
