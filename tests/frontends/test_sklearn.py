"""Every supported estimator of scikit-learn against the library: the graph by interpreter for all methods and both types of
input, native code for one row and many, in C and Fortran order."""
from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

import tilewright as tw
from tests.frontends.sklearn_models import Case, cases, fitted
from tilewright.compiler import frontends
from tilewright.compiler.frontends.rows import BLOCK, RowSource
from tilewright.ir.interpreter import run_graph

CASES = cases()
# in multiples of the largest result: f32 sums of a few dozen terms are added in another order; f64 alike
TOLERANCE = {np.dtype(np.float32): 5e-6, np.dtype(np.float64): 2e-12}


def of_library(model: object, method: str, x: np.ndarray) -> np.ndarray:
    if type(model).__name__ == "NMF" and len(x) > 1:  # over several rows, its stopping rule depends on all of them
        return np.concatenate([of_library(model, method, x[k:k + 1]) for k in range(len(x))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = getattr(model, method)(x)
    return y.toarray() if hasattr(y, "toarray") else np.asarray(y)


def compare(got: object, want: np.ndarray, dtype: np.dtype) -> None:
    assert isinstance(got, np.ndarray) and got.shape == want.shape
    if want.dtype.kind != "f":
        assert np.array_equal(got, want.astype(got.dtype) if want.dtype == bool else want)
        return
    assert got.dtype == want.dtype
    assert np.array_equal(np.isnan(got), np.isnan(want))
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite & ~np.isnan(want)], want[~finite & ~np.isnan(want)])
    assert np.abs(got - want, where=finite, out=np.zeros_like(want)).max() <= TOLERANCE[dtype] * np.abs(want[finite]).max()


IDS = [re.sub(r" at 0x[0-9a-f]+", "", c[0]) for c in CASES]  # the same in every process that collects them


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_graph_is_what_the_library_computes(case: Case, dtype: type) -> None:
    _, estimator, x, y, methods = case
    x = x.astype(dtype)
    model = fitted(estimator, x, y)
    for method in methods:
        source = frontends.load(model, [x], method)
        assert isinstance(source, RowSource)
        (got,) = run_graph(source.graph(len(x)).graph, {"x": x}).values()
        if source.boundary is not None:
            got = source.boundary.results(got)
        want = of_library(model, method, x)
        if "_log_" in method and dtype == np.float32:  # the logarithm of 1 - p has few digits where p is about 1
            got, want = np.exp(np.asarray(got)), np.exp(want)
        compare(got, want, x.dtype)


@pytest.mark.parametrize(("number", "case"), list(enumerate(CASES)), ids=IDS)
def test_native_code(number: int, case: Case) -> None:
    _, estimator, x, y, methods = case
    x = x.astype((np.float64, np.float32)[number % 2])
    model = fitted(estimator, x, y)
    many = np.concatenate([x] * (BLOCK // len(x) + 2))
    exe = tw.compile(model, inputs=x, method=methods[0], threads=1)
    want = of_library(model, methods[0], many)
    compare(exe(many), want, x.dtype)
    compare(exe(np.asfortranarray(many)), want, x.dtype)
    compare(exe(x[7:8]), want[7:8], x.dtype)
