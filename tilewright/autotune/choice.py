"""Which search and which scheduler a tuner uses."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .plain import RandomSearch, RoundRobin
from .task import Task

if TYPE_CHECKING:
    from .tuner import Scheduler, Search


def make_search(task: Task, seed: int) -> Search:
    return RandomSearch(task, seed)


def make_scheduler(tasks: Sequence[Task]) -> Scheduler:
    return RoundRobin(tasks)
