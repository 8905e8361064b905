"""Estimators that turn one model's answer into another's: targets transformed before fitting, thresholds, chains, one model for
each pair of classes, codes of classes, constants."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.types import F64, I64
from .columns import Columns, column, convert, dense, flat, joined, num, pick_columns
from .ensemble import class_positions
from .estimator import Estimator, best, classes_named, converts, predict, predicts, transform
from .inverse import inverted

ANY = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples")


# -- wrappers ----------------------------------------------------------------------------------------------------------
@predicts("FrozenEstimator", methods=ANY)
def _frozen(e: Estimator, x: Columns, method: str) -> Value:
    return predict(e.get("estimator"), x, method)


@converts("FrozenEstimator")
def _frozen_transform(e: Estimator, x: Columns) -> Columns:
    return transform(e.get("estimator"), x)


@predicts("SelfTrainingClassifier", methods=ANY[:4])
def _self_training(e: Estimator, x: Columns, method: str) -> Value:
    return predict(e.get("estimator_"), x, method)


@predicts("TransformedTargetRegressor")
def _transformed_target(e: Estimator, x: Columns, method: str) -> Value:
    y = predict(e.get("regressor_"), x, "predict")
    out = inverted(e.get("transformer_"), dense(x.s, column(x.b, y) if y.type.rank == 1 else y)).value()
    return flat(x.b, out) if int(e.number("_training_dim")) == 1 and out.type.shape[1] == 1 else out


# -- thresholds --------------------------------------------------------------------------------------------------------
@predicts("FixedThresholdClassifier", "TunedThresholdClassifierCV", methods=ANY[:4])
def _threshold(e: Estimator, x: Columns, method: str) -> Value:
    model = e.get("estimator_" if e.has("estimator_") else "estimator")
    if method != "predict":
        return predict(model, x, method)
    how = e.text("response_method")
    source = how if how != "auto" else "predict_proba" if hasattr(model, "predict_proba") else "decision_function"
    positive = _positive(e)
    limit = e.number("best_threshold_") if e.has("best_threshold_") else None
    if limit is None:
        given = e.get("threshold")
        limit = (0.5 if source == "predict_proba" else 0.0) if given == "auto" else e.number("threshold")
    b, y = x.b, predict(model, x, source)
    if source == "predict_proba":
        y = flat(b, pick_columns(b, y, [positive]))
    elif positive == 0:
        y = b.op("neg", y)
    over = b.op("cast", b.op("ge", y, num(b, y, limit)), dtype=I64)
    return classes_named(e, x, over if positive == 1 else b.op("sub", b.constant(np.array(1, np.int64)), over))


def _positive(e: Estimator) -> int:
    label = e.get("pos_label") if hasattr(e.model, "pos_label") else None
    if e.has("_curve_scorer"):
        label = e.get("_curve_scorer")._get_pos_label()  # type: ignore[attr-defined]
    return 1 if label is None else int(np.flatnonzero(e.classes == label)[0])


# -- several binary models ---------------------------------------------------------------------------------------------
def confidence(x: Columns, model: object) -> tuple[Value, float]:
    """[rows]: what a binary model says of its second class, and the value from which on it is chosen."""
    if hasattr(model, "decision_function"):
        y = predict(model, x, "decision_function")
        return y if y.type.rank == 1 else flat(x.b, y), 0.0
    if hasattr(model, "predict_proba"):
        y = predict(model, x, "predict_proba")
        return flat(x.b, pick_columns(x.b, y, [1])), 0.5
    return predict(model, x, "predict"), 0.5


@predicts("OneVsOneClassifier", methods=("predict", "decision_function"))
def _one_vs_one(e: Estimator, x: Columns, method: str) -> Value:
    """Votes, and of equal ones the sums of confidences, brought into (-1/3, 1/3)."""
    b, n = x.b, len(e.classes)
    if e.has("pairwise_indices_"):
        raise e.refuse("a precomputed kernel", "rows of features are compiled")
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    first, second = np.zeros((len(pairs), n)), np.zeros((len(pairs), n))
    for k, (i, j) in enumerate(pairs):
        first[k, i] = second[k, j] = 1
    members = e.list("estimators_")
    won = [column(b, convert(b, predict(m, x, "predict"), F64)) for m in members]
    sure = [column(b, convert(b, confidence(x, m)[0], F64)) for m in members]
    votes = dense(x.s, b.op("concat", *won, axis=1)).linear(second - first, first.sum(0), "votes")
    sums = dense(x.s, b.op("concat", *sure, axis=1)).linear(second - first, None, "confidences")
    near = b.op("mul", b.op("add", b.op("abs", sums), num(b, sums, 1)), num(b, sums, 3))
    scores = b.op("add", votes, b.op("div", sums, near))
    if n == 2:
        one = flat(b, pick_columns(b, scores, [1]))
        if method == "decision_function":
            return one
        limit = confidence(x, members[0])[1]
        return classes_named(e, x, b.op("cast", b.op("gt", one, num(b, one, limit)), dtype=I64))
    return scores if method == "decision_function" else classes_named(e, x, best(x.s, scores))


@predicts("OutputCodeClassifier")
def _output_code(e: Estimator, x: Columns, method: str) -> Value:
    """The class whose code is nearest to the members' answers."""
    b, codes = x.b, e.array("code_book_").astype(np.float64)
    y = b.op("concat", *(column(b, convert(b, confidence(x, m)[0], F64)) for m in e.list("estimators_")), axis=1)
    gap = b.op("sub", b.op("reshape", y, shape=(x.s.rows, 1, codes.shape[1])), x.s.const(codes[None], "code_book"))
    d = b.op("reduce", gap, kind="sum_square", axes=(2,), keepdims=0)
    return classes_named(e, x, b.op("arg_reduce", d, kind="min", axis=1, keepdims=0))


