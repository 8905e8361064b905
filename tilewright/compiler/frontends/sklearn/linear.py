"""Models that are linear in their columns, and the multilayer perceptron."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.types import F64, I64
from .columns import Columns, convert, dense, flat, num
from .estimator import Estimator, best, classes_named, predicts
from .mixture import outliers

REGRESSORS = ("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "Lars", "LassoLars", "LassoLarsCV",
              "LarsCV", "LassoLarsIC", "OrthogonalMatchingPursuit", "OrthogonalMatchingPursuitCV", "BayesianRidge", "ARDRegression",
              "HuberRegressor", "TheilSenRegressor", "SGDRegressor", "LinearSVR", "MultiTaskLasso", "MultiTaskElasticNet",
              "MultiTaskLassoCV", "MultiTaskElasticNetCV", "QuantileRegressor", "PassiveAggressiveRegressor")
GENERALISED = ("PoissonRegressor", "GammaRegressor", "TweedieRegressor")


def raw(e: Estimator, x: Columns) -> Value:
    """x @ coef + intercept: [rows], or [rows, targets]."""
    coef = e.array("coef_")
    y = _shifted(x, coef[:, None] if coef.ndim == 1 else coef.T, e.get("intercept_"))
    return flat(x.b, y) if coef.ndim == 1 else y


def _shifted(x: Columns, w: np.ndarray, intercept: object) -> Value:
    """x @ w + intercept; an intercept of f64, unless a number of Python, makes the sum one of f64."""
    y = x.linear(w, np.broadcast_to(np.atleast_1d(np.asarray(intercept, np.float64)), (w.shape[1],)))
    return convert(x.b, y, F64) if getattr(intercept, "dtype", None) == np.float64 else y


@predicts(*REGRESSORS)
def _regressor(e: Estimator, x: Columns, method: str) -> Value:
    return raw(e, x)


@predicts(*GENERALISED)
def _generalised(e: Estimator, x: Columns, method: str) -> Value:
    link = type(e.get("_base_loss")).__name__ if e.has("_base_loss") else ""
    y = raw(e, x)
    if e.name == "TweedieRegressor":
        identity = e.text("link") == "identity" or (e.text("link") == "auto" and e.number("power") <= 0)
        return y if identity else x.b.op("exp", y)
    assert link or e.name in GENERALISED
    return x.b.op("exp", y)


@predicts("RANSACRegressor")
def _ransac(e: Estimator, x: Columns, method: str) -> Value:
    from .estimator import predict
    return predict(e.get("estimator_"), x, "predict")


# -- classifiers -------------------------------------------------------------------------------------------------------
SCORES = ("predict", "decision_function")
PROBABLE = ("predict", "predict_proba", "predict_log_proba", "decision_function")


def decided(e: Estimator, x: Columns, scores: Value) -> Value:
    """The class, by scores [rows, 1], of which more than 0 is the second class, or [rows, classes]."""
    if scores.type.shape[1] == 1:
        return classes_named(e, x, x.b.op("cast", flat(x.b, x.b.op("gt", scores, num(x.b, scores, 0))), dtype=I64))
    return classes_named(e, x, best(x.s, scores))


def shown(x: Columns, scores: Value) -> Value:
    """decision_function: one column has no second dimension."""
    return flat(x.b, scores) if scores.type.shape[1] == 1 else scores


def two(x: Columns, p: Value) -> Value:
    """[rows, 2] of the probability of the second class [rows, 1]."""
    return x.b.op("concat", x.b.op("sub", num(x.b, p, 1), p), p, axis=1)


def one_against_rest(x: Columns, p: Value) -> Value:
    """Each class's own probability, brought to a sum of 1; equal ones where all are 0."""
    if p.type.shape[1] == 1:
        return two(x, p)
    b, n = x.b, p.type.shape[1]
    total = b.op("reduce", p, kind="sum", axes=(1,), keepdims=1)
    none = b.op("eq", total, num(b, p, 0))
    return b.op("where", none, num(b, p, 1 / n), b.op("div", p, b.op("where", none, num(b, p, 1), total)))


def probable(x: Columns, p: Value, method: str) -> Value:
    return x.b.op("log", p) if method == "predict_log_proba" else p


def _scores(e: Estimator, x: Columns) -> Value:
    return _shifted(x, np.atleast_2d(e.array("coef_")).T, e.get("intercept_"))


