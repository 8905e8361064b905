"""Loop nests of contractions: the one road from decisions to a schedule, for the closed-form heuristic (contraction.py) and
for search (autotune/space) alike.

    for blocks of n-tiles, of m-tiles:            n_block, m_block, outer
      for n-tiles, for m-tiles:                   order
        microkernel { for k-chunks, window, k: MR broadcasts, NR vector loads, MR*NR multiply-adds }
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...backends.target import Target
from ...errors import ScheduleError
from ...ir.affine import Div, Mod, linear
from ...ir.expr import Axis, Load, axes_of, reduces
from ...ir.kinds import product_loads
from ...ir.loops import Loop, Relation, Scheduled, Split, Stage
from ...ir.program import Compute, Program
from .packing import pack_operand
from .parallel import mark_parallel
from .passes import in_passes, pass_size
from .rows import access, lanes_of


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


@dataclass(frozen=True, slots=True)
class Choice:
    """Every decision about a contraction's nest.

    roles:    which of the readings that `all_roles` lists.
    rows, columns, vectors: the register tile (`Tile`).
    last:     the position among the reduction axes of the one that runs innermost.
    chunk:    how many of its values one step of the outermost reduce loop covers; its extent: there is no such loop.
    unroll:   steps of the innermost reduce loop in straight-line code.
    order:    of the loops over tiles: "n" or "m" first, "rows": all of m but its last axis, n, the last axis of m.
    n_block, m_block: tiles of each side that stay together in a block; 0: no blocks. outer: "n" or "m", whose blocks come first.
              Blocks of m with more tiles than the last axis has are of whole rows.
    keep:     threads keep their part of the narrow operand, and all go through the wide one.
    fetch_wide, fetch_narrow: prefetch the next panel of weights, the next row of every block of channels.
    pack:     the wide operand is laid out beforehand.
    passes:   into how many parts the outermost reduction loop is cut, each of which goes over a block's tiles (passes.py);
              without blocks there is one.
    """

    roles: int
    rows: int
    columns: int
    vectors: int
    last: int
    chunk: int
    unroll: int
    order: str
    n_block: int
    m_block: int
    outer: str
    keep: bool
    fetch_wide: bool
    fetch_narrow: bool
    pack: bool
    passes: int = 1

    @property
    def tile(self) -> Tile:
        return Tile(self.rows, self.columns, self.vectors)


def all_roles(c: Compute, packable: frozenset[str]) -> list[Roles]:
    """The readings of a contraction's axes, the usual one first; empty where no axis can be lanes of one operand alone."""
    nodes = reduces(c.body)
    if len(nodes) != 1 or nodes[0].kind != "sum" or not (pair := product_loads(nodes[0].body)):
        return []
    out: list[Roles] = []
    write = access(c)
    for wide, narrow in (pair[::-1], pair):
        wide_axes = set().union(*(axes_of(i) for i in wide.index)) if wide.index else set()
        narrow_axes = set().union(*(axes_of(i) for i in narrow.index)) if narrow.index else set()
        if wide.where is not None:
            continue
        only = [a for a in c.axes if a in wide_axes and a not in narrow_axes]
        can_pack = wide.buffer.name in packable
        for v in reversed([a for a in only if write.step(a) == 1 and a.extent > 1 and (can_pack or access(wide).step(a) == 1)]):
            out.append(Roles(wide, narrow, v, tuple(a for a in only if a != v),
                             tuple(a for a in c.axes if a in narrow_axes and a not in wide_axes),
                             tuple(a for a in c.axes if (a in wide_axes) == (a in narrow_axes)), nodes[0].axes))
    return out


def schedule_nest(p: Program, target: Target, packable: frozenset[str], d: Choice) -> Scheduled:
    """The schedule that the decisions stand for. Raises ScheduleError where they do not fit the program."""
    found = all_roles(p.computes[0], packable) if len(p.computes) == 1 else []
    if not 0 <= d.roles < len(found):
        raise ScheduleError(f"{p.name} has no reading {d.roles} as a contraction")
    r = found[d.roles]
    nest = _Nest(p.computes[0], r, d, lanes_of(p.computes[0], target))
    s = Scheduled(p, (nest.stage(),))
    name = r.wide.buffer.name
    if d.pack and (name not in packable or (packed := pack_operand(s, name)) is None):
        raise ScheduleError(f"{p.name}: {name} cannot be packed")
    if d.pack:
        s = replace(packed, stages=(replace(packed.stages[0], prefetch=nest.prefetch(packed)),))
    elif access(r.wide).step(r.vector) != 1:
        raise ScheduleError(f"{p.name}: {name} is not contiguous along {r.vector.name} unless it is packed")
    return s if d.passes == 1 or not nest.blocks() else in_passes(s, nest.head, d.passes, nest.blocks())


