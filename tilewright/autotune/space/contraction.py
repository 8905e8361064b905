"""The space of contractions: matrix products and convolutions, whatever op they come from.

Rules: every register tile that the target's registers hold, each reduction axis innermost in chunks of several lengths, unrolled
up to straight-line code that still compiles quickly; loops over tiles in three orders, in blocks or not; packed or not; what is
prefetched; what threads keep; long sums in passes. The nest is `compiler/schedule/contraction_nest.py`'s.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from ...backends.target import Target
from ...compiler.schedule.contraction import default_contraction
from ...compiler.schedule.contraction_nest import Choice, Roles, all_roles, layout_block, passes_of, schedule_nest
from ...compiler.schedule.legality import check_legal
from ...compiler.schedule.rows import access, lanes_of
from ...errors import ScheduleError
from ...ir.loops import Scheduled
from ...ir.program import Program
from .knobs import Knob, Sketch, Value, knob

STRAIGHT_LINE = 320  # multiply-adds of straight-line code that a sample may ask for; compile time grows with them
LEAST_SHARE = 4      # the smallest tile has this part of the accumulators that the largest possible one has
OTHER_READING = 0.15  # share of samples of another reading beside the usual one's
READINGS = 2         # which operand is broadcast and which one is vectors: at most so many are searched
BLOCKS = (0, 2, 4, 8, 16, 32)
PASSES = (1, 2, 3, 4, 6, 8)
LONG = 512           # terms of a sum that may go in passes: a shorter one's panels fit the caches


class ContractionSketch(Sketch):
    """One reading of a contraction's axes. Knobs: tile = (rows, columns, vectors), inner = (reduction axis, chunk), and the
    fields of `Choice` by name."""

    alone = True  # the program is the contraction; what is inside another loop nest cannot go in passes

    def __init__(self, p: Program, target: Target, packable: frozenset[str], threads: int, choice: Choice, roles: Roles) -> None:
        self.program, self.target, self.packable, self.roles, self.choice = p, target, packable, roles, choice
        self.lanes = lanes_of(p.computes[0], target)
        self.threads = threads
        self._packs: dict[tuple[int, int], bool] = {}
        first = choice.roles == 0
        super().__init__("contraction" if first else f"contraction{choice.roles}", self._knobs(), 1.0 if first else OTHER_READING)

    def _knobs(self) -> list[Knob]:
        d, r = self.choice, self.roles
        several = len(r.m) > 1 and math.prod(a.extent for a in r.m[:-1]) > 1
        orders = (("n", "m", "rows") if several else ("n", "m")) if r.m else ("n",)
        images = len(r.m) > 0 and len([a for a in r.k if a.extent > 1]) > 1
        both = access(r.wide).step(r.vector) == 1 and d.pack
        return [
            knob("tile", self._tiles(), (d.rows, d.columns, d.vectors), True),
            knob("inner", self._inner(), (d.last, d.chunk)),
            knob("unroll", (1, 2, 4, 8, 16), d.unroll, True),
            knob("order", orders, d.order),
            knob("n_block", BLOCKS if r.m else (0,), d.n_block, True),
            knob("m_block", BLOCKS if r.m else (0,), d.m_block, True),
            knob("outer", ("n", "m"), d.outer),
            knob("keep", (0, 1) if self.threads > 1 else (int(d.keep),), int(d.keep)),
            knob("fetch_wide", (0, 1) if d.pack else (0,), int(d.fetch_wide)),
            knob("fetch_narrow", (0, 1) if d.pack and images else (0,), int(d.fetch_narrow)),
            knob("pack", (0, 1) if both else (int(d.pack),), int(d.pack)),
            knob("passes", PASSES if r.m and self.alone and math.prod(a.extent for a in r.k) >= LONG else (1,), d.passes, True, True),
        ]

    def _tiles(self) -> list[tuple[int, int, int]]:
        """Tiles that fit the registers and use a fair part of them; of those that cut an axis alike, one."""
        r = self.roles
        columns = r.m[-1].extent if r.m else 1
        rows = r.m[-2].extent if len(r.m) > 1 else 1
        n = -(-r.vector.extent // self.lanes) if r.vector.extent > self.lanes or not r.n else r.n[-1].extent
        found: set[tuple[int, int, int]] = set()
        for v in range(1, min(8, n) + 1):
            most = (self.target.vector_registers - 1 - v) // v
            for w in range(1, min(most, columns) + 1):
                for h in range(1, min(most // w, rows) + 1):
                    found.add((_even(rows, h), _even(columns, w), v))
        largest = max((h * w * v for h, w, v in found), default=1)
        return sorted(t for t in found if math.prod(t) * LEAST_SHARE >= largest)

    def _inner(self) -> list[tuple[int, int]]:
        """(reduction axis that runs innermost, values of it in a chunk): a layout's blocks are never cut."""
        out: list[tuple[int, int]] = []
        block = layout_block(self.roles)
        for at, a in enumerate(self.roles.k):
            if a.extent <= 1 and len(self.roles.k) > 1:
                continue
            unit = block[1] if block and block[0] == a else 16
            sizes = {a.extent}
            if len(self.roles.k) > 1 and a.extent > unit:
                sizes |= {unit * n for n in (1, 2, 4, 8, 16, 32) if unit * n < a.extent}
            out += [(at, n) for n in sorted(sizes)]
        return out

    def decided(self, values: tuple[Value, ...]) -> Choice:
        """The compiler's form of a point."""
        v = dict(zip((k.name for k in self.knobs), values, strict=True))
        rows, columns, vectors = cast("tuple[int, int, int]", v["tile"])
        last, chunk = cast("tuple[int, int]", v["inner"])
        unroll, n_block, m_block = (cast(int, v[k]) for k in ("unroll", "n_block", "m_block"))
        return Choice(self.choice.roles, rows, columns, vectors, last, chunk, unroll, str(v["order"]), n_block, m_block,
                      str(v["outer"]), bool(v["keep"]), bool(v["fetch_wide"]), bool(v["fetch_narrow"]), bool(v["pack"]),
                      cast(int, v["passes"]))

    def feasible(self, values: tuple[Value, ...]) -> bool:
        tile, unroll, n_block, pack = values[0], values[2], values[4], values[10]  # as `_knobs` orders them
        assert isinstance(tile, tuple) and isinstance(unroll, int) and isinstance(n_block, int)
        if values == self.default:
            return True
        return (unroll == 1 or math.prod(tile) * unroll <= STRAIGHT_LINE) and (not pack or self._can_pack(tile[2], n_block))

    def _can_pack(self, vectors: int, n_block: int) -> bool:
        """Whether the wide operand can be laid out for tiles of so many vectors in such blocks: it cannot where they cut a dimension
        that several axes share. Depends on nothing else, so it is tried once."""
        if (vectors, n_block) not in self._packs:
            d = replace(self.choice, rows=1, columns=1, vectors=vectors, n_block=n_block)
            self._packs[vectors, n_block] = layout_fits(self.program, self.target, self.packable, d)
        return self._packs[vectors, n_block]

    def canonical(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """Blocks that hold all tiles are none; without blocks on both sides their order does not matter; sums go in as many passes as
        there are parts of them."""
        out = list(values)
        tile = values[0]
        assert isinstance(tile, tuple)
        n_trips, m_trips = self.tiles(tile)
        for k, trips in ((4, n_trips), (5, m_trips)):
            if isinstance(size := out[k], int) and size >= trips:
                out[k] = 0
        if not (out[4] and out[5]):
            out[6] = self.knobs[6].default
        if not out[10]:
            out[8] = out[9] = 0
        if out[11] != 1:
            out[11] = self._passes(out)
        return tuple(out)

    def _passes(self, values: Sequence[Value]) -> int:
        """How many passes there really are; 1 where there are no blocks whose tiles they could go over."""
        blocks = values[4] or values[5] or any(a.extent > 1 for a in self.roles.batch)
        last, chunk = cast("tuple[int, int]", values[1])
        asked = cast(int, values[11])
        found = passes_of(self.roles, last, chunk, cast(int, values[2]), asked) if blocks else 1
        # as many parts may come of several numbers: the first of them stands for all
        return found if found in self.knobs[11].options else asked

    def tiles(self, tile: Sequence[int]) -> tuple[int, int]:
        """How many tiles the axes that can be cut into blocks are cut into, of each side."""
        r = self.roles
        rows, columns, vectors = tile
        n = -(-r.vector.extent // (vectors * self.lanes)) if r.vector.extent > self.lanes or not r.n else -(-r.n[-1].extent // vectors)
        if not r.m:
            return n, 1
        return n, -(-r.m[-1].extent // columns) * (-(-r.m[-2].extent // rows) if len(r.m) > 1 else 1)

    def from_json(self, named: dict[object, object]) -> tuple[Value, ...]:
        """One thread keeps everything, so that what a record says of it is what the compiler said at the time."""
        if self.threads == 1 and named.get("keep") in (0, 1):
            named = named | {"keep": int(self.choice.keep)}
        return super().from_json(named)

    def scheduled(self, values: tuple[Value, ...]) -> Scheduled:
        s = schedule_nest(self.program, self.target, self.packable, self.decided(values))
        check_legal(s)
        return s


def _even(extent: int, size: int) -> int:
    """The largest block of a balanced split into as many blocks as `size` gives."""
    return -(-extent // -(-extent // size))


def contraction_sketches(p: Program, target: Target, packable: frozenset[str], threads: int) -> list[ContractionSketch]:
    """The sketches of a program that is one contraction, the compiler's own reading first; none for other programs."""
    if len(p.computes) != 1 or 0 in p.computes[0].buffer.shape:
        return []
    found = default_contraction(p, target, packable)
    if found is None:
        return []
    out = []
    for k, r in enumerate(all_roles(p.computes[0], packable)[:READINGS]):
        choice = replace(found[0], roles=k)
        if not choice.pack:
            choice = replace(choice, fetch_wide=False, fetch_narrow=False)  # without a packed operand they mean nothing
        if k:
            most = max(1, (target.vector_registers - 2) // 2)
            columns = min(r.m[-1].extent, most) if r.m else 1
            choice = replace(choice, rows=1, columns=columns, vectors=1, last=len(r.k) - 1, chunk=max(1, r.k[-1].extent), unroll=1,
                             order="n", fetch_wide=False, fetch_narrow=False, pack=access(r.wide).step(r.vector) != 1)
        if not layout_fits(p, target, packable, choice):
            continue
        out.append(ContractionSketch(p, target, packable, threads, choice, r))
    return out


def layout_fits(p: Program, target: Target, packable: frozenset[str], choice: Choice) -> bool:
    """Whether a reading of the axes gives a schedule at all."""
    try:
        schedule_nest(p, target, packable, choice)
    except ScheduleError:
        return False
    return True