@predicts("LogisticRegression", "LogisticRegressionCV", methods=PROBABLE)
def _logistic(e: Estimator, x: Columns, method: str) -> Value:
    s = _scores(e, x)
    if method == "predict":
        return decided(e, x, s)
    if method == "decision_function":
        return shown(x, s)
    several = s.type.shape[1] > 1
    ovr = not several or e.text("solver") == "liblinear" or (e.has("multi_class") and e.text("multi_class") == "ovr")
    if ovr:
        return probable(x, one_against_rest(x, x.b.op("sigmoid", s)), method)
    return x.b.op("log_softmax" if method == "predict_log_proba" else "softmax", s, axis=1)


@predicts("RidgeClassifier", "RidgeClassifierCV", "Perceptron", "LinearSVC", "PassiveAggressiveClassifier", methods=SCORES)
def _classifier(e: Estimator, x: Columns, method: str) -> Value:
    s = _scores(e, x)
    if method == "predict" and e.name.startswith("Ridge") and e.classes.ndim == 1 and s.type.shape[1] > 1:
        return classes_named(e, x, best(x.s, s))
    return decided(e, x, s) if method == "predict" else shown(x, s)


@predicts("SGDClassifier", methods=PROBABLE)
def _sgd(e: Estimator, x: Columns, method: str) -> Value:
    s = _scores(e, x)
    if method in SCORES:
        return decided(e, x, s) if method == "predict" else shown(x, s)
    b = x.b
    if e.text("loss") == "log_loss":
        return probable(x, one_against_rest(x, b.op("sigmoid", s)), method)
    half = b.op("mul", b.op("add", b.op("min", b.op("max", s, num(b, s, -1)), num(b, s, 1)), num(b, s, 1)), num(b, s, 0.5))
    return probable(x, one_against_rest(x, half), method)  # modified_huber; other losses have no such method


@predicts("SGDOneClassSVM", methods=(*SCORES, "score_samples"))
def _one_class(e: Estimator, x: Columns, method: str) -> Value:
    s = flat(x.b, x.linear(np.atleast_2d(e.array("coef_")).T))
    return outliers(x, s, float(e.array("offset_").reshape(-1)[0]), method)


@predicts("LinearDiscriminantAnalysis", methods=PROBABLE)
def _discriminant(e: Estimator, x: Columns, method: str) -> Value:
    s = _scores(e, x)
    if method in SCORES:
        return decided(e, x, s) if method == "predict" else shown(x, s)
    p = two(x, x.b.op("sigmoid", s)) if s.type.shape[1] == 1 else x.b.op("softmax", s, axis=1)
    return probable(x, p, method)


# -- multilayer perceptron ---------------------------------------------------------------------------------------------
ACTIVATIONS = {"identity": "", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu", "softmax": "softmax", "poisson": "exp"}


def _perceptron(e: Estimator, x: Columns) -> Value:
    """[rows, outputs]"""
    weights, shifts = e.list("coefs_"), e.list("intercepts_")
    for k, (w, c) in enumerate(zip(weights, shifts, strict=True)):
        y = x.linear(np.asarray(w), np.asarray(c), f"coef{k}")
        kind = ACTIVATIONS.get(name := e.text("out_activation_" if k + 1 == len(weights) else "activation"))
        if kind is None:
            raise e.refuse(f"activation={name!r}", "it is not known")
        if kind:
            y = x.b.op(kind, y, axis=1) if kind == "softmax" else x.b.op(kind, y)
        x = dense(x.s, y)
    return x.value()


@predicts("MLPRegressor")
def _mlp_regressor(e: Estimator, x: Columns, method: str) -> Value:
    y = _perceptron(e, x)
    return flat(x.b, y) if y.type.shape[1] == 1 else y


@predicts("MLPClassifier", methods=("predict", "predict_proba", "predict_log_proba"))
def _mlp_classifier(e: Estimator, x: Columns, method: str) -> Value:
    y = _perceptron(e, x)
    binary = y.type.shape[1] == 1
    if method == "predict":
        if e.text("out_activation_") == "logistic" and not binary:
            return x.b.op("cast", x.b.op("gt", y, num(x.b, y, 0.5)), dtype=I64)  # several labels at once
        index = x.b.op("cast", flat(x.b, x.b.op("gt", y, num(x.b, y, 0.5))), dtype=I64) if binary else best(x.s, y)
        return classes_named(e, x, index)
    return probable(x, two(x, y) if binary else y, method)


