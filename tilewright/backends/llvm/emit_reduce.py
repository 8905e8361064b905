"""Reductions: tiles of accumulators in registers, vector sums joined at the end, epilogues.

    acc[m,n] = 0
    for k:                                  # a counted loop; accumulators are its phis
      b[n] = load vector B[k, n]            # loads are shared across the unrolled tile
      a    = load scalar A[m, k]
      acc[m,n] = fma(a, b[n], acc[m,n])
    C[m,n] = epilogue(acc[m,n])
"""
from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from ...ir.expr import Axis, Call, Reduce, Rescue, Table, Var, identity, reduces, walk
from ...ir.kinds import EXPENSIVE
from ...ir.loops import Loop, Split, Stage
from ...ir.types import F32, F64
from ..target import Target
from .emit_expr import I32T, I64T, PTR, Frame
from .emit_loops import Key, LoopEmitter
from .linear import Lin
from .scalar import emit_call

_COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}


LINE = 64          # bytes of a cache line
LONG_EPILOGUE = 8  # functions like erf behind the sums of a tile: from here on, as a loop, they are faster (and sooner compiled)


@dataclass(frozen=True, slots=True)
class Prefetch:
    """`lines` cache lines are touched in each innermost step of the serial reduce loops, at `pointer` + sum of axis * bytes."""

    pointer: ir.Value
    lines: int
    strides: tuple[tuple[Axis, int], ...]

    def key(self) -> tuple[int, tuple[tuple[Axis, int], ...]]:
        """What the microkernel's code depends on."""
        return self.lines, self.strides


