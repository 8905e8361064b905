"""Index arithmetic at emission time: linear forms over loop variables.

Every index of a scheduled program becomes `const + sum(coefficient * atom)`. Atoms are loop axes, the vector lane, or
`Opaque` integers that are computed at run time (a division that does not simplify, an index read from memory). The
simplifier knows the current ranges, so `(16*ko + ki) // 16` is `ko` inside a split by 16, and a padding test that
always holds in the loop at hand disappears.

ir/affine.py does related arithmetic, and the two stay apart on purpose: there, terms are the axes of a program, each with a
fixed range, and the result is index notation again. Here the ranges shrink and grow as loops are entered and left (the last
block of a ragged split is shorter), terms may be values that exist only at run time, and the result is instructions.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir.expr import Axis, Expr

LANE = Axis("lane", 1 << 10)  # stands for the vector lane; its real range is the lanes of the current vector


@dataclass(frozen=True, slots=True)
class Opaque:
    """An integer known only at run time. `kind` floordiv/mod: of `of` by `by`; "expr": the expression itself."""

    kind: str
    of: Lin | None = None
    by: int = 0
    expr: Expr | None = None
    lo: int = -(2**62)
    hi: int = 2**62


Atom = Axis | Opaque


@dataclass(frozen=True, slots=True)
class Lin:
    """const + sum of coefficient * atom; terms are unique and in order of first appearance."""

    const: int = 0
    terms: tuple[tuple[Atom, int], ...] = ()

    def __add__(self, o: Lin) -> Lin:
        if not o.terms or not self.terms:
            return Lin(self.const + o.const, self.terms or o.terms)
        acc = dict(self.terms)
        for a, c in o.terms:
            acc[a] = acc.get(a, 0) + c
        return Lin(self.const + o.const, tuple([(a, c) for a, c in acc.items() if c]))

    def scale(self, k: int) -> Lin:
        if k == 1:
            return self
        return Lin(self.const * k, tuple([(a, c * k) for a, c in self.terms])) if k else Lin()

    def shift(self, k: int) -> Lin:
        return Lin(self.const + k, self.terms)

    def coefficient(self, atom: Atom) -> int:
        return next((c for a, c in self.terms if a is atom or a == atom), 0)

    def without(self, atoms: set[Atom]) -> Lin:
        return Lin(self.const, tuple((a, c) for a, c in self.terms if a not in atoms))

    @property
    def is_const(self) -> bool:
        return not self.terms

    @property
    def repeats(self) -> bool:
        """Whether equal forms mean equal values throughout a scope: no part is read from memory, which an equal form
        at another point of the loops would read elsewhere."""
        return all(not isinstance(a, Opaque) or (a.of is not None and a.of.repeats) for a, _ in self.terms)


@dataclass(frozen=True, slots=True)
class Form:
    """A linear form whose atoms are loops, to be evaluated at many places: in unrolled code that is most of the work."""

    const: int
    terms: tuple[tuple[Atom, int], ...]

    def at(self, env: Mapping[Axis, Lin]) -> Lin:
        """With each loop where `env` says it stands."""
        const, acc = self.const, {}
        for a, k in self.terms:
            x = env[a]  # pyright: ignore[reportArgumentType]  (an axis)
            const += k * x.const
            for b, c in x.terms:
                acc[b] = acc.get(b, 0) + k * c
        return Lin(const, tuple([(b, c) for b, c in acc.items() if c]))


class Ranges:
    """Current extents of loop axes, to bound linear forms. `bounds`: narrower (first, last) of a loop's present run."""

    def __init__(self) -> None:
        self.extents: dict[Axis, int] = {}
        self.bounds: dict[Axis, tuple[int, int]] = {}

    def of(self, x: Lin) -> tuple[int, int]:
        """Smallest and largest value of `x`, both included."""
        lo = hi = x.const
        for a, c in x.terms:
            alo, ahi = (a.lo, a.hi) if isinstance(a, Opaque) else self.bounds.get(a) or (0, max(self.extents.get(a, a.extent) - 1, 0))
            lo, hi = lo + min(c * alo, c * ahi), hi + max(c * alo, c * ahi)
        return lo, hi

    def floordiv(self, x: Lin, by: int) -> Lin:
        q, rest = self._divide(x, by)
        lo, hi = self.of(rest)
        if lo // by == hi // by:
            return q.shift(lo // by)
        return q + Lin(0, ((Opaque("floordiv", rest, by, None, lo // by, hi // by), 1),))

    def mod(self, x: Lin, by: int) -> Lin:
        _, rest = self._divide(x, by)
        lo, hi = self.of(rest)
        if lo // by == hi // by:
            return rest.shift(-(lo // by) * by)
        return Lin(0, ((Opaque("mod", rest, by, None, 0, by - 1), 1),))

    @staticmethod
    def _divide(x: Lin, by: int) -> tuple[Lin, Lin]:
        """x = by * quotient + rest, taking the terms that divide exactly into the quotient."""
        q = Lin(x.const // by, tuple((a, c // by) for a, c in x.terms if c % by == 0))
        return q, Lin(x.const % by, tuple((a, c) for a, c in x.terms if c % by))

    def compare(self, fn: str, a: Lin, b: Lin) -> bool | None:
        """The truth of `a fn b` where the ranges decide it, else None."""
        lo, hi = self.of(a + b.scale(-1))
        match fn:
            case "lt":
                return True if hi < 0 else False if lo >= 0 else None
            case "le":
                return True if hi <= 0 else False if lo > 0 else None
            case "gt":
                return True if lo > 0 else False if hi <= 0 else None
            case "ge":
                return True if lo >= 0 else False if hi < 0 else None
            case "eq":
                return True if lo == hi == 0 else False if lo > 0 or hi < 0 else None
            case "ne":
                return True if lo > 0 or hi < 0 else False if lo == hi == 0 else None
        return None
