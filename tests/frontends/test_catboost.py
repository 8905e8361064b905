"""Models of CatBoost as it wrote them, against what it predicted (recorded by catboost_models/make.py): leaves and classes equal, sums to
1e-12."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.frontends.catboost_models.make import MODELS

HERE = Path(__file__).parent / "catboost_models"
RECORDED = dict(np.load(HERE / "predictions.npz"))
CASES = [k for k in RECORDED if k != "x" and not k.startswith("ctr.")]


@pytest.mark.parametrize("case", CASES)
def test_recorded_predictions(case: str) -> None:
    name, method = case.split(".")
    want = RECORDED[case]
    x = RECORDED["x"].astype(np.float32 if method in ("raw_score", "apply") else np.float64)
    exe = tw.compile(HERE / f"{name}.json", inputs=x, method=method, threads=1)
    for part in (slice(None), slice(1)):
        got = np.asarray(exe(x[part]))
        assert got.shape == want[part].shape
        if want.dtype.kind == "f":
            np.testing.assert_allclose(got, want[part], rtol=1e-12, atol=1e-13)
        else:
            np.testing.assert_array_equal(got, want[part])


def test_every_model_was_recorded() -> None:
    assert {k.split(".")[0] for k in RECORDED} - {"x"} == set(MODELS)


def changed(tmp_path: Path, name: str, change: Callable[[dict], object]) -> Path:
    data = json.loads((HERE / f"{name}.json").read_text())
    change(data)
    (tmp_path / "m.json").write_text(json.dumps(data, sort_keys=True))
    return tmp_path / "m.json"


def test_what_is_not_compiled_is_named(tmp_path: Path) -> None:
    with pytest.raises(tw.UnsupportedError, match="OnlineCtr"):
        tw.compile(HERE / "ctr.json")
    with pytest.raises(tw.UnsupportedError, match="predict_proba"):
        tw.compile(HERE / "regression.json", method="predict_proba")
    with pytest.raises(tw.UnsupportedError, match="text features"):
        tw.compile(changed(tmp_path, "regression", lambda d: d["features_info"].update(text_features=[{}])))
    with pytest.raises(tw.UnsupportedError, match="'red' of column 4 is no integer"):
        tw.compile(changed(tmp_path, "one_hot", lambda d: [h.update(value="red") for h in d["features_info"]["cat_features_hash"]]))
    with pytest.raises(tw.UnsupportedError, match="RMSEWithUncertainty"):
        tw.compile(changed(tmp_path, "regression", lambda d: d["model_info"]["params"]["loss_function"].update(type="RMSEWithUncertainty")))


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(tw.ModelError, match="leaves"):
        tw.compile(changed(tmp_path, "regression", lambda d: d["oblivious_trees"][0]["leaf_values"].pop()))
    with pytest.raises(tw.ModelError, match="scale_and_bias"):
        tw.compile(changed(tmp_path, "regression", lambda d: d.pop("scale_and_bias")))


class CatBoostRegressor:
    """As much of CatBoost's estimator as is used."""

    def __init__(self, fitted: bool = True) -> None:
        self._fitted = fitted

    def is_fitted(self) -> bool:
        return self._fitted

    def save_model(self, fname: str, format: str) -> None:
        assert format == "json"
        Path(fname).write_text((HERE / "regression.json").read_text())


class CatBoostClassifier(CatBoostRegressor):
    """With classes that have names."""

    n_features_in_ = 5
    classes_ = np.array(["a", "b", "c"])

    def save_model(self, fname: str, format: str) -> None:
        Path(fname).write_text((HERE / "multiclass.json").read_text())

    def predict(self) -> None:
        raise AssertionError

    predict_proba = predict


CatBoostRegressor.__module__ = CatBoostClassifier.__module__ = "catboost.core"


def test_names_of_classes() -> None:
    pytest.importorskip("sklearn")
    x, numbers = RECORDED["x"], RECORDED["multiclass.predict"]
    want = CatBoostClassifier.classes_[np.searchsorted(np.unique(numbers), numbers)]
    np.testing.assert_array_equal(np.asarray(tw.compile(CatBoostClassifier(), inputs=x, threads=1)(x)), want)


def test_estimators_and_rounds() -> None:
    x = RECORDED["x"]
    exe = tw.compile(CatBoostRegressor(), inputs=x, threads=1)
    np.testing.assert_allclose(np.asarray(exe(x)), RECORDED["regression.predict"], rtol=1e-12)
    part = tw.compile(CatBoostRegressor(), inputs=x, method="apply", iterations=(2, 5), threads=1)
    np.testing.assert_array_equal(np.asarray(part(x)), RECORDED["regression.apply"][:, 2:5])
    with pytest.raises(tw.ModelError, match="CatBoostRegressor is not fitted"):
        tw.compile(CatBoostRegressor(False), inputs=x)
