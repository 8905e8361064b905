"""scikit-learn: decision trees, forests, gradient boosting, isolation forests.

Trees compare f32 data with f64 thresholds (x <= t goes left) and add f64; histogram boosting compares f64 data. Sources:
sklearn/tree/_tree.pyx (apply_dense), ensemble/_forest.py, _gb.py, _iforest.py, _hist_gradient_boosting/_predictor.pyx.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import numpy as np

from ....errors import ModelError, UnsupportedError
from ....ir.builder import GraphBuilder
from ....ir.forest import CATEGORICAL, DEFAULT_LEFT, MissingKind
from ....ir.graph import Value
from ....ir.types import F32, F64, I64
from .table import Grove, Table, best_class, both_classes, checked, emit, flat, named_class, scalar, step, wanted


class _Tree(Protocol):
    """sklearn.tree._tree.Tree"""

    children_left: np.ndarray
    children_right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    value: np.ndarray
    missing_go_to_left: np.ndarray


class _Estimator(Protocol):
    n_features_in_: int
    n_outputs_: int
    tree_: _Tree
    estimators_: Sequence[_Estimator]


def _fitted(model: object, attribute: str) -> _Estimator:
    if not hasattr(model, attribute):
        raise ModelError(f"{type(model).__name__} is not fitted: it has no {attribute}")
    return cast(_Estimator, model)


def add_tree(grove: Grove, t: _Tree, values: np.ndarray, column: int = 0, features: np.ndarray | None = None) -> np.ndarray:
    """values: of each node of t. features: numbers of its features. Returns the numbers of its leaves."""
    left = np.asarray(t.children_left, np.int64)
    leaf = left < 0
    kind = MissingKind.NAN | np.where(t.missing_go_to_left, DEFAULT_LEFT, 0)
    feature = np.asarray(t.feature, np.int64)
    if features is not None:
        feature = np.where(leaf, 0, features[feature])
    grove.add_flat(leaf, feature, np.asarray(t.threshold), left, np.asarray(t.children_right, np.int64), kind, values, column)
    return np.flatnonzero(leaf)


def _as_f32(b: GraphBuilder, x: Value) -> Value:
    return x if x.type.dtype == F32 else b.op("cast", x, dtype=F32)


# -- decision trees and forests of them --------------------------------------------------------------------------------
def _regression(model: object, method: str) -> Table:
    name = type(model).__name__
    m = _fitted(model, "tree_" if "Tree" in name and not name.startswith("ExtraTrees") else "estimators_")
    single = not hasattr(m, "estimators_")
    members = [m] if single else m.estimators_
    return _averaged(m, members, single, wanted(name, method, "predict", "apply"), None)


def _classification(model: object, method: str) -> Table:
    name = type(model).__name__
    m = _fitted(model, "tree_" if "Tree" in name and not name.startswith("ExtraTrees") else "estimators_")
    single = not hasattr(m, "estimators_")
    classes = model.classes_  # type: ignore[attr-defined]
    several = m.n_outputs_ > 1
    method = wanted(name, method, "predict", "predict_proba", "apply")
    members = [m] if single else m.estimators_
    return _averaged(m, members, single, method, list(classes) if several else [classes])


def _averaged(m: _Estimator, members: Sequence[_Estimator], single: bool, method: str, classes: list[np.ndarray] | None) -> Table:
    """The mean of the members' values; of several outputs, class probabilities side by side."""
    name, outputs = type(m).__name__, int(m.n_outputs_)
    sizes = [1] * outputs if classes is None else [len(c) for c in classes]
    grove, numbers = Grove(sum(sizes)), []
    for e in members:
        v = np.asarray(e.tree_.value, np.float64)  # [nodes, outputs, most classes]
        values = np.concatenate([v[:, k, :n] for k, n in enumerate(sizes)], 1)
        numbers.append(add_tree(grove, e.tree_, values))
    f = checked(grove.forest(np.zeros(sum(sizes))), m.n_features_in_, name)
    leaves = grove.leaf_forest(numbers)
    count = 1 if single else len(members)

    def build(b: GraphBuilder, x: Value) -> Sequence[Value]:
        x = _as_f32(b, x)
        if method == "apply":
            y = b.op("cast", emit(b, x, leaves), dtype=I64)
            return (flat(b, y) if single else y,)
        y = emit(b, x, f)
        if count > 1:
            y = b.op("div", y, scalar(b, y, count))
        if classes is None:
            return (flat(b, y) if outputs == 1 else y,)
        parts = _columns(b, y, sizes)
        if method == "predict_proba":
            return parts
        found = [best_class(b, p, c, name) for p, c in zip(parts, classes, strict=True)]
        return (found[0] if outputs == 1 else b.op("concat", *(b.op("reshape", v, shape=(*v.type.shape, 1)) for v in found), axis=1),)
    several = classes is not None and method == "predict_proba" and outputs > 1
    return Table(name, m.n_features_in_, tuple(f"y{k}" for k in range(outputs)) if several else ("y",), build, np.float32)


