"""Missing values: SimpleImputer, KNNImputer and MissingIndicator."""
from __future__ import annotations

import math

import numpy as np

from ....errors import UnsupportedError
from ....ir.graph import Value
from ....ir.types import F64
from .columns import Columns, Text, as_bool, convert, joined, num
from .estimator import Estimator, converts, transform


def missing(x: Columns, v: Value, marker: object, where: str) -> Value:
    """Whether values are the marker of missing ones."""
    if marker is None or isinstance(marker, str) or not isinstance(marker, (int, float, np.number)):
        raise UnsupportedError(f"{where}: missing_values={marker!r} is compiled for columns of strings only")
    if math.isnan(float(marker)):
        return x.b.op("isnan", v)
    return x.b.op("eq", v, num(x.b, v, float(marker)))


@converts("SimpleImputer")
def _simple(e: Estimator, x: Columns) -> Columns:
    statistics = np.asarray(e.get("statistics_"))
    if any(isinstance(p, Text) for p in x.parts):
        y = joined(x.s, [_text(e, x.column(k), statistics[k]) for k in range(x.width)])
        if e.has("indicator_"):
            raise e.refuse("add_indicator=True on columns of strings", "indicators are made of numbers only")
        return y
    keep = np.arange(x.width)
    if not e.flag("keep_empty_features"):
        keep = np.flatnonzero(~np.array([_is_nan(v) for v in statistics]))
    inner = x if len(keep) == x.width else x.select([int(k) for k in keep])
    v = inner.value()
    if any(isinstance(f, str) for f in statistics[keep].tolist()):
        raise e.refuse("an imputer of strings on columns of numbers", "compile with inputs= a table like the one that it was fitted on")
    fill = x.s.const(statistics[keep].astype(v.type.dtype.numpy), "statistics")
    y = x.dense(x.b.op("where", missing(x, v, e.get("missing_values"), e.name), fill, v))
    return joined(x.s, [y, transform(e.get("indicator_"), x)]) if e.has("indicator_") else y


def _text(e: Estimator, x: Columns, fill: object) -> Columns:
    """A column of strings gets the code of the statistic for the code of what is missing."""
    part = x.parts[0]
    if not isinstance(part, Text):
        v = x.value()
        return x.dense(x.b.op("where", x.b.op("isnan", v), num(x.b, v, float(str(fill))), v))
    if _is_nan(fill):
        raise e.refuse(f"the column {part.codes.name!r} without any value", "it is dropped or kept by the kind of its type")
    marker = part.codes.code(e.get("missing_values"))
    code = part.numbers(x.s)
    y = x.b.op("where", x.b.op("eq", code, num(x.b, code, marker)), num(x.b, code, part.codes.code(fill)), code)
    return Columns(x.s, (Text(part.source, part.codes, part.position, filled=y),))


@converts("KNNImputer")
def _nearest(e: Estimator, x: Columns) -> Columns:
    """Columns that were empty when it was fitted are dropped, or 0."""
    how = e.get("weights")
    if how not in ("uniform", "distance") or e.get("metric") != "nan_euclidean":
        raise e.refuse(f"weights={how!r} or metric={e.get('metric')!r}", "functions are not compiled")
    b, valid = x.b, e.array("_valid_mask").astype(bool)
    known = np.where(e.array("_mask_fit_X"), np.nan, e.array("_fit_X").astype(np.float64))
    v = convert(b, x.value(), F64)
    hole = missing(x, v, e.get("missing_values"), e.name)
    v = b.op("where", hole, num(b, v, np.nan), v)
    with np.errstate(invalid="ignore"):
        means = np.where(valid, np.nansum(known, 0) / np.maximum((~np.isnan(known)).sum(0), 1), 0)
    y = b.op("fill_from_nearest", v, x.s.const(known, "known"), x.s.const(means, "means"),
             k=min(int(e.number("n_neighbors")), len(known)), by_distance=int(how == "distance"))
    y = convert(b, y, x.dtype)
    if e.flag("keep_empty_features"):
        out = x.dense(b.op("where", b.constant(valid[None]), y, num(b, y, 0)))
    else:
        out = x.dense(y).select([int(k) for k in np.flatnonzero(valid)])
    return joined(x.s, [out, transform(e.get("indicator_"), x)]) if e.has("indicator_") else out


def _is_nan(v: object) -> bool:
    return isinstance(v, (float, np.floating)) and math.isnan(float(v))


@converts("MissingIndicator")
def _indicator(e: Estimator, x: Columns) -> Columns:
    if e.text("features") == "missing-only":
        x = x.select([int(k) for k in e.array("features_")])
        if not x.width:
            return x
    v = x.value()
    mask = missing(x, v, e.get("missing_values"), e.name)
    return x.dense(as_bool(x.b, mask, v))
