"""Default schedules of maps and reductions: which axis becomes vectors, what is tiled, which stages share their rows.

    softmax over rows:   parallel i { vector-reduce max; vector-reduce sum of exp; vector map }
    depthwise 3x3:       parallel c { h { w by 4 { 9 taps unrolled; 4 accumulators; 16 channels as lanes } } }
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ...backends.target import Target
from ...ir.affine import Div, Mod, Opaque, flat_address, linear
from ...ir.expr import Axis, Expr, Load, Var, axes_of, loads, rewrite, substitute, walk
from ...ir.expr import Reduce as ReduceExpr
from ...ir.loops import Loop, Relation, Scheduled, Split, Stage
from ...ir.program import Compute, Program
from .parallel import mark_parallel

CHUNK = 4096        # elements of a flat map that one parallel step handles
FULL_UNROLL = 25    # reductions up to this many points (a 5x5 window) become straight-line code
GATHER_COST = 1.5   # of one lane, in vector loads


def schedule_rows(p: Program, target: Target) -> Scheduled:
    """Maps and reductions; computes that walk the same rows share the row loops."""
    depth = shared_depth(p) if len(p.computes) > 1 else 0
    if depth:
        p = _rename_shared(p, depth)
    stages = []
    for k, c in enumerate(p.computes):
        stages.append(_stage(c, depth, target, shared=depth if k else 0))
    return Scheduled(p, tuple(_parallel_first(st, depth) for st in stages))


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


def _rename_shared(p: Program, depth: int) -> Program:
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


@dataclass(frozen=True, slots=True)
class Access:
    """How one load or store moves with an axis: 0 stays, 1 contiguous, None anything else. `digits`: of the axes read as
    a // c and a % c (channels in blocks of c), those whose a % c is contiguous -> c."""

    strides: dict[Axis, int | None]
    digits: dict[Axis, int] = field(default_factory=dict)

    def step(self, a: Axis) -> int | None:
        return self.strides.get(a, 0)


def access(x: Load | Compute) -> Access:
    """Element strides of an access along each axis; None where not linear in it."""
    buffer, index = (x.buffer, x.index) if isinstance(x, Load) else (x.buffer, tuple(Var(a) for a in x.axes))
    total = flat_address(index, buffer.strides)
    strides: dict[Axis, int | None] = {}
    for atom, k in total.terms:
        if isinstance(atom, Axis):
            strides[atom] = k if atom not in strides else None
    for atom, _ in total.terms:
        if not isinstance(atom, Axis):
            for e in index:
                strides.update({a: None for a in axes_of(e) if a not in strides or _nonlinear(e, a)})
    if isinstance(x, Load) and x.where is not None:
        for a in axes_of(x.where):
            strides.setdefault(a, 0)
    digits: dict[Axis, int] = {}
    for atom, k in total.terms:
        if isinstance(atom, Mod) and k == 1 and atom.arg.const == 0 and len(atom.arg.terms) == 1:
            (a, step), = atom.arg.terms
            if isinstance(a, Axis) and step == 1:
                digits[a] = atom.by
    return Access(strides, digits)


def _nonlinear(e: Expr, a: Axis) -> bool:
    return any(not isinstance(atom, Axis) and a in _atom_axes(atom) for atom, _ in linear(e).terms)


def _atom_axes(atom: object) -> set[Axis]:
    if isinstance(atom, Axis):
        return {atom}
    if isinstance(atom, (Div, Mod)):
        return set().union(*(_atom_axes(x) for x, _ in atom.arg.terms)) if atom.arg.terms else set()
    return axes_of(atom.expr) if isinstance(atom, Opaque) else set()


