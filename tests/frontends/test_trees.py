"""Compiled trees equal the library's own answers, on data with everything that can be in a table: NaN, infinities, zeros,
numbers next to thresholds, known and unknown categories. One row and many, f32 and f64, any layout in memory."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.machines import targets

RNG = np.random.default_rng(7)
FEATURES, CATEGORY = 8, 5
X = RNG.standard_normal((1500, FEATURES))
X[RNG.random(X.shape) < 0.1] = 0
HOLES = np.where(RNG.random(X.shape) < 0.1, np.nan, X)
HOLES[:, CATEGORY] = RNG.integers(0, 40, len(X))
Y = np.nan_to_num(X[:, 0] ** 2 + X[:, 1] * X[:, 2] + (X[:, CATEGORY] > 0)) + RNG.standard_normal(len(X)) / 4
CLASS = np.digitize(Y, np.quantile(Y, [0.3, 0.6]))
CLEAN32 = X.astype("f4").astype("f8")  # where both types are to give equal answers


def rows(special: bool = True, infinite: bool = True) -> np.ndarray:
    """More than a block of rows, and a part of one."""
    x = np.concatenate([HOLES[:500] if special else CLEAN32[:500], RNG.standard_normal((200, FEATURES)) * 3])
    if special:
        odd = np.array([np.nan, 0, -0.0, 1e-36, -1e-36, 3, 45, 2.7, -1, 1e6, *((np.inf, -np.inf) if infinite else ())])
        x[200:400] = np.where(RNG.random((200, FEATURES)) < 0.5, RNG.choice(odd, (200, FEATURES)), x[200:400])
    return x


def same(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    assert got.shape == want.shape
    if not tolerance or want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * float(np.abs(want).max(initial=0)))


def check(model: object, method: str, library: Callable[[np.ndarray], object], x: np.ndarray, tolerance: float = 0,
          **options: object) -> None:
    """All rows, some, and one."""
    exe = tw.compile(model, inputs=x[:3], method=method, **options)  # pyright: ignore[reportArgumentType]
    for part in (x, x[:60], x[100:101], x[:0], np.asfortranarray(x[:70]), x[::2]):
        want = np.asarray(library(np.ascontiguousarray(part))) if len(part) else np.zeros((0, *np.asarray(library(x[:2])).shape[1:]))
        same(np.asarray(exe(part)), want, tolerance)


# -- LightGBM ------------------------------------------------------------------------------------------------------------------
def booster(parameters: Mapping[str, object], y: np.ndarray = Y, rounds: int = 8, category: bool = True, **data: object):
    lgb = pytest.importorskip("lightgbm")
    given = {"num_leaves": 20, "min_data_in_leaf": 5, "verbose": -1, "num_threads": 1, "seed": 1, **parameters}
    return lgb.train(given, lgb.Dataset(HOLES, y, categorical_feature=[CATEGORY] if category else [], **data), rounds)


POSITIVE, UNIT = np.exp(Y / 4), 1 / (1 + np.exp(-Y))
LIGHTGBM = {
    "regression": ({}, Y), "sqrt": ({"objective": "regression", "reg_sqrt": True}, Y), "l1": ({"objective": "regression_l1"}, Y),
    "huber": ({"objective": "huber"}, Y), "fair": ({"objective": "fair"}, Y), "quantile": ({"objective": "quantile", "alpha": 0.3}, Y),
    "mape": ({"objective": "mape"}, POSITIVE), "poisson": ({"objective": "poisson"}, POSITIVE), "gamma": ({"objective": "gamma"}, POSITIVE),
    "tweedie": ({"objective": "tweedie"}, POSITIVE), "binary": ({"objective": "binary", "sigmoid": 0.7}, CLASS > 0),
    "multiclass": ({"objective": "multiclass", "num_class": 3}, CLASS), "ova": ({"objective": "multiclassova", "num_class": 3}, CLASS),
    "xentropy": ({"objective": "cross_entropy"}, UNIT), "xentlambda": ({"objective": "cross_entropy_lambda"}, UNIT),
    "zero_as_missing": ({"zero_as_missing": True}, Y), "no_missing": ({"use_missing": False}, Y), "dart": ({"boosting": "dart"}, Y),
    "forest": ({"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, Y), "goss": ({"data_sample_strategy": "goss"}, Y),
    "stumps": ({"num_leaves": 2}, Y), "wide": ({"num_leaves": 150, "min_data_in_leaf": 1}, Y), "extra": ({"extra_trees": True}, Y)}


@pytest.mark.parametrize("name", LIGHTGBM)
def test_lightgbm_objectives(name: str) -> None:
    parameters, y = LIGHTGBM[name]
    b = booster(parameters, np.asarray(y, float))
    check(b, "predict", b.predict, rows(), 1e-12)
    check(b, "raw_score", lambda a: b.predict(a, raw_score=True), rows().astype("f4"))


def test_lightgbm_leaves_rounds_and_files(tmp_path: Path) -> None:
    b = booster({})
    x = rows()
    check(b, "pred_leaf", lambda a: b.predict(a, pred_leaf=True), x)
    check(b, "predict", lambda a: b.predict(a, start_iteration=2, num_iteration=3), x, iterations=(2, 5))
    b.save_model(tmp_path / "m.txt")
    same(tw.compile(tmp_path / "m.txt")(x), b.predict(x), 0)  # pyright: ignore
    (tmp_path / "cut.txt").write_text((tmp_path / "m.txt").read_text()[:3000])
    with pytest.raises(tw.ModelError, match="end of trees"):
        tw.compile(tmp_path / "cut.txt")


def test_lightgbm_estimators() -> None:
    lgb = pytest.importorskip("lightgbm")
    x = rows()
    more = {"n_estimators": 6, "verbose": -1, "n_jobs": 1}
    for y in (CLASS, CLASS > 0, np.array([10, -3, 7])[CLASS]):
        m = lgb.LGBMClassifier(**more).fit(HOLES, y)
        check(m, "predict", m.predict, x)
        check(m, "predict_proba", m.predict_proba, x, 1e-12)
    m = lgb.LGBMRanker(**more).fit(HOLES, CLASS, group=[100] * 15)
    check(m, "predict", m.predict, x)
    m = lgb.LGBMRegressor(**{**more, "n_estimators": 60}).fit(HOLES[:900], Y[:900], eval_set=[(HOLES[900:], -Y[900:])],
                                                             callbacks=[lgb.early_stopping(2, verbose=False)])
    assert 0 < m.best_iteration_ < 60
    check(m, "predict", m.predict, x)


@pytest.mark.parametrize("parameters", [{}, {"objective": "binary"}, {"objective": "multiclass", "num_class": 3}, {"linear_lambda": 0.1}],
                         ids=["regression", "binary", "multiclass", "ridge"])
def test_lightgbm_linear_trees(parameters: dict[str, object]) -> None:
    """NaN in what a leaf's model reads gives the leaf's plain value."""
    y = {"binary": CLASS > 0, "multiclass": CLASS}.get(str(parameters.get("objective")), Y)
    b = booster({"linear_tree": True, **parameters}, np.asarray(y, float), category=False)
    assert "is_linear=1" in b.model_to_string()
    check(b, "predict", b.predict, rows(infinite=False), 1e-12)
    check(b, "raw_score", lambda a: b.predict(a, raw_score=True), rows(infinite=False).astype("f4"), 1e-12)
    check(b, "pred_leaf", lambda a: b.predict(a, pred_leaf=True), rows())
    x = rows()
    got, want = np.asarray(tw.compile(b, inputs=x, method="raw_score")(x)), b.predict(x, raw_score=True)
    assert np.isinf(want).any()
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * np.abs(want[np.isfinite(want)]).max())


def test_lightgbm_refusals() -> None:
    lgb = pytest.importorskip("lightgbm")
    with pytest.raises(tw.UnsupportedError, match="predict_proba"):
        tw.compile(booster({}), inputs=HOLES, method="predict_proba")
    with pytest.raises(tw.ModelError, match="not fitted"):
        tw.compile(lgb.LGBMRegressor(), inputs=X)


def test_lightgbm_names_of_classes() -> None:
    lgb = pytest.importorskip("lightgbm")
    m = lgb.LGBMClassifier(n_estimators=2, verbose=-1).fit(X, np.array(["a", "b", "c"])[CLASS])
    for x in (X[:1], X[:50]):
        np.testing.assert_array_equal(np.asarray(tw.compile(m, inputs=x)(x)), m.predict(x))


# -- XGBoost -------------------------------------------------------------------------------------------------------------------
XGBOOST = {
    "reg:squarederror": Y, "reg:absoluteerror": Y, "reg:pseudohubererror": Y, "reg:squaredlogerror": POSITIVE, "reg:gamma": POSITIVE,
    "reg:tweedie": POSITIVE, "count:poisson": POSITIVE, "reg:logistic": UNIT, "binary:logistic": CLASS > 0, "binary:logitraw": CLASS > 0,
    "binary:hinge": CLASS > 0, "multi:softprob": CLASS, "multi:softmax": CLASS, "survival:cox": POSITIVE}


@pytest.mark.parametrize("name", XGBOOST)
def test_xgboost_objectives(name: str) -> None:
    xgb = pytest.importorskip("xgboost")
    parameters = {"objective": name, "max_depth": 5, "nthread": 1, **({"num_class": 3} if name.startswith("multi") else {})}
    b = xgb.train(parameters, xgb.DMatrix(HOLES, XGBOOST[name]), 8)
    x = rows(infinite=False)
    check(b, "raw_score", lambda a: b.predict(xgb.DMatrix(a), output_margin=True), x.astype("f4"))
    check(b, "predict", lambda a: b.predict(xgb.DMatrix(a)), x, 1e-6)


@pytest.mark.parametrize("more", [{"booster": "dart", "rate_drop": 0.3}, {"num_parallel_tree": 3, "subsample": 0.5},
                                  {"tree_method": "exact"}, {"grow_policy": "lossguide", "max_leaves": 9, "max_depth": 0}])
def test_xgboost_boosters(more: dict[str, object], tmp_path: Path) -> None:
    xgb = pytest.importorskip("xgboost")
    b = xgb.train({"nthread": 1, **more}, xgb.DMatrix(HOLES, Y), 6)
    x = rows(infinite=False).astype("f4")
    check(b, "predict", lambda a: b.predict(xgb.DMatrix(a)), x)
    check(b, "pred_leaf", lambda a: b.predict(xgb.DMatrix(a), pred_leaf=True), x)
    check(b, "predict", lambda a: b.predict(xgb.DMatrix(a), iteration_range=(1, 4)), x, iterations=(1, 4))
    for suffix in ("json", "ubj"):
        b.save_model(tmp_path / f"m.{suffix}")
        same(tw.compile(tmp_path / f"m.{suffix}")(x), b.predict(xgb.DMatrix(x)), 0)  # pyright: ignore


def test_xgboost_estimators_and_categories() -> None:
    xgb = pytest.importorskip("xgboost")
    x = rows(infinite=False)
    x[:, CATEGORY] = RNG.integers(0, 40, len(x))
    x[::5, CATEGORY] = np.nan
    types = ["c" if k == CATEGORY else "q" for k in range(FEATURES)]
    for most in (1, 60):  # one category against the rest, and sets
        m = xgb.XGBRegressor(n_estimators=5, n_jobs=1, enable_categorical=True, feature_types=types, max_cat_to_onehot=most).fit(HOLES, Y)
        check(m, "predict", m.predict, x)
    for y in (CLASS, CLASS > 0):
        m = xgb.XGBClassifier(n_estimators=5, n_jobs=1).fit(HOLES, y)
        check(m, "predict", m.predict, x)
        check(m, "predict_proba", m.predict_proba, x, 1e-6)
    m = xgb.XGBRegressor(n_estimators=5, n_jobs=1, missing=0.0).fit(X, Y)
    check(m, "predict", m.predict, x)
    m = xgb.XGBRegressor(n_estimators=5, n_jobs=1).fit(X, np.stack([Y, -Y], 1))
    check(m, "predict", m.predict, x)
    m = xgb.XGBRegressor(n_estimators=50, n_jobs=1, early_stopping_rounds=2)
    m.fit(X[:900], Y[:900], eval_set=[(X[900:], -Y[900:])], verbose=False)
    check(m, "predict", m.predict, x)


def test_xgboost_refusals() -> None:
    xgb = pytest.importorskip("xgboost")
    with pytest.raises(tw.UnsupportedError, match="gblinear"):
        tw.compile(xgb.train({"booster": "gblinear"}, xgb.DMatrix(X, Y), 2), inputs=X)
    m = xgb.XGBRegressor(n_estimators=2, multi_strategy="multi_output_tree").fit(X, np.stack([Y, -Y], 1))
    with pytest.raises(tw.UnsupportedError, match="multi_output_tree"):
        tw.compile(m, inputs=X)


# -- scikit-learn ----------------------------------------------------------------------------------------------------------------
def estimators() -> dict[str, tuple[object, tuple[str, ...], np.ndarray, bool]]:
    """name -> unfitted model, methods, target, whether it takes NaN"""
    from sklearn import ensemble as e
    from sklearn import tree as t
    both = np.stack([Y, -2 * Y], 1)
    c, r = ("predict", "predict_proba", "apply"), ("predict", "apply")
    s = {"n_estimators": 6, "random_state": 0}
    return {
        "tree": (t.DecisionTreeRegressor(random_state=0), r, Y, True),
        "tree_classes": (t.DecisionTreeClassifier(max_depth=6), c, CLASS, True),
        "stump": (t.DecisionTreeRegressor(max_depth=1), r, Y, True), "leaf": (t.DecisionTreeRegressor(max_leaf_nodes=2), r, Y * 0, True),
        "extra_tree": (t.ExtraTreeRegressor(max_depth=9, random_state=0), r, Y, False),
        "tree_two": (t.DecisionTreeRegressor(max_depth=5), r, both, True),
        "forest": (e.RandomForestRegressor(**s), r, Y, True), "forest_two": (e.RandomForestRegressor(**s, max_depth=5), r, both, True),
        "forest_classes": (e.RandomForestClassifier(**s, max_depth=7), c, np.array([9, 4, 5])[CLASS], True),
        "extra": (e.ExtraTreesRegressor(**s), r, Y, True), "extra_classes": (e.ExtraTreesClassifier(**s), c, CLASS, True),
        "boosting": (e.GradientBoostingRegressor(**s), r, Y, False),
        "boosting_two": (e.GradientBoostingClassifier(**s), (*c, "decision_function"), CLASS > 0, False),
        "boosting_exp": (e.GradientBoostingClassifier(**s, loss="exponential"), c[:2], CLASS > 0, False),
        "boosting_zero": (e.GradientBoostingRegressor(**s, init="zero", loss="huber"), r, Y, False),
        "boosting_three": (e.GradientBoostingClassifier(**s), (*c, "decision_function"), CLASS, False),
        "hist": (e.HistGradientBoostingRegressor(max_iter=8), ("predict",), Y, True),
        "hist_poisson": (e.HistGradientBoostingRegressor(max_iter=8, loss="poisson"), ("predict",), POSITIVE, True),
        "hist_two": (e.HistGradientBoostingClassifier(max_iter=8), (*c[:2], "decision_function"), CLASS > 0, True),
        "hist_three": (e.HistGradientBoostingClassifier(max_iter=8), (*c[:2], "decision_function"), CLASS, True),
        "isolation": (e.IsolationForest(**s), ("predict", "decision_function", "score_samples"), Y, True),
        "isolation_some": (e.IsolationForest(**s, max_features=3), ("decision_function",), Y, True)}


SKLEARN = ["tree", "tree_classes", "stump", "leaf", "extra_tree", "tree_two", "forest", "forest_two", "forest_classes", "extra",
           "extra_classes", "boosting", "boosting_two", "boosting_exp", "boosting_zero", "boosting_three", "hist", "hist_poisson",
           "hist_two", "hist_three", "isolation", "isolation_some"]


@pytest.mark.parametrize("name", SKLEARN)
def test_sklearn(name: str) -> None:
    pytest.importorskip("sklearn")
    model, methods, y, holes = estimators()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = model.fit(HOLES if holes else X, y)  # pyright: ignore
        for k, method in enumerate(methods):
            x = rows(special=holes, infinite=name.startswith("hist")).astype("f8" if k % 2 else "f4")
            check(m, method, getattr(m, method), x, 1e-12)


def test_sklearn_refusals() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    linear = pytest.importorskip("sklearn.linear_model")
    with pytest.raises(tw.ModelError, match="not fitted"):
        tw.compile(ensemble.RandomForestRegressor(), inputs=X)
    m = ensemble.HistGradientBoostingRegressor(max_iter=2, categorical_features=[CATEGORY]).fit(HOLES, Y)
    with pytest.raises(tw.UnsupportedError, match="categorical_features"):
        tw.compile(m, inputs=X)
    m = ensemble.GradientBoostingRegressor(n_estimators=2, init=linear.LinearRegression()).fit(X, Y)
    with pytest.raises(tw.UnsupportedError, match="LinearRegression"):
        tw.compile(m, inputs=X)


# -- engines and their surroundings ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", targets())
def test_every_level_gives_the_same_bits(target: tw.Target) -> None:
    x = rows()
    for parameters in ({}, {"num_leaves": 70}, {"objective": "multiclass", "num_class": 3, "num_leaves": 7}):
        b = booster(parameters, CLASS if "num_class" in parameters else Y, 5)
        check(b, "raw_score", lambda a, b=b: b.predict(a, raw_score=True), x, target=target)


def test_threads_and_saved_models_give_the_same_bits(tmp_path: Path) -> None:
    b, x = booster({}, rounds=60), np.concatenate([rows()] * 6)
    want = b.predict(x)
    one, two = (tw.compile(b, inputs=x, threads=n) for n in (1, 2))
    two.save(tmp_path / "m.twx")
    for exe in (one, two, tw.load(tmp_path / "m.twx")):
        np.testing.assert_array_equal(exe(x), want)
        y = np.empty(len(x))
        exe.run_into(y, x)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(exe.run({"x": x[:5]})["y"], want[:5])
    with pytest.raises(tw.InputError, match="float32"):
        one(x.astype("f4"))
    with pytest.raises(tw.InputError, match=r"\[rows,8\]"):
        one(x[:, :5])


def test_leaf_values_are_weights() -> None:
    lgb = pytest.importorskip("lightgbm")
    b, x = booster({"boost_from_average": False}, rounds=5), rows()
    exe = tw.compile(b, inputs=x)
    again = b.refit(HOLES, -Y, decay_rate=0.3)
    values = [t["leaf_value"] for t in _leaves(again.dump_model())]
    exe.update_weights({"leaf_values": np.array(values)[:, None]})
    np.testing.assert_array_equal(exe(x), again.predict(x))
    np.testing.assert_array_equal(exe(x[:1]), again.predict(x[:1]))
    assert lgb


def _leaves(model: dict) -> list[dict]:
    """In the order of the trees and of their leaves."""
    found: list[dict] = []

    def visit(n: dict) -> list[dict]:
        return [n] if "leaf_index" in n or "leaf_value" in n else visit(n["left_child"]) + visit(n["right_child"])
    for t in model["tree_info"]:
        found += sorted(visit(t["tree_structure"]), key=lambda n: n.get("leaf_index", 0))
    return found
