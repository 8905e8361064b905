"""CatBoost: the JSON form of a model, which says everything exactly; estimators are written as it, files read.

Numbers are compared as f32 (x > border goes right; NaN goes right where the model treats it as the largest number, else left),
leaf values are added in f64, then scaled and shifted. An oblivious tree asks one question a level: bit k of a leaf's number is
the answer to question k. Categories are questions for one value (one-hot); what needs statistics of them (CTR), texts or
embeddings is refused. Sources: catboost/libs/model/model_export/json_model_helpers.cpp, eval_processing.h.
"""
from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from ....errors import ModelError, UnsupportedError
from ....ir.builder import GraphBuilder
from ....ir.forest import DEFAULT_LEFT, MEMBER, MissingKind
from ....ir.graph import Value
from ....ir.types import F32, I64
from .table import Grove, Table, best_class, both_classes, checked, emit, flat, named_class, scalar, wanted

Json = Mapping[str, object]
_EXP = ("Poisson", "Tweedie", "LogLinQuantile")
_BINARY = ("Logloss", "CrossEntropy")
_MULTI = ("MultiClass", "MultiClassOneVsAll")
_Split = tuple[int, float, int, float | None]  # column, threshold, kind, number


class _Model(Protocol):
    def save_model(self, fname: str, format: str) -> None: ...
    def is_fitted(self) -> bool: ...


def load_catboost(model: object, method: str, iterations: tuple[int, int] | None, numbered: bool = False) -> Table:
    """An estimator: CatBoost, CatBoostRegressor, CatBoostClassifier, CatBoostRanker. numbered: classes are 0, 1, …"""
    name, m = type(model).__name__, cast(_Model, model)
    if not hasattr(model, "save_model"):
        raise UnsupportedError(f"{name} is no model of CatBoost that can be read")
    if not m.is_fitted():
        raise ModelError(f"{name} is not fitted")
    if getattr(model, "embedding_features_", None) or getattr(model, "get_text_feature_indices", list)():
        raise UnsupportedError(f"{name}: features of text and embeddings are not compiled")
    threshold = getattr(model, "get_probability_threshold", lambda: 0.5)()
    if threshold not in (None, 0.5):
        raise UnsupportedError(f"{name}: a probability threshold of {threshold} is not compiled; compile method='predict_proba' and "
                               "compare")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        m.save_model(str(path), format="json")
        return _table(_read(path), name, method, iterations, hasattr(model, "predict_proba"), numbered)


def load_json(path: Path, method: str, iterations: tuple[int, int] | None) -> Table:
    """A file of `save_model(path, format="json")`. "predict" are classes where it is a classifier's."""
    data = _read(path)
    return _table(data, "CatBoost model", method, iterations, _loss(data)[0] in (*_BINARY, *_MULTI))


def _read(path: Path) -> Json:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise ModelError(f"{path} is no model of CatBoost in JSON: {e}") from None
    if not isinstance(data, dict) or "features_info" not in data or not ("oblivious_trees" in data or "trees" in data):
        raise ModelError(f"{path} is no model of CatBoost in JSON: features_info or trees are missing")
    return data


def _get(data: object, *path: str) -> object:
    for k in path:
        if not isinstance(data, Mapping) or k not in data:
            raise ModelError(f"the CatBoost model is damaged: {k} is missing")
        data = data[k]
    return data


def _list(data: object, key: str) -> Sequence[Json]:
    return cast("Sequence[Json]", data.get(key) or ()) if isinstance(data, Mapping) else ()


def _loss(data: Json) -> tuple[str, Json]:
    """The loss function, and what is known of its classes."""
    info = data.get("model_info")
    loss = _get(info, "params", "loss_function", "type") if isinstance(info, Mapping) else ""
    return str(loss), cast(Json, info.get("class_params", {})) if isinstance(info, Mapping) else {}


