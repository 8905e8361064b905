"""Code for `tree_ranks`: for each group of thresholds a binary search of all rows at once, without branches.

    for part in [begin, end):                       // 64 rows
      for g in groups:
        x = rows[part][g.feature];  rank = 0
        for (step = 1 << g.levels - 1; step; step >>= 1)
          rank += !(x <= thresholds[g.first + rank + step - 1]) ? step : 0
        if (g.parity) rank = ~rank & 1
        if (g.zero >= 0 && |x| <= 1e-35) rank = g.zero
        if (x is NaN) rank = g.nan
        for q in g.columns: ranks[g.column + q][part] = clamp(rank - 254 q, 0, 254)
      for s in sets:
        ranks[s.column][part] = !bit(words + s.first, trunc(x))

The first four levels come from registers where the processor has permutations of 16 numbers. For one row, several groups are
searched at once instead, if the processor can gather.
"""
from __future__ import annotations

import struct

from ...ir.forest import ZERO
from ...ir.ops.tree_engines import BLOCK, RanksAttrs, RankSize
from ...ir.tree_tables import LIMIT, Group
from ...ir.types import F64, TensorType
from ..target import Target
from .code import Code, Variable, constant

TOGETHER = 32  # groups of one row, as many as the table has a multiple of
PART = 64  # rows of one iteration of the parallel loop


