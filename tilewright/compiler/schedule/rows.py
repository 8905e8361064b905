"""Default schedules of maps and reductions: which axis becomes vectors, what is tiled, which stages share their rows.

    softmax over rows:   parallel i { vector-reduce max; vector-reduce sum of exp; vector map }
    depthwise 3x3:       parallel c { h { w by 8 { 9 taps unrolled; 8 accumulators; 16 channels as lanes } } }
    depthwise 31x31:     parallel c { h { w by 14 { 31 rows { 31 taps unrolled; 14 accumulators; 44 inputs and 31 weights read } } } }
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...backends.target import Target
from ...ir.affine import Div, Mod, Opaque, flat_address, linear
from ...ir.expr import Axis, Expr, Load, Var, axes_of, loads, walk
from ...ir.loops import Scheduled
from ...ir.program import Compute, Program
from .rows_nest import STRAIGHT, RowChoice, RowsChoice, schedule_row_nests, shared_depth

CHUNK = 4096        # elements of a flat map that one parallel step handles
ROW = 32            # steps of a window's row that become straight-line code where the whole window is too long for that
WINDOW_POINTS = 14  # pixels that a long weighted window's row is summed for at once, with 32 registers: what a row of 28 or 56 divides into
GATHER_COST = 1.5   # of one lane, in vector loads


def schedule_rows(p: Program, target: Target) -> Scheduled:
    """Maps and reductions; computes that walk the same rows share the row loops."""
    return schedule_row_nests(p, choose_rows(p, target))


def choose_rows(p: Program, target: Target) -> RowsChoice:
    """The decisions of the default schedule."""
    depth = shared_depth(p) if len(p.computes) > 1 else 0
    if depth and any(len(c.axes) == depth and not c.reduce_axes for c in p.computes):
        depth -= 1  # a map needs an axis of its own for vectors
    return RowsChoice(depth, tuple(choose_row(c, depth, target) for c in p.computes))


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


def choose_row(c: Compute, depth: int, target: Target) -> RowChoice:
    own, red = list(c.axes[depth:]), list(c.reduce_axes)
    lanes = lanes_of(c, target)
    reads, write = [access(x) for x in _data_loads(c)], access(c)
    points = [(_vector_cost(c, a, reads, write, lanes, a in red), k, a) for k, a in enumerate(own + red) if a.extent > 1]
    scalar = (len(reads) + 1.5) * 0.8
    vec = None
    if points and lanes > 1:
        cost, _, best = min(points, key=lambda t: (t[0], -t[1]))
        vec = best if cost < scalar else None
    at = -1 if vec is None else (*c.axes, *red).index(vec)
    if not red:
        if (t := _transposing(own, reads, write, lanes)) is not None:
            return RowChoice(c.axes.index(t[0]), lanes, c.axes.index(t[1]), t[2], True)
        flat = vec is not None and depth == 0 and all(a.extent == 1 for a in own if a != vec) and vec.extent > 2 * CHUNK
        return RowChoice(at, CHUNK if flat else 0)
    if vec is not None and vec in red:
        return RowChoice(at, lanes * 4)
    return _columns(c, own, red, vec, at, lanes, target)


def _data_loads(c: Compute) -> list[Load]:
    inside = {id(n) for x in loads(c.body) for i in x.index for n in walk(i)}
    return [x for x in loads(c.body, rare=False) if id(x) not in inside]


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


def _columns(c: Compute, own: list[Axis], red: list[Axis], vec: Axis | None, at: int, lanes: int, target: Target) -> RowChoice:
    """Lanes along an own axis (or none), with as many points of another one as there are registers."""
    budget = 8 if target.vector_registers < 32 else 16
    vectors = min(4, -(-vec.extent // lanes)) if vec is not None else 1
    wide = next((a for a in reversed(own) if a != vec and a.extent > 1), None)
    size = max(1, min(8 if vec is not None else 4, budget // vectors))
    tiled = wide is not None and size > 1 and _reuses(c, wide)
    short = math.prod(a.extent for a in red) <= STRAIGHT
    by_rows = not short and tiled and red[-1].extent <= ROW
    if by_rows and budget == 16 and vectors == 1 and vec is not None and len(_data_loads(c)) > 1:
        size = WINDOW_POINTS
    return RowChoice(at, vectors * lanes if vec is not None else 0, c.axes.index(wide) if wide is not None and tiled else -1,
                     size if tiled else 1, False, short or by_rows)


def _reuses(c: Compute, a: Axis) -> bool:
    """Whether neighbours along `a` share loads: some load stays while another moves, or windows overlap."""
    steps = [access(x).step(a) for x in _data_loads(c)]
    return len(steps) > 0 and all(s is not None for s in steps)
