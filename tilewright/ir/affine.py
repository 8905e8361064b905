"""Index expressions in normal form: an integer combination of loop axes and of floor divisions and remainders.

    (i*12 + j) // 4 % 3   with j < 12   ->   j // 4          (its remainder by 3 is itself: j // 4 < 3)
    (j // 4) * 4 + j % 4                ->   j

`linear` makes the form and `to_expr` turns it back. Extents of the axes bound every term, which is what decides most
divisions; so a reshape of contiguous memory comes out as plain strides, and guards that always hold disappear.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from typing import cast as typed

from .expr import COMPARISONS, Axis, Call, Cast, Checked, Const, Expr, Load, Var, rewrite, wrap
from .types import BOOL, I64

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Linear:
    """const + sum of coefficient * atom; terms are in a canonical order, so equal forms compare equal."""

    terms: tuple[tuple[Atom, int], ...] = ()
    const: int = 0

    def __add__(self, o: Linear) -> Linear:
        return combine((*self.terms, *o.terms), self.const + o.const)

    def __sub__(self, o: Linear) -> Linear:
        return self + o.scaled(-1)

    def scaled(self, k: int) -> Linear:
        return Linear(tuple((a, c * k) for a, c in self.terms), self.const * k) if k else Linear()

    def coefficient(self, axis: Axis) -> int:
        return next((c for a, c in self.terms if a == axis), 0)


@dataclass(frozen=True, slots=True)
class Div:
    """arg // by"""

    arg: Linear
    by: int


@dataclass(frozen=True, slots=True)
class Mod:
    """arg % by"""

    arg: Linear
    by: int


@dataclass(frozen=True, slots=True)
class Opaque:
    """Any other integer expression (min, max, loads, checked indices); equal only to itself."""

    expr: Expr


Atom = Axis | Div | Mod | Opaque


def _order(term: tuple[Atom, int]) -> tuple[int, int, str]:
    a, c = term
    return (-abs(c), (Axis, Div, Mod, Opaque).index(type(a)), a.name if isinstance(a, Axis) else str(a))


def combine(terms: Iterable[tuple[Atom, int]], const: int = 0) -> Linear:
    """The normal form of a sum: equal atoms added up, k*c*(x//c) + k*(x%c) joined to k*x."""
    coefs: dict[Atom, int] = {}
    for a, c in terms:
        coefs[a] = coefs.get(a, 0) + c
    coefs = {a: c for a, c in coefs.items() if c}
    for a, c in coefs.items():
        if isinstance(a, Mod) and (joined := _join(a, c, coefs)) is not None:
            gone, extra, k = joined
            return combine((*((x, v) for x, v in coefs.items() if x not in gone), *extra.terms), const + extra.const + k)
    items = list(coefs.items())
    if len(items) > 1:
        items.sort(key=_order)
    return Linear(tuple(items), const)


def _join(a: Mod, c: int, coefs: dict[Atom, int]) -> tuple[set[Atom], Linear, int] | None:
    """(atoms to drop, what replaces them, constant) where c*a and other terms make something simpler."""
    div = floordiv(a.arg, a.by)
    if div.terms and all(coefs.get(d) == c * a.by * k for d, k in div.terms):
        return {a, *(d for d, _ in div.terms)}, a.arg.scaled(c), -div.const * a.by * c
    base, step = _quotient(a.arg)  # (x // (e*n) % m) * n + x // e % n = x // e % (n*m)
    for p, v in coefs.items():
        if isinstance(p, Mod) and p is not a and c == v * p.by:
            x, e = _quotient(p.arg)
            if x == base and step == e * p.by:
                return {a, p}, mod(floordiv(x, e), a.by * p.by).scaled(v), 0
    return None


def _quotient(x: Linear) -> tuple[Linear, int]:
    """(y, d) where x is y // d, with d = 1 for anything that is no single division."""
    if len(x.terms) == 1 and x.const == 0 and x.terms[0][1] == 1 and isinstance(d := x.terms[0][0], Div):
        return d.arg, d.by
    return x, 1


