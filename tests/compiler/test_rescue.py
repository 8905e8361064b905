"""`Rescue` nodes: the plain sum exactly where the value is not finite, under every kind of schedule."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.compiler.programs import program_inputs, random_inputs, run_native
from tilewright.backends.target import Target, runs_here
from tilewright.compiler.schedule.default import default_schedule
from tilewright.compiler.schedule.primitives import apply, to_text
from tilewright.compiler.schedule.random import random_steps
from tilewright.compiler.work import work
from tilewright.ir.expr import Buffer, Expr, call, cast
from tilewright.ir.interpreter import run_program
from tilewright.ir.kinds import cost
from tilewright.ir.program import Program, compute, program_text, reduce, rescue
from tilewright.ir.program_text import parse_program
from tilewright.ir.types import F16, F32, F64

M, K, N, Z = 11, 13, 37, 6
SEEDS = 16


def sums() -> Program:
    """A matrix product, rescued by another one, which stands in f64 and depends on both axes."""
    x, w, b = Buffer("x", F32, (M, K)), Buffer("w", F32, (K, N)), Buffer("b", F32, (N,))
    c, d = Buffer("c", F32, (M, Z)), Buffer("d", F32, (Z, N))

    def body(i: Expr, j: Expr) -> Expr:
        fast = reduce("sum", (K,), lambda k: x[i, k] * w[k, j])
        return call("max", rescue(fast, (Z,), lambda z: cast(c[i, z], F64) * cast(d[z, j], F64)) + b[j], 0.0)
    y = compute("y", F32, (M, N), body)
    return Program("sums", (x, w, b, c, d), (y.buffer,), (y,))


def maps() -> Program:
    """No reduction, f64, read transposed, the plain sum over two axes."""
    x, c = Buffer("x", F64, (N, M)), Buffer("c", F64, (M, 2, 3))
    y = compute("y", F64, (M, N), lambda i, j: rescue(1.0 / x[j, i], (2, 3), lambda p, q: c[i, p, q]) * 2.0)
    return Program("maps", (x, c), (y.buffer,), (y,))


def halves() -> Program:
    """Half floats, whose values are held in f32, and a plain sum over nothing."""
    x = Buffer("x", F16, (M, N))
    y = compute("y", F16, (M, N), lambda i, j: rescue(x[i, j] * x[i, j], (0,), lambda z: x[i, j]))
    return Program("halves", (x,), (y.buffer,), (y,))


def inputs(p: Program) -> dict[str, np.ndarray]:
    """Random ones; infinities, NaN and zeros in x, and in what rescues."""
    a = random_inputs(p, 3)
    a["x"][0, 0], a["x"][3, 5], a["x"][10, 7] = np.inf, np.nan, -np.inf
    if p.name == "maps":
        a["x"][2, 4] = a["x"][36, 10] = 0
        a["c"][4, 1, 0] = np.inf
    if p.name == "sums":
        a["c"][3, 1], a["d"][2, 8] = np.nan, np.inf
    if p.name == "halves":
        a["x"][5, 30] = 300  # its square is infinite in f16
    return a


def expected(p: Program, a: dict[str, np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        if p.name == "sums":
            fast = (a["x"][:, :, None].astype("f8") * a["w"]).sum(1)
            plain = (a["c"][:, :, None].astype("f8") * a["d"]).sum(1)
            return np.maximum(np.where(np.isfinite(fast), fast, plain) + a["b"], 0)
        if p.name == "maps":
            fast = 1 / a["x"].T
            return np.where(np.isfinite(fast), fast, a["c"].sum((1, 2))[:, None]) * 2
        fast = (a["x"].astype("f4") ** 2).astype("f2")  # every operation rounds
        return np.where(np.isfinite(fast), fast, np.float16(0))


@pytest.mark.parametrize("make", [sums, maps])
def test_every_schedule(make: Callable[[], Program]) -> None:
    p = make()
    a = inputs(p)
    want = expected(p, a)
    assert 0 < np.isfinite(want).sum() < want.size
    np.testing.assert_allclose(run_program(p, a)["y"], want, 1e-5, 1e-5)
    targets = [t for t in map(Target.parse, ("native", "x86-64", "x86-64-v3")) if runs_here(t)]
    for t in targets:
        np.testing.assert_allclose(run_native(default_schedule(p, t), t, a)["y"], want, 1e-5, 1e-5)
    for seed in range(SEEDS):
        steps = random_steps(p, seed)
        s = apply(p, steps)
        np.testing.assert_allclose(run_program(s.program, program_inputs(s, a))["y"], want, 1e-5, 1e-5, err_msg=to_text(steps))
        np.testing.assert_allclose(run_native(s, targets[seed % len(targets)], a)["y"], want, 1e-5, 1e-5, err_msg=to_text(steps))


def test_half_floats_and_empty_sums() -> None:
    p = halves()
    a, t = inputs(p), Target.host()
    got, want = run_native(default_schedule(p, t), t, a)["y"], expected(p, a)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(run_program(p, a)["y"], want)
    assert want[5, 30] == 0


def test_the_rare_part_costs_nothing_and_is_in_the_text() -> None:
    p = sums()
    x, w, b = p.inputs[:3]
    plain = compute("y", F32, (M, N), lambda i, j: call("max", reduce("sum", (K,), lambda k: x[i, k] * w[k, j]) + b[j], 0.0))
    q = Program("sums", (x, w, b), (plain.buffer,), (plain,))
    assert work(p) == work(q) and cost(p.computes[0].body) == cost(q.computes[0].body)
    text = program_text(p, canonical=True)
    assert "rescue(sum(" in text and program_text(parse_program(text), canonical=True) == text
