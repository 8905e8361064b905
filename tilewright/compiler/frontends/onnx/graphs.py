"""The structure of ONNX graphs: scopes of names, order of nodes, what a subgraph captures."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ....errors import ModelError
from .loading import Initializers, OnnxModel, check_text, domain_of

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, NodeProto

GRAPH_ATTRIBUTES = (5, 10)  # AttributeProto.GRAPH, GRAPHS
MAX_DEPTH = 64              # nesting of subgraphs and functions


def describe(node: NodeProto) -> str:
    """How messages name a node: "Conv 'layer1/conv'", with the output's name where the node has none."""
    name = node.name or next((o for o in node.output if o), "")
    domain = domain_of(node.domain)
    return f"{full_name(domain, node.op_type).removeprefix('' if domain else 'ai.onnx.')} {name!r}"


def full_name(domain: str, op_type: str) -> str:
    """An operator's name with its domain, escaped where a damaged model has odd characters in it."""
    name = f"{domain or 'ai.onnx'}.{op_type}"
    return name if name.isprintable() else repr(name)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs among a node's attributes."""
    for a in node.attribute:
        if a.type in GRAPH_ATTRIBUTES:
            yield from ([a.g] if a.HasField("g") else [])
            yield from a.graphs


def free_names(graph: GraphProto) -> frozenset[str]:
    """Names that `graph` reads from the graphs around it."""
    defined = {i.name for i in graph.input} | {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    read: set[str] = set()
    for n in graph.node:
        read.update(n.input)
        for g in subgraphs(n):
            read |= free_names(g)
        defined.update(n.output)
    read.update(o.name for o in graph.output)
    return frozenset(read - defined - {""})


def reads_of(node: NodeProto) -> frozenset[str]:
    """Names a node reads, the captures of its subgraphs included."""
    out = frozenset(i for i in node.input if i)
    for g in subgraphs(node):
        out |= free_names(g)
    return out


def ordered(nodes: Iterable[NodeProto], given: frozenset[str], outer: frozenset[str], where: str) -> tuple[NodeProto, ...]:
    """The nodes so that each follows those it reads from; as they are if they already do.

    `given`: names the graph itself defines apart from its nodes; `outer`: names visible from around it. Raises ModelError
    for values defined twice or never, and for cycles.
    """
    nodes = tuple(nodes)
    for n in nodes:
        check_text(where, n.op_type, n.domain, n.name, n.overload, *n.input, *n.output, *(a.name for a in n.attribute))
    producer: dict[str, int] = {}
    for k, n in enumerate(nodes):
        for o in n.output:
            if o and (o in given or o in producer):
                raise ModelError(f"{where}: the value {o!r} is defined twice, the second time by {describe(n)}")
            if o:
                producer[o] = k
    before: list[set[int]] = []
    in_order = True
    for k, n in enumerate(nodes):
        reads = reads_of(n)
        for name in reads:
            if name not in producer and name not in given and name not in outer:
                raise ModelError(f"{where}: {describe(n)} reads {name!r}, which nothing defines")
        before.append({producer[r] for r in reads if r in producer})
        in_order = in_order and all(p < k for p in before[-1])
    return nodes if in_order else tuple(nodes[k] for k in _topological(before, nodes, where))


def _topological(before: list[set[int]], nodes: tuple[NodeProto, ...], where: str) -> list[int]:
    import heapq
    after: list[list[int]] = [[] for _ in nodes]
    missing = [len(b) for b in before]
    for k, b in enumerate(before):
        for p in b:
            after[p].append(k)
    ready = [k for k, m in enumerate(missing) if m == 0]  # a heap: the original order is kept where it can be
    out: list[int] = []
    while ready:
        k = heapq.heappop(ready)
        out.append(k)
        for s in after[k]:
            missing[s] -= 1
            if missing[s] == 0:
                heapq.heappush(ready, s)
    if len(out) < len(nodes):
        k = next(k for k, m in enumerate(missing) if m)
        while missing[k]:  # walk backwards through unfinished nodes until one repeats: that one is on a cycle
            missing[k] = 0
            k = next((p for p in before[k] if p not in set(out) and p != k), k)
        raise ModelError(f"{where}: the graph has a cycle through {describe(nodes[k])}")
    return out


@dataclass(frozen=True, eq=False)
class Scope:
    """One graph under import: which names it defines, and the scope around it. Values live in one flat environment under
    `prefix + name`, so inlining a branch, a loop body or a function is only a matter of prefixes. Initializers live under
    `home`, which all iterations of a loop share."""

    model: OnnxModel
    prefix: str
    nodes: tuple[NodeProto, ...]
    defined: frozenset[str]
    opsets: Mapping[str, int]
    initializers: Initializers | None = None
    baked: frozenset[str] = frozenset()  # names that stand for initializers; a body's inputs hide initializers of their name
    home: str = ""
    parent: Scope | None = None  # None: the main graph or a function's body, which see nothing around them
    attrs: Mapping[str, AttributeProto] = field(default_factory=dict)
    depth: int = 0

    @cached_property
    def visible(self) -> frozenset[str]:
        return self.defined | (self.parent.visible if self.parent else frozenset())

    def owner(self, name: str) -> Scope:
        """The scope that defines `name`. Raises ModelError."""
        s: Scope | None = self
        while s is not None:
            if name in s.defined:
                return s
            s = s.parent
        raise ModelError(f"the value {name!r} is read, but nothing defines it")

    def key(self, name: str) -> str:
        return self.owner(name).own_key(name)

    def own_key(self, name: str) -> str:
        """The key of a name that this very scope defines."""
        return (self.home if name in self.baked else self.prefix) + name

    def keys(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.key(n) for n in names)


def graph_scope(graph: GraphProto, model: OnnxModel, opsets: Mapping[str, int], parent: Scope | None = None, prefix: str = "") -> Scope:
    """The scope of the main graph, or of a subgraph inside `parent`. Raises ModelError for broken structure."""
    where = f"graph {graph.name!r}" if parent else "the model"
    _check_depth(parent, where)
    inits = Initializers(graph, model, main=parent is None)
    inputs = [i.name for i in graph.input]
    check_text(where, graph.name, *inputs, *(o.name for o in graph.output), *inits.names())
    if len(set(inputs)) < len(inputs) or "" in inputs:
        raise ModelError(f"{where}: an input is unnamed or defined twice, among {', '.join(map(repr, inputs))}")
    given = frozenset(inputs) | inits.names()
    outer = parent.visible if parent else frozenset()
    nodes = ordered(graph.node, given, outer, where)
    defined = given | {o for n in nodes for o in n.output if o}
    for o in graph.output:
        if o.name not in defined and o.name not in outer:
            raise ModelError(f"{where}: the output {o.name!r} is not defined by any node")
    return Scope(model, prefix, nodes, defined, opsets, inits, inits.names() - set(inputs) if parent else inits.names(), prefix, parent,
                 parent.attrs if parent else {}, parent.depth + 1 if parent else 0)


def _check_depth(outer: Scope | None, where: str) -> None:
    if outer is not None and outer.depth >= MAX_DEPTH:
        raise ModelError(f"{where}: subgraphs and functions are nested more than {MAX_DEPTH} deep, or a function calls itself")


def function_scope(f: object, caller: Scope, opsets: Mapping[str, int], attrs: Mapping[str, AttributeProto], prefix: str) -> Scope:
    """The scope of a function's body (a FunctionProto). The bodies that ONNX generates may leave out unused outputs."""
    where = f"function {f.name!r}"  # type: ignore[attr-defined]
    _check_depth(caller, where)
    given = frozenset(f.input)  # type: ignore[attr-defined]
    nodes = ordered(f.node, given, frozenset(), where)  # type: ignore[attr-defined]
    defined = given | {o for n in nodes for o in n.output if o}
    return Scope(caller.model, prefix, nodes, defined, opsets, attrs=attrs, depth=caller.depth + 1)
