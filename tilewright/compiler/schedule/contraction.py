"""Default schedule of contractions: matmul and convolution as register tiles of a microkernel.

Of the two operands, one is read as vectors along an output axis (`wide`: the packed weights, a row-major matrix), the
other one scalar at a time and broadcast (`narrow`: activations). A tile of MR points of narrow axes by NR vectors lives in
registers while the reduction runs:

    for n-tiles, for m-tiles:  microkernel { for k: MR broadcasts, NR vector loads, MR*NR multiply-adds }
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...backends.target import Target
from ...ir.affine import Div, Mod, linear
from ...ir.expr import Axis, Load, axes_of, reduces
from ...ir.kinds import product_loads
from ...ir.loops import Loop, Relation, Scheduled, Split, Stage
from ...ir.program import Compute, Program
from .packing import pack_operand
from .parallel import mark_parallel
from .rows import access, lanes_of

UNROLLED_FMAS = 64   # multiply-adds of straight-line code in a microkernel: hides loop overhead; 128 is no faster, and slow to compile
REMOTE = 4            # cost of a byte that another thread wrote, in bytes of weights: threads keep their rows of activations
TILE_OVERHEAD = 40.0  # cycles to enter and leave a microkernel


@dataclass(frozen=True, slots=True)
class Roles:
    """What each axis of a contraction does. `vector` is the wide axis that becomes lanes."""

    wide: Load
    narrow: Load
    vector: Axis
    n: tuple[Axis, ...]      # other output axes of the wide operand alone
    m: tuple[Axis, ...]      # output axes of the narrow operand alone
    batch: tuple[Axis, ...]  # of both or of neither
    k: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """Points of the last two m axes and vectors of the n side that one microkernel holds."""

    rows: int     # of the last but one m axis
    columns: int  # of the last m axis
    vectors: int


def find_roles(c: Compute, packable: frozenset[str]) -> Roles | None:
    """Roles of a contraction's axes, None if it has no axis that can be lanes of one operand alone."""
    nodes = reduces(c.body)
    if len(nodes) != 1 or nodes[0].kind != "sum" or not (pair := product_loads(nodes[0].body)):
        return None
    write = access(c)
    for wide, narrow in (pair[::-1], pair):
        wide_axes = set().union(*(axes_of(i) for i in wide.index)) if wide.index else set()
        narrow_axes = set().union(*(axes_of(i) for i in narrow.index)) if narrow.index else set()
        if not all(isinstance(x.index, tuple) for x in pair) or wide.where is not None:
            continue
        only = [a for a in c.axes if a in wide_axes and a not in narrow_axes]
        can_pack = wide.buffer.name in packable
        ok = [a for a in only if write.step(a) == 1 and a.extent > 1 and (can_pack or access(wide).step(a) == 1)]
        if not ok:
            continue
        v = ok[-1]
        return Roles(wide, narrow, v, tuple(a for a in only if a != v),
                     tuple(a for a in c.axes if a in narrow_axes and a not in wide_axes),
                     tuple(a for a in c.axes if (a in wide_axes) == (a in narrow_axes)), nodes[0].axes)
    return None


def schedule_contraction(p: Program, target: Target, packable: frozenset[str], tile: Tile | None = None) -> Scheduled | None:
    """The schedule of a program that is one contraction with its epilogue; None where it does not fit the scheme. `tile`
    takes the place of the tile that would be chosen."""
    c = p.computes[0]
    roles = find_roles(c, packable)
    if roles is None or len(p.computes) != 1:
        return None
    lanes = lanes_of(c, target)
    tile = tile or choose_tile(roles, lanes, target)
    stage = _stage(c, roles, tile, lanes, target)
    s = Scheduled(p, (stage,))
    if roles.wide.buffer.name in packable:
        packed = pack_operand(s, roles.wide.buffer.name)
        if packed is not None:
            return _with_prefetch(packed, roles, target)
        if access(roles.wide).step(roles.vector) != 1:
            return None
    return s


def _with_prefetch(s: Scheduled, r: Roles, target: Target) -> Scheduled:
    """Operands from beyond the second-level cache. Large weights: their next panel is fetched while the present one is
    multiplied with all tiles of the other operand. Large images under a window: the next row of every block of channels,
    which lie far apart and which no hardware prefetcher follows."""
    st = s.stages[0]
    assert st.tensorize is not None
    outer = [x.axis for x in st.loops[:st.tensorize] if x.axis.extent > 1]
    fetch: list[tuple[str, str]] = []
    if _size(r.wide) >= target.l2 // 8:
        own = {r.vector, *r.n} | {q.outer for q in st.relations if isinstance(q, Split) and q.parent in (r.vector, *r.n)}
        moving = [a for a in outer if a in own]
        if moving:
            fetch.append((next(b.name for b in s.program.inputs if b.name.endswith("_packed")), moving[-1].name))
    rows = r.m[-2] if len(r.m) > 1 else None
    if rows is not None and rows in outer and _size(r.narrow) > target.l2 and len([a for a in r.k if a.extent > 1]) > 2:
        fetch.append((r.narrow.buffer.name, rows.name))
    return replace(s, stages=(replace(st, prefetch=tuple(fetch)),))


