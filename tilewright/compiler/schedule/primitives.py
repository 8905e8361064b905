"""Schedule primitives: frozen, JSON-able steps that each rewrite a scheduled program and check that they may.

    steps = (Divide("y", "i1", 16), Reorder("y", ("i0", "i1.o", "r0", "i1.i")), Vectorize("y", "i1.i"), Parallel("y", "i0"))
    scheduled = apply(program, steps)

A stage is named by the buffer it computes, a loop by its axis. An illegal step raises ScheduleError, the only exception
that search may treat as infeasible. Rules that concern the nest as a whole (legality.py) are checked once, at the end,
because the order of steps should not matter for them.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from ...errors import ScheduleError
from ...ir.expr import Axis, Buffer, Expr, Load, Reduce, Var, reduces, rewrite, substitute
from ...ir.loops import Fuse, Loop, Scheduled, Split, Stage, default_stages
from ...ir.program import Compute, Program
from .legality import check_legal, require
from .packing import pack_operand

Json = str | int | list[str]


@dataclass(frozen=True, slots=True)
class Step:
    """Base of all steps. `stage` is the buffer that the stage computes (of Pack: the input)."""

    stage: str
    name: ClassVar[str] = ""

    def apply(self, s: Scheduled) -> Scheduled:
        raise NotImplementedError(self.name)

    def __str__(self) -> str:
        values = [" ".join(v) if isinstance(v, tuple) else str(v) for v in asdict(self).values()]
        return f"{self.name}({', '.join(values)})"


@dataclass(frozen=True, slots=True)
class Divide(Step):
    """split: one loop becomes a loop over blocks and a loop inside a block; no divisor is needed.

    rewrite: for i in 197                    -> for i.o in 13: for i.i in 16          (the last block has 5: "peel")
                                                for i.o in 13: for i.i in 15 or 16    ("balance": 2 blocks of 16, 11 of 15)
    checks:  1 <= factor <= extent; the loop is serial still, and not itself the outer loop of a split: deeper tiling splits
             the inner loop again. A factor of the whole extent gives one block.
    """

    loop: str
    factor: int
    tail: str = "peel"
    name: ClassVar[str] = "split"

    def apply(self, s: Scheduled) -> Scheduled:
        st, k = _find(s, self.stage, self.loop)
        old = st.loops[k]
        require(old.kind == "serial", f"{self}: loop is {old.kind} already")
        require(all(not isinstance(r, Split) or r.outer != old.axis for r in st.relations), f"{self}: outer loop of a split already")
        require(1 <= self.factor <= max(old.axis.extent, 1), f"{self}: the factor must be in 1..{old.axis.extent}")
        require(self.tail in ("peel", "balance"), f"{self}: tail is peel or balance")
        outer = Axis(f"{self.loop}.o", -(-old.axis.extent // self.factor))
        inner = Axis(f"{self.loop}.i", self.factor)
        loops = (*st.loops[:k], replace(old, axis=outer), replace(old, axis=inner), *st.loops[k + 1:])
        return _put(s, st.with_loops(loops, Split(old.axis, outer, inner, self.tail)))


@dataclass(frozen=True, slots=True)
class Reorder(Step):
    """Puts the named loops into the given order, in the places they take up together.

    rewrite: for a: for b: for c   -> (c, a)   for c: for b: for a
    checks:  each loop once. Inner loops of a split after their outer loops, and what may follow a reduction: at the end.
    """

    order: tuple[str, ...]
    name: ClassVar[str] = "reorder"

    def apply(self, s: Scheduled) -> Scheduled:
        st = _stage(s, self.stage)
        require(len(set(self.order)) == len(self.order), f"{self}: a loop is named twice")
        chosen = [st.loops[_find(s, self.stage, n)[1]] for n in self.order]
        rest = iter(chosen)
        return _put(s, replace(st, loops=tuple(next(rest) if x in chosen else x for x in st.loops)))


@dataclass(frozen=True, slots=True)
class Join(Step):
    """fuse: two neighbouring loops become one over all pairs.

    rewrite: for i in 8: for j in 12: f(i, j)   -> for i*j in 96: f(i*j // 12, i*j % 12)
    checks:  neighbours, both serial, both spatial or both reductions, neither part of a split.
    """

    outer: str
    inner: str
    name: ClassVar[str] = "fuse"

    def apply(self, s: Scheduled) -> Scheduled:
        st, k = _find(s, self.stage, self.outer)
        _, m = _find(s, self.stage, self.inner)
        require(m == k + 1, f"{self}: the loops are not neighbours, outer first")
        a, b = st.loops[k], st.loops[m]
        parts = {x for r in st.relations if isinstance(r, Split) for x in (r.outer, r.inner)}
        require(a.kind == b.kind == "serial", f"{self}: both loops must be serial")
        require(a.reduce == b.reduce, f"{self}: one is a reduction, the other is not")
        require(not {a.axis, b.axis} & parts, f"{self}: parts of a split cannot be fused")
        fused = Axis(f"{self.outer}*{self.inner}", a.axis.extent * b.axis.extent)
        loops = (*st.loops[:k], replace(a, axis=fused), *st.loops[m + 1:])
        return _put(s, st.with_loops(loops, Fuse(a.axis, b.axis, fused)))


@dataclass(frozen=True, slots=True)
class ComputeAt(Step):
    """Runs this stage and the one before inside one body of their first `depth` loops.

    rewrite: for i: m[i] = max j: x[i,j]             ->  for i:
             for i: for j: y[i,j] = x[i,j] - m[i]          m[i] = max j: x[i,j]
                                                           for j: y[i,j] = x[i,j] - m[i]
    checks:  the first `depth` loops of both stages are whole axes of equal extents, or outer loops of equal splits of such
             axes; values passed inside are read at the same place (legality rule 5). Loop names become those of the stage before.
    """

    depth: int
    name: ClassVar[str] = "compute_at"

    def apply(self, s: Scheduled) -> Scheduled:
        k = s.stages.index(_stage(s, self.stage))
        require(k > 0, f"{self}: there is no stage before the first")
        before, st = s.stages[k - 1], s.stages[k]
        require(0 <= self.depth <= min(len(before.loops), len(st.loops)), f"{self}: the stages do not have that many loops")
        renamed: dict[Axis, Axis] = {}
        for x, y in zip(before.loops[:self.depth], st.loops[:self.depth], strict=True):
            renamed |= _matching(before, x.axis, st, y.axis, str(self))
        new = _rename_stage(st, renamed)
        loops = (*before.loops[:self.depth], *new.loops[self.depth:])
        return _put(s, replace(new, loops=loops, shared=self.depth), at=k)


@dataclass(frozen=True, slots=True)
class CacheWrite(Step):
    """Separates a reduction from what is done with its result.

    rewrite: y[i,j] = f(sum k: …)   -> y.acc[i,j] = sum k: …;  y[i,j] = f(y.acc[i,j])
    checks:  one Reduce in the body, nothing scheduled yet in this stage.
    """

    name: ClassVar[str] = "cache_write"

    def apply(self, s: Scheduled) -> Scheduled:
        st = _stage(s, self.stage)
        c = st.compute
        nodes = reduces(c.body)
        require(len(nodes) == 1, f"{self}: the body has {len(nodes)} reductions, not one")
        require(not st.relations and st.shared == 0 and st.tensorize is None, f"{self}: must come before the stage's other steps")
        k = s.stages.index(st)
        node = nodes[0]
        acc = Buffer(f"{c.buffer.name}.acc", node.dtype, c.buffer.shape)
        new = {a: Axis(f"{a.name}.w", a.extent) for a in c.axes}
        body = rewrite(c.body, lambda n: Load(acc, tuple(map(Var, c.axes))) if isinstance(n, Reduce) else None)
        first = Compute(acc, c.axes, node)
        second = Compute(c.buffer, tuple(new.values()), substitute(body, {a: Var(b) for a, b in new.items()}))
        p = s.program
        computes = (*p.computes[:k], first, second, *p.computes[k + 1:])
        stages = default_stages(Program(p.name, p.inputs, p.outputs, computes))
        return Scheduled(stages.program, (*s.stages[:k], *stages.stages[k:k + 2], *s.stages[k + 1:]), s.packs)


@dataclass(frozen=True, slots=True)
class RFactor(Step):
    """Partial sums: each iteration of a short reduce loop has its own accumulator; they are joined after the loops.

    rewrite: s = 0; for k.o: for k.i in 4: s += x   -> s[0..3] = 0; for k.o: unroll k.i: s[k.i] += x;  s = s[0]+s[1]+s[2]+s[3]
    checks:  a reduce loop. It is unrolled unless it is a vector loop. Changes the order of summation.
    """

    loop: str
    name: ClassVar[str] = "rfactor"

    def apply(self, s: Scheduled) -> Scheduled:
        st, k = _find(s, self.stage, self.loop)
        require(st.loops[k].reduce, f"{self}: not a reduction")
        kind = "vector" if st.loops[k].kind == "vector" else "unroll"
        return _put(s, _with_loop(st, k, replace(st.loops[k], kind=kind, split_sum=True)))


@dataclass(frozen=True, slots=True)
class Parallel(Step):
    """Iterations may run on different threads.

    rewrite: for i: …   -> parallel i: …
    checks:  the outermost loop or one directly inside a parallel loop, not a reduction.
    """

    loop: str
    name: ClassVar[str] = "parallel"

    def apply(self, s: Scheduled) -> Scheduled:
        st, k = _find(s, self.stage, self.loop)
        require(all(x.kind == "parallel" for x in st.loops[:k]) and not st.loops[k].reduce,
                 f"{self}: only the outermost loops, and no reduction, can be parallel")
        out = _put(s, _with_loop(st, k, replace(st.loops[k], kind="parallel")))
        return _share_kinds(out)


@dataclass(frozen=True, slots=True)
class Vectorize(Step):
    """All iterations as lanes; the emitter cuts the extent into hardware vectors and a tail, masked where possible.

    rewrite: for j in 37: …   -> vector j in 37: …
    checks:  no other vector loop; innermost at the end. A reduce loop gets an accumulator for each lane (rfactor implied).
    """

    loop: str
    name: ClassVar[str] = "vectorize"

    def apply(self, s: Scheduled) -> Scheduled:
        st, k = _find(s, self.stage, self.loop)
        require(not any(x.kind == "vector" for x in st.loops), f"{self}: the stage has a vector loop already")
        x = st.loops[k]
        return _put(s, _with_loop(st, k, replace(x, kind="vector", split_sum=x.reduce)))


@dataclass(frozen=True, slots=True)
class Unroll(Step):
    """Straight-line code; inside a reduction the iterations of a spatial loop become accumulators in registers.

    rewrite: for i in 4: f(i)   -> f(0); f(1); f(2); f(3)
    checks:  serial so far; the total of straight-line copies is bounded at the end.
    """

    loop: str
    name: ClassVar[str] = "unroll"

    def apply(self, s: Scheduled) -> Scheduled:
        st, k = _find(s, self.stage, self.loop)
        require(st.loops[k].kind == "serial", f"{self}: loop is {st.loops[k].kind} already")
        return _share_kinds(_put(s, _with_loop(st, k, replace(st.loops[k], kind="unroll"))))


@dataclass(frozen=True, slots=True)
class PackLayout(Step):
    """pack_layout: the input `stage` is read from a copy laid out beforehand in the order of the loops that index it.

    rewrite: w[k, j] under j.o, k, j.i (j by 16)   -> w_packed[j // 16, k, j % 16]; j // 16 is j.o and j % 16 is j.i under
             this split, so the emitter sees plain strides. Ragged ends are padded with zeros.
    checks:  one stage, w read at one index, every dimension of w a mixed-radix number of loops (packing.py). Comes after the
             splits and reorders of those loops. The caller must be able to lay out w (a weight).
    """

    name: ClassVar[str] = "pack_layout"

    def apply(self, s: Scheduled) -> Scheduled:
        require(len(s.stages) == 1, f"{self}: only programs of one stage can pack an input")
        require(any(b.name == self.stage for b in s.program.inputs), f"{self}: there is no such input")
        out = pack_operand(s, self.stage)
        if out is None:
            raise ScheduleError(f"{self}: its index is not a mixed-radix number of the loops")
        return out


@dataclass(frozen=True, slots=True)
class Tensorize(Step):
    """The nest from `loop` on becomes a microkernel: a function of its own whose accumulators stay in registers.

    rewrite: for i: for k: unroll m: vector n: …   -> for i: micro(&a[i], &b, &y[i])   with micro = for k: unroll m: vector n
    checks:  at the end: all reduce loops are inside, spatial loops inside are unrolled or vector.
    """

    loop: str
    name: ClassVar[str] = "tensorize"

    def apply(self, s: Scheduled) -> Scheduled:
        st, k = _find(s, self.stage, self.loop)
        require(bool(st.compute.reduce_axes), f"{self}: no reduction to hold in registers")
        return _put(s, replace(st, tensorize=k))


STEPS: dict[str, Callable[..., Step]] = {
    c.name: c for c in (Divide, Reorder, Join, ComputeAt, CacheWrite, RFactor, Parallel, Vectorize, Unroll, PackLayout, Tensorize)}


# -- applying and storing ----------------------------------------------------------------------------------------------
def initial(p: Program) -> Scheduled:
    """Every compute as serial loops. Axes of later computes get names of their own ("i0_1": i0 of compute 1)."""
    computes = []
    for n, c in enumerate(p.computes):
        axes = {a: Axis(f"{a.name}_{n}", a.extent) if n else a for a in (*c.axes, *c.reduce_axes)}
        computes.append(rename_axes(c, axes))
    return default_stages(Program(p.name, p.inputs, p.outputs, tuple(computes)))


def apply(p: Program, steps: Sequence[Step], check: bool = True) -> Scheduled:
    """`p` scheduled by `steps`, in order. Raises ScheduleError for an illegal step or an illegal result."""
    s = initial(p)
    for step in steps:
        s = step.apply(s)
    if check:
        check_legal(s)
    return s


def to_json(steps: Sequence[Step]) -> list[list[str | dict[str, Json]]]:
    """[["split", {"stage": "y", "loop": "i0", "factor": 16, "tail": "peel"}], …]"""
    return [[s.name, {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(s).items()}] for s in steps]


def from_json(data: object) -> tuple[Step, ...]:
    """Inverse of `to_json`. Raises ScheduleError for anything else."""
    if not isinstance(data, (list, tuple)):
        raise ScheduleError(f"a schedule is a list of steps, not {data!r:.80}")
    out = []
    for item in data:
        pair = isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], dict)
        if not pair or item[0] not in STEPS:
            raise ScheduleError(f"not a schedule step: {item!r:.120}")
        try:
            step = STEPS[item[0]](**{k: tuple(v) if isinstance(v, list) else v for k, v in item[1].items()})
        except TypeError as e:
            raise ScheduleError(f"step {item[0]}: {e}") from None
        if not _well_typed(step):
            raise ScheduleError(f"step {item[0]}: a field has the wrong type in {item[1]!r:.120}")
        out.append(step)
    return tuple(out)


def to_text(steps: Sequence[Step]) -> str:
    """`split(y, i0, 16, peel) parallel(y, i0.o)`"""
    return " ".join(map(str, steps))


def _well_typed(step: Step) -> bool:
    for k, v in asdict(step).items():
        if k in ("factor", "depth"):
            ok = isinstance(v, int) and not isinstance(v, bool)
        elif k == "order":
            ok = isinstance(v, tuple) and all(isinstance(n, str) for n in v)
        else:
            ok = isinstance(v, str)
        if not ok:
            return False
    return True


# -- helpers -----------------------------------------------------------------------------------------------------------
def _stage(s: Scheduled, name: str) -> Stage:
    for st in s.stages:
        if st.compute.buffer.name == name:
            return st
    raise ScheduleError(f"{s.program.name} has no stage {name!r}; it has {', '.join(st.compute.buffer.name for st in s.stages)}")


def _find(s: Scheduled, stage: str, loop: str) -> tuple[Stage, int]:
    st = _stage(s, stage)
    try:
        return st, st.loop(loop)
    except KeyError:
        raise ScheduleError(f"stage {stage} has no loop {loop!r}; it has {', '.join(x.axis.name for x in st.loops)}") from None


def _put(s: Scheduled, st: Stage, at: int | None = None) -> Scheduled:
    k = at if at is not None else next(k for k, x in enumerate(s.stages) if x.compute.buffer.name == st.compute.buffer.name)
    stages = (*s.stages[:k], st, *s.stages[k + 1:])
    p = s.program
    if st.compute is not p.computes[k]:
        p = Program(p.name, p.inputs, p.outputs, tuple(x.compute for x in stages))
    return Scheduled(p, stages, s.packs)


def _with_loop(st: Stage, k: int, x: Loop) -> Stage:
    return replace(st, loops=(*st.loops[:k], x, *st.loops[k + 1:]))


def _share_kinds(s: Scheduled) -> Scheduled:
    """Shared loops take the kinds they have in the stage before (the other way round for the stage just changed)."""
    stages = list(s.stages)
    for k in range(1, len(stages)):
        d = stages[k].shared
        if d:
            stages[k] = replace(stages[k], loops=(*stages[k - 1].loops[:d], *stages[k].loops[d:]))
    return replace(s, stages=tuple(stages))


def rename_axes(c: Compute, names: dict[Axis, Axis]) -> Compute:
    """`c` with axes (reduction axes too) replaced."""
    values: dict[Axis, Expr] = {a: Var(b) for a, b in names.items() if a != b}
    body = substitute(c.body, values) if values else c.body
    body = rewrite(body, lambda n: Reduce(n.kind, tuple(names.get(a, a) for a in n.axes), n.body) if isinstance(n, Reduce) else None)
    return Compute(c.buffer, tuple(names.get(a, a) for a in c.axes), body)


def _matching(before: Stage, x: Axis, st: Stage, y: Axis, what: str) -> dict[Axis, Axis]:
    """Renaming of `st`'s axes under which its loop y is the loop x of `before`."""
    from .legality import bound_axis
    a, b = bound_axis(before, x), bound_axis(st, y)
    if a is None or b is None:
        raise ScheduleError(f"{what}: loops {x.name} and {y.name} cannot be shared")
    require(tuple(i.extent for i in a[0]) == tuple(i.extent for i in b[0]), f"{what}: loops {x.name} and {y.name} walk different extents")
    ra, rb = a[1], b[1]
    out = dict(zip(b[0], a[0], strict=True))
    if isinstance(ra, Split) and isinstance(rb, Split):
        require((ra.inner.extent, ra.tail) == (rb.inner.extent, rb.tail), f"{what}: {x.name} and {y.name} are split differently")
        return out | {rb.outer: ra.outer, rb.inner: ra.inner}
    if isinstance(ra, Fuse) and isinstance(rb, Fuse):
        return out | {rb.fused: ra.fused}
    require(ra is None and rb is None, f"{what}: loops {x.name} and {y.name} are derived differently")
    return out


def _rename_stage(st: Stage, names: dict[Axis, Axis]) -> Stage:
    def new(a: Axis) -> Axis:
        return names.get(a, a)
    relations = tuple(Split(new(r.parent), new(r.outer), new(r.inner), r.tail) if isinstance(r, Split) else
                      Fuse(new(r.outer), new(r.inner), new(r.fused)) for r in st.relations)
    return replace(st, compute=rename_axes(st.compute, names), relations=relations,
                   loops=tuple(replace(x, axis=new(x.axis)) for x in st.loops))
