"""Estimators made of others: voting, stacking, bagging, calibration, one model for each output or class."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....errors import UnsupportedError
from ....ir.graph import Value
from ....ir.types import F32, F64, I64, dtype_of
from .columns import Columns, column, convert, dense, divided, flat, joined, num, pick_columns
from .estimator import Estimator, best, classes_named, converts, predict, predicts
from .features import interpolate
from .linear import two

NUMBERS = "biuf"


def _weights(e: Estimator) -> np.ndarray | None:
    w = e.get("_weights_not_none")
    return None if w is None else np.asarray(w, np.float64)


def averaged(x: Columns, several: Sequence[Value], weights: np.ndarray | None) -> Value:
    """numpy.average of tables."""
    b = x.b
    w = np.ones(len(several)) if weights is None else weights
    wide = F32 if weights is None and all(v.type.dtype == F32 for v in several) else F64
    total: Value | None = None
    for v, k in zip(several, w, strict=True):
        term = convert(b, v, wide)
        term = term if weights is None else b.op("mul", term, b.constant(np.array(k)))
        total = term if total is None else b.op("add", total, term)
    assert total is not None
    return b.op("div", total, num(b, total, float(w.sum())))


def _number_classes(e: Estimator, model: object) -> None:
    """Members are fitted on the classes' numbers."""
    kind = np.asarray(getattr(model, "classes_", [0])).dtype.kind
    if kind not in NUMBERS:
        raise e.refuse(f"a {type(model).__name__} fitted before on classes of type {kind}",
                       "members that were fitted on class names are not joined")


def class_positions(x: Columns, model: object, classes: np.ndarray) -> Value:
    """i64[rows]: where the model's predicted class is among `classes`."""
    b, s = x.b, x.s
    s.labels = None
    y, named = predict(model, x, "predict"), s.labels
    s.labels = None
    if named is not None:
        at = np.asarray(np.searchsorted(classes, named), np.int64)
        return y if np.array_equal(at, np.arange(len(at))) else b.op("gather", b.constant(at), y, axis=0)
    if np.array_equal(classes, np.arange(len(classes))):
        return convert(b, y, I64)
    same = b.op("eq", column(b, convert(b, y, F64)), b.constant(np.asarray(classes, np.float64)[None]))
    return b.op("arg_reduce", b.op("cast", same, dtype=I64), kind="max", axis=1, keepdims=0)


# -- voting ------------------------------------------------------------------------------------------------------------
@predicts("VotingRegressor")
def _voting_regressor(e: Estimator, x: Columns, method: str) -> Value:
    return averaged(x, [predict(m, x, "predict") for m in e.list("estimators_")], _weights(e))


@predicts("VotingClassifier", methods=("predict", "predict_proba"))
def _voting_classifier(e: Estimator, x: Columns, method: str) -> Value:
    members = e.list("estimators_")
    if method == "predict_proba" or e.text("voting") == "soft":
        p = averaged(x, [predict(m, x, "predict_proba") for m in members], _weights(e))
        return p if method == "predict_proba" else classes_named(e, x, best(x.s, p))
    b, n = x.b, len(e.classes)
    votes: Value | None = None
    weights = _weights(e)
    for k, m in enumerate(members):
        _number_classes(e, m)
        v = column(b, convert(b, predict(m, x, "predict"), I64))
        one = b.op("cast", b.op("eq", v, b.constant(np.arange(n, dtype=np.int64)[None])), dtype=F64)
        one = one if weights is None else b.op("mul", one, b.constant(weights[k]))
        votes = one if votes is None else b.op("add", votes, one)
    assert votes is not None
    return classes_named(e, x, best(x.s, votes))


@converts("VotingClassifier", "VotingRegressor")
def _voting_transform(e: Estimator, x: Columns) -> Columns:
    soft = e.name == "VotingClassifier" and e.text("voting") == "soft"
    if soft and not e.flag("flatten_transform"):
        raise e.refuse("transform with flatten_transform=False", "a result has two dimensions")
    return joined(x.s, [_as_columns(x, predict(m, x, "predict_proba" if soft else "predict")) for m in e.list("estimators_")])


def _as_columns(x: Columns, v: Value) -> Columns:
    return dense(x.s, column(x.b, v) if v.type.rank == 1 else v)


