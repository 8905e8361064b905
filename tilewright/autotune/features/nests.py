"""Many candidates of one sketch as arrays: which loops there are, how long they are, and how far each access moves with them.

Nothing is scheduled or lowered for this. A loop of a nest is a *slot*: it steps along one axis of the compute by so many values,
so many times. The slots of a sketch are the same for all its points but for their order, steps and trips.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...compiler.schedule.contraction_nest import layout_block
from ...compiler.schedule.rows import access
from ...ir.affine import Div, Linear, Mod, linear
from ...ir.expr import Axis, Load, Var, loads, reduces, walk
from ...ir.kinds import cost
from ...ir.program import Compute
from ..space.contraction import ContractionSketch
from ..space.knobs import Sketch, Value
from ..space.rows import STAGE_KNOBS, RowsSketch

SERIAL, UNROLL, VECTOR, PASS = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Body:
    """What one compute does at each point. Arrays have an entry for each access, the store last.

    inside: the access is made for each point of the reduction. arithmetic: simple operations inside and outside of it.
    """

    size: np.ndarray      # [A] bytes of an element
    whole: np.ndarray     # [A] bytes of the buffer
    inside: np.ndarray    # [A] bool
    local: np.ndarray     # [A] bool: an intermediate of the program
    arithmetic: tuple[float, float]
    points: float
    reduced: float


@dataclass(frozen=True, slots=True)
class NestBatch:
    """n nests of one compute with up to L loops, outermost first; absent loops have one trip.

    trips: [n, L]. kind: [n, L] SERIAL, UNROLL, VECTOR, PASS (over a part of the sum; counts as no reduction, since each trip enters
    the tiles and touches the results again). reduce: [n, L] bool. stride: [n, A, L] elements that an access moves with one
    iteration; -1: it depends on data or cannot be told.
    """

    body: Body
    trips: np.ndarray
    kind: np.ndarray
    reduce: np.ndarray
    stride: np.ndarray


class Moves:
    """How far the accesses of a compute move when one axis advances: their index expressions evaluated, and remembered."""

    def __init__(self, c: Compute, locals_: frozenset[str]) -> None:
        self.axes: tuple[Axis, ...] = (*c.axes, *c.reduce_axes)
        found = reduces(c.body)
        within = {id(n) for r in found for n in walk(r.body)} if found else {id(n) for n in walk(c.body)}
        index = {id(n) for x in loads(c.body) for i in x.index for n in walk(i)}
        data = [x for x in loads(c.body) if id(x) not in index]
        store = Load(c.buffer, tuple(Var(a) for a in c.axes))
        self.loads = [*data, store]
        self._address = [_address(x) for x in self.loads]
        whole, inner = cost(c.body), sum(cost(r.body) + 1 for r in found)
        points = float(np.prod([a.extent for a in c.axes], dtype=np.float64))
        reduced = float(np.prod([a.extent for a in c.reduce_axes], dtype=np.float64))
        self.body = Body(np.array([x.buffer.dtype.bytes for x in self.loads], np.int64),
                         np.array([x.buffer.dtype.bytes * max(1, int(np.prod(x.buffer.shape))) for x in self.loads], np.int64),
                         np.array([*(id(x) in within for x in data), not found], np.bool_),
                         np.array([x.buffer.name in locals_ for x in self.loads], np.bool_),
                         (float(inner), float(max(whole - inner, 0))) if found else (float(whole), 0.0), points, reduced)
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def position(self, load: Load) -> int:
        """The position of an access."""
        return next(k for k, x in enumerate(self.loads) if x is load)

    def of(self, axis: np.ndarray, step: np.ndarray) -> np.ndarray:
        """[n, L] axis numbers and steps -> [n, A, L] strides."""
        pairs, inverse = np.unique(axis.astype(np.int64) << 40 | step.astype(np.int64), return_inverse=True)
        table = np.stack([self._move(int(p >> 40), int(p & (1 << 40) - 1)) for p in pairs])
        return np.moveaxis(table[inverse.reshape(axis.shape)], 2, 1)

    def _move(self, axis: int, step: int) -> np.ndarray:
        if (axis, step) not in self._known:
            at = {self.axes[axis]: step}
            moved = [_evaluate(x, at) for x in self._address]
            base = [_evaluate(x, {}) for x in self._address]
            self._known[axis, step] = np.array(
                [-1 if m is None or b is None else abs(m - b) for m, b in zip(moved, base, strict=True)], np.int64)
        return self._known[axis, step]


def _address(x: Load) -> Linear | None:
    out = Linear()
    for i, s in zip(x.index, x.buffer.strides, strict=True):
        out = out + linear(i).scaled(s)
    return out


def _evaluate(x: Linear | None, at: dict[Axis, int]) -> int | None:
    """The value with the axes in `at` there and all others at 0; None where it depends on data."""
    if x is None:
        return None
    total = x.const
    for atom, k in x.terms:
        if isinstance(atom, Axis):
            total += k * at.get(atom, 0)
        elif isinstance(atom, (Div, Mod)):
            inner = _evaluate(atom.arg, at)
            if inner is None:
                return None
            total += k * (inner // atom.by if isinstance(atom, Div) else inner % atom.by)
        else:
            return None
    return total


class _Slots:
    """Slots of n nests, added in any order and sorted by their keys."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.columns: list[tuple[np.ndarray, ...]] = []

    def add(self, key: object, axis: object, step: object, trips: object, kind: object = SERIAL, reduce: object = False) -> None:
        values = (key, axis, step, trips, kind, reduce)
        self.columns.append(tuple(np.broadcast_to(np.asarray(v, np.float64), (self.n,)) for v in values))

    def sorted(self) -> tuple[np.ndarray, ...]:
        """axis, step, trips, kind, reduce and key, each [n, L], in the order of the keys."""
        key, *rest = (np.stack(x, 1) for x in zip(*self.columns, strict=True))
        order = np.argsort(key, axis=1, kind="stable")
        return (*(np.take_along_axis(x, order, 1) for x in rest), np.take_along_axis(key, order, 1))

    def batch(self, moves: Moves) -> NestBatch:
        axis, step, trips, kind, reduce, _ = self.sorted()
        trips = np.maximum(trips, 1.0)
        return NestBatch(moves.body, trips, kind.astype(np.int64), reduce > 0, moves.of(axis, np.maximum(step, 1)))