def trips(x: TensorType, attrs: RanksAttrs) -> int:
    rows = x.shape[0]
    return -(-rows // BLOCK) * (BLOCK // PART) if attrs.slices else -(-rows // PART)


def emit_ranks(symbol: str, attrs: RanksAttrs, ins: tuple[TensorType, ...], target: Target) -> str:
    return _Ranks(symbol, attrs, ins, target).text()


class _Ranks:
    def __init__(self, symbol: str, attrs: RanksAttrs, ins: tuple[TensorType, ...], target: Target) -> None:
        x = ins[0]
        self.rows, self.features = x.shape
        self.attrs = attrs
        self.real = "double" if x.dtype == F64 else "float"
        self.lanes = 1 if self.rows == 1 else max(4, target.vector_bytes // x.dtype.bytes)
        self.vectors = 1 if self.rows == 1 else min(4, PART // self.lanes)
        self.gathers = target.vector_bytes >= 32
        self.permutes = target.vector_bytes == 64 and self.rows > 1
        names = ("x", "sizes", "groups", "thresholds", "sets", "words", "ranks", "workspace")
        self.c = Code(symbol, (*(f"ptr {n}" for n in names), "i64 begin", "i64 end", "ptr ctx"))

    def text(self) -> str:
        c, span = self.c, self.lanes * self.vectors
        self.columns, self.groups, count, sets = (c.element("i64", "%sizes", k) for k in RankSize)
        per_part = 1 if self.rows == 1 else PART // span
        with c.loop(c("mul i64 %end, {}", per_part), c("mul i64 %begin, {}", per_part)) as part:
            rows = self._rows(c("mul i64 {}, {}", part, span))
            if self.rows == 1 and self.gathers:
                with c.loop(self.groups, 0, TOGETHER) as g:
                    _OneRow(c, self.real, self.groups).groups(g)
            else:
                with c.loop(count) as g:
                    self._group(part, rows, c.at("i32", "%groups", g))
            with c.loop(sets) as s:
                self._set(part, rows, c.at("[4 x i32]", "%sets", s))
        return c.text()

    def _rows(self, first: str) -> list[str]:
        """<lanes x i64> numbers of rows, none beyond the last."""
        c, n = self.c, self.lanes
        out = []
        for u in range(self.vectors):
            base = c.splat(n, "i64", c("add i64 {}, {}", first, u * n))
            row = c("add <{} x i64> {}, {}", n, base, constant(n, "i64", range(n)))
            last = c.splat(n, "i64", self.rows - 1)
            out.append(c.call(f"<{n} x i64>", f"llvm.umin.v{n}i64", (f"<{n} x i64>", row), (f"<{n} x i64>", last)))
        return out

    def _values(self, rows: list[str], feature: str) -> list[str]:
        c, n = self.c, self.lanes
        out = []
        for row in rows:
            if self.rows * self.features < 1 << 31:
                at = c("mul <{} x i32> {}, {}", n, c("trunc <{0} x i64> {1} to <{0} x i32>", n, row), c.splat(n, "i32", self.features))
                out.append(c.gather(n, self.real, c.at(self.real, "%x", feature), at))
            else:
                at = c("mul <{} x i64> {}, {}", n, row, c.splat(n, "i64", self.features))
                out.append(c.gather(n, self.real, c.at(self.real, "%x", feature), at, "i64"))
        return out

    def _field(self, table: str, k: int, to: str = "i64", step: str = "1") -> str:
        v = self.c.load("i32", self.c.at("i32", table, self.c("mul i64 {}, {}", step, int(k))))
        return self.c("sext i32 {} to i64", v) if to == "i64" else v

    def _group(self, part: str, rows: list[str], g: str) -> None:
        c, n = self.c, self.lanes

        def field(k: Group, to: str = "i64") -> str:
            return self._field(g, k, to, self.groups)
        x = self._values(rows, field(Group.FEATURE))
        own = c.at(self.real, "%thresholds", field(Group.FIRST))
        rank = [c.variable(f"<{n} x i32>", "zeroinitializer") for _ in x]
        levels = field(Group.LEVELS, "i32")
        step = c.variable("i32", c("lshr i32 {}, 1", c("shl i32 1, {}", levels)))
        if self.permutes:
            with c.when(c("icmp sge i32 {}, 4", levels)):
                self._first_levels(own, x, rank, levels)
                step.set(c("lshr i32 {}, 4", step.get()))
        with c.loop_while(lambda: c("icmp ne i32 {}, 0", step.get())):
            s = step.get()
            size = c.splat(n, "i32", s)
            for v, r in zip(x, rank, strict=True):
                at = c("add <{0} x i32> {1}, {2}", n, r.get(), c.splat(n, "i32", c("sub i32 {}, 1", s)))
                _step(c, n, self.real, v, c.gather(n, self.real, own, at), size, r)
            step.set(c("lshr i32 {}, 1", s))
        nan, zero, parity = (c.splat(n, "i32", field(k, "i32")) for k in (Group.NAN, Group.ZERO, Group.PARITY))
        for v, r in zip(x, rank, strict=True):
            r.set(_missing(c, n, self.real, v, _even(c, n, r.get(), parity), nan, zero))
        column = field(Group.COLUMN)
        with c.loop(field(Group.COLUMNS)) as q:
            less = c("trunc i64 {} to i32", c("mul i64 {}, {}", q, LIMIT))
            for u, r in enumerate(rank):
                above = c("sub <{} x i32> {}, {}", n, r.get(), c.splat(n, "i32", less))
                self._store(part, u, rows[u], c("add i64 {}, {}", column, q), _clamped(c, n, above))

    def _first_levels(self, own: str, x: list[str], rank: list, levels: str) -> None:
        """Every 2^(levels - 4)-th threshold is in a register, or in two; the last of them is the padding."""
        c, n = self.c, self.lanes
        shift = c("sub i32 {}, 4", levels)
        some = []
        for first in range(1, 17, n):
            where = c("shl <{0} x i32> {1}, {2}", n, constant(n, "i32", range(first, first + n)), c.splat(n, "i32", shift))
            some.append(c.gather(n, self.real, own, c("sub <{0} x i32> {1}, {2}", n, where, c.splat(n, "i32", 1))))
        for v, r in zip(x, rank, strict=True):
            for s in (8, 4, 2, 1):
                at = c("add <{} x i32> {}, {}", n, r.get(), c.splat(n, "i32", s - 1))
                _step(c, n, self.real, v, self._permuted(some, at), c.splat(n, "i32", s), r)
            r.set(c("shl <{} x i32> {}, {}", n, r.get(), c.splat(n, "i32", shift)))

    def _permuted(self, some: list[str], at: str) -> str:
        """Numbers `at`, of 16 f32 in one register or 16 f64 in two."""
        c = self.c
        if self.real == "float":
            return c.call("<16 x float>", "llvm.x86.avx512.permvar.sf.512", ("<16 x float>", some[0]), ("<16 x i32>", at))
        wide = c("zext <8 x i32> {} to <8 x i64>", at)
        return c.call("<8 x double>", "llvm.x86.avx512.vpermi2var.pd.512", ("<8 x double>", some[0]), ("<8 x i64>", wide),
                      ("<8 x double>", some[1]))

    def _store(self, part: str, u: int, rows: str, column: str, ranks: str) -> None:
        """<lanes x i8> ranks of vector u of the part."""
        c, n = self.c, self.lanes
        if self.attrs.slices:
            first = c("add i64 {}, {}", c("mul i64 {}, {}", part, n * self.vectors), u * n)
            block, inside = c("udiv i64 {}, {}", first, BLOCK), c("urem i64 {}, {}", first, BLOCK)
            line = c("add i64 {}, {}", c("mul i64 {}, {}", block, self.columns), column)
            c.store(f"<{n} x i8>", ranks, c.at("i8", "%ranks", c("add i64 {}, {}", c("mul i64 {}, {}", line, BLOCK), inside)), 1)
            return
        base = c.at("i8", "%ranks", column)
        for k in range(n):
            row = c("extractelement <{} x i64> {}, i64 {}", n, rows, k)
            value = c("extractelement <{} x i8> {}, i64 {}", n, ranks, k)
            c.store("i8", value, c.at("i8", base, c("mul i64 {}, {}", row, self.columns)))

    def _set(self, part: str, rows: list[str], s: str) -> None:
        c, n = self.c, self.lanes
        feature, first, column = (self._field(s, k) for k in (0, 1, 3))
        count = self._field(s, 2, "i32")
        words, many = c.at("i32", "%words", first), c.splat(n, "i32", count)
        for u, x in enumerate(self._values(rows, feature)):
            kind = f"<{n} x {self.real}>"
            low = c("fcmp ogt {} {}, {}", kind, x, c.splat(n, self.real, "-1.0"))
            high = c("fcmp olt {} {}, {}", kind, x, c.splat(n, self.real, "2147483520.0"))
            valid = c("and <{} x i1> {}, {}", n, low, high)
            code = c("fptosi {0} {1} to <{2} x i32>", kind, c("select <{0} x i1> {1}, {2} {3}, {2} zeroinitializer", n, valid, kind, x), n)
            is_nan = c("zext <{0} x i1> {1} to <{0} x i32>", n, c("fcmp uno {} {}, zeroinitializer", kind, x))
            word = c("lshr <{} x i32> {}, {}", n, code, c.splat(n, "i32", 5))
            word = c.call(f"<{n} x i32>", f"llvm.umin.v{n}i32", (f"<{n} x i32>", word), (f"<{n} x i32>", many))
            word = c("select <{0} x i1> {1}, <{0} x i32> {2}, <{0} x i32> {3}", n, valid, word, c("add <{} x i32> {}, {}", n, many, is_nan))
            bit = c("and <{} x i32> {}, {}", n, code, c.splat(n, "i32", 31))
            bits = c("lshr <{} x i32> {}, {}", n, c.gather(n, "i32", words, word), bit)
            inside = c("trunc <{0} x i32> {1} to <{0} x i1>", n, bits)
            rank = c("select <{0} x i1> {1}, <{0} x i8> zeroinitializer, <{0} x i8> {2}", n, inside, c.splat(n, "i8", 1))
            self._store(part, u, rows[u], column, rank)


class _OneRow:
    """n groups of one row at a time: their fields, values, thresholds are gathered."""

    def __init__(self, c: Code, real: str, count: str) -> None:
        self.c, self.real, self.n, self.count = c, real, TOGETHER, count

    def groups(self, first: str) -> None:
        c, n, kind = self.c, self.n, f"<{self.n} x i32>"

        def field(k: Group) -> str:
            return c.load(kind, c.at("i32", c.at("i32", "%groups", c("mul i64 {}, {}", self.count, int(k))), first), 4)
        x, own, levels = c.gather(n, self.real, "%x", field(Group.FEATURE)), field(Group.FIRST), field(Group.LEVELS)
        ones = c.splat(n, "i32", 1)
        step = c.variable(kind, c("lshr {} {}, {}", kind, c("shl {} {}, {}", kind, ones, levels), ones))
        rank = c.variable(kind, "zeroinitializer")
        deepest = c("zext i32 {} to i64", c.call("i32", f"llvm.vector.reduce.smax.v{n}i32", (kind, levels)))
        with c.loop(deepest):
            size = step.get()
            less = c.call(kind, f"llvm.smax.v{n}i32", (kind, c("sub {} {}, {}", kind, size, ones)), (kind, "zeroinitializer"))
            at = c("add {} {}, {}", kind, c("add {} {}, {}", kind, own, rank.get()), less)
            _step(c, n, self.real, x, c.gather(n, self.real, "%thresholds", at), size, rank)
            step.set(c("lshr {} {}, {}", kind, size, ones))
        ranks = _missing(c, n, self.real, x, _even(c, n, rank.get(), field(Group.PARITY)), field(Group.NAN), field(Group.ZERO))
        self._store(ranks, field(Group.COLUMN), field(Group.COLUMNS))

    def _store(self, ranks: str, column: str, columns: str) -> None:
        """At once where the groups have a column each, one after the other."""
        c, n, kind = self.c, self.n, f"<{self.n} x i32>"
        low, high = (c("extractelement {} {}, i64 {}", kind, column, k) for k in (0, n - 1))
        dense = c("icmp eq i32 {}, {}", c("sub i32 {}, {}", high, low), n - 1)
        narrow = c("icmp eq i32 {}, 1", c.call("i32", f"llvm.vector.reduce.smax.v{n}i32", (kind, columns)))
        simple = c("and i1 {}, {}", dense, narrow)
        with c.when(simple):
            c.store(f"<{n} x i8>", _clamped(c, n, ranks), c.at("i8", "%ranks", c("zext i32 {} to i64", low)), 1)
        with c.when(c("xor i1 {}, true", simple)):
            slots = [c.variable(kind, v).slot for v in (ranks, column, columns)]
            with c.loop(n) as k:
                rank, first, count = (c.load("i32", c.at("i32", s, k)) for s in slots)
                with c.loop(c("zext i32 {} to i64", count)) as q:
                    above = c("sub i32 {}, {}", rank, c("trunc i64 {} to i32", c("mul i64 {}, {}", q, LIMIT)))
                    one = _clamped(c, 1, c.splat(1, "i32", above))
                    c.store("<1 x i8>", one, c.at("i8", "%ranks", c("add i64 {}, {}", c("zext i32 {} to i64", first), q)))


def _step(c: Code, n: int, real: str, x: str, threshold: str, size: str, rank: Variable) -> None:
    above = c("fcmp ugt <{} x {}> {}, {}", n, real, x, threshold)
    more = c("select <{0} x i1> {1}, <{0} x i32> {2}, <{0} x i32> zeroinitializer", n, above, size)
    rank.set(c("add <{} x i32> {}, {}", n, rank.get(), more))


def _even(c: Code, n: int, rank: str, parity: str) -> str:
    """Where parity is 1, whether the rank is even; else the rank. parity: <n x i32>."""
    kind = f"<{n} x i32>"
    even = c("xor {} {}, {}", kind, c("and {} {}, {}", kind, rank, parity), parity)
    chosen = c("icmp ne {} {}, zeroinitializer", kind, parity)
    return c("select <{0} x i1> {1}, {2} {3}, {2} {4}", n, chosen, kind, even, rank)


def _missing(c: Code, n: int, real: str, x: str, rank: str, nan: str, zero: str) -> str:
    """The rank with those of missing values put in; nan, zero: <n x i32>."""
    size = c.call(f"<{n} x {real}>", f"llvm.fabs.v{n}{'f64' if real == 'double' else 'f32'}", (f"<{n} x {real}>", x))
    small = c("fcmp ole <{} x {}> {}, {}", n, real, size, c.splat(n, real, _hex(ZERO)))
    both = c("and <{} x i1> {}, {}", n, small, c("icmp sge <{} x i32> {}, zeroinitializer", n, zero))
    rank = c("select <{0} x i1> {1}, <{0} x i32> {2}, <{0} x i32> {3}", n, both, zero, rank)
    is_nan = c("fcmp uno <{} x {}> {}, zeroinitializer", n, real, x)
    return c("select <{0} x i1> {1}, <{0} x i32> {2}, <{0} x i32> {3}", n, is_nan, nan, rank)


def _clamped(c: Code, n: int, v: str) -> str:
    kind = f"<{n} x i32>"
    v = c.call(kind, f"llvm.smax.v{n}i32", (kind, v), (kind, "zeroinitializer"))
    v = c.call(kind, f"llvm.smin.v{n}i32", (kind, v), (kind, c.splat(n, "i32", LIMIT)))
    return c("trunc {} {} to <{} x i8>", kind, v, n)


def _hex(x: float) -> str:
    """A constant of either type, exactly."""
    return f"0x{struct.unpack('<Q', struct.pack('<d', x))[0]:016X}"
