"""Scalar expressions: what one element of a tensor program computes.

An expression is an immutable DAG over loop axes (`Var`), elements of buffers (`Load`), scalar functions (`Call`, named
after `ir/functions.py`) and reductions (`Reduce`). Shared sub-expressions are shared objects: visitors memoise by
identity, so a DAG never explodes into its tree.

    y[i,j] = relu(sum k in 64: x[i,k] * w[k,j])
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .types import BOOL, F32, I64, DType, contiguous_strides


@dataclass(frozen=True, slots=True)
class Axis:
    """One loop variable, counting from 0 to extent - 1. Axes are equal when name and extent are."""

    name: str
    extent: int

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of a tensor as a program sees it: `strides` in elements; row-major where not given."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.shape):
            object.__setattr__(self, "strides", contiguous_strides(self.shape))

    def __getitem__(self, index: object) -> Load:
        return Load(self, as_index(index))

    def at(self, index: object, where: Expr, other: object) -> Load:
        """The element at `index` where `where` holds, else `other`; memory is only touched where it holds."""
        return Load(self, as_index(index), where, wrap(other, self.dtype))


class Expr:
    """Base of all expressions, with Python's operators (comparisons by `eq`/`ne` below, since == compares objects)."""

    __slots__ = ()
    dtype: DType

    def __add__(self, o: object) -> Expr: return binary("add", self, o)
    def __radd__(self, o: object) -> Expr: return binary("add", o, self)
    def __sub__(self, o: object) -> Expr: return binary("sub", self, o)
    def __rsub__(self, o: object) -> Expr: return binary("sub", o, self)
    def __mul__(self, o: object) -> Expr: return binary("mul", self, o)
    def __rmul__(self, o: object) -> Expr: return binary("mul", o, self)
    def __truediv__(self, o: object) -> Expr: return binary("div", self, o)
    def __rtruediv__(self, o: object) -> Expr: return binary("div", o, self)
    def __floordiv__(self, o: object) -> Expr: return binary("floordiv", self, o)
    def __mod__(self, o: object) -> Expr: return binary("mod", self, o)
    def __lt__(self, o: object) -> Expr: return binary("lt", self, o)
    def __le__(self, o: object) -> Expr: return binary("le", self, o)
    def __gt__(self, o: object) -> Expr: return binary("gt", self, o)
    def __ge__(self, o: object) -> Expr: return binary("ge", self, o)
    def __and__(self, o: object) -> Expr: return binary("and", self, o)
    def __or__(self, o: object) -> Expr: return binary("or", self, o)
    def __invert__(self) -> Expr: return call("not", self)
    def __neg__(self) -> Expr: return call("neg", self)


@dataclass(frozen=True, slots=True, eq=False)
class Const(Expr):
    value: int | float | bool
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Var(Expr):
    """The value of a loop axis."""

    axis: Axis
    dtype: DType = I64


@dataclass(frozen=True, slots=True, eq=False)
class Load(Expr):
    """buffer[index], or `other` where `where` is false (then memory is not touched)."""

    buffer: Buffer
    index: tuple[Expr, ...]
    where: Expr | None = None
    other: Expr | None = None

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.buffer.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Call(Expr):
    """A scalar function of ir/functions.py. All operands of one arithmetic call share a dtype."""

    fn: str
    args: tuple[Expr, ...]
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Cast(Expr):
    """Value conversion with C semantics; float to bool is x != 0, bool to number is 0 or 1."""

    arg: Expr
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Reduce(Expr):
    """`kind` (sum prod max min any all) of `body` over all points of `axes`; empty axes give the identity."""

    kind: str
    axes: tuple[Axis, ...]
    body: Expr

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.body.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Rescue(Expr):
    """`value` where it is finite, else the sum of `body` over all points of `axes`, carried in the body's own type and then
    converted. For fast algorithms that turn an infinity into NaN where the plain sum does not: `body` is that plain sum,
    evaluated only where it is needed. The axes are the node's own and are no reduction of the compute; costs leave the body
    out, schedules do not see it (`walk(e, rare=False)`)."""

    value: Expr
    axes: tuple[Axis, ...]
    body: Expr

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.value.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Checked(Expr):
    """An index computed from data: `arg` counted from the end when negative, clamped into [0, extent), and the call
    fails with an InputError afterwards if any was outside [-extent, extent). Keeps memory safe whatever the data say."""

    arg: Expr
    extent: int
    dtype: DType = I64


