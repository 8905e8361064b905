"""Forests of unusual shape: tables of 10,000 columns, trees of 1,000 levels, of one leaf, one tree, many leaves. Full sizes are
measured by `python -m benchmarks.trees --shapes`."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.forest import Field, Forest, depths, predict
from tilewright.ir.ops.trees import random_forest, random_rows
from tilewright.ir.types import TensorType, dtype_of

RNG = np.random.default_rng(9)
WIDE = 10000


def wide_table(rows: int) -> np.ndarray:
    x = RNG.standard_normal((rows, WIDE)).astype(np.float32)
    x[RNG.random(x.shape) < 0.02] = np.nan
    return x


@pytest.fixture(scope="module")
def wide() -> tuple[np.ndarray, np.ndarray]:
    x = wide_table(300)
    return x, np.nan_to_num(x[:, ::100]).sum(1)


def equal(model: object, library: Callable[[np.ndarray], object], x: np.ndarray) -> None:
    exe = tw.compile(model, inputs=x, threads=1)
    for part in (x, x[:1], x[:7]):
        np.testing.assert_allclose(np.asarray(exe(part)), np.asarray(library(part)), rtol=0 if x.dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "forest", "boosting"])
def test_ten_thousand_columns(name: str, wide: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = wide
    if name == "lightgbm":
        m = pytest.importorskip("lightgbm").LGBMRegressor(n_estimators=9, num_leaves=15, verbose=-1, n_jobs=1, feature_fraction=0.1,
                                                          max_bin=15).fit(x, y)
        more = x.astype(np.float64)
        np.testing.assert_array_equal(np.asarray(tw.compile(m, inputs=more, threads=1)(more)), m.predict(more))
    elif name == "xgboost":
        m = pytest.importorskip("xgboost").XGBRegressor(n_estimators=4, max_depth=4, n_jobs=1, colsample_bytree=0.1, max_bin=15).fit(x, y)
    else:
        e = pytest.importorskip("sklearn.ensemble")
        m = e.RandomForestRegressor(20, max_features=50, n_jobs=1, random_state=0).fit(x, y)
        if name == "boosting":
            x = np.nan_to_num(x)
            m = e.GradientBoostingRegressor(n_estimators=10, max_features=50, random_state=0).fit(x, y)
    if name == "forest":  # means are divided in another order
        np.testing.assert_allclose(np.asarray(tw.compile(m, inputs=x, threads=1)(x)), m.predict(x), rtol=1e-14)
    else:
        equal(m, m.predict, x)


def compiled(f: Forest, features: int, dtype: type, rows: int) -> tw.Executable:
    b = GraphBuilder("forest")
    x = b.input("x", TensorType(dtype_of(dtype), (rows, features)))
    parts = [b.constant(a) for a in f.arrays[:4]]
    return tw.compile(b.graph((b.op("tree_ensemble", x, *parts, b.weight("values", f.values), b.constant(f.base)),)), threads=1)


@pytest.mark.parametrize(("trees", "leaves", "features"), [
    (60, 200, WIDE), (3, 1500, 5), (1, 4000, 5), (1, 1, 3), (40, 1, 3), (1, 2, 3), (100, 255, 20)],
    ids=["wide", "deep", "one_deep", "one_leaf", "leaves_only", "one_stump", "many"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_shapes(trees: int, leaves: int, features: int, dtype: type) -> None:
    """Against the op's meaning; deep trees have one long branch each."""
    kind = np.dtype(dtype)
    f = random_forest(RNG, kind, trees, leaves, features, unbalanced=features == 5)
    if features == 5:
        assert depths(f.nodes, f.trees[:1, 0])[0] > 1000
    assert len(f.nodes) == 0 or f.nodes[:, Field.FEATURE].max() < features
    x = random_rows(RNG, 700, features, kind)
    want = predict(x, f)
    for rows in (700, 1):
        np.testing.assert_array_equal(np.asarray(compiled(f, features, dtype, rows)(x[:rows])), want[:rows])


def test_a_library_with_deep_trees_and_with_none() -> None:
    lgb = pytest.importorskip("lightgbm")
    x = RNG.standard_normal((3000, 2))
    chain = lgb.LGBMRegressor(n_estimators=3, num_leaves=1200, min_child_samples=1, max_bin=2000, verbose=-1, n_jobs=1,
                              min_sum_hessian_in_leaf=0).fit(x, np.exp(3 * x[:, 0]))
    none = lgb.LGBMRegressor(n_estimators=3, min_child_samples=9999, verbose=-1, n_jobs=1).fit(x, x[:, 0])
    for m in (chain, none):
        equal(m, m.predict, x)
