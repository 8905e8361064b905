"""The state of an import between two segments: what is left to do, and where its values come from."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ....ir.graph import Value

if TYPE_CHECKING:
    from .graphs import Scope
    from .importer import Importer

Item = Value | tuple["Item", ...] | None  # what a name stands for: a tensor, a sequence, or an absent optional


class Task(Protocol):
    """A step of the import. Tasks form a stack: control flow and functions push the tasks of their bodies."""

    def run(self, imp: Importer) -> None: ...

    def reads(self) -> frozenset[str]:
        """Keys of the environment that this task may read."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A literal."""

    array: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """An updatable constant and the model's name for it."""

    name: str
    array: np.ndarray


@dataclass(frozen=True, slots=True)
class Feed:
    """An input of the source."""

    name: str


Stored = Known | Weight | Feed | tuple["Stored", ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """tasks: what is left, first one first. env: key -> where its value comes from. answers: what the first task will be
    told when it asks its n-th question (a value at compile time, or the outputs of a data-dependent operator). results: names
    of the model's outputs in `main`, its outermost scope. scopes: how many scopes have been opened, so that prefixes stay unique."""

    tasks: tuple[Task, ...]
    env: Mapping[str, Stored]
    results: tuple[str, ...]
    main: Scope
    answers: Mapping[int, Stored] = field(default_factory=dict)
    scopes: int = 0