def identity(kind: str, dtype: DType) -> float | int | bool:
    """The value of a reduction over nothing."""
    if kind in ("sum", "any"):
        return 0
    if kind in ("prod", "all"):
        return 1
    if dtype.is_float:
        return -math.inf if kind == "max" else math.inf
    if dtype.kind == "b":
        return kind == "min"
    low, high = (-(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1) if dtype.kind == "i" else (0, (1 << dtype.bits) - 1)
    return low if kind == "max" else high


@dataclass(frozen=True, slots=True, eq=False)
class Table(Expr):
    """values[index]: constants of a transform. Where the loops around are unrolled, each use is one constant, and products
    with 0 and 1 vanish."""

    values: tuple[float, ...]
    index: Expr
    dtype: DType = F32


def wrap(x: object, dtype: DType) -> Expr:
    """`x` as an expression; plain numbers become constants of `dtype`."""
    if isinstance(x, Expr):
        return x
    if isinstance(x, Axis):
        return Var(x)
    if isinstance(x, (bool, np.bool_)) and dtype is BOOL:
        return Const(bool(x), dtype)
    assert isinstance(x, (int, float, np.integer, np.floating, bool)), f"not a scalar expression: {x!r}"
    return Const(float(x) if dtype.is_float else int(x), dtype)


def as_index(index: object) -> tuple[Expr, ...]:
    items = index if isinstance(index, tuple) else (index,)
    return tuple(wrap(i, I64) for i in items)


COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
PREDICATES = frozenset({"isnan", "isinf"})


def call(fn: str, *args: object) -> Expr:
    """A scalar function of its operands; numbers take the dtype of the first operand that is an expression.

    `select(cond, a, b)` and the comparisons follow their own dtype rules. Integer arithmetic on constants and the
    neutral cases x+0, x*1, x*0 (integers only) fold here, which keeps index expressions short.
    """
    from .functions import FUNCTIONS
    assert fn in FUNCTIONS, f"unknown scalar function {fn!r}"
    values = args[1:] if fn == "select" else args
    dtype = next((a.dtype for a in values if isinstance(a, Expr)), I64)
    operands = tuple(wrap(a, dtype) for a in values)
    assert all(o.dtype == dtype for o in operands), f"{fn}: operands of {[o.dtype for o in operands]}"
    if fn == "select":
        cond = wrap(args[0], BOOL)
        if isinstance(cond, Const):
            return operands[0] if cond.value else operands[1]
        return Call(fn, (cond, *operands), dtype)
    if fn in ("and", "or") and dtype is BOOL:
        for a, b in (operands, operands[::-1]):
            if isinstance(a, Const):
                return (b if a.value else a) if fn == "and" else (a if a.value else b)
    if dtype is I64 and (folded := _fold_index(fn, operands)) is not None:
        return folded
    return Call(fn, operands, BOOL if fn in COMPARISONS or fn in PREDICATES else dtype)


def _fold_index(fn: str, ops: tuple[Expr, ...]) -> Expr | None:
    consts = [o.value if isinstance(o, Const) else None for o in ops]
    if len(ops) == 2 and None not in consts:
        a, b = int(consts[0]), int(consts[1])  # type: ignore[arg-type]
        table: dict[str, Callable[[], int | bool]] = {
            "add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b, "min": lambda: min(a, b),
            "max": lambda: max(a, b), "lt": lambda: a < b, "le": lambda: a <= b, "gt": lambda: a > b,
            "ge": lambda: a >= b, "eq": lambda: a == b, "ne": lambda: a != b}
        if b:
            table |= {"floordiv": lambda: a // b, "mod": lambda: a % b}
        if fn in table and -(2**62) < a * (b or 1) < 2**62:
            v = table[fn]()
            return Const(v, BOOL if fn in COMPARISONS else I64)
    if len(ops) == 2:
        x, y = ops
        cx, cy = consts
        if (fn in ("add", "sub") and cy == 0) or (fn in ("mul", "floordiv") and cy == 1):
            return x
        if (fn == "add" and cx == 0) or (fn == "mul" and cx == 1):
            return y
        if fn == "mul" and 0 in (cx, cy) or fn == "mod" and cy == 1:
            return Const(0, I64)
    return None


def binary(fn: str, a: object, b: object) -> Expr:
    return call(fn, a, b)


def select(cond: Expr, a: object, b: object) -> Expr:
    """a where cond else b. Both are evaluated: guard loads that may be out of bounds with Buffer.at instead."""
    return call("select", cond, a, b)


def eq(a: object, b: object) -> Expr:
    return call("eq", a, b)


def ne(a: object, b: object) -> Expr:
    return call("ne", a, b)


def cast(x: Expr, dtype: DType) -> Expr:
    return x if x.dtype == dtype else Cast(x, dtype)


def all_of(conds: list[Expr]) -> Expr | None:
    """The conjunction of `conds`, None when there is nothing to check."""
    out: Expr | None = None
    for c in conds:
        if isinstance(c, Const) and c.value:
            continue
        out = c if out is None else out & c
    return out


def accumulate_dtype(d: DType) -> DType:
    """The type sums over `d` are carried in: half floats in f32, everything else as it is."""
    return F32 if d.is_float and d.bits < 32 else d


def children(e: Expr) -> tuple[Expr, ...]:
    t = type(e)
    if t is Call:
        return e.args  # type: ignore[attr-defined]
    if t is Load:
        rest = tuple(x for x in (e.where, e.other) if x is not None)  # type: ignore[attr-defined]
        return e.index + rest if rest else e.index  # type: ignore[attr-defined]
    if t is Cast or t is Checked:
        return (e.arg,)  # type: ignore[attr-defined]
    if t is Table:
        return (e.index,)  # type: ignore[attr-defined]
    if t is Rescue:
        return (e.value, e.body)  # type: ignore[attr-defined]
    return (e.body,) if t is Reduce else ()  # type: ignore[attr-defined]


def walk(e: Expr, rare: bool = True) -> Iterator[Expr]:
    """Every distinct node of the DAG, children first. `rare`: the plain sums of `Rescue` nodes too."""
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(e, False)]
    while stack:
        node, done = stack.pop()
        if done:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            inner = (node.value,) if not rare and type(node) is Rescue else children(node)
            if inner:
                stack.append((node, True))
                stack += [(c, False) for c in reversed(inner) if id(c) not in seen]
            else:
                yield node


def rewrite(e: Expr, visit: Callable[[Expr], Expr | None], memo: dict[int, Expr] | None = None) -> Expr:
    """Rebuilds `e` bottom-up. `visit(node with new children)` returns a replacement, or None to keep the node."""
    memo = {} if memo is None else memo
    for n in walk(e):
        if id(n) not in memo:
            inner = tuple([memo[id(c)] for c in children(n)])
            new = with_children(n, inner) if inner else n
            # x + 0 folds to x, which has been visited: a second visit would substitute within what was substituted
            memo[id(n)] = new if any(new is c for c in inner) else visit(new) or new
    return memo[id(e)]


def with_children(e: Expr, new: tuple[Expr, ...]) -> Expr:
    if all(a is b for a, b in zip(children(e), new, strict=True)):
        return e
    match e:
        case Load(buffer, index, where, other):
            k = len(index)
            rest = list(new[k:])
            w = rest.pop(0) if where is not None else None
            return Load(buffer, new[:k], w, rest.pop(0) if other is not None else None)
        case Call(fn, _, _):
            return call(fn, *new)
        case Cast(_, dtype):
            return cast(new[0], dtype)
        case Checked(_, extent, _):
            return Checked(new[0], extent)
        case Table(values, _, dtype):
            return Table(values, new[0], dtype)
        case Reduce(kind, axes, _):
            return Reduce(kind, axes, new[0])
        case Rescue(_, axes, _):
            return Rescue(new[0], axes, new[1])
    raise AssertionError(f"{type(e).__name__} has no children")


def substitute(e: Expr, axes: dict[Axis, Expr]) -> Expr:
    """`e` with each axis in `axes` replaced by its expression."""
    return rewrite(e, lambda n: axes.get(n.axis) if isinstance(n, Var) else None)


def loads(e: Expr, rare: bool = True) -> list[Load]:
    return [n for n in walk(e, rare) if isinstance(n, Load)]


def reduces(e: Expr) -> list[Reduce]:
    return [n for n in walk(e) if isinstance(n, Reduce)]


def axes_of(e: Expr) -> set[Axis]:
    """All axes that occur, those bound by reductions and rescues included."""
    return {n.axis for n in walk(e) if isinstance(n, Var)}
