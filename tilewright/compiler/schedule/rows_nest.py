"""Loop nests of maps and reductions: the one road from decisions to a schedule, for the closed-form heuristic (rows.py) and
for search (autotune/space) alike.

    map         parallel loops { points unrolled { lanes } }
    squares     parallel loops { tiles of u, of v { u unrolled { v as lanes, transposed in registers } } }
    row sum     parallel loops { reduce loops { lanes along the reduction, an accumulator for each } }
    column sum  parallel loops { reduce loops, perhaps unrolled { points unrolled { lanes } } }
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...errors import ScheduleError
from ...ir.affine import linear
from ...ir.expr import Axis, Expr, Var, loads, rewrite, substitute
from ...ir.expr import Reduce as ReduceExpr
from ...ir.loops import Loop, Relation, Scheduled, Split, Stage
from ...ir.program import Compute, Program
from .parallel import mark_parallel

STRAIGHT = 25  # steps of a reduction (a 5x5 window) that are straight-line code together; of longer ones, a row of the window is


@dataclass(frozen=True, slots=True)
class RowChoice:
    """The decisions about one compute. Axes are numbered: the compute's own, then those of its reduction; -1 is none.

    vector: the axis that becomes lanes. width: how many of its values are lanes of one loop; 0: all of them.
    points: so many values of `across` are unrolled around the lanes; 1: none.
    square: the axis that reads run along, in tiles of points x width that are transposed in registers.
    unroll: the reduction is straight-line code, if it is short enough (STRAIGHT); else its innermost loop is.
    first:  the position of the outermost loop among those that may be.
    """

    vector: int
    width: int = 0
    across: int = -1
    points: int = 1
    square: bool = False
    unroll: bool = False
    first: int = 0


@dataclass(frozen=True, slots=True)
class RowsChoice:
    """`depth`: how many outermost loops all computes share."""

    depth: int
    stages: tuple[RowChoice, ...]


def schedule_row_nests(p: Program, d: RowsChoice) -> Scheduled:
    """The schedule that the decisions stand for. Raises ScheduleError where they do not fit the program."""
    if len(d.stages) != len(p.computes) or not 0 <= d.depth <= (shared_depth(p) if len(p.computes) > 1 else 0):
        raise ScheduleError(f"{p.name}: decisions for {len(d.stages)} computes that share {d.depth} loops do not fit")
    if d.depth:
        p = rename_shared(p, d.depth)
        d = replace(d, stages=tuple(replace(x, first=d.stages[0].first) for x in d.stages))
    pairs = zip(p.computes, d.stages, strict=True)
    return Scheduled(p, tuple(row_stage(c, x, d.depth, d.depth if k else 0) for k, (c, x) in enumerate(pairs)))


def shared_depth(p: Program) -> int:
    """How many leading axes all computes have in common, reading each other's results only at the same place."""
    depth = min(len(c.axes) for c in p.computes)
    local = {c.buffer.name for c in p.computes}
    for c in p.computes:
        first = p.computes[0]
        while depth and any(c.axes[k].extent != first.axes[k].extent for k in range(depth)):
            depth -= 1
        for x in loads(c.body):
            if x.buffer.name in local:
                same = 0
                while same < min(depth, len(x.index)) and _is_axis(x.index[same], c.axes[same]):
                    same += 1
                depth = min(depth, same)
    return depth


def _is_axis(e: Expr, a: Axis) -> bool:
    """Whether an index is exactly this axis (an axis of one element may be written as 0)."""
    return linear(e) == linear(Var(a))


def rename_shared(p: Program, depth: int) -> Program:
    """Gives the leading `depth` axes of all computes the same names, and every other axis a name of its own."""
    computes = []
    for n, c in enumerate(p.computes):
        new = tuple(Axis(f"s{k}", a.extent) if k < depth else Axis(f"{a.name}_{n}", a.extent) for k, a in enumerate(c.axes))
        body = substitute(c.body, {a: Var(b) for a, b in zip(c.axes, new, strict=True)})
        computes.append(Compute(c.buffer, new, _rename_reduces(body, n)))
    return Program(p.name, p.inputs, p.outputs, tuple(computes))


def _rename_reduces(body: Expr, n: int) -> Expr:
    def visit(e: Expr) -> Expr | None:
        if not isinstance(e, ReduceExpr):
            return None
        new = {a: Axis(f"{a.name}_{n}", a.extent) for a in e.axes}
        return ReduceExpr(e.kind, tuple(new.values()), substitute(e.body, {a: Var(b) for a, b in new.items()}))
    return rewrite(body, visit)


