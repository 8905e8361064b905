"""Microkernels: the inner loops of a tensorized stage as a function of their own.

Its arguments are pointers that already include the outer loops' part, so that register allocation sees nothing but the
tile. A microkernel is emitted once for each combination of extents (full and ragged tiles) and called from every place.
"""
from __future__ import annotations

from llvmlite import ir

from ...ir.expr import Axis, Buffer, Expr, Load, Var, children, loads, walk
from ...ir.loops import Split, Stage
from ...ir.program import Compute
from ..target import Target
from .emit_expr import PTR, Block, Frame
from .emit_reduce import LINE, Prefetch, ReductionEmitter
from .linear import Lin


MOST_LINES = 8  # prefetches in one step of the innermost loop; more would crowd out the loads that are needed now


class MicrokernelEmitter(ReductionEmitter):
    """`micro`: the functions made so far, with the order of their pointer arguments."""

    symbol: str

    def __init__(self, module: ir.Module, target: Target, frame: Frame):
        super().__init__(module, target, frame)
        self.micro: dict[object, tuple[ir.Function, list[int]]] = {}

    def _nest(self, st: Stage, k: int) -> None:
        raise NotImplementedError

    def _microkernel(self, st: Stage, k: int) -> bool:
        """Emits loops[k:] as a call of an internal function. False where the body depends on outer loops by more than
        addresses; then the nest is emitted in place."""
        sites = self._sites(st, k)
        if sites is None:
            return False
        pointers, guards = sites
        key = (id(st), tuple(self.ranges.extents.get(x.axis, x.axis.extent) for x in st.loops[k:]), tuple(guards.values()),
               tuple((r.parent.name, self.ranges.extents.get(r.parent)) for r in st.relations if isinstance(r, Split)))
        fetch = self._next_panel(st, k)
        if fetch is not None:
            key = (*key, fetch[1])
        unique = list({id(p): p for p in pointers.values()}.values())
        if key not in self.micro:
            order = [next(i for i, u in enumerate(unique) if u is p) for p in pointers.values()]
            self.micro[key] = (self._micro_function(st, k, list(pointers), order, len(unique), guards, fetch and fetch[1]), order)
        fn, order = self.micro[key]
        args: dict[int, ir.Value] = {}
        for at, p in zip(order, pointers.values(), strict=True):
            args.setdefault(at, p)
        extra = [fetch[0]] if fetch is not None else []
        self.b.call(fn, [args[i] for i in range(len(unique))] + [*extra, self.frame.ctx])
        return True

    def _next_panel(self, st: Stage, k: int) -> tuple[ir.Value, int] | None:
        """(where this call's share of the next panel starts, lines a step) of `Stage.prefetch`."""
        if st.prefetch is None:
            return None
        name, over = st.prefetch
        at = st.loop(over)
        load = next(x for x in loads(st.compute.body) if x.buffer.name == name)
        panel = self._panel_stride(load, st, k, st.loops[at].axis)
        if panel is None:
            return None
        calls, number = 1, Lin()
        for x in st.loops[at + 1:k]:
            number = number.scale(x.axis.extent) + self.env[x.axis]
            calls *= x.axis.extent
        share = -(-panel[1] // calls // LINE) * LINE
        steps = 1
        for x in st.loops[k:]:
            steps *= x.axis.extent if x.reduce and x.kind == "serial" else 1
        lines = min(MOST_LINES, -(-share // LINE // max(steps, 1)))
        here = panel[0].shift(panel[1] // load.buffer.dtype.bytes)
        return self._gep(self._pointer_to(load.buffer, here), self.lin_value(number.scale(share))), lines

    def _panel_stride(self, load: Load, st: Stage, k: int, axis: Axis) -> tuple[Lin, int] | None:
        """(offset of the present panel, bytes from one panel to the next) as `axis` moves; None where it is not linear."""
        saved, saved_blocks = dict(self.env), dict(self.blocks)
        for r in st.relations:
            if isinstance(r, Split) and r.outer in {x.axis for x in st.loops[k:]}:
                self.blocks[r.parent] = Block(r, 0, r.inner.extent, 0)
        self.env.update({x.axis: Lin() for x in st.loops[k:]})
        self._changed()
        here = self.offset(load.buffer, load.index)
        step = here.coefficient(axis)
        self.env, self.blocks = saved, saved_blocks
        self._changed()
        return (here, step * load.buffer.dtype.bytes) if step > 0 and all(isinstance(a, Axis) for a, _ in here.terms) else None

    def _sites(self, st: Stage, k: int) -> tuple[dict[int, ir.Value], dict[int, bool]] | None:
        """Pointer of each load (by id) and of the store (key 0), outer loops included; None if not possible."""
        c = st.compute
        if _loop_values(c):
            return None
        inner = [x.axis for x in st.loops[k:]]
        symbolic = {a: Lin(0, ((a, 1),)) for a in inner}
        outer = {x.axis: self.env[x.axis] for x in st.loops[:k]}
        pointers: dict[int, ir.Value] = {}
        guards: dict[int, bool] = {}
        cache: dict[object, ir.Value] = {}
        accesses = [(id(x), x.buffer, x.index) for x in loads(c.body)] + [(0, c.buffer, tuple(Var(a) for a in c.axes))]
        saved = dict(self.env), dict(self.blocks)
        try:
            self.env.update(symbolic)
            for r in st.relations:  # any run of a split inside serves: its own terms cancel out below
                if isinstance(r, Split) and r.outer in symbolic:
                    self.blocks[r.parent] = Block(r, 0, r.inner.extent, 0)
            self._changed()
            for x in loads(c.body):
                if x.where is not None:
                    truth = self.known(x.where)
                    if truth is None:
                        return None
                    guards[id(x)] = truth
            for site, buffer, index in accesses:
                self.env.update(outer)
                full = self.offset(buffer, index)
                part = self._inner_part(st, k, outer, buffer, index)
                rest = full + part.scale(-1)
                if any(a in inner or not isinstance(a, Axis) for a, _ in rest.terms) or any(not isinstance(a, Axis) for a, _ in part.terms):
                    return None
                where = (buffer.name, rest)
                if where not in cache:
                    cache[where] = self._pointer_to(buffer, rest)
                pointers[site] = cache[where]
        finally:
            self.env, self.blocks = saved
            self._changed()
        return pointers, guards

    def _inner_part(self, st: Stage, k: int, outer: dict[Axis, Lin], buffer: Buffer, index: tuple[Expr, ...]) -> Lin:
        """The offset with every outer loop at zero: what the microkernel itself adds."""
        blocks = dict(self.blocks)
        for parent, blk in blocks.items():
            if blk.split.outer in outer:
                self.blocks[parent] = Block(blk.split, 0, blk.inner_extent, 0)
        self.env.update({a: Lin() for a in outer})
        self._changed()
        part = self.offset(buffer, index)
        self.blocks = blocks
        self._changed()
        self.env.update(outer)
        return part

    def _pointer_to(self, buffer: Buffer, offset: Lin) -> ir.Value:
        base = self.frame.bases[buffer.name]
        at = self.lin_value(offset.scale(buffer.dtype.bytes))
        return self.b.gep(base, [at], inbounds=True, source_etype=ir.IntType(8))

    def _micro_function(self, st: Stage, k: int, sites: list[int], order: list[int], count: int, guards: dict[int, bool],
                        lines: int | None) -> ir.Function:
        name = f"{self.symbol}_micro{len(self.micro)}"
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [PTR] * (count + 1 + (lines is not None))), name)
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        saved = self.frame, self.env, self.blocks
        builder = ir.IRBuilder(fn.append_basic_block("entry"))
        frame = Frame(builder, {}, fn.args[-1])
        frame.sites = {s: fn.args[i] for s, i in zip(sites, order, strict=True)}
        frame.guards = guards
        self.frame, self.env = frame, {x.axis: Lin() for x in st.loops[:k]}
        self.blocks = {p: Block(b.split, 0, b.inner_extent, 0) if b.split.outer in self.env else b for p, b in self.blocks.items()}
        self._changed()
        if lines is not None:
            self.prefetch = Prefetch(fn.args[-2], lines, tuple((x.axis, x.axis.extent) for x in st.loops[k:] if x.reduce and x.kind == "serial"))
        self._nest(Stage(st.compute, st.loops, st.relations, st.shared, None), k)
        self.prefetch = None
        builder.ret_void()
        self.frame, self.env, self.blocks = saved
        self._changed()
        return fn

def _loop_values(c: Compute) -> bool:
    """Whether loop variables are used as data or conditions, not only as indices and guards."""
    covered = {id(n) for x in loads(c.body) for i in (*x.index, *((x.where,) if x.where is not None else ())) for n in walk(i)}
    return any(isinstance(n, Var) and id(n) not in covered for n in walk(c.body)) or any(
        isinstance(n, Load) for x in loads(c.body) for i in x.index for n in walk(i)) or any(
        isinstance(ch, Var) for n in walk(c.body) if id(n) not in covered and not isinstance(n, Load) for ch in children(n))
