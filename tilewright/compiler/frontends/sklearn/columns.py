"""Tables under construction: the columns that pass from one estimator to the next, computed only as far as they are asked for.

A `Columns` is a list of parts, left to right:

    Dense     some columns of a graph value
    Affine    values @ matrix + shift, of which a linear model needs the product of matrices only
    Hot       one column per category: a linear model needs a look-up only
    Text      one column of strings, as codes that the boundary made (`backends/tables.py`)

`value()` makes the numbers of all of them, as the library would; `linear()` multiplies them by a matrix, cheaper where the
parts allow; `select()` drops columns, which are then not computed, or read, at all.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ....backends.tables import Codes
from ....errors import UnsupportedError
from ....ir.builder import GraphBuilder
from ....ir.graph import Value
from ....ir.ops.convert import convert
from ....ir.types import BOOL, F32, F64, DType

SAFE_SHIFT = 8.0  # x * w + c with |c| up to so many deviations of x loses less than a digit in f32


@dataclass(slots=True)
class Scope:
    """What the import of one model shares. codes: of the string columns, by their position in the input. labels: of the
    classes that the result's numbers stand for. used: columns of the input that something reads. place: where these are in
    the block that compiled code takes; None: all are there. Columns that are in no place are not looked at in the end."""

    b: GraphBuilder
    rows: int
    codes: dict[int, Codes] = field(default_factory=dict)
    labels: np.ndarray | None = None
    used: set[int] = field(default_factory=set)
    place: dict[int, int] | None = None

    def at(self, columns: Sequence[int]) -> list[int]:
        """Where columns of the input are in the block."""
        self.used.update(columns)
        return list(columns) if self.place is None else [self.place.get(k, 0) for k in columns]

    def const(self, a: np.ndarray, name: str = "c") -> Value:
        """Numbers of a model: a literal where few, else a weight, which compiled code does not depend on."""
        a = np.ascontiguousarray(a)
        return self.b.weight(name, a) if a.dtype.kind == "f" and a.size > 1 else self.b.constant(a, name=name)


@dataclass(frozen=True, eq=False, slots=True)
class Dense:
    """Columns `picks` of `source` [rows, n]. `root`: of the model's input, which takes note of what is read."""

    source: Value
    picks: tuple[int, ...]
    root: bool = False

    @property
    def width(self) -> int:
        return len(self.picks)

    @property
    def dtype(self) -> DType:
        return self.source.type.dtype

    def select(self, s: Scope, which: Sequence[int]) -> Part:
        return Dense(self.source, tuple(self.picks[k] for k in which), self.root)

    def value(self, s: Scope) -> Value:
        return pick_columns(s.b, self.source, s.at(self.picks) if self.root else self.picks)

    def linear(self, s: Scope, w: np.ndarray, name: str) -> Value:
        return product(s, self.value(s), w, name)


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """base @ matrix + shift; a matrix of one dimension is a diagonal. exact() computes it as the library does. safe: the sum
    may be taken in the base's own type in this form."""

    base: Part
    matrix: np.ndarray
    shift: np.ndarray
    exact: Callable[[], Value]
    dtype: DType
    safe: bool = True

    @property
    def width(self) -> int:
        return len(self.shift)

    def select(self, s: Scope, which: Sequence[int]) -> Part:
        keep = list(which)

        def exact() -> Value:
            return pick_columns(s.b, self.exact(), keep)
        if self.matrix.ndim == 1:  # each column follows from its own
            base = self.base.select(s, keep)
            return Affine(base, self.matrix[keep], self.shift[keep], exact, self.dtype, self.safe)
        return Affine(self.base, self.matrix[:, keep], self.shift[keep], exact, self.dtype, self.safe)

    def value(self, s: Scope) -> Value:
        return self.exact()

    def linear(self, s: Scope, w: np.ndarray, name: str) -> Value:
        whole = self.matrix[:, None] * w if self.matrix.ndim == 1 else self.matrix @ w
        if not self.safe or whole.size > 2 * (self.matrix.size * (self.matrix.ndim == 2) + w.size):
            return product(s, self.value(s), w, name)
        y = self.base.linear(s, whole, name)
        c = self.shift @ w
        return s.b.op("add", y, s.const(c.astype(y.type.dtype.numpy), f"{name}.shift")) if np.any(c) else y


