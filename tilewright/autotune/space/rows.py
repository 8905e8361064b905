"""The space of everything that is not a contraction: maps, reductions, layout changes, and programs of several of them.

Rules, for each compute: any axis becomes lanes, of several widths; points of another axis are unrolled around them; transposing
maps go in square tiles; short reductions are straight-line code; and for the whole program how many loops the computes share and
which loop threads divide. The nest is `compiler/schedule/rows_nest.py`'s.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

from ...backends.target import Target
from ...compiler.schedule.legality import check_legal
from ...compiler.schedule.rows import access, choose_rows, lanes_of
from ...compiler.schedule.rows_nest import STRAIGHT, RowChoice, RowsChoice, schedule_row_nests, shared_depth
from ...ir.expr import Axis, loads, walk
from ...ir.loops import Scheduled
from ...ir.program import Compute, Program
from .knobs import TRIES, Knob, Sketch, Value, knob

WIDTHS = (1, 2, 4, 8)                 # vectors of accumulators
CHUNKS = (256, 1024, 4096, 16384)      # elements of a map's lane loop
POINTS = (1, 2, 3, 4, 6, 8, 12)
MOST_UNROLLED = 64                     # points of a reduction as straight-line code
STAGE_KNOBS = ("vector", "width", "across", "points", "square", "unroll")


@dataclass(frozen=True, slots=True)
class _Shape:
    """What decides whether decisions fit a compute. axes: its own, then its reduction's; own: how many of them are its own."""

    axes: tuple[Axis, ...]
    own: int
    lanes: int

    @property
    def reduces(self) -> bool:
        return len(self.axes) > self.own


