"""Schedule of Winograd's convolution strip by strip (ir/ops/winograd_strips.py): five computes in one loop over strips.

    parallel image { parallel strip {
      for block, tile: { half = … straight-line; v = … straight-line }             B' d B, as in transforms.py
      for p, block, tiles: microkernel { m[p] = v[p] * u[p] }                      as any contraction (contraction.py)
      for block, row, column: { half2 = … straight-line; y = … straight-line }     A' M A
    } }

v and m of a strip live in memory of the thread. The strip of the last compute is a range of image rows: y's own axis, cut
first into strips and then into rows of tiles.
"""
from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from ...backends.target import Target
from ...ir.expr import Axis, Buffer, Const, Expr, Load, Table, Var, rewrite, substitute, walk
from ...ir.kinds import is_contraction
from ...ir.loops import Loop, Pack, Scheduled, Split, Stage
from ...ir.program import Compute, Program
from ...ir.types import I64
from .contraction import default_contraction
from .contraction_nest import Choice, schedule_nest
from .packing import packed_inputs
from .parallel import undivided
from .rows import lanes_of


def schedule_strips(p: Program, target: Target, packable: frozenset[str], products: Choice | None = None) -> Scheduled | None:
    """The schedule of a program of five computes, each reading the one before: tables, tables, a contraction, tables,
    tables; None for any other program. `products` takes the place of what would be decided about the contraction (which
    `strip_products` has as a program of its own); raises ScheduleError where that does not fit."""
    if not _is_strips(p):
        return None
    c = [_renamed(x, f"_{k}") for k, x in enumerate(p.computes)]
    half, v, m, half2, out = c
    lane = out.axes[-1]
    if lane.extent > 4 * lanes_of(out, target):
        return None
    shared = [Axis("image", half.axes[0].extent), Axis("strip", half.axes[1].extent)]
    half, v, m, half2 = (_shared(x, shared) for x in (half, v, m, half2))
    out = _shared(out, shared[:1])
    multiply = _multiply(m, shared, p, target, packable, products)
    if multiply is None:
        return None
    middle, packs, inputs = multiply
    outer = tuple(Loop(a, "parallel") for a in shared)
    stages = (*_transform_in(half, v, outer), middle, *_transform_out(half2, out, outer))
    program = Program(p.name, inputs, p.outputs, tuple(st.compute for st in stages))
    return Scheduled(program, stages, packs)


def strip_products(p: Program) -> Program | None:
    """The products of one strip as a program of their own; None where `p` is no Winograd convolution in strips."""
    return _products(_renamed(p.computes[2], "_2"), p)[0] if _is_strips(p) else None


def _is_strips(p: Program) -> bool:
    c = p.computes
    if len(c) != 5 or not is_contraction(c[2]):
        return False
    chain = all(any(b.name == a.buffer.name for b in x.reads) for a, x in pairwise(c))
    tables = all(any(isinstance(n, Table) for n in walk(x.body)) for k, x in enumerate(c) if k != 2)
    return chain and tables and [len(x.axes) for x in c] == [7, 6, 6, 8, 5]


def _renamed(c: Compute, mark: str) -> Compute:
    return _with_axes(c, {a: Axis(f"{a.name}{mark}", a.extent) for a in c.axes})


def _with_axes(c: Compute, names: dict[Axis, Axis]) -> Compute:
    return Compute(c.buffer, tuple(names.get(a, a) for a in c.axes), substitute(c.body, {a: Var(b) for a, b in names.items()}))


def _shared(c: Compute, shared: list[Axis]) -> Compute:
    """`c` with its leading axes called as those of all stages are."""
    return _with_axes(c, dict(zip(c.axes, shared, strict=False)))


