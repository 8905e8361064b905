"""Naive Bayes: sums of log probabilities of columns."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.types import F32, F64, I64
from .columns import Columns, convert, flat, num
from .estimator import Estimator, best, classes_named, predicts
from .neighbors import gaps

BAYES = ("predict", "predict_proba", "predict_log_proba", "predict_joint_log_proba")


def _answered(e: Estimator, x: Columns, joint: Value, method: str) -> Value:
    """From log P(x, class) [rows, classes]."""
    if method == "predict":
        return classes_named(e, x, best(x.s, joint))
    if method == "predict_joint_log_proba":
        return joint
    return x.b.op("log_softmax" if method == "predict_log_proba" else "softmax", joint, axis=1)


@predicts("GaussianNB", methods=BAYES)
def _gaussian(e: Estimator, x: Columns, method: str) -> Value:
    b, theta, var = x.b, e.array("theta_").astype(np.float64), e.array("var_").astype(np.float64)
    gap = b.op("sub", *gaps(x, theta, "theta"))
    sums = b.op("reduce", b.op("div", b.op("mul", gap, gap), x.s.const(var[None], "var")), kind="sum", axes=(2,), keepdims=0)
    base = np.log(e.array("class_prior_").astype(np.float64)) - 0.5 * np.log(2 * np.pi * var).sum(1)
    joint = b.op("sub", x.s.const(base[None], "prior"), b.op("mul", sums, num(b, sums, 0.5)))
    return _answered(e, x, convert(b, joint, F32 if x.dtype == F32 and e.array("theta_").dtype == np.float32 else F64), method)


@predicts("MultinomialNB", "BernoulliNB", "ComplementNB", methods=BAYES)
def _discrete(e: Estimator, x: Columns, method: str) -> Value:
    log = e.array("feature_log_prob_").astype(np.float64)
    prior = e.array("class_log_prior_").astype(np.float64)
    if e.name == "ComplementNB" and len(prior) > 1:
        prior = np.zeros(len(log))
    if e.name == "BernoulliNB":
        if e.has("binarize"):
            v = x.value()
            x = x.dense(x.b.op("cast", x.b.op("gt", v, num(x.b, v, e.number("binarize"))), dtype=v.type.dtype))
        negative = np.log(1 - np.exp(log))
        prior, log = prior + negative.sum(1), log - negative
    return _answered(e, x, x.linear(log.T, prior, "feature_log_prob"), method)


@predicts("CategoricalNB", methods=BAYES)
def _categorical(e: Estimator, x: Columns, method: str) -> Value:
    total = x.s.const(e.array("class_log_prior_").astype(np.float64)[None], "prior")
    b = x.b
    for k, table in enumerate(e.list("feature_log_prob_")):
        index = b.op("cast", flat(b, x.column(k).value()), dtype=I64)
        n = np.asarray(table).shape[1]
        index = b.op("max", b.op("min", index, num(b, index, n - 1)), num(b, index, 0))
        total = b.op("add", total, b.op("gather", x.s.const(np.asarray(table, np.float64).T, "log_prob"), index, axis=0))
    return _answered(e, x, total, method)
