"""Substitution happens at once, also where folding makes a node one of its own operands."""
from __future__ import annotations

from tilewright.ir.expr import Axis, Var, substitute, wrap
from tilewright.ir.types import I64


def test_folded_operands_are_not_substituted_again() -> None:
    a, b, c = (Axis(n, 3) for n in "abc")
    e = substitute(Var(a) + Var(b), {a: wrap(0, I64), b: Var(c), c: Var(a)})
    assert isinstance(e, Var) and e.axis == c
