"""Samples of a candidate and of the default schedule, by turns, and what they say on a machine that is never quiet.

A core that shares its execution units with another hardware thread changes its speed by a third within milliseconds, and with several
threads a call waits for whatever keeps the other core. Two samples taken one right after the other mostly meet the same machine, so
their ratio says far more than the least sample of either: of two runs of the same code, by 8 pairs each, the medians of ratios
differed by 1 to 3% (standard deviation), the ratios of least samples by 3 to 5%, and in some of a few hundred by 30%, which is then what a
search calls its best. What looks faster than the best so far is therefore sampled longer.

Where something ran beside all samples of the default but not beside the candidate's, their ratio means nothing. The default's least
time ever seen says how fast a candidate can be found at most.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol

SAMPLES = 8        # pairs, of a candidate that is not clearly slower than the best so far
CONFIRM = 32       # of one that looks faster
CONFIRM_TIME = 3   # times the budget of any other, for these
HOPELESS = 1.3     # times slower than the best so far: two pairs say enough
DISTURBED = 1.5    # times the default's least time: more is not this processor's own unsteadiness, something else ran
PATIENCE = 4       # times SAMPLES at most, until that is gone


class Sampler(Protocol):
    """A kernel ready to run. `sample`: nanoseconds of one run."""

    def sample(self) -> int: ...


def by_turns(base: Sampler, candidate: Sampler, best: float, least: int, budget_ns: int, before: Callable[[], None] | None = None,
             clock: Callable[[], int] = time.perf_counter_ns) -> tuple[list[int], list[int]]:
    """Samples of the candidate and of the default `base`, by turns. best: how many times faster than the default the best candidate
    so far is. least: the default's least time so far, ns. before: called before each sample."""
    samples: list[int] = []
    beside: list[int] = []
    begin = clock()
    while True:
        for code, into in ((base, beside), (candidate, samples)):
            if before is not None:
                before()
            into.append(code.sample())
        if len(samples) >= 2 and _enough(samples, beside, best, least, (clock() - begin) / max(1, budget_ns)):
            return samples, beside


def _enough(samples: Sequence[int], beside: Sequence[int], best: float, least: int, spent: float) -> bool:
    """spent: the part of the budget that is used up."""
    ratios = [b / s for b, s in zip(beside, samples, strict=True)]
    if max(ratios) * HOPELESS < best and max(beside) <= DISTURBED * least:
        return True
    if disturbed(beside, least):
        return len(samples) >= PATIENCE * SAMPLES or spent > CONFIRM_TIME
    if median(ratios) > best:
        return len(samples) >= CONFIRM or spent > CONFIRM_TIME
    return len(samples) >= SAMPLES or spent > 1


def disturbed(beside: Sequence[int], least: float) -> bool:
    """Whether something else ran beside most of these samples of the default."""
    return least > 0 and median(beside) > DISTURBED * least


def speedup(samples: Sequence[int], beside: Sequence[int], least: float = 0.0) -> float:
    """How many times faster than the default a candidate is: the median over pairs; without pairs, by the least samples. least: the
    default's least time ever seen, 0: not known. No candidate is found faster than its least sample is beside that time, with some
    allowance for a processor that is slower now, and none where something else ran beside the default."""
    if not samples or not beside:
        return 0.0
    if len(samples) == len(beside):
        found = median(b / s for b, s in zip(beside, samples, strict=True))
    else:
        found = min(beside) / min(samples)
    if least <= 0:
        return found
    return min(found, (1.0 if disturbed(beside, least) else DISTURBED) * least / min(samples))
