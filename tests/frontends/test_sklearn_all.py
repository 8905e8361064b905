"""Every estimator of `sklearn.utils.all_estimators()`: compiled, or refused by name and with the reason, by the import and by
`tw.check` alike."""
from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import linear_model, preprocessing
from sklearn.base import BaseEstimator
from sklearn.utils import all_estimators

import tilewright as tw
from tilewright.compiler import frontends
from tilewright.compiler.frontends.sklearn.estimator import REGISTRY
from tilewright.compiler.frontends.sklearn.refused import REFUSED
from tilewright.compiler.frontends.sklearn.trees import is_tree
from tilewright.errors import UnsupportedError

RNG = np.random.default_rng(5)
X = np.abs(RNG.standard_normal((60, 4))) + 0.1
TWO, Y = (X[:, 0] > 0.7).astype(int), X[:, 0] + 2 * X[:, 1] + 0.1 * RNG.random(60)
TARGETS = {"classes": TWO, "numbers": Y, "labels": np.stack([TWO, 1 - TWO], 1), "table": np.stack([Y, Y * Y], 1), "none": None}
TEXTS = ["one two", "two three", "three one four"] * 5
METHODS = ("predict", "transform", "predict_proba", "decision_function", "score_samples", "predict_log_proba")
SMALL = {"max_iter": 20, "n_estimators": 3, "n_components": 2, "n_quantiles": 10, "cv": 2, "max_features": 2, "n_iter": 2, "k": 2,
         "radius": 5.0}
ESTIMATORS = dict(all_estimators())


FULL: dict[str, dict[str, object]] = {  # what is said of these alone
    "LinearDiscriminantAnalysis": {}, "OrthogonalMatchingPursuitCV": {}, "MissingIndicator": {"features": "all"},
    "SelfTrainingClassifier": {"estimator": linear_model.LogisticRegression()},
    "FrozenEstimator": {"estimator": linear_model.LogisticRegression().fit(X, TWO)}}


def made(name: str) -> BaseEstimator:
    """An instance with members where it needs some, and little to do."""
    cls = ESTIMATORS[name]
    if name in FULL:
        return cls(**FULL[name])
    member = linear_model.Ridge() if "Regress" in name else linear_model.LogisticRegression()
    other = linear_model.SGDRegressor() if "Regress" in name else linear_model.SGDClassifier(loss="log_loss")
    scaler = preprocessing.StandardScaler()
    needed = {"estimator": member, "base_estimator": member, "estimators": [("a", member), ("b", other)], "dictionary": np.eye(4),
              "steps": [("a", scaler), ("b", member)], "transformers": [("a", scaler, [0, 1])], "transformer_list": [("a", scaler)],
              "param_grid": {"C": [1.0]}, "param_distributions": {"C": [1.0, 2.0]}}
    given = {}
    for p in inspect.signature(cls).parameters.values():
        if p.default is inspect.Parameter.empty and p.name in needed:
            given[p.name] = needed[p.name]
        elif p.name in SMALL and p.default is not inspect.Parameter.empty and not (p.name == "max_features" and "Select" not in name):
            given[p.name] = SMALL[p.name]
    return cls(**given)


def fitted(name: str) -> BaseEstimator | None:
    """Fitted on the first kind of target that it takes; None where it takes none of them."""
    several = "Multi" in name or "Chain" in name or "PLS" in name or name == "CCA"
    targets = sorted(TARGETS, key=lambda k: (several and k not in ("labels", "table"), "Regress" in name and k in ("classes", "labels")))
    for data, kind in [*((X, k) for k in targets), (X[:, :1], "numbers"), (TEXTS, "none"), ([{"a": 1.0}] * 4, "none"), (X @ X.T, "none")]:
        y = TARGETS[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return made(name).fit(data, *(() if y is None else (y,)))  # type: ignore[attr-defined]
            except (ValueError, TypeError, AttributeError, IndexError):
                continue
    return None


@pytest.mark.parametrize("name", ESTIMATORS)
def test_compiled_or_refused_by_name(name: str) -> None:
    model = fitted(name)
    assert model is not None or name in REFUSED, f"{name} takes none of the tests' data"
    if model is None:
        return
    found = tw.check(model)
    if name in REFUSED:
        assert len(found) == 1 and f"{name} is not compiled: {REFUSED[name]}" in str(found[0])
        with pytest.raises(UnsupportedError, match=f"{name} is not compiled: "):
            frontends.load(model, [X], "")
        return
    assert is_tree(model) or name in REGISTRY, f"{name} is neither compiled nor refused"
    sample = X[:, :1] if name == "IsotonicRegression" else X
    for method in (m for m in METHODS if hasattr(model, m)):
        try:
            frontends.load(model, [sample], method)
        except UnsupportedError as e:
            assert name in str(e) or found, f"the refusal of {method} does not name {name}: {e}"


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - set(REFUSED)))
def test_what_check_accepts_is_what_the_library_computes(name: str) -> None:
    """The first method, on data that the estimator was not fitted on."""
    model = fitted(name)
    if model is None or tw.check(model):
        return
    method = "predict" if hasattr(model, "predict") else "transform" if hasattr(model, "transform") else "score_samples"
    width = getattr(model, "n_features_in_", 1 if name == "IsotonicRegression" else X.shape[1])
    new = (np.abs(np.random.default_rng(6).standard_normal((9, width))) + 0.1 if width != len(X) else X @ X.T)[:9]
    from tests.frontends.test_sklearn import of_library
    from tilewright.compiler.frontends.rows import RowSource
    from tilewright.ir.interpreter import run_graph
    try:
        want = of_library(model, method, new)
    except ValueError:  # categories that it was not fitted on, rows without neighbours
        new = X[:9, :width]
        want = of_library(model, method, new)
    source = frontends.load(model, [new], method)
    assert isinstance(source, RowSource)
    (got,) = run_graph(source.graph(len(new)).graph, {"x": new}).values()
    if source.boundary is not None:
        got = source.boundary.results(got)
    assert isinstance(got, np.ndarray) and got.shape == want.shape
    assert np.allclose(got.astype(float), want.astype(float), rtol=1e-9, atol=1e-9 * max(1, np.abs(want.astype(float)).max()))
