"""Long sums in passes: what a block's tiles add up is kept between the passes in memory that stays in the second-level cache.

    for blocks:  for tiles: y[i,j] = act(sum(k<3072: a[i,k] * b[k,j]))
    ->
    for blocks:  for tiles: p0[i,j] = sum(k<1024: a[i,k] * b[k,j])
                 for tiles: p1[i,j] = p0[i,j] + sum(k<1024: a[i,1024+k] * b[1024+k,j])
                 for tiles: y[i,j]  = act(p1[i,j] + sum(k<1024: a[i,2048+k] * b[2048+k,j]))

A panel of b and a block's rows of a, cut to one pass, fit that cache together; without passes one of them streams through it
(after K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication", 2008). The sum is that of the passes' sums.
"""
from __future__ import annotations

from dataclasses import replace

from ...errors import ScheduleError
from ...ir.expr import Axis, Buffer, Expr, Load, Reduce, Var, reduces, rewrite
from ...ir.loops import Loop, Relation, Scheduled, Split, Stage
from ...ir.program import Compute, Program


def pass_size(extent: int, passes: int, unit: int) -> int:
    """Values of a reduction axis in each of about `passes` parts, in whole units."""
    return -(-extent // passes // unit) * unit


def in_passes(s: Scheduled, axis: Axis, passes: int, shared: int) -> Scheduled:
    """`s`, whose only stage is a sum, with `axis` of it (a reduction axis of the compute) in about so many passes inside the
    `shared` outermost loops; `s` itself where there is nothing to cut. Raises ScheduleError for what is no such sum."""
    st = s.stages[0]
    c = st.compute
    unit = max((r.inner.extent for r in st.relations if isinstance(r, Split) and r.parent == axis), default=1)
    size = pass_size(axis.extent, passes, unit)
    count = -(-axis.extent // size)
    if axis not in c.reduce_axes or not 0 < shared <= len(st.loops) or any(x.reduce for x in st.loops[:shared]):
        raise ScheduleError(f"{s.program.name}: no passes over {axis.name} inside {shared} loops")
    if count < 2:
        return s
    total = reduces(c.body)[0]
    stages: list[Stage] = []
    for k in range(count):
        part, begin = Axis(f"{axis.name}_{k}", min(size, axis.extent - k * size)), k * size
        relations, loops = _renewed(st, axis, part)
        terms = rewrite(total.body, lambda n, a=part, b=begin: Var(a) + b if isinstance(n, Var) and n.axis == axis else None)
        partial: Expr = Reduce(total.kind, tuple(part if a == axis else a for a in total.axes), terms)
        if stages:
            partial = Load(stages[-1].compute.buffer, tuple(Var(a) for a in c.axes)) + partial
        if k + 1 < count:
            new = Compute(Buffer(f"{c.buffer.name}_{k}", total.dtype, c.buffer.shape), c.axes, partial)
        else:
            new = Compute(c.buffer, c.axes, rewrite(c.body, lambda n, e=partial: e if n is total else None))
        stages.append(replace(st, compute=new, loops=loops, relations=relations, shared=shared if stages else 0))
    program = Program(s.program.name, s.program.inputs, s.program.outputs, tuple(x.compute for x in stages))
    return replace(s, program=program, stages=tuple(stages))


def _renewed(st: Stage, axis: Axis, part: Axis) -> tuple[tuple[Relation, ...], tuple[Loop, ...]]:
    """Relations and loops of a stage with a shorter axis in the place of `axis`, and its splits cut to fit."""
    names = {axis: part}
    relations: list[Relation] = []
    for r in st.relations:
        if isinstance(r, Split) and r.parent in names:
            parent = names[r.parent]
            factor = min(r.inner.extent, parent.extent)
            names[r.outer] = Axis(f"{r.outer.name}_{part.name}", -(-parent.extent // factor))
            names[r.inner] = r.inner if factor == r.inner.extent else Axis(f"{r.inner.name}_{part.name}", factor)
            relations.append(replace(r, parent=parent, outer=names[r.outer], inner=names[r.inner]))
        else:
            relations.append(r)
    return tuple(relations), tuple(replace(x, axis=names.get(x.axis, x.axis)) for x in st.loops)
