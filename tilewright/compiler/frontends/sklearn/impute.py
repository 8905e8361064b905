"""Missing values: SimpleImputer and MissingIndicator."""
from __future__ import annotations

import math

import numpy as np

from ....errors import UnsupportedError
from ....ir.graph import Value
from .columns import Columns, Text, as_bool, joined, num
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