def _vector_cost(c: Compute, a: Axis, reads: list[Access], write: Access, lanes: int, reduce: bool) -> float:
    """Rough vector instructions per lane when `a` becomes lanes; lower is better."""
    def one(acc: Access) -> float:
        step = acc.step(a)
        return 0.3 if step == 0 else 1.0 if step == 1 else lanes * GATHER_COST
    total = sum(one(r) for r in reads) + (0.2 if reduce else one(write)) + 0.5
    used = a.extent / (math.ceil(a.extent / lanes) * lanes)
    join = math.log2(lanes) / max(a.extent / lanes, 1) if reduce else 0.0
    return (total + join) / (lanes * used)


def lanes_of(c: Compute, target: Target) -> int:
    from ...backends.llvm.emit_expr import vector_lanes
    return vector_lanes(c.body, c.buffer.dtype, target)


def _stage(c: Compute, depth: int, target: Target, shared: int) -> Stage:
    own, red = list(c.axes[depth:]), list(c.reduce_axes)
    lanes = lanes_of(c, target)
    reads, write = [access(x) for x in _data_loads(c)], access(c)
    points = [(_vector_cost(c, a, reads, write, lanes, a in red), k, a) for k, a in enumerate(own + red) if a.extent > 1]
    scalar = (len(reads) + 1.5) * 0.8
    vec = None
    if points and lanes > 1:
        cost, _, best = min(points, key=lambda t: (t[0], -t[1]))
        vec = best if cost < scalar else None
    outer = [Loop(a) for a in c.axes[:depth]]
    if not red:
        if (t := _transposing(own, reads, write, lanes)) is not None:
            return _tile_stage(c, outer, own, *t, lanes, shared)
        return _map_stage(c, outer, own, vec, depth, shared)
    if vec is not None and vec in red:
        return _row_reduction(c, outer, own, red, vec, lanes, shared)
    return _column_reduction(c, outer, own, red, vec, lanes, target, shared)


def _data_loads(c: Compute) -> list[Load]:
    inside = {id(n) for x in loads(c.body) for i in x.index for n in walk(i)}
    return [x for x in loads(c.body) if id(x) not in inside]


