"""`Rescue` nodes: one cheap test where values are made, plain sums out of line where it fails.

    if any lane of v0*0 + v1*0 + … is NaN:          # the values of a register tile; cold
      for each k: slot[k] = vk
      for each k: rescue(&slot[k], axes…)           # a call each
      for each k: vk = slot[k]

    rescue(slot, axes…, buffers…):                  # one function for each node and kind of vector, never inlined
      bad = lanes of *slot that are not finite;  if none: return
      sum = 0;  for z0: { for z1: …: sum += body;  leave when sum is NaN in all bad lanes: it stays NaN }
      *slot = bad ? sum : *slot

So a tile costs a multiply-add for each value and one branch, and images full of NaN cost little more.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from ...ir.expr import Axis, Rescue, Var, loads, walk
from ..target import Target
from .builder import Builder
from .emit_expr import I1, I32T, I64T, PTR, ExprEmitter, Frame
from .linear import LANE, Lin
from .scalar import emit_cast, register_type

Places = Callable[[Callable[[int], None]], None]  # calls what it is given for each value, with the loops standing at its place


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a rescuer depends on besides its node: lanes of the vector, how many of them are real, and how far each axis
    that the plain sum reads moves from lane to lane."""

    lanes: int
    valid: int
    steps: tuple[tuple[Axis, int], ...]


class RescueEmitter(ExprEmitter):
    """`rescuers`: the functions made so far, by node and shape."""

    def __init__(self, module: ir.Module, target: Target, frame: Frame):
        super().__init__(module, target, frame)
        self.rescuers: dict[tuple[int, _Shape], ir.Function] = {}

    def rescue(self, e: Rescue) -> ir.Value:
        return self.rescued(e, [self.value(e.value)], lambda at: at(0))[0]

    def rescued(self, e: Rescue, values: list[ir.Value], places: Places) -> list[ir.Value]:
        """`values` of the node at some points of the loops, with plain sums where they are not finite."""
        if self.lanes > 1:
            values = self.same_shape(values, force=True)
        each = _slot_bytes(e)
        hot = self.b.block
        after: list[ir.Value] = []
        with self.b.if_then(self._any_bad(values), likely=False), self.frame.scope():
            saved, self.leaf = self.leaf, dict(self.leaf)
            room = self._room(len(values) * self.lanes * each)
            slots = [self._gep(room, ir.Constant(I64T, k * self.lanes * each)) if k else room for k in range(len(values))]
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
        element = t.element if isinstance(t, ir.VectorType) else t
        zero = ir.Constant(element, 0.0)
        zero = self.splat(zero, t.count) if isinstance(t, ir.VectorType) else zero
        lanes = f"v{t.count}" if isinstance(t, ir.VectorType) else ""
        name = f"llvm.fmuladd.{lanes}f{64 if isinstance(element, ir.DoubleType) else 32}"
        fma = self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(t, [t] * 3), name)
        total = self.b.fmul(values[0], zero)
        for v in values[1:]:
            total = self.b.call(fma, [v, zero, total])
        return _any(self.b, self.b.fcmp_unordered("uno", total, total), self.valid)

    def _room(self, nbytes: int) -> ir.Value:
        """Stack memory of this function for values on their way to a rescuer and back."""
        key = ("rescue", nbytes)
        if (room := self.frame.computed.get(key)) is None:
            with self.b.goto_entry_block():
                room = self.b.alloca(ir.ArrayType(ir.IntType(8), nbytes))
            room.align = 64
            room.type = PTR  # llvmlite would type it [n x i8]*
            self.frame.computed[key] = room  # for all of the function
        return room

    def _call(self, e: Rescue, slot: ir.Value) -> None:
        """Calls the node's function for the value in `slot`, where the loops stand now: for the whole vector where the axes
        that the plain sum reads move evenly from lane to lane, else for each lane."""
        own = sorted({n.axis for n in walk(e.body) if isinstance(n, Var)} - set(e.axes), key=lambda a: a.name)
        forms = [self.axis(a) for a in own]
        steps = [x.coefficient(LANE) for x in forms]
        bases = [self.lin_value(x.without({LANE})) for x in forms]
        if not any(isinstance(v.type, ir.VectorType) for v in bases):
            self._call_one(e, slot, _Shape(self.lanes, self.valid, tuple(zip(own, steps, strict=True))), bases)
            return
        values = [self.lin_value(x) for x in forms]
        for lane in range(self.valid):
            at = [self.b.extract_element(v, ir.Constant(I32T, lane)) if isinstance(v.type, ir.VectorType) else v for v in values]
            one = self._gep(slot, ir.Constant(I64T, lane * _slot_bytes(e)))
            self._call_one(e, one, _Shape(1, 1, tuple((a, 0) for a in own)), at)

    def _call_one(self, e: Rescue, slot: ir.Value, shape: _Shape, at: Sequence[ir.Value]) -> None:
        buffers = tuple(dict.fromkeys(x.buffer.name for x in loads(e.body)))
        key = (id(e), shape)
        if key not in self.rescuers:
            self.held.append(e)  # its id is a key
            self.rescuers[key] = self._function(e, shape, buffers)
        self.b.call(self.rescuers[key], [slot, *at, *(self.frame.bases[b] for b in buffers), self.frame.ctx])

    def _function(self, e: Rescue, shape: _Shape, buffers: tuple[str, ...]) -> ir.Function:
        kinds = [PTR, *[I64T] * len(shape.steps), *[PTR] * len(buffers), PTR]
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), f"{self.module.name}_rescue{len(self.rescuers)}")
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        b = Builder(fn.append_basic_block("entry"))
        slot, *rest = fn.args
        at, bases = rest[:len(shape.steps)], rest[len(shape.steps):-1]
        inner = ExprEmitter(self.module, self.target, Frame(b, dict(zip(buffers, bases, strict=True)), fn.args[-1]))
        inner.lanes, inner.valid = shape.lanes, shape.valid
        inner.ranges.extents[LANE] = shape.valid
        for (a, step), value in zip(shape.steps, at, strict=True):
            inner.frame.counters[a] = value
            inner.env[a] = Lin(0, ((a, 1), (LANE, step)) if step else ((a, 1),))
        t = register_type(e.dtype, shape.lanes) if shape.lanes > 1 else register_type(e.dtype)
        v = b.load(slot, typ=t, align=_slot_bytes(e))
        difference = b.fsub(v, v)  # 0 where finite
        bad = b.fcmp_unordered("uno", difference, difference)
        with b.if_then(_any(b, bad, shape.valid)):
            total = emit_cast(b, _sum(inner, e, bad), e.body.dtype, e.dtype, self.target)
            b.store(b.select(bad, total, v), slot, align=_slot_bytes(e))
        b.ret_void()
        return fn


