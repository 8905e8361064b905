"""Scheduled programs → LLVM IR: loop nests, register tiles, reductions, microkernels.

A nest is walked from the outside in. Ragged splits are peeled where their outer loop is opened, so inside a nest every
extent is a constant. Once the first reduce loop opens, the remaining spatial loops (unrolled or vector) span a tile of
accumulators that live in SSA values, as phis of the reduce loops:

    acc[m,n] = 0
    for k:                                  # a counted loop; accumulators are its phis
      b[n] = load vector B[k, n]            # loads are shared across the unrolled tile
      a    = load scalar A[m, k]
      acc[m,n] = fma(a, b[n], acc[m,n])
    C[m,n] = epilogue(acc[m,n])

With `Stage.tensorize` the loops from that index on become an internal function (the microkernel): its arguments are
pointers that already include the outer loops' part, so register allocation sees nothing but the tile.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from llvmlite import ir

from ...ir.expr import Axis, Call, Load, Reduce, Var, children, loads, reduces, walk
from ...ir.loops import Fuse, Loop, Scheduled, Split, Stage
from ...ir.program import Compute
from ...ir.types import DType, contiguous_strides
from ..target import Target
from .emit_expr import I32T, I64T, PTR, Block, ExprEmitter, Frame, LocalStorage, vector_lanes
from .linear import LANE, Lin
from .scalar import emit_call

ALLOCA_BYTES = 2048   # local buffers up to this size live on the stack, larger ones in the caller's workspace
UNROLL_VECTORS = 4    # vectors a trip in long vector loops without reductions

Key = tuple[int, ...]


def emit_kernel(s: Scheduled, target: Target, symbol: str) -> str:
    """LLVM IR text of `void symbol(ptr buffers…, ptr workspace, i64 begin, i64 end, ptr ctx)`: program inputs, then
    outputs; [begin, end) is the part of the outermost parallel loop to run (see `parallel_extent`)."""
    return _KernelEmitter(s, target, symbol).text()


def parallel_extent(s: Scheduled) -> int:
    """Trip count of the parallel loop that all stages share; 1 where there is none."""
    first = s.stages[0]
    shared = all(st.shared > 0 for st in s.stages[1:])
    return first.loops[0].axis.extent if shared and first.loops and first.loops[0].kind == "parallel" else 1


def workspace_bytes(s: Scheduled) -> int:
    """Bytes of scratch memory that each concurrent call of the kernel needs."""
    return _local_layout(s)[2]


def _local_layout(s: Scheduled) -> tuple[dict[str, LocalStorage], dict[str, int], int]:
    """(storage of each local buffer, offsets of those in the workspace, workspace bytes)."""
    storage: dict[str, LocalStorage] = {}
    offsets: dict[str, int] = {}
    total = 0
    for p, st in enumerate(s.stages):
        buf = st.compute.buffer
        if buf in s.program.outputs:
            continue
        readers = [k for k in range(p + 1, len(s.stages)) if buf in s.stages[k].compute.reads]
        depth = min((s.stages[k].shared for k in range(p + 1, readers[-1] + 1)), default=0) if readers else 0
        shared = frozenset(x.axis for x in st.loops[:depth])
        sizes = tuple(_unshared(a, st, shared) for a in st.compute.axes)
        strides = tuple(0 if n == 1 else k for n, k in zip(sizes, contiguous_strides(sizes), strict=True))
        storage[buf.name] = LocalStorage(strides, shared)
        nbytes = buf.dtype.bytes
        for n in sizes:
            nbytes *= n
        if nbytes > ALLOCA_BYTES:
            offsets[buf.name] = total
            total += -(-nbytes // 64) * 64
        else:
            offsets[buf.name] = -max(nbytes, 1)
    return storage, offsets, total


def _unshared(a: Axis, st: Stage, shared: frozenset[Axis]) -> int:
    """How many values of axis `a` one iteration of the shared loops covers."""
    if a in shared:
        return 1
    for r in st.relations:
        if isinstance(r, Split) and r.parent == a:
            return _unshared(r.inner, st, shared) if r.outer in shared else a.extent
        if isinstance(r, Fuse) and a in (r.outer, r.inner) and r.fused in shared:
            return 1
    return a.extent


def _identity(kind: str, d: DType) -> float | int | bool:
    if kind in ("sum", "any"):
        return 0
    if kind in ("prod", "all"):
        return 1
    if d.is_float:
        return float("-inf") if kind == "max" else float("inf")
    if d.kind == "b":
        return kind == "min"
    low, high = (-(1 << (d.bits - 1)), (1 << (d.bits - 1)) - 1) if d.kind == "i" else (0, (1 << d.bits) - 1)
    return low if kind == "max" else high


_COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}


class _KernelEmitter(ExprEmitter):
    def __init__(self, s: Scheduled, target: Target, symbol: str):
        self.s, self.symbol = s, symbol
        module = ir.Module(name=symbol)
        module.triple = target.triple
        p = s.program
        fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR] * (len(p.inputs) + len(p.outputs) + 1) + [I64T, I64T, PTR]), symbol)
        builder = ir.IRBuilder(fn.append_basic_block("entry"))
        names = [*p.inputs, *p.outputs]
        bases: dict[str, ir.Value] = {b.name: a for b, a in zip(names, fn.args, strict=False)}
        workspace, self.begin, self.end, ctx = fn.args[len(names):]
        super().__init__(module, target, Frame(builder, bases, ctx))
        self.locals, offsets, _ = _local_layout(s)
        for name, at in offsets.items():
            if at < 0:
                slot = builder.alloca(ir.ArrayType(ir.IntType(8), -at))
                slot.align = 64
                slot.type = PTR  # llvmlite would type it [n x i8]*
                bases[name] = slot
            else:
                bases[name] = builder.gep(workspace, [ir.Constant(I64T, at)], inbounds=True, source_etype=ir.IntType(8))
        self.micro: dict[object, tuple[ir.Function, list[int]]] = {}
        self.acc: dict[tuple[int, Key], ir.Value] = {}
        self.point: dict[Axis, int] = {}
        self.parallel = parallel_extent(s) > 1 or bool(s.stages[0].loops and s.stages[0].loops[0].kind == "parallel" and parallel_extent(s) == 1
                                                       and all(st.shared > 0 for st in s.stages[1:]))

    def text(self) -> str:
        self._stages(self.s.stages, 0)
        self.b.ret_void()
        text = str(self.module)
        width = self.target.vector_bytes * 8
        text = re.sub(r"^(define [^\n{]*?)\s*$", r"\1 #0", text, flags=re.M)
        return text + f'\nattributes #0 = {{ nounwind "prefer-vector-width"="{width}" "no-builtins" "no-trapping-math"="true" }}\n'

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
                    self._nest(run[0], depth)
            else:
                self._enter(run[0])
                self._loop(run[0], depth, lambda run=run: self._stages(run, depth + 1))
            i = j

    def _enter(self, st: Stage) -> None:
        self.fuses.update({a: r for r in st.relations if isinstance(r, Fuse) for a in (r.outer, r.inner)})
        self.full = vector_lanes(st.compute.body, st.compute.buffer.dtype, self.target)

    def _nest(self, st: Stage, k: int) -> None:
        if st.tensorize == k and self._microkernel(st, k):
            return
        if k == len(st.loops):
            self.leaf = {}
            self.store(st.compute.buffer, tuple(Var(a) for a in st.compute.axes), self.value(st.compute.body))
        elif st.loops[k].reduce or (st.compute.reduce_axes and not any(x.kind in ("serial", "parallel") and not x.reduce for x in st.loops[k:])
                                    and all(x.reduce or x.kind in ("unroll", "vector") for x in st.loops[k:]) and self._tile_starts(st, k)):
            self._reduction(st, k)
        else:
            self._loop(st, k, lambda: self._nest(st, k + 1))

    @staticmethod
    def _tile_starts(st: Stage, k: int) -> bool:
        """Whether the accumulator tile opens at loop k: a reduce loop, or a vector loop that reduce loops follow."""
        return st.loops[k].kind == "vector" and any(x.reduce for x in st.loops[k + 1:])

    def _runs(self, st: Stage, axis: Axis) -> Iterator[tuple[int, int]]:
        """(first, count) of each run of `axis` with one inner extent; the split's block is set meanwhile."""
        split = next((r for r in st.relations if isinstance(r, Split) and r.outer == axis), None)
        if split is None:
            yield 0, self.ranges.extents.get(axis, axis.extent)
            return
        saved = self.blocks.get(split.parent), self.ranges.extents.get(split.inner)
        for first, count, inner, base in split.segments(self.ranges.extents.get(split.parent)):
            self.blocks[split.parent] = Block(split, first, inner, base)
            self.ranges.extents[split.inner] = inner
            self._changed()
            yield first, count
        self.blocks.pop(split.parent, None)
        self.ranges.extents.pop(split.inner, None)
        if saved[0] is not None:
            self.blocks[split.parent] = saved[0]
        if saved[1] is not None:
            self.ranges.extents[split.inner] = saved[1]
        self._changed()

    def _changed(self) -> None:
        """Remembered offsets no longer hold: blocks or ranges are different now."""
        self.epoch += 1
        self.offsets.clear()
        self.deps.clear()

    def _loop(self, st: Stage, k: int, body: Callable[[], None]) -> None:
        loop = st.loops[k]
        for first, count in self._runs(st, loop.axis):
            if loop.kind == "vector":
                self._vector_loop(loop.axis, count, body)
            elif loop.kind == "parallel" and k == 0 and self.parallel:
                self._part(loop.axis, first, count, body)
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

    def _part(self, axis: Axis, first: int, count: int, body: Callable[[], None]) -> None:
        """The iterations of [first, first + count) that lie in the caller's [begin, end)."""
        lo, hi = self._max(self.begin, first), self._min(self.end, first + count)
        if count == 1:
            with self.b.if_then(self.b.icmp_signed("<", lo, hi)), self.frame.scope():
                self.env[axis] = Lin(first)
                body()
        elif count:
            self.ranges.bounds[axis] = (first, first + count - 1)
            self._changed()
            self._counted(axis, lo, hi, body, dynamic=True)
            self.ranges.bounds.pop(axis)

    def _max(self, v: ir.Value, k: int) -> ir.Value:
        c = ir.Constant(I64T, k)
        return self.b.select(self.b.icmp_signed("<", v, c), c, v)

    def _min(self, v: ir.Value, k: int) -> ir.Value:
        c = ir.Constant(I64T, k)
        return self.b.select(self.b.icmp_signed(">", v, c), c, v)

    def _counted(self, axis: Axis, lo: ir.Value, hi: ir.Value, body: Callable[[], None], dynamic: bool = False) -> None:
        """for axis in [lo, hi): body. The trip count is known to be positive unless `dynamic`. Accumulators in flight
        become phis."""
        b = self.b
        head = b.append_basic_block(f"{axis.name}.loop")
        done = b.append_basic_block(f"{axis.name}.done")
        before = b.block
        if dynamic:
            assert not self.acc
            b.cbranch(b.icmp_signed("<", lo, hi), head, done)
        else:
            b.branch(head)
        b.position_at_end(head)
        counter = b.phi(I64T, axis.name)
        counter.add_incoming(lo, before)
        phis = {k: b.phi(v.type) for k, v in self.acc.items()}
        for k, phi in phis.items():
            phi.add_incoming(self.acc[k], before)
        self.acc = dict(phis)
        saved = self.frame.counters.get(axis), self.env.get(axis)
        self.frame.counters[axis], self.env[axis] = counter, Lin(0, ((axis, 1),))
        with self.frame.scope():
            body()
        following = b.add(counter, ir.Constant(I64T, 1), flags=("nsw",))
        counter.add_incoming(following, b.block)
        for k, phi in phis.items():
            phi.add_incoming(self.acc[k], b.block)
        b.cbranch(b.icmp_signed("<", following, hi), head, done)
        b.position_at_end(done)
        self.frame.counters.pop(axis)
        self.env.pop(axis)
        if saved[0] is not None and saved[1] is not None:
            self.frame.counters[axis], self.env[axis] = saved[0], saved[1]

    # -- vectors -------------------------------------------------------------------------------------------------------
    def _lane(self, axis: Axis, at: Lin, lanes: int, valid: int) -> None:
        """Points the vector loop `axis` at `lanes` values from `at` on."""
        self.lanes, self.valid = lanes, valid
        if self.ranges.extents.get(LANE) != valid:
            self.ranges.extents[LANE] = valid
            self._changed()
        self.env[axis] = at if lanes == 1 else at + Lin(0, ((LANE, 1),))

    def _tail(self, n: int) -> tuple[int, int]:
        """(lanes, valid lanes) of a remainder of n < full: masked where the target has masks, else a shorter vector."""
        return (self.full, n) if self.target.has_masks and n > 1 else (n, n)

    def _vector_loop(self, axis: Axis, extent: int, body: Callable[[], None]) -> None:
        n, tail = divmod(extent, self.full)
        trip = UNROLL_VECTORS if n > 2 * UNROLL_VECTORS else 0
        at = 0
        if trip:
            chunk = Axis(f"{axis.name}.v", n // trip)

            def block() -> None:
                for u in range(trip):
                    self._lane(axis, Lin(u * self.full, ((chunk, trip * self.full),)), self.full, self.full)
                    body()
            self._counted(chunk, ir.Constant(I64T, 0), ir.Constant(I64T, n // trip), block)
            at = n // trip * trip
        for u in range(at, n):
            self._lane(axis, Lin(u * self.full), self.full, self.full)
            body()
        if tail:
            self._lane(axis, Lin(n * self.full), *self._tail(tail))
            body()
        self.lanes = self.valid = 1

    # -- reductions ----------------------------------------------------------------------------------------------------
    def _reduction(self, st: Stage, k: int) -> None:
        inner = st.loops[k:]
        nodes = reduces(st.compute.body)
        tile = [x for x in inner if not x.reduce]
        split = [x for x in inner if x.reduce and x.split_sum]
        saved, self.acc = self.acc, {}
        self._points(st, [*tile, *split], lambda: self._start(nodes, tile, split))
        if all(self.ranges.extents.get(x.axis, x.axis.extent) for x in inner if x.reduce):
            self._update(st, inner, nodes, tile, split)
        sums, self.acc = self.acc, saved
        self._points(st, tile, lambda: self._finish(st, nodes, tile, split, sums))

    def _points(self, st: Stage, loops: list[Loop], visit: Callable[[], None]) -> None:
        """`visit` at every point of unrolled and vector loops, in order; `self.point` numbers it."""
        if not loops:
            visit()
            return
        axis = loops[0].axis
        for first, count in self._runs(st, axis):
            if loops[0].kind == "vector":
                for u in range(-(-count // self.full)):
                    rest = count - u * self.full
                    lanes = (self.full, self.full) if rest >= self.full else self._tail(rest)
                    if loops[0].reduce and not self.target.has_masks and rest < self.full:
                        lanes = (rest, rest)
                    self.point[axis] = u
                    self._lane(axis, Lin(u * self.full), *lanes)
                    self._points(st, loops[1:], visit)
                self.lanes = self.valid = 1
            else:
                for i in range(first, first + count):
                    self.point[axis], self.env[axis] = i, Lin(i)
                    self._points(st, loops[1:], visit)
        self.env.pop(axis, None)
        self.point.pop(axis, None)

    def _key(self, tile: list[Loop], split: list[Loop]) -> Key:
        return tuple(self.point[x.axis] for x in (*tile, *split))

    def _start(self, nodes: list[Reduce], tile: list[Loop], split: list[Loop]) -> None:
        vector_sum = any(x.kind == "vector" for x in split)
        lanes = self.full if vector_sum else self.lanes
        for r, node in enumerate(nodes):
            one = self.constant(_identity(node.kind, node.dtype), node.dtype)
            self.acc[(r, self._key(tile, split))] = self.splat(one, lanes) if lanes > 1 else one

    def _update(self, st: Stage, inner: tuple[Loop, ...], nodes: list[Reduce], tile: list[Loop], split: list[Loop]) -> None:
        if not inner:
            self.leaf = {}
            for r, node in enumerate(nodes):
                key = (r, self._key(tile, split))
                self.acc[key] = self._accumulate(node, self.acc[key], any(x.kind == "vector" for x in split))
            return
        loop, rest = inner[0], inner[1:]

        def body() -> None:
            self._update(st, rest, nodes, tile, split)
        if loop in tile or loop in split:
            self._points(st, [loop], body)
            return
        for first, count in self._runs(st, loop.axis):
            if loop.kind == "unroll" or count == 1:
                for i in range(first, first + count):
                    self.env[loop.axis] = Lin(i)
                    body()
            elif count:
                self._counted(loop.axis, ir.Constant(I64T, first), ir.Constant(I64T, first + count), body)
        self.env.pop(loop.axis, None)

    def _accumulate(self, node: Reduce, acc: ir.Value, vector_sum: bool) -> ir.Value:
        wide = acc.type.count if isinstance(acc.type, ir.VectorType) else 1
        body = node.body
        partial = vector_sum and (self.valid < wide)
        if node.kind == "sum" and isinstance(body, Call) and body.fn == "mul" and str(acc.type.element if wide > 1 else acc.type) in ("float", "double") \
                and body.dtype.bits >= 32 and not partial:
            x, y = (self._widen(self.value(a), wide) for a in body.args)
            name = f"llvm.fmuladd.{'v' + str(wide) if wide > 1 else ''}f{body.dtype.bits}"
            fn = self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(acc.type, [acc.type] * 3), name)
            return self.b.call(fn, [x, y, acc])
        v = self.value(body)
        if partial:
            v = self._pad_lanes(v, node, wide)
        return emit_call(self.b, _COMBINE[node.kind], [acc, self._widen(v, wide)], node.dtype, self.target)

    def _widen(self, v: ir.Value, lanes: int) -> ir.Value:
        return v if lanes == 1 or isinstance(v.type, ir.VectorType) else self.splat(v, lanes)

    def _pad_lanes(self, v: ir.Value, node: Reduce, wide: int) -> ir.Value:
        """A tail of a vector reduction, its missing lanes filled with the identity."""
        if self.lanes == 1 and not isinstance(v.type, ir.VectorType):
            fill = self.splat(self.constant(_identity(node.kind, node.dtype), node.dtype), wide)
            return self.b.insert_element(fill, v, ir.Constant(I32T, 0))
        v = self._widen(v, self.lanes)
        fill = self.splat(self.constant(_identity(node.kind, node.dtype), node.dtype), self.lanes)
        order = [ir.Constant(I32T, i if i < self.valid else self.lanes) for i in range(wide)]
        return self.b.shuffle_vector(v, fill, ir.Constant(ir.VectorType(I32T, wide), order))

    def _finish(self, st: Stage, nodes: list[Reduce], tile: list[Loop], split: list[Loop], sums: dict[tuple[int, Key], ir.Value]) -> None:
        here = tuple(self.point[x.axis] for x in tile)
        self.leaf = {}
        for r, node in enumerate(nodes):
            parts = [v for (i, key), v in sums.items() if i == r and key[:len(here)] == here]
            while len(parts) > 1:  # pairwise: shorter chains and smaller error than one by one
                joined = [emit_call(self.b, _COMBINE[node.kind], list(parts[i:i + 2]), node.dtype, self.target) for i in range(0, len(parts) - 1, 2)]
                parts = joined + (parts[-1:] if len(parts) % 2 else [])
            v = parts[0]
            if any(x.kind == "vector" for x in split):
                v = self._horizontal(node, v)
            self.leaf[id(node)] = v
        self.store(st.compute.buffer, tuple(Var(a) for a in st.compute.axes), self.value(st.compute.body))

    def _horizontal(self, node: Reduce, v: ir.Value) -> ir.Value:
        """All lanes of `v` combined by halving."""
        while isinstance(v.type, ir.VectorType) and v.type.count > 1:
            n = v.type.count
            half = n // 2
            undef = ir.Constant(v.type, ir.Undefined)

            def part(lo: int, count: int, v: ir.Value = v, undef: ir.Value = undef) -> ir.Value:
                mask = ir.Constant(ir.VectorType(I32T, count), [ir.Constant(I32T, lo + i) for i in range(count)])
                return self.b.shuffle_vector(v, undef, mask)
            if n == 2:
                a, c = (self.b.extract_element(v, ir.Constant(I32T, i)) for i in (0, 1))
            else:
                a, c = part(0, half), part(half, half)
            rest = self.b.extract_element(v, ir.Constant(I32T, n - 1)) if n % 2 else None
            v = emit_call(self.b, _COMBINE[node.kind], [a, c], node.dtype, self.target)
            if rest is not None:
                v = emit_call(self.b, _COMBINE[node.kind], [self._horizontal(node, v), rest], node.dtype, self.target)
        return v

    # -- microkernels --------------------------------------------------------------------------------------------------
    def _microkernel(self, st: Stage, k: int) -> bool:
        """Emits loops[k:] as a call of an internal function. False where the body depends on outer loops by more than
        addresses; then the nest is emitted in place."""
        sites = self._sites(st, k)
        if sites is None:
            return False
        pointers, guards = sites
        key = (id(st), tuple(self.ranges.extents.get(x.axis, x.axis.extent) for x in st.loops[k:]), tuple(guards.values()),
               tuple((r.parent.name, self.ranges.extents.get(r.parent)) for r in st.relations if isinstance(r, Split)))
        unique = list({id(p): p for p in pointers.values()}.values())
        if key not in self.micro:
            order = [next(i for i, u in enumerate(unique) if u is p) for p in pointers.values()]
            self.micro[key] = (self._micro_function(st, k, list(pointers), order, len(unique), guards), order)
        fn, order = self.micro[key]
        args: dict[int, ir.Value] = {}
        for at, p in zip(order, pointers.values(), strict=True):
            args.setdefault(at, p)
        self.b.call(fn, [args[i] for i in range(len(fn.args) - 1)] + [self.frame.ctx])
        return True

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

    def _inner_part(self, st: Stage, k: int, outer: dict[Axis, Lin], buffer, index) -> Lin:  # noqa: ANN001
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

    def _pointer_to(self, buffer, offset: Lin) -> ir.Value:  # noqa: ANN001
        base = self.frame.bases[buffer.name]
        at = self.lin_value(offset.scale(buffer.dtype.bytes))
        return self.b.gep(base, [at], inbounds=True, source_etype=ir.IntType(8))

    def _micro_function(self, st: Stage, k: int, sites: list[int], order: list[int], count: int, guards: dict[int, bool]) -> ir.Function:
        name = f"{self.symbol}_micro{len(self.micro)}"
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [PTR] * (count + 1)), name)
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
        self._nest(Stage(st.compute, st.loops, st.relations, st.shared, None), k)
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
