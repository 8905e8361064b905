"""Fitted estimators as converters read them, the registry of converters, and how one is called for another.

    @converts("StandardScaler")                                   # transform: columns in, columns out
    def _standard(e: Estimator, x: Columns) -> Columns: …

    @predicts("Ridge", "Lasso", methods=("predict",))             # anything else: a value out
    def _linear(e: Estimator, x: Columns, method: str) -> Value: …

`docs/tabular.md` lists what there is. scikit-learn itself is never imported: who has an estimator has it loaded.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ....errors import ModelError, UnsupportedError
from ....ir.graph import Value
from .columns import Columns, Scope
from .refused import REFUSED

Transform = Callable[["Estimator", Columns], Columns]
Predict = Callable[["Estimator", Columns, str], Value]


class Estimator:
    """A fitted estimator's attributes, by kind. Raises ModelError for what is missing."""

    def __init__(self, model: object) -> None:
        self.model = model
        self.name = type(model).__name__

    def get(self, attribute: str) -> object:
        if not hasattr(self.model, attribute):
            if attribute.endswith("_"):
                raise ModelError(f"{self.name} is not fitted: it has no {attribute}")
            raise ModelError(f"{self.name} has no {attribute}; this version of scikit-learn is not known")
        return getattr(self.model, attribute)

    def has(self, attribute: str) -> bool:
        return getattr(self.model, attribute, None) is not None

    def array(self, attribute: str) -> np.ndarray:
        return np.asarray(self.get(attribute))

    def number(self, attribute: str) -> float:
        v = self.get(attribute)
        if not isinstance(v, (int, float, np.number)):
            raise UnsupportedError(f"{self.name}: {attribute}={v!r} is no number")
        return float(v)

    def flag(self, attribute: str) -> bool:
        return bool(self.get(attribute))

    def text(self, attribute: str) -> str:
        return str(self.get(attribute))

    def list(self, attribute: str) -> Sequence[object]:
        v = self.get(attribute)
        assert isinstance(v, (list, tuple, np.ndarray)), f"{self.name}.{attribute} is no list"
        return list(v)

    @property
    def classes(self) -> np.ndarray:
        return self.array("classes_")

    def refuse(self, what: str, why: str) -> UnsupportedError:
        return UnsupportedError(f"{self.name}: {what} is not compiled: {why}")


@dataclass(frozen=True, slots=True)
class Converter:
    methods: tuple[str, ...]
    transform: Transform | None = None
    predict: Predict | None = None


REGISTRY: dict[str, Converter] = {}  # by name of the class; filled when the modules of this package are imported


def converts(*names: str) -> Callable[[Transform], Transform]:
    """Function decorator: the `transform` of these classes."""
    def add(f: Transform) -> Transform:
        for n in names:
            old = REGISTRY.get(n, Converter(()))
            REGISTRY[n] = Converter((*old.methods, "transform"), f, old.predict)
        return f
    return add


def predicts(*names: str, methods: Sequence[str] = ("predict",)) -> Callable[[Predict], Predict]:
    """Function decorator: other methods of these classes."""
    def add(f: Predict) -> Predict:
        for n in names:
            old = REGISTRY.get(n, Converter(()))
            REGISTRY[n] = Converter((*methods, *old.methods), old.transform, f)
        return f
    return add


def known(model: object) -> bool:
    """An object of scikit-learn's classes themselves; subclasses from elsewhere may compute anything."""
    return type(model).__module__.split(".")[0] == "sklearn" and hasattr(model, "get_params")


def converter(model: object) -> Converter:
    """Raises UnsupportedError for classes that have none."""
    name, module = type(model).__name__, type(model).__module__
    if not known(model):
        raise UnsupportedError(f"{module}.{name} is no estimator of scikit-learn, LightGBM or XGBoost: what its Python code computes "
                               "is not known")
    if name not in REGISTRY:
        raise UnsupportedError(f"{name} is not compiled: {REFUSED.get(name, 'it has no converter')}; docs/tabular.md lists what is")
    return REGISTRY[name]


def transform(model: object, x: Columns) -> Columns:
    """What model.transform makes of x."""
    c = converter(model)
    if c.transform is None:
        raise UnsupportedError(f"{type(model).__name__}: method='transform' is not compiled; expected one of {', '.join(c.methods)}")
    e = Estimator(model)
    _check_width(e, x)
    return c.transform(e, x)


def predict(model: object, x: Columns, method: str) -> Value:
    """What model.<method> makes of x."""
    from .trees import is_tree, predict_trees
    if is_tree(model):
        return predict_trees(model, x, method)
    c = converter(model)
    e = Estimator(model)
    _check_width(e, x)
    if method == "transform" and c.transform is not None:
        return c.transform(e, x).value()
    if c.predict is None or method not in c.methods or not hasattr(model, method):
        offered = [m for m in c.methods if hasattr(model, m)]
        raise UnsupportedError(f"{e.name}: method={method!r} is not compiled; expected one of {', '.join(map(repr, offered))}")
    return c.predict(e, x, method)


def _check_width(e: Estimator, x: Columns) -> None:
    if e.has("n_features_in_") and int(e.number("n_features_in_")) != x.width:
        raise ModelError(f"{e.name} was fitted on {int(e.number('n_features_in_'))} columns and is given {x.width}")


def classes_named(e: Estimator, x: Columns, index: Value, classes: np.ndarray | None = None) -> Value:
    """classes[index], for index [rows]. Classes that are no numbers are named after the call (`Scope.labels`)."""
    labels = e.classes if classes is None else classes
    return name_classes(x.s, index, labels)


def name_classes(s: Scope, index: Value, classes: np.ndarray) -> Value:
    classes = np.asarray(classes)
    if classes.dtype.kind not in "biuf":
        s.labels = classes
        return index
    if np.array_equal(classes, np.arange(len(classes))) and classes.dtype == np.int64:
        return index
    return s.b.op("gather", s.b.constant(classes), index, axis=0)


def checked_index(s: Scope, index: Value, n: int) -> Value:
    """The same index; the call fails with an InputError where it is not below n."""
    return s.b.op("gather", s.b.constant(np.arange(n, dtype=np.int64)), index, axis=0)


def best(s: Scope, scores: Value) -> Value:
    """[rows]: position of the first of the largest scores."""
    return s.b.op("arg_reduce", scores, kind="max", axis=1, keepdims=0)
