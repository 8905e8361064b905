"""The interpreter agrees with NumPy, in blocks too; guards, checks, identities and half floats follow their definitions."""
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tilewright.errors import InputError
from tilewright.ir import interpreter
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.expr import Buffer, Cast, Checked, call, cast, select
from tilewright.ir.interpreter import run_graph, run_program
from tilewright.ir.program import Compute, Program, compute, reduce
from tilewright.ir.types import BF16, BOOL, DTYPES, F16, F32, F64, I32, I64, U8, TensorType

X, W = Buffer("x", F32, (50, 300)), Buffer("w", F32, (300, 70))
RNG = np.random.default_rng(0)
ARRAYS = {"x": RNG.standard_normal((50, 300)).astype("f4"), "w": RNG.standard_normal((300, 70)).astype("f4")}


def run(c: Compute, **arrays: np.ndarray) -> np.ndarray:
    given = {k: a for k, a in {**ARRAYS, **arrays}.items() if k in {b.name for b in c.reads}}
    return run_program(Program("p", c.reads, (c.buffer,), (c,)), given)[c.buffer.name]


@pytest.mark.parametrize("points", [1, 7, 1000, 1 << 18])
def test_blocks_do_not_change_the_result(monkeypatch, points):
    monkeypatch.setattr(interpreter, "CHUNK_POINTS", points)
    x, w = Buffer("x", F32, (5, 11)), Buffer("w", F32, (11, 3))
    a, b = ARRAYS["x"][:5, :11], ARRAYS["w"][:11, :3]
    y = run(compute("y", F32, (5, 3), lambda i, j: call("max", reduce("sum", (11,), lambda k: x[i, k] * w[k, j]), 0.0)), x=a, w=b)
    np.testing.assert_allclose(y, np.maximum(a.astype("f8") @ b, 0), rtol=1e-6)


def test_matmul_and_row_reductions():
    y = run(compute("y", F32, (50, 70), lambda i, j: reduce("sum", (300,), lambda k: X[i, k] * W[k, j])))
    np.testing.assert_allclose(y, ARRAYS["x"].astype("f8") @ ARRAYS["w"], rtol=1e-5, atol=1e-5)
    y = run(compute("y", F32, (50, 300), lambda i, j: X[i, j] - reduce("max", (300,), lambda k: X[i, k])))
    np.testing.assert_array_equal(y, ARRAYS["x"] - ARRAYS["x"].max(1, keepdims=True))


def test_guarded_loads_do_not_touch_memory_outside():
    y = run(compute("y", F32, (302, 50), lambda i, j: X.at((j, i - 1), (i >= 1) & (i < 301), -1.0)))
    np.testing.assert_array_equal(y, np.pad(ARRAYS["x"], ((0, 0), (1, 1)), constant_values=-1).T)
    with pytest.raises(AssertionError, match="out of range"):
        run(compute("y", F32, (51,), lambda i: X[i, 0] + X[i, 1]))
    empty = Buffer("e", F32, (0,))
    y = run(compute("y", F32, (3,), lambda i: empty.at((i,), call("lt", i, 0), 7.0)), e=np.zeros(0, "f4"))
    np.testing.assert_array_equal(y, [7, 7, 7])


def test_checked_indices_wrap_and_refuse():
    at = Buffer("i", I64, (4,))
    c = compute("y", F32, (4,), lambda i: X[Checked(at[i], 50), 0])
    np.testing.assert_array_equal(run(c, i=np.array([0, -1, 3, 49])), ARRAYS["x"][[0, -1, 3, 49], 0])
    with pytest.raises(InputError, match="index 50 is out of range"):
        run(c, i=np.array([0, 1, 50, 2]))


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d is not BOOL], ids=str)
@pytest.mark.parametrize("kind", ["sum", "prod", "max", "min"])
def test_reductions_and_their_identities(kind, dtype):
    fold = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}[kind]
    for n in (0, 3):
        e = Buffer("e", dtype, (2, n))
        a = np.array([[1, 2, 3], [3, 2, 1]])[:, :n].astype(dtype.numpy)
        y = run(compute("y", dtype, (2,), lambda i, e=e, n=n: reduce(kind, (n,), lambda k: e[i, k])), e=a)
        if n:
            np.testing.assert_array_equal(y, fold(a.astype("f8"), axis=1).astype(dtype.numpy))
        elif kind in ("sum", "prod"):
            np.testing.assert_array_equal(y.astype("f8"), [float(kind == "prod")] * 2)
        else:
            lowest = -np.inf if dtype.is_float else np.iinfo(dtype.numpy).min
            highest = np.inf if dtype.is_float else np.iinfo(dtype.numpy).max
            assert (y == (lowest if kind == "max" else highest)).all()


def test_half_floats_round_after_each_operation():
    for d in (F16, BF16):
        s = Buffer("s", d, (8,))
        a = np.linspace(0.3, 3, 8).astype(d.numpy)
        y = run(compute("y", d, (8,), lambda i, s=s: call("exp", s[i]) * s[i] + 1), s=a)
        e = np.exp(a.astype("f4")).astype(d.numpy)
        p = (e.astype("f4") * a.astype("f4")).astype(d.numpy)
        np.testing.assert_array_equal(y, (p.astype("f4") + np.float32(1)).astype(d.numpy))
    assert y.dtype == ml_dtypes.bfloat16


def test_casts():
    s = Buffer("s", F32, (5,))
    a = np.array([-1.7, 0.0, 0.4, 255.9, np.nan], "f4")
    np.testing.assert_array_equal(run(compute("y", BOOL, (5,), lambda i: cast(s[i], BOOL)), s=a), [True, False, True, True, True])
    np.testing.assert_array_equal(run(compute("y", I32, (4,), lambda i: cast(s[i], I32)), s=a), [-1, 0, 0, 255])
    np.testing.assert_array_equal(run(compute("y", U8, (4,), lambda i: Cast(s[i], U8)), s=a)[1:], [0, 0, 255])
    b = Buffer("b", BOOL, (2,))
    np.testing.assert_array_equal(run(compute("y", F64, (2,), lambda i: cast(b[i], F64)), b=np.array([True, False])), [1.0, 0.0])


def test_scalars_select_and_empty_outputs():
    s = Buffer("s", F32, ())
    y = run(compute("y", F32, (), lambda: select(s[()] < 0, 0, s[()])), s=np.array(np.nan, "f4"))
    assert np.isnan(y) and y.shape == ()
    assert run(compute("y", F32, (0, 300), lambda i, j: X[i, j])).shape == (0, 300)


def test_graphs_run_with_other_weights_and_refuse_wrong_inputs():
    b = GraphBuilder()
    x = b.input("x", TensorType(F32, (2,)))
    y = b.op("relu", b.op("add", x, b.weight("w", np.array([1, -5], "f4"))))
    g = b.graph((y, x))
    out = run_graph(g, {"x": np.array([1, 2], "f4")})
    np.testing.assert_array_equal(out[y.name], [2, 0])
    np.testing.assert_array_equal(run_graph(g, {"x": np.zeros(2, "f4")}, {"w": np.array([3, 4], "f4")})[y.name], [3, 4])
    for bad in ({}, {"x": np.zeros(3, "f4")}, {"x": np.zeros(2)}):
        with pytest.raises(InputError, match="input %x"):
            run_graph(g, bad)
