"""Which search and which scheduler a tuner uses."""
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from .cost_model import CostModel
from .scheduler import TaskScheduler
from .schedules import space_of
from .search import Search as ModelledSearch
from .site import SiteSearch, SiteTask
from .task import Task

if TYPE_CHECKING:
    from .tuner import Scheduler, Search


@cache
def _model() -> CostModel:
    return CostModel.load_default()


def make_search(task: Task, seed: int) -> Search:
    if isinstance(task, SiteTask):
        return SiteSearch(task)
    return ModelledSearch(task, space_of(task), _model(), seed)


def make_scheduler(tasks: Sequence[Task]) -> Scheduler:
    return TaskScheduler(tasks)
