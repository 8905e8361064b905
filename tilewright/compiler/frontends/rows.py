"""Sources of models on tables: rows in, rows out, each row alone.

A frontend for such a model gives names and types of its columns and a function that builds the graph; the rest of the
compiler sees a `Source` whose first dimension is symbolic, and `compiler/rows.py` compiles it once for any number of rows.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...backends.tables import Boundary
from ...ir.builder import GraphBuilder
from ...ir.graph import Value
from ...ir.types import TensorSpec, TensorType, dtype_of
from .source import Data, Segment, ValueType, concrete_types

ROWS = "rows"    # the name of the symbolic dimension
BLOCK = 512      # rows that are computed together
Build = Callable[[GraphBuilder, Sequence[Value]], Sequence[Value]]


@dataclass(frozen=True, eq=False)
class RowSource:
    """A `Source`. `build(b, inputs)` makes the outputs for inputs whose first dimension is a number of rows. What it adds
    with `b.weight(name, array)` can be updated under this name. boundary: what makes the input of a call's data frame."""

    name: str
    inputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]
    build: Build
    static_inputs: frozenset[str] = frozenset()
    boundary: Boundary | None = None

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        graph = self.import_graph({s.name: (1, *(int(d) for d in s.shape[1:])) for s in self.inputs}).graph
        return tuple(TensorSpec(v.name, (ROWS, *v.type.shape[1:]), v.type.dtype.numpy) for v in graph.outputs)

    def with_static(self, names: frozenset[str]) -> RowSource:
        raise AssertionError(f"rows of {names} are never static")

    def import_graph(self, types: Mapping[str, ValueType | tuple[int, ...]], values: Mapping[str, Data] | None = None) -> Segment:
        b = GraphBuilder(self.name)
        concrete = concrete_types(self.inputs, types)
        made: list[Value] = []
        for s in self.inputs:
            t = concrete[s.name]
            assert isinstance(t, TensorType)
            made.append(b.input(s.name, t))
        b._taken.update(self.output_names)  # no weight takes them
        results = self.build(b, made)
        b._taken.difference_update(self.output_names)
        outs = []
        for name, v in zip(self.output_names, results, strict=True):
            outs.append(_named(b, name, v))
        graph = b.graph(outs)
        weights = {k: k for k, c in graph.constants.items() if c.updatable}
        return Segment(graph, tuple((s.name,) for s in self.inputs), tuple(range(len(outs))), weights)

    def graph(self, rows: int) -> Segment:
        """The model for so many rows."""
        return self.import_graph({s.name: (rows, *(int(d) for d in s.shape[1:])) for s in self.inputs})


def _named(b: GraphBuilder, name: str, v: Value) -> Value:
    """The value under an output's name: the last node's result is renamed, anything else copied."""
    for k in reversed(range(len(b.nodes))):
        n = b.nodes[k]
        if v in n.outputs and not any(v in m.operands for m in b.nodes[k + 1:]):
            new = Value(b.fresh(name), v.type)
            b.nodes[k] = type(n)(n.op, n.inputs, n.attrs, tuple(new if o == v else o for o in n.outputs), n.source)
            return new
    return b.emit("reshape", (v,), names=(name,), shape=v.type.shape)[0]


def table_spec(x: object, features: int, name: str = "x") -> TensorSpec:
    """The input of a model on one table of numbers, of the sample's dtype where it is f32 or f64, else of f64."""
    dtype = getattr(x, "dtype", None)
    kind = np.dtype(np.float32) if dtype == np.float32 else np.dtype(np.float64)
    assert dtype_of(kind) is not None
    return TensorSpec(name, (ROWS, features), kind)
