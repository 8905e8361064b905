"""`Rescue` nodes: one cheap test where values are made, plain sums out of line where it fails.

    if any lane of v0*0 + v1*0 + … is NaN:          # the values of a register tile; cold
      for each k: slot[k] = vk
      for each k: rescue(&slot[k], lanes, axes…)    # a call each
      for each k: vk = slot[k]

    rescue(slot, lanes, axes…, buffers…):           # one function for each node, never inlined
      for lane: if slot[lane] is not finite:
        sum = 0;  for z0: for z1: …: sum += body;  leave all loops when sum is NaN: it stays NaN
        slot[lane] = sum

So a tile costs a product and an addition for each value and one branch, and images full of NaN cost little more.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from ...ir.expr import Axis, Expr, Rescue, Var, loads, walk
from ..target import Target
from .emit_expr import I64T, PTR, ExprEmitter, Frame
from .linear import Lin
from .scalar import emit_cast, register_type

Places = Callable[[Callable[[int], None]], None]  # calls what it is given for each value, with the loops standing at its place


@dataclass(frozen=True, slots=True)
class _Rescuer:
    """The function of one node. `axes`: what it is told; those in `lanewise` as pointers to one number for each lane."""

    fn: ir.Function
    axes: tuple[Axis, ...]
    lanewise: frozenset[Axis]
    buffers: tuple[str, ...]


class RescueEmitter(ExprEmitter):
    """`rescuers`: the functions made so far."""

    def __init__(self, module: ir.Module, target: Target, frame: Frame):
        super().__init__(module, target, frame)
        self.rescuers: dict[object, _Rescuer] = {}

    def _rescue(self, e: Rescue) -> ir.Value:
        return self.rescued(e, [self.value(e.value)], lambda at: at(0))[0]

    def rescued(self, e: Rescue, values: list[ir.Value], places: Places) -> list[ir.Value]:
        """`values` of the node at some points of the loops, with plain sums where they are not finite."""
        if self.lanes > 1:
            values = self.same_shape(values, force=True)
        each = _slot_bytes(e)
        size = max(v.type.count if isinstance(v.type, ir.VectorType) else 1 for v in values) * each
        hot = self.b.block
        after: list[ir.Value] = []
        with self.b.if_then(self._any_bad(values), likely=False), self.frame.scope():
            saved, self.leaf = self.leaf, dict(self.leaf)
            room = self._room("values", len(values) * size)
            slots = [self._gep(room, ir.Constant(I64T, k * size)) if k else room for k in range(len(values))]
            for v, slot in zip(values, slots, strict=True):
                self.b.store(v, slot, align=each)
            places(lambda k: self._call(e, slots[k]))
            after = [self.b.load(slot, typ=v.type, align=each) for v, slot in zip(values, slots, strict=True)]
            cold = self.b.block
            self.leaf = saved
        out: list[ir.Value] = []
        for v, new in zip(values, after, strict=True):
            phi = self.b.phi(v.type)
            phi.add_incoming(v, hot)
            phi.add_incoming(new, cold)
            out.append(phi)
        return out

    def _any_bad(self, values: list[ir.Value]) -> ir.Value:
        """Whether any lane of any value is infinite or NaN: their products with 0 are NaN, and so is a sum with one."""
        t = values[0].type
        lanes = t.count if isinstance(t, ir.VectorType) else 1
        element = t.element if isinstance(t, ir.VectorType) else t
        zero = ir.Constant(element, 0.0)
        zero = self.splat(zero, lanes) if lanes > 1 else zero
        total = self.b.fmul(values[0], zero)
        name = f"llvm.fmuladd.{f'v{lanes}' if lanes > 1 else ''}f{'64' if isinstance(element, ir.DoubleType) else '32'}"
        fma = self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(t, [t] * 3), name)
        for v in values[1:]:
            total = self.b.call(fma, [v, zero, total])
        bad = self.b.fcmp_unordered("uno", total, total)
        if lanes == 1:
            return bad
        if self.valid < self.lanes:  # what stands in the other lanes may be undefined
            bad = self.mask(bad)
            assert bad is not None
        bits = ir.IntType(lanes)
        return self.b.icmp_unsigned("!=", self.b.bitcast(bad, bits), ir.Constant(bits, 0))

    def _room(self, what: str, nbytes: int) -> ir.Value:
        """Stack memory of this function for what its rescuers are given, and give back."""
        key = ("rescue", what, nbytes)
        if (room := self.frame.scopes[0].get(key)) is None:
            with self.b.goto_entry_block():
                room = self.b.alloca(ir.ArrayType(ir.IntType(8), nbytes))
            room.align = 64
            room.type = PTR  # llvmlite would type it [n x i8]*
            self.frame.scopes[0][key] = room
        return room

    def _call(self, e: Rescue, slot: ir.Value) -> None:
        """Calls the node's function for the value in `slot`, where the loops stand now."""
        own = {n.axis for n in walk(e.body) if isinstance(n, Var)} - set(e.axes)
        at = {a: self.lin_value(self.axis(a)) for a in sorted(own, key=lambda a: a.name)}
        lanewise = frozenset(a for a, v in at.items() if isinstance(v.type, ir.VectorType))
        key = (id(e), lanewise)
        if key not in self.rescuers:
            self.held.append(e)
            self.rescuers[key] = self._function(e, tuple(at), lanewise)
        r = self.rescuers[key]
        args: list[ir.Value] = []
        for k, a in enumerate(r.axes):
            v = at[a]
            if a in lanewise:
                room = self._room(f"axis {k}", self.lanes * 8)
                self.b.store(v, room, align=8)
                v = room
            args.append(v)
        self.b.call(r.fn, [slot, ir.Constant(I64T, self.valid), *args, *(self.frame.bases[b] for b in r.buffers), self.frame.ctx])

    def _function(self, e: Rescue, axes: tuple[Axis, ...], lanewise: frozenset[Axis]) -> _Rescuer:
        buffers = tuple(dict.fromkeys(x.buffer.name for x in loads(e.body)))
        kinds = [PTR if a in lanewise else I64T for a in axes]
        name = f"{self.module.name}_rescue{len(self.rescuers)}"
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [PTR, I64T, *kinds, *[PTR] * len(buffers), PTR]), name)
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        slots, count, *rest = fn.args
        b = ir.IRBuilder(fn.append_basic_block("entry"))
        head, test, plain, following, done = (fn.append_basic_block(x) for x in ("lane", "test", "plain", "next", "done"))
        before = b.block
        b.branch(head)
        b.position_at_end(head)
        lane = b.phi(I64T, "lane")
        lane.add_incoming(ir.Constant(I64T, 0), before)
        b.cbranch(b.icmp_signed("<", lane, count), test, done)
        b.position_at_end(test)
        t = register_type(e.dtype)
        each = _slot_bytes(e)
        slot = b.gep(slots, [b.mul(lane, ir.Constant(I64T, each))], inbounds=True, source_etype=ir.IntType(8))
        v = b.load(slot, typ=t, align=each)
        rest_of = b.fsub(v, v)
        b.cbranch(b.fcmp_unordered("uno", rest_of, rest_of), plain, following)
        b.position_at_end(plain)
        inner = ExprEmitter(self.module, self.target, Frame(b, dict(zip(buffers, rest[len(axes):], strict=False)), fn.args[-1]))
        for a, arg in zip(axes, rest, strict=False):
            inner.env[a] = Lin(0, ((a, 1),))
            inner.frame.counters[a] = arg if a not in lanewise else b.load(
                b.gep(arg, [b.mul(lane, ir.Constant(I64T, 8))], inbounds=True, source_etype=ir.IntType(8)), typ=I64T, align=8)
        b.store(emit_cast(b, _sum(inner, e.axes, e.body), e.body.dtype, e.dtype, self.target), slot, align=each)
        b.branch(following)
        b.position_at_end(following)
        lane.add_incoming(b.add(lane, ir.Constant(I64T, 1)), b.block)
        b.branch(head)
        b.position_at_end(done)
        b.ret_void()
        return _Rescuer(fn, axes, lanewise, buffers)


