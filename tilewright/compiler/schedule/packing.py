"""Packing an operand into the order in which the loops read it.

    w[ob*16 + oc, k, r, q]   under   ob.o, k.o, r, q, k.i, ob.i, oc     (ob by 2, k by 16)
    ->  wp[ob // 2, k // 16, r, q, k % 16, ob % 2, oc]

The packed index is written over the compute's own axes with // and %; under the splits it came from, these simplify
to the loops themselves. Ragged tails are padded with zeros in the packed copy, which keeps its shape rectangular.
"""
from __future__ import annotations

import math
from dataclasses import replace

from ...ir.affine import linear
from ...ir.expr import Axis, Buffer, Expr, Load, Var, rewrite
from ...ir.loops import Pack, Scheduled, Split, Stage
from ...ir.program import Compute, Program

Digit = tuple[Axis, int, int]  # (compute axis a, divisor d, size n): the value (a // d) % n


def pack_operand(s: Scheduled, name: str) -> Scheduled | None:
    """`s` with input `name` of its only stage read from a packed copy laid out in loop order.

    rewrite: w[f(axes)] -> wp[digits of the axes in nest order]
    checks:  w has more than one element; each dimension of w is a mixed-radix number of digits of axes; else None.
    """
    stage = s.stages[0]
    c = stage.compute
    uses = _loads_of(c, name)
    if not uses:  # read under a guard that never holds, or not at all
        return None
    buffer = uses[0].buffer
    if len({x.index for x in uses}) != 1 or uses[0].where is not None:
        return None
    digits = _digits(stage)
    dims: list[list[tuple[int, Digit]]] = []  # per dimension of w: (stride inside the dimension, digit), largest first
    for e, extent in zip(uses[0].index, buffer.shape, strict=True):
        form = linear(e)
        if form.const or any(not isinstance(a, Axis) or k <= 0 for a, k in form.terms):
            return None
        parts = [(k * d[1], d) for a, k in form.terms if isinstance(a, Axis) for d in digits if d[0] == a]
        parts.sort(key=lambda t: -t[0])
        step = 1
        for k, d in reversed(parts):
            if k != step:
                return None
            step *= d[2]
        if step < extent:  # an axis that was fused has no digits of its own; or w is read only in part
            return None
        dims.append(parts)
    flat = [d for parts in dims for _, d in parts]
    order = [d for d in digits if d in flat]
    if not order:  # one element: there is nothing to lay out
        return None
    shape = tuple(d[2] for d in order)
    packed = Buffer(f"{name}_packed", buffer.dtype, shape)
    pack = Pack(name, tuple(math.prod(d[2] for _, d in parts) for parts in dims), tuple(d[2] for d in flat),
                tuple(flat.index(d) for d in order), shape)
    index = tuple(_digit_expr(d) for d in order)
    body = rewrite(c.body, lambda n: Load(packed, index) if isinstance(n, Load) and n.buffer.name == name else None)
    new = Compute(c.buffer, c.axes, body)
    inputs = tuple(packed if b.name == name else b for b in s.program.inputs)
    return Scheduled(Program(s.program.name, inputs, s.program.outputs, (new,)), (replace(stage, compute=new),), (*s.packs, pack))


def packed_inputs(p: Program, own: Program, s: Scheduled) -> tuple[Buffer, ...]:
    """The inputs of `p`, of which `own` is a part, as that part's schedule `s` reads them."""
    packed = dict(zip(own.inputs, s.program.inputs, strict=True))
    return tuple(packed.get(b, b) for b in p.inputs)


def _loads_of(c: Compute, name: str) -> list[Load]:
    from ...ir.expr import loads
    return [x for x in loads(c.body) if x.buffer.name == name]


def _digit_expr(d: Digit) -> Expr:
    axis, div, size = d
    x: Expr = Var(axis) // div
    return x if div * size >= axis.extent else x % size


def _digits(st: Stage) -> list[Digit]:
    """The loops of the nest as digits of the compute's axes, in nest order; loops made by balanced splits of an axis are
    one digit with their axis (their block sizes differ)."""
    out: list[Digit] = []
    whole = {r.parent for r in st.relations if isinstance(r, Split) and r.tail == "balance"}
    parts: dict[Axis, Digit] = {}

    def spread(a: Axis, root: Axis, div: int, size: int) -> None:
        r = next((r for r in st.relations if isinstance(r, Split) and r.parent == a), None)
        if r is None or a in whole or r.outer.name.endswith(".u.o"):
            parts[a] = (root, div, size)
            return
        f = r.inner.extent
        spread(r.inner, root, div, f)
        spread(r.outer, root, div * f, -(-size // f))
    for a in (*st.compute.axes, *st.compute.reduce_axes):
        spread(a, a, 1, a.extent)
    for loop in st.loops:
        a = loop.axis
        while a not in parts:  # inside an axis that is kept whole: it counts where its outermost loop stands
            r = next((r for r in st.relations if isinstance(r, Split) and a in (r.outer, r.inner)), None)
            if r is None:
                break
            a = r.parent
        if a in parts and parts[a] not in out:
            out.append(parts[a])
    return out
