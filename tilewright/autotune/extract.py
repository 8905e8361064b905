"""The tasks of a model."""
from __future__ import annotations

from ..backends.target import Target
from ..compiler.build import Lowered, Options, lower_graph, make_options
from ..compiler.compile import Inputs, first_graph
from ..ir.graph import Graph
from .task import Task, task_of


def extract(model: object, inputs: Inputs | None = None, target: str | Target = "native", threads: int | None = None,
            precision: str = "f32", strict: bool = False) -> list[Task]:
    """The tasks of a model, in the order of their first use. Arguments as of `tilewright.compile`; shapes must be concrete.
    Raises InputError where they are not, and what `compile` raises."""
    return tasks_of(first_graph(model, inputs), make_options(target, threads, precision, None, True, strict))


def tasks_of(graph: Graph, options: Options) -> list[Task]:
    return tasks_of_lowered(lower_graph(graph, options), options)


def tasks_of_lowered(low: Lowered, options: Options) -> list[Task]:
    return [task_of(w, options.target, options.threads) for w in low.wanted]