class RowsSketch(Sketch):
    """Knobs: `depth` and `first` of the program, then STAGE_KNOBS of each compute, numbered ("0.vector")."""

    def __init__(self, p: Program, target: Target, weight: float = 1.0) -> None:
        self.program, self.target = p, target
        self.lanes = [max(1, lanes_of(c, target)) for c in p.computes]
        self._shapes = [_Shape((*c.axes, *c.reduce_axes), len(c.axes), n) for c, n in zip(p.computes, self.lanes, strict=True)]
        self.most_depth = shared_depth(p) if len(p.computes) > 1 else 0
        self.choice = choose_rows(p, target)
        knobs = [knob("depth", range(self.most_depth + 1), self.choice.depth, True), knob("first", (0, 1, 2), self.choice.stages[0].first)]
        for k, (c, d) in enumerate(zip(p.computes, self.choice.stages, strict=True)):
            knobs += _stage_knobs(k, c, d, self.lanes[k])
        super().__init__("rows", knobs, weight)

    def decided(self, values: tuple[Value, ...]) -> RowsChoice:
        """The compiler's form of a point."""
        v = cast("tuple[int, ...]", values)
        n = len(STAGE_KNOBS)
        return RowsChoice(v[0], tuple(_choice(v[2 + n * k:2 + n * (k + 1)], v[1]) for k in range(len(self.program.computes))))

    def feasible(self, values: tuple[Value, ...]) -> bool:
        if values == self.default:
            return True
        d = self.decided(values)
        return all(self._fits(shape, x, d.depth) for shape, x in zip(self._shapes, d.stages, strict=True))

    def sample(self, rng: Random) -> tuple[Value, ...]:
        """Each compute's decisions are drawn until they fit: drawn all at once, those of a long program hardly ever would."""
        n = len(STAGE_KNOBS)
        values: list[Value] = [rng.choice(k.options) for k in self.knobs[:2]]
        for k, shape in enumerate(self._shapes):
            at = 2 + n * k
            for _ in range(TRIES):
                drawn = tuple(rng.choice(x.options) for x in self.knobs[at:at + n])
                if self._fits(shape, _choice(cast("tuple[int, ...]", drawn), 0), cast(int, values[0])):
                    break
            else:
                return self.mutate(self.default, rng)
            values += drawn
        return self.canonical(tuple(values))

    def _fits(self, c: _Shape, d: RowChoice, depth: int) -> bool:
        axes, lanes = c.axes, c.lanes
        if 0 <= d.vector < depth or 0 <= d.across < depth or d.across == d.vector >= 0:
            return False
        extent = axes[d.vector].extent if d.vector >= 0 else 1
        width = min(d.width or extent, extent)
        points = min(d.points, axes[d.across].extent) if d.across >= 0 else 1
        if d.square:
            return not c.reduces and d.vector >= 0 and d.across >= 0 and points > 1 and width <= lanes
        if c.reduces:
            whole = math.prod(a.extent for a in axes[c.own:])
            straight = 1 if not d.unroll else whole if whole <= STRAIGHT else axes[-1].extent
            vectors = -(-width // lanes) * points
            return vectors <= self.target.vector_registers and straight * vectors <= 4 * MOST_UNROLLED
        return points * min(-(-width // lanes), 4) <= 64

    def canonical(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """Widths beyond the axis mean all of it; no unrolled points, no axis for them; decisions without meaning at 0."""
        n = len(STAGE_KNOBS)
        out = list(values)
        for k, shape in enumerate(self._shapes):
            at = 2 + n * k
            given, own = cast("tuple[int, ...]", tuple(out[at:at + n])), cast("tuple[int, ...]", self.default[at:at + n])
            form = _form(shape, given)
            out[at:at + n] = own if form == _form(shape, own) else form
        return tuple(out)

    def scheduled(self, values: tuple[Value, ...]) -> Scheduled:
        s = schedule_row_nests(self.program, self.decided(values))
        check_legal(s)
        return s


def _choice(v: Sequence[int], first: int) -> RowChoice:
    vector, width, across, points, square, unroll = v
    return RowChoice(vector, width, across, points, bool(square), bool(unroll), first)


def _form(c: _Shape, v: tuple[int, ...]) -> tuple[int, ...]:
    """Equal for decisions that make the same nest but are written differently."""
    vector, width, across, points, square, unroll = v
    summed = vector >= c.own
    none = across < 0 or points < 2 or summed
    return (vector, 0 if vector < 0 or width >= c.axes[vector].extent else width, -1 if none else across, 1 if none else points,
            0 if none else square, unroll if c.reduces and not summed else 0)


def _stage_knobs(k: int, c: Compute, d: RowChoice, lanes: int) -> list[Knob]:
    """The knobs of one compute."""
    axes = (*c.axes, *c.reduce_axes)
    long = [i for i, a in enumerate(axes) if a.extent > 1]
    vector = knob(f"{k}.vector", [-1, *(i for i in long if lanes > 1)], d.vector)
    longest = max((axes[i].extent for i in vector.options if isinstance(i, int) and i >= 0), default=1)
    if c.reduce_axes:
        widths = [0, *(lanes * n for n in WIDTHS)]
    else:
        widths = [0, *(n for n in CHUNKS if n < longest)]
    across = [i for i in long if i < len(c.axes)]
    square = not c.reduce_axes and lanes > 1 and _transposes(c)
    if square:
        widths.append(lanes)
    points = [n for n in POINTS if n <= max((axes[i].extent for i in across), default=1)]
    if square:
        points += [n for n in (lanes // 2, lanes) if n not in points]
    reduced = math.prod(a.extent for a in c.reduce_axes)
    return [vector, knob(f"{k}.width", widths, d.width, True), knob(f"{k}.across", [-1, *across], d.across),
            knob(f"{k}.points", points, d.points, True), knob(f"{k}.square", (0, 1) if square else (0,), int(d.square)),
            knob(f"{k}.unroll", (0, 1) if c.reduce_axes and (reduced <= MOST_UNROLLED or d.unroll) else (0,), int(d.unroll))]


def _transposes(c: Compute) -> bool:
    """Whether a load and the store run along different axes."""
    write = access(c)
    inside = {id(n) for x in loads(c.body) for i in x.index for n in walk(i)}
    for x in loads(c.body):
        if id(x) not in inside:
            read = access(x)
            if any((read.step(a) == 1 or a in read.digits) and write.step(a) != 1 for a in c.axes if a.extent > 1):
                return True
    return False


def rows_sketch(p: Program, target: Target, weight: float) -> RowsSketch | None:
    """The sketch of any program of maps and reductions; None where there is nothing to compute."""
    return None if any(0 in c.buffer.shape for c in p.computes) else RowsSketch(p, target, weight)
