"""Decompositions whose rows are solved for one by one, and others that are more than one product: NMF, sparse PCA, dictionaries,
a restricted Boltzmann machine, tf-idf, leaves as categories."""
from __future__ import annotations

import numpy as np

from ....errors import UnsupportedError
from ....ir.types import F32, F64
from .columns import Columns, column, convert, dense, divided, inplace, joined, num
from .estimator import Estimator, converts, transform
from .project import projected
from .trees import predict_trees


@converts("NMF")
def _factors(e: Estimator, x: Columns) -> Columns:
    """Each row as the library transforms it alone: over several rows, its stopping rule depends on all of them."""
    if e.text("solver") != "cd" or e.flag("shuffle"):
        raise e.refuse(f"solver={e.text('solver')!r}, shuffle={e.get('shuffle')}", "a row's result depends on the other rows, or on "
                       "chance; compiled is solver='cd' without shuffle")
    h, b = e.array("components_"), x.b
    kind = np.float32 if x.dtype == F32 and h.dtype == np.float32 else np.float64
    alpha, ratio = e.number("alpha_W"), e.number("l1_ratio")
    hh = h.astype(kind) @ h.T.astype(kind)
    hh.flat[::len(hh) + 1] += x.width * alpha * (1 - ratio)
    v = dense(x.s, convert(b, x.value(), F64 if kind == np.float64 else F32))
    xh = v.linear(h.T.astype(kind), np.full(len(h), -x.width * alpha * ratio) if alpha * ratio else None, "components")
    steps, tolerance = int(e.number("max_iter")), e.number("tol")
    return x.dense(b.op("non_negative_factors", xh, x.s.const(hh, "gram"), steps=steps, tolerance=tolerance))


@converts("SparsePCA", "MiniBatchSparsePCA")
def _sparse(e: Estimator, x: Columns) -> Columns:
    """Ridge regression of a row on the components: (x - mean) C' (C C' + alpha)^-1"""
    c = e.array("components_").astype(np.float64)
    matrix = np.linalg.solve(c @ c.T + e.number("ridge_alpha") * np.eye(len(c)), c).T
    return projected(x, matrix.astype(e.array("components_").dtype), e.array("mean_"), "components")


@converts("DictionaryLearning", "MiniBatchDictionaryLearning", "SparseCoder")
def _dictionary(e: Estimator, x: Columns) -> Columns:
    """Soft thresholds of the products with the dictionary."""
    how, b = e.text("transform_algorithm"), x.b
    if how != "threshold":
        raise e.refuse(f"transform_algorithm={how!r}", "it solves an optimisation of its own for each row; compiled is 'threshold'")
    given = e.get("transform_alpha") if e.has("transform_alpha") else getattr(e.model, "alpha", None)
    alpha = 1.0 if given is None else float(given)  # type: ignore[arg-type]
    y = projected(x, e.array("components_" if e.has("components_") else "dictionary").T, None, "components").value()
    size = b.op("sub", b.op("abs", y), num(b, y, alpha))
    y = b.op("mul", b.op("sign", y), b.op("max", size, num(b, y, 0)))
    y = b.op("max", y, num(b, y, 0)) if e.flag("positive_code") else y
    if e.flag("split_sign"):
        parts = (convert(b, v, F64) for v in (b.op("max", y, num(b, y, 0)), b.op("neg", b.op("min", y, num(b, y, 0)))))
        y = b.op("concat", *parts, axis=1)
    return x.dense(y)


@converts("BernoulliRBM")
def _boltzmann(e: Estimator, x: Columns) -> Columns:
    """P(h = 1 | v) = sigmoid(v W' + b)"""
    y = projected(x, e.array("components_").T, None, "components").value()
    return x.dense(x.b.op("sigmoid", inplace(x.s, "add", y, e.array("intercept_hidden_"), "intercept")))


@converts("TfidfTransformer")
def _tfidf(e: Estimator, x: Columns) -> Columns:
    """Zeros stay; the result is dense."""
    b, v = x.b, x.value()
    if e.flag("sublinear_tf"):
        none = b.op("eq", v, num(b, v, 0))
        safe = b.op("where", none, num(b, v, 1), v)
        v = b.op("where", none, num(b, v, 0), b.op("add", b.op("log", safe), num(b, v, 1)))
    if hasattr(e.model, "idf_"):
        v = inplace(x.s, "mul", v, e.array("idf_"), "idf")
    norm = e.get("norm")
    if norm is None:
        return x.dense(v)
    size = b.op("reduce", b.op("abs", v) if norm == "l1" else v, kind="sum" if norm == "l1" else "l2", axes=(1,), keepdims=1)
    return x.dense(divided(b, v, size))


@converts("RandomTreesEmbedding")
def _leaves(e: Estimator, x: Columns) -> Columns:
    """One column for each leaf of each tree."""
    leaves = [predict_trees(t, x, "apply") for t in e.list("estimators_")]
    if any(v.type.rank != 1 for v in leaves):
        raise UnsupportedError("RandomTreesEmbedding: its trees have several results")
    parts = [dense(x.s, convert(x.b, column(x.b, v), F64)) for v in leaves]
    return transform(e.get("one_hot_encoder_"), joined(x.s, parts))
