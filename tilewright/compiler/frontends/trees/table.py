"""What a frontend of trees gives: a `Table`; and how trees of any library become one `Forest`."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ....errors import ModelError, UnsupportedError
from ....ir.builder import GraphBuilder
from ....ir.forest import CATEGORICAL, Field, Forest, round_down
from ....ir.graph import Value
from ....ir.types import BOOL, F32, F64, DType

RAW = ("raw_score", "decision_function", "output_margin", "raw")
LEAVES = ("apply", "pred_leaf", "leaves")


@dataclass(frozen=True, slots=True)
class Table:
    """A model from rows to rows. build(b, x): the outputs for x[rows, features] of f32 or f64. dtype: what x is where no
    sample says."""

    name: str
    features: int
    outputs: tuple[str, ...]
    build: Callable[[GraphBuilder, Value], Sequence[Value]]
    dtype: type = np.float64


def wanted(model: str, method: str, *known: str) -> str:
    """The method, by the first of its names. Raises UnsupportedError where the model has no such method."""
    method = method or "predict"
    for names in (RAW, LEAVES):
        if method in names and (found := next((n for n in names if n in known), None)):
            return found
    if method not in known:
        raise UnsupportedError(f"{model}: method={method!r} is not compiled; expected one of {', '.join(map(repr, known))}")
    return method


@dataclass(slots=True)
class Grove:
    """Trees one by one, into a Forest."""

    width: int = 1
    nodes: list[np.ndarray] = field(default_factory=list)
    threshold: list[np.ndarray] = field(default_factory=list)
    words: list[np.ndarray] = field(default_factory=list)
    trees: list[tuple[int, int]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    _n: int = 0
    _leaves: int = 0
    _words: int = 0

    def add(self, feature: np.ndarray, threshold: np.ndarray, left: np.ndarray, right: np.ndarray, kind: np.ndarray, values: np.ndarray,
            column: int = 0, sets: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None) -> None:
        """One tree, its root node 0 (or its only leaf): children are nodes or ~leaves, values [leaves] or [leaves, width].
        sets: of each node first word and number of words, and the words."""
        n = len(feature)
        table = np.zeros((n, len(Field)), np.int32)
        for k, child in ((Field.LEFT, left), (Field.RIGHT, right)):
            c = np.asarray(child, np.int64)
            table[:, k] = np.where(c >= 0, c + self._n, c - self._leaves)
        table[:, Field.FEATURE], table[:, Field.KIND] = feature, kind
        if sets is not None:
            table[:, Field.SET], table[:, Field.SET_WORDS] = sets[0] + self._words, sets[1]
            self.words.append(sets[2].astype(np.uint32))
            self._words += len(sets[2])
        values = np.asarray(values).reshape(len(values), self.width)
        self.trees.append((self._n if n else ~self._leaves, column))
        self.nodes.append(table)
        self.threshold.append(np.asarray(threshold))
        self.values.append(values)
        self._n, self._leaves = self._n + n, self._leaves + len(values)

    def add_flat(self, leaf: np.ndarray, feature: np.ndarray, threshold: np.ndarray, left: np.ndarray, right: np.ndarray,
                 kind: np.ndarray, values: np.ndarray, column: int = 0,
                 sets: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None) -> None:
        """The same for a tree whose arrays list nodes and leaves together; `leaf` says which is which."""
        inner = ~leaf
        place = np.where(leaf, -np.cumsum(leaf), np.cumsum(inner) - 1)  # ~k of the k-th leaf is -(k + 1)
        if sets is not None:
            sets = sets[0][inner], sets[1][inner], sets[2]
        self.add(feature[inner], threshold[inner], place[left[inner]], place[right[inner]], kind[inner], values[leaf], column, sets)

    def forest(self, base: np.ndarray) -> Forest:
        def joined(parts: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
            return np.concatenate(parts) if parts else empty
        f = Forest(joined(self.nodes, np.zeros((0, len(Field)), np.int32)), joined(self.threshold, np.zeros(0)),
                   joined(self.words, np.zeros(0, np.uint32)), np.array(self.trees, np.int32).reshape(-1, 2),
                   joined(self.values, np.zeros((0, self.width))).astype(base.dtype), base)
        return f

    def leaf_forest(self, numbers: Sequence[np.ndarray]) -> Forest:
        """[rows, trees] numbers of leaves instead of sums; `numbers`: of each tree's leaves, in their order here."""
        trees = np.array([(root, t) for t, (root, _) in enumerate(self.trees)], np.int32).reshape(-1, 2)
        f = self.forest(np.zeros(len(trees), np.int32))
        own = np.concatenate([np.asarray(n, np.int32) for n in numbers]) if numbers else np.zeros(0, np.int32)
        return Forest(f.nodes, f.threshold, f.words, trees, own[:, None], f.base)


