"""Code for `tree_row`: one row through all trees at once, a lane for each tree (`ir/tree_rows.py` says why this finds leaves).

    for g in groups of trees:
      leaf = 0                                                      // bytes, one lane for each tree
      for s in [g.first, g.last):                                   // number of the step in its group: 1, 2, …
        if (rank(s.column) >= s.bound && s.first <= leaf) leaf = number
    for t in trees:  y[t.column …] += values[t.first + leaf[t.place]]

rank() looks bytes up in registers: two or four of 64 bytes (AVX-512 VBMI, NEON), or, by shuffles within 16 bytes, in tables
of the differences d[k] = ranks[16 k …] ^ ranks[16 k - 16 …]: the ranks are the exclusive or of d[k][column - 16 k] over all
k, because a shuffle gives 0 for negative bytes and takes the low bits of others. Columns from 128 on have such tables of their own.
"""
from __future__ import annotations

from itertools import pairwise

from ...ir.ops.tree_engines import Size
from ...ir.types import TensorType
from ..target import Target
from .code import Code, Variable, constant
from .tree_walk import number


def row_lanes(target: Target) -> int:
    """Bytes of the registers that ranks are looked up in; 0 where the processor loads them one by one."""
    if target.arch == "aarch64":
        return 16
    if target.vector_bytes == 64:
        return 64 if target.has("avx512bw") else 32
    return 32 if target.has("avx2") else 16 if target.has("ssse3") else 0


