"""Pipelines, and transformers side by side."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ....ir.graph import Value
from .columns import Columns, joined, num
from .estimator import Estimator, converts, predict, predicts, transform

ANY = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples", "apply", "raw_score")


def _steps(e: Estimator) -> list[object]:
    return [s[1] for s in e.list("steps")]  # type: ignore[index]


def _is_through(step: object) -> bool:
    return step is None or step == "passthrough"


@converts("Pipeline")
def _pipeline(e: Estimator, x: Columns) -> Columns:
    for s in _steps(e):
        x = x if _is_through(s) else transform(s, x)
    return x


@predicts("Pipeline", methods=ANY)
def _pipeline_predict(e: Estimator, x: Columns, method: str) -> Value:
    *before, last = _steps(e)
    for s in before:
        x = x if _is_through(s) else transform(s, x)
    return predict(last, x, method)


@converts("FeatureUnion")
def _union(e: Estimator, x: Columns) -> Columns:
    weights = e.get("transformer_weights") or {}
    assert isinstance(weights, Mapping)
    out = []
    for name, t in e.list("transformer_list"):  # type: ignore[misc]
        if t == "drop":
            continue
        y = x if _is_through(t) else transform(t, x)
        if name in weights:
            v = y.value()
            y = y.dense(x.b.op("mul", v, num(x.b, v, float(weights[name]))))
        out.append(y)
    return joined(x.s, out)


@converts("ColumnTransformer")
def _columns(e: Estimator, x: Columns) -> Columns:
    """The columns of each transformer as they were found when it was fitted."""
    places = e.get("_transformer_to_input_indices")
    assert isinstance(places, Mapping)
    weights = e.get("transformer_weights") or {}
    assert isinstance(weights, Mapping)
    out = []
    for name, t, _ in e.list("transformers_"):  # type: ignore[misc]
        which = [int(k) for k in np.asarray(places[name], np.int64)] if name in places else []
        if (isinstance(t, str) and t == "drop") or not which:
            continue
        y = x.select(which)
        y = y if isinstance(t, str) else transform(t, y)
        if name in weights:
            v = y.value()
            y = y.dense(x.b.op("mul", v, num(x.b, v, float(weights[name]))))
        out.append(y)
    return joined(x.s, out)


@converts("GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV")
def _searched(e: Estimator, x: Columns) -> Columns:
    return transform(e.get("best_estimator_"), x)


@predicts("GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV", methods=ANY)
def _searched_predict(e: Estimator, x: Columns, method: str) -> Value:
    return predict(e.get("best_estimator_"), x, method)
