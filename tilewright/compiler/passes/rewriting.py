"""What local rewrites share: a graph being rebuilt, and questions about the values in it."""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from ...ir.builder import GraphBuilder, rebuild
from ...ir.graph import Graph, Node, Value
from ...ir.op import OPS
from ...ir.ops.elementwise import Map

_COUNT = re.compile(r"(\.\d+)+$")  # what the builder appends to names that are taken
COMMUTATIVE = frozenset({"add", "mul", "min", "max", "and", "or", "xor", "eq"})


class Rewriter:
    """The new graph while nodes of the old one are visited in order. `b` appends to it; the other methods answer for
    values of the new graph, so a rule sees its operands already rewritten."""

    def __init__(self, g: Graph, b: GraphBuilder):
        self.b = b
        self._producers: dict[str, Node] = {}
        self._indexed = 0
        self._static: set[str] = set()
        self._uses: dict[str, int] = {}
        for n in g.nodes:
            for v in n.operands:
                self._uses[v.name] = self._uses.get(v.name, 0) + 1
        for v in g.outputs:
            self._uses[v.name] = self._uses.get(v.name, 0) + 1

    def replaced(self, old: Sequence[Value], new: Sequence[Value]) -> None:
        """Whoever reads `old` now reads `new`."""
        for o, v in zip(old, new, strict=True):
            if o.name != v.name:
                self._uses[v.name] = self._uses.get(v.name, 0) + self._uses.get(o.name, 0)

    def producer(self, v: Value | None, *ops: str) -> Node | None:
        """The node that defines `v`; None where there is none or it is none of `ops`."""
        self._index()
        n = self._producers.get(v.name) if v is not None else None
        return n if n is not None and (not ops or n.op in ops) else None

    def _index(self) -> None:
        """Takes note of the nodes appended since the last time."""
        for n in self.b.nodes[self._indexed:]:
            self._producers.update({o.name: n for o in n.outputs})
            if n.operands and is_pure(n) and all(v.name in self._static or v.name in self.b.constants for v in n.operands):
                self._static.update(o.name for o in n.outputs)
        self._indexed = len(self.b.nodes)

    def single_use(self, v: Value) -> bool:
        """Whether exactly one operand of one node reads `v` in the old graph."""
        return self._uses.get(v.name, 0) == 1

    def shared(self, v: Value) -> bool:
        """Whether several operands read `v` in the old graph; what a rule has just made is read by nobody there."""
        return self._uses.get(v.name, 0) > 1

    def private(self, v: Value, *ops: str) -> Node | None:
        """The node of one of `ops` that defines `v`, where nobody else reads `v`."""
        return self.producer(v, *ops) if self.single_use(v) else None

    def literal(self, v: Value | None) -> np.ndarray | None:
        return None if v is None else self.b.value_of(v)

    def scalar(self, v: Value | None) -> int | float | bool | None:
        """The value of a literal whose elements are all equal; None for everything else."""
        a = self.literal(v)
        if a is None or a.size == 0:
            return None
        first = a.reshape(-1)[0]
        return first.item() if a.size == 1 or (a == first).all() else None

    def is_scalar(self, v: Value | None, value: float) -> bool:
        s = self.scalar(v)
        return s is not None and s == value

    def static(self, v: Value) -> bool:
        """Whether `v` follows from weights and literals alone."""
        self._index()
        return v.name in self.b.constants or v.name in self._static

    def split_scalar(self, n: Node, ins: Sequence[Value | None] | None = None) -> tuple[Value, float] | None:
        """(x, c) of a commutative node over x and the uniform literal c, or of one whose second operand is c."""
        x, y = n.inputs if ins is None else ins
        if x is None or y is None:
            return None
        if (c := self.scalar(y)) is not None:
            return x, c
        if n.op in COMMUTATIVE and (c := self.scalar(x)) is not None:
            return y, c
        return None


Rule = Callable[[Rewriter, Node, tuple[Value | None, ...]], "Value | Sequence[Value] | None"]


def rewrite(g: Graph, rule: Rule) -> Graph:
    """`g` with every node replaced by what `rule(rewriter, node, its new inputs)` returns; None keeps the node."""
    state: list[Rewriter] = []

    def visit(n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value] | None:
        if not state:
            state.append(Rewriter(g, b))
        new = rule(state[0], n, ins)
        if new is None:
            return None
        values = (new,) if isinstance(new, Value) else tuple(new)
        assert tuple(v.type for v in values) == tuple(v.type for v in n.outputs), \
            f"{n.op} {n.outputs} would be replaced by {values}, of another type"
        state[0].replaced(n.outputs, values)
        return values
    return rebuild(g, visit)


def rules(table: dict[str, tuple[Rule, ...]]) -> Rule:
    """One rule out of several for each operator: the first that answers wins."""
    def rule(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Value | Sequence[Value] | None:
        for f in table.get(n.op, ()):
            if (new := f(r, n, ins)) is not None:
                return new
        return None
    return rule


def is_pure(n: Node) -> bool:
    """Whether equal inputs give equal results every time (random operators do not)."""
    return not OPS[n.op].random


def is_map(n: Node) -> bool:
    """Whether `n` works element by element, with NumPy broadcasting of its operands."""
    return isinstance(OPS[n.op], Map)


def copy_node(r: Rewriter, n: Node, ins: Sequence[Value | None]) -> Value:
    """`n` again over other inputs; returns its first output, whose name shows where it came from."""
    return r.b.emit(n.op, ins, n.attrs, hint=_COUNT.sub("", n.outputs[0].name))[0]
