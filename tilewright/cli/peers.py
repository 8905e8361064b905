"""`tilewright bench --peers`: a user's own model beside other engines."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..bench.compare import OURS, Comparison, Timing, compare
from ..bench.engines import ENGINES, Job
from ..bench.machine import describe
from .console import duration, size, table


def side_by_side(model: Path, inputs: Sequence[np.ndarray], peers: Sequence[str], threads: Sequence[int], precision: str,
                 seconds: float, schedules: Path | None, strict: bool = False, rounds: int = 5) -> list[Comparison]:
    """One comparison for each number of threads; `seconds` are those that each engine is timed for."""
    found = []
    for n in threads:
        job = Job(model, tuple(inputs), n, precision, str(schedules.resolve()) if schedules else None, strict=strict)
        found.append(compare(job, (OURS, *peers), rounds=rounds, seconds=seconds / rounds))
    return found


def show(comparisons: Sequence[Comparison]) -> None:
    """A row for each engine and number of threads; what did not run says why."""
    rows = [_row(c, t) for c in comparisons for t in c.timings]
    table(("threads", "engine", "version", "median", "10%", "90%", "calls", "ready in", "memory", "error", "times ours"), rows,
          numbers=(0, 3, 4, 5, 6, 7, 8, 9, 10))
    for c in comparisons:
        for t in c.timings:
            if t.status != "ok":
                print(f"{t.engine}, {c.threads} threads: {t.status}: {t.text}")


def _row(c: Comparison, t: Timing) -> tuple[str, ...]:
    error = "reference" if t.engine == c.reference else "" if t.error is None else f"{t.error:.1e}"
    if t.status != "ok":
        return str(c.threads), t.engine, t.version, t.status, "", "", "", "", "", error, ""
    ours = c.of(OURS)
    return (str(c.threads), t.engine, t.version, duration(t.median), duration(t.low), duration(t.high), str(t.samples),
            duration(t.prepare + t.first), size(t.memory), error, f"{t.median / ours.median:.2f}" if ours else "")


def save(comparisons: Sequence[Comparison], path: Path) -> None:
    """The numbers and the machine as JSON."""
    engines = list(dict.fromkeys(t.engine for c in comparisons for t in c.timings))
    data: Mapping[str, object] = {"machine": describe([e for e in engines if e in ENGINES]),
                                  "comparisons": [c.to_json() for c in comparisons]}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
