"""How a plan is divided among threads, decided once, from what each call costs and touches.

    conv 1      threads 0-1   phase 0
    conv 2      threads 0-1   phase 1     reads what all of conv 1 wrote: the threads meet before it
    softmax     thread 0      phase 2
    reshape     thread 0      phase 2     the same thread wrote its input: no meeting

A call takes part of [0, trips) on each of its threads, contiguous and even by work (shares.py); a thread that is done takes over
pieces of what others have not begun (backends/llvm/stealing.py). A reduction is never divided, so results
are the same bits for every number of threads.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.plan import MOST_PIECES, Loop
from ..backends.target import Target
from .work import Work

CLOCK = 2.5e9            # Hz of a core under vector load
BANDWIDTH = 20e9         # bytes/s of a core from memory and outer caches
SHARE_SECONDS = 5e-6     # of work that a thread must have: waking and meeting cost about 0.5 µs, moved data more
PIECE_SECONDS = 4e-6     # of work in a piece of a share: taking one costs about 0.05 µs
PLAN_SECONDS = 50e-6     # of divided work in all; below, waking a sleeping worker (10 to 20 µs) costs more than it gains


@dataclass(frozen=True, slots=True)
class Touch:
    """Bytes [begin, end) of one tensor's memory that a call reads or writes; `place`: which input, output or arena."""

    place: tuple[str, int]
    begin: int
    end: int
    writes: bool

    def conflicts(self, other: Touch) -> bool:
        return self.place == other.place and (self.writes or other.writes) and self.begin < other.end and other.begin < self.end


def seconds(w: Work, target: Target, reduces: bool) -> float:
    """A rough time on one thread; right within a factor of three, which is all that is asked of it."""
    lanes = target.vector_bytes // 4
    rate = CLOCK * lanes * (2 if reduces and target.has_fma else 1)
    return w.flops / rate + w.bytes / BANDWIDTH


def team(cost: float, trips: int, threads: int) -> int:
    """How many of `threads` threads take part in a call of `cost` seconds; 1: the first alone."""
    return max(1, min(threads, trips, int(cost / SHARE_SECONDS)))


def pieces(cost: float, trips: int, team: int) -> int:
    """Into how many pieces each share of a call of `cost` seconds is cut, which other threads may take over."""
    return max(1, min(MOST_PIECES, trips // team, int(cost / team / PIECE_SECONDS)))


def teams(costs: Sequence[float], trips: Sequence[int], threads: int, times: Sequence[int] = ()) -> tuple[int, ...]:
    """The same for all calls of a plan; all 1 where the whole is too short to divide. `times`: how often each runs."""
    found = tuple(team(c, n, threads) for c, n in zip(costs, trips, strict=True))
    divided = sum(c * m for c, n, m in zip(costs, found, times or (1,) * len(costs), strict=True) if n > 1)
    return found if divided >= PLAN_SECONDS else (1,) * len(found)


def phases(touches: Sequence[Sequence[Touch]], team_sizes: Sequence[int], loops: Sequence[Loop] = ()) -> tuple[int, ...]:
    """Positions of the calls before which all threads meet, the first call among them; () where one thread runs it all.

    Calls of one phase do not wait for each other: none touches what another one on other threads writes. A loop for one
    thread is like one call; around others, and so between their steps, the threads meet."""
    if all(n == 1 for n in team_sizes):
        return ()
    starts = [0]
    whole = {k: x for x in loops for k in range(x.first, x.last)}
    divided = [x for x in loops if any(n > 1 for n in team_sizes[x.first:x.last])]
    borders = {k for x in divided for k in (x.first, x.last)}
    for k in range(len(touches)):
        loop, mine = whole.get(k), touches[k]
        if loop is not None and loop not in divided:
            if k > loop.first:
                continue
            mine = [t for ts in touches[loop.first:loop.last] for t in ts]
        others = [j for j in range(starts[-1], k) if team_sizes[j] > 1 or team_sizes[k] > 1]
        if k and (k in borders or any(a.conflicts(b) for j in others for a in touches[j] for b in mine)):
            starts.append(k)
    return tuple(starts)