def _columns(b: GraphBuilder, y: Value, sizes: Sequence[int]) -> list[Value]:
    if len(sizes) == 1:
        return [y]
    out, at = [], 0
    for n in sizes:
        out.append(b.op("slice", y, starts=(0, at), steps=(1, 1), sizes=(y.type.shape[0], n)))
        at += n
    return out


# -- gradient boosting -------------------------------------------------------------------------------------------------
class _Boosting(Protocol):
    n_features_in_: int
    learning_rate: float
    loss: str
    init_: object
    classes_: np.ndarray
    estimators_: np.ndarray

    def _raw_predict_init(self, x: np.ndarray) -> np.ndarray: ...


def _gradient_boosting(model: object, method: str) -> Table:
    name = type(model).__name__
    _fitted(model, "estimators_")
    m = cast(_Boosting, model)
    classifier = hasattr(model, "classes_")
    method = wanted(name, method, *(("predict", "predict_proba", "raw_score", "apply") if classifier else ("predict", "apply")))
    init = m.init_
    if init is not None and not isinstance(init, str) and type(init).__name__ not in ("DummyClassifier", "DummyRegressor"):
        raise UnsupportedError(f"{name}: init={type(init).__name__} is a model of its own, not compiled; use the default or 'zero'")
    base = np.asarray(m._raw_predict_init(np.zeros((1, m.n_features_in_), np.float32)), np.float64).reshape(-1)
    grove, numbers = Grove(), []
    for stage in m.estimators_:
        for k, e in enumerate(stage):
            numbers.append(add_tree(grove, e.tree_, m.learning_rate * np.asarray(e.tree_.value)[:, 0, 0], k))
    f = checked(grove.forest(base), m.n_features_in_, name)
    leaves = grove.leaf_forest(numbers)
    shape = m.estimators_.shape
    exponential = m.loss == "exponential"

    def build(b: GraphBuilder, x: Value) -> Sequence[Value]:
        x = _as_f32(b, x)
        if method == "apply":
            y = b.op("cast", emit(b, x, leaves), dtype=F64)
            return (b.op("reshape", y, shape=(y.type.shape[0], *(shape if classifier else shape[:1]))),)
        y = emit(b, x, f)
        return (_boosted(b, y, m.classes_ if classifier else None, method, exponential, name),)
    return Table(name, m.n_features_in_, ("y",), build, np.float32)


def _boosted(b: GraphBuilder, y: Value, classes: np.ndarray | None, method: str, exponential: bool, name: str) -> Value:
    if classes is None:
        return flat(b, y)
    if y.type.shape[1] > 1:
        if method == "raw_score":
            return y
        return best_class(b, y, classes, name) if method == "predict" else b.op("softmax", y, axis=1)
    if method == "raw_score":
        return flat(b, y)
    if method == "predict":
        return named_class(b, flat(b, b.op("cast", b.op("ge", y, scalar(b, y, 0)), dtype=I64)), classes, name)
    return both_classes(b, b.op("sigmoid", b.op("mul", y, scalar(b, y, 2)) if exponential else y))


class _HistBoosting(Protocol):
    n_features_in_: int
    is_categorical_: np.ndarray | None
    classes_: np.ndarray
    loss: str
    _baseline_prediction: np.ndarray
    _predictors: Sequence[Sequence[_Predictor]]


class _Predictor(Protocol):
    nodes: np.ndarray