def layout_block(r: Roles) -> tuple[Axis, int] | None:
    """(axis, block) of a reduction axis that the narrow operand reads as k // block and k % block: channels in blocks."""
    for e in r.narrow.index:
        for atom, _ in linear(e).terms:
            if isinstance(atom, (Div, Mod)) and atom.arg.const == 0 and len(atom.arg.terms) == 1 and atom.arg.terms[0][1] == 1 \
                    and isinstance(a := atom.arg.terms[0][0], Axis) and a in r.k:
                return a, atom.by
    return None


def passes_of(r: Roles, last: int, chunk: int, unroll: int, passes: int) -> int:
    """How many parts of the outermost reduction loop come of `passes`, as `in_passes` cuts it: none is less than a step of that loop."""
    a = r.k[last]
    others = [x for x in r.k if x != a]
    if chunk >= a.extent and others:
        return -(-others[0].extent // pass_size(others[0].extent, passes, 1))
    block = layout_block(r)
    unit = unroll if unroll < a.extent else 1
    if chunk < a.extent:
        unit = chunk
    elif block and block[0] == a and block[1] < a.extent:
        unit = block[1]
    return -(-a.extent // pass_size(a.extent, passes, unit))


class _Nest:
    """The nest as it grows: `relations`, the loops over blocks and over tiles of each side, the tile's own loops."""

    def __init__(self, c: Compute, r: Roles, d: Choice, lanes: int) -> None:
        self.c, self.r, self.d, self.lanes = c, r, d, lanes
        self.relations: list[Relation] = []
        self.n_blocks: list[Axis] = []
        self.m_blocks: list[Axis] = []
        self.n, self.m = list(r.n), list(r.m)
        self.tile: list[Loop] = []
        self.points: list[Loop] = []
        self.head = r.k[0]  # the reduction axis whose loop is outermost

    def stage(self) -> Stage:
        if min(self.d.rows, self.d.columns, self.d.vectors, self.d.unroll, self.d.chunk) < 1:
            raise ScheduleError(f"a tile or an unrolling of {self.d} is empty")
        self._wide()
        self._narrow()
        reduce = self._k_loops()
        outer = self._outer()
        kept = {*self.r.batch, *self.m_blocks, *self.m} if self.d.keep else set(self.r.batch)
        loops = (*(Loop(a, major=int(a in kept)) for a in outer), *reduce, *self.points, *self.tile)
        return Stage(self.c, mark_parallel(loops, len(outer)), tuple(self.relations), 0, len(outer))

    def _split(self, a: Axis, size: int, tail: str = "peel", mark: str = "") -> Split:
        s = Split(a, Axis(f"{a.name}{mark}.o", -(-a.extent // size)), Axis(f"{a.name}{mark}.i", min(size, a.extent)), tail)
        self.relations.append(s)
        return s

    def _blocked(self, a: Axis, size: int, tiles: int, blocks: list[Axis]) -> Axis:
        """The axis whose tiles of `size` are to be cut: `a`, or what is inside a block of `tiles` of them."""
        if tiles < 1 or tiles >= -(-a.extent // size):
            return a
        s = self._split(a, size * tiles, mark=".b")
        blocks.append(s.outer)
        return s.inner

    def _wide(self) -> None:
        """Lanes, and the vectors of a tile: of the vector axis itself where it is longer than a vector, else of the next."""
        r, size = self.r, self.d.vectors * self.lanes
        if r.vector.extent > self.lanes or not r.n:
            if r.vector.extent <= size:
                self.tile = [Loop(r.vector, "vector")]
                return
            s = self._split(self._blocked(r.vector, size, self.d.n_block, self.n_blocks), size)
            self.n.append(s.outer)
            self.tile = [Loop(s.inner, "vector")]
            return
        self.tile = [Loop(r.vector, "vector")]
        inside = self._blocked(r.n[-1], self.d.vectors, self.d.n_block, self.n_blocks)
        self.n[-1] = inside
        if self.d.vectors > 1:
            s = self._split(inside, self.d.vectors)
            self.n[-1] = s.outer
            self.tile.insert(0, Loop(s.inner, "unroll"))

    def _narrow(self) -> None:
        """The points of a tile, and blocks along the last m axis or, where they are longer than that, of its rows."""
        m = self.r.m
        across = -(-m[-1].extent // self.d.columns) if m else 1
        whole = len(m) > 1 and self.d.m_block >= across
        tiles = self.d.m_block // across if whole else self.d.m_block
        for at, size in ((-1, self.d.columns), (-2, self.d.rows)):
            if len(m) < -at:
                continue
            inside = self._blocked(m[at], size, tiles, self.m_blocks) if (at == -2) == whole else m[at]
            self.m[at] = inside
            if size > 1:
                s = self._split(inside, size, "balance")
                self.m[at] = s.outer
                self.points.insert(0, Loop(s.inner, "unroll"))

    def _k_loops(self) -> list[Loop]:
        """Reduction loops: chunks of one axis, the others (the window), then what is inside a chunk, partly unrolled."""
        if not 0 <= self.d.last < len(self.r.k):
            raise ScheduleError(f"no reduction axis {self.d.last}")
        a = self.r.k[self.d.last]
        head = [x for x in self.r.k if x != a]
        self.head = a if self.d.chunk < a.extent or not head else head[0]
        block = layout_block(self.r)
        if self.d.chunk < a.extent:
            s = self._split(a, self.d.chunk)
            head.insert(0, s.outer)
            a = s.inner
        if block and block[0] == self.r.k[self.d.last] and block[1] < a.extent:
            s = self._split(a, block[1])
            head.append(s.outer)
            a = s.inner
        loops = [Loop(x, reduce=True) for x in head]
        if a.extent <= self.d.unroll:
            return [*loops, Loop(a, "unroll", reduce=True)]
        if self.d.unroll == 1:
            return [*loops, Loop(a, reduce=True)]
        s = self._split(a, self.d.unroll, mark=".u")
        return [*loops, Loop(s.outer, reduce=True), Loop(s.inner, "unroll", reduce=True)]

    def _outer(self) -> list[Axis]:
        """The loops over blocks and tiles. Loops of one trip come last, so that the first one is worth running in parallel."""
        blocks = [*self.n_blocks, *self.m_blocks] if self.d.outer == "n" else [*self.m_blocks, *self.n_blocks]
        tiles = {"n": [*self.n, *self.m], "m": [*self.m, *self.n], "rows": [*self.m[:-1], *self.n, *self.m[-1:]]}
        if self.d.order not in tiles or self.d.outer not in ("n", "m"):
            raise ScheduleError(f"unknown order {self.d.order!r} or {self.d.outer!r}")
        order = [*self.r.batch, *blocks, *tiles[self.d.order]]
        return [a for a in order if a.extent > 1] + [a for a in order if a.extent <= 1]

    def blocks(self) -> int:
        """How many loops stand around those over the tiles of a block."""
        return sum(a.extent > 1 for a in (*self.r.batch, *self.n_blocks, *self.m_blocks))

    def prefetch(self, s: Scheduled) -> tuple[tuple[str, str], ...]:
        """Operands from beyond the second-level cache. Large weights: their next panel is fetched while the present one is
        multiplied with all tiles of the other operand. Images: the next row, or tile, of every block of channels, which lie far
        apart and which no hardware prefetcher follows; another thread may have written them a moment ago."""
        st = s.stages[0]
        outer = [x.axis for x in st.loops[:st.tensorize] if x.axis.extent > 1]
        fetch: list[tuple[str, str]] = []
        moving = [a for a in outer if a in (*self.n_blocks, *self.n)]
        if self.d.fetch_wide and moving:
            fetch.append((next(b.name for b in s.program.inputs if b.name.endswith("_packed")), moving[-1].name))
        rows = [a for a in self.m[-2:] if a in outer][:1]
        serial = [x for x in st.loops if x.reduce and x.kind == "serial"]
        if self.d.fetch_narrow and rows and len(serial) > 1:
            fetch.append((self.r.narrow.buffer.name, rows[0].name))
        return tuple(fetch)


def operand_bytes(x: Load) -> int:
    """Bytes of the whole buffer that a load reads."""
    return math.prod(x.buffer.shape) * x.buffer.dtype.bytes
