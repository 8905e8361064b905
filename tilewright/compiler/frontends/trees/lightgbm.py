"""LightGBM: the text of a model, which says everything exactly (17 digits); boosters and estimators are written as it.

Leaf values are added in f64, in the order of the trees; the objective's transform follows as ordinary ops in f64
(src/objective/*.hpp, ConvertOutput). Sources: src/io/tree.cpp (Tree::Tree, Decision), include/LightGBM/tree.h.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from ....errors import ModelError, UnsupportedError
from ....ir.builder import GraphBuilder
from ....ir.forest import CATEGORICAL, DEFAULT_LEFT, MissingKind
from ....ir.graph import Value
from .linear_leaves import is_linear, linear_leaves, linear_sums
from .table import Grove, Table, best_class, both_classes, checked, emit, flat, scalar, wanted

_MISSING = np.array([MissingKind.NONE, MissingKind.ZERO, MissingKind.NAN, MissingKind.NONE])  # by bits 2 and 3 of decision_type
_IDENTITY = ("regression", "regression_l2", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg",
             "custom", "none", "null", "na", "")
_EXP = ("poisson", "gamma", "tweedie")


class _Booster(Protocol):
    best_iteration: int

    def model_to_string(self, num_iteration: int, start_iteration: int) -> str: ...


class _Model(Protocol):
    booster_: _Booster
    _best_iteration: int | None
    classes_: np.ndarray


def load_lightgbm(model: object, method: str, iterations: tuple[int, int] | None) -> Table:
    """A Booster, or an estimator of the scikit-learn API."""
    name = type(model).__name__
    if hasattr(model, "model_to_string"):
        booster = cast(_Booster, model)
        return _load(booster, name, wanted(name, method, "predict", "raw_score", "apply"), iterations, None)
    known = ("predict", "predict_proba", "raw_score", "apply") if hasattr(model, "predict_proba") else ("predict", "raw_score", "apply")
    method = wanted(name, method, *known)
    try:
        booster = cast(_Model, model).booster_
    except (AttributeError, ValueError) as e:  # LightGBM's NotFittedError is both
        raise ModelError(f"{name} is not fitted: {e}") from None
    classes = np.asarray(cast(_Model, model).classes_) if "predict_proba" in known else None
    return _load(booster, name, method, iterations, classes)


def _load(booster: _Booster, name: str, method: str, iterations: tuple[int, int] | None, classes: np.ndarray | None) -> Table:
    if iterations is None and booster.best_iteration > 0:
        iterations = 0, booster.best_iteration
    return _table(parse(booster.model_to_string(num_iteration=-1, start_iteration=0)), name, method, iterations, classes)


def load_text(text: str, method: str, iterations: tuple[int, int] | None) -> Table:
    return _table(parse(text), "LightGBM model", wanted("a LightGBM model file", method, "predict", "raw_score", "apply"), iterations, None)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The header, and one mapping for each tree."""

    header: Mapping[str, str]
    trees: Sequence[Mapping[str, str]]


def parse(text: str) -> Parsed:
    """Raises ModelError for what is no model's text."""
    head, *parts = text.replace("\r\n", "\n").split("\nTree=")
    if not head.startswith("tree\n") or "num_class=" not in head:
        raise ModelError("this is no text of a LightGBM model: it does not begin with 'tree' and a header")
    if parts and "\nend of trees" not in parts[-1]:
        raise ModelError("the LightGBM model is cut short: 'end of trees' is missing")
    return Parsed(_fields(head), [_fields(p.split("\nend of trees")[0]) for p in parts])


def _fields(text: str) -> dict[str, str]:
    out = {}
    for line in text.split("\n"):
        key, equals, value = line.partition("=")
        out[key] = value if equals else "1"
    return out


def _numbers(tree: Mapping[str, str], key: str, dtype: type, count: int) -> np.ndarray:
    try:
        a = np.array(tree.get(key, "").split(), dtype)
    except (ValueError, OverflowError) as e:
        raise ModelError(f"the LightGBM model is damaged: {key} in a tree: {e}") from None
    if len(a) != count:
        raise ModelError(f"the LightGBM model is damaged: a tree has {len(a)} values of {key}, expected {count}")
    return a


def _int(fields: Mapping[str, str], key: str) -> int:
    try:
        return int(fields[key])
    except (KeyError, ValueError):
        raise ModelError(f"the LightGBM model is damaged: {key} is missing or no number") from None


