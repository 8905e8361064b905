"""Tasks of graphs: parts of a model that can be computed in several ways (`compiler/sites.py`), each way a candidate.

    task.workload    "site convolution" and the part as a graph; `parse_site` reads it back
    [["site", {"option": "F4 strips of 2"}]]    a schedule of such a task; []: the heuristic's way

Candidates are few, so that all are tried that the heuristic does not think hopeless. They differ in which kernels they have:
the kernels' own schedules are searched afterwards, for the ways that were chosen.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..backends.target import Target
from ..compiler.build import Options
from ..compiler.schedule.source import HEURISTIC, SITE_HEAD, Choice, Decision, Open, Wanted
from ..compiler.sites import Site
from ..compiler.work import Work
from ..errors import ModelError, ScheduleError
from ..ir.graph import Constant, Graph
from ..ir.program import Program
from ..ir.text import parse_graph
from .log import Steps
from .space import Decisions
from .task import Task

if TYPE_CHECKING:
    from ..compiler.build import Lowered
    from .search import Outcome

MOST = 6           # ways of a site that are tried, the heuristic's among them
NAME = "site"
PRODUCTS = ("conv", "conv_direct", "matmul")
_EMPTY = Program(NAME, (), (), ())


@dataclass(frozen=True)
class SiteTask(Task):
    """`options`: all ways, the most promising first; `own`: the heuristic's. Both are known only where the task comes from a model."""

    kind: str = ""
    graph: Graph = field(default_factory=lambda: Graph(NAME, (), (), ()), compare=False)
    options: tuple[str, ...] = ()
    own: str = ""

    @cached_property
    def work(self) -> Work:
        """Rough: every value read and written once, products of convolutions and matmuls."""
        moved = sum(v.type.size for v in (*self.graph.inputs, *self.graph.outputs))
        flops = 0
        for n in self.graph.nodes:
            if n.op in PRODUCTS:
                w = n.operands[1].type
                flops += 2 * n.outputs[0].type.size * (math.prod(w.shape[1:]) if n.op == "conv" else w.shape[0])
        return Work(flops, 4 * moved)

    def steps(self, option: str) -> Steps:
        return [] if option == self.own else [[NAME, {"option": option}]]


def option_of(steps: Steps) -> str:
    """The way that a schedule names. Raises ScheduleError where it names none."""
    match steps:
        case [[str(name), {"option": str(option)}]] if name == NAME:
            return option
    raise ScheduleError(f"a way to compute a site is [[\"{NAME}\", {{\"option\": …}}]], not {steps!r:.80}")


def site_tasks(low: Lowered, options: Options) -> list[SiteTask]:
    """The sites of a graph that was lowered, each once, with how often it occurs."""
    found: dict[str, Site] = {}
    uses: Counter[str] = Counter()
    for site, _ in low.sites:
        uses[site.hash] += 1
        found.setdefault(site.hash, site)
    return [SiteTask(s.workload, _EMPTY, frozenset(), options.target, options.threads, uses[h], label_of(s.kind, s.graph), s.kind, s.graph,
                     s.options, s.default) for h, s in found.items() if len(s.options) > 1]


def parse_site(text: str, target: Target, threads: int = 1) -> SiteTask:
    """The task of a record's text. Raises ModelError where it is damaged."""
    kind, label, graph = parsed_site(text)
    return SiteTask(text, _EMPTY, frozenset(), target, threads, 1, label, kind, graph)


def parsed_site(text: str) -> tuple[str, str, Graph]:
    """(kind, label, the part of a graph) of a record's text. Raises ModelError where it is damaged."""
    head, _, body = text.partition("\n")
    if not head.startswith(SITE_HEAD):
        raise ModelError(f"not a site: {text[:80]!r}")
    kind, graph = head[len(SITE_HEAD):], parse_graph(body)
    return kind, label_of(kind, graph), graph


def label_of(kind: str, g: Graph) -> str:
    """For people: the kind and the largest result of its products, "layout 1x255x80x80"."""
    made = [n.outputs[0].type for n in g.nodes if n.op in PRODUCTS] or [v.type for v in g.outputs]
    largest = max(made, key=lambda t: t.size)
    return f"{kind} {'x'.join(map(str, largest.shape))}"


def runnable(g: Graph, seed: int) -> Graph:
    """The part with random weights in place of the inputs w0, w1, …"""
    rng = np.random.default_rng(seed)
    weights = [v for v in g.inputs if v.name.startswith("w")]
    constants = {v.name: Constant(v, random_array(v.type.dtype.numpy, v.type.shape, rng, 0.05), True) for v in weights}
    return g.replace(inputs=tuple(v for v in g.inputs if v.name not in constants), constants=constants)


def random_array(dtype: np.dtype, shape: Sequence[int], rng: np.random.Generator, scale: float = 0.5) -> np.ndarray:
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return (rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(dtype)


class Way:
    """A `ScheduleSource` that computes every site of one kind in the same way, and leaves all else to the heuristic."""

    def __init__(self, kind: str, option: str) -> None:
        self._kind, self._option = kind, option
        self.key = f"way {kind} {option}"

    def choose(self, wanted: Sequence[Wanted], target: Target, threads: int) -> list[Choice]:
        return HEURISTIC.choose(wanted, target, threads)

    def decide(self, site: Open, target: Target, threads: int) -> Decision:
        if site.kind != self._kind:
            return Decision(site.default)
        if self._option not in site.options:
            raise ScheduleError(f"a {site.kind} cannot be computed by {self._option!r}; the ways are {', '.join(site.options)}")
        return Decision(self._option)


class SiteSearch:
    """Proposes the ways of a site one after the other."""

    def __init__(self, task: SiteTask) -> None:
        left = [o for o in task.options if o != task.own][:MOST - 1]
        self._task, self._left = task, left

    def known(self, schedules: Sequence[Steps]) -> None:
        for steps in schedules:
            try:
                self._drop(option_of(steps))
            except ScheduleError:
                continue

    def next(self, n: int) -> list[Decisions]:
        found, self._left = self._left[:n], self._left[n:]
        return [Decisions(NAME, (o,)) for o in found]

    def report(self, d: Decisions, result: Outcome) -> None:
        self._drop(str(d.values[0]))

    def predicted(self, d: Decisions) -> float | None:
        return None

    def _drop(self, option: str) -> None:
        self._left = [o for o in self._left if o != option]
