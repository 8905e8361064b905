"""The search space: whatever is sampled, mutated or crossed is legal and right, and the default is the untuned schedule."""
from __future__ import annotations

import json
import random
from functools import cache

import numpy as np
import pytest

from tests.autotune.spaces import PROBLEMS, Problem, problem
from tests.compiler.programs import program_inputs, random_inputs, run_native
from tilewright.autotune.space import Decisions, Space, schedule_key
from tilewright.backends.target import Target, runs_here
from tilewright.compiler.schedule.default import default_schedule
from tilewright.compiler.schedule.legality import check_legal
from tilewright.errors import ScheduleError
from tilewright.ir.interpreter import run_program

TARGETS = ("native", "x86-64", "x86-64-v3", "aarch64")
RUN = 5         # points of each program that are compiled and run
DRAWN = 16      # points of each program that are checked without running


@cache
def space(name: str, target: str = "native", threads: int = 1) -> Space:
    return Space(problem(name, target, threads))


def draws(s: Space, seed: int, count: int) -> list[Decisions]:
    """Samples, mutations of mutations, and mixtures."""
    rng = random.Random(seed)
    out = [s.default()]
    while len(out) < count:
        a, b = rng.choice(out), s.sample(rng)
        out += [b, s.mutate(a, rng), s.cross(a, b, rng)]
    return out[:count]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_default_is_the_untuned_schedule(name: str, target: str) -> None:
    t = problem(name, target)
    s = Space(t)
    assert schedule_key(s.scheduled(s.default())) == schedule_key(default_schedule(t.program, t.target, t.packable))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_draws_are_legal(name: str, target: str) -> None:
    s = space(name, target, 2)
    for d in draws(s, 1, DRAWN):
        check_legal(s.scheduled(d))


@pytest.mark.parametrize("name", PROBLEMS)
def test_draws_compute_the_right_thing(name: str) -> None:
    t = problem(name)
    inputs = random_inputs(t.program)
    want = run_program(t.program, inputs)
    targets = [x for x in map(Target.parse, ("native", "x86-64-v3", "x86-64")) if runs_here(x)]
    seen = set()
    for k, d in enumerate(draws(space(name), 2, 4 * RUN)):
        s = space(name).scheduled(d)
        if schedule_key(s) in seen or len(seen) == RUN:
            continue
        seen.add(schedule_key(s))
        got = run_native(s, targets[k % len(targets)], inputs)
        meaning = run_program(s.program, program_inputs(s, inputs))
        for b, w in want.items():
            np.testing.assert_allclose(got[b], w, *t.tolerance, err_msg=str(d))
            np.testing.assert_allclose(meaning[b], w, *t.tolerance, err_msg=str(d))


@pytest.mark.parametrize("name", PROBLEMS)
def test_text_of_decisions_is_read_back(name: str) -> None:
    s = space(name)
    for d in draws(s, 3, DRAWN):
        assert s.from_json(json.loads(json.dumps(s.to_json(d)))) == d
        assert s.repair(s.to_json(d)) == d


def test_equal_seeds_draw_equally() -> None:
    s = space("matmul_relu")
    assert draws(s, 5, 40) == draws(Space(problem("matmul_relu")), 5, 40) != draws(s, 6, 40)


@pytest.mark.parametrize("damage", [
    [], {}, "rows", [["contraction"]], [["nothing", {}]], [["contraction", {}]], [["contraction", {"tile": [1, 2, 3]}]], [[1, 2]], None])
def test_damaged_text_is_refused(damage: object) -> None:
    with pytest.raises(ScheduleError):
        space("matmul_relu").from_json(damage)


def test_unknown_decisions_and_values_are_refused() -> None:
    s = space("matmul_relu")
    (name, good), = s.to_json(s.default())
    assert isinstance(good, dict)
    for bad in (good | {"tile": [99, 99, 99]}, good | {"unroll": "2"}, good | {"unroll": True}, good | {"colour": 1}):
        with pytest.raises(ScheduleError, match="contraction"):
            s.from_json([[name, bad]])


def test_records_from_before_a_decision_was_open_mean_what_the_compiler_did() -> None:
    s = space("long_conv")
    rng = random.Random(3)
    for _ in range(10):
        d = s.sample(rng)
        (name, good), = s.to_json(d)
        assert isinstance(good, dict)
        old = s.from_json([[name, {k: v for k, v in good.items() if k != "passes"}]])
        assert s.to_json(old)[0][1] == good | ({"passes": 1} if "passes" in good else {})


def test_one_thread_reads_records_whatever_they_say_that_threads_keep() -> None:
    for threads in (1, 2):
        s = space("matmul", "native", threads)
        (name, good), = s.to_json(s.default())
        assert isinstance(good, dict)
        made = {s.from_json([[name, good | {"keep": k}]]) for k in (0, 1)}
        assert len(made) == threads and s.default() in made


def test_short_sums_have_no_passes() -> None:
    for name, more in (("matmul", False), ("long_sum", True), ("long_conv", True)):
        s = space(name)
        assert (len(s[s.default().sketch].knobs[-1].options) > 1) is more


def test_records_of_another_target_are_repaired() -> None:
    wide, narrow = space("matmul_relu"), space("matmul_relu", "x86-64")
    rng = random.Random(0)
    for _ in range(20):
        near = narrow.repair(wide.to_json(wide.sample(rng)))
        assert near is not None
        check_legal(narrow.scheduled(near))
    assert narrow.repair([["nothing", {}]]) is None
    assert narrow.repair("damaged") is None
    (name, good), = wide.to_json(wide.default())
    assert isinstance(good, dict)
    assert wide.repair([[name, {k: v for k, v in good.items() if k != "unroll"} | {"colour": 1}]]) == wide.default()


def test_spaces_are_rich_where_there_is_something_to_decide() -> None:
    assert space("matmul").size > 50_000
    assert {s.name for s in space("matmul").sketches} >= {"contraction", "rows"}
    assert space("softmax").size > 100_000
    keys = {schedule_key(space("matmul").scheduled(d)) for d in draws(space("matmul"), 7, 100)}
    assert len(keys) > 60


def test_problem_names_differ_from_models() -> None:
    """Decisions carry no names of buffers: a space made from a renamed program reads them."""
    a: Problem = problem("matmul_relu")
    s = space("matmul_relu")
    text = json.dumps(s.to_json(s.sample(random.Random(1))))
    assert not any(f'"{b.name}"' in text for b in a.program.inputs)
