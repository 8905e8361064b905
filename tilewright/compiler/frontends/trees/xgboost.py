"""XGBoost: the JSON form of a model, which says everything exactly. All arithmetic is f32: data, thresholds (x < t goes left),
leaf values added to the margin of base_score in the order of the trees; the objective's transform follows as ordinary ops.

Sources: doc/model.schema, src/predictor/cpu_predictor.cc, src/common/categorical.h, src/objective/*.
"""
from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from ....errors import ModelError, UnsupportedError
from ....ir.builder import GraphBuilder
from ....ir.forest import CATEGORICAL, DEFAULT_LEFT, MissingKind, before
from ....ir.graph import Value
from ....ir.types import F32, I64
from .table import Grove, Table, best_class, both_classes, checked, emit, flat, named_class, scalar, step, wanted

Json = Mapping[str, object]
_IDENTITY = ("reg:squarederror", "reg:squaredlogerror", "reg:pseudohubererror", "reg:absoluteerror", "reg:quantileerror", "binary:logitraw",
             "rank:ndcg", "rank:map", "rank:pairwise", "reg:linear")
_LOGISTIC = ("binary:logistic", "reg:logistic")
_EXP = ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft")


class _Booster(Protocol):
    def save_raw(self, raw_format: str) -> bytearray: ...
    def num_boosted_rounds(self) -> int: ...


class _Model(Protocol):
    missing: float
    classes_: np.ndarray

    def get_booster(self) -> _Booster: ...
    def _get_iteration_range(self, iteration_range: None) -> tuple[int, int]: ...


def load_xgboost(model: object, method: str, iterations: tuple[int, int] | None) -> Table:
    """A Booster, or an estimator of the scikit-learn API."""
    name = type(model).__name__
    if hasattr(model, "save_raw"):
        return _load(cast(_Booster, model), name, wanted(name, method, "predict", "raw_score", "apply"), iterations, float("nan"), None)
    classifier = hasattr(model, "predict_proba")
    method = wanted(name, method, "predict", *(("predict_proba",) if classifier else ()), "raw_score", "apply")
    m = cast(_Model, model)
    try:
        booster = m.get_booster()
        classes = np.asarray(m.classes_) if classifier else None
    except (AttributeError, ValueError) as e:  # scikit-learn's NotFittedError is both
        raise ModelError(f"{name} is not fitted: {e}") from None
    chosen = iterations or m._get_iteration_range(None)
    return _load(booster, name, method, None if chosen == (0, 0) else chosen, m.missing, classes)


def load_file(path: Path, method: str, iterations: tuple[int, int] | None) -> Table:
    """A .json or .ubj file, read by XGBoost itself."""
    xgb = importlib.import_module("xgboost")
    try:
        booster = xgb.Booster(model_file=str(path))
    except xgb.core.XGBoostError as e:
        raise ModelError(f"{path} is no model of XGBoost: {str(e).splitlines()[0]}") from None
    return _load(cast(_Booster, booster), path.stem, wanted("an XGBoost model file", method, "predict", "raw_score", "apply"), iterations,
                 float("nan"), None)


def _load(booster: _Booster, name: str, method: str, iterations: tuple[int, int] | None, missing: float,
          classes: np.ndarray | None) -> Table:
    learner = _get(json.loads(booster.save_raw("json")), "learner")
    return _table(learner, name, method, iterations, missing, classes)


def _get(data: object, *path: str) -> Json:
    for k in path:
        if not isinstance(data, Mapping) or k not in data:
            raise ModelError(f"the XGBoost model is damaged: {k} is missing")
        data = data[k]
    return cast(Json, data)


def _table(learner: Json, name: str, method: str, iterations: tuple[int, int] | None, missing: float, classes: np.ndarray | None) -> Table:
    booster = _get(learner, "gradient_booster")
    weights = None
    if booster["name"] == "dart":
        weights, booster = np.asarray(booster["weight_drop"], np.float32), _get(booster, "gbtree")
    elif booster["name"] != "gbtree":
        raise UnsupportedError(f"{name}: booster {booster['name']!r} has no trees; gbtree and dart are compiled")
    model, parameters = _get(booster, "model"), _get(learner, "learner_model_param")
    if _get(model, "cats").get("feature_segments") or _get(model, "cats").get("enc"):
        raise UnsupportedError(f"{name}: it was trained on a data frame with categories, which XGBoost encodes by their names; train on "
                               "their codes (with enable_categorical and feature_types='c')")
    features = int(str(parameters["num_feature"]))
    columns = max(1, int(str(parameters["num_class"])), int(str(parameters["num_target"])))
    objective = str(_get(learner, "objective")["name"])
    trees = cast(Sequence[Json], model["trees"])
    starts = [int(v) for v in cast(Sequence[int], model["iteration_indptr"])]
    begin, end = iterations or (0, len(starts) - 1)
    if not 0 <= begin <= end < len(starts):
        raise UnsupportedError(f"{name}: iterations {begin} to {end} are not possible with {len(starts) - 1}")
    grove, numbers = Grove(), []
    column = cast(Sequence[int], model["tree_info"])
    for k in range(starts[begin], starts[end]):
        numbers.append(_add_tree(grove, trees[k], int(column[k]), 1.0 if weights is None else weights[k], name))
    f = checked(grove.forest(_margin(str(parameters["base_score"]), objective, columns)), features, name)
    leaves = grove.leaf_forest(numbers)
    if method in ("predict", "predict_proba"):
        _transform(GraphBuilder(), None, objective, name)

    def build(b: GraphBuilder, x: Value) -> Sequence[Value]:
        x = _data(b, x, missing)
        if method == "apply":
            y = emit(b, x, leaves)
            return (b.op("cast", y, dtype=F32) if classes is None else y,)
        y = emit(b, x, f)
        if method == "raw_score":
            return (flat(b, y) if columns == 1 else y,)
        return (_result(b, _transform(b, y, objective, name), objective, method, columns, classes, name),)
    return Table(name, features, ("y",), build, np.float32)


