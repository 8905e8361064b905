"""Random legal schedules: what differential tests and the search's first population draw from.

    steps = random_steps(program, seed)          # a tuple of primitives; apply(program, steps) is legal
    scheduled = random_schedule(program, seed)

Choices are made so that nearly every draw is legal: ragged splits, fusions, orders that keep outer loops outside, register
tiles under reductions, one vector loop, shared rows, microkernels, packed operands. What the rules refuse is drawn again.
"""
from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from ...errors import ScheduleError
from ...ir.expr import Reduce
from ...ir.loops import Loop, Scheduled, Split, Stage
from ...ir.program import Program
from .legality import MAX_TILE_BYTES, check_legal
from .primitives import (
    CacheWrite,
    ComputeAt,
    Divide,
    Join,
    PackLayout,
    Parallel,
    Reorder,
    RFactor,
    Step,
    Tensorize,
    Unroll,
    Vectorize,
    apply,
    initial,
)

TRIES = 30
MAX_COPIES = 64  # straight-line copies that a random draw asks for: keeps tests' compile times sane
MAX_LANES = 128  # iterations of a random vector loop inside a reduction


def random_schedule(p: Program, seed: int, packable: frozenset[str] = frozenset()) -> Scheduled:
    """A legal schedule of `p`, the same for the same seed. `packable`: inputs that the caller can lay out beforehand."""
    return apply(p, random_steps(p, seed, packable))


def random_steps(p: Program, seed: int, packable: frozenset[str] = frozenset()) -> tuple[Step, ...]:
    """The steps of `random_schedule`; () if no draw was legal, which the default loops always are."""
    rng = random.Random(seed)
    for _ in range(TRIES):
        draw = _Draw(p, rng)
        try:
            draw.everything(packable)
            check_legal(draw.s)
        except ScheduleError:
            continue
        return tuple(draw.steps)
    return ()


