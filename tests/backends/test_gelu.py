"""gelu in f32 against f64, densely over every exponent: what docs/accuracy.md states of it."""
from __future__ import annotations

import math

import numpy as np
import pytest

from tests.backends.scalar_kernels import Compiled, Kernel, runnable
from tests.backends.test_scalar import LANES
from tilewright.ir.functions import FUNCTIONS
from tilewright.ir.types import F32

TABLES = ("x86-64-v3", "x86-64-v4")


def every_exponent(each: int = 160) -> np.ndarray:
    """f32 numbers of both signs: `each` random ones of every exponent, all subnormal ones included, and many in [-9, 9]."""
    rng = np.random.default_rng(5)
    bits = (np.arange(255, dtype=np.uint32)[:, None] << 23) + rng.integers(0, 1 << 23, (255, each), dtype=np.uint32)
    x = np.concatenate([bits.ravel().view(np.float32), np.linspace(0, 9, 100_001, dtype=np.float32), np.array([3.4028235e38], np.float32)])
    return np.concatenate([x, -x])


def run(target: str, x: np.ndarray, lanes: int) -> np.ndarray:
    k = Kernel("gelu", F32, F32, lanes)
    return Compiled([k], target).run(k, np.resize(x, -(-x.size // max(lanes, 1)) * max(lanes, 1)))[:x.size]


@pytest.mark.parametrize("target", runnable())
def test_error(target: str) -> None:
    x = every_exponent()
    got = run(target, x, LANES[target]).astype(np.float64)
    want = FUNCTIONS["gelu"].numpy(x.astype(np.float64))
    error = np.abs(got - want)
    normal = np.abs(want) > 1e-37
    ulps = error / np.spacing(np.minimum(np.abs(want), 3e38).astype(np.float32))

    def worst(where: np.ndarray) -> float:
        return float(ulps[where & normal].max())
    assert (error <= 1.2e-7 * np.abs(x) + 1e-44).all()
    assert (error[x < -4] <= 1.6e-8 * np.abs(x[x < -4])).all()
    assert worst(x > 0) <= 1.7 and worst((x < 0) & (x > -0.5)) <= 2.7
    assert worst((x <= -1) & (x > -3)) <= (14 if target in TABLES else 200)


@pytest.mark.parametrize("target", runnable())
def test_edges(target: str) -> None:
    x = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1e38, 5.75, 6.1, -1e38, -6.1, -20, 1e-45, -1e-45, -5.75], np.float32)
    got = run(target, x, LANES[target])
    assert (got[:2] == 0).all() and (np.signbit(got[:2]) == [False, True]).all()
    assert got[2] == math.inf and np.isnan(got[3:5]).all(), "as the formula: -inf * 0 is NaN"
    np.testing.assert_array_equal(got[5:8], x[5:8])
    assert (got[8:11] == 0).all() and (np.abs(got[11:13]) <= 2e-45).all() and abs(got[13]) <= 1e-7


@pytest.mark.parametrize("fn", ["gelu", "tanh", "exp", "exp_nonpos"])
@pytest.mark.parametrize("target", runnable())
def test_same_bits_for_any_number_of_lanes(target: str, fn: str) -> None:
    """An element's value does not depend on the vector that it is in: 240 elements as scalars, and in vectors of 5, 8, 16 and 20."""
    x = -np.abs(np.random.default_rng(3).normal(0, 3, 240)).astype(np.float32)
    x = x if fn == "exp_nonpos" else np.where(np.arange(240) % 2, x, -x)
    kernels = [Kernel(fn, F32, F32, lanes) for lanes in (0, 5, 8, 16, 20)]
    code = Compiled(kernels, target)
    first, *others = (code.run(k, x) for k in kernels)
    for got in others:
        np.testing.assert_array_equal(got, first)
