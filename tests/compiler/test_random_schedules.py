"""Native code under the default and under random legal schedules equals the interpreter, on every target that runs here."""
from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tests.compiler.programs import PROGRAMS, program_inputs, random_inputs, run_native
from tilewright.backends.target import Target, runs_here
from tilewright.compiler.schedule.default import default_schedule
from tilewright.compiler.schedule.legality import check_legal
from tilewright.compiler.schedule.primitives import apply, from_json, initial, to_json, to_text
from tilewright.compiler.schedule.random import random_steps
from tilewright.ir.expr import Buffer
from tilewright.ir.interpreter import run_program
from tilewright.ir.loops import Scheduled
from tilewright.ir.program import Program, compute, reduce
from tilewright.ir.types import F32

SEEDS = 12


@cache
def targets() -> tuple[Target, ...]:
    return tuple(t for t in map(Target.parse, ("native", "x86-64", "x86-64-v3")) if runs_here(t))


def check(name: str, got: np.ndarray, want: np.ndarray, message: str = "") -> None:
    rtol, atol = (4e-3, 1e-3) if name == "transpose" else (3e-6, 1e-5)  # transpose computes in f16
    np.testing.assert_allclose(got, want, rtol, atol, err_msg=message)


@pytest.mark.parametrize("name", PROGRAMS)
def test_default_schedule_is_legal_and_right(name: str) -> None:
    p, packable = PROGRAMS[name]
    inputs = random_inputs(p)
    want = run_program(p, inputs)
    for target in targets():
        s = default_schedule(p, target, packable)
        check_legal(s)
        for k, got in run_native(s, target, inputs).items():
            check(name, got, want[k])


@pytest.mark.parametrize("name", PROGRAMS)
def test_random_schedules(name: str) -> None:
    p, packable = PROGRAMS[name]
    inputs = random_inputs(p)
    want = run_program(p, inputs)
    for seed in range(SEEDS):
        steps = random_steps(p, seed, packable)
        assert steps == random_steps(p, seed, packable) == from_json(to_json(steps))
        s = apply(p, steps)
        meaning = run_program(s.program, program_inputs(s, inputs))
        native = run_native(s, targets()[seed % len(targets())], inputs)
        for k, w in want.items():
            check(name, meaning[k], w, to_text(steps))
            check(name, native[k], w, to_text(steps))


@pytest.mark.parametrize("name", PROGRAMS)
def test_nearly_every_draw_succeeds(name: str) -> None:
    p, packable = PROGRAMS[name]
    assert sum(bool(random_steps(p, seed, packable)) for seed in range(60)) >= 55


@pytest.mark.parametrize("kind", ["sum", "max", "prod"])
def test_split_reductions_over_nothing(kind: str) -> None:
    x = Buffer("x", F32, (5, 0))
    y = compute("y", F32, (5,), lambda i: reduce(kind, (0,), lambda k: x[i, k]))
    p = Program("nothing", (x,), (y.buffer,), (y,))
    s = initial(p)
    st = s.stages[0]
    split = Scheduled(p, (replace(st, loops=(st.loops[0], replace(st.loops[1], kind="unroll", split_sum=True))),))
    for scheduled in (s, split):
        inputs = {"x": np.zeros((5, 0), "f4")}
        np.testing.assert_array_equal(run_native(scheduled, targets()[0], inputs)["y"], run_program(p, inputs)["y"])