class _Draw:
    """One draw: the steps so far and the program scheduled by them."""

    def __init__(self, p: Program, rng: random.Random) -> None:
        self.s, self.steps, self.rng = initial(p), [], rng

    steps: list[Step]

    def step(self, step: Step) -> None:
        self.s = step.apply(self.s)
        self.steps.append(step)

    def attempt(self, *steps: Step) -> bool:
        """Takes the steps if each is legal and so is the whole."""
        s = self.s
        try:
            for x in steps:
                s = x.apply(s)
            check_legal(s)
        except ScheduleError:
            return False
        self.s = s
        self.steps.extend(steps)
        return True

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def everything(self, packable: frozenset[str]) -> None:
        for st in self.s.stages:
            if not isinstance(st.compute.body, Reduce) and self.chance(0.2):
                self.attempt(CacheWrite(st.compute.buffer.name))
        self.share()
        shared = [*(st.shared for st in self.s.stages), 0]
        for k, st in enumerate(self.s.stages):
            self.nest(st.compute.buffer.name, max(shared[k], shared[k + 1]))
        first = self.s.stages[0]
        if first.loops and not first.loops[0].reduce and first.loops[0].kind == "serial" and self.chance(0.5):
            for x in first.loops[:self.rng.randint(1, 3)]:
                self.attempt(Parallel(first.compute.buffer.name, x.axis.name))
        for name in sorted(packable):
            if self.chance(0.5):
                self.attempt(PackLayout(name))

    def share(self) -> None:
        """compute_at of neighbouring stages, now and then at a block of rows rather than a row."""
        for a, b in pairwise(self.s.stages):
            if not self.chance(0.7) or not a.compute.axes or not b.compute.axes:
                continue
            name_a, name_b = a.compute.buffer.name, b.compute.buffer.name
            n = a.compute.axes[0].extent
            stage_a = next(st for st in self.s.stages if st.compute.buffer.name == name_a)
            if self.chance(0.3) and n > 1 and stage_a.shared == 0 and not stage_a.relations and n == b.compute.axes[0].extent:
                f, tail = self.rng.randint(1, min(n, 16)), self.rng.choice(("peel", "balance"))
                if self.attempt(Divide(name_a, stage_a.loops[0].axis.name, f, tail), Divide(name_b, b.loops[0].axis.name, f, tail),
                                ComputeAt(name_b, 1)):
                    continue
            depth = self.rng.randint(1, min(len(a.compute.axes), len(b.compute.axes)))
            while depth and not self.attempt(ComputeAt(name_b, depth)):
                depth -= 1

    def nest(self, name: str, fixed: int) -> None:
        """Splits, order and kinds of one stage's loops after the first `fixed`."""
        self.fuse(name, fixed)
        blocks = {r.outer for r in self.stage(name).relations if isinstance(r, Split)}
        for x in self.stage(name).loops[fixed:]:
            if x.axis not in blocks:
                self.divide(name, x, 0.5)
        st = self.stage(name)
        own = st.loops[fixed:]
        outers = {r.outer for r in st.relations if isinstance(r, Split)}
        reduction = any(x.reduce for x in own)
        limit = min(MAX_LANES, MAX_TILE_BYTES // st.compute.buffer.dtype.bytes) if reduction else 1 << 20
        lanes = [x for x in own if x.axis not in outers and x.axis.extent <= limit]
        vector = self.rng.choice(lanes) if lanes and self.chance(0.75) else None
        tile = self.tile([x for x in own if x.axis not in outers and x is not vector])
        self.order(st, own, tile, vector)
        for x in tile:
            self.step(RFactor(name, x.axis.name) if x.reduce and self.chance(0.3) else Unroll(name, x.axis.name))
        if vector is not None:
            self.step(Vectorize(name, vector.axis.name))
        if reduction:
            self.microkernel(name)

    def stage(self, name: str) -> Stage:
        return next(st for st in self.s.stages if st.compute.buffer.name == name)

    def fuse(self, name: str, fixed: int) -> None:
        own = self.stage(name).loops[fixed:]
        for a, b in pairwise(own):
            if a.reduce == b.reduce and self.chance(0.2) and self.attempt(Join(name, a.axis.name, b.axis.name)):
                return

    def divide(self, name: str, x: Loop, p: float) -> None:
        n = x.axis.extent
        if n < 2 or not self.chance(p):
            return
        f = self.rng.choice((self.rng.randint(1, min(n, 8)), self.rng.randint(1, min(n, 64)), min(n, 16)))
        self.step(Divide(name, x.axis.name, f, self.rng.choice(("peel", "balance"))))
        st = self.stage(name)
        self.divide(name, st.loops[st.loop(f"{x.axis.name}.i")], 0.25)

    def tile(self, candidates: Sequence[Loop]) -> list[Loop]:
        """Loops to unroll."""
        out, copies = [], 1
        for x in candidates:
            if x.axis.extent <= 8 and copies * x.axis.extent <= MAX_COPIES and self.chance(0.5):
                out.append(x)
                copies *= max(x.axis.extent, 1)
        return out

    def order(self, st: Stage, own: Sequence[Loop], tile: list[Loop], vector: Loop | None) -> None:
        """Random order: serial spatial loops, then reductions mixed with the tile, then the vector loop; outer loops of
        splits before inner ones."""
        head = [x for x in own if not x.reduce and x not in tile and x is not vector]
        body = [x for x in own if x not in head and x is not vector]
        if not any(x.reduce for x in own):
            head, body = [*head, *body], []
        names = [*self.shuffled(st, head), *self.shuffled(st, body), *([vector] if vector is not None else [])]
        if len(names) > 1:
            self.step(Reorder(st.compute.buffer.name, tuple(x.axis.name for x in names)))

    def shuffled(self, st: Stage, loops: list[Loop]) -> list[Loop]:
        left, out = list(loops), []
        while left:
            waiting = {a for r in st.relations if isinstance(r, Split) for x in left if _made_of(x, r.outer, st)
                       for a in [y.axis for y in left if _made_of(y, r.inner, st)]}
            x = self.rng.choice([x for x in left if x.axis not in waiting])
            left.remove(x)
            out.append(x)
        return out

    def microkernel(self, name: str) -> None:
        st = self.stage(name)
        first = next(k for k, x in enumerate(st.loops) if x.reduce)
        while first > st.shared and st.loops[first - 1].kind in ("unroll", "vector") and self.chance(0.5):
            first -= 1
        if self.chance(0.5):
            self.step(Tensorize(name, st.loops[first].axis.name))


def _made_of(x: Loop, a: object, st: Stage) -> bool:
    """Whether axis `a` is loop x or was split into it."""
    if x.axis == a:
        return True
    return any(isinstance(r, Split) and r.parent == a and (_made_of(x, r.outer, st) or _made_of(x, r.inner, st)) for r in st.relations)