def _hist_boosting(model: object, method: str) -> Table:
    name = type(model).__name__
    _fitted(model, "_predictors")
    m = cast(_HistBoosting, model)
    classifier = hasattr(model, "classes_")
    method = wanted(name, method, *(("predict", "predict_proba", "raw_score") if classifier else ("predict",)))
    if m.is_categorical_ is not None and np.any(m.is_categorical_):
        raise UnsupportedError(f"{name}: categorical_features are not compiled: the model encodes them anew for itself; encode them "
                               "before it (OrdinalEncoder) and train without categorical_features")
    base = np.asarray(m._baseline_prediction, np.float64).reshape(-1)
    grove = Grove()
    for stage in m._predictors:
        for k, p in enumerate(stage):
            _add_predictor(grove, p.nodes, k)
    f = checked(grove.forest(base), m.n_features_in_, name)
    exp = m.loss in ("poisson", "gamma")

    def build(b: GraphBuilder, x: Value) -> Sequence[Value]:
        y = emit(b, x, f)
        if exp and not classifier:
            y = b.op("exp", y)
        return (_boosted(b, y, m.classes_ if classifier else None, method, False, name),)
    return Table(name, m.n_features_in_, ("y",), build)


def _add_predictor(grove: Grove, nodes: np.ndarray, column: int) -> None:
    leaf = nodes["is_leaf"].astype(bool)
    assert not nodes["is_categorical"][~leaf].any(), f"kind {CATEGORICAL} in a model without categories"
    kind = MissingKind.NAN | np.where(nodes["missing_go_to_left"], DEFAULT_LEFT, 0)
    grove.add_flat(leaf, nodes["feature_idx"].astype(np.int64), nodes["num_threshold"].astype(np.float64), nodes["left"].astype(np.int64),
                   nodes["right"].astype(np.int64), kind, nodes["value"].astype(np.float64), column)


# -- isolation forest --------------------------------------------------------------------------------------------------
class _Isolation(Protocol):
    n_features_in_: int
    offset_: float
    estimators_: Sequence[_Estimator]
    estimators_features_: Sequence[np.ndarray]
    _decision_path_lengths: Sequence[np.ndarray]
    _average_path_length_per_tree: Sequence[np.ndarray]
    _max_samples: int


def _isolation(model: object, method: str) -> Table:
    name = type(model).__name__
    _fitted(model, "estimators_")
    m = cast(_Isolation, model)
    if method != "score_samples":
        method = wanted(name, method, "predict", "score_samples", "decision_function")
    grove = Grove()
    parts = zip(m.estimators_, m.estimators_features_, m._decision_path_lengths, m._average_path_length_per_tree, strict=True)
    for e, features, path, average in parts:
        add_tree(grove, e.tree_, path + average - 1.0, 0, np.asarray(features))
    f = checked(grove.forest(np.zeros(1)), m.n_features_in_, name)
    most = len(m.estimators_) * _average_path_length(m._max_samples)

    def build(b: GraphBuilder, x: Value) -> Sequence[Value]:
        depth = flat(b, emit(b, _as_f32(b, x), f))
        scaled = b.op("neg", b.op("div", depth, scalar(b, depth, most)) if most else b.op("add", b.op("mul", depth, scalar(b, depth, 0)),
                                                                                         scalar(b, depth, 1)))
        score = b.op("neg", b.op("pow", scalar(b, depth, 2), scaled))
        if method == "score_samples":
            return (score,)
        score = b.op("sub", score, scalar(b, score, float(m.offset_)))
        if method == "decision_function":
            return (score,)
        return (step(b, b.op("lt", score, scalar(b, score, 0)), -1, 1, I64),)
    return Table(name, m.n_features_in_, ("y",), build, np.float32)


def _average_path_length(n: int) -> float:
    """Of an unsuccessful search in a binary search tree of n (Liu, Ting, Zhou 2008, equation 1)."""
    if n <= 1:
        return 0.0
    return 1.0 if n == 2 else 2.0 * (np.log(n - 1.0) + np.euler_gamma) - 2.0 * (n - 1.0) / n


LOADERS: dict[str, Callable[[object, str], Table]] = {
    **dict.fromkeys(("DecisionTreeRegressor", "ExtraTreeRegressor", "RandomForestRegressor", "ExtraTreesRegressor"), _regression),
    **dict.fromkeys(("DecisionTreeClassifier", "ExtraTreeClassifier", "RandomForestClassifier", "ExtraTreesClassifier"), _classification),
    **dict.fromkeys(("GradientBoostingRegressor", "GradientBoostingClassifier"), _gradient_boosting),
    **dict.fromkeys(("HistGradientBoostingRegressor", "HistGradientBoostingClassifier"), _hist_boosting),
    "IsolationForest": _isolation}
