"""Schedules in the whole model, beside the compiler's own there: kernel by kernel, and call by call.

What runs beside each other is compared by the ratios of what ran one right after the other, as in `samples.py`: a machine's speed changes
too often for any other comparison.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..backends.executable import Executable
from ..backends.instance import Instance
from ..backends.profile import Walk
from ..compiler.build import Assembly, Lowered, Options
from .log import Steps
from .task import task_of

ROUNDS, SECONDS = 400, 3.0  # of each build, whichever is less
LEAST_ROUNDS = 7
BURST_CALLS, BURST_SECONDS = 3, 0.02  # calls of one model before it is the other's turn: at least so many, and so long
LEAST_PAIRS = 5
QUIET = 0.02             # quantile of a call's time that stands for a quiet machine
Clock = Callable[[], float]


def owners(low: Lowered, options: Options) -> list[str]:
    """For each call of the plan that is made of `low` its task; "" for host functions. Kernels that only fill borders, which a plan
    does once for all, are no calls of it."""
    number = {id(c.scheduled): task_of(w, options.target, options.threads).hash for w, c in zip(low.wanted, low.choices, strict=True)}
    return ["" if s is None else number[id(s)] for s in Assembly(low, options, keep_borders=True).low.scheduled]


def step_times(instances: Sequence[Instance], data: Sequence[np.ndarray], seconds: float = SECONDS) -> np.ndarray:
    """[round, instance, call]: how long each call of the plans took, in ticks; the instances run by turns."""
    walks = [Walk(i, data) for i in instances]
    rounds: list[list[np.ndarray]] = []
    stop = time.perf_counter() + seconds * len(walks)
    while len(rounds) < LEAST_ROUNDS or (time.perf_counter() < stop and len(rounds) < ROUNDS):
        found = []
        for w in walks:
            w.run()  # the caches are its own again
            found.append(np.diff(w.run()))
        rounds.append(found)
    return np.array(rounds, np.float64)


def faster_in_place(times: np.ndarray, calls: Sequence[str], variants: Sequence[Mapping[str, Steps]]) -> dict[str, Steps]:
    """Of each task the variant's schedule that was fastest in the model, if it was faster than the default's by more than the
    measurement's error. times: of the model without them, then of each variant, as `step_times` has them; calls: their tasks."""
    out: dict[str, Steps] = {}
    for task in dict.fromkeys(c for c in calls if c):
        total = times[:, :, [k for k, c in enumerate(calls) if c == task]].sum(axis=2)
        sure = [(_surely(total[:, 0] / total[:, 1 + k]), k) for k, v in enumerate(variants) if task in v]
        gain, best = max(sure, default=(0.0, 0))
        if gain > 1.0:
            out[task] = variants[best][task]
    return out


def _surely(ratios: np.ndarray) -> float:
    """The median less its standard error, by the quartiles (of a normal distribution 1.349 deviations apart)."""
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return float(middle - 1.253 * (high - low) / 1.349 / np.sqrt(len(ratios)))


@dataclass(frozen=True, slots=True)
class Compared:
    """Two executables, call beside call. first, second: seconds of a call at least. gain: how many times faster the second one is,
    the median over pairs of bursts; quiet: the same by the calls that were disturbed least. samples: of the second, in ns."""

    first: float
    second: float
    gain: float
    quiet: float
    samples: tuple[int, ...]


def compare(a: Executable, b: Executable, data: Sequence[np.ndarray], seconds: float, clock: Clock = time.perf_counter) -> Compared:
    """Runs both by turns, in bursts short enough that the machine is the same for two of them, for about so many seconds."""
    ratios: list[float] = []
    times: tuple[list[float], list[float]] = [], []
    stop = clock() + seconds
    for exe in (a, b):
        burst(exe, data, clock)
    while len(ratios) < LEAST_PAIRS or clock() < stop:
        found = {}
        for which in ((0, 1), (1, 0))[len(ratios) % 2]:
            found[which] = burst((a, b)[which], data, clock)
            times[which].extend(found[which])
        ratios.append(float(np.median(found[0]) / np.median(found[1])))
    quiet = float(np.quantile(times[0], QUIET) / np.quantile(times[1], QUIET))
    return Compared(min(times[0]), min(times[1]), float(np.median(ratios)), quiet, nanoseconds(times[1]))


def burst(exe: Executable, data: Sequence[np.ndarray], clock: Clock = time.perf_counter) -> list[float]:
    """Seconds of calls in a row; one before them, which does not count, makes the caches the model's own."""
    exe(*data)
    found: list[float] = []
    stop = clock() + BURST_SECONDS
    while len(found) < BURST_CALLS or clock() < stop:
        begin = clock()
        exe(*data)
        found.append(clock() - begin)
    return found


def nanoseconds(samples: Sequence[float], most: int = 450) -> tuple[int, ...]:
    """For the log: integers above 0, of the first samples."""
    return tuple(max(1, int(x * 1e9)) for x in samples[:most])
