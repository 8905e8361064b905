"""Encoders of categories: one-hot, ordinal, target; and bins."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir.graph import Value
from ....ir.types import DType, dtype_of
from .columns import Columns, Hot, column, joined, pick_columns
from .estimator import Estimator, converts
from .search import category, positions


def _categories(e: Estimator) -> list[np.ndarray]:
    return [np.asarray(c) for c in e.list("categories_")]


def _float(e: Estimator, dtype: object) -> DType:
    try:
        return dtype_of(dtype)  # type: ignore[arg-type]
    except TypeError:
        raise e.refuse(f"dtype={dtype!r}", "results are numbers") from None


@converts("OneHotEncoder")
def _one_hot(e: Estimator, x: Columns) -> Columns:
    """Unknown categories: a row of zeros, or the infrequent column. Where the library raises, strings raise at the boundary and
    numbers give zeros."""
    out, kind, strict = [], _float(e, e.get("dtype")), e.text("handle_unknown") == "error"
    infrequent = e.list("_infrequent_indices") if getattr(e.model, "_infrequent_enabled", False) else [None] * x.width
    mapping = e.list("_default_to_infrequent_mappings") if getattr(e.model, "_infrequent_enabled", False) else [None] * x.width
    dropped = e.list("_drop_idx_after_grouping") if e.has("_drop_idx_after_grouping") else [None] * x.width
    for k, names in enumerate(_categories(e)):
        index, n = category(x, k, names, e.name, strict), len(names)
        to = mapping[k]
        if to is not None:
            groups = np.asarray(to, np.int64)
            n = int(groups.max()) + 1
            unknown = n
            if e.text("handle_unknown") == "infrequent_if_exist" and infrequent[k] is not None:
                unknown = int(groups[np.asarray(infrequent[k])[0]])
            index = x.b.op("gather", x.b.constant(np.append(groups, unknown)), index, axis=0)
        drop = dropped[k]
        hot = [i for i in range(n) if drop is None or i != int(drop)]  # type: ignore[call-overload]
        out.append(Columns(x.s, (Hot(index, n, tuple(hot), kind),)))
    return joined(x.s, out)


@converts("OrdinalEncoder")
def _ordinal(e: Estimator, x: Columns) -> Columns:
    kind = _float(e, e.get("dtype"))
    strict = e.text("handle_unknown") == "error"
    unknown = np.nan if strict else float(e.number("unknown_value"))
    gaps = e.get("_missing_indices")
    assert isinstance(gaps, dict)
    grouped = e.list("_default_to_infrequent_mappings") if getattr(e.model, "_infrequent_enabled", False) else [None] * x.width
    tables = []
    for k, names in enumerate(_categories(e)):
        table = np.arange(len(names) + 1, dtype=np.float64)
        if grouped[k] is not None:
            table[:len(names)] = np.asarray(grouped[k], np.float64)
        table[-1] = unknown
        if k in gaps:
            table[gaps[k]] = e.number("encoded_missing_value")
        tables.append(table.astype(kind.numpy))
    return _looked_up(e, x, tables, strict)


def _looked_up(e: Estimator, x: Columns, tables: Sequence[np.ndarray], strict: bool) -> Columns:
    """tables[k][category of column k]"""
    out = []
    for k, (names, table) in enumerate(zip(_categories(e), tables, strict=True)):
        index = category(x, k, names, e.name, strict)
        v = x.b.op("gather", x.s.const(table, "codes"), index, axis=0)
        out.append(x.dense(v if v.type.rank == 2 else column(x.b, v)))
    return joined(x.s, out)


@converts("TargetEncoder")
def _target(e: Estimator, x: Columns) -> Columns:
    """An unknown category has the mean of the target."""
    encodings, mean = [np.asarray(v, np.float64) for v in e.list("encodings_")], np.asarray(e.get("target_mean_"), np.float64)
    if e.text("target_type_") != "multiclass":
        return _looked_up(e, x, [np.append(v, mean) for v in encodings], False)
    classes = len(e.classes)
    tables = [np.stack([np.append(encodings[k * classes + c], mean[c]) for c in range(classes)], 1) for k in range(x.width)]
    return _looked_up(e, x, tables, False)


@converts("KBinsDiscretizer")
def _bins(e: Estimator, x: Columns) -> Columns:
    edges = [np.asarray(v, np.float64) for v in e.list("bin_edges_")]
    v = x.value()
    wanted = e.get("dtype")
    kind = x.dtype if wanted is None else _float(e, wanted)
    at = positions(x.s, v, [row[1:-1] for row in edges])
    if e.text("encode") == "ordinal":
        return x.dense(x.b.op("cast", at, dtype=kind))
    out = []
    for k, row in enumerate(edges):
        one = pick_columns(x.b, at, [k])
        out.append(Columns(x.s, (Hot(_flat(x, one), len(row) - 1, tuple(range(len(row) - 1)), kind),)))
    return joined(x.s, out)


def _flat(x: Columns, v: Value) -> Value:
    return x.b.op("reshape", v, shape=(x.s.rows,))
