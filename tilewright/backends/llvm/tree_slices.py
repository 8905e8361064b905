"""Code for `tree_slices`: 512 rows at once, one bit each, so that a condition costs a few instructions for all of them.

    for block in [begin, end):                                // 512 rows
      for chunk in chunks:                                    // trees whose conditions' masks fit into the cache
        for i in chunk.conditions: mask[i] = ranks[column] < bound            // each condition once
        for t in chunk.trees:
          reach[0] = all
          for n in t.nodes:                                   // from the root: leaves [a, b) split at m
            c = mask[n.condition];  r = reach[a];  reach[a] = r & c;  reach[m] = r & ~c
          planes: bit p of a row's leaf is the or of reach[l] over the l with bit p set; pairs or fours of leaves at a time
          number[row] = sum of planes[p][row] << p            // bytes from bits
          total[column][row] += values[t][number[row]]        // from registers where the processor can, else gathered
      y[row] = total[…][row]

A vector of 512 bits is one register or several, as LLVM finds fit for the processor.
"""
from __future__ import annotations

from collections.abc import Sequence

from ...ir.ops.tree_engines import BLOCK, Size, SlicesAttrs
from ...ir.types import TensorType
from ..target import Target
from .code import Code, constant
from .tree_walk import number

MASK = "<8 x i64>"  # one bit for each row of a block
MASK_BYTES = BLOCK // 8
NONE, ALL = "zeroinitializer", f"<{', '.join(['i64 -1'] * 8)}>"
IN_REGISTERS = 6    # planes: up to 64 values of a tree are kept in registers


def emit_slices(symbol: str, attrs: SlicesAttrs, ins: tuple[TensorType, ...], target: Target) -> str:
    return _Slices(symbol, attrs, ins, target).text()


