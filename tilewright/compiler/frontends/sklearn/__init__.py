"""scikit-learn: estimators and whole pipelines as graphs over rows, from a registry of small converters, one file a family.

    source = load_sklearn(model, sample, "predict_proba")   # a RowSource; with a boundary for data frames and class names
    findings = check_sklearn(model)                         # what of it is not compiled

`estimator.py` has the registry, `columns.py` what passes from one estimator to the next.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from ....backends.frames import Frame, dtypes_of, is_frame, names_of, reader, refuse_lazy
from ....backends.tables import Boundary, Codes, Column
from ....errors import InputError, ModelError
from ....ir.builder import GraphBuilder
from ....ir.graph import Value
from ....ir.types import TensorSpec, TensorType, dtype_of
from ...needed import used_columns
from ..rows import ROWS, Build, RowSource
from . import (  # noqa: F401  (they register)
    bayes,
    compose,
    encode,
    ensemble,
    factors,
    features,
    functions,
    impute,
    linear,
    meta,
    mixture,
    neighbors,
    pairwise,
    process,
    project,
    scale,
    svm,
    vicinity,
)
from .columns import Columns, Dense, Part, Scope, Text
from .estimator import converter, known, predict
from .inspect import check_sklearn
from .trees import class_names, is_tree

__all__ = ["check_sklearn", "is_estimator", "load_sklearn", "needs_boundary"]


def is_estimator(model: object) -> bool:
    """Of scikit-learn, trees or not; or of a library that imitates it."""
    return known(model)


def needs_boundary(model: object, sample: object) -> bool:
    """Whether a model of trees has to be loaded here: for a data frame, or classes that are no numbers."""
    return not isinstance(model, str) and (not _plain(sample) or class_names(model) is not None)


def _plain(sample: object) -> bool:
    return sample is None or (not is_frame(sample) and (not isinstance(sample, np.ndarray) or sample.dtype.kind in "fiub"))


def load_sklearn(model: object, sample: object, method: str = "") -> RowSource:
    """sample: a table like those of the calls: an array of f32 or f64, a data frame, an array of objects; None: an array of
    f64. Raises UnsupportedError naming the estimator, the option and the reason; ModelError for what is not fitted."""
    refuse_lazy(sample)
    if known(model) and not is_tree(model):
        converter(model)
    method = method or ("predict" if hasattr(model, "predict") else "transform")
    names, width = _names(model, sample), _width(model, sample)
    codes = {k: Codes(_name(names, k)) for k in _texts(sample, names, width)}
    name = type(model).__name__
    if _plain(sample):
        dtype = np.dtype(np.float32) if getattr(sample, "dtype", None) == np.float32 else np.dtype(np.float64)
        labels = _Labels()

        def build(b: GraphBuilder, xs: Sequence[Value]) -> Sequence[Value]:
            s = Scope(b, xs[0].type.shape[0])
            y = predict(model, Columns(s, (Dense(xs[0], tuple(range(width)), True),)), method)
            labels.found = s.labels
            return (y,)
        source = RowSource(name, (TensorSpec("x", (ROWS, width), dtype),), ("y",), build)
        _dry(build, dtype, width)
        if labels.found is None:
            return source
        return RowSource(name, source.inputs, ("y",), build, boundary=Boundary(None, False, width, dtype, labels.found))
    return _framed(model, sample, method, names, width, codes)


class _Labels:
    found: np.ndarray | None = None


def _framed(model: object, sample: object, method: str, names: Sequence[str] | None, width: int, codes: dict[int, Codes]) -> RowSource:
    """First with every column, to see which the results depend on, then with those; others may be named, but not looked at."""
    dtype = _frame_dtype(sample, codes)
    b = GraphBuilder("dry")
    dry = Scope(b, 1, codes)
    x = b.input("x", TensorType(dtype_of(dtype), (1, width)))
    y = predict(model, _root(dry, x, width), method)
    needed = used_columns(b.graph((y,)), x)
    read = [k for k in sorted(dry.used) if needed[k]] or sorted(dry.used)[:1]
    place = {k: i for i, k in enumerate(read)}

    def build(b: GraphBuilder, xs: Sequence[Value]) -> Sequence[Value]:
        s = Scope(b, xs[0].type.shape[0], codes, place=place)
        return (predict(model, _root(s, xs[0], width), method),)
    columns = tuple(Column(_name(names, k), k, codes.get(k)) for k in read)
    boundary = Boundary(columns, names is not None, width, dtype, dry.labels)
    return RowSource(type(model).__name__, (TensorSpec("x", (ROWS, len(read)), dtype),), ("y",), build, boundary=boundary)


def _dry(build: Build, dtype: np.dtype, width: int) -> None:
    b = GraphBuilder("dry")
    build(b, (b.input("x", TensorType(dtype_of(dtype), (1, width))),))


def _root(s: Scope, x: Value, width: int) -> Columns:
    """The table that the model was fitted on, over x."""
    parts: list[Part] = []
    for k in range(width):
        last = parts[-1] if parts else None
        if k in s.codes:
            parts.append(Text(x, s.codes[k], k))
        elif isinstance(last, Dense):
            parts[-1] = Dense(x, (*last.picks, k), True)
        else:
            parts.append(Dense(x, (k,), True))
    return Columns(s, tuple(parts))


# -- what the table looks like -----------------------------------------------------------------------------------------
def _names(model: object, sample: object) -> Sequence[str] | None:
    """The columns' names where frames are read by name."""
    if not is_frame(sample):
        return None
    found = getattr(model, "feature_names_in_", None)
    if found is None and (steps := getattr(model, "steps", None)):
        found = getattr(steps[0][1], "feature_names_in_", None)
    own = names_of(cast(Frame, sample))
    names, given = own if found is None else list(found), set(own)
    if missing := [str(n) for n in names if n not in given]:
        raise InputError(f"the data frame in inputs= lacks the columns {', '.join(missing)} that {type(model).__name__} was fitted on")
    return [str(n) for n in names] if all(isinstance(n, str) for n in names) else None