def _table(p: Parsed, name: str, method: str, iterations: tuple[int, int] | None, classes: np.ndarray | None) -> Table:
    each, features = _int(p.header, "num_tree_per_iteration"), _int(p.header, "max_feature_idx") + 1
    rounds = len(p.trees) // each
    begin, end = iterations or (0, rounds)
    if not 0 <= begin <= end:
        raise UnsupportedError(f"{name}: iterations {begin} to {end} are not possible with {rounds}")
    chosen = p.trees[begin * each:min(end, rounds) * each]
    grove = Grove()
    for k, t in enumerate(chosen):
        _add_tree(grove, t, k % each, name)
    f = checked(grove.forest(np.zeros(each)), features, name)
    leaves = grove.leaf_forest([np.arange(len(v)) for v in grove.values])
    linear = None
    if any(map(is_linear, chosen)):
        sizes = [len(v) for v in grove.values]
        linear = linear_leaves(chosen, sizes, features, _numbers)
        first = np.cumsum([0, *sizes])
        place = grove.leaf_forest([k + np.arange(n) for k, n in zip(first, sizes, strict=False)])
    average = len(chosen) // each if "average_output" in p.header else 0
    objective = p.header.get("objective", "")
    if method in ("predict", "predict_proba"):
        _transform(GraphBuilder(), None, objective, name)  # refuses what it does not know

    def build(b: GraphBuilder, x: Value) -> Sequence[Value]:
        if method == "apply":
            return (emit(b, x, leaves),)
        y = emit(b, x, f) if linear is None else linear_sums(b, x, place, linear, each)
        if average > 1 and method != "raw_score":
            y = b.op("div", y, scalar(b, y, average))
        if method != "raw_score":
            y = _transform(b, y, objective, name)
        if classes is None or method == "raw_score":
            return (flat(b, y) if each == 1 else y,)
        if each == 1:
            y = both_classes(b, y)
        return (best_class(b, y, classes, name) if method == "predict" else y,)
    return Table(name, features, ("y",), build)


def _add_tree(grove: Grove, t: Mapping[str, str], column: int, name: str) -> None:
    leaves = _int(t, "num_leaves")
    n = leaves - 1
    decision = _numbers(t, "decision_type", np.int64, n)
    threshold = _numbers(t, "threshold", np.float64, n)
    categorical = (decision & 1) != 0
    kind = np.where(categorical, CATEGORICAL, _MISSING[decision >> 2 & 3] | np.where(decision & 2, DEFAULT_LEFT, 0))
    sets = None
    if categorical.any():
        sets = _sets(t, threshold, categorical)
        threshold = np.where(categorical, 0, threshold)
    grove.add(_numbers(t, "split_feature", np.int64, n), threshold, _numbers(t, "left_child", np.int64, n),
              _numbers(t, "right_child", np.int64, n), kind, _numbers(t, "leaf_value", np.float64, leaves), column, sets)


def _sets(t: Mapping[str, str], number: np.ndarray, categorical: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tree's sets, each followed by the words for other categories and for NaN: both go right."""
    count = _int(t, "num_cat")
    bounds = _numbers(t, "cat_boundaries", np.int64, count + 1)
    words = _numbers(t, "cat_threshold", np.uint32, int(bounds[-1]))
    which = np.where(categorical, number, 0).astype(np.int64)
    if which.min() < 0 or which.max() >= count or (np.diff(bounds) < 0).any():
        raise ModelError("the LightGBM model is damaged: a categorical split has no set")
    spread = np.insert(words, np.repeat(bounds[1:], 2), 0)
    return bounds[which] + 2 * which, bounds[which + 1] - bounds[which], spread


def _transform(b: GraphBuilder, y: Value | None, objective: str, name: str) -> Value:
    """ConvertOutput; with y None only the check that the objective is known."""
    kind, *options = objective.split()
    given = {k: v for k, _, v in (o.partition(":") for o in options)}
    y = y if y is not None else b.constant(np.zeros((1, max(2, int(given.get("num_class", "2"))))))
    if kind in _IDENTITY:
        return b.op("mul", b.op("sign", y), b.op("mul", y, y)) if "sqrt" in given else y
    if kind in _EXP:
        return b.op("exp", y)
    if kind in ("binary", "multiclassova", "cross_entropy"):
        slope = float(given.get("sigmoid", "1"))
        e = b.op("exp", b.op("mul", y, scalar(b, y, -slope)))
        return b.op("div", scalar(b, y, 1), b.op("add", scalar(b, y, 1), e))
    if kind == "multiclass":
        return b.op("softmax", y, axis=1)
    if kind == "cross_entropy_lambda":
        return b.op("log1p", b.op("exp", y))
    raise UnsupportedError(f"{name}: the objective {kind!r} is not known; compile method='raw_score' and transform its result")