def checked(f: Forest, features: int, where: str) -> Forest:
    """Raises ModelError where indices point nowhere or trees have cycles: files may be damaged."""
    n, leaves = len(f.nodes), len(f.values)
    children = f.nodes[:, [Field.LEFT, Field.RIGHT]].astype(np.int64)
    roots = f.trees[:, 0].astype(np.int64)
    ends = np.concatenate([children.reshape(-1), roots])
    inner = ends[ends >= 0]
    if n and (f.nodes[:, Field.FEATURE].min() < 0 or f.nodes[:, Field.FEATURE].max() >= features):
        raise ModelError(f"{where}: a node compares a feature that is not among the {features}")
    if len(ends) and (ends.max() >= n or (~ends.min()) >= leaves) or np.bincount(inner, minlength=1).max() > 1:
        raise ModelError(f"{where}: a tree's children are no tree: an index is out of range, or two nodes share a child")
    sets = f.nodes[(f.nodes[:, Field.KIND] & CATEGORICAL) != 0]
    ends = sets[:, Field.SET].astype(np.int64) + sets[:, Field.SET_WORDS] + 2
    if len(sets) and (sets[:, Field.SET].min() < 0 or ends.max() > len(f.words)):
        raise ModelError(f"{where}: a set of categories lies outside of the model")
    return f


def emit(b: GraphBuilder, x: Value, f: Forest, name: str = "leaf_values") -> Value:
    """The forest's result; thresholds of f64 are brought to x's type, which changes no comparison. The leaf values are a
    weight of this name."""
    threshold = f.threshold
    if x.type.dtype == F32 and threshold.dtype == np.float64:
        threshold = round_down(threshold)
    elif x.type.dtype == F64:
        threshold = threshold.astype(np.float64)
    constants = [b.constant(a, name=n) for a, n in ((f.nodes, "nodes"), (threshold, "threshold"), (f.words, "words"), (f.trees, "trees"))]
    values = b.weight(name, f.values) if f.values.dtype.kind == "f" else b.constant(f.values, name=name)
    return b.op("tree_ensemble", x, *constants, values, b.constant(f.base, name="base"))


# -- what follows the sums ---------------------------------------------------------------------------------------------
def scalar(b: GraphBuilder, like: Value, value: float) -> Value:
    return b.constant(np.array(value, like.type.dtype.numpy))


def flat(b: GraphBuilder, y: Value) -> Value:
    """[rows] of [rows, 1]."""
    return b.op("reshape", y, shape=y.type.shape[:1])


def both_classes(b: GraphBuilder, p: Value) -> Value:
    """[rows, 2]: 1 - p and p, for p[rows, 1]."""
    return b.op("concat", b.op("sub", scalar(b, p, 1), p), p, axis=1)


def best_class(b: GraphBuilder, scores: Value, classes: np.ndarray, where: str) -> Value:
    """The class of the largest score of each row, the first of equal ones."""
    return named_class(b, b.op("arg_reduce", scores, kind="max", axis=1, keepdims=0), classes, where)


def named_class(b: GraphBuilder, index: Value, classes: np.ndarray, where: str) -> Value:
    """classes[index]. Raises UnsupportedError for classes that are no numbers."""
    classes = np.asarray(classes)
    if classes.dtype.kind not in "biuf":
        raise UnsupportedError(f"{where}: classes of type {classes.dtype} are no numbers; compile method='predict_proba' and choose the "
                               "class from its columns")
    if np.array_equal(classes, np.arange(len(classes))) and classes.dtype == np.int64:
        return index
    return b.op("gather", b.constant(classes), index, axis=0)


def step(b: GraphBuilder, condition: Value, yes: float, no: float, dtype: DType) -> Value:
    assert condition.type.dtype == BOOL
    return b.op("where", condition, b.constant(np.array(yes, dtype.numpy)), b.constant(np.array(no, dtype.numpy)))