# -- stacking ----------------------------------------------------------------------------------------------------------
@converts("StackingClassifier", "StackingRegressor")
def _stacked(e: Estimator, x: Columns) -> Columns:
    out = []
    for m, method in zip(e.list("estimators_"), e.list("stack_method_"), strict=True):
        if method == "predict":
            _number_classes(e, m)
        y = predict(m, x, str(method))
        if y.type.dtype not in (F64, x.dtype):
            y = convert(x.b, y, F64)
        c = _as_columns(x, y)
        if method == "predict_proba" and e.name == "StackingClassifier" and len(e.classes) == 2 and c.width == 2:
            c = c.select([1])
        out.append(c)
    return joined(x.s, [*out, x] if e.flag("passthrough") else out)


@predicts("StackingRegressor")
def _stacking_regressor(e: Estimator, x: Columns, method: str) -> Value:
    return predict(e.get("final_estimator_"), _stacked(e, x), "predict")


@predicts("StackingClassifier", methods=("predict", "predict_proba", "decision_function"))
def _stacking_classifier(e: Estimator, x: Columns, method: str) -> Value:
    final = e.get("final_estimator_")
    y = predict(final, _stacked(e, x), method)
    if method != "predict":
        return y
    _number_classes(e, final)
    return classes_named(e, x, convert(x.b, y, I64))


# -- bagging, and one model for each output ----------------------------------------------------------------------------
def _members(e: Estimator, x: Columns) -> list[tuple[object, Columns]]:
    members = zip(e.list("estimators_"), e.list("estimators_features_"), strict=True)
    return [(m, x.select([int(k) for k in np.asarray(f)])) for m, f in members]


@predicts("BaggingRegressor")
def _bagging_regressor(e: Estimator, x: Columns, method: str) -> Value:
    return averaged(x, [predict(m, c, "predict") for m, c in _members(e, x)], None)


@predicts("BaggingClassifier", methods=("predict", "predict_proba"))
def _bagging_classifier(e: Estimator, x: Columns, method: str) -> Value:
    """Members are fitted on the classes' numbers; those without probabilities vote."""
    members, n = _members(e, x), len(e.classes)
    shares = []
    for m, c in members:
        if not hasattr(m, "predict_proba"):
            at = column(x.b, convert(x.b, predict(m, c, "predict"), I64))
            shares.append(x.b.op("cast", x.b.op("eq", at, x.b.constant(np.arange(n, dtype=np.int64)[None])), dtype=F64))
        elif len(Estimator(m).classes) != n:
            raise e.refuse("a member that has not seen some class", "its probabilities are those of other classes")
        else:
            shares.append(convert(x.b, predict(m, c, "predict_proba"), F64))
    p = averaged(x, shares, None)
    return p if method == "predict_proba" else classes_named(e, x, best(x.s, p))


@predicts("MultiOutputRegressor", "MultiOutputClassifier")
def _outputs(e: Estimator, x: Columns, method: str) -> Value:
    parts = [predict(m, x, "predict") for m in e.list("estimators_")]
    if x.s.labels is not None:
        raise e.refuse("classes that are no numbers", "one column of the result could not be told from another")
    return x.b.op("concat", *(column(x.b, v) for v in parts), axis=1)


@predicts("OneVsRestClassifier", methods=("predict", "predict_proba", "decision_function"))
def _one_vs_rest(e: Estimator, x: Columns, method: str) -> Value:
    b, members = x.b, e.list("estimators_")
    several = e.flag("multilabel_")
    source = method
    if method == "predict":
        source = "decision_function" if hasattr(members[0], "decision_function") else "predict_proba"
    scores = []
    for m in members:
        y = predict(m, x, source)
        scores.append(y if y.type.rank == 1 else flat(b, pick_columns(b, y, [1])))
    wide = F32 if all(v.type.dtype == F32 for v in scores) else F64
    scores = [convert(b, v, wide) for v in scores]
    limit = 0.0 if source == "decision_function" else 0.5
    if several:
        y = b.op("concat", *(column(b, s) for s in scores), axis=1)
        return b.op("cast", b.op("gt", y, num(b, y, limit)), dtype=I64) if method == "predict" else y
    if len(members) == 1:
        if method == "decision_function":
            return scores[0]
        if method == "predict_proba":
            return two(x, column(b, scores[0]))
        return classes_named(e, x, b.op("cast", b.op("gt", scores[0], num(b, scores[0], limit)), dtype=I64))
    y = b.op("concat", *(column(b, s) for s in scores), axis=1)
    if method == "predict":
        return classes_named(e, x, best(x.s, y))
    if method == "decision_function":
        return y
    total = b.op("reduce", y, kind="sum", axes=(1,), keepdims=1)
    return divided(b, y, total)


