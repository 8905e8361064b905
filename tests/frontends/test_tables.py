"""Tables as they come: frames of several libraries, no rows, one row and many, results into arrays of the caller's, profiles."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")

from sklearn import compose, decomposition, ensemble, impute, linear_model, neighbors, pipeline, preprocessing  # noqa: E402

import tilewright as tw  # noqa: E402
from tests.frontends.test_sklearn_frames import frame, model, target  # noqa: E402
from tilewright.errors import InputError  # noqa: E402

RNG = np.random.default_rng(5)
X = RNG.standard_normal((700, 6))
Y = X[:, 0] - X[:, 1]


class Column:
    """A column of an Arrow table."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def to_numpy(self) -> np.ndarray:
        return self._values


class Table:
    """What `pyarrow.Table` has of names, columns and rows."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns

    @property
    def column_names(self) -> list[str]:
        return list(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def column(self, k: int) -> Column:
        return Column(self._columns[self.column_names[k]])


def as_polars(d):
    return pl.DataFrame({c: [None if v is None or v != v else v for v in d[c].tolist()] for c in d.columns})  # noqa: PLR0124


def as_arrow(d) -> Table:
    return Table({c: as_polars(d)[c].to_numpy() for c in d.columns})


@pytest.mark.parametrize("convert", [as_polars, as_arrow], ids=["polars", "arrow"])
def test_other_frames_are_read_as_pandas_are(convert, tmp_path: Path) -> None:
    d = frame()
    m = model().fit(d, target(d))
    exe = tw.compile(m, inputs=d, threads=1)
    exe.save(tmp_path / "m.twx")
    want = np.asarray(exe(d))
    assert np.allclose(want, m.predict(d), rtol=1e-12)
    other = tw.compile(m, inputs=convert(d), threads=1)
    for e in (exe, other, tw.load(tmp_path / "m.twx")):
        for part in (d, d[::-1], d[:1], d[:0]):
            assert np.array_equal(np.asarray(e(convert(part))), np.asarray(exe(part)))


def test_models_fitted_on_polars() -> None:
    d = as_polars(frame())
    m = model().fit(d, target(frame()))
    exe = tw.compile(m, inputs=d, threads=1)
    assert np.allclose(np.asarray(exe(d)), m.predict(d), rtol=1e-12)


def test_columns_that_cannot_be_read_are_named() -> None:
    d = frame()
    exe = tw.compile(model().fit(d, target(d)), inputs=d, threads=1)
    p = as_polars(d)
    for bad in (d.assign(a="q"), p.with_columns(pl.lit("q").alias("a")), p.with_columns(pl.lit([1, 2]).alias("a")),
                d.assign(a=pd.Timestamp("2020-01-01")), p.with_columns(pl.lit(1).cast(pl.Date).alias("a"))):
        with pytest.raises(InputError, match="column 'a' holds something that is no number"):
            exe(bad)
    for bad in (d.assign(n="q"), p.with_columns(pl.lit("q").alias("n"))):
        with pytest.raises(InputError, match="column 'n'"):
            exe(bad)
    for bad in (d.drop(columns="b"), p.drop("b"), as_arrow(d.drop(columns="b"))):
        with pytest.raises(InputError, match="the data frame has no column 'b'"):
            exe(bad)
    for call in (exe, lambda x: tw.compile(linear_model.Ridge().fit(X, Y), inputs=x)):
        with pytest.raises(InputError, match=r"frame\.collect"):
            call(p.lazy())


def models() -> dict[str, tuple[object, np.ndarray, str]]:
    """name -> fitted model, array or frame, method: every kind of plan"""
    d = frame()
    names = np.array(["a", "b"])[(Y > 0).astype(int)]
    return {"trees": (ensemble.RandomForestRegressor(3).fit(X, Y), X, "predict"), "linear": (linear_model.Ridge().fit(X, Y), X, "predict"),
            "names": (linear_model.LogisticRegression().fit(X, names), X, "predict"),
            "probabilities": (ensemble.GradientBoostingClassifier(n_estimators=3).fit(X, Y > 0), X, "predict_proba"),
            "leaves": (ensemble.ExtraTreesClassifier(3).fit(X, Y > 0), X, "apply"),
            "host": (neighbors.KNeighborsRegressor().fit(X, Y), X, "predict"), "pca": (decomposition.PCA(2).fit(X), X, "transform"),
            "frame": (model().fit(d, target(d)), d, "predict")}


PLANS = ["trees", "linear", "names", "probabilities", "leaves", "host", "pca", "frame"]


@pytest.mark.parametrize("name", PLANS)
def test_any_number_of_rows(name: str) -> None:
    m, x, method = models()[name]
    exe = tw.compile(m, inputs=x, method=method, threads=1)
    whole = np.asarray(exe(x))
    for rows in (0, 1, 2, 300, len(x)):
        part = x[:rows]
        got = np.asarray(exe(part))
        assert got.shape == (rows, *whole.shape[1:]) and got.dtype == whole.dtype
        assert (got == whole[:rows]).all() if whole.dtype.kind != "f" else np.allclose(got, whole[:rows], rtol=1e-12, atol=1e-13)
        out = np.empty_like(got)
        exe.run_into(out, part)
        assert np.array_equal(out, got)
        (named,) = exe.run({"x": part}).items()
        assert named[0] == exe.outputs[0].name == "y" and np.array_equal(np.asarray(named[1]), got)
    with pytest.raises(InputError):
        exe.run_into(np.empty((3, 3, 3)), x)


@pytest.mark.parametrize("name", PLANS)
def test_profiles(name: str, tmp_path: Path) -> None:
    """Of a block, or of one row where rows are computed one by one; never of more memory than was given."""
    m, x, method = models()[name]
    exe = tw.compile(m, inputs=x, method=method, threads=1)
    (instance,) = exe.instances()
    way = instance.plan.by_rows
    assert way is not None
    for rows in (300, 1, 0):
        p = exe.profile([x[:rows]] if rows else {"x": x[:rows]}, seconds=0)  # type: ignore[index]
        calls = way.calls if rows < way.turn else instance.plan.calls
        assert p.rows == (1 if rows < way.turn else way.block) and [c.label for c in p.calls] == [c.label for c in calls]
        exe.explain().to_html(tmp_path / "p.html")
    with pytest.raises(InputError):
        exe.profile([x, x], seconds=0)


# -- columns that nothing uses -------------------------------------------------------------------------------------------
def poisoned(x: np.ndarray, used: list[int]) -> np.ndarray:
    """Rows behind which no memory may be read, with NaN wherever nothing should look."""
    y = np.full_like(x, np.nan)
    y[:, used] = x[:, used]
    return y


def few() -> dict[str, tuple[object, list[int]]]:
    """name -> model fitted on 200 columns, those that it uses"""
    wide = RNG.standard_normal((400, 200))
    y = wide[:, 7] + 2 * (wide[:, 50] > 0) - wide[:, 199]
    three = np.zeros_like(wide)
    three[:, [7, 50, 199]] = wide[:, [7, 50, 199]]
    lgb = pytest.importorskip("lightgbm")
    dropped = compose.ColumnTransformer([("a", preprocessing.StandardScaler(), [7, 50]), ("b", "passthrough", [199]),
                                         ("c", "drop", list(range(60, 190)))])
    return {"trees": (ensemble.RandomForestRegressor(5, random_state=0).fit(three, y), [7, 50, 199]),
            "boosting": (lgb.LGBMRegressor(n_estimators=5, verbose=-1).fit(three, y), [7, 50, 199]),
            "scaled": (pipeline.make_pipeline(preprocessing.StandardScaler(), lgb.LGBMRegressor(n_estimators=5, verbose=-1)).fit(three, y),
                       [7, 50, 199]),
            "scaled forest": (pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.MinMaxScaler(),
                                                     ensemble.RandomForestRegressor(5, random_state=0)).fit(three, y), [7, 50, 199]),
            "drop": (pipeline.make_pipeline(dropped, linear_model.Ridge()).fit(wide, y), [7, 50, 199]),
            "drop forest": (pipeline.make_pipeline(dropped, ensemble.RandomForestRegressor(5)).fit(wide, y), [7, 50, 199]),
            "sparse": (linear_model.Lasso(0.2).fit(wide, y), [7, 50, 199])}


@pytest.mark.parametrize("name", ["trees", "boosting", "scaled", "scaled forest", "drop", "drop forest", "sparse"])
def test_columns_that_nothing_uses_are_not_read(name: str, tmp_path: Path) -> None:
    """Frames need not have them, and in arrays whatever stands there changes nothing: compiled, saved and loaded."""
    m, used = few()[name]
    x = RNG.standard_normal((700, 200))
    exe = tw.compile(m, inputs=x, threads=1)
    exe.save(tmp_path / "m.twx")
    want = m.predict(x)  # type: ignore[attr-defined]
    for e in (exe, tw.load(tmp_path / "m.twx")):
        for part in (x, x[:1]):
            assert np.allclose(np.asarray(e(poisoned(part, used))), want[:len(part)], rtol=1e-12, atol=1e-13)
    d = pd.DataFrame(x, columns=[f"f{k}" for k in range(200)])
    framed = tw.compile(m, inputs=d, threads=1)
    framed.save(tmp_path / "f.twx")
    for e in (framed, tw.load(tmp_path / "f.twx")):
        assert [c.name for c in e.boundary.columns] == [f"f{k}" for k in used]  # type: ignore[attr-defined]
        assert np.allclose(np.asarray(e(d[[f"f{k}" for k in used]])), want, rtol=1e-12, atol=1e-13)
