"""Everything in an estimator that is not compiled, at once: each member is tried by itself."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ....errors import TilewrightError
from ....ir.builder import GraphBuilder
from ....ir.types import F64, TensorType
from ..trees import load_trees
from .columns import Columns, Dense, Part, Scope, Text
from .estimator import REGISTRY, Estimator, known, predict, transform
from .trees import is_tree

PARTS = {"Pipeline": "steps", "FeatureUnion": "transformer_list", "ColumnTransformer": "transformers_"}
MEMBERS = {"estimators_", "final_estimator_", "best_estimator_", "estimator_", "calibrated_classifiers_"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One estimator that is not supported. `where`: the way to it through the model."""

    where: str
    estimator: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


def check_sklearn(model: object) -> list[Finding]:
    """What of a fitted estimator, and of all estimators in it, is not compiled; [] if there is nothing."""
    return list(_findings(model, type(model).__name__))


def check_trees(model: object) -> list[Finding]:
    """The same for trees alone: an estimator or booster of any of the libraries, or the path of a model file."""
    name = type(model).__name__
    try:
        load_trees(model)
    except TilewrightError as e:
        return [Finding(name, name, str(e))]
    return []


def _findings(model: object, where: str) -> Iterator[Finding]:
    inner = list(_inner(model, where)) if known(model) and not is_tree(model) else []
    below = [f for m, w in inner for f in _findings(m, w)]
    yield from below
    if below or (inner and type(model).__name__ in PARTS):
        if type(model).__name__ not in REGISTRY:
            yield Finding(where, type(model).__name__, f"{type(model).__name__} is not compiled")
        return
    try:
        _try(model)
    except TilewrightError as e:
        yield Finding(where, type(model).__name__, str(e))


def _inner(model: object, where: str) -> Iterator[tuple[object, str]]:
    name = type(model).__name__
    if name in PARTS:
        for item in Estimator(model).list(PARTS[name]):
            label, member = item[0], item[1]  # type: ignore[index]
            if not isinstance(member, str) and member is not None:
                yield member, f"{where}.{label}"
        return
    for attribute in MEMBERS:
        found = getattr(model, attribute, None)
        several = list(found) if isinstance(found, (list, tuple)) else [found]
        for k, m in enumerate(several):
            m = getattr(m, "estimator", m) if attribute == "calibrated_classifiers_" else m
            if m is not None and hasattr(m, "get_params"):
                yield m, f"{where}.{attribute}" + (f"[{k}]" if len(several) > 1 else "")


def _try(model: object) -> None:
    """Imports the estimator alone, its first method that there is. Columns whose categories are strings hold strings."""
    from ....backends.tables import Codes
    b = GraphBuilder("check")
    n = int(getattr(model, "n_features_in_", 1))
    x = b.input("x", TensorType(F64, (1, n)))
    s = Scope(b, 1, {k: Codes(f"column {k}") for k in _texts(model)})
    parts: list[Part] = [Text(x, s.codes[k], k) if k in s.codes else Dense(x, (k,), True) for k in range(n)]
    columns = Columns(s, tuple(parts))
    if hasattr(model, "predict") or not hasattr(model, "transform"):
        predict(model, columns, "predict")
        return
    for p in transform(model, columns).parts:
        if not isinstance(p, Text):  # which another member may take
            p.value(s)


def _texts(model: object) -> list[int]:
    """Columns that the estimator knows as strings."""
    statistics = [[v] for v in getattr(model, "statistics_", [])]
    known_values = getattr(model, "categories_", statistics)
    return [k for k, c in enumerate(known_values) if any(isinstance(v, str) for v in np.asarray(c, object).reshape(-1).tolist())]