class ReductionEmitter(LoopEmitter):
    """`point`: where the unrolled and vector loops of the tile stand, by axis."""

    def __init__(self, module: ir.Module, target: Target, frame: Frame):
        super().__init__(module, target, frame)
        self.point: dict[Axis, int] = {}
        self.prefetch: tuple[Prefetch, ...] = ()

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
        totals = self._rescued_tile(st, nodes, tile, split, sums)
        if self._long_epilogue(st, tile, sums):
            self._finish_rows(st, nodes, tile, split, sums)
        else:
            self._points(st, tile, lambda: self._finish(st, nodes, tile, split, sums, totals))

    def _long_epilogue(self, st: Stage, tile: list[Loop], sums: dict[tuple[int, Key], ir.Value]) -> bool:
        """Whether straight-line code for every point of a microkernel's tile would be too long for the core's decoder and its
        cache of decoded instructions."""
        if not self.frame.sites or not tile or tile[0].kind != "unroll" or any(isinstance(n, Rescue) for n in walk(st.compute.body)) \
                or any(isinstance(r, Split) and r.outer == tile[0].axis for r in st.relations):
            return False
        inside = {id(n) for x in reduces(st.compute.body) for n in walk(x.body)}
        long = sum(isinstance(n, Call) and n.fn in EXPENSIVE for n in walk(st.compute.body) if id(n) not in inside)
        return long * len(sums) >= LONG_EPILOGUE

    def _finish_rows(self, st: Stage, nodes: list[Reduce], tile: list[Loop], split: list[Loop],
                     sums: dict[tuple[int, Key], ir.Value]) -> None:
        """The epilogue as a loop over the outermost axis of the tile, whose sums wait in memory:

            for v in vectors of a row, for i: totals[v][i] = sum
            for i { for v: C[i, v] = epilogue(totals[v][i]) }
        """
        axis = tile[0].axis
        count = self.ranges.extents.get(axis, axis.extent)
        totals: list[ir.Value] = []
        self._points(st, tile, lambda: totals.extend(self._total(r, n, tile, split, sums) for r, n in enumerate(nodes)))
        wide = len(totals) // count
        tables = [self._saved(totals[v::wide]) for v in range(wide)]

        def row() -> None:
            number = itertools.count()

            def point() -> None:
                self.leaf = {id(n): self._entry(*tables[next(number)], self.frame.counters[axis]) for n in nodes}
                self.store(st.compute.buffer, tuple(Var(a) for a in st.compute.axes), self.value(st.compute.body))
            self._points(st, tile[1:], point)
        self.ranges.bounds[axis] = (0, count - 1)
        self._changed()
        self._counted(axis, ir.Constant(I64T, 0), ir.Constant(I64T, count), row)
        self.ranges.bounds.pop(axis)
        self._changed()

    def _saved(self, values: list[ir.Value]) -> tuple[ir.Value, ir.Type]:
        """(address, type of an element) of `values` in memory of the function."""
        kind = values[0].type
        with self.b.goto_entry_block():
            base = self.b.alloca(ir.ArrayType(kind, len(values)))
        base.align = LINE
        base.type = PTR  # llvmlite would type it [n x ...]*
        for i, v in enumerate(values):
            self.b.store(v, self.b.gep(base, [ir.Constant(I64T, i)], inbounds=True, source_etype=kind))
        return base, kind

    def _entry(self, base: ir.Value, kind: ir.Type, at: ir.Value) -> ir.Value:
        return self.b.load(self.b.gep(base, [at], inbounds=True, source_etype=kind), typ=kind)

    def _rescued_tile(self, st: Stage, nodes: list[Reduce], tile: list[Loop], split: list[Loop],
                      sums: dict[tuple[int, Key], ir.Value]) -> dict[tuple[int, Key], ir.Value]:
        """Where the body rescues its sum: the rescued sums of all points, by (node, point), behind one test for the tile."""
        found = [n for n in walk(st.compute.body, rare=False) if isinstance(n, Rescue) and n.value in nodes]
        if not found or len(nodes) != 1:
            return {}
        (node, e), keys, values, lanes = (nodes[0], found[0]), [], [], []

        def take() -> None:
            keys.append((id(e), tuple(self.point[x.axis] for x in tile)))
            values.append(self._total(0, node, tile, split, sums))
            lanes.append((self.lanes, self.valid))
        self._points(st, tile, take)
        if len(set(lanes)) > 1:  # a ragged last vector: each value for itself
            return {}

        def places(call: Callable[[int], None]) -> None:
            number = itertools.count()
            self._points(st, tile, lambda: call(next(number)))
        self.lanes, self.valid = lanes[0]
        rescued = self.rescued(e, values, places)
        self.lanes = self.valid = 1
        return dict(zip(keys, rescued, strict=True))

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
            one = self.constant(identity(node.kind, node.dtype), node.dtype)
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
                    self._step(body)
            elif count:
                fetch = self.prefetch if not any(x.kind == "serial" for x in rest) else ()

                def step(fetch: tuple[Prefetch, ...] = fetch) -> None:
                    for p in fetch:
                        self._prefetch(p)
                    body()
                self._counted(loop.axis, ir.Constant(I64T, first), ir.Constant(I64T, first + count), step)
        self.env.pop(loop.axis, None)

    def _step(self, body: Callable[[], None]) -> None:
        """One step of an unrolled reduction. A microkernel's steps share no loads, and LLVM must not move loads from one
        into another: values loaded early stand in registers that the tile needs. The fence is for the compiler alone and
        becomes no instruction. Without fused multiply-adds, products need registers too, which are found better unfenced."""
        if not self.frame.sites:
            body()
            return
        with self.frame.scope():
            body()
        if self.target.has_fma:
            self.b.fence("acq_rel", "singlethread")

    def _prefetch(self, p: Prefetch) -> None:
        """Touches the next lines of `p`, where the serial reduce loops stand."""
        at = Lin()
        for axis, step in p.strides:
            at = at + self.env[axis].scale(step)
        fn = self.module.globals.get("llvm.prefetch.p0") or ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [PTR, I32T, I32T, I32T]), "llvm.prefetch.p0")
        base = self._gep(p.pointer, self.lin_value(at))
        for i in range(p.lines):
            ptr = self._gep(base, ir.Constant(I64T, i * LINE)) if i else base
            self.b.call(fn, [ptr, ir.Constant(I32T, 0), ir.Constant(I32T, 2), ir.Constant(I32T, 1)])  # read, into the second level

    def _accumulate(self, node: Reduce, acc: ir.Value, vector_sum: bool) -> ir.Value:
        wide = acc.type.count if isinstance(acc.type, ir.VectorType) else 1
        body = node.body
        partial = vector_sum and (self.valid < wide)
        fused = node.kind == "sum" and isinstance(body, Call) and body.fn == "mul" and body.dtype in (F32, F64)
        if fused and not partial:
            assert isinstance(body, Call)
            if (short := self._constant_product(body, acc, wide)) is not None:
                return short
            x, y = (self._widen(self.value(a), wide) for a in body.args)
            name = f"llvm.fmuladd.{'v' + str(wide) if wide > 1 else ''}f{body.dtype.bits}"
            fn = self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(acc.type, [acc.type] * 3), name)
            return self.b.call(fn, [x, y, acc])
        v = self.value(body)
        if partial:
            v = self._pad_lanes(v, node, wide)
        return emit_call(self.b, _COMBINE[node.kind], [acc, self._widen(v, wide)], node.dtype, self.target)

    def _constant_product(self, body: Call, acc: ir.Value, wide: int) -> ir.Value | None:
        """acc + 0*x, acc + 1*x and acc - 1*x without the product; None for other factors."""
        for factor, x in (body.args, body.args[::-1]):
            known = self.factor(factor) if isinstance(factor, Table) else None
            if known == 0:
                return acc
            if known in (1, -1):
                add = self.b.fadd if known == 1 else self.b.fsub
                v = self._widen(self.value(x), wide)
                return v if known == 1 and self._is_zero(acc) else add(acc, v)
        return None

    @staticmethod
    def _is_zero(v: ir.Value) -> bool:
        return isinstance(v, ir.Constant) and (v.constant == 0 or (isinstance(v.constant, list) and all(
            isinstance(c, ir.Constant) and c.constant == 0 for c in v.constant)))

    def _widen(self, v: ir.Value, lanes: int) -> ir.Value:
        return v if lanes == 1 or isinstance(v.type, ir.VectorType) else self.splat(v, lanes)

    def _pad_lanes(self, v: ir.Value, node: Reduce, wide: int) -> ir.Value:
        """A tail of a vector reduction, its missing lanes filled with the identity."""
        if self.lanes == 1 and not isinstance(v.type, ir.VectorType):
            fill = self.splat(self.constant(identity(node.kind, node.dtype), node.dtype), wide)
            return self.b.insert_element(fill, v, ir.Constant(I32T, 0))
        v = self._widen(v, self.lanes)
        fill = self.splat(self.constant(identity(node.kind, node.dtype), node.dtype), self.lanes)
        order = [ir.Constant(I32T, i if i < self.valid else self.lanes) for i in range(wide)]
        return self.b.shuffle_vector(v, fill, ir.Constant(ir.VectorType(I32T, wide), order))

    def _finish(self, st: Stage, nodes: list[Reduce], tile: list[Loop], split: list[Loop], sums: dict[tuple[int, Key], ir.Value],
                totals: dict[tuple[int, Key], ir.Value]) -> None:
        here = tuple(self.point[x.axis] for x in tile)
        self.leaf = {e: v for (e, at), v in totals.items() if at == here}
        for r, node in enumerate(nodes):
            self.leaf[id(node)] = self._total(r, node, tile, split, sums)
        self.store(st.compute.buffer, tuple(Var(a) for a in st.compute.axes), self.value(st.compute.body))

    def _total(self, r: int, node: Reduce, tile: list[Loop], split: list[Loop], sums: dict[tuple[int, Key], ir.Value]) -> ir.Value:
        """The r-th reduction at the point where the tile's loops stand: its partial sums joined."""
        here = tuple(self.point[x.axis] for x in tile)
        if split:
            parts = [v for (i, key), v in sums.items() if i == r and key[:len(here)] == here]
        else:
            parts = [sums[r, here]] if (r, here) in sums else []
        while len(parts) > 1:  # pairwise: shorter chains and smaller error than one by one
            joined = [emit_call(self.b, _COMBINE[node.kind], list(parts[i:i + 2]), node.dtype, self.target)
                      for i in range(0, len(parts) - 1, 2)]
            parts = joined + (parts[-1:] if len(parts) % 2 else [])
        v = parts[0] if parts else self.constant(identity(node.kind, node.dtype), node.dtype)  # none: a loop of no iterations
        return self._horizontal(node, v) if any(x.kind == "vector" for x in split) else v

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