def bounds(x: Linear) -> Range | None:
    """Smallest and largest value over all points of the axes; None where unknown."""
    lo = hi = x.const
    for a, c in x.terms:
        r = _atom_bounds(a)
        if r is None:
            return None
        lo, hi = lo + min(c * r[0], c * r[1]), hi + max(c * r[0], c * r[1])
    return lo, hi


def _atom_bounds(a: Atom) -> Range | None:
    if isinstance(a, Axis):
        return 0, max(a.extent - 1, 0)
    if isinstance(a, Mod):
        return 0, a.by - 1
    if isinstance(a, Div):
        r = bounds(a.arg)
        return r and (r[0] // a.by, r[1] // a.by)
    return _opaque_bounds(a.expr)


def _opaque_bounds(e: Expr) -> Range | None:
    match e:
        case Checked(_, extent, _):
            return 0, max(extent - 1, 0)
        case Cast(arg, _) if arg.dtype is BOOL:
            return 0, 1
        case Call("min" | "max" | "select", args, _):
            rs = [range_of(x) for x in args[-2:]]
            if rs[0] is None or rs[1] is None:
                return None
            (a, b), (c, d) = rs[0], rs[1]
            if e.fn == "select":
                return min(a, c), max(b, d)
            f = min if e.fn == "min" else max
            return f(a, c), f(b, d)
    return None


def floordiv(x: Linear, c: int) -> Linear:
    """x // c in normal form (c > 0)."""
    quotient = [(a, k // c) for a, k in x.terms if k % c == 0]
    rest = Linear(tuple((a, k) for a, k in x.terms if k % c), x.const % c)
    return combine(quotient, x.const // c) + _small_div(rest, c)


def _small_div(rest: Linear, c: int) -> Linear:
    r = bounds(rest)
    if r is not None and r[0] // c == r[1] // c:
        return Linear((), r[0] // c)
    g = _blocks(rest, c)
    if g > 1:
        return floordiv(_div_blocks(rest, g), c // g)
    if len(rest.terms) == 1 and rest.const == 0 and isinstance(d := rest.terms[0][0], Div) and rest.terms[0][1] == 1:
        return floordiv(d.arg, d.by * c)
    return Linear(((Div(rest, c), 1),))


def mod(x: Linear, c: int) -> Linear:
    """x % c in normal form (c > 0), with Python's sign."""
    rest = Linear(tuple((a, k) for a, k in x.terms if k % c), x.const % c)
    r = bounds(rest)
    if r is not None and r[0] // c == r[1] // c:
        return rest + Linear((), -(r[0] // c) * c)
    g = _blocks(rest, c)
    if g > 1:
        high = _div_blocks(rest, g)
        return mod(high, c // g).scaled(g) + (rest - high.scaled(g))
    return Linear(((Mod(rest, c), 1),))


def _blocks(x: Linear, c: int) -> int:
    """The largest g dividing c such that the terms of x not divisible by g stay within [0, g): then x = g * high + low."""
    best = 1
    for _, k in x.terms:
        g = gcd(k, c)
        if g > best:
            low = bounds(Linear(tuple(t for t in x.terms if t[1] % g), x.const % g))
            if low is not None and low[0] >= 0 and low[1] < g:
                best = g
    return best


def _div_blocks(x: Linear, g: int) -> Linear:
    return Linear(tuple((a, k // g) for a, k in x.terms if k % g == 0), x.const // g)


def linear(e: Expr) -> Linear:
    """The normal form of an i64 expression; what is not an integer combination becomes an Opaque atom."""
    match e:
        case Const(value, _):
            return Linear((), int(value))
        case Var(axis, _):
            return Linear(((axis, 1),)) if axis.extent != 1 else Linear()
        case Call(fn, (a, b), _) if fn in ("add", "sub"):
            return linear(a) + linear(b) if fn == "add" else linear(a) - linear(b)
        case Call("neg", (a,), _):
            return linear(a).scaled(-1)
        case Call("mul", (a, b), _):
            x, y = linear(a), linear(b)
            if not x.terms or not y.terms:
                return y.scaled(x.const) if not x.terms else x.scaled(y.const)
        case Call(fn, (a, Const(c, _)), _) if fn in ("floordiv", "mod") and c > 0:
            return floordiv(linear(a), int(c)) if fn == "floordiv" else mod(linear(a), int(c))
    return Linear(((Opaque(e), 1),))


def to_expr(x: Linear) -> Expr:
    """The expression of a normal form: positive terms first, subtraction rather than negative coefficients."""
    out: Expr | None = None
    for a, c in sorted(x.terms, key=lambda t: t[1] < 0):
        t = _atom_expr(a) * abs(c)
        out = (t if c > 0 else -t) if out is None else out + t if c > 0 else out - t
    if out is None:
        return wrap(x.const, I64)
    return out + x.const if x.const >= 0 else out - (-x.const)


def _atom_expr(a: Atom) -> Expr:
    if isinstance(a, Axis):
        return Var(a)
    if isinstance(a, Opaque):
        return a.expr
    arg = to_expr(a.arg)
    return arg // a.by if isinstance(a, Div) else arg % a.by


def affine(e: Expr) -> tuple[dict[Axis, int], int] | None:
    """(coefficient of each axis, constant) where `e` is an affine function of loop axes, else None."""
    x = linear(e)
    if any(not isinstance(a, Axis) for a, _ in x.terms):
        return None
    return {typed(Axis, a): c for a, c in x.terms}, x.const


def range_of(e: Expr) -> Range | None:
    """Smallest and largest value of an i64 expression over its axes' extents, None where unknown. Bounds are safe, not
    always tight."""
    return bounds(linear(e))


def address(load: Load) -> Linear:
    """The element offset that a load touches, from its buffer's strides."""
    return flat_address(load.index, load.buffer.strides)


def flat_address(index: tuple[Expr, ...], strides: tuple[int, ...]) -> Linear:
    out = Linear()
    for i, s in zip(index, strides, strict=True):
        out = out + linear(i).scaled(s)
    return out


def simplify_index(e: Expr) -> Expr:
    """An i64 expression in normal form, as an expression."""
    return e if isinstance(e, (Const, Var, Load)) and not (isinstance(e, Var) and e.axis.extent == 1) else to_expr(linear(e))


def simplify(body: Expr, memo: dict[int, Expr] | None = None) -> Expr:
    """`body` with every index in normal form, comparisons of indices that are always true or false decided, and guards
    that always hold dropped. `memo` keeps shared parts shared between calls; it must not outlive the expressions."""
    return rewrite(body, simplify_node, memo)


def simplify_node(n: Expr) -> Expr:
    """`simplify` for a node whose children are simplified already."""
    if isinstance(n, Load):
        index = tuple(map(simplify_index, n.index))
        if isinstance(n.where, Const):
            return Load(n.buffer, index) if n.where.value or n.other is None else n.other
        return n if all(a is b for a, b in zip(index, n.index, strict=True)) else Load(n.buffer, index, n.where, n.other)
    if isinstance(n, Call) and n.fn in COMPARISONS and n.args[0].dtype is I64:
        return _decide(n) or n
    return n


def _decide(n: Call) -> Expr | None:
    r = bounds(linear(n.args[0]) - linear(n.args[1]))
    if r is None:
        return None
    lo, hi = r
    truth = {"lt": (hi < 0, lo >= 0), "le": (hi <= 0, lo > 0), "gt": (lo > 0, hi <= 0), "ge": (lo >= 0, hi < 0),
             "eq": (lo == hi == 0, lo > 0 or hi < 0), "ne": (lo > 0 or hi < 0, lo == hi == 0)}[n.fn]
    return Const(truth[0], BOOL) if truth[0] or truth[1] else None
