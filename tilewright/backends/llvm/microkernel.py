"""Microkernels: the inner loops of a tensorized stage as a function of their own.

Its arguments are pointers that already include the outer loops' part, so that register allocation sees nothing but the
tile. A microkernel is emitted once for each combination of extents (full and ragged tiles) and called from every place.
"""
from __future__ import annotations

from dataclasses import replace

from llvmlite import ir

from ...ir.expr import Axis, Buffer, Expr, Load
from ...ir.loops import Split, Stage
from ...ir.program import Compute
from ..target import Target
from .builder import Builder
from .emit_expr import PTR, Block, Frame
from .emit_reduce import LINE, Prefetch, ReductionEmitter
from .linear import Lin
from .micro_library import Body, MicroLibrary, Numbers, prefetches, symbol_of

MOST_LINES = 8  # prefetches in one step of the innermost loop; more would crowd out the loads that are needed now


class MicrokernelEmitter(ReductionEmitter):
    """`micro`: the functions made so far, with the order of their pointer arguments."""

    symbol: str

    def __init__(self, module: ir.Module, target: Target, frame: Frame, library: MicroLibrary | None = None):
        super().__init__(module, target, frame)
        self.library = library
        self.fresh = ir.Module(name="micro")  # microkernels for the library
        self.fresh.triple = target.triple
        self.micro: dict[object, tuple[ir.Function, list[int]]] = {}
        self._bodies: dict[int, tuple[Compute, Body]] = {}

    def _body(self, c: Compute) -> Body:
        found = self._bodies.get(id(c))
        if found is None:
            found = self._bodies[id(c)] = c, Body(c)
        return found[1]

    def nest(self, st: Stage, k: int) -> None:
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
        fetch = self._fetches(st, k)
        key = (*key, *(f.key() for f in fetch))
        unique = list({id(p): p for p in pointers.values()}.values())
        if key not in self.micro:
            order = [next(i for i, u in enumerate(unique) if u is p) for p in pointers.values()]
            self.micro[key] = (self._micro_function(st, k, list(pointers), order, len(unique), guards, fetch), order)
        fn, order = self.micro[key]
        args: dict[int, ir.Value] = {}
        for at, p in zip(order, pointers.values(), strict=True):
            args.setdefault(at, p)
        extra = [f.pointer for f in fetch]
        self.b.call(fn, [args[i] for i in range(len(unique))] + [*extra, self.frame.ctx])
        return True

    def _fetches(self, st: Stage, k: int) -> tuple[Prefetch, ...]:
        """What `Stage.prefetch` asks for, with pointers at this call's share."""
        return tuple(f for name, over in st.prefetch if (f := self._fetch(st, k, name, st.loop(over))) is not None)

    def _fetch(self, st: Stage, k: int, name: str, at: int) -> Prefetch | None:
        load = next(x for x in self._body(st.compute).loads if x.buffer.name == name)
        found = self._next_offset(load, st, k, st.loops[at].axis)
        if found is None:
            return None
        here, step = found
        size = load.buffer.dtype.bytes
        serial = [x.axis for x in st.loops[k:] if x.reduce and x.kind == "serial"]
        if count := self._dense(load, st, k):
            return self._panel_share(st, k, at, self._pointer_to(load.buffer, here.shift(step)), count * size, serial)
        return self._row_share(load, st, k, here, step, serial)

    def _panel_share(self, st: Stage, k: int, at: int, pointer: ir.Value, nbytes: int, serial: list[Axis]) -> Prefetch:
        """Packed weights: the calls under one panel touch equal parts of the next one, a few lines in each step."""
        calls, number = 1, Lin()
        for x in st.loops[at + 1:k]:
            number = number.scale(x.axis.extent) + self.env[x.axis]
            calls *= x.axis.extent
        share = -(-nbytes // calls // LINE) * LINE
        steps = 1
        for a in serial:
            steps *= a.extent
        lines = min(MOST_LINES, -(-share // LINE // max(steps, 1)))
        return Prefetch(self._gep(pointer, self.lin_value(number.scale(share))), lines, _mixed(serial, lines * LINE))

    def _row_share(self, load: Load, st: Stage, k: int, here: Lin, step: int, serial: list[Axis]) -> Prefetch | None:
        """Images in blocks of channels: for each block (the outermost reduce loop) the pixels that the next tile, `step` elements
        on, reads and this one does not; the inner steps touch a line or a few each. None where blocks are no images of their own."""
        size = load.buffer.dtype.bytes
        head, rest = serial[0], serial[1:]
        image = self._moves(load, st, k, head)
        span = 1 + sum(self._moves(load, st, k, x.axis) * (x.axis.extent - 1) for x in st.loops[k:] if x.axis != head)
        fresh = min(step, span)
        if image < span:
            return None
        steps, count = [], 1
        while rest and count * LINE < fresh * size:  # no more of the inner loops than there are lines
            steps.insert(0, rest.pop())
            count *= steps[0].extent
        lines = min(MOST_LINES, -(-fresh * size // (count * LINE)))
        start = self._pointer_to(load.buffer, here.shift(step + span - fresh))
        return Prefetch(start, lines, ((head, image * size), *_mixed(steps, lines * LINE)))

    def _dense(self, load: Load, st: Stage, k: int) -> int:
        """How many elements the microkernel's own loops read, where they lie next to each other; else 0."""
        count = 1
        for move, extent in sorted((self._moves(load, st, k, x.axis), x.axis.extent) for x in st.loops[k:] if x.axis.extent > 1):
            if move not in (0, count):
                return 0
            count *= extent if move else 1
        return count

    def _moves(self, load: Load, st: Stage, k: int, axis: Axis) -> int:
        """Elements that `load` moves with a loop of the microkernel."""
        found = self._next_offset(load, st, k, axis, inner=True)
        return found[1] if found is not None else 0

    def _next_offset(self, load: Load, st: Stage, k: int, axis: Axis, inner: bool = False) -> tuple[Lin, int] | None:
        """(offset of the load with the microkernel's loops at zero, elements it moves with `axis`); None where not linear.
        `inner`: `axis` is one of the microkernel's."""
        saved, saved_blocks = dict(self.env), dict(self.blocks)
        for r in st.relations:
            if isinstance(r, Split) and r.outer in {x.axis for x in st.loops[k:]}:
                self.blocks[r.parent] = Block(r, 0, r.inner.extent, 0)
        self.env.update({x.axis: Lin() for x in st.loops[k:]})
        if inner:
            self.env[axis] = Lin(0, ((axis, 1),))
        self._changed()
        here = self._offset(load.buffer, load.index)
        self.env, self.blocks = saved, saved_blocks
        self._changed()
        step = here.coefficient(axis)
        return (here, step) if step > 0 and all(isinstance(a, Axis) for a, _ in here.terms) else None

    def _sites(self, st: Stage, k: int) -> tuple[dict[int, ir.Value], dict[int, bool]] | None:
        """Pointer of each load (by id) and of the store (key 0), outer loops included; None if not possible."""
        body = self._body(st.compute)
        if not body.addresses_alone:
            return None
        inner = [x.axis for x in st.loops[k:]]
        symbolic = {a: Lin(0, ((a, 1),)) for a in inner}
        outer = {x.axis: self.env[x.axis] for x in st.loops[:k]}
        pointers: dict[int, ir.Value] = {}
        guards: dict[int, bool] = {}
        cache: dict[object, ir.Value] = {}
        saved = dict(self.env), dict(self.blocks)
        try:
            self.env.update(symbolic)
            for r in st.relations:  # any run of a split inside serves: its own terms cancel out below
                if isinstance(r, Split) and r.outer in symbolic:
                    self.blocks[r.parent] = Block(r, 0, r.inner.extent, 0)
            self._changed()
            for x in body.loads:
                if x.where is not None:
                    truth = self.known(x.where)
                    if truth is None:
                        return None
                    guards[id(x)] = truth
            for site, buffer, index in body.accesses:
                self.env.update(outer)
                full = self._offset(buffer, index)
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
        part = self._offset(buffer, index)
        self.blocks = blocks
        self._changed()
        self.env.update(outer)
        return part

    def _pointer_to(self, buffer: Buffer, offset: Lin) -> ir.Value:
        base = self.frame.bases[buffer.name]
        at = self.lin_value(offset.scale(buffer.dtype.bytes))
        return self.b.gep(base, [at], inbounds=True, source_etype=ir.IntType(8))

    def _micro_function(self, st: Stage, k: int, sites: list[int], order: list[int], count: int, guards: dict[int, bool],
                        fetch: tuple[Prefetch, ...]) -> ir.Function:
        saved = self.frame, self.env, self.blocks, self.module
        kind = ir.FunctionType(ir.VoidType(), [PTR] * (count + 1 + len(fetch)))
        self.env = {x.axis: Lin() for x in st.loops[:k]}
        self.blocks = {p: Block(b.split, 0, b.inner_extent, 0) if b.split.outer in self.env else b for p, b in self.blocks.items()}
        self._changed()
        shared = self._portable(st, k, order, count, guards, fetch) if self.library is not None else None
        name = shared or f"{self.symbol}_micro{len(self.micro)}"
        if shared is None or self.library is None:
            fn = ir.Function(self.module, kind, name)
            fn.linkage = "internal"
            self._micro_body(fn, st, k, dict(zip(sites, order, strict=True)), count, guards, fetch)
        else:
            if name not in self.fresh.globals and not self.library.use(name):
                self.module = self.fresh
                self._micro_body(ir.Function(self.module, kind, name), st, k, dict(zip(sites, order, strict=True)), count, guards, fetch)
            known = saved[3].globals.get(name)
            fn = known if isinstance(known, ir.Function) else ir.Function(saved[3], kind, name)
        self.frame, self.env, self.blocks, self.module = saved
        self._changed()
        return fn

    def _micro_body(self, fn: ir.Function, st: Stage, k: int, sites: dict[int, int], count: int, guards: dict[int, bool],
                    fetch: tuple[Prefetch, ...]) -> None:
        fn.attributes.add("noinline")
        builder = Builder(fn.append_basic_block("entry"))
        self.frame = Frame(builder, {}, fn.args[-1])
        self.frame.sites = {s: fn.args[i] for s, i in sites.items()}
        self.frame.guards = guards
        self.prefetch = tuple(replace(f, pointer=p) for f, p in zip(fetch, fn.args[count:], strict=False))
        self.nest(Stage(st.compute, st.loops, st.relations, st.shared, None), k)
        self.prefetch = ()
        builder.ret_void()

    def _portable(self, st: Stage, k: int, order: list[int], count: int, guards: dict[int, bool],
                  fetch: tuple[Prefetch, ...]) -> str | None:
        """A symbol that says all that the microkernel's code depends on; None where that cannot be told from linear forms."""
        numbers, body = Numbers(st, k), self._body(st.compute)
        env = self.env
        self.env = env | {a: Lin(0, ((a, 1),)) for a in numbers.symbols}
        self._changed()
        forms = [numbers.form(self._offset(buffer, index)) for _, buffer, index in body.accesses]
        self.env = env
        self._changed()
        if None in forms or any(x.kind == "parallel" for x in numbers.loops):
            return None
        return symbol_of((body.meaning, numbers.nest(self.ranges), forms, order, count, body.guarded(guards),
                          prefetches([f.key() for f in fetch], numbers), self.full, str(self.target.code_key())))

def _mixed(axes: list[Axis], unit: int) -> tuple[tuple[Axis, int], ...]:
    """Strides that number the points of `axes` in order, `unit` bytes apart."""
    out: list[tuple[Axis, int]] = []
    for a in reversed(axes):
        out.append((a, unit))
        unit *= a.extent
    return tuple(reversed(out))
