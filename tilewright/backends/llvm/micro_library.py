"""Microkernels that outlive a kernel: in a module of their own, made once for all schedules whose innermost loops are alike.

A search tries many schedules of one program that differ in their outer loops alone. What a microkernel's code depends on is then the
same text (`portable`), whatever the loops around it are called and however they were split, and so is its symbol:

    library.use("micro_3f2c…")             # False: not there yet
    library.add(["micro_3f2c…"], text)     # LLVM IR of a module with all those that a kernel needs and that were not there

Whole models do not use it: there, microkernels stay in their kernel's module.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Protocol

from llvmlite import ir

from ...ir.expr import Axis, Buffer, Expr, Load, Rescue, Var, children, loads, rewrite, walk
from ...ir.loops import Split, Stage
from ...ir.program import Compute
from ..target import Target
from .linear import Atom, Lin, Ranges


class MicroLibrary(Protocol):
    """What the emitter needs to know of the microkernels that are there."""

    def use(self, symbol: str) -> bool: ...
    def add(self, symbols: Sequence[str], text: str) -> None: ...


def module_text(module: ir.Module, target: Target) -> str:
    """The module's IR, with the attributes that all our functions have."""
    first, *functions = str(module).split("\ndefine ")
    text = "\ndefine ".join([first, *(f"{head.rstrip()} #0\n{body}" for head, _, body in (f.partition("\n") for f in functions))])
    width = target.vector_bytes * 8
    return text + f'\nattributes #0 = {{ nounwind "prefer-vector-width"="{width}" "no-builtins" "no-trapping-math"="true" }}\n'


class Numbers:
    """Numbers for what a microkernel's loops run over: its loops from the outside in, then the axes that they are parts of. Names
    differ between schedules that mean the same."""

    def __init__(self, st: Stage, k: int) -> None:
        self.loops = st.loops[k:]
        self._of: dict[Atom, int] = {x.axis: n for n, x in enumerate(self.loops)}
        self.splits = [r for r in st.relations if isinstance(r, Split) and r.outer in self._of]
        self.symbols = [x.axis for x in self.loops]
        for r in self.splits:  # the first split of an axis is the outermost: what its parts are split into follows from it
            for a in (r.parent, r.inner):
                if a not in self._of:
                    self._of[a] = len(self._of)
            self.symbols.append(r.parent)

    def of(self, a: Axis) -> int:
        return self._of[a]

    def form(self, x: Lin) -> tuple[object, ...] | None:
        """A linear form by numbers; None where it depends on anything else."""
        if not all(a in self._of for a, _ in x.terms):
            return None
        return (x.const, *((self._of[a], c) for a, c in x.terms))

    def nest(self, ranges: Ranges) -> tuple[object, ...]:
        """The loops and their splits as they are here."""
        loops = [(x.kind, x.reduce, x.split_sum, ranges.extents.get(x.axis, x.axis.extent), ranges.bounds.get(x.axis)) for x in self.loops]
        splits = [(*(self._of[a] for a in (r.parent, r.outer, r.inner)), r.tail, ranges.extents.get(r.parent, r.parent.extent),
                   r.inner.extent) for r in self.splits]
        return (*loops, *splits)


class Body:
    """What a microkernel needs to know of a compute's body, wherever it is called: found once."""

    def __init__(self, c: Compute) -> None:
        self.loads = loads(c.body)
        # (id of the load, buffer, index) of all loads in their order, then of the store, as 0
        self.accesses: list[tuple[int, Buffer, tuple[Expr, ...]]] = [
            *((id(x), x.buffer, x.index) for x in self.loads), (0, c.buffer, tuple(Var(a) for a in c.axes))]
        self.addresses_alone = not _loop_values(c, self.loads) and not any(isinstance(n, Rescue) for n in walk(c.body))
        self._compute = c

    @cached_property
    def meaning(self) -> str:
        return _meaning(self._compute, self.loads)

    def guarded(self, guards: Mapping[int, bool]) -> list[bool | None]:
        """The truth of each load's condition, in the order of the loads."""
        return [guards.get(id(x)) for x in self.loads]


def _loop_values(c: Compute, found: list[Load]) -> bool:
    """Whether loop variables are used as data or conditions, not only as indices and guards."""
    covered = {id(n) for x in found for i in (*x.index, *((x.where,) if x.where is not None else ())) for n in walk(i)}
    return any(isinstance(n, Var) and id(n) not in covered for n in walk(c.body)) or any(
        isinstance(n, Load) for x in found for i in x.index for n in walk(i)) or any(
        isinstance(ch, Var) for n in walk(c.body) if id(n) not in covered and not isinstance(n, Load) for ch in children(n))


def _meaning(c: Compute, found: list[Load]) -> str:
    """The body with its loads numbered: where they read is in their forms."""
    number = {id(x): n for n, x in enumerate(found)}
    memo: dict[int, Expr] = {}
    others = []
    for x in found:  # children first
        others.append("" if x.other is None else repr(rewrite(x.other, lambda n: None, memo)))
        memo[id(x)] = Var(Axis(f"load{number[id(x)]}", 1), x.dtype)
    return f"{rewrite(c.body, lambda n: None, memo)!r} {others} {c.buffer.dtype.name}"


def symbol_of(parts: Iterable[object]) -> str:
    return f"micro_{hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:24]}"


def prefetches(keys: Sequence[tuple[int, tuple[tuple[Axis, int], ...]]], numbers: Numbers) -> list[object]:
    """What is fetched in each step, with the loops numbered."""
    return [(lines, [(numbers.of(a), step) for a, step in strides]) for lines, strides in keys]
