"""Scalar expressions → LLVM values, one leaf of a loop nest at a time.

`ExprEmitter` knows where each loop variable stands (`env`), turns index expressions into linear forms, loads and stores
through them, and evaluates the rest with `scalar.py`. A value is a scalar while it is the same in all lanes and a
vector otherwise, so that `x[i,k]` in a vectorised j-loop is one scalar load that the FMA broadcasts.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from llvmlite import ir

from ...ir.expr import Axis, Buffer, Call, Cast, Checked, Const, Expr, Load, Reduce, Rescue, Table, Var, children, walk
from ...ir.loops import Fuse, Split
from ...ir.types import BOOL, I64, DType
from ..target import Target
from .linear import LANE, Atom, Form, Lin, Opaque, Ranges
from .scalar import emit_call, emit_cast, load_convert, memory_type, register_type, store_convert

I1, I8T, I32T, I64T, PTR = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.PointerType()


@dataclass
class Frame:
    """One LLVM function under construction: its builder, base pointers, loop counters, and what has been computed.

    `scopes` mirrors dominance: what was computed in an enclosing scope may be used again inside it. Each lists what was added to
    `computed` in it and what that hid, so that asking takes one look, however deep the loops are.
    `sites` (microkernels): id of a load -> the argument that already includes what the outer loops add."""

    builder: ir.IRBuilder
    bases: dict[str, ir.Value]
    ctx: ir.Value
    counters: dict[Axis, ir.Value] = field(default_factory=dict)
    computed: dict[object, ir.Value] = field(default_factory=dict)
    scopes: list[list[tuple[object, ir.Value | None]]] = field(default_factory=lambda: [[]])
    sites: dict[int, ir.Value] = field(default_factory=dict)
    guards: dict[int, bool] = field(default_factory=dict)  # microkernels: conditions decided outside

    def seen(self, key: object) -> ir.Value | None:
        return self.computed.get(key)

    def remember(self, key: object, value: ir.Value) -> ir.Value:
        self.scopes[-1].append((key, self.computed.get(key)))
        self.computed[key] = value
        return value

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.scopes.append([])
        yield
        for key, hidden in reversed(self.scopes.pop()):
            if hidden is None:
                del self.computed[key]
            else:
                self.computed[key] = hidden


@dataclass(frozen=True, slots=True)
class Block:
    """The run of a ragged split that the nest is in: parent = base + (outer - first) * inner_extent + inner."""

    split: Split
    first: int
    inner_extent: int
    base: int


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """A local buffer holds only what one iteration of the loops in `shared` needs; `strides` of that part."""

    strides: tuple[int, ...]
    shared: frozenset[Axis]


class ExprEmitter:
    def __init__(self, module: ir.Module, target: Target, frame: Frame):
        self.module, self.target, self.frame = module, target, frame
        self.env: dict[Axis, Lin] = {}
        self.ranges = Ranges()
        self.blocks: dict[Axis, Block] = {}
        self.fuses: dict[Axis, Fuse] = {}
        self.lanes = 1                      # lanes of the vector under construction
        self.valid = 1                      # of those, how many are real; fewer means a masked tail
        self.leaf: dict[int, ir.Value] = {}  # values of this leaf, by id of the expression
        self.locals: dict[str, LocalStorage] = {}
        self.tile: tuple[Axis, int] | None = None  # the unrolled loop just outside the vector loop, and its extent
        self.epoch = 0                       # counts changes of blocks and ranges: offsets are remembered within one
        self.deps: dict[object, tuple[Axis, ...]] = {}
        self.offsets: dict[object, Lin] = {}
        self.asked: set[object] = set()      # offsets that were wanted in this epoch
        self.forms: dict[object, Form | None] = {}  # those wanted at several points of the loops
        self.held: list[Expr] = []           # keeps the expressions whose ids are keys above alive
        self.constants: dict[object, tuple[ir.Constant, ir.Constant]] = {}  # one object each: making and printing them takes long

    @property
    def b(self) -> ir.IRBuilder:
        return self.frame.builder

    # -- index arithmetic ----------------------------------------------------------------------------------------------
    def axis(self, a: Axis, local: frozenset[Axis] = frozenset()) -> Lin:
        """Where axis `a` stands; the loops in `local` count as zero."""
        if (at := self.env.get(a)) is not None:
            return Lin() if a in local else at
        if (k := self.blocks.get(a)) is not None:
            outer, inner = self.axis(k.split.outer, local), self.axis(k.split.inner, local)
            if k.split.outer in local:
                return inner
            return outer.shift(-k.first).scale(k.inner_extent) + inner.shift(k.base)
        f = self.fuses[a]
        fused = self.axis(f.fused, local)
        return self.ranges.floordiv(fused, f.inner.extent) if a == f.outer else self.ranges.mod(fused, f.inner.extent)

    def lin(self, e: Expr, local: frozenset[Axis] = frozenset()) -> Lin:
        """The linear form of an integer expression; what is not linear becomes an opaque atom."""
        match e:
            case Const(v, _):
                return Lin(int(v))
            case Var(a, _):
                return self.axis(a, local)
            case Call("add", (x, y), d) if d == I64:
                return self.lin(x, local) + self.lin(y, local)
            case Call("sub", (x, y), d) if d == I64:
                return self.lin(x, local) + self.lin(y, local).scale(-1)
            case Call("neg", (x,), d) if d == I64:
                return self.lin(x, local).scale(-1)
            case Call("mul", (x, y), d) if d == I64:
                a, b = self.lin(x, local), self.lin(y, local)
                if a.is_const or b.is_const:
                    return b.scale(a.const) if a.is_const else a.scale(b.const)
            case Call("floordiv" | "mod" as fn, (x, y), d) if d == I64:
                by = self.lin(y, local)
                if by.is_const and by.const > 0:
                    f = self.ranges.floordiv if fn == "floordiv" else self.ranges.mod
                    return f(self.lin(x, local), by.const)
        if isinstance(e, Checked):
            return Lin(0, ((Opaque("expr", expr=e, lo=0, hi=max(e.extent - 1, 0)), 1),))
        return Lin(0, ((Opaque("expr", expr=e), 1),))

    def known(self, e: Expr) -> bool | None:
        """A condition's truth where the loop ranges decide it."""
        match e:
            case Const(v, _):
                return bool(v)
            case Call("and" | "or" as fn, (x, y), d) if d == BOOL:
                a, b = self.known(x), self.known(y)
                stop = fn == "or"
                return stop if stop in (a, b) else None if None in (a, b) else not stop
            case Call("not", (x,), d) if d == BOOL:
                a = self.known(x)
                return None if a is None else not a
            case Call("lt" | "le" | "gt" | "ge" | "eq" | "ne" as fn, (x, y), _) if x.dtype == I64:
                return self.ranges.compare(fn, self.lin(x), self.lin(y))
        return None

    def factor(self, e: Expr) -> float | None:
        """The value of a constant, or of a table's entry that the loops decide; None for anything else."""
        if isinstance(e, Table):
            at = self.lin(e.index)
            return e.values[at.const] if at.is_const else None
        return float(e.value) if isinstance(e, Const) else None

    def lin_value(self, x: Lin) -> ir.Value:
        """`x` as an i64, or a vector of i64 where it varies over the lanes."""
        total: ir.Value | None = None
        for a, c in x.terms:
            v = self._scaled(self._atom(a), c)
            total = v if total is None else self._arith("add", total, v)
        if total is None:
            return ir.Constant(I64T, x.const)
        return total if x.const == 0 else self._arith("add", total, ir.Constant(I64T, x.const))

    def _atom(self, a: Atom) -> ir.Value:
        if a == LANE:
            return ir.Constant(ir.VectorType(I64T, self.lanes), [ir.Constant(I64T, i) for i in range(self.lanes)])
        if isinstance(a, Axis):
            return self.frame.counters[a]
        if a.kind == "expr":
            assert a.expr is not None
            return self.generic(a.expr)
        assert a.of is not None
        key = ("opaque", a, self.lanes)
        v = self.frame.seen(key) if a.of.repeats else None
        if v is None:
            args = self.same_shape([self.lin_value(a.of), ir.Constant(I64T, a.by)])
            v = emit_call(self.b, a.kind, args, I64, self.target)
            if a.of.repeats:
                self.frame.remember(key, v)
        return v

    def _scaled(self, v: ir.Value, c: int) -> ir.Value:
        return v if c == 1 else self._arith("mul", v, ir.Constant(I64T, c))

    def _arith(self, fn: str, x: ir.Value, y: ir.Value) -> ir.Value:
        x, y = self.same_shape([x, y])
        return self.b.add(x, y, flags=("nsw",)) if fn == "add" else self.b.mul(x, y, flags=("nsw",))

    # -- memory --------------------------------------------------------------------------------------------------------
    def offset(self, buffer: Buffer, index: tuple[Expr, ...]) -> Lin:
        """Element offset of buffer[index] from its base."""
        key = (buffer.name, *map(id, index))
        form = self.forms.get(key)
        if form is not None:
            return form.at(self.env)
        loops = self.deps.get(key)
        if loops is None:
            loops = self.deps[key] = self._loops_of(index)
        at = (key, self.epoch, *(self.env.get(a) for a in loops))
        if (total := self.offsets.get(at)) is None:
            total = self.offsets[at] = self._offset(buffer, index)
            self.held.extend(index)
            if key not in self.asked:
                self.asked.add(key)
            elif key not in self.forms:  # at a second point of the loops: there will be more
                self.forms[key] = self._form(buffer, index, loops)
        return total

    def _offset(self, buffer: Buffer, index: tuple[Expr, ...]) -> Lin:
        local = self.locals.get(buffer.name)
        shared = local.shared if local else frozenset()
        total = Lin()
        for e, s in zip(index, local.strides if local else buffer.strides, strict=True):
            if s:
                total = total + self.lin(e, shared).scale(s)
        return total

    def _form(self, buffer: Buffer, index: tuple[Expr, ...], loops: tuple[Axis, ...]) -> Form | None:
        """The offset as a function of where the loops stand; None where it is not linear in them."""
        env = self.env
        self.env = env | {a: Lin(0, ((a, 1),)) for a in loops}
        found = self._offset(buffer, index)
        self.env = env
        return Form(found.const, found.terms) if all(a in loops for a, _ in found.terms) else None

    def _loops_of(self, index: tuple[Expr, ...]) -> tuple[Axis, ...]:
        """The loops that an index depends on, through splits and fuses."""
        found: dict[Axis, None] = {}

        def visit(a: Axis) -> None:
            if a in self.env:
                found[a] = None
            elif (k := self.blocks.get(a)) is not None:
                visit(k.split.outer)
                visit(k.split.inner)
            elif (f := self.fuses.get(a)) is not None:
                visit(f.fused)
            else:
                found[a] = None
        for e in index:
            for n in walk(e):
                if isinstance(n, Var):
                    visit(n.axis)
        return tuple(found)

    def _pointer(self, buffer: Buffer, offset: Lin, site: int = 0) -> tuple[ir.Value, int, ir.Value | None]:
        """(address of the lane-independent part, elements a lane, vector of further element offsets or None)."""
        lane = offset.coefficient(LANE)
        scalar: list[tuple[Atom, int]] = []
        extra: ir.Value | None = None
        for a, c in offset.terms:
            if a == LANE:
                continue
            if isinstance(a, Opaque) and isinstance((v := self._atom(a)).type, ir.VectorType):
                v = self._scaled(v, c)
                extra = v if extra is None else self._arith("add", extra, v)
            else:
                scalar.append((a, c))
        base = root = self.frame.sites[site] if self.frame.sites else self.frame.bases[buffer.name]
        size = buffer.dtype.bytes
        done: tuple[tuple[Atom, int], ...] = ()
        for a, c in scalar:
            done = (*done, (a, c))
            key = ("ptr", id(root), done)
            same = Lin(0, done).repeats
            p = self.frame.seen(key) if same else None
            if p is None:
                p = self._gep(base, self._scaled(self._atom(a), c * size))
                if same:
                    self.frame.remember(key, p)
            base = p
        if offset.const:
            base = self._gep(base, ir.Constant(I64T, offset.const * size))
        return base, lane, extra

    def _gep(self, base: ir.Value, offset: ir.Value) -> ir.Value:
        return self.b.gep(base, [offset], inbounds=True, source_etype=I8T)

    def load(self, e: Load) -> ir.Value:
        """An element, guarded if need be. Loads are remembered: inputs of a program never change while it runs, and
        a stage never reads what it writes."""
        truth = True if e.where is None else self.frame.guards.get(id(e), self.known(e.where))
        if truth is False:
            assert e.other is not None
            return self.value(e.other)
        if 0 in e.buffer.shape and e.other is not None:
            return self.value(e.other)
        if 0 in e.buffer.shape:  # nothing to read; reached only under a failed check
            for x in e.index:
                self.value(x)
            return self._zero(e.dtype, 1)
        guard = None if truth else self.value(e.where) if e.where is not None else None
        offset = self.offset(e.buffer, e.index)
        if guard is None:
            key = ("load", id(self.frame.sites[id(e)]) if self.frame.sites else e.buffer.name, offset, self.lanes, self.valid)
            if not offset.repeats:
                return self._load(e, offset, None, None)
            if self.tile is not None and offset.coefficient(LANE) > 1 and (t := self._transposed(e, offset)) is not None:
                return t
            if (v := self.frame.seen(key)) is None:
                v = self.frame.remember(key, self._load(e, offset, None, None))
            return v
        assert e.other is not None
        other = self.value(e.other)
        if isinstance(guard.type, ir.VectorType):
            return self._load(e, offset, guard, other)
        return self._branch(guard, lambda: self._load(e, offset, None, None), other)

    def _transposed(self, e: Load, offset: Lin) -> ir.Value | None:
        """A load whose lanes stride while the unrolled loop around them (`tile`) steps by one element: the whole tile is
        loaded along that loop and transposed in registers, once for all its iterations.

            rows[l] = load vector x[l*stride + 0 .. n)       for each lane l
            rows    = log2(lanes) rounds of interleaving
            row j is the vector for iteration j

        Tiles of less than half a vector gather: interleaving mostly nothing is slower, and LLVM 22 fails on some of it.
        """
        assert self.tile is not None
        axis, extent = self.tile
        n = self.lanes
        here = self.env[axis]
        self.env[axis] = Lin()
        start = self.offset(e.buffer, e.index)
        self.env[axis] = here
        if n & (n - 1) or not n <= 2 * extent <= 2 * n or offset != start.shift(here.const) or not here.is_const:
            return None
        self.env[axis] = Lin(1)
        unit = self.offset(e.buffer, e.index) == start.shift(1) or extent == 1
        self.env[axis] = here
        if not unit:
            return None
        key = ("tile", id(self.frame.sites[id(e)]) if self.frame.sites else e.buffer.name, start, n, self.valid, extent)
        if self.frame.seen((key, 0)) is None:
            for j, v in enumerate(self._tile_rows(e, start, extent)):
                self.frame.remember((key, j), v)
        return self.frame.seen((key, here.const))

    def _tile_rows(self, e: Load, start: Lin, extent: int) -> list[ir.Value]:
        n, d = self.lanes, e.buffer.dtype
        ptr, stride, _ = self._pointer(e.buffer, start, id(e))
        vec = memory_type(d, n)
        undef = ir.Constant(vec, ir.Undefined)
        rows: list[ir.Value] = []
        for lane in range(n):
            if lane >= self.valid:
                rows.append(undef)
                continue
            at = self._gep(ptr, ir.Constant(I64T, lane * stride * d.bytes)) if lane else ptr
            raw = self.b.load(at, typ=memory_type(d, extent), align=d.bytes)
            if extent < n:
                order = [ir.Constant(I32T, min(i, extent - 1)) for i in range(n)]  # the rest is never used
                raw = self.b.shuffle_vector(raw, ir.Constant(raw.type, ir.Undefined), ir.Constant(ir.VectorType(I32T, n), order))
            rows.append(raw)
        low = [ir.Constant(I32T, i // 2 + (n if i % 2 else 0)) for i in range(n)]
        high = [ir.Constant(I32T, n // 2 + i // 2 + (n if i % 2 else 0)) for i in range(n)]
        masks = [ir.Constant(ir.VectorType(I32T, n), m) for m in (low, high)]
        for _ in range(n.bit_length() - 1):
            rows = [self.b.shuffle_vector(rows[k // 2], rows[k // 2 + n // 2], masks[k % 2]) for k in range(n)]
        return [load_convert(self.b, r, d, self.target) for r in rows[:extent]]

    def _branch(self, cond: ir.Value, then, other: ir.Value) -> ir.Value:  # noqa: ANN001
        with self.b.if_else(cond) as (yes, no):
            with yes, self.frame.scope():
                saved, self.leaf = self.leaf, dict(self.leaf)
                v = then()
                w = other
                if isinstance(v.type, ir.VectorType) and not isinstance(w.type, ir.VectorType) and isinstance(w, ir.Constant):
                    w = ir.Constant(v.type, [w] * v.type.count)
                end_yes = self.b.block
                self.leaf = saved
            with no:
                if isinstance(v.type, ir.VectorType) and not isinstance(w.type, ir.VectorType):
                    w = self.splat(w, v.type.count)
                elif isinstance(w.type, ir.VectorType) and not isinstance(v.type, ir.VectorType):
                    raise AssertionError("a vector default of a scalar load")
                end_no = self.b.block
        phi = self.b.phi(v.type)
        phi.add_incoming(v, end_yes)
        phi.add_incoming(w, end_no)
        return phi

    def _load(self, e: Load, offset: Lin, guard: ir.Value | None, other: ir.Value | None) -> ir.Value:
        ptr, lane, extra = self._pointer(e.buffer, offset, id(e))
        d = e.buffer.dtype
        if lane == 0 and extra is None and guard is None:
            raw = self.b.load(ptr, typ=memory_type(d), align=d.bytes)
            return load_convert(self.b, raw, d, self.target)
        if lane == 0 and extra is None:  # one address, lanes disagree about reading it
            lane, extra = 0, ir.Constant(ir.VectorType(I64T, self.lanes), [ir.Constant(I64T, 0)] * self.lanes)
        mask = self.mask(guard)
        mem = memory_type(d, self.lanes)
        if lane == 1 and extra is None:
            raw = self.b.load(ptr, typ=mem, align=d.bytes) if mask is None else self._intrinsic(
                "llvm.masked.load", mem, [ptr, ir.Constant(I32T, d.bytes), mask, ir.Constant(mem, None)], [mem, PTR])
        else:
            full = mask if mask is not None else self._all_true()
            raw = self._intrinsic("llvm.masked.gather", mem, [self._addresses(ptr, lane, extra, d), ir.Constant(I32T, d.bytes),
                                                              full, ir.Constant(mem, None)],
                                  [mem, ir.VectorType(PTR, self.lanes)])
        v = load_convert(self.b, raw, d, self.target)
        if guard is not None:
            assert other is not None
            v, other = self.same_shape([v, other])
            v = self.b.select(guard, v, other)
        return v

    def _addresses(self, ptr: ir.Value, lane: int, extra: ir.Value | None, d: DType) -> ir.Value:
        offsets: ir.Value | None = None
        if lane:
            offsets = ir.Constant(ir.VectorType(I64T, self.lanes), [ir.Constant(I64T, i * lane * d.bytes) for i in range(self.lanes)])
        if extra is not None:
            scaled = self._scaled(extra, d.bytes)
            offsets = scaled if offsets is None else self._arith("add", offsets, scaled)
        out = self.b.gep(ptr, [offsets], inbounds=True, source_etype=I8T)
        out.type = ir.VectorType(PTR, self.lanes)  # llvmlite types every gep as one pointer
        return out

    def store(self, buffer: Buffer, index: tuple[Expr, ...], v: ir.Value) -> None:
        offset = self.offset(buffer, index)
        ptr, lane, extra = self._pointer(buffer, offset)
        d = buffer.dtype
        if lane == 0 and extra is None:
            if isinstance(v.type, ir.VectorType):  # every lane writes the same element: an extent-1 axis
                v = self.b.extract_element(v, ir.Constant(I32T, 0))
            self.b.store(store_convert(self.b, v, d, self.target), ptr, align=d.bytes)
            return
        (v,) = self.same_shape([v], force=True)
        raw = store_convert(self.b, v, d, self.target)
        mask, mem = self.mask(None), memory_type(d, self.lanes)
        if lane == 1 and extra is None:
            if mask is None:
                self.b.store(raw, ptr, align=d.bytes)
            else:
                self._intrinsic("llvm.masked.store", ir.VoidType(), [raw, ptr, ir.Constant(I32T, d.bytes), mask], [mem, PTR])
            return
        self._intrinsic("llvm.masked.scatter", ir.VoidType(),
                        [raw, self._addresses(ptr, lane, extra, d), ir.Constant(I32T, d.bytes),
                         mask if mask is not None else self._all_true()],
                        [mem, ir.VectorType(PTR, self.lanes)])

    def mask(self, guard: ir.Value | None) -> ir.Value | None:
        """Lanes that may touch memory: the tail's valid ones, and of them those where `guard` holds."""
        if self.valid == self.lanes:
            return guard
        tail = ir.Constant(ir.VectorType(I1, self.lanes), [ir.Constant(I1, int(i < self.valid)) for i in range(self.lanes)])
        return tail if guard is None else self.b.and_(guard, tail)

    def _all_true(self) -> ir.Value:
        return ir.Constant(ir.VectorType(I1, self.lanes), [ir.Constant(I1, 1)] * self.lanes)

    def _intrinsic(self, name: str, ret: ir.Type, args: list[ir.Value], overload: list[ir.Type]) -> ir.Value:
        full = ".".join([name, *(_mangle(t) for t in overload)])
        fn = self.module.globals.get(full)
        if fn is None:
            fn = ir.Function(self.module, ir.FunctionType(ret, [a.type for a in args]), full)
        return self.b.call(fn, args)

    # -- values --------------------------------------------------------------------------------------------------------
    def splat(self, v: ir.Value, lanes: int) -> ir.Value:
        if isinstance(v, ir.Constant):
            known = self.constants.get((id(v), lanes))
            if known is None:
                known = self.constants[id(v), lanes] = v, ir.Constant(ir.VectorType(v.type, lanes), [v] * lanes)
            return known[1]
        key = ("splat", id(v), lanes)
        if (w := self.frame.seen(key)) is None:
            vec = ir.VectorType(v.type, lanes)
            undefined, zero = ir.Constant(vec, ir.Undefined), self._first_lane()
            one = self.b.insert_element(undefined, v, zero)
            w = self.frame.remember(key, self.b.shuffle_vector(one, undefined, self.splat(zero, lanes)))
            self.frame.remember(("keep", id(v)), v)  # ids stay unique while v lives
        return w

    def _first_lane(self) -> ir.Constant:
        known = self.constants.get("lane 0")
        if known is None:
            v = ir.Constant(I32T, 0)
            known = self.constants["lane 0"] = v, v
        return known[1]

    def same_shape(self, vs: list[ir.Value], force: bool = False) -> list[ir.Value]:
        """Splats scalars where any of `vs` is a vector (or always, with `force`)."""
        if not force and not any(isinstance(v.type, ir.VectorType) for v in vs):
            return vs
        return [v if isinstance(v.type, ir.VectorType) else self.splat(v, self.lanes) for v in vs]

    def constant(self, value: int | float | bool, d: DType) -> ir.Value:
        key = d, repr(value)
        known = self.constants.get(key)
        if known is None:
            v = self._constant(value, d)
            known = self.constants[key] = v, v
        return known[1]

    @staticmethod
    def _constant(value: int | float | bool, d: DType) -> ir.Constant:
        t = register_type(d)
        if isinstance(t, ir.IntType):
            return ir.Constant(t, int(value))
        import struct
        if isinstance(t, ir.FloatType):  # constants of narrower floats are held rounded to their own type
            value = float(d.numpy.type(value)) if d.bits <= 32 else value
            value = struct.unpack("f", struct.pack("f", value))[0]
        return ir.Constant(t, value)

    def _zero(self, d: DType, lanes: int) -> ir.Value:
        return ir.Constant(register_type(d, lanes), None) if lanes > 1 else self.constant(0, d)

    def value(self, e: Expr) -> ir.Value:
        """The value of `e` in this leaf: a scalar, or a vector of `lanes`."""
        if (v := self.leaf.get(id(e))) is None:
            v = self.leaf[id(e)] = self._value(e)
        return v

    def _value(self, e: Expr) -> ir.Value:
        if e.dtype == I64 and isinstance(e, (Var, Call)):
            x = self.lin(e)
            if not (len(x.terms) == 1 and isinstance(o := x.terms[0][0], Opaque) and o.expr is e):
                return self.lin_value(x)
        match e:
            case Const(v, d):
                return self.constant(v, d)
            case Reduce(_, (), body):
                return self.value(body)
            case Table(values, index, d):
                known = self.factor(e)
                return self.constant(known, d) if known is not None else self._table(values, self.lin_value(self.lin(index)), d)
            case Load():
                return self.load(e)
            case Call("select", (c, a, b), _) if (truth := self.known(c)) is not None:
                return self.value(a if truth else b)
            case Call(_, _, d) if d == BOOL and (truth := self.known(e)) is not None:
                return self.constant(truth, BOOL)
        return self.generic(e)

    def generic(self, e: Expr) -> ir.Value:
        if (v := self.leaf.get(id(e))) is not None:
            return v
        match e:
            case Call("select", (c, a, b), d):
                cond, x, y = self.same_shape([self.value(c), self.value(a), self.value(b)])
                v = self.b.select(cond, x, y)
            case Call(fn, args, _):
                v = emit_call(self.b, fn, self.same_shape([self.value(a) for a in args]), args[0].dtype, self.target)
            case Cast(arg, d):
                v = emit_cast(self.b, self.value(arg), arg.dtype, d, self.target)
            case Checked(arg, extent, _):
                v = self._checked(self.value(arg), extent)
            case Rescue():
                v = self.rescue(e)
            case Load():
                v = self.load(e)
            case _:
                raise AssertionError(f"cannot emit {type(e).__name__} here")
        self.leaf[id(e)] = v
        return v

    def _table(self, values: tuple[float, ...], index: ir.Value, d: DType) -> ir.Value:
        """An entry at a place known only at run time, from constants beside the code."""
        t = register_type(d)
        name = f"{self.module.name}_table{len(self.module.globals)}"
        g = ir.GlobalVariable(self.module, ir.ArrayType(t, len(values)), name)
        g.global_constant, g.linkage = True, "internal"
        g.initializer = ir.Constant(g.value_type, [self.constant(v, d) for v in values])
        if not isinstance(index.type, ir.VectorType):
            at = self.b.gep(g, [ir.Constant(I64T, 0), index], inbounds=True)
            at.type = PTR
            return self.b.load(at, typ=t)
        out: ir.Value = ir.Constant(ir.VectorType(t, index.type.count), ir.Undefined)
        for lane in range(index.type.count):
            one = self._table(values, self.b.extract_element(index, ir.Constant(I32T, lane)), d)
            out = self.b.insert_element(out, one, ir.Constant(I32T, lane))
        return out

    def rescue(self, e: Rescue) -> ir.Value:
        raise NotImplementedError

    def _checked(self, v: ir.Value, extent: int) -> ir.Value:
        n, zero, last = (self.same_shape([v, ir.Constant(I64T, k)])[1] for k in (extent, 0, max(extent - 1, 0)))
        wrapped = self.b.select(self.b.icmp_signed("<", v, zero), self.b.add(v, n), v)
        bad = self.b.or_(self.b.icmp_signed("<", wrapped, zero), self.b.icmp_signed(">=", wrapped, n))
        any_bad = bad
        if isinstance(bad.type, ir.VectorType):
            if self.valid < self.lanes:
                bad = self.mask(bad)
                assert bad is not None
            any_bad = self.b.icmp_unsigned("!=", self.b.bitcast(bad, ir.IntType(self.lanes)), ir.Constant(ir.IntType(self.lanes), 0))
        with self.b.if_then(any_bad, likely=False):
            self.b.store(ir.Constant(I64T, 1), self.frame.ctx, align=8)
        low = self.b.select(self.b.icmp_signed("<", wrapped, zero), zero, wrapped)
        return self.b.select(self.b.icmp_signed(">", low, last), last, low)


def _mangle(t: ir.Type) -> str:
    if isinstance(t, ir.VectorType):
        return f"v{t.count}{_mangle(t.element)}"
    if isinstance(t, ir.PointerType):
        return "p0"
    if isinstance(t, ir.IntType):
        return f"i{t.width}"
    return {"float": "f32", "double": "f64", "half": "f16"}[str(t)]


def vector_lanes(body: Expr, out: DType, target: Target) -> int:
    """Lanes of a stage's vectors: as many as the widest element type among its values allows. Index arithmetic, which
    stays scalar wherever it is linear, does not count, nor do the plain sums of rescues."""
    usual = list(walk(body, rare=False))
    index = {id(n) for x in usual if isinstance(x, (Load, Table)) for i in (x.index if isinstance(x, Load) else (x.index,))
             for n in walk(i) if not isinstance(n, Load)}
    conds = {id(n) for x in usual if isinstance(x, Load) and x.where is not None for n in walk(x.where)}
    widths = [max(n.dtype.bytes, 4 if n.dtype.is_float and n.dtype.bits < 32 and not isinstance(n, Load) else 1)
              for n in usual if id(n) not in index and id(n) not in conds and not isinstance(n, (Const, Reduce))
              and not (isinstance(n, Var) and n.dtype == I64 and not _is_value(n, body, index))]
    return max(1, target.vector_bytes // max([*widths, out.bytes]))


def _is_value(v: Var, body: Expr, index: set[int]) -> bool:
    """Whether a loop variable is used as data, not only inside comparisons and indices."""
    return any(v in children(n) and isinstance(n, Cast) for n in walk(body, rare=False) if id(n) not in index)
