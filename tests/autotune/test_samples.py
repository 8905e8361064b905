"""What samples say on a machine that is never quiet: with a clock of their own, on which code takes as long as a script says."""
from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tilewright.autotune.measure import Result
from tilewright.autotune.samples import CONFIRM, DISTURBED, PATIENCE, SAMPLES, by_turns, disturbed, speedup

BUDGET = 150_000_000  # ns
LEAST = 100_000


class Machine:
    """`pace`: by how much everything is slower, sample after sample."""

    def __init__(self, pace: Iterator[float]) -> None:
        self.now, self.pace = 0, pace


class Kernel:
    """Takes `ns` on a quiet machine."""

    def __init__(self, machine: Machine, ns: int, alone: bool = False) -> None:
        self.machine, self.ns, self.alone = machine, ns, alone

    def sample(self) -> int:
        pace = next(self.machine.pace)
        took = int(self.ns * (1 if self.alone else pace))
        self.machine.now += took
        return took


def steady(factor: float = 1.0) -> Iterator[float]:
    while True:
        yield factor


def moody(seed: int) -> Iterator[float]:
    """Two speeds, a third apart, each for some ten samples."""
    rng, slow = random.Random(seed), False
    while True:
        slow ^= rng.random() < 0.1
        yield 1.33 if slow else 1.0


def measured(pace: Iterator[float], ns: int, best: float = 1.0, alone: bool = False, budget: int = BUDGET) -> tuple[list[int], list[int]]:
    """Samples of a kernel that takes `ns` beside a default that takes LEAST. alone: only the default feels the pace."""
    m = Machine(pace)
    return by_turns(Kernel(m, LEAST), Kernel(m, ns, alone), best, LEAST, budget, clock=lambda: m.now)


@pytest.mark.parametrize(("ns", "best", "count"), [(99_000, 1.1, SAMPLES), (90_000, 1.0, CONFIRM), (200_000, 1.0, 2)],
                         ids=["no better", "looks best", "hopeless"])
def test_what_looks_best_is_sampled_longer(ns: int, best: float, count: int) -> None:
    samples, beside = measured(steady(), ns, best)
    assert (len(samples), len(beside)) == (count, count)


def test_the_budget_ends_it() -> None:
    assert len(measured(steady(), 101_000, budget=3 * LEAST)[0]) == 2
    assert 2 < len(measured(steady(), 99_000, budget=3 * LEAST)[0]) < CONFIRM  # what looks best has three times as much


def test_a_machine_of_two_speeds_misleads_pairs_little() -> None:
    """Of two equal kernels neither is found much faster, which least samples of eight pairs would often say."""
    found, least = [], []
    for seed in range(300):
        samples, beside = measured(moody(seed), LEAST)
        found.append(speedup(samples, beside, LEAST))
        least.append(min(beside[:SAMPLES]) / min(samples[:SAMPLES]))
    assert max(found) < 1.05
    assert min(found) > 0.95
    assert max(least) > 1.3


def test_a_disturbed_default_is_waited_for() -> None:
    """Another program runs for a while: samples are taken until most are good."""
    def pace() -> Iterator[float]:
        for _ in range(8):
            yield 18.0
        yield from steady()
    samples, beside = measured(pace(), LEAST)
    assert len(samples) > SAMPLES
    assert not disturbed(beside, LEAST)
    assert speedup(samples, beside, LEAST) == pytest.approx(1.0)


def test_a_default_that_is_always_disturbed_makes_no_candidate_fast() -> None:
    """Two threads beside another program: the default waits for its second thread, a candidate for one thread does not."""
    samples, beside = measured(steady(18.0), 110_000, alone=True)
    assert len(samples) == PATIENCE * SAMPLES
    assert disturbed(beside, LEAST)
    assert speedup(samples, beside) == pytest.approx(18 / 1.1, rel=1e-3)  # what was believed once
    assert speedup(samples, beside, LEAST) == pytest.approx(1 / 1.1, rel=1e-3)


def test_both_disturbed_is_no_gain() -> None:
    samples, beside = measured(steady(5.0), 100_000)
    assert speedup(samples, beside, LEAST) == pytest.approx(0.2)


def test_limits() -> None:
    assert speedup([], []) == 0.0
    assert speedup([50, 50], [100, 100]) == 2.0
    assert speedup([50], [100, 110]) == 2.0  # no pairs: the least samples
    assert speedup([50] * 3, [149] * 3, 100) == pytest.approx(2.98)  # slower than ever, within its own unsteadiness
    assert speedup([20, 50, 50], [100] * 3, 60) == 2.0
    assert speedup([20, 20, 20], [85] * 3, 60) == 4.25 <= DISTURBED * 60 / 20


def test_a_result_knows_whether_it_was_disturbed() -> None:
    good, bad = Result("ok", (100,) * 4, None, (110,) * 4, 100), Result("ok", (100,) * 4, None, (1800,) * 4, 100)
    assert (good.disturbed, good.speedup) == (False, pytest.approx(1.1))
    assert (bad.disturbed, bad.speedup) == (True, 1.0)
    assert Result("crash").disturbed is False