def _table(data: Json, name: str, method: str, iterations: tuple[int, int] | None, classifier: bool, numbered: bool = False) -> Table:
    oblivious = "oblivious_trees" in data
    known = ["predict", *(["predict_proba"] if classifier else []), "raw_score", *(["apply"] if oblivious else [])]
    method = wanted(name, method, *known)
    loss, classes = _loss(data)
    features = _Features(_get(data, "features_info"), name)
    trees = _list(data, "oblivious_trees" if oblivious else "trees")
    begin, end = iterations or (0, len(trees))
    if not 0 <= begin <= end <= len(trees):
        raise UnsupportedError(f"{name}: iterations {begin} to {end} are not possible with {len(trees)}")
    scale, bias = cast("tuple[float, object]", _get(data, "scale_and_bias"))
    shift = np.atleast_1d(np.asarray(bias, np.float64))
    grove = Grove(len(shift))
    for t in trees[begin:end]:
        (_add_oblivious if oblivious else _add_tree)(grove, t, features, len(shift))
    f = checked(grove.forest(np.zeros(len(shift))), features.count, name)
    leaves = grove.leaf_forest([np.arange(len(v)) for v in grove.values])
    labels = _labels(classes, name) if classifier and method == "predict" else np.arange(0)
    labels = np.arange(len(labels)) if numbered else labels
    if method in ("predict", "predict_proba"):
        _check(loss, classifier, name)

    def build(b: GraphBuilder, x: Value) -> Sequence[Value]:
        x = x if x.type.dtype == F32 else b.op("cast", x, dtype=F32)
        if method == "apply":
            return (emit(b, x, leaves),)
        y = emit(b, x, f)
        y = b.op("mul", y, scalar(b, y, float(scale))) if scale != 1 else y
        y = b.op("add", y, b.constant(shift)) if shift.any() else y
        if method == "raw_score" or not classifier:
            y = b.op("exp", y) if method != "raw_score" and loss in _EXP else y
            return (flat(b, y) if len(shift) == 1 else y,)
        return (_probabilities(b, y, loss) if method == "predict_proba" else _class(b, y, labels, name),)
    return Table(name, features.count, ("y",), build, np.float32)


# -- questions ---------------------------------------------------------------------------------------------------------
class _Features:
    """Where features are in the table. columns: of numbers and of categories, by their own indices. right: columns whose NaN is
    the largest number. values: the integer that each hash of a category stands for."""

    def __init__(self, info: object, name: str) -> None:
        self.name = name
        for kind in ("text_features", "embedding_features"):
            if _list(info, kind):
                raise UnsupportedError(f"{name}: {kind.replace('_', ' ')} are not compiled")
        numbers, categories = _list(info, "float_features"), _list(info, "categorical_features")
        self.numbers = {int(str(f["feature_index"])): int(str(f["flat_feature_index"])) for f in numbers}
        self.categories = {int(str(f["feature_index"])): int(str(f["flat_feature_index"])) for f in categories}
        self.right = {int(str(f["flat_feature_index"])) for f in numbers if f["nan_value_treatment"] == "AsTrue"}
        self.values = {int(str(h["hash"])): str(h["value"]) for h in _list(info, "cat_features_hash")}
        self.count = max([*self.numbers.values(), *self.categories.values()], default=-1) + 1

    def split(self, s: Json) -> _Split:
        """Column, threshold and kind of a question, and the number that it asks for if that is its kind."""
        kind = str(_get(s, "split_type"))
        if kind == "FloatFeature":
            column = self.numbers[int(str(_get(s, "float_feature_index")))]
            return column, float(str(_get(s, "border"))), MissingKind.NAN | (0 if column in self.right else DEFAULT_LEFT), None
        if kind != "OneHotFeature":
            raise UnsupportedError(f"{self.name}: splits of kind {kind} (statistics of categories) are not compiled; train with "
                                   "one_hot_max_size above the number of categories, or encode them before")
        index = int(str(_get(s, "cat_feature_index")))
        text = self.values.get(int(str(_get(s, "value"))) & 0xFFFFFFFF, "")
        try:
            number = float(int(text))
        except ValueError:
            raise UnsupportedError(f"{self.name}: the category {text!r} of column {self.categories[index]} is no integer; categories "
                                   "that are strings are not compiled, encode them before (OrdinalEncoder)") from None
        return self.categories[index], 0.0, MEMBER | MissingKind.NAN, number


