"""Schedule of two-sided transforms by constant tables (Winograd's): B' d B in straight-line code on vectors of channels.

Both computes share the loops over tiles; everything inside is unrolled, so table entries become constants, products with
0 and 1 vanish and the half-transformed tile lives in registers.

    parallel b { t {  half[i,s] = sum r: T[i,r] * x[r,s]     s, r, i unrolled; channels as lanes
                      y[i,j]    = sum s: T[j,s] * half[i,s]  i, s, j unrolled  } }
"""
from __future__ import annotations

from ...backends.target import Target
from ...ir.affine import Div, linear
from ...ir.expr import Axis, Load, Table, Var, axes_of, loads, substitute, walk
from ...ir.loops import Loop, Relation, Scheduled, Split, Stage
from ...ir.program import Compute, Program
from .rows import lanes_of


def schedule_transform(p: Program, target: Target) -> Scheduled | None:
    """The schedule of a program of two computes with tables, the second reading the first; None for any other program."""
    if len(p.computes) != 2 or not all(_tables(c) for c in p.computes):
        return None
    half, out = p.computes
    reads = [x for x in loads(out.body) if x.buffer.name == half.buffer.name]
    lane = out.axes[-1]
    if len(reads) != 1 or half.axes[-1].extent != lane.extent or lane.extent > 4 * lanes_of(out, target):
        return None
    half = _renamed(half, "h")
    shared, splits, names = _shared(half, out, reads[0])
    if not shared:
        return None
    half = _with_axes(half, names)
    first = _half_stage(half, shared)
    second = _out_stage(out, shared, splits, reads[0])
    if second is None:
        return None
    loops = [Loop(a, "parallel") for a in shared]
    stages = (Stage(half, (*loops, *first)), Stage(out, (*loops, *second[0]), second[1], len(shared)))
    return Scheduled(Program(p.name, p.inputs, p.outputs, (half, out)), stages)


def _tables(c: Compute) -> list[Table]:
    return [x for x in walk(c.body) if isinstance(x, Table)]


def _renamed(c: Compute, mark: str) -> Compute:
    return _with_axes(c, {a: Axis(f"{a.name}{mark}", a.extent) for a in c.axes})


def _with_axes(c: Compute, names: dict[Axis, Axis]) -> Compute:
    body = substitute(c.body, {a: Var(b) for a, b in names.items()})
    return Compute(c.buffer, tuple(names.get(a, a) for a in c.axes), body)


def _shared(half: Compute, out: Compute, read: Load) -> tuple[list[Axis], list[Split], dict[Axis, Axis]]:
    """(loops over tiles, splits of out's axes they come from, half's axis -> the shared one): leading dimensions of half
    that out reads at one of its axes, or at the quotient of one."""
    tabled = {a for t in _tables(half) for a in axes_of(t.index)}
    shared: list[Axis] = []
    splits: list[Split] = []
    names: dict[Axis, Axis] = {}
    for a, e in zip(half.axes, read.index, strict=True):
        form = linear(e)
        if a in tabled:
            break
        if a.extent == 1 and not form.terms and form.const == 0:
            continue
        if len(form.terms) != 1 or form.const or form.terms[0][1] != 1:
            break
        atom = form.terms[0][0]
        if isinstance(atom, Axis) and atom in out.axes and atom != out.axes[-1]:
            shared.append(atom)
            names[a] = atom
        elif isinstance(atom, Div) and atom.arg.const == 0 and len(atom.arg.terms) == 1 and isinstance(x := atom.arg.terms[0][0], Axis):
            s = Split(x, Axis(f"{x.name}.o", -(-x.extent // atom.by)), Axis(f"{x.name}.i", min(atom.by, x.extent)))
            if s.outer.extent != a.extent:
                break
            splits.append(s)
            shared.append(s.outer)
            names[a] = s.outer
        else:
            break
    return shared, splits, names


def _half_stage(c: Compute, shared: list[Axis]) -> list[Loop]:
    tabled = {a for t in _tables(c) for a in axes_of(t.index)}
    own = [a for a in c.axes[:-1] if a not in shared]
    return [*(Loop(a, "unroll") for a in own if a not in tabled), *(Loop(a, "unroll", reduce=True) for a in c.reduce_axes),
            *(Loop(a, "unroll") for a in own if a in tabled), Loop(c.axes[-1], "vector")]


def _out_stage(c: Compute, shared: list[Axis], splits: list[Split], read: Load) -> tuple[list[Loop], tuple[Relation, ...]] | None:
    tabled = {a for t in _tables(c) for a in axes_of(t.index)} - set(c.reduce_axes)
    relations: list[Relation] = list(splits)
    outer: list[Loop] = []
    inner: list[Loop] = []
    for a in c.axes[:-1]:
        if a in shared:
            continue
        split = next((s for s in splits if s.parent == a), None)
        if split is None and a in tabled:  # read as a // n and a % n: the quotient is a loop of its own
            sizes = {d.by for e in read.index for d, _ in linear(e).terms if isinstance(d, Div) and any(t == a for t, _ in d.arg.terms)}
            if len(sizes) == 1:
                n = sizes.pop()
                s = Split(a, Axis(f"{a.name}.o", -(-a.extent // n)), Axis(f"{a.name}.i", n))
                relations.append(s)
                outer.append(Loop(s.outer, "unroll"))
                inner.append(Loop(s.inner, "unroll"))
                continue
        one = Loop(a if split is None else split.inner, "unroll")
        (inner if a in tabled else outer).append(one)
    if any(x.axis.extent > 8 for x in (*outer, *inner)):
        return None
    return [*outer, *(Loop(a, "unroll", reduce=True) for a in c.reduce_axes), *inner, Loop(c.axes[-1], "vector")], tuple(relations)
