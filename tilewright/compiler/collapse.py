"""Fewer, longer loops: axes of one iteration vanish, neighbours that walk memory as one become one.

    y[i0<1, i1<64, i2<56, i3<56] = relu(x[i0,i1,i2,i3])   ->   y[i0<200704] = relu(x[i0])
    y[i0<1, i1<64, i2<56, i3<56] = relu(x[…] + b[i1])     ->   y[i0<64, i1<3136] = relu(x[i0,i1] + b[i0])

Requires nothing; ensures the same elements are computed from the same elements. Two axes merge where every address in
the computes is a function of their combination alone; results and reductions never merge with each other. Computes that
read each other's results merge alike, so that rows shared between them stay shared.
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from ..ir.affine import Atom, Div, Linear, Mod, Opaque, address, linear
from ..ir.expr import Axis, Buffer, Expr, Load, Reduce, Var, children, loads, rewrite, wrap
from ..ir.intern import Interner
from ..ir.program import Compute, Program
from ..ir.types import I64

MIN_INNER = 8  # a last axis is not split into pieces that no vector fills


def collapse_axes(program: Program) -> Program:
    """`program` with as few axes as its addresses allow, named i0, i1, … and r0, r1, … in each compute."""
    if any(a.extent == 0 for c in program.computes for a in (*c.axes, *c.reduce_axes)):
        return program
    shared = Interner()
    program = _split_axes(_drop_ones(program, shared), shared)
    made = {c.buffer.name for c in program.computes}
    found = [loads(c.body) for c in program.computes]
    linked = any(x.buffer.name in made for xs in found for x in xs)
    addresses = [_Addresses(c, xs) for c, xs in zip(program.computes, found, strict=True)]
    merges = [[a.mergeable(c.axes, k) for k in range(len(c.axes) - 1)] for a, c in zip(addresses, program.computes, strict=True)]
    if linked:
        merges = _agree(program.computes, merges)
    inner = [[a.mergeable(a.reduce_axes, k) for k in range(len(a.reduce_axes) - 1)] for a in addresses]
    if any(map(any, merges)) or any(map(any, inner)):
        program = _merge(program, merges, inner, shared)
    program = _by_stride(program, shared)
    while (joined := _join_dims(program, shared)) is not program:
        program = joined
    return program


# -- extents of one ----------------------------------------------------------------------------------------------------
def _drop_ones(p: Program, shared: Interner) -> Program:
    """Dimensions with one element, or whose stride is 0 (inputs only), leave every buffer; such axes leave the loops."""
    made = {c.buffer.name for c in p.computes}
    buffers = (*p.inputs, *(c.buffer for c in p.computes))
    keep = {b.name: [k for k, (n, s) in enumerate(zip(b.shape, b.strides, strict=True)) if n != 1 and (s or b.name in made)]
            for b in buffers}
    new = {b.name: Buffer(b.name, b.dtype, tuple(b.shape[k] for k in keep[b.name]), tuple(b.strides[k] for k in keep[b.name]))
           for b in buffers}

    def one(c: Compute) -> Compute:
        outer = [c.axes[k] for k in keep[c.buffer.name]]
        red = [a for a in c.reduce_axes if a.extent != 1]
        at: dict[Axis, Expr] = {a: Var(Axis(f"i{k}", a.extent)) for k, a in enumerate(outer)}
        at |= {a: Var(Axis(f"r{k}", a.extent)) for k, a in enumerate(red)}
        axes = tuple(Axis(f"r{k}", a.extent) for k, a in enumerate(red))

        def visit(n: Expr) -> Expr | None:
            if isinstance(n, Load):
                kept = keep[n.buffer.name]
                return n if len(kept) == len(n.index) else Load(new[n.buffer.name], tuple(n.index[k] for k in kept), n.where, n.other)
            if isinstance(n, Var):
                return at.get(n.axis) or wrap(0, I64)
            if isinstance(n, Reduce):
                return Reduce(n.kind, axes, n.body) if axes or not n.axes else n.body
            return None
        body = rewrite(c.body, lambda n: shared.simple(visit(n) or n))
        return Compute(new[c.buffer.name], tuple(Axis(f"i{k}", a.extent) for k, a in enumerate(outer)), body)
    return Program(p.name, tuple(new[b.name] for b in p.inputs), tuple(new[b.name] for b in p.outputs), tuple(map(one, p.computes)))


# -- splitting axes ----------------------------------------------------------------------------------------------------
def _split_axes(p: Program, shared: Interner) -> Program:
    """Axes that loads take apart by division, a // c and a % c, become an axis for each part: addresses are strides again.

        y[i0<112,i1] = x[i0 // 4, i0 % 4, i1]   ->   y[i0<28,i1<4,i2] = x[i0,i1,i2]
    """
    read = {b.name for c in p.computes for b in c.reads}
    new: dict[str, Buffer] = {}

    def one(c: Compute) -> Compute:
        parts = _divisions_of(c, c.buffer.name not in read)
        if not parts:
            return c
        outer = [(a, parts.get(a, [a.extent])) for a in c.axes]
        shape = [n for _, ns in outer for n in ns]
        strides = [s * math.prod(ns[k + 1:]) for (_, ns), s in zip(outer, c.buffer.strides, strict=True) for k in range(len(ns))]
        new[c.buffer.name] = Buffer(c.buffer.name, c.buffer.dtype, tuple(shape), tuple(strides))
        at: dict[Axis, Expr] = {}
        axes = _numbered(outer, "i", at)
        red = _numbered([(a, parts.get(a, [a.extent])) for a in c.reduce_axes], "r", at)

        def visit(n: Expr) -> Expr | None:
            return at.get(n.axis) if isinstance(n, Var) else Reduce(n.kind, red, n.body) if isinstance(n, Reduce) else None
        return Compute(new[c.buffer.name], axes, rewrite(c.body, lambda n: shared.simple(visit(n) or n)))
    computes = tuple(map(one, p.computes))
    return Program(p.name, p.inputs, tuple(new.get(b.name, b) for b in p.outputs), computes) if new else p


def _numbered(axes: list[tuple[Axis, list[int]]], prefix: str, at: dict[Axis, Expr]) -> tuple[Axis, ...]:
    """New axes with the given extents, numbered through; `at` gets each old axis in terms of them."""
    out: list[Axis] = []
    for a, extents in axes:
        e: Expr = wrap(0, I64)
        for n in extents:
            out.append(Axis(f"{prefix}{len(out)}", n))
            e = e * n + Var(out[-1])
        at[a] = e
    return tuple(out)


def _divisions_of(c: Compute, own: bool) -> dict[Axis, list[int]]:
    """Axes to split, with the extents of their parts. `own`: the result's axes may split too."""
    cuts: dict[Axis, set[int]] = {}
    whole: set[Axis] = set()

    def look(x: Linear) -> None:
        for a, _ in x.terms:
            if not isinstance(a, (Div, Mod)):
                continue
            look(a.arg)
            base, step = a.arg, a.by
            if len(base.terms) == 1 and isinstance(d := base.terms[0][0], Div) and base.terms[0][1] == 1 and base.const == 0:
                base, step = d.arg, d.by * a.by
            if len(base.terms) == 1 and isinstance(b := base.terms[0][0], Axis) and base.terms[0][1] == 1 and base.const == 0:
                cuts.setdefault(b, set()).add(step)
            else:
                whole.update(_inside(a))
    for x in loads(c.body):
        for i in x.index:
            look(linear(i))
    out: dict[Axis, list[int]] = {}
    for a, steps in cuts.items():
        chain = [1, *sorted(s for s in steps if s < a.extent), a.extent]
        last = bool(c.axes) and a == c.axes[-1]
        if (a not in whole and (own or a in c.reduce_axes) and len(chain) > 2 and (not last or chain[1] >= MIN_INNER)
                and all(hi % lo == 0 for lo, hi in pairwise(chain))):
            out[a] = [hi // lo for lo, hi in pairwise(chain)][::-1]
    return out


# -- merging axes ------------------------------------------------------------------------------------------------------
class _Addresses:
    """All addresses of one compute, and the axes used in other ways."""

    def __init__(self, c: Compute, found: list[Load]):
        self.reduce_axes = c.reduce_axes
        self.store = _plain(c.buffer, c.axes)
        self.loads = [address(x) for x in found]
        self.bound = {n.axis for n in _outside_indices(c.body) if isinstance(n, Var)}
        for where in self.loads:
            self.bound |= {x for a, _ in where.terms if not isinstance(a, Axis) for x in _inside(a)}

    def mergeable(self, axes: tuple[Axis, ...], k: int) -> bool:
        """Whether axes[k] and axes[k + 1] occur in every address as axes[k] * extent + axes[k + 1], and nowhere else."""
        a, b = axes[k], axes[k + 1]
        return a not in self.bound and b not in self.bound and all(
            where.coefficient(a) == where.coefficient(b) * b.extent for where in (self.store, *self.loads))


def _plain(b: Buffer, axes: tuple[Axis, ...]) -> Linear:
    out = Linear()
    for x, s in zip(axes, b.strides, strict=True):
        out = out + linear(Var(x)).scaled(s)
    return out


def _inside(atom: Atom) -> set[Axis]:
    """Axes that an atom depends on other than through the addresses of loads (those are looked at on their own)."""
    if isinstance(atom, Axis):
        return {atom}
    if isinstance(atom, Opaque):
        return {n.axis for n in _outside_indices(atom.expr) if isinstance(n, Var)}
    return {x for a, _ in atom.arg.terms for x in _inside(a)}


def _outside_indices(body: Expr) -> Iterable[Expr]:
    """Nodes of the body that are reached without going through a load's index."""
    seen: set[int] = set()
    stack = [body]
    while stack:
        n = stack.pop()
        if id(n) in seen:
            continue
        seen.add(id(n))
        yield n
        stack += [x for x in (n.where, n.other) if x is not None] if isinstance(n, Load) else children(n)


def _agree(computes: tuple[Compute, ...], merges: list[list[bool]]) -> list[list[bool]]:
    """Axes k and k + 1 merge in all computes that have both with equal extents, or in none."""
    out = [list(m) for m in merges]
    for k in range(max(map(len, merges), default=0)):
        by_extent: dict[tuple[int, ...], list[int]] = {}
        for i, c in enumerate(computes):
            if len(c.axes) > k:
                by_extent.setdefault(tuple(a.extent for a in c.axes[:k + 1]), []).append(i)
        for i, m in enumerate(out):
            if k < len(m) and m[k]:
                prefix = tuple(a.extent for a in computes[i].axes[:k + 1])
                m[k] = all(k < len(merges[j]) and merges[j][k] and computes[j].axes[k + 1].extent == computes[i].axes[k + 1].extent
                           for j in by_extent[prefix])
    return out


def _runs(axes: tuple[Axis, ...], merge: list[bool], prefix: str) -> list[tuple[Axis, tuple[Axis, ...]]]:
    """Each merged axis with the axes it stands for."""
    groups: list[list[Axis]] = []
    for k, a in enumerate(axes):
        if k and merge[k - 1]:
            groups[-1].append(a)
        else:
            groups.append([a])
    out = []
    for k, g in enumerate(groups):
        n = 1
        for a in g:
            n *= a.extent
        out.append((Axis(f"{prefix}{k}", n), tuple(g)))
    return out


def _merge(p: Program, merges: list[list[bool]], inner: list[list[bool]], shared: Interner) -> Program:
    new: dict[str, Buffer] = {}
    computes: list[Compute] = []
    sizes: dict[str, list[tuple[int, ...]]] = {}
    for c, outer_flags, inner_flags in zip(p.computes, merges, inner, strict=True):
        outer, red = _runs(c.axes, outer_flags, "i"), _runs(c.reduce_axes, inner_flags, "r")
        at: dict[Axis, Expr] = {}
        for axis, parts in (*outer, *red):
            step = axis.extent
            for a in parts:
                above, step = step, step // a.extent
                e = Var(axis) if step == 1 else Var(axis) // step
                at[a] = e if above == axis.extent else e % a.extent
        strides = [c.buffer.strides[c.axes.index(parts[-1])] for _, parts in outer]
        buffer = Buffer(c.buffer.name, c.buffer.dtype, tuple(a.extent for a, _ in outer), tuple(strides))
        new[buffer.name], sizes[buffer.name] = buffer, [tuple(a.extent for a in parts) for _, parts in outer]
        computes.append(Compute(buffer, tuple(a for a, _ in outer), _rebuilt(c.body, at, tuple(a for a, _ in red), new, sizes, shared)))
    return Program(p.name, p.inputs, tuple(new[b.name] for b in p.outputs), tuple(computes))


def _rebuilt(body: Expr, at: dict[Axis, Expr], red: tuple[Axis, ...], new: dict[str, Buffer],
             sizes: dict[str, list[tuple[int, ...]]], shared: Interner) -> Expr:
    """The body over merged axes, loads of the program's own results with their merged dimensions."""
    def visit(n: Expr) -> Expr | None:
        if isinstance(n, Var):
            return at.get(n.axis)
        if isinstance(n, Reduce):
            return Reduce(n.kind, red, n.body)
        if isinstance(n, Load) and n.buffer.name in new:
            index, it = [], iter(n.index)
            for parts in sizes[n.buffer.name]:
                e = next(it)
                for m in parts[1:]:
                    e = e * m + next(it)
                index.append(e)
            return Load(new[n.buffer.name], tuple(index), n.where, n.other)
        return None
    return rewrite(body, lambda n: shared.simple(visit(n) or n))


# -- dimensions of inputs ----------------------------------------------------------------------------------------------
def _join_dims(p: Program, shared: Interner) -> Program:
    """Contiguous dimensions of inputs become one where that makes an index shorter (merged axes, flattened reads)."""
    found: dict[str, list[Load]] = {b.name: [] for b in p.inputs}
    for c in p.computes:
        for x in loads(c.body):
            if x.buffer.name in found:
                found[x.buffer.name].append(x)
    new: dict[str, tuple[Buffer, list[int]]] = {}
    for b in p.inputs:
        cuts = [k for k in range(1, len(b.shape)) if not _worth_joining(b, k, found[b.name])]
        if len(cuts) < len(b.shape) - 1:
            starts = [0, *cuts]
            ends = [*cuts, len(b.shape)]
            shape = tuple(math.prod(b.shape[i:j]) for i, j in zip(starts, ends, strict=True))
            new[b.name] = (Buffer(b.name, b.dtype, shape, tuple(b.strides[j - 1] for j in ends)), starts)
    if not new:
        return p

    def visit(n: Expr) -> Expr | None:
        if not isinstance(n, Load) or n.buffer.name not in new:
            return None
        buffer, starts = new[n.buffer.name]
        index = []
        for k, start in enumerate(starts):
            stop = starts[k + 1] if k + 1 < len(starts) else len(n.index)
            e = n.index[start]
            for j in range(start + 1, stop):
                e = e * n.buffer.shape[j] + n.index[j]
            index.append(e)
        return Load(buffer, tuple(index), n.where, n.other)
    return Program(p.name, tuple(new[b.name][0] if b.name in new else b for b in p.inputs), p.outputs,
                   tuple(replace(c, body=rewrite(c.body, lambda n: shared.simple(visit(n) or n))) for c in p.computes))


def _by_stride(p: Program, shared: Interner) -> Program:
    """Dimensions of inputs in order of their strides, largest first, as in contiguous memory."""
    order = {b.name: sorted(range(len(b.shape)), key=lambda k: -b.strides[k]) for b in p.inputs}
    order = {name: o for name, o in order.items() if o != sorted(o)}
    if not order:
        return p
    new = {b.name: Buffer(b.name, b.dtype, tuple(b.shape[k] for k in o), tuple(b.strides[k] for k in o)) if (o := order.get(b.name)) else b
           for b in p.inputs}

    def visit(n: Expr) -> Expr:
        o = order.get(n.buffer.name) if isinstance(n, Load) else None
        return Load(new[n.buffer.name], tuple(n.index[k] for k in o), n.where, n.other) if o and isinstance(n, Load) else n
    return Program(p.name, tuple(new[b.name] for b in p.inputs), p.outputs,
                   tuple(replace(c, body=rewrite(c.body, lambda n: shared.simple(visit(n)))) for c in p.computes))


def _worth_joining(b: Buffer, k: int, found: list[Load]) -> bool:
    """Dimensions k-1 and k are contiguous, and joined they need fewer divisions than apart in some load, and in none more."""
    if b.strides[k - 1] != b.strides[k] * b.shape[k]:
        return False
    gain = False
    for x in found:
        hi, lo = linear(x.index[k - 1]), linear(x.index[k])
        before, after = _divisions(hi) + _divisions(lo), _divisions(hi.scaled(b.shape[k]) + lo)
        if after > before:
            return False
        gain |= after < before
    return gain


def _divisions(x: Linear) -> int:
    return sum(not isinstance(a, Axis) for a, _ in x.terms)
