"""The search for one task's schedule: evolution over decisions, steered by the cost model, with some chance left in.

    batch = search.next(8)                # the candidates that promise most, and a random one now and then
    for d in batch: search.report(d, measured)

A population grows from the best trials so far, the default and random points; its children are scored by the model, which costs a
hundred microseconds each rather than a trial. Nothing is proposed twice, and nothing whose schedule was tried under other decisions.
Equal seeds and equal results give equal candidates.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from random import Random
from typing import Protocol, TypeVar

import numpy as np

from ..errors import ScheduleError
from .cost_model import CostModel, TaskModel
from .features import Features
from .space import Decisions, Space, schedule_key
from .task import Task

_T = TypeVar("_T")
POPULATION = 256   # points that live at once
GENERATIONS = 4
ELITE = 24         # of the best trials, as parents
CROSSED = 0.3      # share of children with two parents; the others are mutations
RANDOM = 0.08      # share of trials that are random points, whatever is predicted
NEAR = 0.2         # share of trials that are neighbours of the best ones, whatever is predicted
LEADERS = 3        # best trials whose neighbours are tried
TRIES = 40         # draws for each point of a batch before the space counts as searched
ALIKE = 2          # candidates of a batch that may differ in one decision only


class _Quick(Random):
    """Draws from a few options, hundreds of thousands of times in a search: without the loop that makes the last 2**-50 of the chances
    equal too, which takes four times as long."""

    def choice(self, seq: Sequence[_T]) -> _T:  # pyright: ignore[reportIncompatibleMethodOverride]  (of sequences alone)
        return seq[int(self.random() * len(seq))]


class Outcome(Protocol):
    """What a trial's result must tell: whether it went well, and how many times faster than the default it was."""

    @property
    def ok(self) -> bool: ...
    @property
    def speedup(self) -> float: ...


