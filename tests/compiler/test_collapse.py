"""Collapsed programs: fewer axes, same elements."""
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from tilewright.compiler.collapse import collapse_axes
from tilewright.ir.expr import Buffer, Load, Var, call, select
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Compute, Program, compute, reduce
from tilewright.ir.types import F32, F64


def lines(p: Program) -> list[str]:
    return [x.strip() for x in str(collapse_axes(p)).splitlines()[1:-1]]


def test_contiguous_maps_become_one_loop() -> None:
    x = Buffer("x", F32, (1, 64, 56, 56))
    y = compute("y", F32, x.shape, lambda *i: call("neg", x[i]))
    assert str(collapse_axes(Program("neg", (x,), (y.buffer,), (y,)))) == (
        "program @neg(x: f32[200704]) -> (y: f32[200704]) {\n  y[i0<200704] = neg(x[i0])\n}")


def test_a_bias_keeps_its_axis() -> None:
    x, b = Buffer("x", F32, (2, 64, 7, 7)), Buffer("b", F32, (64,))
    y = compute("y", F32, x.shape, lambda n, c, h, w: x[n, c, h, w] + b[c])
    assert lines(Program("bias", (x, b), (y.buffer,), (y,))) == ["y[i0<2,i1<64,i2<49] = (x[i0,i1,i2] + b[i1])"]


def test_pointwise_convolution_merges_its_pixels() -> None:
    x, w = Buffer("x", F32, (1, 16, 7, 7)), Buffer("w", F32, (32, 16, 1, 1))
    y = compute("y", F32, (1, 32, 7, 7), lambda n, o, h, v: reduce(
        "sum", (16, 1, 1), lambda c, s, t: x[n, c, h + s, v + t] * w[o, c, s, t]))
    assert lines(Program("conv", (x, w), (y.buffer,), (y,))) == ["y[i0<32,i1<49] = sum(r0<16: (x[r0,i1] * w[i0,r0]))"]


def test_strided_inputs_keep_their_axes() -> None:
    x = Buffer("x", F32, (4, 6), (10, 1))
    y = compute("y", F32, x.shape, lambda i, j: call("neg", x[i, j]))
    assert lines(Program("p", (x,), (y.buffer,), (y,))) == ["y[i0<4,i1<6] = neg(x[i0,i1])"]


def test_rows_of_several_computes_merge_alike() -> None:
    x = Buffer("x", F32, (2, 3, 5))
    m = compute("m", F32, (2, 3), lambda i, j: reduce("max", (5,), lambda r: x[i, j, r]))
    y = compute("y", F32, x.shape, lambda i, j, k: x[i, j, k] - m.buffer[i, j])
    assert lines(Program("rows", (x,), (y.buffer,), (m, y))) == [
        "local m: f32[6]; m[i0<6] = max(r0<5: x[i0,r0])", "y[i0<6,i1<5] = (x[i0,i1] - m[i0])"]


def test_divided_axes_split() -> None:
    x = Buffer("x", F32, (28, 4, 9), (9, 252, 1))
    y = compute("y", F32, (112, 9), lambda i, j: x[i // 4, i % 4, j])
    assert lines(Program("shuffle", (x,), (y.buffer,), (y,))) == ["y[i0<28,i1<4,i2<9] = x[i1,i0,i2]"]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Maps and reductions over inputs with random strides, broadcasts, guards and divisions."""
    shape = tuple(draw(st.sampled_from([1, 2, 3, 4, 8])) for _ in range(draw(st.integers(0, 4))))
    inputs: list[Buffer] = []
    red = draw(st.sampled_from([(), (), (1,), (3,), (2, 3)]))

    def operand(index: tuple[Var, ...]) -> Load:
        keep = [draw(st.booleans()) for _ in index]
        dims = tuple(i.axis.extent if k else 1 for i, k in zip(index, keep, strict=True))
        order = draw(st.permutations(range(len(dims)))) if draw(st.booleans()) else range(len(dims))
        strides, step = [0] * len(dims), 1
        for k in reversed(order):
            strides[k] = 0 if draw(st.integers(0, 9)) == 0 else step
            step *= dims[k] + (1 if draw(st.integers(0, 4)) == 0 else 0)
        b = Buffer(f"x{len(inputs)}", F64, dims, tuple(strides))
        inputs.append(b)
        at = tuple(i if k else 0 for i, k in zip(index, keep, strict=True))
        if index and keep[-1] and draw(st.integers(0, 3)) == 0:
            j = index[-1] - 1
            return b.at((*at[:-1], j), j >= 0, 0.25)
        if index and keep[0] and draw(st.integers(0, 3)) == 0 and dims[0] % 2 == 0:
            b = Buffer(b.name, F64, (dims[0] // 2, 2, *dims[1:]), (2 * strides[0], strides[0], *strides[1:]))
            inputs[-1] = b
            return b[(index[0] // 2, index[0] % 2, *at[1:])]
        return b[at]

    def body(*i: Var):
        if not red:
            return operand(i) * operand(i) + (call("neg", operand(i)) if draw(st.booleans()) else 1.0)
        total = reduce("sum", red, lambda *r: operand((*i, *r)) * operand((*i, *r)))  # type: ignore[arg-type]
        return select(total < 0, 0.5, total) + operand(i)
    y = compute("y", F64, shape, body)  # type: ignore[arg-type]
    computes = [y]
    if shape and draw(st.booleans()):
        z = compute("z", F64, shape[:-1], lambda *i: reduce("sum", (shape[-1],), lambda r: y.buffer[(*i, r)]))
        computes.append(z)
    return Program("random", tuple(inputs), tuple(c.buffer for c in computes), tuple(computes))


def run(p: Program, memory: dict[str, np.ndarray]) -> list[np.ndarray]:
    arrays = {b.name: as_strided(memory[b.name], b.shape, [8 * s for s in b.strides]) for b in p.inputs}
    got = run_program(p, arrays)
    return [got[b.name].reshape(-1) for b in p.outputs]


@settings(max_examples=300, deadline=None)
@given(programs())
def test_collapsing_never_changes_results(p: Program) -> None:
    rng = np.random.default_rng(0)
    memory = {b.name: rng.standard_normal(1 + sum((n - 1) * s for n, s in zip(b.shape, b.strides, strict=True))) for b in p.inputs}
    q = collapse_axes(p)
    for a, b in zip(run(p, memory), run(q, memory), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)
    assert all(len(c.axes) <= len(d.axes) + 2 for c, d in zip(q.computes, p.computes, strict=True))
    assert collapse_axes(q).key() == q.key()


def test_a_result_keeps_its_strides() -> None:
    y = Buffer("y", F32, (2, 3, 4), (100, 4, 1))
    x = Buffer("x", F32, (2, 3, 4))
    c = compute("y", F32, y.shape, lambda *i: x[i])
    q = collapse_axes(Program("p", (x,), (y,), (Compute(y, c.axes, c.body),)))
    assert (q.outputs[0].shape, q.outputs[0].strides) == ((2, 12), (100, 1)) and q.inputs[0].shape in ((2, 12), (2, 3, 4))