def _transform_in(half: Compute, v: Compute, outer: tuple[Loop, ...]) -> tuple[Stage, Stage]:
    """Both share the loops over blocks and tiles; everything inside is straight-line code."""
    _, _, p, block, tile, lane = v.axes
    half = _with_axes(half, {half.axes[2]: block, half.axes[3]: tile})
    i, q, own = half.axes[4:]
    loops = (*outer, Loop(block), Loop(tile))
    first = Stage(half, (*loops, Loop(q, "unroll"), *_reductions(half), Loop(i, "unroll"), Loop(own, "vector")))
    s = Split(p, Axis(f"{p.name}.o", i.extent), Axis(f"{p.name}.i", q.extent))
    second = Stage(v, (*loops, Loop(s.outer, "unroll"), *_reductions(v), Loop(s.inner, "unroll"), Loop(lane, "vector")), (s,), len(loops))
    return first, second


def _transform_out(half: Compute, out: Compute, outer: tuple[Loop, ...]) -> tuple[Stage, Stage]:
    """Both share the loops over blocks, rows and columns of tiles. The output's own rows are cut into strips, then tiles."""
    _, block, h, w, lane = out.axes
    strip, rows, across, tile = outer[1].axis, half.axes[3], half.axes[4], half.axes[6].extent
    half = _with_axes(half, {half.axes[2]: block})
    inside = Axis(f"{h.name}.s", min(rows.extent * tile, h.extent))
    cuts = (Split(h, strip, inside), Split(inside, rows, Axis(f"{h.name}.i", min(tile, h.extent))),
            Split(w, across, Axis(f"{w.name}.i", min(tile, w.extent))))
    i, q, own = half.axes[5:]
    loops = (*outer, Loop(block), Loop(rows), Loop(across))
    first = Stage(half, (*loops, Loop(i, "unroll"), *_reductions(half), Loop(q, "unroll"), Loop(own, "vector")), (), 2)
    columns, lines = Loop(cuts[2].inner, "unroll"), Loop(cuts[1].inner, "unroll")
    second = Stage(out, (*loops, columns, *_reductions(out), lines, Loop(lane, "vector")), cuts, len(loops))
    return first, second


def _reductions(c: Compute) -> list[Loop]:
    return [Loop(a, "unroll", reduce=True) for a in c.reduce_axes]


def _multiply(c: Compute, shared: list[Axis], p: Program, target: Target,
              packable: frozenset[str], choice: Choice | None) -> tuple[Stage, tuple[Pack, ...], tuple[Buffer, ...]] | None:
    """(stage, packs, the program's inputs): the products of one strip, scheduled as a program of their own."""
    own, local = _products(c, p)
    inside = packable & {b.name for b in own.inputs[1:]}
    if choice is None:
        found = default_contraction(own, target, inside)
        if found is None:
            return None
        choice = found[0]
    # a strip is made to fit the caches; passes would make several stages of its products
    s = schedule_nest(own, target, inside, replace(choice, passes=1))
    st, = s.stages
    assert st.tensorize is not None
    loops = (*(Loop(a, "parallel") for a in shared), *undivided(st.loops))

    def whole(e: Expr) -> Expr | None:
        return Load(local, (*map(Var, shared), *e.index)) if isinstance(e, Load) and e.buffer.name == local.name else None
    full = Compute(c.buffer, c.axes, rewrite(st.compute.body, whole))
    stage = replace(st, compute=full, loops=loops, shared=2, tensorize=st.tensorize + 2)
    return stage, s.packs, packed_inputs(p, own, s)


def _products(c: Compute, p: Program) -> tuple[Program, Buffer]:
    """(the contraction `c` of one strip as a program, the local buffer that it reads)."""
    local = next(b for b in c.reads if b not in p.inputs)
    apart = Buffer(local.name, local.dtype, local.shape[2:])
    result = Buffer(c.buffer.name, c.buffer.dtype, c.buffer.shape[2:])
    zero: dict[Axis, Expr] = {a: Const(0, I64) for a in c.axes[:2]}

    def cut(e: Expr) -> Expr | None:
        return Load(apart, e.index[2:]) if isinstance(e, Load) and e.buffer.name == local.name else None
    weights = tuple(b for b in c.reads if b in p.inputs)
    own = Compute(result, c.axes[2:], substitute(rewrite(c.body, cut), zero))
    return Program("multiply", (apart, *weights), (result,), (own,)), local
