"""Code for `tree_row`: one row through trees of up to 64 leaves, each in a register of 64 bytes (AVX-512 VBMI).

    for t in trees:
      step = ranks[t.column] < t.bound ? t.left : t.right        // of all 64 nodes; ranks: a permutation of bytes
      repeat rounds: step = step is a leaf ? step : step[step]   // twice as many levels each time
      y += values[t][step[0] & 63]

Elsewhere bytes are looked up one by one, and the steps are followed; `tree_walk` is the better choice there.
"""
from __future__ import annotations

from ...ir.ops.tree_engines import RowAttrs
from ...ir.types import TensorType
from ..target import Target
from .code import Code
from .tree_walk import number

_BYTES = "<64 x i8>"


def emit_row(symbol: str, attrs: RowAttrs, ins: tuple[TensorType, ...], target: Target) -> str:
    ranks, nodes, _, values, base = ins
    value, add = number(values)
    width, outputs = values.shape[1], base.shape[0]
    names = ("ranks", "nodes", "columns", "values", "base", "y", "workspace")
    c = Code(symbol, (*(f"ptr {n}" for n in names), "i64 begin", "i64 end", "ptr ctx"))
    permutes = target.has("avx512vbmi")
    registers = _load_ranks(c, ranks.shape[1]) if permutes else []
    slot = "" if permutes else c.variable(_BYTES, "zeroinitializer").slot
    single = outputs == 1
    total = c.variable(value, c.load(value, "%base"))
    if not single:
        with c.loop(outputs) as k:
            c.store(value, c.element(value, "%base", k), c.at(value, "%y", k))
    with c.loop(nodes.shape[0]) as t:
        tree = c.at("[256 x i8]", "%nodes", t)
        column, bound, left, right = (c.load(_BYTES, c.at("i8", tree, 64 * k), 1) for k in range(4))
        own_ranks = _lookup(c, registers, column) if permutes else _one_by_one(c, tree, slot)
        less = c("icmp ult {} {}, {}", _BYTES, own_ranks, bound)
        step = c("select <64 x i1> {0}, {1} {2}, {1} {3}", less, _BYTES, left, right)
        for _ in range(attrs.rounds if permutes else 0):
            inner = c("icmp slt {} {}, zeroinitializer", _BYTES, step)
            step = c("select <64 x i1> {0}, {1} {2}, {1} {3}", inner, _BYTES, _permuted(c, step, step), step)
        end = c("extractelement {} {}, i64 0", _BYTES, step) if permutes else _followed(c, step, slot)
        last = c("and i8 {}, 63", end)
        at = c("add i64 {}, {}", c("mul i64 {}, 64", t), c("zext i8 {} to i64", last))
        if single:
            total.set(c("{} {} {}, {}", add, value, total.get(), c.element(value, "%values", at)))
        else:
            y = c.at(value, "%y", c.element("i32", "%columns", t, "i64"))
            own = c.at(value, "%values", c("mul i64 {}, {}", at, width))
            with c.loop(width) as k:
                to = c.at(value, y, k)
                c.store(value, c("{} {} {}, {}", add, value, c.load(value, to), c.element(value, own, k)), to)
    if single:
        c.store(value, total.get(), "%y")
    return c.text()


def _load_ranks(c: Code, columns: int) -> list[str]:
    """One, two or four registers of 64 ranks; nothing beyond the last is read."""
    slot = c.variable("[256 x i8]", "zeroinitializer").slot
    c.call("void", "llvm.memcpy.p0.p0.i64", ("ptr", slot), ("ptr", "%ranks"), ("i64", columns), ("i1", "false"))
    count = 1 if columns <= 64 else 2 if columns <= 128 else 4
    return [c.load(_BYTES, c.at("i8", slot, 64 * k), 1) for k in range(count)]


def _one_by_one(c: Code, columns: str, slot: str) -> str:
    """The ranks of the tree's columns."""
    with c.loop(64) as k:
        rank = c.element("i8", "%ranks", c.element("i8", columns, k, "i64"))
        c.store("i8", rank, c.at("i8", slot, k))
    return c.load(_BYTES, slot)


def _followed(c: Code, step: str, slot: str) -> str:
    """The leaf at the end of the steps."""
    c.store(_BYTES, step, slot)
    at = c.variable("i8", c.load("i8", slot))
    with c.loop_while(lambda: c("icmp slt i8 {}, 0", at.get())):
        at.set(c.element("i8", slot, c("zext i8 {} to i64", c("and i8 {}, 63", at.get()))))
    return at.get()


def _permuted(c: Code, table: str, index: str) -> str:
    return c.call(_BYTES, "llvm.x86.avx512.permvar.qi.512", (_BYTES, table), (_BYTES, index))


def _lookup(c: Code, tables: list[str], index: str) -> str:
    if len(tables) == 1:
        return _permuted(c, tables[0], index)
    pairs = [c.call(_BYTES, "llvm.x86.avx512.vpermi2var.qi.512", (_BYTES, tables[k]), (_BYTES, index), (_BYTES, tables[k + 1]))
             for k in range(0, len(tables), 2)]
    if len(pairs) == 1:
        return pairs[0]
    high = c("icmp slt {} {}, zeroinitializer", _BYTES, index)
    return c("select <64 x i1> {0}, {1} {2}, {1} {3}", high, _BYTES, pairs[1], pairs[0])
