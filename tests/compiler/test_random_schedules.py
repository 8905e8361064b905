"""Native code under the default and under random legal schedules equals the interpreter, on every target that runs here."""
from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.compiler.programs import PROGRAMS, program_inputs, random_inputs, run_native
from tilewright.backends.target import Target, runs_here
from tilewright.compiler.schedule.default import default_schedule
from tilewright.compiler.schedule.legality import check_legal
from tilewright.compiler.schedule.primitives import apply, from_json, to_json, to_text
from tilewright.compiler.schedule.random import random_steps
from tilewright.ir.interpreter import run_program

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
