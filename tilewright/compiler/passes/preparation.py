"""Splits a graph into what depends on weights alone, computed once at load, and the rest, computed at every call.

Requires: nothing. Ensures: `main` has no weights and no nodes that follow from constants alone.

    graph @g(%x: f32[1,8]) -> f32[1,4] {              prep:  graph @g.prep(%w: f32[8,4], %s: f32[4]) -> f32[8,4] {
      const @w: f32[8,4] weight                                %v = mul(%w, %s) : f32[8,4]
      const @s: f32[4] weight                                  return %v
      %v = mul(@w, @s) : f32[8,4]                ->          }
      %y = matmul(%x, %v) : f32[1,4]                  main:  graph @g(%x: f32[1,8], %v: f32[8,4]) -> f32[1,4] {
      return %y                                                %y = matmul(%x, %v) : f32[1,4]
    }                                                          return %y
                                                             }
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ...ir.graph import Graph, Value
from ...ir.interpreter import run_graph
from .fuse_siblings import constants_first


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """`main.inputs` are the model's inputs followed by `parameters`; the outputs of `prep` are the parameters' values,
    in that order. A weight that needs no preparation is an input and an output of `prep`. `prep.inputs` are weights,
    whose arrays as the model has them are in `weights`; `main` and `prep` keep literals as constants of their own."""

    main: Graph
    prep: Graph
    parameters: tuple[Value, ...]
    weights: Mapping[str, np.ndarray]

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The model's own inputs."""
        return self.main.inputs[:len(self.main.inputs) - len(self.parameters)]

    def prepare(self, weights: Mapping[str, np.ndarray] | None = None) -> tuple[np.ndarray, ...]:
        """The parameters' arrays, from `weights` (default: the model's). They may share memory with the weights."""
        values = run_graph(self.prep, self.weights if weights is None else weights)
        return tuple(values[v.name] for v in self.prep.outputs)


def split_preparation(g: Graph) -> Prepared:
    g, static = constants_first(g)
    static = static - _kept_in_main(g, static)
    head = [n for n in g.nodes if all(v.name in static for v in n.outputs)]
    tail = [n for n in g.nodes if any(v.name not in static for v in n.outputs)]
    made = {v.name for n in head for v in n.outputs}
    weights = {k for k, c in g.constants.items() if c.updatable}
    read = [v for n in tail for v in n.operands] + list(g.outputs)
    parameters = tuple(dict.fromkeys(v for v in read if v.name in made or v.name in weights))
    literals = MappingProxyType({k: c for k, c in g.constants.items() if not c.updatable})
    main = g.replace(nodes=tail, inputs=(*g.inputs, *parameters), constants=literals)
    used = {v.name for n in head for v in n.operands} | {v.name for v in parameters}
    needed = tuple(c.value for k, c in g.constants.items() if c.updatable and k in used)
    prep = Graph(f"{g.name}.prep", needed, parameters, tuple(head), literals).replace()
    return Prepared(main, prep, parameters, MappingProxyType({v.name: g.constants[v.name].array for v in needed}))


def _kept_in_main(g: Graph, static: frozenset[str]) -> frozenset[str]:
    """Broadcasts that only `main` reads: they cost nothing there and much memory as parameters."""
    users = g.users()
    return frozenset(n.outputs[0].name for n in g.nodes if n.op == "expand" and n.outputs[0].type.size > n.operands[0].type.size
                     and not any(v.name in static for u in users.get(n.outputs[0].name, ()) for v in u.outputs))
