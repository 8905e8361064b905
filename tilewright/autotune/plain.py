"""Search and budget without any model of cost: what the others must beat."""
from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence

from .log import Steps
from .measure import Result
from .schedules import space_of
from .space import Decisions
from .task import Task

TRIES = 40  # draws for each new point, before the space counts as searched


class RandomSearch:
    """Random points of a task's space, none twice."""

    def __init__(self, task: Task, seed: int = 0) -> None:
        self._space, self._rng = space_of(task), random.Random(f"{seed} {task.hash}")
        self._seen = {json.dumps(self._space.to_json(self._space.default()), sort_keys=True)}

    def known(self, schedules: Iterable[Steps]) -> None:
        """These were tried before."""
        self._seen |= {json.dumps(s, sort_keys=True) for s in schedules}

    def next(self, n: int) -> list[Decisions]:
        """At most n new points; fewer where the space has no more."""
        found: list[Decisions] = []
        for _ in range(TRIES * n):
            d = self._space.sample(self._rng)
            key = json.dumps(self._space.to_json(d), sort_keys=True)
            if key not in self._seen:
                self._seen.add(key)
                found.append(d)
                if len(found) == n:
                    break
        return found

    def report(self, d: Decisions, result: Result) -> None:
        """What was measured; it changes nothing here."""


class RoundRobin:
    """The tasks by turns, for as long as they have anything to try."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks, self._at = list(tasks), 0

    def pick(self) -> Task | None:
        if not self._tasks:
            return None
        self._at += 1
        return self._tasks[self._at % len(self._tasks)]

    def report(self, task: Task, best_seconds: float) -> None:
        """The best time so far; it changes nothing here."""

    def exhausted(self, task: Task) -> None:
        self._tasks = [t for t in self._tasks if t is not task]

    def expected_gain(self) -> float:
        """Seconds that further trials may take off a call: not known."""
        return float("inf")
