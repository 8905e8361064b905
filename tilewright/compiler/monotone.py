"""Columns of a table that follow from one number each, by steps that keep or turn its order: what such a column is at any x,
and where it passes a bound.

    %v = sub(%x, @mean);  %y = div(%v, @scale)      column k of %y rises with column k of %x, also as rounded

All is asked of *lines*: P columns of a value at once, whatever their number in it. `Monotone.lines` says from which column of
which root each follows, and how; `Monotone.at` computes them with the operators' own references, that is in the types and
with the roundings of the graph; `last_below` finds the last x before a bound, by bisection over the floating-point numbers.

Only steps that are monotone for every pair of numbers, with rounding, overflow and infinities, are taken, and only those
that make NaN of no number: sums with finite constants, products and quotients with finite ones that are not 0, comparisons,
limits, roundings to integers and changes of type. What NaN itself becomes is computed, not assumed.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.op import OPS
from ..ir.ops.elementwise import Map
from ..ir.types import F32, F64, I32, I64

_TURNS = {"neg": -1, "floor": 1, "ceil": 1, "round": 1, "trunc": 1}
_COMPARES = {"gt": 1, "ge": 1, "lt": -1, "le": -1}


@dataclass(frozen=True, eq=False, slots=True)
class Lines:
    """root: i32[P], number of the value that a line follows from; -1: it is constant. column: i64[P] of it. turn: i8[P], 1 where
    the line does not fall, -1 where it does not rise, 0 where it is constant. bound: f64[P], what no |value| is above. plain:
    bool[P], the root's column itself."""

    root: np.ndarray
    column: np.ndarray
    turn: np.ndarray
    bound: np.ndarray
    plain: np.ndarray