def _slot_bytes(e: Rescue) -> int:
    """Bytes of a value in a register: half floats are held as f32."""
    return max(4, e.dtype.bytes)


def _sum(emit: ExprEmitter, axes: tuple[Axis, ...], body: Expr) -> ir.Value:
    """The sum of `body` over all points of `axes`, one after the other, left as soon as it is NaN."""
    b = emit.b
    zero = emit.constant(0, body.dtype)
    if any(a.extent == 0 for a in axes):
        return zero
    done = b.append_basic_block("sum")
    ends: list[tuple[ir.Value, ir.Block]] = []

    def loop(k: int, acc: ir.Value) -> ir.Value:
        if k == len(axes):
            emit.leaf = {}
            total = b.fadd(acc, emit.value(body))
            further = b.append_basic_block("further")
            ends.append((total, b.block))
            b.cbranch(b.fcmp_unordered("uno", total, total), done, further)
            b.position_at_end(further)
            return total
        axis = axes[k]
        before, head, out = b.block, b.append_basic_block(axis.name), b.append_basic_block(f"{axis.name}.done")
        b.branch(head)
        b.position_at_end(head)
        counter, carried = b.phi(I64T, axis.name), b.phi(acc.type)
        counter.add_incoming(ir.Constant(I64T, 0), before)
        carried.add_incoming(acc, before)
        emit.frame.counters[axis], emit.env[axis] = counter, Lin(0, ((axis, 1),))
        with emit.frame.scope():
            total = loop(k + 1, carried)
        following = b.add(counter, ir.Constant(I64T, 1))
        counter.add_incoming(following, b.block)
        carried.add_incoming(total, b.block)
        b.cbranch(b.icmp_signed("<", following, ir.Constant(I64T, axis.extent)), head, out)
        b.position_at_end(out)
        return total

    with emit.frame.scope():
        ends.append((loop(0, zero), b.block))
    b.branch(done)
    b.position_at_end(done)
    phi = b.phi(zero.type)
    for v, block in ends:
        phi.add_incoming(v, block)
    return phi
