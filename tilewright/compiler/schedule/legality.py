"""What every scheduled program must satisfy: the rules that the emitter relies on.

`check_legal` raises ScheduleError with one sentence; the emitter may assume everything below.

1. Each of a compute's axes is a loop, or is derived from loops by splits and fuses, exactly once; extents agree.
2. Inside the first reduce loop only unrolled and vector spatial loops follow: they span the accumulator tile, whose size
   is bounded, as is straight-line code.
3. At most one vector loop, the innermost; over a reduction it has an accumulator a lane (`split_sum`).
4. Only the outermost loops are parallel, and never a reduction.
5. Shared loops are those of the stage before, and values that pass between stages inside them are read where they were
   written: at the identity on every axis that the shared loops fix.
6. The outer part of a split is a loop (deeper tiling splits the inner part) and stands before its inner loops; parts of a
   split are not fused.
7. A microkernel holds all reduce loops, and no serial spatial loop.
"""
from __future__ import annotations

import math
from collections.abc import Iterable

from ...errors import ScheduleError
from ...ir.affine import linear
from ...ir.expr import Axis, Expr, Var, loads
from ...ir.loops import Fuse, Relation, Scheduled, Split, Stage

MAX_TILE_BYTES = 4 * 32 * 64  # accumulators of four times the registers of the widest target
MAX_UNROLL = 4096             # copies of a body in straight-line code


def check_legal(s: Scheduled) -> None:
    """Raises ScheduleError where `s` breaks one of the rules above."""
    computes = tuple(st.compute for st in s.stages)
    require(computes == s.program.computes, f"{s.program.name}: stages and computes differ")
    for st in s.stages:
        try:
            _check_axes(st)
            _check_kinds(st)
            _check_tile(st)
        except ScheduleError as e:
            raise ScheduleError(f"stage {st.compute.buffer.name}: {e}") from None
    _check_sharing(s)


def require(condition: bool, message: str) -> None:
    """Raises ScheduleError unless `condition` holds."""
    if not condition:
        raise ScheduleError(message)


def _check_axes(st: Stage) -> None:
    """Rules 1 and 6."""
    live = dict.fromkeys(st.compute.axes, False) | dict.fromkeys(st.compute.reduce_axes, True)
    split = {r.parent for r in st.relations if isinstance(r, Split)}
    parts = {x for r in st.relations if isinstance(r, Split) for x in (r.outer, r.inner)}
    todo = list(st.relations)
    while todo:
        ready = [r for r in todo if (r.parent in live if isinstance(r, Split) else r.outer in live and r.inner in live)]
        require(bool(ready), f"{_describe(todo[0])} works on axes that are not there (any more)")
        for r in ready:
            _apply(r, live, split, parts)
            todo.remove(r)
    loops = [x.axis for x in st.loops]
    require(len(set(loops)) == len(loops), "a loop occurs twice")
    require(set(loops) == set(live), f"loops {_names(loops)} do not cover the axes {_names(live)}")
    for x in st.loops:
        require(x.reduce == live[x.axis], f"loop {x.axis.name} is {'not ' if x.reduce else ''}a reduction")
    order = {a: k for k, a in enumerate(loops)}
    for r in st.relations:
        if isinstance(r, Split):
            require(r.outer in order, f"outer loop {r.outer.name} of a split is split again: split {r.parent.name} by more first")
            require(order[r.outer] < min(_positions(r.inner, st, order)),
                     f"inner loop {r.inner.name} stands before its outer loop {r.outer.name}")


def _positions(a: Axis, st: Stage, order: dict[Axis, int]) -> list[int]:
    """Nest positions of the loops that `a` is made of."""
    if a in order:
        return [order[a]]
    for r in st.relations:
        if isinstance(r, Split) and r.parent == a:
            return [*_positions(r.outer, st, order), *_positions(r.inner, st, order)]
        if isinstance(r, Fuse) and a in (r.outer, r.inner):
            return _positions(r.fused, st, order)
    return [0]