# -- one compute ---------------------------------------------------------------------------------------------------------
def row_stage(c: Compute, d: RowChoice, depth: int, shared: int) -> Stage:
    axes = (*c.axes, *c.reduce_axes)
    if not all(k < len(axes) and (k < 0 or k >= depth) for k in (d.vector, d.across)) or min(d.points, d.width + 1) < 1 \
            or d.across >= len(c.axes) or d.across == d.vector >= 0:
        raise ScheduleError(f"{c.buffer.name}: {d} names axes that are not there")
    own, red = c.axes[depth:], c.reduce_axes
    vec = axes[d.vector] if d.vector >= 0 else None
    across = axes[d.across] if d.across >= 0 and d.points > 1 else None
    outer = [Loop(a) for a in c.axes[:depth]]
    if d.square:
        if vec is None or across is None or red:
            raise ScheduleError(f"{c.buffer.name}: square tiles take a map and two axes")
        st = _squares(c, outer, own, vec, d.width, across, d.points, shared)
    elif not red:
        st = _map(c, outer, own, vec, d.width, across, d.points, shared)
    elif vec is not None and vec in red:
        st = _row_sum(c, outer, own, vec, d.width, shared)
    else:
        st = _column_sum(c, outer, own, vec, across, d, shared)
    return _parallel_first(st, depth, d.first)


def _split(a: Axis, n: int, tail: str = "peel") -> Split:
    return Split(a, Axis(f"{a.name}.o", -(-a.extent // n)), Axis(f"{a.name}.i", min(n, a.extent)), tail)


def _map(c: Compute, outer: list[Loop], own: tuple[Axis, ...], vec: Axis | None, width: int, across: Axis | None, points: int,
         shared: int) -> Stage:
    relations: list[Relation] = []
    loops, tile, lanes = list(outer), [], []
    for a in own:
        if a == across:
            s = _split(a, points)
            relations.append(s)
            loops.append(Loop(s.outer))
            tile.append(Loop(s.inner, "unroll"))
        elif a != vec:
            loops.append(Loop(a))
    if vec is not None and 0 < width < vec.extent:
        s = _split(vec, width)
        relations.append(s)
        alone = not outer and all(a.extent == 1 for a in own if a != vec)
        loops.insert(0 if alone else len(loops), Loop(s.outer))
        lanes = [Loop(s.inner, "vector")]
    elif vec is not None:
        lanes = [Loop(vec, "vector")]
    return Stage(c, (*loops, *tile, *lanes), tuple(relations), shared)


def _squares(c: Compute, outer: list[Loop], own: tuple[Axis, ...], v: Axis, lanes: int, u: Axis, size: int, shared: int) -> Stage:
    """A map in square tiles, transposed in registers: ... u.o, v.o { u.i unrolled { v.i as lanes } }."""
    relations = us, vs = _split(u, size), _split(v, lanes or v.extent)
    rest = [Loop(a) for a in own if a not in (u, v)]
    return Stage(c, (*outer, *rest, Loop(us.outer), Loop(vs.outer), Loop(us.inner, "unroll"), Loop(vs.inner, "vector")), relations, shared)


def _row_sum(c: Compute, outer: list[Loop], own: tuple[Axis, ...], vec: Axis, width: int, shared: int) -> Stage:
    """Lanes along the reduction: several vector accumulators, joined at the end."""
    loops = [*outer, *(Loop(a) for a in own), *(Loop(a, reduce=True) for a in c.reduce_axes if a != vec)]
    if not 0 < width < vec.extent:
        return Stage(c, (*loops, Loop(vec, "vector", True, True)), (), shared)
    s = _split(vec, width)
    return Stage(c, (*loops, Loop(s.outer, reduce=True), Loop(s.inner, "vector", True, True)), (s,), shared)


def _column_sum(c: Compute, outer: list[Loop], own: tuple[Axis, ...], vec: Axis | None, across: Axis | None, d: RowChoice,
                shared: int) -> Stage:
    """Lanes along an own axis (or none): a tile of accumulators under the reduction's loops."""
    relations: list[Relation] = []
    tile: list[Loop] = []
    lanes: list[Loop] = []
    if vec is not None and 0 < d.width < vec.extent:
        s = _split(vec, d.width)
        relations.append(s)
        lanes = [Loop(s.outer)]
        tile.append(Loop(s.inner, "vector"))
    elif vec is not None:
        tile.append(Loop(vec, "vector"))
    loops = [*outer]
    for a in own:
        if a == across:
            s = _split(a, d.points, "balance")
            relations.append(s)
            tile.insert(0, Loop(s.inner, "unroll"))
            loops.append(Loop(s.outer))
        elif a != vec:
            loops.append(Loop(a))
    short = math.prod(a.extent for a in c.reduce_axes) <= STRAIGHT
    reduction = [Loop(a, "unroll" if d.unroll and (short or a == c.reduce_axes[-1]) else "serial", reduce=True) for a in c.reduce_axes]
    return Stage(c, (*loops, *lanes, *reduction, *tile), tuple(relations), shared)


def _parallel_first(st: Stage, depth: int, first: int) -> Stage:
    """Moves one loop with more than one trip to the front and marks it parallel, with those after it while they add to the
    even shares; loops of one trip sink."""
    limit = depth if depth else next((k for k, x in enumerate(st.loops) if x.reduce or x.kind != "serial"), len(st.loops))
    inner = {r.inner for r in st.relations if isinstance(r, Split)}
    head = st.loops[:limit]
    able = [x for x in head if x.axis.extent > 1 and x.axis not in inner]
    if not able:
        return st
    big = able[min(max(first, 0), len(able) - 1)]
    rest = [x for x in head if x is not big]
    return replace(st, loops=mark_parallel((big, *rest, *st.loops[limit:]), limit))
