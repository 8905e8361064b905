"""Code for `tree_walk`: records of 64 bits, `child << 32 | column << 8 | bound`.

    for t in trees:
      for rows by 8:                                  // or, for one row: for trees by 8
        at[k] = t.root
        do 4 times: n = nodes[at[k]];  at[k] = (n >> 32) + (ranks[row[k]][n >> 8 & 0xffffff] >= (n & 255))
        until all are leaves (a leaf is its own child, with bound 255)
        y[row[k]][t.column …] += values[leaf[at[k]]]

The eight walks do not wait for each other: as fast as gathers into vectors, on every processor.
"""
from __future__ import annotations

from ...ir.ops.tree_engines import Size
from ...ir.types import TensorType
from .code import Code, Variable

LANES, STEPS, PART = 8, 4, 256


def trips(rows: int) -> int:
    return -(-rows // PART)


def emit_walk(symbol: str, ins: tuple[TensorType, ...]) -> str:
    return _Walk(symbol, ins).text()


class _Walk:
    def __init__(self, symbol: str, ins: tuple[TensorType, ...]) -> None:
        values, base = ins[-2:]
        self.rows = ins[0].shape[0]
        self.width, self.outputs = values.shape[1], base.shape[0]
        self.value, self.add = number(values)
        names = ("ranks", "sizes", "nodes", "leaf", "trees", "values", "base", "y", "workspace")
        self.c = Code(symbol, (*(f"ptr {n}" for n in names), "i64 begin", "i64 end", "ptr ctx"))

    def text(self) -> str:
        self.columns, self.trees = (self.c.element("i64", "%sizes", k) for k in (Size.COLUMNS, Size.TREES))
        if self.rows == 1:
            self._one_row()
        else:
            self._rows()
        return self.c.text()

    def _rows(self) -> None:
        c = self.c
        first = c("mul i64 %begin, {}", PART)
        end = c.call("i64", "llvm.umin.i64", ("i64", c("mul i64 %end, {}", PART)), ("i64", self.rows))
        with c.loop(end, first) as row:
            self._start(c.at(self.value, "%y", c("mul i64 {}, {}", row, self.outputs)))
        with c.loop(c("udiv i64 {}, {}", c("add i64 {}, {}", end, PART - 1), PART), "%begin") as part:
            low = c("mul i64 {}, {}", part, PART)
            high = c.call("i64", "llvm.umin.i64", ("i64", c("add i64 {}, {}", low, PART)), ("i64", self.rows))
            with c.loop(self.trees) as t:
                root, column = self._tree(t)
                with c.loop(high, low, LANES) as row:
                    self._eight_rows(row, high, root, column)

    def _eight_rows(self, row: str, end: str, root: str, column: str) -> None:
        c = self.c
        numbers = [c("add i64 {}, {}", row, k) for k in range(LANES)]
        last = c("sub i64 {}, 1", end)
        ranks = []
        for n in numbers:
            inside = c.call("i64", "llvm.umin.i64", ("i64", n), ("i64", last))
            ranks.append(c.at("i8", "%ranks", c("mul i64 {}, {}", inside, self.columns)))
        at = [c.variable("i64", root) for _ in numbers]
        self._walk(at, ranks)
        for n, a in zip(numbers, at, strict=True):
            with c.when(c("icmp ult i64 {}, {}", n, end)):
                y = c("add i64 {}, {}", c("mul i64 {}, {}", n, self.outputs), column)
                self._add(c.at(self.value, "%y", y), a.get())

    def _one_row(self) -> None:
        c = self.c
        self._start("%y")
        last = c("sub i64 {}, 1", self.trees)
        with c.loop(self.trees, 0, LANES) as t:
            numbers = [c("add i64 {}, {}", t, k) for k in range(LANES)]
            known = [self._tree(c.call("i64", "llvm.umin.i64", ("i64", n), ("i64", last))) for n in numbers]
            at = [c.variable("i64", root) for root, _ in known]
            self._walk(at, ["%ranks"] * LANES)
            for n, a, (_, column) in zip(numbers, at, known, strict=True):
                with c.when(c("icmp ult i64 {}, {}", n, self.trees)):
                    self._add(c.at(self.value, "%y", column), a.get())

    def _start(self, y: str) -> None:
        with self.c.loop(self.outputs) as k:
            self.c.store(self.value, self.c.element(self.value, "%base", k), self.c.at(self.value, y, k))

    def _tree(self, t: str) -> tuple[str, str]:
        """Root and column."""
        table = self.c.at("[4 x i32]", "%trees", t)
        return self.c.element("i32", table, 0, "i64"), self.c.element("i32", table, 2, "i64")

    def _walk(self, at: list[Variable], ranks: list[str]) -> None:
        c = self.c
        going = c.variable("i1", "true")
        with c.loop_while(going.get):
            for k in range(STEPS):
                low = [self._step(a, r) for a, r in zip(at, ranks, strict=True)]
                if k == STEPS - 1:
                    all_leaves = low[0]
                    for v in low[1:]:
                        all_leaves = c("and i64 {}, {}", all_leaves, v)
                    going.set(c("icmp ne i64 {}, 255", all_leaves))

    def _step(self, at: Variable, ranks: str) -> str:
        """One step; returns the record's bound."""
        c = self.c
        node = c.element("i64", "%nodes", at.get())
        column, bound = c("and i64 {}, 16777215", c("lshr i64 {}, 8", node)), c("and i64 {}, 255", node)
        right = c("icmp uge i64 {}, {}", c.element("i8", ranks, column, "i64"), bound)
        at.set(c("add i64 {}, {}", c("lshr i64 {}, 32", node), c("zext i1 {} to i64", right)))
        return bound

    def _add(self, y: str, at: str) -> None:
        c = self.c
        leaf = c.element("i32", "%leaf", at, "i64")
        own = c.at(self.value, "%values", c("mul i64 {}, {}", leaf, self.width))
        with c.loop(self.width) as k:
            to = c.at(self.value, y, k)
            c.store(self.value, c("{} {} {}, {}", self.add, self.value, c.load(self.value, to), c.element(self.value, own, k)), to)


def number(t: TensorType) -> tuple[str, str]:
    """LLVM's type and addition for elements of t."""
    return ("i32", "add") if t.dtype.is_int else ("double" if t.dtype.bits == 64 else "float", "fadd")
