"""The graph IR: immutable, typed SSA.

    graph @mlp(%x: f32[8,64]) -> f32[8,10] {
      %0 = matmul(%x, @w) : f32[8,10]
      %1 = relu(%0) : f32[8,10]
      return %1
    }

Values are defined once: by a graph input, a constant or a node. Constants are *weights* (updatable after compilation;
code depends on their types only) or *literals* (their values may be baked into attributes and code).
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from .types import TensorType


@dataclass(frozen=True, slots=True)
class Value:
    name: str
    type: TensorType

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """`updatable` constants are weights; the others are literals."""

    value: Value
    array: np.ndarray
    updatable: bool = False


@dataclass(frozen=True, slots=True)
class Attrs:
    """Base of the operators' attribute classes: frozen dataclasses of ints, floats, strings, dtypes and tuples of them."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. An optional input that is absent is None. `source` names the model's node, for messages."""

    op: str
    inputs: tuple[Value | None, ...]
    attrs: Attrs
    outputs: tuple[Value, ...]
    source: str = field(default="", compare=False)

    @property
    def operands(self) -> tuple[Value, ...]:
        """The inputs that are present."""
        return tuple(v for v in self.inputs if v is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant] = field(default_factory=lambda: MappingProxyType({}))

    def producers(self) -> dict[str, Node]:
        """Value name -> the node that defines it."""
        return {o.name: n for n in self.nodes for o in n.outputs}

    def users(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it, each once, in order. Values nobody reads are absent."""
        out: dict[str, list[Node]] = {}
        for n in self.nodes:
            for v in dict.fromkeys(n.operands):
                out.setdefault(v.name, []).append(n)
        return out

    def replace(self, *, nodes: Iterable[Node] | None = None, outputs: tuple[Value, ...] | None = None,
                constants: Mapping[str, Constant] | None = None, inputs: tuple[Value, ...] | None = None) -> Graph:
        """A copy with some parts exchanged; constants that nothing reads any more are dropped."""
        new_nodes = self.nodes if nodes is None else tuple(nodes)
        new_outputs = self.outputs if outputs is None else outputs
        pool = self.constants if constants is None else constants
        used = {v.name for n in new_nodes for v in n.operands} | {v.name for v in new_outputs}
        return Graph(self.name, self.inputs if inputs is None else inputs, new_outputs, new_nodes,
                     MappingProxyType({k: c for k, c in pool.items() if k in used}))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return (self.name, self.inputs, self.outputs, self.nodes) == (other.name, other.inputs, other.outputs, other.nodes) \
            and self.constants.keys() == other.constants.keys() and all(
                c.value == o.value and c.updatable == o.updatable and np.array_equal(c.array, o.array, equal_nan=c.array.dtype.kind == "f")
                for c, o in ((c, other.constants[k]) for k, c in self.constants.items()))

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        from .text import print_graph
        return print_graph(self)
