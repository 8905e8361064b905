"""Groups to tensor programs: the computations of a group's ops written as few computes, over the memory of their values.

    matmul, add, relu                     y0[i0,i1] = relu(sum(r0<64: x0[i0,r0] * x1[r0,i1]) + x2[i1])
    softmax of a scaled and masked value  t0 (row maximum), t1 (row sum), y0

Values inside a group vanish by substitution: a map into the bodies that read it, a reduction into the one body that
reads each of its elements once. Kept as local buffers are a reduction that is read more widely, and what costs more than
a few operations and would be computed again. Literals of one element become constants.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ir.expr import (
    Axis,
    Buffer,
    Const,
    Expr,
    Load,
    Rescue,
    Table,
    Var,
    loads,
    reduces,
    rewrite,
    select,
    walk,
    wrap,
)
from ..ir.graph import Graph, Node, Value
from ..ir.intern import Interner
from ..ir.kinds import cost
from ..ir.op import OPS
from ..ir.ops.blocked import ConcatBlockedAttrs, pieces
from ..ir.ops.loop import ScanAttrs
from ..ir.ops.slices import AxisAttrs, PadAttrs
from ..ir.ops.upsample import FactorAttrs
from ..ir.program import Compute, Program
from .collapse import collapse_axes
from .fuse import CHEAP, Group, Partition
from .kernel import Kernel, Ref
from .views import Placement, Role, Views, phase_places


def lower(graph: Graph, partition: Partition, views: Views) -> tuple[Kernel, ...]:
    """All kernels of the graph in order of execution."""
    cache: Cache = {}
    out = [k for i, (g, r) in enumerate(zip(partition.groups, views.roles, strict=True)) for k in lower_group(graph, g, views, r, i, cache)]
    return (*out, *(copy_kernel(graph, v, views.placements[v.name], Placement(f"out{k}", 0, views.results[k]), "copy")
                    for v, k in views.copies))


def lower_group(graph: Graph, group: Group, views: Views, role: Role, index: int = -1, cache: Cache | None = None) -> tuple[Kernel, ...]:
    """The kernels that do what `role` leaves of the group: none for a view, one as a rule, several for a concat. `cache`
    holds the programs of groups that were equal but for names."""
    place = views.placements
    if role.kind == "view":
        return ()
    if isinstance(group.anchor.attrs, ScanAttrs):
        from .lower_loop import lower_loop  # which lowers the body by `lower`
        return lower_loop(graph, group.anchor, views, index)
    if group.kind == "irregular":
        node = group.anchor
        return (Kernel(None, node, *(tuple(Ref(place[v.name].storage, place[v.name].offset) for v in vs)
                                     for vs in (node.operands, node.outputs)), label=node.op, group=index),)
    if role.kind == "parts":
        return _parts(graph, group.anchor, views, role.parts, index)
    if role.kind == "phases":
        assert isinstance(group.anchor.attrs, FactorAttrs)
        places = phase_places(group.anchor.attrs, place[group.outputs[0].name])
        return tuple(copy_kernel(graph, v, place[v.name], places[k], "interleave", index)
                     for k, v in enumerate(group.anchor.operands) if k in role.parts)
    if role.kind == "pieces":
        return _pieces(group.anchor, views, role.parts, index)
    if role.kind == "border":
        return (_border(group.anchor, place[group.outputs[0].name], index),)
    literals = {v.name: c for v in group.inputs if (c := _literal(graph, v)) is not None}
    inputs = tuple(v for v in group.inputs if v.name not in literals)
    key = _group_key(group, inputs, literals, views)
    cache = {} if cache is None else cache
    if key not in cache:
        program = _Lowering(group, inputs, literals, views).program("_".join(n.op for n in group.nodes)[:60])
        # transforms by constant tables and images in strips are scheduled by their axes as the ops wrote them
        tabled = group.kind == "strips" or any(isinstance(x, (Rescue, Table)) for c in program.computes for x in walk(c.body))
        cache[key] = program if tabled else collapse_axes(program)
    program = cache[key]
    names = {f"x{k}": v for k, v in enumerate(inputs)}

    def ref(v: Value) -> Ref:
        return Ref(place[v.name].storage, place[v.name].offset)
    return (Kernel(program, None, tuple(ref(names[b.name]) for b in program.inputs), tuple(map(ref, group.outputs)), group.label, index),)


def _group_key(group: Group, inputs: Sequence[Value], literals: Mapping[str, Const], views: Views) -> object:
    """Equal for groups whose programs are equal: ops, attributes, types, strides and wiring, no names."""
    place = views.placements
    names: dict[str, object] = {v.name: (k, v.type, place[v.name].strides) for k, v in enumerate(inputs)}
    names |= {k: (repr(c.value), c.dtype) for k, c in literals.items()}
    nodes = []
    for k, n in enumerate(group.nodes):
        nodes.append((n.op, n.attrs, tuple(None if v is None else names[v.name] for v in n.inputs)))
        names |= {v.name: (k, j) for j, v in enumerate(n.outputs)}
    return tuple(nodes), tuple((names[v.name], place[v.name].strides) for v in group.outputs)


# -- the pieces of layout ops that views leave over --------------------------------------------------------------------
def copy_kernel(graph: Graph, v: Value, src: Placement, dst: Placement, label: str, index: int = -1) -> Kernel:
    """Moves `v` from one place to another."""
    x, y = Buffer("x0", v.type.dtype, v.type.shape, src.strides), Buffer("y0", v.type.dtype, v.type.shape, dst.strides)
    axes = tuple(Axis(f"i{k}", n) for k, n in enumerate(v.type.shape))
    literal = _literal(graph, v)
    ins = () if literal else (x,)
    program = Program(label, ins, (y,), (Compute(y, axes, literal or Load(x, tuple(map(Var, axes)))),))
    return Kernel(collapse_axes(program), None, (Ref(src.storage, src.offset),) * len(ins), (Ref(dst.storage, dst.offset),), label, index)


def _parts(graph: Graph, node: Node, views: Views, parts: tuple[int, ...], index: int) -> tuple[Kernel, ...]:
    assert isinstance(node.attrs, AxisAttrs)
    axis, whole = node.attrs.axis, views.placements[node.outputs[0].name]
    out: list[Kernel] = []
    at = 0
    for k, v in enumerate(node.operands):
        if k in parts:
            dst = Placement(whole.storage, whole.offset + at * whole.strides[axis], whole.strides)
            out.append(copy_kernel(graph, v, views.placements[v.name], dst, "concat", index))
        at += v.type.shape[axis]
    return tuple(out)


def _pieces(node: Node, views: Views, parts: tuple[int, ...], index: int) -> tuple[Kernel, ...]:
    """The copies of a concat inside blocks, one for each run of blocks that move alike, and zeros for the lanes left over."""
    assert isinstance(node.attrs, ConcatBlockedAttrs)
    out, a = node.outputs[0].type, node.attrs
    n, count, h, w, width = out.shape
    whole, dtype = views.placements[node.outputs[0].name], out.dtype
    kernels: list[Kernel] = []

    def add(to: int, lane: int, shape: tuple[int, ...], source: tuple[Buffer, Ref] | None, factors: tuple[int, ...]) -> None:
        y = Buffer("y0", dtype, shape, whole.strides)
        axes = tuple(Axis(f"i{k}", m) for k, m in enumerate(shape))
        index_of = [Var(x) // f if f > 1 else Var(x) for x, f in zip(axes, (1, 1, *factors, 1), strict=True)]
        body = wrap(0, dtype) if source is None else Load(source[0], tuple(index_of))
        program = Program("concat", () if source is None else (source[0],), (y,), (Compute(y, axes, body),))
        ref = Ref(whole.storage, whole.offset + to * whole.strides[1] + lane)
        kernels.append(Kernel(collapse_axes(program), None, () if source is None else (source[1],), (ref,), "concat", index))
    for p in pieces(a.channels, width):
        if p.part not in parts:
            continue
        x, place = node.operands[p.part], views.placements[node.operands[p.part].name]
        buffer = Buffer("x0", dtype, (n, p.blocks, *x.type.shape[2:4], p.lanes), place.strides)
        source = buffer, Ref(place.storage, place.offset + p.block * place.strides[1] + p.lane)
        add(p.to_block, p.to_lane, (n, p.blocks, h, w, p.lanes), source, a.factors[2 * p.part:2 * p.part + 2])
    if used := sum(a.channels) % width:
        add(count - 1, used, (n, 1, h, w, width - used), None, (1, 1))
    return tuple(kernels)


def _border(node: Node, place: Placement, index: int) -> Kernel:
    """Fills what surrounds a padded value: for each dimension the slabs before and after, inside those of earlier ones."""
    assert isinstance(node.attrs, PadAttrs)
    a, out, x = node.attrs, node.outputs[0].type, node.operands[0].type
    computes: list[Compute] = []
    refs: list[Ref] = []
    for k in range(out.rank):
        for first, n in ((0, a.before[k]), (a.before[k] + x.shape[k], a.after[k])):
            shape = (*x.shape[:k], n, *out.shape[k + 1:])
            if 0 in shape:
                continue
            buffer = Buffer(f"y{len(refs)}", out.dtype, shape, place.strides)
            axes = tuple(Axis(f"i{j}", m) for j, m in enumerate(shape))
            computes.append(Compute(buffer, axes, wrap(bool(a.value) if out.dtype.kind == "b" else a.value, out.dtype)))
            starts = (*a.before[:k], first, *(0,) * (out.rank - k - 1))
            refs.append(Ref(place.storage, place.offset + sum(i * s for i, s in zip(starts, place.strides, strict=True))))
    program = Program("pad_border", (), tuple(c.buffer for c in computes), tuple(computes))
    return Kernel(collapse_axes(program), None, (), tuple(refs), "pad border", index, border=True)


def _literal(graph: Graph, v: Value) -> Const | None:
    c = graph.constants.get(v.name)
    if c is None or c.updatable or c.array.size != 1:
        return None
    value = c.array.reshape(()).astype(float if v.type.dtype.is_float else c.array.dtype).item()
    return Const(value, v.type.dtype)


Cache = dict[object, Program]


# -- groups ------------------------------------------------------------------------------------------------------------
@dataclass(eq=False, slots=True)
class _Def:
    """One compute of an op, with names made unique. `keep`: it gets a buffer of its own."""

    name: str
    axes: tuple[Axis, ...]
    body: Expr
    buffer: Buffer
    keep: bool
    reduces: bool = False
    total: int = 0       # cost of an element with all that is substituted into it


class _Lowering:
    def __init__(self, group: Group, inputs: Sequence[Value], literals: Mapping[str, Const], views: Views):
        self.group, self.inputs, self.views = group, inputs, views
        self.shared = Interner()
        self.outputs = {f"%{v.name}": k for k, v in enumerate(group.outputs)}  # "%": apart from the program's own names
        self.literals = {f"%{name}": c for name, c in literals.items()}
        self.defs: dict[str, _Def] = {}
        for k, n in enumerate(group.nodes):
            self._add(k, n)
        self._drop_dead()
        self._decide()

    def program(self, label: str) -> Program:
        """The group as a program, before collapsing of axes. Inputs that nothing reads are left out."""
        real: dict[str, Buffer] = {}
        for k, v in enumerate(self.inputs):
            real[f"%{v.name}"] = Buffer(f"x{k}", v.type.dtype, v.type.shape, self.views.placements[v.name].strides)
        bodies: dict[str, Expr] = {}
        computes: list[Compute] = []
        local = 0
        for d in self.defs.values():
            body = self._resolve(d.body, real, bodies)
            if not d.keep:
                bodies[d.name] = body
                continue
            if d.name in self.outputs:
                buffer = Buffer(f"y{self.outputs[d.name]}", d.buffer.dtype, d.buffer.shape, self.views.placements[d.name[1:]].strides)
            else:
                buffer, local = Buffer(f"t{local}", d.buffer.dtype, d.buffer.shape), local + 1
            real[d.name] = buffer
            computes.append(Compute(buffer, d.axes, body))
        read = {b.name for c in computes for b in c.reads}
        ins = tuple(b for v in self.inputs if (b := real[f"%{v.name}"]).name in read)
        return Program(label, ins, tuple(real[name] for name in self.outputs), tuple(computes))

    # -- what the ops compute -----------------------------------------------------------------------------------------
    def _add(self, k: int, node: Node) -> None:
        ins = tuple(None if v is None else Buffer(f"%{v.name}", v.type.dtype, v.type.shape) for v in node.inputs)
        made = OPS[node.op].compute(node.attrs, tuple(v.type for v in node.outputs), *ins)
        assert made, f"{node.op} has neither computations nor code of its own"
        names = {f"out{i}": f"%{v.name}" for i, v in enumerate(node.outputs)}
        local = {c.buffer.name: Buffer(names.get(c.buffer.name, f"#{k}:{c.buffer.name}"), c.buffer.dtype, c.buffer.shape) for c in made}

        def rename(n: Expr) -> Expr | None:
            if isinstance(n, Load) and n.buffer.name in local:
                return Load(local[n.buffer.name], n.index, n.where, n.other)
            return None

        for c in made:
            b = local[c.buffer.name]
            body = rewrite(c.body, lambda n: self.shared.simple(rename(n) or n))
            self.defs[b.name] = _Def(b.name, c.axes, body, b, b.name in self.outputs or c.buffer.name not in names)

    def _drop_dead(self) -> None:
        live: set[str] = set(self.outputs)
        for d in reversed(self.defs.values()):
            if d.name in live:
                live |= {x.buffer.name for x in loads(d.body)}
        self.defs = {k: d for k, d in self.defs.items() if k in live}

    # -- what gets a buffer -------------------------------------------------------------------------------------------
    def _decide(self) -> None:
        readers: dict[str, list[_Def]] = {}
        for d in self.defs.values():
            inner = [self.defs[n] for n in dict.fromkeys(x.buffer.name for x in loads(d.body)) if n in self.defs]
            for s in inner:
                readers.setdefault(s.name, []).append(d)
                s.keep |= self._bordered(d)
            d.reduces = bool(reduces(d.body)) or any(s.reduces and not s.keep for s in inner)
            d.total = cost(d.body) + sum(s.total for s in inner if not s.keep)
        sinks: dict[str, set[str]] = {}
        holds = {d.name: d.name for d in self.defs.values() if d.keep and reduces(d.body)}  # kept compute -> its reduction
        for d in reversed(self.defs.values()):
            if d.keep:
                sinks[d.name] = {d.name}
                continue
            sinks[d.name] = set().union(*(sinks[r.name] for r in readers[d.name]))
            if not (self._reduction_fits(d, readers[d.name], sinks[d.name], holds) if d.reduces
                    else self._map_fits(d, readers[d.name], sinks[d.name])):
                d.keep, sinks[d.name] = True, {d.name}
                if reduces(d.body):
                    holds[d.name] = d.name

    def _reduction_fits(self, d: _Def, readers: list[_Def], sinks: set[str], holds: dict[str, str]) -> bool:
        """Into one body only, read once an element, and no second reduction there."""
        if len(sinks) != 1 or any(reduces(r.body) for r in readers) or not all(_reads_in_place(d, r) for r in readers):
            return False
        (sink,) = sinks
        return not reduces(d.body) or holds.setdefault(sink, d.name) == d.name

    def _bordered(self, d: _Def) -> bool:
        """Whether `d` puts a border around an image that is made in strips: the border is made with their rows."""
        return self.group.kind == "strips" and isinstance(d.body, Load)

    def _map_fits(self, d: _Def, readers: list[_Def], sinks: set[str]) -> bool:
        if self._bordered(d):
            return True
        if d.total <= CHEAP and len(loads(d.body)) <= 2 or len(sinks) == 1 and all(_reads_in_place(d, r) for r in readers):
            return True
        return sum(_evaluations(d, r) for r in readers) <= max(_points(d.axes), 1)

    # -- substitution -------------------------------------------------------------------------------------------------
    def _resolve(self, body: Expr, real: dict[str, Buffer], bodies: dict[str, Expr]) -> Expr:
        """`body` with loads of values replaced by loads of buffers, constants or the expressions that define them."""
        done: dict[tuple[object, ...], Expr] = {}

        def visit(n: Expr) -> Expr | None:
            if not isinstance(n, Load):
                return None
            name = n.buffer.name
            if name in real:
                return Load(real[name], n.index, n.where, n.other)
            key = (name, *map(id, n.index), id(n.where), id(n.other))
            if key not in done:
                value = self.literals[name] if name in self.literals else self._at(self.defs[name].axes, bodies[name], n.index)
                if n.where is not None and n.other is not None:
                    value = self.shared(select(n.where, _guarded(value, n.where), n.other))
                done[key] = value
            return done[key]
        return rewrite(body, lambda n: self.shared.simple(visit(n) or n))

    def _at(self, axes: tuple[Axis, ...], body: Expr, index: tuple[Expr, ...]) -> Expr:
        at = {a: i for a, i in zip(axes, index, strict=True) if not (isinstance(i, Var) and i.axis == a)}
        return rewrite(body, lambda n: self.shared.simple(at.get(n.axis, n) if isinstance(n, Var) else n)) if at else body


def _guarded(e: Expr, where: Expr) -> Expr:
    """`e` that touches memory only where `where` holds (its value elsewhere is of no use)."""
    def visit(n: Expr) -> Expr | None:
        if not isinstance(n, Load):
            return None
        both = where if n.where is None else where & n.where
        return Load(n.buffer, n.index, both, wrap(False if n.dtype.kind == "b" else 0, n.dtype) if n.other is None else n.other)
    return rewrite(e, visit)


def _reads_in_place(d: _Def, r: _Def) -> bool:
    """r reads d only at its own index, outside its reductions, unguarded."""
    inside = {id(n) for x in reduces(r.body) for n in walk(x.body)}
    return all(id(x) not in inside and x.where is None and len(x.index) == len(r.axes) and d.buffer.shape == r.buffer.shape
               and all(isinstance(i, Var) and i.axis == a or a.extent == 1 for i, a in zip(x.index, r.axes, strict=True))
               for x in loads(r.body) if x.buffer.name == d.name)


def _evaluations(d: _Def, r: _Def) -> int:
    inside = {id(n) for x in reduces(r.body) for n in walk(x.body)}
    points, inner = _points(r.axes), _points(reduces(r.body)[0].axes) if inside else 1
    return sum(points * (inner if id(x) in inside else 1) for x in loads(r.body) if x.buffer.name == d.name)


def _points(axes: Sequence[Axis]) -> int:
    out = 1
    for a in axes:
        out *= a.extent
    return out
