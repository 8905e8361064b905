"""Tree ensembles inside of pipelines, and on data frames: `frontends/trees` reads them."""
from __future__ import annotations

import copy

import numpy as np

from ....errors import UnsupportedError
from ....ir.builder import GraphBuilder
from ....ir.graph import Value
from ....ir.types import I64, TensorType
from ...needed import used_columns
from ..trees import Table, is_tree_model, load_trees
from .columns import Columns, convert, pick_columns
from .estimator import name_classes

MOST_USED = 0.75  # of the columns; where more are used all are read


def is_tree(model: object) -> bool:
    return not isinstance(model, str) and is_tree_model(model)


def predict_trees(model: object, x: Columns, method: str) -> Value:
    """Classes that are no numbers are counted first and named after the call."""
    name, classes = type(model).__name__, None
    if method == "predict" and (named := class_names(model)) is not None:
        classes, model = named, model if _of_catboost(model) else _with_numbers(model, len(named))
    table = load_trees(model, method, numbered=classes is not None)
    if table.features != x.width:
        raise UnsupportedError(f"{name} was fitted on {table.features} columns and is given {x.width}")
    outputs = table.build(x.b, _read(table, x))
    if len(outputs) != 1:
        raise UnsupportedError(f"{name}: method={method!r} has {len(outputs)} results, for which a pipeline has no place; compile the "
                               "model alone")
    return outputs[0] if classes is None else name_classes(x.s, convert(x.b, outputs[0], I64), classes)


def _read(table: Table, x: Columns) -> Value:
    """All columns, of which those that no tree looks at hold anything: only the others are computed and read."""
    b = GraphBuilder("dry")
    dry = b.input("x", TensorType(x.dtype, (1, table.features)))
    used = np.flatnonzero(used_columns(b.graph(table.build(b, dry)), dry))
    if len(used) > MOST_USED * table.features or not len(used):
        return x.value()
    place = np.zeros(table.features, np.int64)
    place[used] = np.arange(len(used))
    return pick_columns(x.b, x.select(used.tolist()).value(x.dtype), place.tolist())


def class_names(model: object) -> np.ndarray | None:
    """The classes of a classifier, where they are no numbers."""
    if not hasattr(type(model), "predict_proba"):
        return None
    classes = getattr(model, "classes_", None)
    if not isinstance(classes, np.ndarray) or classes.dtype.kind in "biuf":
        return None
    return classes


def _of_catboost(model: object) -> bool:
    """Whose classes are in the model alone."""
    return type(model).__module__.split(".")[0] == "catboost"


def _with_numbers(model: object, n: int) -> object:
    """The same model for classes 0, 1, …"""
    out = copy.copy(model)
    for attribute in ("classes_", "_classes"):
        if attribute in vars(out):
            setattr(out, attribute, np.arange(n))
    if vars(out).get("_le") is not None:  # LightGBM's own encoder of labels
        encoder = copy.copy(out._le)  # type: ignore[attr-defined]
        encoder.classes_ = np.arange(n)
        out._le = encoder  # type: ignore[attr-defined]
    return out