def _slot_bytes(e: Rescue) -> int:
    """Bytes of a value in a register: half floats are held as f32."""
    return max(4, e.dtype.bytes)


def _any(b: ir.IRBuilder, mask: ir.Value, valid: int) -> ir.Value:
    """Whether any of the first `valid` lanes is set; what stands in the others may be undefined."""
    if not isinstance(mask.type, ir.VectorType):
        return mask
    lanes = mask.type.count
    if valid < lanes:
        mask = b.and_(mask, ir.Constant(mask.type, [ir.Constant(I1, int(k < valid)) for k in range(lanes)]))
    bits = ir.IntType(lanes)
    return b.icmp_unsigned("!=", b.bitcast(mask, bits), ir.Constant(bits, 0))


def _sum(emit: ExprEmitter, e: Rescue, bad: ir.Value) -> ir.Value:
    """The sum of the node's body over all points of its axes, one after the other. It may be left after an iteration of the
    first axis when it is NaN in all lanes that count, those in `bad`."""
    b, axes = emit.b, e.axes
    zero = emit.constant(0, e.body.dtype)
    zero = emit.splat(zero, emit.lanes) if emit.lanes > 1 else zero
    if any(a.extent == 0 for a in axes):
        return zero
    done = b.append_basic_block("sum")
    ends: list[tuple[ir.Value, ir.Block]] = []

    def loop(k: int, acc: ir.Value) -> ir.Value:
        if k == len(axes):
            emit.leaf = {}
            (v,) = emit.same_shape([emit.value(e.body)], force=emit.lanes > 1)
            return b.fadd(acc, v)
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
        if k == 0:
            further = b.append_basic_block("further")
            ends.append((total, b.block))
            numbers = b.and_(bad, b.fcmp_ordered("ord", total, total))
            b.cbranch(_any(b, numbers, emit.valid), further, done)
            b.position_at_end(further)
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