def _name(names: Sequence[str] | None, k: int) -> str:
    return names[k] if names is not None else f"column {k}"


def _width(model: object, sample: object) -> int:
    n = getattr(model, "n_features_in_", None)
    if n is None and hasattr(model, "num_feature"):
        n = model.num_feature()  # type: ignore[attr-defined]
    if n is None and sample is not None and len(np.shape(sample)) == 2:  # type: ignore[arg-type]
        n = np.shape(sample)[1]  # type: ignore[arg-type]
    if n is None:
        raise ModelError(f"{type(model).__name__} does not say on how many columns it was fitted (is it fitted?); give inputs= a table "
                         "like those of the calls")
    return int(n)


def _texts(sample: object, names: Sequence[str] | None, width: int) -> list[int]:
    """Positions of the columns that hold strings."""
    if _plain(sample):
        return []
    if isinstance(sample, np.ndarray):
        return [k for k in range(width) if sample.dtype.kind in "US" or any(isinstance(v, str) for v in sample[:, k])]
    if not is_frame(sample):
        raise InputError(f"the sample in inputs= is of type {type(sample).__name__}, expected an array or a data frame of pandas, "
                         "polars or Arrow")
    found, read, own = [], reader(cast(Frame, sample)), names_of(cast(Frame, sample))
    if names is None and len(own) != width:
        raise InputError(f"the data frame in inputs= has {len(own)} columns, expected {width}")
    for k in range(width):
        values = np.asarray(read(own.index(names[k]) if names is not None else k))
        if values.dtype.kind in "OUST" and any(isinstance(v, str) for v in values.tolist()):
            found.append(k)
    return found


def _frame_dtype(sample: object, codes: dict[int, Codes]) -> np.dtype:
    """f32 where all the numbers are."""
    kinds = {np.dtype(np.float64)}
    if is_frame(sample):
        kinds = {d for d in dtypes_of(cast(Frame, sample)) if d.kind in "fiub"}
    return np.dtype(np.float32) if kinds == {np.dtype(np.float32)} else np.dtype(np.float64)
