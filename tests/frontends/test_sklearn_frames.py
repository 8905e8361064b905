"""Data frames, strings, names of classes; what is refused, and how; saving; functions that can be traced and those that cannot."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pd = pytest.importorskip("pandas")

from sklearn import compose, decomposition, ensemble, impute, linear_model, pipeline, preprocessing, svm  # noqa: E402
from sklearn.base import BaseEstimator, TransformerMixin  # noqa: E402

import tilewright as tw  # noqa: E402
from tilewright.compiler import frontends  # noqa: E402
from tilewright.compiler.frontends.rows import RowSource  # noqa: E402
from tilewright.errors import InputError, ModelError, UnsupportedError  # noqa: E402
from tilewright.ir.interpreter import run_graph  # noqa: E402

RNG = np.random.default_rng(3)
ROWS = 300
CITIES = np.array(["oslo", "rome", "lima", "cairo"])
PETS = np.array(["cat", "dog"])


def frame(rows: int = ROWS, missing: bool = True):
    d = pd.DataFrame(RNG.standard_normal((rows, 3)), columns=["a", "b", "c"])
    d["unused"] = np.arange(rows)
    d["city"] = CITIES[RNG.integers(0, 4, rows)]
    d["n"] = RNG.integers(0, 4, rows)
    d["pet"] = PETS[RNG.integers(0, 2, rows)].astype(object)
    if missing:
        d.loc[::7, "a"] = np.nan
        d.loc[::5, "pet"] = None
    return d


def target(d) -> np.ndarray:
    return d["b"].to_numpy() + (d["city"] == "rome").to_numpy() + 0.1 * d["n"].to_numpy()


def model(last: object = None) -> pipeline.Pipeline:
    pet = pipeline.make_pipeline(impute.SimpleImputer(strategy="most_frequent"), preprocessing.OrdinalEncoder())
    columns = compose.ColumnTransformer([
        ("num", pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler()), ["a", "b"]),
        ("city", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["city"]), ("n", preprocessing.OneHotEncoder(), ["n"]),
        ("pet", pet, ["pet"]),
        ("target", preprocessing.TargetEncoder(random_state=0), ["city", "n"])])
    return pipeline.make_pipeline(columns, linear_model.Ridge() if last is None else last)


def test_frames_with_strings_and_unknown_ones(tmp_path: Path) -> None:
    d = frame()
    m = model().fit(d, target(d))
    exe = tw.compile(m, inputs=d, threads=1)
    assert [c.name for c in exe.boundary.columns] == ["a", "b", "city", "n", "pet"]  # type: ignore[attr-defined]
    new = frame(700)
    new.loc[::11, "city"] = "paris"
    for part in (new, new[:1], new[["pet", "n", "city", "b", "a"]]):
        want = m.predict(new[:len(part)])
        assert np.allclose(np.asarray(exe(part)), want, rtol=1e-12, atol=1e-12)
    exe.save(tmp_path / "m.twx")
    assert np.array_equal(np.asarray(tw.load(tmp_path / "m.twx")(new)), np.asarray(exe(new)))


def test_arrays_of_objects_by_position() -> None:
    x = np.array([["a", 1.5], ["b", 2.0], ["a", -1.0], ["c", 0.0]] * 5, object)
    m = pipeline.make_pipeline(compose.ColumnTransformer([("s", preprocessing.OneHotEncoder(handle_unknown="ignore"), [0])],
                                                         remainder="passthrough"), linear_model.LinearRegression())
    m.fit(x, np.arange(len(x)))
    exe = tw.compile(m, inputs=x, threads=1)
    x[3, 0] = "new"
    assert np.allclose(np.asarray(exe(x)), m.predict(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("last", [linear_model.LogisticRegression(), ensemble.RandomForestClassifier(5, random_state=0)])
def test_classes_with_names(last: object) -> None:
    d = frame()
    y = np.where(target(d) > 0.5, "high", "low")
    m = model(last).fit(d, y)
    got = np.asarray(tw.compile(m, inputs=d, threads=1)(d))
    assert np.array_equal(got, m.predict(d))
    p = np.asarray(tw.compile(m, inputs=d, method="predict_proba", threads=1)(d))
    assert np.allclose(p, m.predict_proba(d), rtol=1e-12, atol=1e-12)


def test_trees_on_frames_and_named_classes() -> None:
    d = frame(missing=False)[["a", "b", "c"]]
    y = np.where(d["a"] > 0, "up", "down")
    m = ensemble.RandomForestClassifier(5, random_state=0).fit(d, y)
    assert np.array_equal(np.asarray(tw.compile(m, inputs=d, threads=1)(d)), m.predict(d))


def test_unknown_strings_are_errors_where_the_library_raises() -> None:
    d = pd.DataFrame({"s": ["x", "y", "x", "y"]})
    m = preprocessing.OrdinalEncoder().fit(d)
    exe = tw.compile(m, inputs=d, method="transform", threads=1)
    with pytest.raises(InputError, match="'s' holds 'z' in row 1"):
        exe(pd.DataFrame({"s": ["x", "z"]}))
    with pytest.raises(InputError, match="no column 's'"):
        exe(pd.DataFrame({"t": ["x"]}))


class Own(BaseEstimator, TransformerMixin):
    def fit(self, x: np.ndarray, y: object = None) -> Own:
        self.n_features_in_ = x.shape[1]
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        return x


X = RNG.standard_normal((40, 4))
Y = (X[:, 0] > 0).astype(int)


@pytest.mark.parametrize(("estimator", "method", "message"), [
    (svm.SVC(), "predict_proba", "SVC: method='predict_proba' is not compiled"),
    (linear_model.Ridge(), "transform", "Ridge: method='transform' is not compiled; expected one of 'predict'"),
    (pipeline.make_pipeline(Own(), linear_model.Ridge()), "predict", "Own is no estimator of scikit-learn"),
    (preprocessing.SplineTransformer(extrapolation="error"), "transform", "SplineTransformer: extrapolation='error' is not compiled"),
    (impute.KNNImputer(weights=np.sqrt), "transform", "KNNImputer: weights="),
    (decomposition.LatentDirichletAllocation(2, max_iter=1), "transform", "LatentDirichletAllocation is not compiled: each row is"),
])
def test_refusals_name_estimator_and_reason(estimator: BaseEstimator, method: str, message: str) -> None:
    estimator.fit(np.abs(X), Y)  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedError) as e:
        tw.compile(estimator, inputs=X, method=method)
    assert message in str(e.value)


def test_models_that_are_not_fitted() -> None:
    with pytest.raises(ModelError, match="StandardScaler is not fitted"):
        tw.compile(preprocessing.StandardScaler(), inputs=X, method="transform")


def test_strings_that_nothing_encodes() -> None:
    d = frame(missing=False)
    m = preprocessing.StandardScaler().fit(d[["a", "b"]])
    bad = d[["a", "b"]].assign(b="x")
    with pytest.raises(UnsupportedError, match="column 'b' holds strings"):
        tw.compile(m, inputs=bad, method="transform")


def test_check_lists_everything() -> None:
    union = pipeline.make_union(Own(), impute.KNNImputer(weights=np.sqrt), preprocessing.StandardScaler())
    m = pipeline.make_pipeline(union, preprocessing.SplineTransformer(extrapolation="error"), linear_model.Ridge()).fit(X, Y)
    found = [str(f) for f in tw.check(m)]
    assert len(found) == 3
    assert found[0].startswith("Pipeline.featureunion.own: ") and "KNNImputer: weights=" in found[1] and "extrapolation" in found[2]
    assert tw.check(model().fit(frame(), target(frame()))) == [], "all of it is supported"


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "tabular.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[1].split("```")[0], {})
    assert tw.load("wine.twx").outputs[0].name == "y"


def haversine(x: np.ndarray) -> np.ndarray:
    """Kilometres between two places, of degrees."""
    a, b, c, d = (np.radians(x[:, k]) for k in range(4))
    h = np.sin((c - a) / 2) ** 2 + np.cos(a) * np.cos(c) * np.sin((d - b) / 2) ** 2
    return 6371 * 2 * np.arctan2(np.sqrt(h), np.sqrt(1 - h))


def replaced(x: np.ndarray) -> np.ndarray:
    y = x.copy()
    y[:, 1] = np.log1p(np.abs(y[:, 1]))
    return y


@pytest.mark.parametrize("f", [
    lambda x: np.hstack([x[:, :2] ** 2, np.log1p(np.abs(x))]), lambda x: np.hypot(x[:, 0], x[:, 1]),
    lambda x: np.stack([x.sum(axis=1), x.max(1), np.linalg.norm(x, axis=1)], axis=1), lambda x: np.floor(x * 3) % 7 // 2,
    lambda x: (x > 0.5) & (x < 1), lambda x: np.where(np.isin(np.round(x), [0, 1]), x, -1), lambda x: x[:, [2, 0]] * x[:, 1:2],
    lambda x: np.minimum(x, 0.3).clip(-0.5, None), haversine, lambda x: np.arctan2(x[:, 0], x[:, 1]),
    lambda x: np.select([x[:, 0] < -0.5, x[:, 0] < 0.5], [x[:, 1], 2 * x[:, 2]], default=-1.0),
    lambda x: np.digitize(x, [1.0, 0.2, -1.0]), lambda x: np.interp(x, [-1.0, 0, 2], [3.0, 1, 5]),
    lambda x: x @ np.arange(8.0).reshape(4, 2),
    lambda x: np.column_stack([x.std(axis=1), np.var(x, axis=1), np.ptp(x, axis=1), np.average(x, axis=1, weights=[1, 2, 3, 4])]),
    lambda x: np.hstack([np.diff(x, axis=1), np.cumsum(x, axis=1), np.ones_like(x)]), lambda x: np.argmax(x, axis=1),
    lambda x: np.count_nonzero(x > 0, axis=1), lambda x: np.fmax(x, np.where(x > 0, np.nan, 0.1)), lambda x: np.any(x > 1, axis=1),
    lambda x: np.copysign(x, -x) + np.heaviside(x, 0.5) + np.logaddexp(x, 1.0), replaced,
    lambda x: np.searchsorted([-1.0, 0, 1], x[:, 0]).reshape(-1, 1), lambda x: np.exp2(x) + np.log2(np.abs(x) + 1) + np.square(x)])
def test_traced_functions(f: Callable[[np.ndarray], np.ndarray]) -> None:
    m = preprocessing.FunctionTransformer(f).fit(X)
    source = frontends.load(m, [X], "transform")
    assert isinstance(source, RowSource)
    (got,) = run_graph(source.graph(len(X)).graph, {"x": X}).values()
    want = np.asarray(m.transform(X), np.float64)
    assert np.allclose(got, want.reshape(len(X), -1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("f", [
    lambda d: np.sqrt((d["a"] - d["b"]) ** 2 + d["c"] ** 2), lambda d: d[["c", "a"]] * 2, lambda d: d.assign(ratio=d.a / (1 + d.b ** 2)),
    lambda d: d.assign(e=lambda t: t["a"] * t["c"], a=0.0), lambda d: np.log1p(d.loc[:, ["a", "b"]].abs()),
    lambda d: d.drop(columns=["b"]).to_numpy() ** 2, lambda d: np.column_stack([d["a"].clip(-1, 1), d.values[:, 1], d.iloc[:, 2]])],
    ids=["distance", "columns", "assign", "assign_later", "loc", "drop", "stack"])
def test_functions_of_data_frames(f: Callable[[np.ndarray], np.ndarray]) -> None:
    d = pd.DataFrame(X[:, :3], columns=["a", "b", "c"])
    m = preprocessing.FunctionTransformer(f).fit(d)
    got = tw.compile(m, inputs=d, method="transform", threads=1)(d)
    assert np.allclose(np.asarray(got), np.asarray(m.transform(d)).reshape(len(d), -1), rtol=1e-13, atol=1e-13)


def test_unknown_numbers_are_errors_where_the_library_raises() -> None:
    x = np.array([[0.0, 3], [1, 5], [2, 7], [1, 9]])
    for m in (preprocessing.OneHotEncoder(), preprocessing.OrdinalEncoder(),
              pipeline.make_pipeline(preprocessing.OneHotEncoder(), linear_model.Ridge())):
        m.fit(x, x[:, 0])
        exe = tw.compile(m, inputs=x, method="predict" if hasattr(m, "predict") else "transform", threads=1)
        assert len(np.asarray(exe(x))) == 4
        for bad in (np.array([[0.0, 4]]), np.array([[0.5, 3]] * 600), np.array([[np.nan, 3]])):
            with pytest.raises(InputError, match="a category that an encoder with handle_unknown='error' was not fitted on"):
                exe(bad)
            with pytest.raises(ValueError, match=r"unknown categories|contains NaN"):
                (m.predict if hasattr(m, "predict") else m.transform)(bad)


@pytest.mark.parametrize(("f", "why"), [
    (lambda x: x - x.mean(axis=0), "axis=0"), (lambda x: x if x[0, 0] > 0 else -x, "columns are taken as"),
    (lambda x: x / len(x), "number of rows"),
    (lambda x: np.sort(x, axis=1), "numpy.sort"), (lambda x: np.full((x.shape[0], 1), 3.0), "number of rows"),
    (lambda x: np.vectorize(abs)(x), "numbers themselves")])
def test_functions_that_cannot_be_traced(f: Callable[[np.ndarray], np.ndarray], why: str) -> None:
    m = preprocessing.FunctionTransformer(f).fit(X)
    with pytest.raises(UnsupportedError, match="cannot be traced") as e:
        tw.compile(m, inputs=X, method="transform")
    assert why in str(e.value)
