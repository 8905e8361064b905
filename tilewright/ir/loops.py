"""Scheduled programs: each compute with its loops in order. What `compiler/schedule` makes and `backends` emit.

A `Stage` lists the loops of one compute from outermost to innermost. The compute's own axes are either loops
themselves or built from loops by `relations` (splits and fuses). Splits may be *ragged*: `segments` of a split says
which ranges of the outer loop see which inner extent, so 197 = 12 blocks of 16 and one of 5 needs no divisor.

    stage y
      parallel i0.o in 0..12 (+1 of 5)
        serial r0 in 64
          unroll i0.i in 16
            vector i1 in 16
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from .expr import Axis, Expr
from .program import Compute, Program

KINDS = ("serial", "parallel", "unroll", "vector")


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop. `vector` runs all its iterations as lanes of vectors; `unroll` is straight-line code. For reductions,
    an `unroll` or `vector` loop with `split_sum` has an accumulator for each iteration, joined after the loops.

    Threads divide the iterations of the `parallel` loops as one range, numbered as if the loops with the largest `major` were
    outermost (by default: in the order of the nest). It says which data a thread keeps; the order of its own work stays."""

    axis: Axis
    kind: str = "serial"
    reduce: bool = False
    split_sum: bool = False
    major: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """parent = outer * factor + inner. tail: "peel" keeps full blocks and one remainder, "balance" spreads the
    remainder so that block sizes differ by at most one. edges: three blocks instead, of so many elements at the front and at
    the back, and all between them."""

    parent: Axis
    outer: Axis
    inner: Axis
    tail: str = "peel"
    edges: tuple[int, int] | None = None

    def segments(self, extent: int | None = None) -> tuple[tuple[int, int, int, int], ...]:
        """(first outer, number of outers, inner extent, parent's value at the first) for each run of equal blocks:
        for outer o in the run, parent = base + (o - first) * inner_extent + inner. `extent`: the parent's actual extent
        where it is itself an inner loop inside a remainder."""
        n, f = self.parent.extent if extent is None else extent, self.inner.extent
        if self.edges is not None:
            front, back = self.edges
            return tuple(r for r in ((0, 1, front, 0), (1, 1, n - front - back, front), (2, 1, back, n - back)) if r[2])
        t = -(-n // f) if n else 0
        if self.tail == "balance":
            size, rem = divmod(n, max(t, 1))
            runs = ((0, rem, size + 1, 0), (rem, t - rem, size, rem * (size + 1)))
        else:
            full, rem = divmod(n, f)
            runs = ((0, full, f, 0), (full, 1 if rem else 0, rem, full * f))
        return tuple(r for r in runs if r[1] and r[2])


@dataclass(frozen=True, slots=True)
class Fuse:
    """fused = outer * inner.extent + inner, one loop in place of two nested ones."""

    outer: Axis
    inner: Axis
    fused: Axis


Relation = Split | Fuse


@dataclass(frozen=True, slots=True)
class Stage:
    """One compute and its loops.

    shared:    how many outermost loops are the very loops of the stage before it (compute_at): those stages run
               together inside one body of these loops.
    tensorize: index of the first loop of the microkernel (a function of its own), None: no microkernel.
    prefetch:  (buffer, loop) pairs: while a microkernel runs, it touches its share of what `buffer` gives the next
               iteration of `loop`, an outer loop. Changes time only.
    inside:    (k, condition on loops[:k]): where it does not hold, elements are zeros and nothing is read.
    """

    compute: Compute
    loops: tuple[Loop, ...]
    relations: tuple[Relation, ...] = ()
    shared: int = 0
    tensorize: int | None = None
    prefetch: tuple[tuple[str, str], ...] = ()
    inside: tuple[int, Expr] | None = None

    def with_loops(self, loops: tuple[Loop, ...], *relations: Relation) -> Stage:
        return replace(self, loops=loops, relations=self.relations + relations)

    def loop(self, name: str) -> int:
        """Index of the loop over the axis called `name`; raises KeyError."""
        for k, x in enumerate(self.loops):
            if x.axis.name == name:
                return k
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Pack:
    """The program's input `buffer` is read through a packed copy `packed`: pad each dimension to `padded`, reshape to
    `split`, transpose by `perm`, reshape to `packed.shape`."""

    buffer: str
    padded: tuple[int, ...]
    split: tuple[int, ...]
    perm: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A program whose stages are ready for a backend. `packs` says how some inputs are laid out beforehand."""

    program: Program
    stages: tuple[Stage, ...]
    packs: tuple[Pack, ...] = ()

    def __str__(self) -> str:
        return loops_text(self)


def default_stages(p: Program) -> Scheduled:
    """Every compute as plain serial loops, reductions innermost."""
    return Scheduled(p, tuple(
        Stage(c, tuple(Loop(a) for a in c.axes) + tuple(Loop(a, reduce=True) for a in c.reduce_axes)) for c in p.computes))


def loops_text(s: Scheduled) -> str:
    """The loop nests as indented pseudo-code (`tilewright inspect --stage loops`)."""
    from .program import expr_text
    out = [f"loops @{s.program.name} {{"]
    for p in s.packs:
        out.append(f"  pack {p.buffer}: pad {list(p.padded)} split {list(p.split)} transpose {list(p.perm)} -> {list(p.shape)}")
    for st in s.stages:
        depth = 1
        splits = {r.outer: r for r in st.relations if isinstance(r, Split)}
        for k, x in enumerate(st.loops):
            if k >= st.shared:
                if st.inside is not None and k == st.inside[0]:
                    out.append("  " * depth + f"zeros unless {expr_text(st.inside[1])}")
                if k == st.tensorize:
                    out += ["  " * depth + f"prefetch {name} of the next {over}" for name, over in st.prefetch]
                ragged = ""
                if (r := splits.get(x.axis)) and len(r.segments()) > 1:
                    ragged = "  # blocks " + " + ".join(f"{c} x {n}" for _, c, n, _ in r.segments())
                mark = "microkernel: " if st.tensorize == k else ""
                what = "reduce " if x.reduce else ""
                out.append("  " * depth + f"{mark}{x.kind} {what}{x.axis.name} in {x.axis.extent}{ragged}")
            depth += 1
        c = st.compute
        rel = [f"{r.parent.name} = {r.outer.name}:{r.inner.name}" if isinstance(r, Split)
               else f"{r.fused.name} = {r.outer.name}*{r.inner.name}" for r in st.relations]
        where = f"   where {', '.join(rel)}" if rel else ""
        out.append("  " * depth + f"{c.buffer.name}[{','.join(a.name for a in c.axes)}] = {expr_text(c.body)}{where}")
    return "\n".join([*out, "}"])