def _map_stage(c: Compute, outer: list[Loop], own: list[Axis], vec: Axis | None, depth: int, shared: int) -> Stage:
    loops = [*outer, *(Loop(a) for a in own if a != vec)]
    if vec is None:
        return Stage(c, tuple(loops), (), shared)
    if depth == 0 and all(a.extent == 1 for a in own if a != vec) and vec.extent > 2 * CHUNK:
        vo, vi = Axis(f"{vec.name}.o", -(-vec.extent // CHUNK)), Axis(f"{vec.name}.i", CHUNK)
        return Stage(c, (Loop(vo), *loops, Loop(vi, "vector")), (Split(vec, vo, vi),), shared)
    return Stage(c, (*loops, Loop(vec, "vector")), (), shared)


def _transposing(own: list[Axis], reads: list[Access], write: Access, lanes: int) -> tuple[Axis, Axis, int] | None:
    """(axis the store runs along, axis a load runs along, its tile) of a map that transposes; both axes are at least
    half a vector long."""
    if lanes & (lanes - 1) or lanes < 4:
        return None
    for v in own:
        if write.step(v) != 1 or v.extent < lanes // 2:
            continue
        for u in own:
            if u != v and u.extent >= lanes // 2 and any((r.step(u) == 1 or u in r.digits) and (r.step(v) or 0) > 1 for r in reads) \
                    and all(r.step(v) is not None and (r.step(u) is not None or u in r.digits) for r in reads):
                sizes = {r.digits[u] for r in reads if u in r.digits} or {lanes}
                if len(sizes) == 1 and (size := sizes.pop()) <= lanes:
                    return v, u, size
    return None


def _tile_stage(c: Compute, outer: list[Loop], own: list[Axis], v: Axis, u: Axis, size: int, lanes: int, shared: int) -> Stage:
    """A map in square tiles, transposed in registers: ... u.o, v.o { u.i unrolled { v.i as lanes } }."""
    def split(a: Axis, n: int) -> Split:
        return Split(a, Axis(f"{a.name}.o", -(-a.extent // n)), Axis(f"{a.name}.i", min(n, a.extent)))
    relations = us, vs = split(u, size), split(v, lanes)
    rest = [Loop(a) for a in own if a not in (u, v)]
    return Stage(c, (*outer, *rest, Loop(us.outer), Loop(vs.outer), Loop(us.inner, "unroll"), Loop(vs.inner, "vector")), relations, shared)


def _row_reduction(c: Compute, outer: list[Loop], own: list[Axis], red: list[Axis], vec: Axis, lanes: int, shared: int) -> Stage:
    """Lanes along the reduction: up to four vector accumulators, joined at the end."""
    loops = [*outer, *(Loop(a) for a in own), *(Loop(a, reduce=True) for a in red if a != vec)]
    width = lanes * 4
    if vec.extent <= width:
        return Stage(c, (*loops, Loop(vec, "vector", True, True)), (), shared)
    vo, vi = Axis(f"{vec.name}.o", -(-vec.extent // width)), Axis(f"{vec.name}.i", width)
    return Stage(c, (*loops, Loop(vo, reduce=True), Loop(vi, "vector", True, True)), (Split(vec, vo, vi),), shared)


def _column_reduction(c: Compute, outer: list[Loop], own: list[Axis], red: list[Axis], vec: Axis | None, lanes: int,
                      target: Target, shared: int) -> Stage:
    """Lanes along an own axis (or none): a tile of accumulators under the reduction's loops."""
    budget = 8 if target.vector_registers < 32 else 16
    relations: list[Relation] = []
    tile: list[Loop] = []
    vectors = 1
    loops = [*outer]
    rest = [a for a in own if a != vec]
    vector_loops: list[Loop] = []
    if vec is not None:
        vectors = min(4, -(-vec.extent // lanes))
        if vec.extent > vectors * lanes:
            vo, vi = Axis(f"{vec.name}.o", -(-vec.extent // (vectors * lanes))), Axis(f"{vec.name}.i", vectors * lanes)
            relations.append(Split(vec, vo, vi))
            vector_loops = [Loop(vo)]
            tile.append(Loop(vi, "vector"))
        else:
            tile.append(Loop(vec, "vector"))
    wide = next((a for a in reversed(rest) if a.extent > 1), None)
    size = max(1, min(8 if vec is not None else 4, budget // vectors))
    if wide is not None and size > 1 and _reuses(c, wide):
        to, ti = Axis(f"{wide.name}.o", -(-wide.extent // size)), Axis(f"{wide.name}.i", min(size, wide.extent))
        relations.append(Split(wide, to, ti, "balance"))
        tile.insert(0, Loop(ti, "unroll"))
        loops += [Loop(to) if a == wide else Loop(a) for a in rest]
    else:
        loops += [Loop(a) for a in rest]
    points = math.prod(a.extent for a in red)
    kind = "unroll" if points <= FULL_UNROLL else "serial"
    return Stage(c, (*loops, *vector_loops, *(Loop(a, kind, reduce=True) for a in red), *tile), tuple(relations), shared)


def _reuses(c: Compute, a: Axis) -> bool:
    """Whether neighbours along `a` share loads: some load stays while another moves, or windows overlap."""
    steps = [access(x).step(a) for x in _data_loads(c)]
    return len(steps) > 0 and all(s is not None for s in steps)


def _parallel_first(st: Stage, depth: int) -> Stage:
    """Moves the first loop with more than one trip to the front and marks it parallel, with those after it while they add
    to the even shares; loops of one trip sink."""
    limit = depth if depth else next((k for k, x in enumerate(st.loops) if x.reduce or x.kind != "serial"), len(st.loops))
    inner = {r.inner for r in st.relations if isinstance(r, Split)}
    head = st.loops[:limit]
    big = next((x for x in head if x.axis.extent > 1 and x.axis not in inner), None)
    if big is None:
        return st
    rest = [x for x in head if x is not big]
    return replace(st, loops=mark_parallel((big, *rest, *st.loops[limit:]), limit))
