"""Requires: nothing. Ensures: every node's op has a tensor computation or a kernel of its own.

Composite operators are replaced by what they are made of, repeatedly:

    %y = celu(%x) {alpha=2.0} : f32[4]      ->   max, div, exp … over %x
"""
from __future__ import annotations

from collections.abc import Sequence

from ...errors import UnsupportedError
from ...ir.builder import GraphBuilder
from ...ir.expr import Buffer
from ...ir.graph import Graph, Node, Value
from ...ir.op import OPS, Op
from ...ir.ops.loop import ScanAttrs, unrolls
from .rewriting import Rewriter, rewrite

MAX_DEPTH = 16


def decompose(g: Graph) -> Graph:
    for _ in range(MAX_DEPTH):
        after = rewrite(g, _expand)
        if not any(is_composite(n) for n in after.nodes):
            return after
        g = after
    raise AssertionError(f"operators still decompose after {MAX_DEPTH} rounds: {sorted({n.op for n in g.nodes if is_composite(n)})}")


def is_composite(n: Node) -> bool:
    """Whether code for `n` can only be made from its decomposition. Irregular ops decompose where their kernel does not
    know the element type (half floats reach kernels as bits). Loops of several steps are code of their own kind."""
    if isinstance(n.attrs, ScanAttrs):
        return unrolls(n.attrs)
    op = OPS[n.op]
    if type(op).decompose is Op.decompose:
        return False
    if op.kernel(n.attrs, *(None if v is None else v.type for v in n.inputs)) is not None:
        b = GraphBuilder()
        return op.decompose(n.attrs, b, *(None if v is None else b.input(v.name, v.type) for v in n.inputs)) is not None
    if type(op).compute is Op.compute:
        return True
    buffers = (None if v is None else Buffer(f"in{k}", v.type.dtype, v.type.shape) for k, v in enumerate(n.inputs))
    return op.compute(n.attrs, tuple(v.type for v in n.outputs), *buffers) is None


def _expand(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
    if not is_composite(n):
        return None
    parts = OPS[n.op].decompose(n.attrs, r.b, *ins)
    if parts is None:
        raise UnsupportedError(f"operator {n.op} ({n.source or n.outputs[0].name}) has no code for {[v.type for v in n.operands]}")
    return parts
