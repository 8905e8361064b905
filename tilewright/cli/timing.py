"""How long calls take."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median, the 10th and 90th percentiles, the least, over `calls` calls."""

    median: float
    low: float
    high: float
    least: float
    calls: int


def measure(call: Callable[[], object], seconds: float, warm_up: float = 0.2, at_least: int = 5) -> Timing:
    """Times `call` one call at a time for about `seconds`, after `warm_up` seconds (one call at least) that do not count."""
    _repeat(call, warm_up, 1)
    samples = np.array(_repeat(call, seconds, at_least))
    low, median, high = np.percentile(samples, (10, 50, 90))
    return Timing(float(median), float(low), float(high), float(samples.min()), len(samples))


def _repeat(call: Callable[[], object], seconds: float, at_least: int) -> list[float]:
    samples, stop = [], time.perf_counter() + seconds
    while len(samples) < at_least or time.perf_counter() < stop:
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return samples