class ContractionNests:
    """Encodes points of a ContractionSketch."""

    def __init__(self, sketch: ContractionSketch) -> None:
        self.sketch, self.r = sketch, sketch.roles
        c = sketch.program.computes[0]
        self.moves = Moves(c, frozenset())
        self.number = {a: k for k, a in enumerate(self.moves.axes)}
        self.wide, self.narrow = self.moves.position(self.r.wide), self.moves.position(self.r.narrow)
        self.contiguous = np.array([access(self.r.narrow).step(a) == 1 for a in self.r.k], np.int64)
        self.other = np.array([next((i for i in range(len(self.r.k)) if i != k), k) for k in range(len(self.r.k))])
        self.names = {k.name: i for i, k in enumerate(sketch.knobs)}
        self.orders = {"n": 0, "m": 1, "rows": 2}

    def columns(self, points: Sequence[tuple[Value, ...]]) -> dict[str, np.ndarray]:
        """The points by decision: rows, columns, vectors, last, chunk, …, [n] int64 each; orders are numbered."""
        out: dict[str, np.ndarray] = {}
        for name, i in self.names.items():
            if name in ("tile", "inner"):
                parts = np.array([p[i] for p in points], np.int64)
                out |= dict(zip(("rows", "columns", "vectors") if name == "tile" else ("last", "chunk"), parts.T, strict=True))
            else:
                out[name] = np.array([self.orders.get(v, v) if isinstance(v := p[i], str) else v for p in points], np.int64)
        return out

    @cached_property
    def block(self) -> tuple[int, int]:
        """(number, block) of the reduction axis that is laid out in blocks; -1: none."""
        found = layout_block(self.r)
        return (self.r.k.index(found[0]), found[1]) if found else (-1, 1)

    def encode(self, points: Sequence[tuple[Value, ...]]) -> list[NestBatch]:
        d, s = self.columns(points), _Slots(len(points))
        for k, a in enumerate(self.r.batch):
            s.add(k, self.number[a], 1, a.extent)
        n_first = np.where(d["order"] == 0, 20, 30)
        n_outer = np.where(d["outer"] == 0, 10, 11)
        self._wide(d, s, n_first, n_outer)
        m_last = np.where(d["order"] == 0, 30, np.where(d["order"] == 1, 25, 40))
        self._narrow(d, s, np.where(d["order"] == 0, 30, 20), m_last, 21 - n_outer)
        self._reduction(d, s)
        batch = s.batch(self.moves)
        self._packed(batch, d["pack"] > 0)
        return [batch]

    def _wide(self, d: dict[str, np.ndarray], s: _Slots, key: np.ndarray, outer: np.ndarray) -> None:
        r, lanes = self.r, self.sketch.lanes
        v = self.number[r.vector]
        for k, a in enumerate(r.n):
            if a != r.n[-1] or r.vector.extent > lanes:
                s.add(key + k, self.number[a], 1, a.extent)
        if r.vector.extent > lanes or not r.n:
            axis, size, extent = v, d["vectors"] * lanes, r.vector.extent
            s.add(80, v, 1, np.minimum(size, extent), VECTOR)
        else:
            axis, size, extent = self.number[r.n[-1]], d["vectors"], r.n[-1].extent
            s.add(79, axis, 1, np.minimum(size, extent), UNROLL)
            s.add(80, v, 1, r.vector.extent, VECTOR)
        self._tiles(s, axis, size, extent, d["n_block"], key + 9, outer)

    @staticmethod
    def _tiles(s: _Slots, axis: int, size: np.ndarray, extent: int, block: np.ndarray, key: np.ndarray, outer: np.ndarray) -> None:
        tiles = np.maximum(extent / size, 1.0)
        held = np.where((block > 0) & (block < tiles), block, tiles)
        s.add(key, axis, size, held)
        s.add(outer, axis, size * np.maximum(block, 1), tiles / held)

    def _narrow(self, d: dict[str, np.ndarray], s: _Slots, key: np.ndarray, last: np.ndarray, outer: np.ndarray) -> None:
        m = self.r.m
        for k, a in enumerate(m[:-2]):
            s.add(key + k, self.number[a], 1, a.extent)
        if len(m) == 0:
            return
        across = -(-m[-1].extent // d["columns"])
        whole = (d["m_block"] >= across) & (len(m) >= 2)
        none = np.zeros(s.n, np.int64)
        if len(m) >= 2:
            s.add(70, self.number[m[-2]], 1, d["rows"], UNROLL)
            self._tiles(s, self.number[m[-2]], d["rows"], m[-2].extent, np.where(whole, d["m_block"] // across, none), key + 8, outer)
        s.add(71, self.number[m[-1]], 1, np.minimum(d["columns"], m[-1].extent), UNROLL)
        self._tiles(s, self.number[m[-1]], d["columns"], m[-1].extent, np.where(whole, none, d["m_block"]), last + 9, outer)

    def _reduction(self, d: dict[str, np.ndarray], s: _Slots) -> None:
        extents = np.array([a.extent for a in self.r.k], np.float64)
        numbers = np.array([self.number[a] for a in self.r.k])
        last, passes = d["last"], d["passes"].astype(np.float64)
        extent, axis = extents[last], numbers[last]
        chunk = np.minimum(d["chunk"], extent)
        head = np.where(chunk < extent, last, self.other[last])  # its loop is outermost, and what passes cut
        s.add(15, numbers[head], np.ceil(extents[head] / passes), passes, PASS)
        cut = np.where(head == last, passes, 1.0)
        s.add(50, axis, d["chunk"], extent / chunk / np.where(chunk < extent, cut, 1.0), SERIAL, True)
        for k, a in enumerate(self.r.k):
            s.add(51 + k, numbers[k], 1, np.where(last == k, 1, a.extent / np.where(head == k, passes, 1.0)), SERIAL, True)
        cut = np.where(chunk < extent, 1.0, cut)
        inner = np.where(last == self.block[0], np.minimum(chunk, self.block[1]), chunk)
        s.add(60, axis, inner, chunk / inner / np.where(inner < chunk, cut, 1.0), SERIAL, True)
        unroll = np.minimum(d["unroll"], inner)
        s.add(61, axis, unroll, inner / unroll / np.where(inner < chunk, 1.0, cut), SERIAL, True)
        s.add(62, axis, 1, unroll, UNROLL, True)

    def _packed(self, b: NestBatch, packed: np.ndarray) -> None:
        """The packed operand lies in the order of the loops (passes aside: within one it is in order, and that is what counts)."""
        touched = b.stride[:, self.wide, :] != 0
        run = np.ones(len(packed))
        for k in range(b.trips.shape[1] - 1, -1, -1):
            moves = touched[:, k] & packed
            b.stride[:, self.wide, k] = np.where(moves, run.astype(np.int64), b.stride[:, self.wide, k])
            run = np.where(moves, run * np.maximum(b.trips[:, k], 1.0), run)


class RowsNests:
    """Encodes points of a RowsSketch: one batch a compute."""

    def __init__(self, sketch: RowsSketch) -> None:
        self.sketch = sketch
        p = sketch.program
        self.moves = [Moves(c, frozenset(b.name for b in p.locals)) for c in p.computes]

    def encode(self, points: Sequence[tuple[Value, ...]]) -> list[NestBatch]:
        v = np.array(points, np.int64)
        n = len(STAGE_KNOBS)
        computes = self.sketch.program.computes
        return [self._compute(k, c, v[:, 0], v[:, 1], v[:, 2 + n * k:2 + n * (k + 1)].T) for k, c in enumerate(computes)]

    def _compute(self, k: int, c: Compute, depth: np.ndarray, first: np.ndarray, d: np.ndarray) -> NestBatch:
        vector, width, across, points, square, unroll = d
        s, moves = _Slots(len(depth)), self.moves[k]
        able = np.zeros(s.n, np.int64)
        for i, a in enumerate(moves.axes):
            reduce = i >= len(c.axes)
            lanes = np.where(vector == i, np.minimum(np.where(width > 0, width, a.extent), a.extent), 1)
            tile = np.where((across == i) & (points > 1), np.minimum(points, a.extent), 1)
            trips = a.extent / lanes / tile
            key = np.where(vector == i, 45 if reduce else 35, 40 + i if reduce else np.where((square > 0) & (across == i), 34, 10 + i))
            if not reduce:
                head = (trips > 1) & ((depth == 0) | (i < depth)) & (vector != i)
                key = np.where(head & (able == first), 1, key)
                able += head
            straight = UNROLL if not reduce else np.where((unroll > 0) & (vector < len(c.axes)), UNROLL, SERIAL)
            s.add(key, i, lanes * tile, trips, straight if reduce else SERIAL, reduce)
            s.add(60, i, 1, tile, UNROLL, reduce)
            s.add(80, i, 1, lanes, VECTOR, reduce)
        axis, step, trips, kind, reduce, _ = s.sorted()
        trips = np.maximum(trips, 1.0)
        kind = np.where((kind == VECTOR) & (trips <= 1), SERIAL, kind)
        stride = moves.of(axis, np.maximum(step, 1))
        shared = (axis < depth[:, None])[:, None, :] & moves.body.local[None, :, None]
        return NestBatch(moves.body, trips, kind.astype(np.int64), reduce > 0, np.where(shared, 0, stride))


Encoder = ContractionNests | RowsNests


def encoder_of(sketch: Sketch) -> Encoder | None:
    """What encodes a sketch's points; None where there is nothing to decide, or so little (attention's block of queries) that
    all of it can be tried."""
    if isinstance(sketch, ContractionSketch):
        return ContractionNests(sketch)
    return RowsNests(sketch) if isinstance(sketch, RowsSketch) else None


