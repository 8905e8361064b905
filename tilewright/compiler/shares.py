"""Even shares of a kernel's work, where its iterations are not even.

    15 tiles of 128 rows: 8 of 9 rows, then 7 of 8        half of the rows: 7 tiles and an eighth of the next one's columns

The iterations that threads divide are numbered by the parallel loops; one costs as many points as the blocks of its loops have.
"""
from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from ..ir.loops import Loop, Scheduled, Split, Stage


def shares(s: Scheduled, loops: Sequence[Loop], team: int) -> tuple[int, ...]:
    """Where the shares of the threads behind the first begin in [0, trips), by work; () where shares even by number are as good.
    `loops`: the parallel loops that all stages of `s` have, outermost first."""
    order = sorted(range(len(loops)), key=lambda k: (-loops[k].major, k))  # the slowest first
    weights = [_weights(s.stages, loops[k]) for k in order]
    if all(len(set(w)) <= 1 for w in weights):
        return ()
    trips, total = (math.prod(len(w) for w in weights), math.prod(sum(w) for w in weights))
    cuts = tuple(_position(weights, total * t / team) for t in range(1, team))
    return () if cuts == tuple(trips * t // team for t in range(1, team)) else cuts


def _weights(stages: Sequence[Stage], loop: Loop) -> list[int]:
    """Points of each iteration of a loop: the sizes of the blocks that it counts."""
    split = next((r for st in stages for r in st.relations if isinstance(r, Split) and r.outer == loop.axis), None)
    if split is None:
        return [1] * loop.axis.extent
    found = [size for _, count, size, _ in split.segments() for _ in range(count)]
    return found + [0] * (loop.axis.extent - len(found))


def _position(weights: Sequence[Sequence[int]], before: float) -> int:
    """The iteration with `before` points before it, to the nearest: digit by digit, the slowest loop first."""
    at = 0
    for k, w in enumerate(weights):
        inside = math.prod(map(sum, weights[k + 1:]))
        starts = [n * inside for n in accumulate(w, initial=0)]
        if k + 1 == len(weights):
            digit = min(range(len(starts)), key=lambda i: abs(starts[i] - before))
        else:
            digit = min(bisect_right(starts, before), len(w)) - 1
            before = (before - starts[digit]) / max(w[digit], 1)
        at = at * len(w) + digit
    return at
