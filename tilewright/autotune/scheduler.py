"""Where the next trials go: to the task whose further trials are expected to shorten the whole model most.

    gain of a task = uses x seconds now x the part of them that the next trials are expected to save

That part is what recent trials saved, or, with few of them, a share of the way to the roofline: the highest rates of arithmetic and
of memory traffic that any task of this session reached say how fast each could be at best.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

from .task import Task

WINDOW = 24      # trials over which recent savings are taken
PATIENCE = 24.0  # trials after which hope that nothing supports has fallen to 1/e
HOPE = 0.3       # of the distance to the roofline: what the first trials of a task may save
LEAST_HOPE = 0.03
BURST = 8        # trials that a task keeps once it is picked


class TaskScheduler:
    """Shares out trials. `report` is told the best time of a task after each of its trials, the default's first."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {t.hash: t for t in tasks}
        self._best: dict[str, list[float]] = {t.hash: [] for t in tasks}
        self._pending: dict[str, int] = dict.fromkeys(self._tasks, 0)
        self._closed: set[str] = set()

    def pick(self) -> Task | None:
        """The task for the next batch; None where none has anything left to try."""
        open_tasks = [t for h, t in self._tasks.items() if h not in self._closed and self._best[h]]
        if not open_tasks:
            return None
        chosen = max(open_tasks, key=lambda t: (self._gain(t), t.hash))
        self._pending[chosen.hash] += BURST
        return chosen

    def report(self, task: Task, best_seconds: float) -> None:
        """The best time of `task` after one more trial."""
        self._best[task.hash].append(best_seconds)
        self._pending[task.hash] = max(0, self._pending[task.hash] - 1)

    def exhausted(self, task: Task) -> None:
        """`task` has nothing left to try."""
        self._closed.add(task.hash)

    def expected_gain(self) -> float:
        """Seconds of a call that the next batch of every task is expected to save together."""
        return sum(self._gain(t) for h, t in self._tasks.items() if h not in self._closed and self._best[h])

    def _gain(self, t: Task) -> float:
        """Seconds of a call that the next trials of `t` are expected to save, those under way taken as in vain."""
        best = self._best[t.hash]
        count = len(best) - 1 + self._pending[t.hash]
        recent = best[-WINDOW - 1:]
        saved = (recent[0] - recent[-1]) / max(recent[0], 1e-12) * math.exp(-self._pending[t.hash] / PATIENCE)
        hope = max(LEAST_HOPE, HOPE * self._headroom(t)) * math.exp(-count / PATIENCE)
        return t.uses * best[-1] * max(saved / 2, hope)

    def _headroom(self, t: Task) -> float:
        """The part of the task's time that a kernel at the session's best rates would not need."""
        flops = max((x.work.flops / self._best[h][-1] for h, x in self._tasks.items() if self._best[h]), default=1.0)
        traffic = max((x.work.bytes / self._best[h][-1] for h, x in self._tasks.items() if self._best[h]), default=1.0)
        bound = max(t.work.flops / max(flops, 1.0), t.work.bytes / max(traffic, 1.0))
        return max(0.0, 1.0 - bound / self._best[t.hash][-1])