@dataclass(frozen=True, eq=False, slots=True)
class Hot:
    """1 in column index[row], 0 elsewhere; an index of `depth` stands for none. hot[k]: the index whose column k is."""

    index: Value
    depth: int
    hot: tuple[int, ...]
    dtype: DType

    @property
    def width(self) -> int:
        return len(self.hot)

    def select(self, s: Scope, which: Sequence[int]) -> Part:
        return Hot(self.index, self.depth, tuple(self.hot[k] for k in which), self.dtype)

    def value(self, s: Scope) -> Value:
        same = s.b.op("eq", column(s.b, self.index), s.b.constant(np.array([self.hot], np.int64)))
        return s.b.op("cast", same, dtype=self.dtype)

    def linear(self, s: Scope, w: np.ndarray, name: str) -> Value:
        table = np.zeros((self.depth + 1, w.shape[1]))
        np.add.at(table, list(self.hot), w)
        return s.b.op("gather", s.const(table.astype(self.dtype.numpy), f"{name}.rows"), self.index, axis=0)


@dataclass(frozen=True, eq=False, slots=True)
class Text:
    """Column `position` of the input `source`, which holds strings. filled [rows, 1]: their numbers after an imputer."""

    source: Value
    codes: Codes
    position: int
    filled: Value | None = None
    width: int = 1
    dtype: DType = F64

    def select(self, s: Scope, which: Sequence[int]) -> Part:
        assert list(which) == [0]
        return self

    def value(self, s: Scope) -> Value:
        raise UnsupportedError(f"column {self.codes.name!r} holds strings, which only encoders and imputers take; put a OneHotEncoder, "
                               "OrdinalEncoder or TargetEncoder on it, or drop it")

    def linear(self, s: Scope, w: np.ndarray, name: str) -> Value:
        return self.value(s)

    def numbers(self, s: Scope) -> Value:
        """The codes [rows, 1]."""
        return pick_columns(s.b, self.source, s.at([self.position])) if self.filled is None else self.filled


Part = Dense | Affine | Hot | Text


@dataclass(frozen=True, eq=False, slots=True)
class Columns:
    """What one estimator hands to the next."""

    s: Scope
    parts: tuple[Part, ...]

    @property
    def b(self) -> GraphBuilder:
        return self.s.b

    @property
    def width(self) -> int:
        return sum(p.width for p in self.parts)

    @property
    def dtype(self) -> DType:
        """The type of the whole as NumPy puts it together."""
        kinds = {p.dtype for p in self.parts}
        return F32 if kinds == {F32} else F64

    def value(self, dtype: DType | None = None) -> Value:
        """[rows, width]"""
        want = dtype or self.dtype
        parts = [convert(self.b, p.value(self.s), want) for p in self.parts if p.width]
        if not parts:
            raise UnsupportedError("no columns are left")
        return parts[0] if len(parts) == 1 else self.b.op("concat", *parts, axis=1)

    def select(self, which: Sequence[int]) -> Columns:
        """The columns of these positions, in this order."""
        owners = [(k, i) for k, p in enumerate(self.parts) for i in range(p.width)]
        runs: list[tuple[int, list[int]]] = []
        for w in which:
            k, i = owners[w]
            if runs and runs[-1][0] == k and not isinstance(self.parts[k], Text):
                runs[-1][1].append(i)
            else:
                runs.append((k, [i]))
        return Columns(self.s, _merged([self.parts[k].select(self.s, own) if own != list(range(self.parts[k].width)) else self.parts[k]
                                        for k, own in runs]))

    def column(self, k: int) -> Columns:
        return self.select([k])

    def linear(self, w: np.ndarray, c: np.ndarray | None = None, name: str = "coef") -> Value:
        """[rows, outputs]: value @ w + c, in the wider type of this and w. Columns whose weights are all 0 are not read."""
        w = np.asarray(w)
        wide = F32 if self.dtype == F32 and w.dtype == np.float32 else F64
        needed = np.flatnonzero(np.any(w != 0, axis=1))
        if len(needed) < 0.75 * len(w):
            return self.select([int(k) for k in needed])._sum(w[needed], c, wide, name)
        return self._sum(w, c, wide, name)

    def _sum(self, w: np.ndarray, c: np.ndarray | None, wide: DType, name: str) -> Value:
        total, at = None, 0
        for p in (q for q in self.parts if q.width):
            y = _promoted(p, wide).linear(self.s, w[at:at + p.width].astype(np.float64), name)
            y = convert(self.b, y, wide)
            total = y if total is None else self.b.op("add", total, y)
            at += p.width
        if c is None:
            c = np.zeros(w.shape[1])
        if total is None:
            return self.b.op("expand", self.s.const(np.asarray(c, wide.numpy)[None], f"{name}.shift"), shape=(self.s.rows, w.shape[1]))
        return self.b.op("add", total, self.s.const(np.asarray(c, wide.numpy), f"{name}.shift")) if np.any(c) else total

    def dense(self, value: Value) -> Columns:
        """Other columns in place of these."""
        return dense(self.s, value)

    def affine(self, matrix: np.ndarray, shift: np.ndarray, exact: Callable[[], Value], dtype: DType, safe: bool = True) -> Columns:
        """The same, as far as it is needed, of parts that may be lazy themselves."""
        made: list[Value] = []

        def once() -> Value:
            if not made:
                made.append(exact())
            return made[0]
        if len(self.parts) != 1 or isinstance(self.parts[0], Text) or (dtype == F32 and self.dtype != F32):
            return self.dense(once())
        return Columns(self.s, (Affine(self.parts[0], matrix.astype(np.float64), shift.astype(np.float64), once, dtype, safe),))


