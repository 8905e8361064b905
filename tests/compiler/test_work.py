"""Operations and bytes of tensor programs, counted by hand."""
from __future__ import annotations

from tilewright.compiler.work import Work, work
from tilewright.ir.expr import Buffer, Checked, call, cast, eq, select
from tilewright.ir.program import Compute, Program, compute, reduce
from tilewright.ir.types import F32, I64


def program(ins: list[Buffer], *computes: Compute) -> Program:
    return Program("p", tuple(ins), (computes[-1].buffer,), computes)


def test_matmul() -> None:
    x, w = Buffer("x", F32, (8, 64)), Buffer("w", F32, (64, 10))
    y = compute("y", F32, (8, 10), lambda i, j: reduce("sum", (64,), lambda k: x[i, k] * w[k, j]))
    assert work(program([x, w], y)) == Work(2 * 8 * 64 * 10, 4 * (8 * 64 + 64 * 10 + 8 * 10))


def test_decisions_and_indices_cost_nothing() -> None:
    x = Buffer("x", F32, (6,))
    y = compute("y", F32, (6,), lambda i: select(eq(x[i], 0.0), call("exp", x[i]), x[call("mod", i + 1, 6)]))
    assert work(program([x], y)).flops == 6


def test_only_rows_that_are_gathered_count() -> None:
    table, ids = Buffer("table", F32, (1000, 4)), Buffer("ids", I64, (3,))
    y = compute("y", F32, (3, 4), lambda i, j: table[Checked(cast(ids[i], I64), 1000), j])
    assert work(program([table, ids], y)) == Work(0, 3 * 4 * 4 + 3 * 8 + 3 * 4 * 4)


def test_broadcasts_are_read_once_and_locals_not_at_all() -> None:
    x, b = Buffer("x", F32, (5, 7)), Buffer("b", F32, (5, 7), (0, 1))
    h = compute("h", F32, (5, 7), lambda i, j: x[i, j] + b[i, j])
    y = compute("y", F32, (5, 7), lambda i, j: h.buffer[i, j] * 2.0)
    assert work(program([x, b], h, y)) == Work(2 * 35, 4 * (35 + 7 + 35))