class Monotone:
    """Questions about the values of one graph. `roots`: the values that lines were found to follow from."""

    def __init__(self, g: Graph, frozen: bool) -> None:
        """frozen: weights count as constants."""
        self.constants = {k: c.array for k, c in g.constants.items() if frozen or not c.updatable}
        self.producers = {v.name: n for n in g.nodes for v in n.outputs}
        self.roots: list[Value] = []
        self.inside: set[str] = set()  # the values between roots and what was asked for
        moving = {v.name for v in g.inputs}
        for n in g.nodes:
            if any(v.name in moving for v in n.operands):
                moving.update(v.name for v in n.outputs)
        self.moving = moving

    def lines(self, v: Value, cols: np.ndarray) -> Lines | None:
        """Of the columns `cols` of v[rows, n]; None where they follow from no floating-point numbers in a known way."""
        n = self.producers.get(v.name)
        if v.name not in self.moving:
            return self._fixed(v, cols)
        if v.type.rank != 2:
            return None
        found = self._through(n, cols) if n is not None and v not in self.roots else None
        if found is not None:
            self.inside.add(v.name)
            return found
        if v.type.dtype not in (F32, F64) or v.name in self.inside:
            return None
        if v not in self.roots:
            self.roots.append(v)
        size = len(cols)
        return Lines(np.full(size, self.roots.index(v), np.int32), cols, np.ones(size, np.int8), np.full(size, np.inf), np.ones(size, bool))

    def _fixed(self, v: Value, cols: np.ndarray) -> Lines | None:
        a = self._constant(v, cols)
        if a is None:
            return None
        size = len(cols)
        with np.errstate(invalid="ignore"):
            bound = np.where(np.isnan(a), np.inf, np.abs(a.astype(np.float64)))
        return Lines(np.full(size, -1, np.int32), np.zeros(size, np.int64), np.zeros(size, np.int8), bound, np.zeros(size, bool))

    def _constant(self, v: Value, cols: np.ndarray) -> np.ndarray | None:
        """Elements `cols` of every row of a constant that is broadcast to a table."""
        a = self.constants.get(v.name)
        if a is None or a.ndim > 2 or not a.size:
            return None
        rows = a.reshape(-1, a.shape[-1] if a.ndim else 1)
        if not (rows[:1] == rows).all() and len(rows) > 1:
            return None
        return rows[0][cols if rows.shape[1] > 1 else np.zeros(len(cols), np.int64)]

    # -- one step ----------------------------------------------------------------------------------------------------------
    def _through(self, n: Node, cols: np.ndarray) -> Lines | None:
        if n.op == "concat":
            return self._joined(n, cols)
        if (picked := _picked(n, cols, self.constants)) is not None:
            return self.lines(*picked)
        if not isinstance(OPS[n.op], Map):
            return None
        parts = [self.lines(v, own_columns(v, cols)) for v in n.operands]
        known = [p for p in parts if p is not None]
        if len(known) < len(parts):
            return None
        to = n.outputs[0].type.dtype
        origin = _origin(known)
        made = self._step(n, known, cols) if origin is not None and (to.kind != "f" or to in (F32, F64)) else None
        if made is None or origin is None:
            return None
        turn, bound = made
        limit = np.finfo(to.numpy).max / 2 if to.kind == "f" else 2.0**31
        return Lines(*origin, turn.astype(np.int8), np.where(bound > limit, np.inf, bound), np.zeros(len(cols), bool))

    def _joined(self, n: Node, cols: np.ndarray) -> Lines | None:
        if getattr(n.attrs, "axis", 0) not in (1, -1):
            return None
        ends = np.cumsum([v.type.shape[1] for v in n.operands])
        which = np.searchsorted(ends, cols, side="right")
        out = Lines(*(np.zeros(len(cols), t) for t in (np.int32, np.int64, np.int8, np.float64, bool)))
        for k, v in enumerate(n.operands):
            own = which == k
            if not own.any():
                continue
            part = self.lines(v, cols[own] - (ends[k] - v.type.shape[1]))
            if part is None:
                return None
            for field in ("root", "column", "turn", "bound", "plain"):
                getattr(out, field)[own] = getattr(part, field)
        return out

    def _step(self, n: Node, parts: Sequence[Lines], cols: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """turn and bound of the result; None where the step is not known to keep order."""
        a, kind = parts[0], n.op
        if kind == "cast":
            return self._cast(n, a)
        if kind in _TURNS:
            return a.turn * _TURNS[kind], a.bound + 1
        if kind == "isnan":  # of a line, which is NaN for no number
            return np.zeros(len(cols)), np.ones(len(cols))
        if kind == "where":
            return self._where(n, parts, cols)
        if len(parts) != 2:
            return None
        b = parts[1]
        if kind in ("mul", "div"):
            return self._scaled(n, parts, cols)
        still = (a.turn == 0) | (b.turn == 0)
        if kind in ("add", "sub"):
            other = b.turn if kind == "add" else -b.turn
            ok = self._fixed_are(np.isfinite, n, parts, cols) & (still | ((a.turn == other) & np.isfinite(np.minimum(a.bound, b.bound))))
            turn, bound = np.where(a.turn != 0, a.turn, other), a.bound + b.bound
        elif kind in ("min", "max"):
            ok = (still | (a.turn == b.turn)) & self._fixed_are(_is_number, n, parts, cols)
            turn, bound = np.where(a.turn != 0, a.turn, b.turn), np.maximum(a.bound, b.bound)
        elif kind in _COMPARES:
            ok = still & self._fixed_are(_is_number, n, parts, cols)
            turn, bound = _COMPARES[kind] * np.where(a.turn != 0, a.turn, -b.turn), np.ones(len(cols))
        else:
            return None
        return (turn, bound) if ok.all() else None

    def _cast(self, n: Node, a: Lines) -> tuple[np.ndarray, np.ndarray] | None:
        """Integers only of what fits."""
        to = n.outputs[0].type.dtype
        if to in (I32, I64) and not (a.bound < 2.0**31).all():
            return None
        return (a.turn, a.bound * 1.01) if to in (F32, F64, I32, I64) else None

    def _scaled(self, n: Node, parts: Sequence[Lines], cols: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """By a constant that is finite and not 0; a quotient's is the divisor."""
        k = 1 if (parts[1].turn == 0).all() else 0
        if not k and (n.op == "div" or (parts[0].turn != 0).any()):
            return None
        moving, c = parts[1 - k], self._value(n.operands[k], cols)
        if c.dtype.kind != "f" or not (np.isfinite(c) & (c != 0)).all():
            return None
        size = np.abs(c.astype(np.float64))
        return moving.turn * np.sign(c).astype(np.int8), moving.bound * size if n.op == "mul" else moving.bound / size

    def _where(self, n: Node, parts: Sequence[Lines], cols: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Whose condition is the same for every number."""
        condition, yes, no = parts
        if (condition.turn != 0).any():
            return None
        c = self._value(n.operands[0], cols)
        return np.where(c, yes.turn, no.turn), np.where(c, yes.bound, no.bound)

    def _value(self, v: Value, cols: np.ndarray) -> np.ndarray:
        """Of lines that are the same for every number."""
        return self.at(v, own_columns(v, cols), np.zeros(len(cols)))

    def _fixed_are(self, good: Callable[[np.ndarray], np.ndarray], n: Node, parts: Sequence[Lines], cols: np.ndarray) -> np.ndarray:
        """Where operands that are the same for every number are `good`."""
        ok = np.ones(len(cols), bool)
        for v, p in zip(n.operands, parts, strict=True):
            if (p.turn == 0).any():
                ok &= (p.turn != 0) | good(self._value(v, cols))
        return ok

    # -- values ------------------------------------------------------------------------------------------------------------
    def at(self, v: Value, cols: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The lines of v at x[P], each in the root's type, for values that `lines` answered for."""
        with np.errstate(all="ignore"):
            return self._at(v, cols, x)

    def _at(self, v: Value, cols: np.ndarray, x: np.ndarray) -> np.ndarray:
        if v.name not in self.moving:
            a = self._constant(v, cols)
            assert a is not None
            return a
        if v.name not in self.inside:
            return x.astype(v.type.dtype.numpy)
        n = self.producers[v.name]
        if n.op == "concat":
            ends = np.cumsum([p.type.shape[1] for p in n.operands])
            which, out = np.searchsorted(ends, cols, side="right"), np.empty(len(cols), v.type.dtype.numpy)
            for k, p in enumerate(n.operands):
                if (own := which == k).any():
                    out[own] = self._at(p, cols[own] - (ends[k] - p.type.shape[1]), x[own])
            return out
        if (picked := _picked(n, cols, self.constants)) is not None:
            return self._at(*picked, x)
        return OPS[n.op].reference(n.attrs, *(self._at(p, own_columns(p, cols), x) for p in n.operands))[0]


def own_columns(v: Value, cols: np.ndarray) -> np.ndarray:
    """The columns of an operand that stand beside `cols` of the result."""
    return cols if v.type.rank and v.type.shape[-1] > 1 else np.zeros(len(cols), np.int64)


def _origin(parts: Sequence[Lines]) -> tuple[np.ndarray, np.ndarray] | None:
    """Root and column that all parts follow from; None where they differ."""
    root, column = parts[0].root, parts[0].column
    for p in parts[1:]:
        if np.any((root >= 0) & (p.root >= 0) & ((p.root != root) | (p.column != column))):
            return None
        root, column = np.where(root >= 0, root, p.root), np.where(root >= 0, column, p.column)
    return root, column


def _is_number(a: np.ndarray) -> np.ndarray:
    return ~np.isnan(a)


def _picked(n: Node, cols: np.ndarray, constants: dict[str, np.ndarray]) -> tuple[Value, np.ndarray] | None:
    """The operand and its columns, for nodes that choose columns of a table."""
    v = n.operands[0]
    if n.op == "slice" and v.type.rank == 2 and n.outputs[0].type.shape[0] == v.type.shape[0]:
        starts, steps = n.attrs.starts, n.attrs.steps  # type: ignore[attr-defined]
        return (v, cols * steps[1] + starts[1]) if (starts[0], steps[0]) == (0, 1) else None
    if n.op == "gather" and v.type.rank == 2 and n.attrs.axis in (1, -1):  # type: ignore[attr-defined]
        picks = constants.get(n.operands[1].name)
        return (v, picks[cols]) if picks is not None and picks.ndim == 1 and (picks >= 0).all() else None
    return None


# -- bounds ------------------------------------------------------------------------------------------------------------
def last_below(holds: Callable[[np.ndarray, np.ndarray], np.ndarray], size: int, dtype: np.dtype) -> np.ndarray:
    """[size] of dtype: the last number x, infinities included, for which the condition holds; NaN where it holds for none.

    holds(x, which): bool for the conditions numbered `which` at x; each holds up to some number and for none after it."""
    whole = np.dtype(np.int64 if dtype.itemsize == 8 else np.int32)
    top = int(np.array(np.inf, dtype).view(whole))
    low, high = np.full(size, ~top - 1, np.int64), np.full(size, top + 1, np.int64)  # holds, does not hold
    which = np.arange(size)
    while len(which):
        middle = (low[which] & high[which]) + ((low[which] ^ high[which]) >> 1)
        good = holds(_number(middle, dtype, whole), which)
        low[which[good]], high[which[~good]] = middle[good], middle[~good]
        which = which[low[which] + 1 < high[which]]
    return np.where(low < ~top, dtype.type(np.nan), _number(np.maximum(low, ~top), dtype, whole))


def _number(key: np.ndarray, dtype: np.dtype, whole: np.dtype) -> np.ndarray:
    """The number in place `key` of the order; 0 is 0.0, -1 is -0.0."""
    k = key.astype(whole)
    return np.where(k < 0, k ^ np.iinfo(whole).max, k).astype(whole).view(dtype)
