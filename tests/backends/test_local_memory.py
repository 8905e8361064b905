"""Where local buffers live: results that become an output share its memory, if nothing else reads what may lie there."""
from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
import tilewright.ir.ops
from tests.backends.scalar_kernels import runnable
from tilewright.backends.llvm.local_memory import local_layout
from tilewright.backends.target import Target
from tilewright.compiler.schedule.rows import schedule_rows
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.expr import Expr, call, cast
from tilewright.ir.program import Compute, Program, compute, reduce
from tilewright.ir.types import F32, F64, DType, TensorType

N = 2000  # elements of a row: more than the stack takes


def softmax(n: int, read: str = "", dtype: DType = F32) -> Program:
    """Powers of x's rows times the inverse of their sum. read: where another input is read too."""
    x, z = (compute(name, F32, (3, n), lambda i, j: 0.0).buffer for name in "xz")
    more = {s: (lambda i, j: z[i, j]) if s == read else (lambda i, j: 0.0) for s in ("powers", "result")}
    moved = (lambda i, j: x[i, n - 1 - j]) if read == "moved" else (lambda i, j: x[i, j])
    top = compute("top", F32, (3,), lambda i: reduce("max", (n,), lambda r: x[i, r]))

    def power(i: Expr, j: Expr) -> Expr:
        return call("exp_nonpos", moved(i, j) - top.buffer[i]) + more["powers"](i, j)
    e = compute("powers", F32, (3, n), power)
    scale = compute("scale", F32, (3,), lambda i: 1.0 / reduce("sum", (n,), lambda r: e.buffer[i, r]))

    def result(i: Expr, j: Expr) -> Expr:
        y = e.buffer[i, j] * scale.buffer[i] + more["result"](i, j)
        return y if dtype is F32 else cast(y, F64)
    y = compute("y", dtype, (3, n), result)
    computes: tuple[Compute, ...] = (top, e, scale, y)
    return Program("softmax", (x, z) if read in more else (x,), (y.buffer,), computes)


@pytest.mark.parametrize(("n", "read", "dtype", "shared"), [
    (N, "", F32, True), (N, "powers", F32, True), (N, "result", F32, False), (N, "moved", F32, False), (N, "", F64, False),
    (64, "", F32, False)],
    ids=["long", "another in place", "another later", "another place", "another type", "short"])
def test_powers_lie_where_the_results_go(n: int, read: str, dtype: DType, shared: bool) -> None:
    layout = local_layout(schedule_rows(softmax(n, read, dtype), Target.parse("x86-64-v3")))
    assert layout.outputs == ({"powers": "y"} if shared else {})
    assert (layout.bytes == 0) == (shared or n == 64)


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("rows", [1, 37])
def test_values_of_long_rows(target: str, rows: int) -> None:
    """Between maps, so that the arena lets the softmax overwrite its input."""
    rng = np.random.default_rng(rows)
    w = rng.standard_normal((N, N)).astype("f4") / 20
    b = GraphBuilder("rows")
    x = b.input("x", TensorType(F32, (rows, N)))
    y = b.op("softmax", b.op("matmul", x, b.weight("w", w)), axis=1)
    graph = b.graph([b.op("matmul", y, b.weight("v", w))])
    given = rng.standard_normal((rows, N)).astype("f4")
    given[0, 3] = np.nan if rows > 1 else 5
    s = given.astype("f8") @ w.astype("f8")
    p = np.exp(s - s.max(1, keepdims=True))
    want = p / p.sum(1, keepdims=True) @ w.astype("f8")
    got = [np.asarray(tw.compile(graph, target=target, threads=t)(given)) for t in (1, 2)]
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_allclose(got[0], want, rtol=0, atol=1e-6)
