"""A loop of fixed length whose body is a graph of its own: what recurrent layers, ONNX Scan and counted Loops become."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..graph import Attrs, Graph, Value
from ..op import OPS, Op, Sample, register
from ..types import F32, TensorType
from .shape import full, reshape
from .slices import concat, slice_axis


@dataclass(frozen=True, slots=True)
class ScanAttrs(Attrs):
    """body: text of a graph; its inputs are the `carried` values, one row of each of the `scanned` ones, then what stays the
    same; its outputs the carried values for the next step, then one row of each stacked output.
    backward: for each scanned input, whether its last row comes first. filled_backward: the same for stacked outputs."""

    body: str = ""
    steps: int = 0
    carried: int = 0
    scanned: int = 0
    backward: tuple[bool, ...] = ()
    filled_backward: tuple[bool, ...] = ()


@lru_cache(maxsize=256)
def body_of(text: str) -> Graph:
    """The body's graph. Its constants are literals of few elements: everything else comes in from outside."""
    from ..text import parse_graph
    return parse_graph(text)


def row(attrs: ScanAttrs, t: int, backward: bool) -> int:
    """Which row step `t` reads or writes."""
    return attrs.steps - 1 - t if backward else t


@register
class Scan(Op):
    """Repeats `body` for `steps` steps.

        state = carried
        for t in 0 .. steps-1:
            state, rows = body(state, scanned[t], invariants)       # scanned[steps-1-t] where backward
            stacked[t] = rows
        return state, stacked
    """

    name = "scan"
    Attrs = ScanAttrs

    def infer(self, attrs: ScanAttrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        g = body_of(attrs.body)
        found = [t for t in ins if t is not None]
        if len(found) != len(ins) or len(ins) != len(g.inputs) or attrs.carried + attrs.scanned > len(ins):
            raise self.fail(f"{len(ins)} inputs do not fit a body of {len(g.inputs)}")
        for k, (t, v) in enumerate(zip(found, g.inputs, strict=True)):
            scanned = attrs.carried <= k < attrs.carried + attrs.scanned
            want = TensorType(v.type.dtype, (attrs.steps, *v.type.shape)) if scanned else v.type
            if t != want:
                raise self.fail(f"input {k} is {t}, the body needs {want}")
        outs = tuple(v.type for v in g.outputs)
        if outs[:attrs.carried] != tuple(v.type for v in g.inputs[:attrs.carried]):
            raise self.fail(f"the body carries {[v.type for v in g.inputs[:attrs.carried]]} on as {list(outs[:attrs.carried])}")
        if (len(attrs.backward), len(attrs.filled_backward)) != (attrs.scanned, len(outs) - attrs.carried):
            raise self.fail("one direction is needed for each scanned input and for each stacked output")
        return (*outs[:attrs.carried], *(TensorType(t.dtype, (attrs.steps, *t.shape)) for t in outs[attrs.carried:]))

    def reference(self, attrs: ScanAttrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        from ..interpreter import run_graph
        g, n = body_of(attrs.body), attrs.carried
        arrays = [np.asarray(a) for a in ins]
        state, scanned, rest = arrays[:n], arrays[n:n + attrs.scanned], arrays[n + attrs.scanned:]
        stacked = [np.empty((attrs.steps, *v.type.shape), v.type.dtype.numpy) for v in g.outputs[n:]]
        for t in range(attrs.steps):
            rows = [x[row(attrs, t, back)] for x, back in zip(scanned, attrs.backward, strict=True)]
            got = run_graph(g, {v.name: a for v, a in zip(g.inputs, (*state, *rows, *rest), strict=True)})
            state = [got[v.name] for v in g.outputs[:n]]
            for y, v, back in zip(stacked, g.outputs[n:], attrs.filled_backward, strict=True):
                y[row(attrs, t, back)] = got[v.name]
        return (*state, *stacked)

    def decompose(self, attrs: ScanAttrs, b: GraphBuilder, *ins: Value | None) -> tuple[Value, ...] | None:
        """The steps one after the other. Only short loops and those inside of others come to this: see `unrolls`."""
        g, n = body_of(attrs.body), attrs.carried
        values = [v for v in ins if v is not None]
        state, scanned, rest = values[:n], values[n:n + attrs.scanned], values[n + attrs.scanned:]
        stacked: list[dict[int, Value]] = [{} for _ in g.outputs[n:]]
        for t in range(attrs.steps):
            rows = [reshape(b, slice_axis(b, x, 0, row(attrs, t, back), 1), x.type.shape[1:])
                    for x, back in zip(scanned, attrs.backward, strict=True)]
            outs = inline(b, g, [*state, *rows, *rest])
            state = outs[:n]
            for y, v, back in zip(stacked, outs[n:], attrs.filled_backward, strict=True):
                y[row(attrs, t, back)] = reshape(b, v, (1, *v.type.shape))
        return (*state, *(concat(b, [y[t] for t in range(attrs.steps)], 0) if y else full(b, (0, *v.type.shape), 0, v.type)
                          for y, v in zip(stacked, g.outputs[n:], strict=True)))

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        b = GraphBuilder("body")
        h, x, w = b.input("h", TensorType(F32, (2, 5))), b.input("x", TensorType(F32, (2, 3))), b.input("w", TensorType(F32, (5, 5)))
        y = b.op("tanh", b.op("add", b.op("matmul", h, w), concat(b, [x, slice_axis(b, x, 1, 0, 2)], 1)))
        arrays = [rng.standard_normal(s).astype("f4") for s in ((2, 5), (7, 2, 3), (5, 5))]
        text = str(b.graph([y, y, slice_axis(b, h, 1, 1, 2)]))
        up, down = False, True
        for steps, back, filled in ((7, up, (up, up)), (7, down, (down, up)), (1, up, (up, down)), (0, up, (down, down))):
            given = (arrays[0], arrays[1][:steps], arrays[2])
            yield Sample(given, ScanAttrs(text, steps, 1, 1, (back,), filled), 1e-4)
        b = GraphBuilder("swap")  # the carried values change places, and a count comes out
        p, q = b.input("p", TensorType(F32, (4,))), b.input("q", TensorType(F32, (4,)))
        text = str(b.graph([q, b.op("add", p, b.constant(np.float32(1))), p]))
        yield Sample((arrays[0][0, :4], arrays[0][1, :4]), ScanAttrs(text, 5, 2, 0, (), (False,)))


def inline(b: GraphBuilder, g: Graph, values: Sequence[Value]) -> list[Value]:
    """The graph's nodes appended to `b`, over `values` as its inputs; its outputs there."""
    env = {v.name: x for v, x in zip(g.inputs, values, strict=True)}
    for k, c in g.constants.items():
        env[k] = b.constant(c.array, name=k)
    for n in g.nodes:
        made = b.emit(n.op, [None if v is None else env[v.name] for v in n.inputs], n.attrs)
        env.update({v.name: x for v, x in zip(n.outputs, made, strict=True)})
    return [env[v.name] for v in g.outputs]


def unrolls(attrs: ScanAttrs) -> bool:
    """Whether the loop is better written out: it has no more than one step, or draws random numbers, whose order counts."""
    return attrs.steps < 2 or any(OPS[n.op].random for n in body_of(attrs.body).nodes)


def scan(b: GraphBuilder, body: GraphBuilder, outputs: Sequence[Value], steps: int, carried: Sequence[Value], scanned: Sequence[Value],
         invariant: Sequence[Value], backward: Sequence[bool], filled_backward: Sequence[bool]) -> tuple[Value, ...]:
    """Appends a loop. `body` holds its graph: inputs in the order carried, scanned, invariant; `outputs` those of the body.
    Raises ShapeError where they do not fit."""
    g = body.graph(outputs)
    if any(c.updatable for c in g.constants.values()):
        raise ShapeError("a loop's body holds a weight; weights come in from outside")
    large = [c for c in g.constants.values() if c.array.size > 1]  # the text holds only small ones: they become invariants
    rest = {k: c for k, c in g.constants.items() if c.array.size <= 1}
    inner = g.replace(inputs=(*g.inputs, *(c.value for c in large)), constants=rest)
    outer = [b.constant(c.array, name=c.value.name) for c in large]
    attrs = ScanAttrs(str(inner), steps, len(carried), len(scanned), tuple(backward), tuple(filled_backward))
    return b.emit("scan", [*carried, *scanned, *invariant, *outer], attrs)