class Search:
    """Proposes candidates for one task. `model`: None searches by what was measured alone."""

    def __init__(self, task: Task, space: Space, model: CostModel | None, seed: int = 0, learn: bool = True) -> None:
        """learn: fit the model to this task's trials. Without it and without a model, evolution goes by measured speed alone."""
        self.space, self._learn = space, learn
        self._rng = _Quick(f"{seed} {task.hash}")
        self._features = Features(space, task)
        self._model = TaskModel(model, seed)
        self._seen: set[str] = set()
        self._schedules: set[str] = set()
        self._tried: dict[Decisions, float] = {}  # speed relative to the default; 0: failed
        self._stale = False
        self._promised: dict[Decisions, float] = {}  # of what was proposed: how much faster than the default it would be
        self._take(space.default())
        self._tried[space.default()] = 1.0

    # -- what is known -----------------------------------------------------------------------------------------------
    def known(self, schedules: Iterable[object]) -> None:
        """Schedules (as a log has them) that were tried before and are not to be proposed again."""
        for steps in schedules:
            try:
                self._take(self.space.from_json(steps))
            except ScheduleError:  # of another version, or of primitives: nothing that this search would propose
                continue

    def report(self, d: Decisions, result: Outcome) -> None:
        """What came of a candidate."""
        self._take(d)
        self._tried[d] = result.speedup if result.ok else 0.0
        self._stale = True

    def predicted(self, d: Decisions) -> float | None:
        """How many times faster than the default `d` is expected to be, or was when it was proposed; None where nothing is known."""
        if d not in self._promised and self._model.informed:
            self._promise([d])
        return self._promised.get(d)

    def _promise(self, found: Sequence[Decisions]) -> None:
        default, *scores = np.maximum(self._score([self.space.default(), *found]), 0.01).tolist()
        self._promised |= {d: s / default for d, s in zip(found, scores, strict=True)}

    # -- proposals ---------------------------------------------------------------------------------------------------
    def next(self, n: int) -> list[Decisions]:
        """Up to n new candidates, the most promising first; fewer where the space has no more."""
        self._fit()
        found = self._proposed(n)
        if found and self._model.informed:
            self._promise(found)
        return found

    def _proposed(self, n: int) -> list[Decisions]:
        best = self._best()
        chance = [self._rng.random() for _ in range(n)] if self._model.informed and len(best) > LEADERS else []
        near, lucky = sum(RANDOM <= c < RANDOM + NEAR for c in chance), sum(c < RANDOM for c in chance)
        found = self._pick(self._ranked(best), n - near - lucky)
        for _ in range(TRIES * near):
            if len(found) == n - lucky:
                break
            d = self.space.mutate(self._rng.choice(best[:LEADERS]), self._rng)
            if self._take(d):
                found.append(d)
        for _ in range(TRIES * n):
            if len(found) == n:
                break
            d = self.space.sample(self._rng)
            if self._take(d):
                found.append(d)
        return found

    def _fit(self) -> None:
        if self._stale and self._learn:
            tried = list(self._tried)
            self._model.update(self._features(tried), np.array([self._tried[d] for d in tried]))
            self._stale = False

    def _best(self) -> list[Decisions]:
        """The fastest trials so far."""
        return sorted((d for d, s in self._tried.items() if s > 0), key=lambda d: -self._tried[d])[:ELITE]

    def _ranked(self, best: list[Decisions]) -> list[Decisions]:
        """A population grown from the best trials, best first."""
        if not self._model.informed:
            return self._children(best, [self._tried[d] for d in best], POPULATION // 4)
        population = list(dict.fromkeys([*best, *(self.space.sample(self._rng) for _ in range(POPULATION))]))
        pool: dict[Decisions, float] = dict(zip(population, self._score(population).tolist(), strict=True))
        for _ in range(GENERATIONS):
            parents = sorted(pool, key=lambda d: -pool[d])[:POPULATION // 4]
            children = [d for d in self._children(parents, [max(pool[d], 1e-3) for d in parents], POPULATION) if d not in pool]
            pool |= dict(zip(children, self._score(children).tolist(), strict=True))
        return sorted(pool, key=lambda d: -pool[d])

    def _children(self, parents: Sequence[Decisions], weights: Sequence[float], count: int) -> list[Decisions]:
        """Mutations and mixtures of parents drawn by the cube of their weights."""
        share = [w ** 3 for w in weights]
        drawn = self._rng.choices(parents, share, k=2 * count)
        out = []
        for a, b in zip(drawn[::2], drawn[1::2], strict=True):
            mixed = self.space.cross(a, b, self._rng) if self._rng.random() < CROSSED else self.space.mutate(a, self._rng)
            out.append(mixed)
        return list(dict.fromkeys(out))

    def _pick(self, ranked: Sequence[Decisions], n: int) -> list[Decisions]:
        """The first n that are new, not too many of them alike."""
        found: list[Decisions] = []
        left: list[Decisions] = []
        for d in ranked:
            if len(found) >= n:
                return found
            if sum(_distance(d, e) <= 1 for e in found) >= ALIKE:
                left.append(d)
            elif self._take(d):
                found.append(d)
        for d in left:
            if len(found) < n and self._take(d):
                found.append(d)
        return found

    def _score(self, decisions: Sequence[Decisions]) -> np.ndarray:
        return self._model.predict(self._features(decisions))

    def _take(self, d: Decisions) -> bool:
        """Marks `d` as tried. False where it was, where its schedule was, or where it is infeasible."""
        key = json.dumps(self.space.to_json(d))
        if key in self._seen:
            return False
        self._seen.add(key)
        try:
            made = schedule_key(self.space.scheduled(d))
        except ScheduleError:
            return False
        if made in self._schedules:
            return False
        self._schedules.add(made)
        return True


def _distance(a: Decisions, b: Decisions) -> int:
    """Decisions in which two points differ."""
    if a.sketch != b.sketch:
        return len(a.values)
    return sum(x != y for x, y in zip(a.values, b.values, strict=True))