# -- chains ------------------------------------------------------------------------------------------------------------
@predicts("ClassifierChain", "RegressorChain", methods=ANY[:4])
def _chain(e: Estimator, x: Columns, method: str) -> Value:
    """Each model sees the answers of those before it."""
    b = x.b
    how = e.text("chain_method_") if e.has("chain_method_") else "predict"
    source = "predict_proba" if method == "predict_log_proba" else method
    seen, out = x, []
    for m in e.list("estimators_"):
        y = _binary_answer(e, m, seen, how)
        out.append(y if source == how else _binary_answer(e, m, seen, source))
        seen = joined(x.s, [seen, dense(x.s, y)])
    order = np.empty(len(out), np.int64)
    order[np.asarray(e.get("order_"), np.int64)] = np.arange(len(out))
    whole = b.op("concat", *(out[k] for k in order), axis=1)
    return b.op("log", whole) if method == "predict_log_proba" else whole


def _binary_answer(e: Estimator, model: object, x: Columns, method: str) -> Value:
    """[rows, 1] in f64"""
    y = predict(model, x, method)
    if x.s.labels is not None:
        raise e.refuse("classes that are no numbers", "the library has none either")
    if y.type.rank == 2:
        y = pick_columns(x.b, y, [1])
    return convert(x.b, column(x.b, y) if y.type.rank == 1 else y, F64)


# -- constants ---------------------------------------------------------------------------------------------------------
@predicts("DummyRegressor")
def _dummy_regressor(e: Estimator, x: Columns, method: str) -> Value:
    row = e.array("constant_").reshape(-1)
    row = row.astype(np.float64) if row.dtype.kind != "f" else row
    shape = (x.s.rows,) if len(row) == 1 else (x.s.rows, len(row))
    return x.b.op("expand", x.b.constant(row if len(row) == 1 else row[None]), shape=shape)


@predicts("DummyClassifier", methods=("predict", "predict_proba", "predict_log_proba"))
def _dummy_classifier(e: Estimator, x: Columns, method: str) -> Value:
    how = e.text("_strategy")
    if int(e.number("n_outputs_")) != 1:
        raise e.refuse("several outputs", "one target is compiled")
    if how == "stratified" or (how == "uniform" and method == "predict"):
        raise e.refuse(f"strategy={how!r}", "its answers are drawn at random")
    prior, n = e.array("class_prior_").astype(np.float64), len(e.classes)
    at = int(np.flatnonzero(e.classes == e.get("constant"))[0]) if how == "constant" else int(prior.argmax())
    if method == "predict":
        return classes_named(e, x, x.b.op("expand", x.b.constant(np.array([at])), shape=(x.s.rows,)))
    p = prior if how == "prior" else np.full(n, 1 / n) if how == "uniform" else np.eye(n)[at]
    with np.errstate(divide="ignore"):
        return x.b.op("expand", x.b.constant((np.log(p) if method == "predict_log_proba" else p)[None]), shape=(x.s.rows, n))


# -- boosting by weights -----------------------------------------------------------------------------------------------
@predicts("AdaBoostClassifier", methods=ANY[:4])
def _ada_classifier(e: Estimator, x: Columns, method: str) -> Value:
    b, n = x.b, len(e.classes)
    weights = e.array("estimator_weights_").astype(np.float64)
    members = e.list("estimators_")
    pred: Value | None = None
    for m, w in zip(members, weights, strict=False):
        at = column(b, class_positions(x, m, e.classes))
        mine = b.op("eq", at, b.constant(np.arange(n, dtype=np.int64)[None]))
        term = b.op("where", mine, b.constant(np.array(w)), b.constant(np.array(-1 / (n - 1) * w)))
        pred = term if pred is None else b.op("add", pred, term)
    assert pred is not None
    pred = b.op("div", pred, b.constant(np.array(weights.sum())))
    if n == 2:
        score = b.op("sub", *(flat(b, pick_columns(b, pred, [k])) for k in (1, 0)))
        if method == "decision_function":
            return score
        if method == "predict":
            return classes_named(e, x, b.op("cast", b.op("gt", score, num(b, score, 0)), dtype=I64))
        c = column(b, score)
        pred = b.op("mul", b.op("concat", b.op("neg", c), c, axis=1), num(b, c, 0.5))
    elif method == "decision_function":
        return pred
    elif method == "predict":
        return classes_named(e, x, best(x.s, pred))
    else:
        pred = b.op("div", pred, num(b, pred, n - 1))
    return b.op("log_softmax" if method == "predict_log_proba" else "softmax", pred, axis=1)


@predicts("AdaBoostRegressor")
def _ada_regressor(e: Estimator, x: Columns, method: str) -> Value:
    """The weighted median: the least answer such that those up to it weigh half of all."""
    b, members = x.b, e.list("estimators_")
    n = len(members)
    weights = e.array("estimator_weights_").astype(np.float64)[:n]
    y = b.op("concat", *(column(b, predict(m, x, "predict")) for m in members), axis=1)
    below = b.op("le", b.op("reshape", y, shape=(x.s.rows, 1, n)), b.op("reshape", y, shape=(x.s.rows, n, 1)))
    up_to = b.op("where", below, x.s.const(weights[None, None], "weights"), b.constant(np.array(0.0)))
    enough = b.op("ge", b.op("reduce", up_to, kind="sum", axes=(2,), keepdims=0), b.constant(np.array(0.5 * np.cumsum(weights)[-1])))
    return b.op("reduce", b.op("where", enough, y, num(b, y, np.inf)), kind="min", axes=(1,), keepdims=0)