def dense(s: Scope, value: Value) -> Columns:
    assert value.type.rank == 2, f"{value} is no table"
    return Columns(s, (Dense(value, tuple(range(value.type.shape[1]))),))


def joined(s: Scope, several: Sequence[Columns]) -> Columns:
    """Side by side."""
    return Columns(s, _merged([p for c in several for p in c.parts if p.width]))


def _merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbours that come from one value are one part."""
    out: list[Part] = []
    for p in parts:
        last = out[-1] if out else None
        if isinstance(p, Dense) and isinstance(last, Dense) and last.source == p.source:
            out[-1] = Dense(p.source, last.picks + p.picks, p.root)
        else:
            out.append(p)
    return tuple(out)


def _promoted(p: Part, wide: DType) -> Part:
    """Sums that the library takes in f64 are taken in f64 from the part's own values."""
    return Cast(p, wide) if p.dtype != wide and not isinstance(p, Hot | Text) else p  # type: ignore[return-value]


@dataclass(frozen=True, eq=False, slots=True)
class Cast:
    """A part in a wider type, for `linear` only."""

    part: Part
    dtype: DType

    @property
    def width(self) -> int:
        return self.part.width

    def linear(self, s: Scope, w: np.ndarray, name: str) -> Value:
        return product(s, convert(s.b, self.part.value(s), self.dtype), w, name)


# -- small things ------------------------------------------------------------------------------------------------------
def product(s: Scope, x: Value, w: np.ndarray, name: str) -> Value:
    """x @ w. Weights below the normal numbers, to which training with a penalty brings those of idle neurons, become 0: with
    them a processor is a hundred times as slow, and they add less than 1e-37 of x."""
    kind = x.type.dtype.numpy
    return s.b.op("matmul", x, s.const(np.where(np.abs(w) < np.finfo(kind).tiny, 0, w).astype(kind), name))


def pick_columns(b: GraphBuilder, x: Value, picks: Sequence[int]) -> Value:
    """x[:, picks]"""
    n, picks = x.type.shape[1], [int(k) for k in picks]
    if picks == list(range(n)):
        return x
    step = picks[1] - picks[0] if len(picks) > 1 else 1
    if picks and step > 0 and picks == list(range(picks[0], picks[0] + step * len(picks), step)):
        return b.op("slice", x, starts=(0, picks[0]), steps=(1, step), sizes=(x.type.shape[0], len(picks)))
    return b.op("gather", x, b.constant(np.array(picks, np.int64)), axis=1)


def divided(b: GraphBuilder, v: Value, size: Value) -> Value:
    """v / size; v where the size is 0."""
    return b.op("div", v, b.op("where", b.op("eq", size, num(b, size, 0)), num(b, size, 1), size))


def column(b: GraphBuilder, v: Value) -> Value:
    """[rows, 1] of [rows]."""
    return b.op("reshape", v, shape=(v.type.shape[0], 1))


def flat(b: GraphBuilder, v: Value) -> Value:
    """[rows] of [rows, 1]."""
    return b.op("reshape", v, shape=v.type.shape[:1])


def num(b: GraphBuilder, like: Value, v: float) -> Value:
    """A number of the value's type."""
    return b.constant(np.array(v, like.type.dtype.numpy))


def as_bool(b: GraphBuilder, v: Value, like: Value) -> Value:
    """1 and 0 of the type of `like` for a truth value."""
    assert v.type.dtype == BOOL
    return b.op("cast", v, dtype=like.type.dtype)


def inplace(s: Scope, op: str, x: Value, a: np.ndarray, name: str) -> Value:
    """x op= a, as NumPy does it: in the wider type, then back in x's."""
    a = np.asarray(a)
    if a.dtype.kind != "f":
        a = a.astype(np.float64)
    if x.type.dtype == F32 and a.dtype == np.float64:
        return s.b.op("cast", s.b.op(op, s.b.op("cast", x, dtype=F64), s.const(a, name)), dtype=F32)
    return s.b.op(op, x, s.const(a.astype(x.type.dtype.numpy), name))
