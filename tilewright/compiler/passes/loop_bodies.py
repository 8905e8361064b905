"""Requires: nothing. Ensures: bodies of loops went through all passes, and compute nothing that is the same in every step.

    %y = scan(%h0, %x, @r) {body="… %t = transpose(%r) …"}   ->   %t = transpose(@r)
                                                                   %y = scan(%h0, %x, %t) {body="… matmul(%h, %t) …"}

While its passes run, a body's invariants are weights to it, so whatever follows from them alone is split off as for a
whole model and moves in front of the loop; what follows from the model's weights is then prepared at load. Stacked
outputs that nobody reads are dropped. Loops inside of loops are written out.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from ...ir.graph import Constant, Graph, Node, Value
from ...ir.op import OPS
from ...ir.ops.loop import ScanAttrs, body_of, inline
from ...ir.text import INLINE_ELEMENTS
from .preparation import split_preparation
from .rewriting import Rewriter, rewrite

BodyPasses = Callable[[Graph], Graph]


def loop_bodies(g: Graph, passes: BodyPasses) -> Graph:
    """`passes`: what to run on each body."""
    used = {v.name for n in g.nodes for v in n.operands} | {v.name for v in g.outputs}
    done: dict[tuple[str, tuple[str, ...]], _Body] = {}

    def visit(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if not isinstance(n.attrs, ScanAttrs):
            return None
        values = [v for v in ins if v is not None]
        known = {k: a for k, v in enumerate(values) if k >= n.attrs.carried + n.attrs.scanned
                 and (a := r.literal(v)) is not None and a.size <= INLINE_ELEMENTS}
        kept = tuple(k < n.attrs.carried or v.name in used for k, v in enumerate(n.outputs))
        key = f"{n.attrs} {kept}", tuple(f"{k} {a.dtype} {a.tobytes()!r}" for k, a in known.items())
        if key not in done:
            done[key] = _Body(n.attrs, known, kept, passes)
        return done[key].place(r, n, values)
    return rewrite(g, visit)


def unrolled(g: Graph) -> Graph:
    """`g` with its loops written out."""
    def visit(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
        return OPS[n.op].decompose(n.attrs, r.b, *ins) if isinstance(n.attrs, ScanAttrs) else None
    while any(n.op == "scan" for n in g.nodes):
        g = rewrite(g, visit)
    return g


class _Body:
    """One body after its passes: `prep` computes from the invariants what `main` reads besides what changes."""

    def __init__(self, attrs: ScanAttrs, known: Mapping[int, np.ndarray], kept: Sequence[bool], passes: BodyPasses) -> None:
        """known: values of small literals among the inputs. kept: which outputs someone reads."""
        g, changing = body_of(attrs.body), attrs.carried + attrs.scanned
        self.kept, self.known = kept, known
        fixed = {v.name: Constant(v, known[k], False) if k in known else Constant(v, np.zeros(v.type.shape, v.type.dtype.numpy), True)
                 for k, v in enumerate(g.inputs) if k >= changing}
        g = g.replace(inputs=g.inputs[:changing], constants={**fixed, **g.constants},
                      outputs=tuple(v for v, keep in zip(g.outputs, kept, strict=True) if keep))
        prepared = split_preparation(passes(unrolled(g)))
        main = prepared.main
        self.literals = [c for c in main.constants.values() if not _stays(c, main)]
        self.prep = Graph(prepared.prep.name, tuple(c.value for c in fixed.values()), prepared.prep.outputs, prepared.prep.nodes,
                          MappingProxyType({k: c for k, c in prepared.prep.constants.items() if k not in fixed}))
        rest = {k: c for k, c in main.constants.items() if _stays(c, main)}
        main = main.replace(inputs=(*main.inputs, *(c.value for c in self.literals)), constants=rest)
        filled = tuple(back for back, keep in zip(attrs.filled_backward, kept[attrs.carried:], strict=True) if keep)
        self.attrs = replace(attrs, body=str(main), filled_backward=filled)
        self.changing = changing

    def place(self, r: Rewriter, n: Node, values: Sequence[Value]) -> list[Value]:
        """The loop over `values`, what it needs computed before it; one value for each output of `n`."""
        parameters = inline(r.b, self.prep, values[self.changing:])
        literals = [r.b.constant(c.array, name=c.value.name) for c in self.literals]
        names = [v.name for v in n.outputs]
        outs = iter(r.b.emit(n.op, [*values[:self.changing], *parameters, *literals], self.attrs, names=names))
        return [next(outs) if keep else r.b.constant(np.zeros(v.type.shape, v.type.dtype.numpy))
                for v, keep in zip(n.outputs, self.kept, strict=True)]


def _stays(c: Constant, g: Graph) -> bool:
    """Whether a literal can be part of the code: one element, which no irregular op reads."""
    return c.array.size == 1 and not any(
        c.value in n.operands and OPS[n.op].kernel(n.attrs, *(None if v is None else v.type for v in n.inputs)) is not None
        for n in g.nodes)