def _data(b: GraphBuilder, x: Value, missing: float) -> Value:
    """In f32, with NaN for the number that stands for missing values."""
    if x.type.dtype != F32:
        x = b.op("cast", x, dtype=F32)
    if np.isnan(missing):
        return x
    return b.op("where", b.op("eq", x, scalar(b, x, missing)), scalar(b, x, np.nan), x)


def _add_tree(grove: Grove, t: Json, column: int, weight: float, name: str) -> np.ndarray:
    """Returns the numbers of the tree's leaves."""
    if int(str(_get(t, "tree_param")["size_leaf_vector"])) > 1:
        raise UnsupportedError(f"{name}: trees with vectors in their leaves (multi_strategy='multi_output_tree') are not compiled; train "
                               "with multi_strategy='one_output_per_tree'")
    left, right = (np.asarray(t[k], np.int64) for k in ("left_children", "right_children"))
    conditions = np.asarray(t["split_conditions"], np.float32)
    categorical = np.asarray(t["split_type"], np.int64) == 1
    kind = MissingKind.NAN | np.where(np.asarray(t["default_left"], np.int64) != 0, DEFAULT_LEFT, 0)
    leaf = left < 0
    sets = _sets(t, left.size, kind) if (categorical & ~leaf).any() else None
    kind = np.where(categorical, CATEGORICAL, kind)
    values = conditions if weight == 1.0 else conditions * np.float32(weight)
    grove.add_flat(leaf, np.asarray(t["split_indices"], np.int64), before(conditions), left, right, kind, values, column, sets)
    return np.flatnonzero(leaf)


def _sets(t: Json, nodes: int, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Categories of a node go right, all others left (also those that are none), NaN by default."""
    first, count = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    listed = np.asarray(t["categories"], np.int64)
    where, begin, size = (np.asarray(t[k], np.int64) for k in ("categories_nodes", "categories_segments", "categories_sizes"))
    words: list[np.ndarray] = []
    at = 0
    for n, b, s in zip(where, begin, size, strict=True):
        own = listed[b:b + s]
        here = np.zeros(int(own.max(initial=0)) // 32 + 1, np.uint32)
        np.bitwise_or.at(here, own >> 5, np.uint32(1) << (own & 31).astype(np.uint32))
        first[n], count[n] = at, len(here)
        words += [~here, np.array([0xFFFFFFFF, 0xFFFFFFFF if kind[n] & DEFAULT_LEFT else 0], np.uint32)]
        at += len(here) + 2
    return first, count, np.concatenate(words)


def _margin(text: str, objective: str, columns: int) -> np.ndarray:
    """f32[columns]: base_score before the objective's transform; logarithms are rounded once, as a C library does."""
    base = np.array(json.loads(text) if text.startswith("[") else [float(text)], np.float32)
    if objective in _LOGISTIC:
        base = -np.log((np.float32(1) / base - np.float32(1)).astype(np.float64))
    elif objective in _EXP:
        base = np.log(base.astype(np.float64))
    return np.ascontiguousarray(np.broadcast_to(base.astype(np.float32), (columns,)))


def _transform(b: GraphBuilder, y: Value | None, objective: str, name: str) -> Value:
    y = y if y is not None else b.constant(np.zeros((1, 2), np.float32))
    if objective in _IDENTITY:
        return y
    if objective in _LOGISTIC:
        low = b.op("min", b.op("neg", y), scalar(b, y, 88.7))
        return b.op("div", scalar(b, y, 1), b.op("add", b.op("exp", low), scalar(b, y, 1)))
    if objective in _EXP:
        return b.op("exp", y)
    if objective == "binary:hinge":
        return step(b, b.op("gt", y, scalar(b, y, 0)), 1, 0, F32)
    if objective in ("multi:softprob", "multi:softmax"):
        return b.op("softmax", y, axis=1)
    raise UnsupportedError(f"{name}: the objective {objective!r} is not known; compile method='raw_score' and transform its result")


def _result(b: GraphBuilder, y: Value, objective: str, method: str, columns: int, classes: np.ndarray | None, name: str) -> Value:
    if classes is None:
        if objective == "multi:softmax":
            return b.op("cast", b.op("arg_reduce", y, kind="max", axis=1, keepdims=0), dtype=F32)
        return flat(b, y) if columns == 1 else y
    if columns > 1 and objective.startswith("multi:"):
        return best_class(b, y, classes, name) if method == "predict" else y
    if columns > 1:
        raise UnsupportedError(f"{name}: several labels at once are not compiled; use one classifier for each, or method='raw_score'")
    if method == "predict_proba":
        return both_classes(b, y)
    return named_class(b, flat(b, b.op("cast", b.op("gt", y, scalar(b, y, 0.5)), dtype=I64)), classes, name)
