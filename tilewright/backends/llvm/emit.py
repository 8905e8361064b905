"""Scheduled programs → LLVM IR: the nests of all stages, from the outside in.

Ragged splits are peeled where their outer loop is opened, so inside a nest every extent is a constant. Once the first
reduce loop opens, the remaining spatial loops (unrolled or vector) span a tile of accumulators in registers
(emit_reduce.py). With `Stage.tensorize` the loops from that index on become a function of their own (microkernel.py).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from llvmlite import ir

from ...ir.expr import Expr, Var, wrap
from ...ir.loops import Fuse, Loop, Scheduled, Stage
from ...ir.program import Compute
from ..target import Target
from .builder import Builder
from .emit_expr import I64T, PTR, Frame, vector_lanes
from .emit_loops import Step
from .linear import Lin
from .local_memory import local_layout
from .micro_library import MicroLibrary, module_text
from .microkernel import MicrokernelEmitter


def emit_kernel(s: Scheduled, target: Target, symbol: str, library: MicroLibrary | None = None) -> str:
    """LLVM IR text of `void symbol(ptr buffers…, ptr workspace, i64 begin, i64 end, ptr ctx)`: program inputs, then
    outputs; [begin, end) is the part of the parallel loops' iterations to run (see `parallel_extent`). library: where
    microkernels go that other schedules may use as well; without one, all of them are in the text."""
    return _KernelEmitter(s, target, symbol, library).text()


def parallel_extent(s: Scheduled) -> int:
    """Iterations of the outermost parallel loops that all stages share, taken as one range; 1 where there are none.
    Ragged blocks count with their largest extent: some iterations at the ends of rows may be empty."""
    return math.prod(x.axis.extent for x in parallel_loops(s))


def parallel_loops(s: Scheduled) -> tuple[Loop, ...]:
    """The outermost parallel loops that all stages share."""
    first = s.stages[0]
    depth = next((k for k, x in enumerate(first.loops) if x.kind != "parallel"), len(first.loops))
    return first.loops[:min([depth, *(st.shared for st in s.stages[1:])])]


def _parallel_steps(s: Scheduled) -> tuple[Step, ...]:
    """How the number of an iteration follows from the parallel loops."""
    loops = parallel_loops(s)
    sizes: dict[int, int] = {}
    size = 1
    for k in sorted(range(len(loops)), key=lambda k: (loops[k].major, -k)):  # the fastest first
        sizes[k] = size
        size *= loops[k].axis.extent
    return tuple(Step(sizes[k], sum((loops[j].axis.extent - 1) * sizes[j] for j in range(k + 1, len(loops)))) for k in range(len(loops)))


def workspace_bytes(s: Scheduled) -> int:
    """Bytes of scratch memory that each concurrent call of the kernel needs."""
    return local_layout(s).bytes


class _KernelEmitter(MicrokernelEmitter):
    def __init__(self, s: Scheduled, target: Target, symbol: str, library: MicroLibrary | None):
        self.s, self.symbol = s, symbol
        module = ir.Module(name=symbol)
        module.triple = target.triple
        p = s.program
        fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR] * (len(p.inputs) + len(p.outputs) + 1) + [I64T, I64T, PTR]), symbol)
        builder = Builder(fn.append_basic_block("entry"))
        names = [*p.inputs, *p.outputs]
        bases: dict[str, ir.Value] = {b.name: a for b, a in zip(names, fn.args, strict=False)}
        workspace, self.begin, self.end, ctx = fn.args[len(names):]
        super().__init__(module, target, Frame(builder, bases, ctx), library)
        layout = local_layout(s)
        self.locals = layout.storage
        bases.update({name: bases[y] for name, y in layout.outputs.items()})
        for name, at in layout.offsets.items():
            if at < 0:
                slot = builder.alloca(ir.ArrayType(ir.IntType(8), -at))
                slot.align = 64
                slot.type = PTR  # llvmlite would type it [n x i8]*
                bases[name] = slot
            else:
                bases[name] = builder.gep(workspace, [ir.Constant(I64T, at)], inbounds=True, source_etype=ir.IntType(8))
        self.parallel = _parallel_steps(s)
        self.parts: dict[int, tuple[Stage, Stage, Stage]] = {}  # of stages with a condition: with it, without it

    def text(self) -> str:
        self._stages(_filled(self.s.stages), 0)
        self.b.ret_void()
        if self.library is not None and (new := [f.name for f in self.fresh.functions if not f.is_declaration]):
            self.library.add(new, module_text(self.fresh, self.target))
        return module_text(self.module, self.target)

    # -- loop nests ----------------------------------------------------------------------------------------------------
    def _stages(self, stages: tuple[Stage, ...], depth: int) -> None:
        i = 0
        while i < len(stages):
            j = i + 1
            while j < len(stages) and stages[j].shared > depth:
                j += 1
            run = stages[i:j]
            if len(run) == 1:
                with self.frame.scope():
                    self._enter(run[0])
                    self.nest(run[0], depth)
            else:
                self._enter(run[0])
                self._loop(run[0], depth, lambda run=run: self._stages(run, depth + 1), run)
            i = j

    def _enter(self, st: Stage) -> None:
        self.fuses.update({a: r for r in st.relations if isinstance(r, Fuse) for a in (r.outer, r.inner)})
        self.full = vector_lanes(st.compute.body, st.compute.buffer.dtype, self.target)

    def nest(self, st: Stage, k: int) -> None:
        if st.inside is not None and st.inside[0] == k:
            self._inside(st, k, st.inside[1])
            return
        if st.tensorize == k and self._microkernel(st, k):
            return
        if k == len(st.loops):
            self.leaf = {}
            self.store(st.compute.buffer, tuple(Var(a) for a in st.compute.axes), self.value(st.compute.body))
        elif self._opens_tile(st, k):
            self._reduction(st, k)
        else:
            self._loop(st, k, lambda: self.nest(st, k + 1))

    def _inside(self, st: Stage, k: int, condition: Expr) -> None:
        """if condition: the nest from loop k on; else: zeros."""
        if id(st) not in self.parts:
            c = st.compute
            zeros = Compute(c.buffer, c.axes, wrap(0, c.buffer.dtype))
            rest = tuple(x for x in st.loops if not x.reduce)
            # all are kept: microkernels are known by the identity of their stage
            data = replace(st, inside=None)
            self.parts[id(st)] = data, replace(data, compute=zeros, loops=rest, tensorize=None, prefetch=()), st
        data, zeros, _ = self.parts[id(st)]
        self.leaf = {}
        if (truth := self.known(condition)) is not None:
            self.nest(data if truth else zeros, k)
            return
        with self.b.if_else(self.value(condition)) as (yes, no):
            for where, part in ((yes, data), (no, zeros)):
                with where, self.frame.scope():
                    self.nest(part, k)

    @staticmethod
    def _opens_tile(st: Stage, k: int) -> bool:
        """Whether accumulators start at loop k: at a reduce loop, or at a vector loop that reduce loops follow."""
        rest = st.loops[k:]
        return rest[0].reduce or (rest[0].kind == "vector" and any(x.reduce for x in rest)
                                  and all(x.reduce or x.kind in ("unroll", "vector") for x in rest))

    def _loop(self, st: Stage, k: int, body: Callable[[], None], sharing: tuple[Stage, ...] = ()) -> None:
        loop = st.loops[k]
        for first, count in self._runs(st, loop.axis, sharing):
            if loop.kind == "vector":
                self._vector_loop(loop.axis, count, body)
            elif k < len(self.parallel):
                self._part(loop.axis, first, count, self.parallel[k], body)
            elif loop.kind == "unroll" or count == 1:
                tile, self.tile = self.tile, (loop.axis, count) if k + 2 == len(st.loops) and not first and count > 1 else self.tile
                for i in range(first, first + count):
                    self.env[loop.axis] = Lin(i)
                    body()
                self.tile = tile
            elif count:
                self.ranges.bounds[loop.axis] = (first, first + count - 1)
                self._changed()
                self._counted(loop.axis, ir.Constant(I64T, first), ir.Constant(I64T, first + count), body)
                self.ranges.bounds.pop(loop.axis)
        self.env.pop(loop.axis, None)


def _filled(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages that compute any element. One after a gap shares no more loops than the stages in the gap did."""
    out: list[Stage] = []
    shared: int | None = None
    for st in stages:
        shared = st.shared if shared is None else min(shared, st.shared)
        if 0 not in st.compute.buffer.shape:
            out.append(replace(st, shared=shared if out else 0))
            shared = None
    return tuple(out)
