"""Equal expressions as one object, in normal form: what is computed twice in a program is then computed once."""
from __future__ import annotations

from operator import is_

from .affine import simplify_index, simplify_node
from .expr import Call, Cast, Checked, Const, Expr, Load, Reduce, Rescue, Table, Var, children, rewrite


class Interner:
    """Makes structurally equal expressions the same object, so that what is computed twice is computed once."""

    def __init__(self) -> None:
        self.table: dict[tuple[object, ...], Expr] = {}
        self.indices: dict[int, Expr] = {}  # id of a representative -> its normal form

    def __call__(self, e: Expr) -> Expr:
        return rewrite(e, self.node)

    def simple(self, n: Expr) -> Expr:
        """The representative of a node in normal form, whose children are representatives in normal form."""
        if not isinstance(n, Load):
            return self.node(simplify_node(n) if isinstance(n, Call) else n)
        index = tuple(map(self._index, n.index))
        where = n.where
        if isinstance(where, Const):
            if not where.value and n.other is not None:
                return n.other
            return self.node(Load(n.buffer, index))
        return self.node(n if all(map(is_, index, n.index)) else Load(n.buffer, index, where, n.other))

    def _index(self, i: Expr) -> Expr:
        if isinstance(i, Const) or isinstance(i, Var) and i.axis.extent != 1:
            return self.node(i)
        if id(i) not in self.indices:
            i = self(i)
            self.indices.setdefault(id(i), self(simplify_index(i)))
        return self.indices[id(i)]

    def node(self, n: Expr) -> Expr:
        """The representative of a node whose children are representatives."""
        match n:
            case Const(value, dtype):
                own: tuple[object, ...] = (repr(value), dtype)
            case Var(axis, dtype):
                own = (axis, dtype)
            case Load(buffer, _, where, _):
                own = (buffer, where is None)
            case Call(fn, _, dtype):
                own = (fn, dtype)
            case Cast(_, dtype):
                own = (dtype,)
            case Checked(_, extent, _):
                own = (extent,)
            case Table(values, _, dtype):
                own = (values, dtype)
            case Reduce(kind, axes, _):
                own = (kind, axes)
            case Rescue(_, axes, _):
                own = (axes,)
            case _:
                raise AssertionError(type(n))
        key = (type(n), own, *map(id, children(n)))
        return self.table.setdefault(key, n)
