"""Support vector machines: a kernel's values against the support vectors, times their coefficients. In f64, as libsvm."""
from __future__ import annotations

import numpy as np

from ....ir.graph import Value
from ....ir.types import F64, I64
from .columns import Columns, convert, dense, flat, num
from .estimator import Estimator, best, classes_named, predicts
from .pairwise import polynomial, rbf, sigmoid


def _kernel(e: Estimator, x: Columns) -> Columns:
    """[rows, support vectors]; for a linear kernel x itself."""
    kind, b = e.text("kernel"), x.b
    sv = e.get("support_vectors_")
    if not isinstance(sv, np.ndarray) or type(e.get("dual_coef_")) is not np.ndarray:
        raise e.refuse("a model fitted on sparse data", "fit it on an array")
    sv = sv.astype(np.float64)
    gamma = e.number("_gamma")
    if kind == "linear":
        return dense(x.s, convert(b, x.value(), F64))
    if kind == "rbf":
        return dense(x.s, rbf(x, sv, gamma))
    if kind == "poly":
        return dense(x.s, polynomial(x, sv, gamma, int(e.number("degree")), e.number("coef0")))
    if kind == "sigmoid":
        return dense(x.s, sigmoid(x, sv, gamma, e.number("coef0")))
    raise e.refuse(f"kernel={kind!r}", "compiled are 'linear', 'rbf', 'poly' and 'sigmoid'")


def _weighted(e: Estimator, x: Columns, coefficients: np.ndarray, shift: np.ndarray) -> Value:
    """kernel @ coefficients + shift, for coefficients [support vectors, outputs]."""
    k = _kernel(e, x)
    if e.text("kernel") == "linear":
        coefficients = e.array("support_vectors_").astype(np.float64).T @ coefficients
    return k.linear(coefficients, shift, "dual_coef")


@predicts("SVR", "NuSVR")
def _svr(e: Estimator, x: Columns, method: str) -> Value:
    return flat(x.b, _weighted(e, x, e.array("dual_coef_").T, e.array("intercept_")))


@predicts("OneClassSVM", methods=("predict", "decision_function", "score_samples"))
def _one_class(e: Estimator, x: Columns, method: str) -> Value:
    y = flat(x.b, _weighted(e, x, e.array("dual_coef_").T, e.array("intercept_")))
    if method == "decision_function":
        return y
    if method == "score_samples":
        return x.b.op("add", y, num(x.b, y, float(e.array("offset_").reshape(-1)[0])))
    return x.b.op("where", x.b.op("gt", y, num(x.b, y, 0)), x.b.constant(np.array(1, np.int64)), x.b.constant(np.array(-1, np.int64)))


def _pairs(e: Estimator) -> np.ndarray:
    """[support vectors, pairs of classes]: libsvm keeps, for each vector, its coefficients against the other classes."""
    dual, counts = e.array("dual_coef_"), e.array("n_support_")
    ends = np.cumsum([0, *counts])
    n = len(counts)
    out = np.zeros((dual.shape[1], n * (n - 1) // 2))
    k = 0
    for i in range(n):
        for j in range(i + 1, n):
            out[ends[i]:ends[i + 1], k] = dual[j - 1, ends[i]:ends[i + 1]]
            out[ends[j]:ends[j + 1], k] = dual[i, ends[j]:ends[j + 1]]
            k += 1
    return out


LEAST = 1e-7  # probability of a pair, in libsvm


def _probabilities(e: Estimator, x: Columns) -> Value:
    """[rows, classes]: a sigmoid of each pair's decision, coupled as libsvm does it."""
    b, n = x.b, len(e.classes)
    if not e.flag("probability"):
        raise e.refuse("predict_proba", "the model was fitted with probability=False")
    coefficients = -e.array("dual_coef_").T if n == 2 else _pairs(e)  # of two classes, the library turns the sign
    shift = -e.array("intercept_") if n == 2 else e.array("intercept_")
    y = _weighted(e, x, coefficients, shift)
    a, c = (np.atleast_1d(e.array(k)).astype(np.float64) for k in ("_probA", "_probB"))
    r = b.op("sigmoid", b.op("neg", b.op("add", b.op("mul", y, x.s.const(a[None], "prob_a")), x.s.const(c[None], "prob_b"))))
    r = b.op("min", b.op("max", r, num(b, r, LEAST)), num(b, r, 1 - LEAST))
    return b.op("couple_pairs", r, classes=n)


@predicts("SVC", "NuSVC", methods=("predict", "decision_function", "predict_proba", "predict_log_proba"))
def _svc(e: Estimator, x: Columns, method: str) -> Value:
    """One machine for each pair of classes; the first class with the most votes wins."""
    b, n = x.b, len(e.classes)
    if method in ("predict_proba", "predict_log_proba"):
        p = _probabilities(e, x)
        return p if method == "predict_proba" else b.op("log", p)
    if n == 2:
        y = flat(b, _weighted(e, x, e.array("dual_coef_").T, e.array("intercept_")))
        if method == "decision_function":
            return y
        return classes_named(e, x, b.op("cast", b.op("ge", y, num(b, y, 0)), dtype=I64))
    y = _weighted(e, x, _pairs(e), e.array("intercept_"))
    ovr = e.text("decision_function_shape") == "ovr"
    if method == "decision_function" and not ovr:
        return y
    first = b.op("gt", y, num(b, y, 0))
    # libsvm counts 0 for the second class, the library's own decision function for the first
    won = b.op("cast", first if method == "predict" and not e.flag("break_ties") else b.op("not", b.op("lt", y, num(b, y, 0))), dtype=F64)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    votes_first, votes_second = np.zeros((len(pairs), n)), np.zeros((len(pairs), n))
    for k, (i, j) in enumerate(pairs):
        votes_first[k, i] = votes_second[k, j] = 1
    votes = dense(x.s, won).linear(votes_first - votes_second, votes_second.sum(0), "votes")
    if method == "predict" and not e.flag("break_ties"):
        return classes_named(e, x, best(x.s, votes))
    sums = dense(x.s, y).linear(votes_first - votes_second, None, "confidences")
    near = b.op("mul", b.op("add", b.op("abs", sums), num(b, sums, 1)), num(b, sums, 3))
    scores = b.op("add", votes, b.op("div", sums, near))
    return classes_named(e, x, best(x.s, scores)) if method == "predict" else scores