@predicts("_ConstantPredictor", methods=("predict", "predict_proba", "decision_function"))
def _constant(e: Estimator, x: Columns, method: str) -> Value:
    """The answer for a class that no row, or every row, had."""
    y = np.asarray(e.get("y_"), np.float64).reshape(-1)
    row = np.concatenate([1 - y, y])[None] if method == "predict_proba" else y
    return x.b.op("expand", x.b.constant(row), shape=(x.s.rows, *row.shape[1:]))


# -- calibration -------------------------------------------------------------------------------------------------------
@predicts("CalibratedClassifierCV", methods=("predict", "predict_proba"))
def _calibrated(e: Estimator, x: Columns, method: str) -> Value:
    p = averaged(x, [_calibrated_one(Estimator(m), x) for m in e.list("calibrated_classifiers_")], None)
    return p if method == "predict_proba" else classes_named(e, x, best(x.s, p))


def _calibrated_one(e: Estimator, x: Columns) -> Value:
    """[rows, classes] of one _CalibratedClassifier."""
    b, model, n = x.b, e.get("estimator"), len(e.array("classes"))
    source = "decision_function" if hasattr(model, "decision_function") else "predict_proba"
    if len(Estimator(model).classes) != n:
        raise e.refuse("a fold without some class", "its classes are not those of the whole")
    y = predict(model, x, source)
    if n == 2:
        y = column(b, y) if y.type.rank == 1 else pick_columns(b, y, [1])
    y = convert(b, y, F64)
    if e.text("method") == "temperature":
        return _temperature(e, x, y, source)
    parts = []
    for k, c in enumerate(e.list("calibrators")):
        one = pick_columns(b, y, [k])
        own = Estimator(c)
        if own.name == "_SigmoidCalibration":
            parts.append(b.op("sigmoid", b.op("neg", b.op("add", b.op("mul", one, num(b, one, own.number("a_"))),
                                                         num(b, one, own.number("b_"))))))
        else:
            parts.append(convert(b, _isotonic_value(own, x, one), F64))
    if n == 2:
        return two(x, parts[0])
    p = b.op("concat", *parts, axis=1)
    total = b.op("reduce", p, kind="sum", axes=(1,), keepdims=1)
    none = b.op("eq", total, num(b, p, 0))
    return b.op("where", none, num(b, p, 1 / n), b.op("div", p, b.op("where", none, num(b, p, 1), total)))


def _temperature(e: Estimator, x: Columns, y: Value, source: str) -> Value:
    b = x.b
    if y.type.shape[1] == 1:
        y = two(x, y) if source == "predict_proba" else b.op("concat", b.op("neg", y), y, axis=1)
    if source == "predict_proba":
        y = b.op("log", b.op("add", y, num(b, y, 1e-12)))
    beta = Estimator(e.list("calibrators")[0]).number("beta_")
    return b.op("softmax", b.op("mul", y, num(b, y, beta)), axis=1)


def _isotonic_value(e: Estimator, x: Columns, v: Value) -> Value:
    """[rows, 1]"""
    b = x.b
    xs, ys = e.array("X_thresholds_").astype(np.float64), e.array("y_thresholds_").astype(np.float64)
    if len(xs) == 1:
        return b.op("expand", num(b, v, float(ys[0])), shape=v.type.shape)
    kind = dtype_of(e.array("X_thresholds_").dtype)
    v = convert(b, convert(b, v, kind), F64)
    y = convert(b, interpolate(x, v, xs[:, None], ys), kind)
    if e.text("out_of_bounds") == "clip":
        return y
    if e.text("out_of_bounds") == "nan":
        outside = b.op("or", b.op("lt", v, num(b, v, float(xs[0]))), b.op("gt", v, num(b, v, float(xs[-1]))))
        return b.op("where", outside, num(b, v, np.nan), y)
    raise UnsupportedError("IsotonicRegression: out_of_bounds='raise' is not compiled: compiled code does not raise for values")


@predicts("IsotonicRegression")
def _isotonic(e: Estimator, x: Columns, method: str) -> Value:
    return flat(x.b, _isotonic_value(e, x, convert(x.b, x.value(), F64)))
