"""Loops of a nest: counted loops with phis, peeled runs of ragged splits, vector loops with tails."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llvmlite import ir

from ...ir.expr import Axis
from ...ir.loops import Relation, Split, Stage
from ..target import Target
from .emit_expr import I64T, Block, Frame
from .emit_rescue import RescueEmitter
from .linear import LANE, Lin

UNROLL_VECTORS = 4    # vectors a trip in long vector loops without reductions
SHORT = 4             # lanes of the shortest vectors that take the place of masked ones

Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A parallel loop in the range that threads divide: `size` is the distance between its neighbouring iterations, `inside`
    the largest number that the parallel loops inside it add up to."""

    size: int
    inside: int


class LoopEmitter(RescueEmitter):
    """`acc`: accumulators in flight, by (reduction, point of the tile); every counted loop carries them as phis.
    `begin`, `end`: the caller's part of the parallel loops' iterations. `full`: lanes of the present stage's vectors."""

    begin: ir.Value
    end: ir.Value

    def __init__(self, module: ir.Module, target: Target, frame: Frame):
        super().__init__(module, target, frame)
        self.acc: dict[tuple[int, Key], ir.Value] = {}
        self.full = 1
        self._found_splits: dict[tuple[int, Axis], tuple[tuple[Relation, ...], list[Split]]] = {}

    def _runs(self, st: Stage, axis: Axis, sharing: tuple[Stage, ...] = ()) -> Iterator[tuple[int, int]]:
        """(first, count) of each run of `axis` with one inner extent; the splits' blocks are set meanwhile. A loop that
        stages share may be the outer part of a split in several of them, or in some: they all see the same runs."""
        splits = self._splits(st.relations, axis)
        for s in sharing:
            splits = list(dict.fromkeys([*splits, *self._splits(s.relations, axis)]))
        if not splits:
            yield 0, self.ranges.extents.get(axis, axis.extent)
            return
        saved = [(self.blocks.get(r.parent), self.ranges.extents.get(r.inner)) for r in splits]
        runs = splits[0].segments(self.ranges.extents.get(splits[0].parent))
        assert all(r.segments(self.ranges.extents.get(r.parent)) == runs for r in splits), f"stages split {axis.name} differently"
        for first, count, inner, base in runs:
            for r in splits:
                self.blocks[r.parent] = Block(r, first, inner, base)
                self.ranges.extents[r.inner] = inner
            self._changed()
            yield first, count
        for r, (block, extent) in zip(splits, saved, strict=True):
            self.blocks.pop(r.parent, None)
            self.ranges.extents.pop(r.inner, None)
            if block is not None:
                self.blocks[r.parent] = block
            if extent is not None:
                self.ranges.extents[r.inner] = extent
        self._changed()

    def _splits(self, relations: tuple[Relation, ...], axis: Axis) -> list[Split]:
        """Those whose outer part is `axis`, found once for each: unrolled code asks at every point."""
        key = id(relations), axis
        found = self._found_splits.get(key)
        if found is None:
            splits = dict.fromkeys(r for r in relations if isinstance(r, Split) and r.outer == axis)
            found = self._found_splits[key] = relations, list(splits)
        return found[1]

    def _changed(self) -> None:
        """Remembered offsets no longer hold: blocks or ranges are different now."""
        self.epoch += 1
        self.offsets.clear()
        self.deps.clear()
        self.asked.clear()
        self.forms.clear()

    def _part(self, axis: Axis, first: int, count: int, step: Step, body: Callable[[], None]) -> None:
        """The iterations of [first, first + count) that have some in the caller's [begin, end), which counts those of all
        parallel loops:

            for i in [max(ceil((begin - inside) / size), first), min(ceil(end / size), first + count)):
              body with [begin, end) = [begin - i * size, end - i * size)
        """
        begin, end = self.begin, self.end
        lo = self._max(self._ratio(self.b.sub(begin, ir.Constant(I64T, step.inside)), step.size), first)
        hi = self._min(self._ratio(end, step.size), first + count)

        def run() -> None:
            passed = self.b.mul(self.lin_value(self.env[axis]), ir.Constant(I64T, step.size))
            self.begin, self.end = self.b.sub(begin, passed), self.b.sub(end, passed)
            body()
            self.begin, self.end = begin, end
        if count == 1:
            with self.b.if_then(self.b.icmp_signed("<", lo, hi)), self.frame.scope():
                self.env[axis] = Lin(first)
                run()
        elif count:
            self.ranges.bounds[axis] = (first, first + count - 1)
            self._changed()
            self._counted(axis, lo, hi, run, dynamic=True)
            self.ranges.bounds.pop(axis)

    def _ratio(self, v: ir.Value, by: int) -> ir.Value:
        """ceil(max(v, 0) / by)."""
        if by == 1:
            return v
        return self.b.udiv(self.b.add(self._max(v, 0), ir.Constant(I64T, by - 1)), ir.Constant(I64T, by))

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
        at = n * self.full
        for lanes, valid in self._pieces(tail):
            self._lane(axis, Lin(at), lanes, valid)
            body()
            at += valid
        self.lanes = self.valid = 1

    def _pieces(self, n: int) -> list[tuple[int, int]]:
        """(lanes, valid lanes) of the vectors of a map's remainder: one, or two short ones in place of a masked one. Where a kernel
        writes over its input, the next row's loads would wait for the masked store, whose hidden lanes they read."""
        if not self.target.has_masks or n % SHORT or n.bit_count() > 2:
            return [self._tail(n)] if n else []
        low = n & -n
        return [(k, k) for k in (n - low, low) if k]