def step_cycles(columns: int, target: Target) -> float:
    """Of one step of a register of trees."""
    if target.has("avx512vbmi"):
        return 3.5 if columns <= 64 else 4.5 if columns <= 128 else 8
    return (4 + 6 * -(-columns // 64)) if target.arch == "aarch64" else (8 + 3 * -(-columns // 16)) / 3


def emit_row(symbol: str, ins: tuple[TensorType, ...], target: Target) -> str:
    return _Row(symbol, ins, target).text()


def workspace_bytes(ins: tuple[TensorType, ...]) -> int:
    _, _, ends, steps, *_ = ins
    return ends.shape[0] * steps.shape[2]


class _Row:
    def __init__(self, symbol: str, ins: tuple[TensorType, ...], target: Target) -> None:
        ranks, _, _, steps, _, values, base = ins
        self.tables, self.vbmi, self.neon = -(-ranks.shape[1] // 64), target.has("avx512vbmi"), target.arch == "aarch64"
        self.loads, self.n = not row_lanes(target), row_lanes(target) or 16
        self.vectors = steps.shape[2] // self.n
        self.bytes, self.lanes = f"<{self.n} x i8>", steps.shape[2]
        self.value, self.add = number(values)
        self.width, self.outputs = values.shape[1], base.shape[0]
        names = ("ranks", "sizes", "ends", "steps", "trees", "values", "base", "y", "workspace")
        self.c = Code(symbol, (*(f"ptr {n}" for n in names), "i64 begin", "i64 end", "ptr ctx"))

    def text(self) -> str:
        c = self.c
        tables = self._tables()
        first = c.variable("i64", 0)
        with c.loop(c.element("i64", "%sizes", Size.PARTS)) as g:
            leaves = [c.variable(self.bytes, "zeroinitializer") for _ in range(self.vectors)]
            for v in leaves:
                v.set("zeroinitializer")
            count = c.variable(self.bytes, "zeroinitializer")
            count.set("zeroinitializer")
            end = c.element("i32", "%ends", g, "i64")
            with c.loop(end, first.get()) as s:
                count.set(c("add {} {}, {}", self.bytes, count.get(), constant(self.n, "i8", [1] * self.n)))
                self._step(c.at(f"[{3 * self.lanes} x i8]", "%steps", s), tables, count.get(), leaves)
            first.set(end)
            for k, v in enumerate(leaves):
                where = c("add i64 {}, {}", c("mul i64 {}, {}", g, self.lanes), k * self.n)
                c.store(self.bytes, v.get(), c.at("i8", "%workspace", where), 1)
        self._sum()
        return c.text()

    def _step(self, step: str, tables: list[str], count: str, leaves: list[Variable]) -> None:
        c, n = self.c, self.n
        for k, leaf in enumerate(leaves):
            column, bound, first = (c.load(self.bytes, c.at("i8", step, self.lanes * j + n * k), 1) for j in range(3))
            right = c("icmp uge {} {}, {}", self.bytes, self._ranks(tables, column), bound)
            reached = c("icmp ule {} {}, {}", self.bytes, first, leaf.get())
            both = c("and <{} x i1> {}, {}", n, right, reached)
            leaf.set(c("select <{0} x i1> {1}, {2} {3}, {2} {4}", n, both, self.bytes, count, leaf.get()))

    def _sum(self) -> None:
        c, single = self.c, self.outputs == 1
        total = c.variable(self.value, c.load(self.value, "%base"))
        if not single:
            with c.loop(self.outputs) as k:
                c.store(self.value, c.element(self.value, "%base", k), c.at(self.value, "%y", k))
        with c.loop(c.element("i64", "%sizes", Size.TREES)) as t:
            place, first, column = (c.element("i32", c.at("[4 x i32]", "%trees", t), k, "i64") for k in range(3))
            leaf = c("add i64 {}, {}", first, c.element("i8", "%workspace", place, "i64"))
            if single:
                total.set(c("{} {} {}, {}", self.add, self.value, total.get(), c.element(self.value, "%values", leaf)))
            else:
                self._add(c.at(self.value, "%y", column), c.at(self.value, "%values", c("mul i64 {}, {}", leaf, self.width)))
        if single:
            c.store(self.value, total.get(), "%y")

    def _add(self, y: str, values: str) -> None:
        c = self.c
        with c.loop(self.width) as k:
            to = c.at(self.value, y, k)
            c.store(self.value, c("{} {} {}, {}", self.add, self.value, c.load(self.value, to), c.element(self.value, values, k)), to)

    # -- ranks by columns --------------------------------------------------------------------------------------------
    def _tables(self) -> list[str]:
        """The registers that `_ranks` looks into; nothing beyond the last rank is read."""
        c = self.c
        room = 64 * self.tables if self.tables < 3 else 256
        slot = c.variable(f"[{room} x i8]", "zeroinitializer").slot
        c.call("void", "llvm.memcpy.p0.p0.i64", ("ptr", slot), ("ptr", "%ranks"), ("i64", c.element("i64", "%sizes", Size.COLUMNS)),
               ("i1", "false"))
        if self.loads:
            return [slot]
        if self.vbmi:
            return [c.load(self.bytes, c.at("i8", slot, k), 1) for k in range(0, room, 64)]
        parts = [c.load("<16 x i8>", c.at("i8", slot, k), 1) for k in range(0, room, 16)]
        if self.neon:
            return parts
        differences = [parts[0], *(b if k % 8 == 7 else c("xor <16 x i8> {}, {}", a, b) for k, (a, b) in enumerate(pairwise(parts)))]
        return [c.shuffle(16, "i8", d, "poison", [k % 16 for k in range(self.n)]) for d in differences]

    def _ranks(self, tables: list[str], column: str) -> str:
        if self.loads:
            return self._by_loads(tables[0], column)
        if self.vbmi:
            return self._by_vbmi(tables, column)
        if self.neon:
            return self._by_neon(tables, column)
        low = self._by_shuffles(tables[:8], column)
        if len(tables) <= 8:
            return low
        high = self._by_shuffles(tables[8:], self.c("xor {} {}, {}", self.bytes, column, constant(self.n, "i8", [-128] * self.n)))
        return self._by_sign(column, high, low)

    def _by_sign(self, column: str, high: str, low: str) -> str:
        """Of columns from 128 on, and of others."""
        negative = self.c("icmp slt {} {}, zeroinitializer", self.bytes, column)
        return self.c("select <{0} x i1> {1}, {2} {3}, {2} {4}", self.n, negative, self.bytes, high, low)

    def _by_loads(self, slot: str, column: str) -> str:
        c, total = self.c, "poison"
        for k in range(self.n):
            at = c("zext i8 {} to i64", c("extractelement {} {}, i64 {}", self.bytes, column, k))
            total = c("insertelement {} {}, i8 {}, i64 {}", self.bytes, total, c.element("i8", slot, at), k)
        return total

    def _by_vbmi(self, tables: list[str], column: str) -> str:
        c = self.c
        if len(tables) == 1:
            return c.call(self.bytes, "llvm.x86.avx512.permvar.qi.512", (self.bytes, tables[0]), (self.bytes, column))
        pairs = [c.call(self.bytes, "llvm.x86.avx512.vpermi2var.qi.512", (self.bytes, tables[k]), (self.bytes, column),
                        (self.bytes, tables[k + 1])) for k in range(0, len(tables), 2)]
        if len(pairs) == 1:
            return pairs[0]
        return self._by_sign(column, pairs[1], pairs[0])

    def _by_neon(self, tables: list[str], column: str) -> str:
        c, total = self.c, ""
        for k in range(0, len(tables), 4):
            less = constant(16, "i8", [16 * k - 256 * (k >= 8)] * 16)
            at = c("sub {} {}, {}", self.bytes, column, less) if k else column
            part = c.call(self.bytes, "llvm.aarch64.neon.tbl4.v16i8", *(("<16 x i8>", t) for t in tables[k:k + 4]), (self.bytes, at))
            total = c("or {} {}, {}", self.bytes, total, part) if k else part
        return total

    def _by_shuffles(self, tables: list[str], column: str) -> str:
        c, total = self.c, ""
        name = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[self.n]
        for k, table in enumerate(tables):
            if k:
                column = c("sub {} {}, {}", self.bytes, column, constant(self.n, "i8", [16] * self.n))
            part = c.call(self.bytes, name, (self.bytes, table), (self.bytes, column))
            total = c("xor {} {}, {}", self.bytes, total, part) if k else part
        return total