def trips(attrs: SlicesAttrs) -> int:
    return -(-attrs.rows // BLOCK)


def workspace_bytes(attrs: SlicesAttrs, ins: tuple[TensorType, ...]) -> int:
    return _Places(attrs, ins).bytes


class _Places:
    """Offsets in the workspace."""

    def __init__(self, attrs: SlicesAttrs, ins: tuple[TensorType, ...]) -> None:
        values, base = ins[-2:]
        self.reach = 0
        self.planes = self.reach + (MASK_BYTES << attrs.planes)
        self.numbers = self.planes + 16 * MASK_BYTES
        self.totals = self.numbers + 2 * BLOCK
        self.masks = self.totals + base.shape[0] * BLOCK * values.dtype.bytes  # last: the code does not know how many
        self.bytes = self.masks + max(1, attrs.conditions) * MASK_BYTES


class _Slices:
    def __init__(self, symbol: str, attrs: SlicesAttrs, ins: tuple[TensorType, ...], target: Target) -> None:
        values, base = ins[-2:]
        self.attrs = attrs
        self.width, self.outputs = values.shape[1], base.shape[0]
        self.value, self.add = number(values)
        self.short = {"float": "f32", "double": "f64"}.get(self.value, "i32")
        self.permutes = target.vector_bytes == 64 and attrs.planes <= IN_REGISTERS
        names = ("ranks", "sizes", "chunks", "conditions", "trees", "nodes", "values", "base", "y", "workspace")
        self.c = c = Code(symbol, (*(f"ptr {n}" for n in names), "i64 begin", "i64 end", "ptr ctx"))
        p = _Places(attrs, ins)
        self.masks, self.reach, self.planes, self.numbers, self.totals = (
            c.at("i8", "%workspace", at) for at in (p.masks, p.reach, p.planes, p.numbers, p.totals))

    def text(self) -> str:
        c = self.c
        columns, chunks = (c.element("i64", "%sizes", k) for k in (Size.COLUMNS, Size.PARTS))
        with c.loop("%end", "%begin") as block:
            ranks = c.at(f"[{BLOCK} x i8]", "%ranks", c("mul i64 {}, {}", block, columns))
            self._start()
            with c.loop(chunks) as k:
                chunk = c.at("[4 x i32]", "%chunks", k)
                first, last, tree, end = (c.element("i32", chunk, j, "i64") for j in range(4))
                with c.loop(last, first) as i:
                    self._condition(ranks, c.element("i32", "%conditions", i), c("sub i64 {}, {}", i, first))
                with c.loop(end, tree) as t:
                    self._tree(t)
            self._finish(block)
        return c.text()

    def _start(self) -> None:
        c = self.c
        with c.loop(self.outputs) as k:
            line = c.at(f"[{BLOCK} x {self.value}]", self.totals, k)
            base = c.splat(16, self.value, c.element(self.value, "%base", k))
            with c.loop(BLOCK, 0, 16) as i:
                c.store(f"<16 x {self.value}>", base, c.at(self.value, line, i), 64)

    def _condition(self, ranks: str, condition: str, number: str) -> None:
        c = self.c
        column = c("zext i32 {} to i64", c("lshr i32 {}, 8", condition))
        bound = c.splat(64, "i8", c("trunc i32 {} to i8", condition))
        line, mask = c.at(f"[{BLOCK} x i8]", ranks, column), c.at(MASK, self.masks, number)
        for j in range(8):
            v = c.load("<64 x i8>", c.at("i8", line, 64 * j), 1)
            bits = c("bitcast <64 x i1> {} to i64", c("icmp ult <64 x i8> {}, {}", v, bound))
            c.store("i64", bits, c.at("i64", mask, j))

    # -- one tree ----------------------------------------------------------------------------------------------------
    def _tree(self, t: str) -> None:
        c = self.c
        own = c.at("[4 x i32]", "%trees", t)
        end, leaves, column = (c.element("i32", own, k, "i64") for k in range(3))
        no_tree_before = c("icmp eq i64 {}, 0", t)
        previous = c("select i1 {}, i64 0, i64 {}", no_tree_before, c("sub i64 {}, 1", t))
        begin = c("select i1 {}, i64 0, i64 {}", no_tree_before, c.element("i32", c.at("[4 x i32]", "%trees", previous), 0, "i64"))
        c.store(MASK, ALL, self.reach, 64)
        with c.loop(end, begin) as n:
            self._node(c.at("[2 x i32]", "%nodes", n))
        with c.loop(1 << self.attrs.planes, leaves) as k:
            c.store(MASK, NONE, c.at(MASK, self.reach, k), 64)
        self._make_planes()
        self._make_numbers()
        with c.loop(self.width) as k:
            number = c("add i64 {}, {}", c("mul i64 {}, {}", t, self.width), k)
            values = c.at(self.value, "%values", c("shl i64 {}, {}", number, self.attrs.planes))
            self._accumulate(values, c.at(f"[{BLOCK} x {self.value}]", self.totals, c("add i64 {}, {}", column, k)))

    def _node(self, node: str) -> None:
        c = self.c
        mask = c.load(MASK, c.at(MASK, self.masks, c.element("i32", node, 0, "i64")), 64)
        span = c.element("i32", node, 1)
        left = c.at(MASK, self.reach, c("zext i32 {} to i64", c("and i32 {}, 65535", span)))
        right = c.at(MASK, self.reach, c("zext i32 {} to i64", c("lshr i32 {}, 16", span)))
        here = c.load(MASK, left, 64)
        c.store(MASK, c("and {} {}, {}", MASK, here, mask), left, 64)
        c.store(MASK, c("and {} {}, {}", MASK, here, c("xor {} {}, {}", MASK, mask, ALL)), right, 64)

    def _make_planes(self) -> None:
        """In place: after each round `reach` holds the ors of neighbours."""
        c, done = self.c, 0
        while done < self.attrs.planes:
            now = min(2, self.attrs.planes - done)
            count = 1 << (self.attrs.planes - done - now)
            planes = [c.variable(MASK, NONE) for _ in range(now)]
            with c.loop(count) as i:
                first = c("shl i64 {}, {}", i, now)
                parts = [c.load(MASK, c.at(MASK, self.reach, c("add i64 {}, {}", first, k)), 64) for k in range(1 << now)]
                for p, plane in enumerate(planes):
                    for k, part in enumerate(parts):
                        if k >> p & 1:
                            plane.set(c("or {} {}, {}", MASK, plane.get(), part))
                if count > 1:
                    c.store(MASK, self._or(parts), c.at(MASK, self.reach, i), 64)
            for p, plane in enumerate(planes):
                c.store(MASK, plane.get(), c.at(MASK, self.planes, done + p), 64)
            done += now

    def _or(self, parts: Sequence[str]) -> str:
        total = parts[0]
        for p in parts[1:]:
            total = self.c("or {} {}, {}", MASK, total, p)
        return total

    def _make_numbers(self) -> None:
        """Bits to bytes; beyond 8 planes, the high bytes follow all low ones."""
        c = self.c
        with c.loop(8) as j:
            for high in range(-(-self.attrs.planes // 8)):
                total = "zeroinitializer"
                for p in range(8 * high, min(8 * high + 8, self.attrs.planes)):
                    word = c.load("i64", c.at("i64", c.at(MASK, self.planes, p), j))
                    bits = c("bitcast i64 {} to <64 x i1>", word)
                    bit = constant(64, "i8", [1 << (p - 8 * high) if p - 8 * high < 7 else -128] * 64)
                    total = c("or <64 x i8> {}, {}", total, c("select <64 x i1> {}, <64 x i8> {}, <64 x i8> zeroinitializer", bits, bit))
                c.store("<64 x i8>", total, c.at("i8", c.at("[64 x i8]", self.numbers, j), high * BLOCK), 64)

    def _accumulate(self, values: str, totals: str) -> None:
        c = self.c
        table = self._table(values) if self.permutes else []
        with c.loop(BLOCK, 0, 16) as row:
            at = c("zext <16 x i8> {} to <16 x i32>", c.load("<16 x i8>", c.at("i8", self.numbers, row), 16))
            if self.attrs.planes > 8:
                more = c.load("<16 x i8>", c.at("i8", c.at("i8", self.numbers, BLOCK), row), 16)
                more = c("shl <16 x i32> {}, {}", c("zext <16 x i8> {} to <16 x i32>", more), c.splat(16, "i32", 8))
                at = c("or <16 x i32> {}, {}", at, more)
            v = self._looked_up(table, at) if table else c.gather(16, self.value, values, at)
            to = c.at(self.value, totals, row)
            old = c.load(f"<16 x {self.value}>", to, 64)
            c.store(f"<16 x {self.value}>", c("{} <16 x {}> {}, {}", self.add, self.value, old, v), to, 64)

    # -- values in registers -----------------------------------------------------------------------------------------
    def _table(self, values: str) -> list[list[str]]:
        """The tree's values as words: of 16 values each; low and high words apart."""
        c, halves = self.c, 2 if self.value == "double" else 1
        words: list[list[str]] = [[] for _ in range(halves)]
        for k in range(0, 1 << self.attrs.planes, 16):
            parts = [c.load("<16 x i32>", c.at(self.value, values, k + 8 * h), 8) for h in range(halves)]
            for h in range(halves):
                words[h].append(parts[0] if halves == 1 else c.shuffle(16, "i32", parts[0], parts[1], range(h, 32, 2)))
        return words

    def _looked_up(self, table: list[list[str]], at: str) -> str:
        c = self.c
        parts = [self._permuted(words, at) for words in table]
        if len(parts) == 1:
            return c("bitcast <16 x i32> {} to <16 x {}>", parts[0], self.value) if self.value == "float" else parts[0]
        whole = c.shuffle(16, "i32", parts[0], parts[1], [lane for k in range(16) for lane in (k, 16 + k)])
        return c("bitcast <32 x i32> {} to <16 x double>", whole)

    def _permuted(self, words: list[str], at: str) -> str:
        c, kind = self.c, "<16 x i32>"
        if len(words) == 1:
            return c.call(kind, "llvm.x86.avx512.permvar.si.512", (kind, words[0]), (kind, at))
        pairs = [c.call(kind, "llvm.x86.avx512.vpermi2var.d.512", (kind, words[k]), (kind, at), (kind, words[k + 1]))
                 for k in range(0, len(words), 2)]
        if len(pairs) == 1:
            return pairs[0]
        high = c("icmp ne {0} {1}, zeroinitializer", kind, c("and {} {}, {}", kind, at, c.splat(16, "i32", 32)))
        return c("select <16 x i1> {0}, {1} {2}, {1} {3}", high, kind, pairs[1], pairs[0])

    # -- results -----------------------------------------------------------------------------------------------------
    def _finish(self, block: str) -> None:
        c = self.c
        first = c("mul i64 {}, {}", block, BLOCK)
        count = c.call("i64", "llvm.umin.i64", ("i64", BLOCK), ("i64", c("sub i64 {}, {}", self.attrs.rows, first)))
        y = c.at(self.value, "%y", c("mul i64 {}, {}", first, self.outputs))
        if self.outputs == 1:
            whole = c("and i64 {}, -16", count)
            with c.loop(whole, 0, 16) as i:
                total = c.load(f"<16 x {self.value}>", c.at(self.value, self.totals, i), 64)
                c.store(f"<16 x {self.value}>", total, c.at(self.value, y, i), 4)
        else:
            whole = "0"
        with c.loop(count, whole) as i:
            line = c.at(self.value, y, c("mul i64 {}, {}", i, self.outputs))
            with c.loop(self.outputs) as k:
                c.store(self.value, c.element(self.value, c.at(f"[{BLOCK} x {self.value}]", self.totals, k), i), c.at(self.value, line, k))
