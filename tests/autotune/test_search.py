"""Search and budget: nothing twice, the same for the same seed, better than chance; trials go where they count."""
from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pytest

from tests.autotune.spaces import PROBLEMS, problem
from tilewright.autotune.cost_model import CostModel
from tilewright.autotune.scheduler import TaskScheduler
from tilewright.autotune.search import Search
from tilewright.autotune.space import Decisions, Space, schedule_key
from tilewright.autotune.task import Task
from tilewright.compiler.work import Work


@dataclass(frozen=True)
class Outcome:
    ok: bool
    speedup: float


def searched(name: str, trials: int, speed: Callable[[Decisions], float], model: CostModel | None = None, seed: int = 0,
             batch: int = 8) -> list[Decisions]:
    t = cast(Task, problem(name))
    s = Search(t, Space(t), model, seed)
    out: list[Decisions] = []
    while len(out) < trials and (found := s.next(min(batch, trials - len(out)))):
        out += found
        for d in found:
            s.report(d, Outcome(speed(d) > 0, speed(d)))
    return out


def hidden(d: Decisions) -> float:
    """A made-up machine: it likes some tiles and orders of the matmul."""
    if d.sketch != "contraction":
        return 0.1
    tile, _, unroll, order = d.values[:4]
    assert isinstance(tile, tuple) and isinstance(unroll, int)
    return 1 / (1 + abs(tile[1] - 7) + 2 * abs(tile[2] - 3) + (order != "m") + abs(unroll - 4))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("shipped", [False, True])
def test_nothing_is_proposed_twice(name: str, shipped: bool) -> None:
    t = problem(name)
    space = Space(t)
    found = searched(name, 16, lambda d: 0.5 + len(str(d)) % 7, CostModel.load_default() if shipped else None)
    keys = [schedule_key(space.scheduled(d)) for d in [space.default(), *found]]
    assert len(set(keys)) == len(keys)


def test_equal_seeds_search_equally() -> None:
    assert searched("matmul", 30, hidden, seed=1) == searched("matmul", 30, hidden, seed=1) != searched("matmul", 30, hidden, seed=2)


def test_what_a_log_knows_is_not_proposed() -> None:
    t = cast(Task, problem("softmax"))
    space = Space(t)
    first = searched("softmax", 20, lambda d: 1.0)
    s = Search(t, space, None, 0)
    s.known([[], [["split", {}]], *(space.to_json(d) for d in first)])
    assert not set(first) & set(s.next(20))


def test_a_small_space_is_exhausted() -> None:
    found = searched("total", 500, lambda d: 1.0)
    assert 0 < len(found) < 60


def test_failures_do_not_stop_the_search() -> None:
    assert len(searched("matmul", 40, lambda d: 0.0)) == 40


def test_search_beats_chance() -> None:
    """On a made-up machine, which the shipped model knows nothing about: the search learns from its trials alone."""
    space, best, chance = Space(problem("matmul")), 0.0, 0.0
    for seed in range(6):
        rng = random.Random(seed)
        chance += max(hidden(space.sample(rng)) for _ in range(64))
        best += max(map(hidden, searched("matmul", 64, hidden, None, seed)))
    assert best > chance


def test_predictions_are_relative_to_the_default() -> None:
    t = cast(Task, problem("matmul"))
    s = Search(t, Space(t), CostModel.load_default())
    assert s.predicted(Space(t).default()) == pytest.approx(1.0)
    assert Search(t, Space(t), None).predicted(Space(t).default()) is None


@dataclass(frozen=True)
class _Job:
    hash: str
    uses: int
    work: Work


def job(name: str, uses: int, work: Work) -> Task:
    """A task as the scheduler sees it."""
    return cast(Task, _Job(name, uses, work))


def test_trials_go_to_what_takes_the_time() -> None:
    long, short = job("long", 10, Work(10**6, 10**4)), job("short", 1, Work(10**6, 10**4))
    s = TaskScheduler([short, long])
    assert s.pick() is None  # no default is known yet
    for t in (short, long):
        s.report(t, 1e-3)
    picked = []
    for _ in range(20):
        t = s.pick()
        assert t is not None
        picked.append(t.hash)
        for _ in range(8):
            s.report(t, 1e-3)
    assert picked[0] == "long" and picked.count("long") > picked.count("short") > 0


def test_gains_attract_trials_and_expectations_fall() -> None:
    a, b = job("a", 1, Work(10**6, 10**4)), job("b", 1, Work(10**6, 10**4))
    s = TaskScheduler([a, b])
    for t in (a, b):
        s.report(t, 1e-3)
    first = s.expected_gain()
    for k in range(24):
        s.report(a, 1e-3)
        s.report(b, 1e-3 * 0.97 ** k)
    assert s.pick() is b
    for _ in range(200):
        s.report(a, 1e-3)
        s.report(b, 4e-4)
    assert s.expected_gain() < first / 50
    s.exhausted(a)
    s.exhausted(b)
    assert s.pick() is None and s.expected_gain() == 0


def test_distance_to_the_roofline_gives_hope() -> None:
    near, far = job("near", 1, Work(10**8, 10**4)), job("far", 1, Work(10**7, 10**3))
    s = TaskScheduler([near, far])
    s.report(near, 1e-3)
    s.report(far, 1e-3)  # a tenth of the other's rate
    assert s.pick() is far


