"""Code for `nearest` (`ir/ops/nearest.py`).

    near[r][…] = inf, at[r][…] = 0, 1, …
    for tile of 32 points, for rows by 4 (what is left, one by one), for part of the tile:
      sum[r][u] = sum_c x[r][c] * tiles[tile][c][u]                      // u: vectors of points; all sums in registers
      d[r][u]   = max(0, sum[r][u] + squares[u] + own[r])
      closer[r] = bits of d[r][…] < near[r][k - 1]
      if any of closer: for r, for p in closer[r] in order:              // rarely, once k near ones are known
        insert d[r][p] into near[r], tile * 32 + p into at[r]            // behind equal ones

A tile is read once for `PART` rows, so that neither points nor distances need much of the memory's bandwidth.
"""
from __future__ import annotations

from ...ir.ops.nearest import TILE
from ...ir.types import TensorType
from ..target import Target
from .code import Code
from .topk import each_bit, insert, lanes_below

PART, GROUP = 256, 4  # rows of a trip, rows whose sums are in registers


def trips(x: TensorType) -> int:
    return -(-x.shape[0] // PART)


def seconds(x: TensorType, tiles: TensorType, target: Target) -> float:
    """At about half of what a core's multipliers can do, a quarter where the sums of one row alone wait for each other; or as fast as
    the points come from memory."""
    flops = 2 * x.size * tiles.shape[0] * TILE * (2 if x.shape[0] == 1 else 1)
    return max(flops / (target.vector_bytes / 8 * 2 * 2.5e9), trips(x) * tiles.bytes / 25e9 if tiles.bytes > target.l2 else 0)


def workspace_bytes() -> int:
    return GROUP * (TILE + 1) * 8


def emit_nearest(symbol: str, ins: tuple[TensorType, ...], k: int, target: Target) -> str:
    """LLVM IR text."""
    return _Nearest(symbol, ins, k, target).text()


class _Nearest:
    def __init__(self, symbol: str, ins: tuple[TensorType, ...], k: int, target: Target) -> None:
        (self.rows, self.width), self.tiles, self.k = ins[0].shape, ins[2].shape[0], k
        self.lanes, self.fused = target.vector_bytes // 8, target.has_fma
        self.vectors = min(4 if target.vector_registers >= 32 else 2, TILE // self.lanes)
        self.kind = f"<{self.lanes} x double>"
        names = ("x", "own", "tiles", "squares", "near", "at", "workspace")
        self.c = Code(symbol, (*(f"ptr {n}" for n in names), "i64 begin", "i64 end", "ptr ctx"))

    def text(self) -> str:
        c = self.c
        first = c("mul i64 %begin, {}", PART)
        last = c.call("i64", "llvm.umin.i64", ("i64", c("mul i64 %end, {}", PART)), ("i64", self.rows))
        with c.loop(c("mul i64 {}, {}", last, self.k), c("mul i64 {}, {}", first, self.k)) as i:
            c.store("double", "0x7FF0000000000000", c.at("double", "%near", i))
            c.store("i64", c("urem i64 {}, {}", i, self.k), c.at("i64", "%at", i))
        with c.loop(last, first, PART) as start:
            end = c.call("i64", "llvm.umin.i64", ("i64", c("add i64 {}, {}", start, PART)), ("i64", last))
            whole = c("add i64 {}, {}", start, c("and i64 {}, {}", c("sub i64 {}, {}", end, start), -GROUP))
            with c.loop(self.tiles * TILE, 0, TILE) as tile:
                with c.loop(whole, start, GROUP) as row:
                    self._tile(tile, row, GROUP)
                with c.loop(end, whole) as row:
                    self._tile(tile, row, 1)
        return c.text()

    def _tile(self, tile: str, row: str, rows: int) -> None:
        c = self.c
        with c.loop(TILE, 0, self.vectors * self.lanes) as part:
            sums = self._sums(tile, part, row, rows)
            found, closer = [], []
            for r in range(rows):
                number = c("add i64 {}, {}", row, r)
                own = c.splat(self.lanes, "double", c.element("double", "%own", number))
                bound = c.splat(self.lanes, "double", c.element("double", "%near", c("add i64 {}, {}", c("mul i64 {}, {}", number, self.k),
                                                                                   self.k - 1)))
                found.append([self._distance(v, own, c("add i64 {}, {}", c("add i64 {}, {}", tile, part), u * self.lanes))
                              for u, v in enumerate(sums[r])])
                closer.append(lanes_below(c, "olt", "double", self.lanes, found[-1], bound))
            some = closer[0]
            for bits in closer[1:]:
                some = c("or i64 {}, {}", some, bits)
            with c.when(c("icmp ne i64 {}, 0", some)):
                for r in range(rows):
                    for u, v in enumerate(found[r]):
                        c.store(self.kind, v, c.at("double", "%workspace", r * TILE + u * self.lanes), 8)
                    c.store("i64", closer[r], c.at("i64", "%workspace", GROUP * TILE + r))
                with c.loop(rows) as r:
                    self._insert_all(r, c("add i64 {}, {}", row, r), c("add i64 {}, {}", tile, part))

    def _sums(self, tile: str, part: str, row: str, rows: int) -> list[list[str]]:
        """Products of `rows` rows with the points of a part of a tile."""
        c = self.c
        sums = [[c.variable(self.kind, "zeroinitializer") for _ in range(self.vectors)] for _ in range(rows)]
        points = c.at("double", c.at("double", "%tiles", c("mul i64 {}, {}", tile, self.width)), part)
        starts = [c.at("double", "%x", c("mul i64 {}, {}", c("add i64 {}, {}", row, r), self.width)) for r in range(rows)]
        for s in (s for line in sums for s in line):
            s.set("zeroinitializer")
        with c.loop(self.width) as column:
            line = c.at("double", points, c("mul i64 {}, {}", column, TILE))
            p = [c.load(self.kind, c.at("double", line, u * self.lanes), 8) for u in range(self.vectors)]
            for r in range(rows):
                x = c.splat(self.lanes, "double", c.element("double", starts[r], column))
                for u, s in enumerate(sums[r]):
                    s.set(self._fma(x, p[u], s.get()))
        return [[s.get() for s in line] for line in sums]

    def _fma(self, a: str, b: str, s: str) -> str:
        c, kind = self.c, self.kind
        if self.fused:
            return c.call(kind, f"llvm.fma.v{self.lanes}f64", (kind, a), (kind, b), (kind, s))
        return c("fadd {} {}, {}", kind, c("fmul {} {}, {}", kind, a, b), s)

    def _distance(self, product: str, own: str, point: str) -> str:
        c, kind = self.c, self.kind
        squares = c.load(kind, c.at("double", "%squares", point), 8)
        d = c("fadd {} {}, {}", kind, c("fadd {} {}, {}", kind, product, squares), own)
        below = c("fcmp olt {} {}, zeroinitializer", kind, d)  # NaN stays, and is no neighbour
        return c("select <{} x i1> {}, {} zeroinitializer, {} {}", self.lanes, below, kind, kind, d)

    def _insert_all(self, r: str, row: str, first: str) -> None:
        """The distances of row number `r` of the group that its bits say."""
        c = self.c
        near, at = (c.at(kind, base, c("mul i64 {}, {}", row, self.k)) for kind, base in (("double", "%near"), ("i64", "%at")))
        own = c.at("double", "%workspace", c("mul i64 {}, {}", r, TILE))

        def closer(a: str, b: str) -> str:
            return c("fcmp olt double {}, {}", a, b)

        def offer(p: str) -> None:
            d = c.element("double", own, p)
            with c.when(closer(d, c.element("double", near, self.k - 1))):
                insert(c, "double", near, at, self.k - 1, d, c("add i64 {}, {}", first, p), closer)
        each_bit(c, c.element("i64", "%workspace", c("add i64 {}, {}", r, GROUP * TILE)), offer)
