"""Passes are tested on text: a graph before, the graph expected after, equal up to names; and both must compute the same."""
from __future__ import annotations

import re
from collections.abc import Callable
from textwrap import dedent
from types import MappingProxyType

import numpy as np

from tilewright.ir.graph import Constant, Graph, Node, Value
from tilewright.ir.interpreter import run_graph
from tilewright.ir.text import parse_graph, print_graph
from tilewright.ir.types import DTYPES, DType
from tilewright.ir.verify import verify


def graph(text: str) -> Graph:
    """The verified graph of `text`; weights without values are drawn at random, the same in each graph by name."""
    arrays = {}
    for name, dtype, shape in re.findall(r"const @([\w.]+): (\w+)\[([\d,]*)\] weight\s*$", text, re.MULTILINE):
        dims = tuple(int(d) for d in shape.split(",") if d)
        arrays[name] = random(DTYPES[dtype], dims, seed=sum(name.encode()))
    return verify(parse_graph(dedent(text), arrays))


def random(dtype: DType, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.is_float:
        return rng.uniform(0.25, 2.0, shape).astype(dtype.numpy)
    return rng.integers(0, 2 if dtype.kind == "b" else 5, shape).astype(dtype.numpy)


def canonical(g: Graph) -> Graph:
    """`g` with values numbered by first use, so that graphs that differ in names only are equal."""
    names: dict[str, str] = {v.name: v.name for v in g.inputs}

    def value(v: Value) -> Value:
        kind = "c" if v.name in g.constants else "v"
        return Value(names.setdefault(v.name, f"{kind}{len(names)}"), v.type)
    nodes = tuple(Node(n.op, tuple(None if v is None else value(v) for v in n.inputs), n.attrs, tuple(map(value, n.outputs)))
                  for n in g.nodes)
    outputs = tuple(map(value, g.outputs))
    constants = {names[k]: Constant(value(c.value), c.array, c.updatable) for k, c in g.constants.items() if k in names}
    ordered = dict(sorted(constants.items(), key=lambda kc: int(kc[0][1:])))
    return Graph(g.name, g.inputs, outputs, nodes, MappingProxyType(ordered))


def check(run: Callable[[Graph], Graph], before: str, after: str, rtol: float = 1e-5) -> Graph:
    """`run` turns `before` into `after`, up to names, and changes no result beyond `rtol`. Returns the graph."""
    old, expected = graph(before), graph(after)
    text = print_graph(old)
    new = verify(run(old))
    assert print_graph(old) == text, "the pass changed its argument"
    got, want = canonical(new), canonical(expected)
    assert print_graph(got) == print_graph(want)
    same_results(old, new, rtol)
    return new


def unchanged(run: Callable[[Graph], Graph], text: str) -> None:
    check(run, text, text)


def same_results(old: Graph, new: Graph, rtol: float = 1e-5) -> None:
    inputs = {v.name: random(v.type.dtype, v.type.shape, seed=k) - (1 if v.type.dtype.is_float else 0) for k, v in enumerate(old.inputs)}
    inputs = {k: np.asarray(a, next(v for v in old.inputs if v.name == k).type.dtype.numpy) for k, a in inputs.items()}
    a, b = run_graph(old, inputs), run_graph(new, inputs)
    for x, y in zip(old.outputs, new.outputs, strict=True):
        np.testing.assert_allclose(b[y.name].astype(np.float64), a[x.name].astype(np.float64), rtol=rtol, atol=rtol)