def _apply(r: Relation, live: dict[Axis, bool], split: set[Axis], parts: set[Axis]) -> None:
    if isinstance(r, Split):
        reduce = live.pop(r.parent)
        n, f = r.parent.extent, r.inner.extent
        require(1 <= f <= max(n, 1), f"split of {r.parent.name} ({n}) by {f}: the factor must be in 1..{max(n, 1)}")
        require(r.outer.extent == -(-n // f), f"split of {r.parent.name} ({n}) by {f} has {-(-n // f)} blocks, not {r.outer.extent}")
        require(r.tail in ("peel", "balance"), f"unknown tail {r.tail!r}")
        live[r.outer] = live[r.inner] = reduce
        return
    require(live[r.outer] == live[r.inner], f"fuse of {r.outer.name} and {r.inner.name}: one is a reduction, the other is not")
    require(not {r.outer, r.inner} & parts, f"fuse of {r.outer.name} and {r.inner.name}: parts of a split cannot be fused")
    require(r.fused.extent == r.outer.extent * r.inner.extent, f"fused loop {r.fused.name} has the wrong extent")
    live[r.fused] = live.pop(r.outer)
    live.pop(r.inner)


def _check_kinds(st: Stage) -> None:
    """Rules 2 to 4, as far as the order of loops goes."""
    reducing = False
    for k, x in enumerate(st.loops):
        name = x.axis.name
        reducing |= x.reduce
        require(x.kind in ("serial", "parallel", "unroll", "vector"), f"loop {name}: unknown kind {x.kind!r}")
        require(x.kind != "parallel" or not x.reduce and (k == 0 or st.loops[k - 1].kind == "parallel"),
                 f"loop {name}: only the outermost loops can be parallel, and no reduction")
        require(x.kind != "vector" or k == len(st.loops) - 1, f"vector loop {name} is not the innermost")
        require(x.reduce or not reducing or x.kind in ("unroll", "vector"),
                 f"{x.kind} loop {name} inside a reduction: unroll or vectorise it")
        require(not x.split_sum or x.reduce and x.kind in ("unroll", "vector"),
                 f"loop {name}: only unrolled and vector reductions split the sum")
        require(not (x.reduce and x.kind == "vector") or x.split_sum,
                 f"vector reduction {name} needs an accumulator for each lane (rfactor)")


def _check_tile(st: Stage) -> None:
    """Rules 2 and 7: sizes, and what a microkernel holds."""
    copies = math.prod(x.axis.extent for x in st.loops if x.kind == "unroll")
    require(copies <= MAX_UNROLL, f"{copies} copies of the body in straight-line code, at most {MAX_UNROLL}")
    first = next((k for k, x in enumerate(st.loops) if x.reduce), None)
    if first is not None:
        tile = [x for x in st.loops[first:] if not x.reduce or x.split_sum]
        vectors = math.prod(x.axis.extent * max(4, st.compute.buffer.dtype.bytes) for x in tile if x.kind == "vector")
        total = max(64, vectors) * math.prod(x.axis.extent for x in tile if x.kind == "unroll")
        require(total <= MAX_TILE_BYTES, f"accumulators of {total} bytes do not fit registers (limit {MAX_TILE_BYTES}): "
                                          f"split the loops {_names([x.axis for x in tile])}")
    if st.tensorize is not None:
        t = st.tensorize
        require(0 <= t < len(st.loops), f"microkernel at loop {t} of {len(st.loops)}")
        require(first is not None and t <= first, "a microkernel must hold all reduce loops")
        bad = [x.axis for x in st.loops[t:] if not x.reduce and x.kind not in ("unroll", "vector")]
        require(not bad, f"serial loops {_names(bad)} inside a microkernel")


def _check_sharing(s: Scheduled) -> None:
    """Rule 5."""
    where = {st.compute.buffer.name: k for k, st in enumerate(s.stages)}
    for k, st in enumerate(s.stages):
        name = st.compute.buffer.name
        require(k > 0 or st.shared == 0, f"stage {name}: the first stage shares no loops")
        if st.shared:
            before = s.stages[k - 1]
            same = st.shared <= min(len(st.loops), len(before.loops)) and st.loops[:st.shared] == before.loops[:st.shared]
            require(same, f"stage {name}: its first {st.shared} loops are not those of stage {before.compute.buffer.name}")
            require(all(not x.reduce and x.kind in ("serial", "parallel", "unroll") for x in st.loops[:st.shared]),
                     f"stage {name}: reductions and vectors cannot be shared")
            for x in st.loops[:st.shared]:
                require(bound_axis(st, x.axis) is not None and bound_axis(st, x.axis) == bound_axis(before, x.axis),
                         f"stage {name}: shared loop {x.axis.name} is derived differently in the two stages")
        for x in loads(st.compute.body):
            if (p := where.get(x.buffer.name)) is not None and (depth := min(s.stages[j].shared for j in range(p + 1, k + 1))):
                _check_read(s.stages[p], name, depth, x.index)


def bound_axis(st: Stage, loop: Axis) -> tuple[tuple[Axis, ...], Relation | None] | None:
    """The compute's axes that a shared loop walks along, and by which relation; None where sharing is not supported."""
    if loop in st.compute.axes:
        return (loop,), None
    for r in st.relations:
        if isinstance(r, Split) and loop == r.outer and r.parent in st.compute.axes:
            return (r.parent,), r
        if isinstance(r, Fuse) and loop == r.fused and {r.outer, r.inner} <= set(st.compute.axes):
            return (r.outer, r.inner), r
    return None


def _check_read(producer: Stage, reader: str, depth: int, index: tuple[Expr, ...]) -> None:
    fixed = {a for x in producer.loops[:depth] if (b := bound_axis(producer, x.axis)) for a in b[0]}
    for e, a in zip(index, producer.compute.axes, strict=True):
        require(a not in fixed or linear(e) == linear(Var(a)),
                 f"stage {reader}: reads {producer.compute.buffer.name} at other places of the shared axis {a.name}")


def _describe(r: Relation) -> str:
    return f"split of {r.parent.name}" if isinstance(r, Split) else f"fuse of {r.outer.name} and {r.inner.name}"


def _names(axes: Iterable[Axis]) -> str:
    return ", ".join(a.name for a in axes) or "none"
