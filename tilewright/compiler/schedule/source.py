"""Where schedules come from: the heuristic, a tuning log, or a tuner. The compiler knows the interface only.

    decision = source.decide(site, target, threads)             # which way to compute a part of the graph
    choices = source.choose([Wanted(program, {"w"}, "conv+relu", 3), …], target, threads)

A source sees all programs of a graph at once, because what is best for a model was decided for the model.
"""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ...backends.target import Target
from ...ir.loops import Scheduled
from ...ir.program import Program
from .default import default_schedule

SITE_HEAD = "site "  # how the workload of a part of a graph begins (`compiler/sites.py`)


def workload_hash(workload: str) -> str:
    """What a log calls a task, of its canonical text: a part of a graph, or a kernel's program (`autotune/task.py`)."""
    return hashlib.sha256(workload.encode()).hexdigest()[:20]


Status = Literal["default", "applied", "adapted", "rejected", "missing"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A program to schedule. packable: the inputs that the caller can lay out beforehand. uses: how many kernels of the
    graph it is."""

    program: Program
    packable: frozenset[str] = frozenset()
    label: str = ""
    uses: int = 1


@dataclass(frozen=True, slots=True)
class Choice:
    """A schedule of the wanted program or of one equal to it but for names. status: "default": nobody was asked; "applied":
    as the source has it; "adapted": changed to fit; "rejected": what the source has does not fit; "missing": it has nothing.
    reason: one sentence, "" where there is nothing to say."""

    scheduled: Scheduled
    status: Status = "default"
    reason: str = ""


class Open(Protocol):
    """A part of a graph that can be computed in several ways: `compiler/sites.py`."""

    @property
    def kind(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def default(self) -> str: ...
    @property
    def hash(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Decision:
    """One of a site's options. status, reason: as of `Choice`."""

    option: str
    status: Status = "default"
    reason: str = ""


class ScheduleSource(Protocol):
    """`key`: changes whenever the choices may, for caches of compiled plans."""

    @property
    def key(self) -> str: ...

    def choose(self, wanted: Sequence[Wanted], target: Target, threads: int) -> list[Choice]:
        """One choice for each program, in order. `threads`: how many may take part in a call."""
        ...

    def decide(self, site: Open, target: Target, threads: int) -> Decision:
        """How to compute a part of a graph. Asked before the programs are known, which follow from it."""
        ...


@dataclass(frozen=True, slots=True)
class Heuristic:
    """The compiler's own schedules: nothing is measured."""

    key: str = "default"

    def choose(self, wanted: Sequence[Wanted], target: Target, threads: int) -> list[Choice]:
        return [Choice(default_schedule(w.program, target, w.packable)) for w in wanted]

    def decide(self, site: Open, target: Target, threads: int) -> Decision:
        return Decision(site.default)


HEURISTIC: ScheduleSource = Heuristic()
