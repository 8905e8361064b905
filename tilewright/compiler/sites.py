"""Sites: parts of a graph that can be computed in several ways where the better one is not certain before it is measured.

    convolution   a 3x3 convolution of stride 1: direct sums, or Winograd's with tiles of 2 or 4, in strips or step by step
    layout        convolutions with few channels, or at the ends of a net, and what joins them: images plain, or in blocks of channels
    attention     matmul, softmax, matmul: one kernel or three
    norm          layer norm after a product: in its kernel, or a pass of its own
    epilogue      long maps after a contraction: in its registers, or a pass of their own
    depthwise     a depthwise convolution and what makes its image: in strips of rows together, or one after the other
    pool          maps before a pool: computed in its windows, or a pass of their own
    siblings      contractions of one input: side by side, or one wider contraction

Passes ask `Sites`, with the heuristic's answer as the default; a source of schedules that was tuned may know better. What a
site is called in a log is its graph's text: no names of the model, no weights.
"""
from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..backends.target import Target
from ..ir.graph import Graph, Node, Value
from ..ir.ops.blocked import BlockAttrs
from ..ir.text import print_graph
from ..ir.types import TensorType
from .schedule.source import SITE_HEAD, Decision, ScheduleSource, workload_hash


@dataclass(frozen=True)
class Site:
    """kind: see above. options: all ways, those that look best first. default: the heuristic's. make: the part as a graph of its own."""

    kind: str
    options: tuple[str, ...]
    default: str
    make: Callable[[], Graph] = field(repr=False, compare=False)

    @cached_property
    def graph(self) -> Graph:
        return self.make()

    @cached_property
    def workload(self) -> str:
        """The canonical text: "site KIND", then the graph, whose inputs w0, w1, … are weights."""
        return f"{SITE_HEAD}{self.kind}\n{print_graph(self.graph)}"

    @property
    def hash(self) -> str:
        return workload_hash(self.workload)


class Sites:
    """Asks a source about the sites of one graph, and remembers what was asked."""

    def __init__(self, source: ScheduleSource, target: Target, threads: int = 1) -> None:
        self._source, self._target, self._threads = source, target, threads
        self.asked: list[tuple[Site, Decision]] = []

    def choose(self, site: Site) -> str:
        """The way to compute a site."""
        d = self._source.decide(site, self._target, self._threads)
        assert d.option in site.options
        self.asked.append((site, d))
        return d.option


def part(nodes: Sequence[Node], weights: Iterable[str], blocks: int = 0, inside: Container[str] | None = None) -> Graph:
    """The nodes as a graph of their own with canonical names: inputs x0, x1, … and, where `weights` has their names, w0, w1, …;
    what nobody among the nodes reads is a result. blocks: images with plain channels come and go in blocks of so many; inside: only
    these of them."""
    known = frozenset(weights)

    def split(v: Value) -> bool:
        return bool(blocks) and v.name not in known and v.type.rank == 4 and (inside is None or v.name in inside)
    names: dict[str, Value] = {}
    inputs: list[Value] = []
    body: list[Node] = []
    counts = {"x": 0, "w": 0, "v": 0}

    def fresh(kind: str, like: Value) -> Value:
        counts[kind] += 1
        return Value(f"{kind}{counts[kind] - 1}", like.type)

    def given(v: Value) -> Value:
        new = fresh("w" if v.name in known else "x", v)
        if split(v):
            outer, entry = _entry(new, fresh("v", v), blocks)
            inputs.append(outer)
            body.append(entry)
            return entry.outputs[0]
        inputs.append(new)
        return new
    read = {v.name for n in nodes for v in n.operands}
    for n in nodes:
        ins = tuple(None if v is None else names.setdefault(v.name, names.get(v.name) or given(v)) for v in n.inputs)
        outs = tuple(fresh("v", v) for v in n.outputs)
        names |= {v.name: o for v, o in zip(n.outputs, outs, strict=True)}
        body.append(Node(n.op, ins, n.attrs, outs))
    ends: list[Value] = []
    for v in (v for n in nodes for v in n.outputs if v.name not in read):
        ends.append(names[v.name])
        if split(v):
            body.append(_exit(names[v.name], fresh("v", v), blocks))
            ends[-1] = body[-1].outputs[0]
    return Graph("site", tuple(inputs), tuple(ends), tuple(body))


def _entry(name: Value, plain: Value, c: int) -> tuple[Value, Node]:
    outer = Value(name.name, _blocked(name, c))
    return outer, Node("from_blocked", (outer,), BlockAttrs(c, plain.type.shape[1]), (plain,))


def _exit(v: Value, name: Value, c: int) -> Node:
    return Node("to_blocked", (v,), BlockAttrs(c), (Value(name.name, _blocked(v, c)),))


def _blocked(v: Value, c: int) -> TensorType:
    n, channels, h, w = v.type.shape
    return TensorType(v.type.dtype, (n, -(-channels // c), h, w, c))