def _size(x: Load) -> int:
    return math.prod(x.buffer.shape) * x.buffer.dtype.bytes


# -- tile choice -----------------------------------------------------------------------------------------------------------
def _tiles(roles: Roles, lanes: int, target: Target) -> Iterator[Tile]:
    columns = roles.m[-1].extent if roles.m else 1
    rows = roles.m[-2].extent if len(roles.m) > 1 else 1
    spare = _spare(roles, lanes, target)
    n_vectors = _n_vectors(roles, lanes)
    for vectors in range(1, min(6, n_vectors) + 1):
        most = (target.vector_registers - spare - vectors) // vectors
        for w in range(1, min(most, columns) + 1):
            for h in range(1, min(most // w, rows) + 1 if w == columns else 2):
                yield Tile(h, w, vectors)


def _spare(roles: Roles, lanes: int, target: Target) -> int:
    """Registers beside the accumulators and the wide operand's vectors: for broadcasts, for products that are not fused,
    for pieces of a ragged vector where there are no masks. NEON multiplies by a lane of a register, which takes loads
    of several rows in flight."""
    own = 4 if target.arch == "aarch64" else 1 if target.has_fma else 2
    if target.has_masks or roles.vector.extent % lanes == 0:
        return own
    # vectors that hold nothing but the odd piece are taken apart by LLVM
    return own + (2 if roles.vector.extent > lanes else target.vector_registers // 2 - own)


def _n_vectors(roles: Roles, lanes: int) -> int:
    """Vectors on the n side that can stand in one tile."""
    if roles.vector.extent > lanes or not roles.n:
        return -(-roles.vector.extent // lanes)
    return roles.n[-1].extent


def choose_tile(roles: Roles, lanes: int, target: Target) -> Tile:
    """The tile with the fewest estimated cycles over the whole contraction, ragged edges included."""
    return min(_tiles(roles, lanes, target), key=lambda t: (_cycles(roles, t, lanes, target), -t.rows * t.columns * t.vectors))


def _cycles(roles: Roles, t: Tile, lanes: int, target: Target) -> float:
    columns = roles.m[-1].extent if roles.m else 1
    rows = roles.m[-2].extent if len(roles.m) > 1 else 1
    k = math.prod(a.extent for a in roles.k)
    total = 0.0
    for h, hn in _balanced(rows, t.rows):
        for w, wn in _balanced(columns, t.columns):
            n = _n_vectors(roles, lanes)
            full, rest = divmod(n, t.vectors)
            for v, vn in ((t.vectors, full), (rest, 1 if rest else 0)):
                total += hn * wn * vn * (_step(h * w, v, target) * k + TILE_OVERHEAD + h * w * v)
    return total


def _step(points: int, vectors: int, target: Target) -> float:
    """Cycles of one k step: multiply-add ports, load ports, or the latency of the accumulators' chains. Vectors of the
    wide operand stream from the second-level cache, scalars of the narrow one from the first: the small terms. Without
    fused multiply-adds (SSE) a broadcast is a shuffle, which shares three ports with the multiplications and additions."""
    if not target.has_fma:
        return max((2 * points * vectors + points) / 3, 4.0) + 0.08 * vectors + 0.05 * points
    return max(points * vectors / 2, (points + vectors) / 2, 4.0) + 0.3 * vectors + 0.05 * points


def _balanced(extent: int, size: int) -> list[tuple[int, int]]:
    """(block size, count) of a balanced split."""
    t = -(-extent // size)
    base, rem = divmod(extent, t)
    return [(s, n) for s, n in ((base + 1, rem), (base, t - rem)) if n and s]


# -- loops -----------------------------------------------------------------------------------------------------------------
def _split(a: Axis, size: int, tail: str = "peel", mark: str = "") -> Split:
    return Split(a, Axis(f"{a.name}{mark}.o", -(-a.extent // size)), Axis(f"{a.name}{mark}.i", min(size, a.extent)), tail)


def _stage(c: Compute, r: Roles, t: Tile, lanes: int, target: Target) -> Stage:
    relations: list[Relation] = []
    n_outer: list[Axis] = list(r.n)
    tile: list[Loop] = []
    if r.vector.extent > lanes or not r.n:
        if r.vector.extent > t.vectors * lanes:
            s = _split(r.vector, t.vectors * lanes)
            relations.append(s)
            n_outer.append(s.outer)
            tile.append(Loop(s.inner, "vector"))
        else:
            tile.append(Loop(r.vector, "vector"))
    else:
        tile.append(Loop(r.vector, "vector"))
        if t.vectors > 1:
            s = _split(r.n[-1], t.vectors)
            relations.append(s)
            n_outer[-1] = s.outer
            tile.insert(0, Loop(s.inner, "unroll"))
    m_outer: list[Axis] = list(r.m)
    m_tile: list[Loop] = []
    for at, size in ((-1, t.columns), (-2, t.rows)):
        if len(r.m) >= -at and size > 1:
            s = _split(r.m[at], size, "balance")
            relations.append(s)
            m_outer[at] = s.outer
            m_tile.insert(0, Loop(s.inner, "unroll"))
    k_loops = _k_loops(r, t, relations)
    outer = _order(r, n_outer, m_outer, target)
    kept = set(r.batch) | (set(m_outer) if REMOTE * _bytes(r.narrow, r) > _bytes(r.wide, r) else set())
    loops = (*(Loop(a, major=int(a in kept)) for a in outer), *k_loops, *m_tile, *tile)
    return Stage(c, mark_parallel(loops, len(outer)), tuple(relations), 0, len(outer))


def _k_loops(r: Roles, t: Tile, relations: list[Relation]) -> list[Loop]:
    """Reduction loops: blocks of channels outermost, then the window, then the channels of a block, partly unrolled."""
    per_step = t.rows * t.columns * t.vectors
    unroll = max(1, min(16, UNROLLED_FMAS // per_step))
    block = _block(r)
    head: list[Loop] = []
    tail: list[Loop] = []
    for a in r.k:
        if block and a == block[0] and a.extent > block[1]:
            s = _split(a, block[1])
            relations.append(s)
            head.insert(0, Loop(s.outer, reduce=True))
            tail.append(Loop(s.inner, reduce=True))
        elif block and a == block[0]:
            tail.append(Loop(a, reduce=True))
        else:
            head.append(Loop(a, reduce=True))
    loops = [*head, *tail]
    last = loops[-1].axis
    if last.extent <= unroll:
        loops[-1] = Loop(last, "unroll", reduce=True)
    elif unroll > 1:
        even = [u for u in range(unroll, unroll // 2, -1) if last.extent % u == 0]
        s = _split(last, even[0] if even else unroll, mark=".u")
        relations.append(s)
        loops[-1:] = [Loop(s.outer, reduce=True), Loop(s.inner, "unroll", reduce=True)]
    return loops


def _block(r: Roles) -> tuple[Axis, int] | None:
    """(axis, block) of a k axis that the narrow operand reads as k // block and k % block: channels in blocks."""
    for e in r.narrow.index:
        for atom, _ in linear(e).terms:
            if isinstance(atom, (Div, Mod)) and atom.arg.const == 0 and len(atom.arg.terms) == 1 and atom.arg.terms[0][1] == 1 \
                    and isinstance(a := atom.arg.terms[0][0], Axis) and a in r.k:
                return a, atom.by
    contiguous = [a for a in r.k if access(r.narrow).step(a) == 1]
    return (contiguous[-1], contiguous[-1].extent) if contiguous and len(r.k) > 1 else None


def _bytes(x: Load, r: Roles) -> int:
    """Bytes of an operand that one step of the batch axes reads."""
    used = set().union(*(axes_of(i) for i in x.index)) if x.index else set()
    return _size(x) // max(1, math.prod(a.extent for a in r.batch if a in used))


def _order(r: Roles, n_outer: list[Axis], m_outer: list[Axis], target: Target) -> list[Axis]:
    """Order of the outer loops: what does not fit the second-level cache is streamed once. Loops of one trip come last,
    so that the first one is worth running in parallel."""
    n_trips, m_trips = (math.prod(a.extent for a in x) for x in (n_outer, m_outer))
    room = target.l2 // 2
    wide, narrow = _bytes(r.wide, r), _bytes(r.narrow, r)
    n_first = wide + narrow * (n_trips if narrow > room else 1)
    passes = m_trips // max(m_outer[-1].extent, 1) if len(m_outer) > 1 else m_trips
    m_first = narrow + wide * (passes if wide > room else 1)
    if m_first < n_first and len(m_outer) > 1:
        order = [*r.batch, *m_outer[:-1], *n_outer, *m_outer[-1:]]
    elif m_first < n_first:
        order = [*r.batch, *m_outer, *n_outer]
    else:
        order = [*r.batch, *n_outer, *m_outer]
    return [a for a in order if a.extent > 1] + [a for a in order if a.extent <= 1]
