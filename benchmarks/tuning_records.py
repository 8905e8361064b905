"""Timed schedules as text: one JSON object a line, appended in slices, so that collecting can stop and go on at any time.

    {"workload": text, "target": {…}, "threads": 1, "label": text, "points": [[schedule, seconds, default's seconds], …]}

`schedule` is what a tuning log stores; null seconds: it could not be built, or its result was wrong. The default's seconds were
taken in the same rounds: what counts is their ratio.
"""
from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.trials import Trials
from tilewright.autotune.space import Decisions, Space
from tilewright.autotune.task import Task, parse_workload
from tilewright.backends.target import Target
from tilewright.errors import ScheduleError


@dataclass
class Record:
    """A task with what was timed of it. `ratio`: default's time over the point's; 0 where it failed."""

    task: Task
    decisions: list[Decisions] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> np.ndarray:
        s, b = np.array(self.seconds), np.array(self.base)
        return np.where(np.isfinite(s), b / s, 0.0)


def append(path: Path, task: Task, space: Space, decisions: Sequence[Decisions], times: Sequence[tuple[float, float] | None]) -> None:
    """Adds a line, and makes sure it is on disk."""
    points = [[space.to_json(d), *(t or (None, None))] for d, t in zip(decisions, times, strict=True)]
    line = {"workload": task.workload, "target": task.target.to_json(), "threads": task.threads, "label": task.label, "points": points}
    with path.open("a") as f:
        f.write(json.dumps(line, separators=(",", ":")) + "\n")
        f.flush()
        os.fsync(f.fileno())


def read(path: Path) -> Iterator[Record]:
    """The records of a file (`.gz`: compressed), lines of one task joined. Points that the present space does not hold are left out."""
    found: dict[str, tuple[Record, Space]] = {}
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as f:
        for text in f:
            try:
                line = json.loads(text)
            except ValueError:
                continue  # torn by a kill
            task = parse_workload(line["workload"], Target.from_json(line["target"]), line["threads"])
            task = task.__class__(task.workload, task.program, task.packable, task.target, task.threads, 1, line["label"])
            if task.hash not in found:
                found[task.hash] = Record(task), Space(task)
            record, space = found[task.hash]
            for steps, seconds, base in line["points"]:
                try:
                    d = space.from_json(steps)
                except ScheduleError:
                    continue
                record.decisions.append(d)
                record.seconds.append(np.inf if seconds is None else seconds)
                record.base.append(1.0 if base is None else base)
    for record, _ in found.values():
        yield record


def run(trials: Trials, space: Space, decisions: Iterable[Decisions]) -> tuple[list[Decisions], list[tuple[float, float] | None]]:
    """Builds and times points; those that are infeasible are left out."""
    kept, made = [], []
    for d in decisions:
        try:
            made.append(trials.build(space.scheduled(d)))
        except ScheduleError:
            continue
        kept.append(d)
    return kept, trials.times(made)


def distinct(draw: Callable[[random.Random], Decisions], count: int, rng: random.Random, seen: set[Decisions]) -> list[Decisions]:
    """Up to `count` points that were not seen; fewer in a small space."""
    out: list[Decisions] = []
    for _ in range(count * 10):
        if len(out) == count:
            break
        if (d := draw(rng)) not in seen:
            seen.add(d)
            out.append(d)
    return out
