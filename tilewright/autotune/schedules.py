"""From the steps of a log's record to a scheduled program, and back from what does not fit."""
from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ..compiler.schedule.primitives import STEPS, apply, from_json
from ..ir.loops import Scheduled
from .log import Steps
from .task import Task

if TYPE_CHECKING:
    from .space import Space


def scheduled(task: Task, steps: Steps) -> Scheduled:
    """The task's program as the steps say; no steps: as the heuristic says. Steps are primitives by name
    (`compiler/schedule/primitives.py`) or decisions of the search space. Raises ScheduleError."""
    if not steps:
        return task.default()
    if primitive(steps):
        return apply(task.program, from_json(steps))
    space = space_of(task)
    return space.scheduled(space.from_json(steps))


@lru_cache(maxsize=256)
def space_of(task: Task) -> Space:
    """The task's search space, which takes longer to make than one of its schedules."""
    from .space import Space
    return Space(task)


def primitive(steps: Steps) -> bool:
    """Whether these are steps of primitives rather than decisions."""
    return all(isinstance(x, list) and len(x) == 2 and x[0] in STEPS and isinstance(x[1], dict) for x in steps)