def _add(grove: Grove, splits: Sequence[_Split], which: np.ndarray, no: np.ndarray, yes: np.ndarray, values: np.ndarray) -> None:
    """A tree whose node k asks splits[which[k]]. A question for a number goes left where it is met, so its children change places."""
    column, threshold, kind, number = zip(*splits, strict=True) if splits else ((), (), (), ())
    asks = np.array([v is not None for v in number], bool)[which]
    sets = None
    if asks.any():
        words = np.array([0.0 if v is None else v for v in number], np.float32).view(np.uint32)
        sets = np.where(asks, which, 0), asks.astype(np.int64), words
    ints = [np.array(a, np.int64)[which] for a in (column, kind)]
    grove.add(ints[0], np.array(threshold, np.float32)[which], np.where(asks, yes, no), np.where(asks, no, yes), ints[1], values, 0, sets)


def _add_oblivious(grove: Grove, t: Json, features: _Features, width: int) -> None:
    """All 2^levels leaves; the root asks the last question, so that leaves are in order."""
    splits = [features.split(s) for s in _list(t, "splits")]
    values = np.asarray(_get(t, "leaf_values"), np.float64).reshape(-1, width)
    depth = len(splits)
    if len(values) != 1 << depth:
        raise ModelError(f"the CatBoost model is damaged: a tree of {depth} levels has {len(values)} leaves")
    level = np.repeat(np.arange(depth), 1 << np.arange(depth))
    inner = len(level)
    left = 2 * np.arange(inner) + 1
    no, yes = (np.where(child < inner, child, ~(child - inner)) for child in (left, left + 1))
    _add(grove, splits, depth - 1 - level, no, yes, values)


def _add_tree(grove: Grove, t: Json, features: _Features, width: int) -> None:
    """Nested nodes; leaves in order from left to right."""
    values: list[np.ndarray] = []
    numbers: dict[int, int] = {}
    order: list[Json] = []
    stack = [t]
    while stack:  # not recursion: trees may be deep
        n = stack.pop()
        if "split" in n:
            numbers[id(n)] = len(order)
            order.append(n)
            stack += [cast(Json, _get(n, "right")), cast(Json, _get(n, "left"))]
        else:
            numbers[id(n)] = ~len(values)
            values.append(np.atleast_1d(np.asarray(_get(n, "value"), np.float64)))
    if any(len(v) != width for v in values):
        raise ModelError(f"the CatBoost model is damaged: a leaf has not {width} values")
    no, yes = (np.array([numbers[id(n[side])] for n in order], np.int64) for side in ("left", "right"))
    _add(grove, [features.split(cast(Json, n["split"])) for n in order], np.arange(len(order)), no, yes, np.stack(values))


# -- results -----------------------------------------------------------------------------------------------------------
def _check(loss: str, classifier: bool, name: str) -> None:
    if loss == "RMSEWithUncertainty" or (classifier and loss not in (*_BINARY, *_MULTI)):
        raise UnsupportedError(f"{name}: results of the loss {loss!r} are not known; compile method='raw_score' and transform its result")


def _labels(classes: Json, name: str) -> np.ndarray:
    labels = np.asarray(classes.get("class_names", ()))
    if not labels.size:
        raise UnsupportedError(f"{name}: the model does not say what its classes are; compile method='predict_proba'")
    return labels


def _probabilities(b: GraphBuilder, y: Value, loss: str) -> Value:
    if loss == "MultiClass":
        return b.op("softmax", y, axis=1)
    p = b.op("div", scalar(b, y, 1), b.op("add", scalar(b, y, 1), b.op("exp", b.op("neg", y))))
    return p if loss in _MULTI else both_classes(b, p)


def _class(b: GraphBuilder, y: Value, labels: np.ndarray, name: str) -> Value:
    if y.type.shape[1] > 1:
        return best_class(b, y, labels, name)
    return named_class(b, flat(b, b.op("cast", b.op("gt", y, scalar(b, y, 0)), dtype=I64)), labels, name)
