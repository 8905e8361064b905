"""Where every value lives: layout ops become strides and offsets instead of copies wherever that is as good.

    %1 = reshape(%0), %2 = transpose(%1), matmul(%2, …)   source view:       the matmul reads %0's memory with other strides
    %3 = concat(%1, %2)                                   destination views: the kernels of %1 and %2 write into %3's memory
    %4 = pad(%3)                                          destination view:  %3 is written into the middle; a kernel fills the border

Requires: a partition with layout ops in groups of their own (or inlined into map groups). Ensures: each value has a
placement; each element of a storage has one writer; graph inputs and constants are only read; every graph output owns
a contiguous storage, or is copied into it at the end.

A view's last dimension (of more than one element) must step by 1, else vector loads become gathers: then the value is
copied instead. Decided from types and ops alone.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..ir.affine import Atom, Div, Linear, Mod, linear
from ..ir.expr import Axis, Buffer, Load
from ..ir.graph import Graph, Node, Value
from ..ir.op import OPS
from ..ir.ops.blocked import ConcatBlockedAttrs
from ..ir.ops.loop import ScanAttrs
from ..ir.ops.slices import AxisAttrs, PadAttrs
from ..ir.ops.upsample import FactorAttrs, phase_starts
from ..ir.types import DType, contiguous_strides
from .fuse import Group, Partition


@dataclass(frozen=True, slots=True)
class Storage:
    """A piece of memory. `kind` is input, output, weight (position `index` among them) or arena."""

    id: str
    dtype: DType
    elements: int
    kind: str
    index: int = 0

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.bytes


@dataclass(frozen=True, slots=True)
class Placement:
    """A value is at `offset` (elements) in a storage, with `strides` (elements, never negative)."""

    storage: str
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Role:
    """What a group has to do at run time: "kernel" computes its outputs, "view" nothing, "parts" copies only the concat's
    inputs in `parts`, "phases" and "pieces" the same for what is interleaved or joined inside blocks, "border" fills only what
    surrounds a padded value."""

    kind: str
    why: str = ""
    parts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Views:
    """placements by value name, storages by id, one role a group, and (value, output position) pairs to copy at the end.
    results: the strides of the graph's outputs."""

    placements: Mapping[str, Placement]
    storages: Mapping[str, Storage]
    roles: tuple[Role, ...]
    copies: tuple[tuple[Value, int], ...] = field(default=())
    results: tuple[tuple[int, ...], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Borders:
    """Strides of the inputs and outputs of a graph, where they are parts of other tensors (the body of a loop)."""

    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


def plan_views(graph: Graph, partition: Partition, parameters: int = 0, borders: Borders | None = None) -> Views:
    """Placements for all values that cross groups. The last `parameters` inputs of the graph count as weights; the
    graph's constants follow them in the numbering of weights. `borders`: default: inputs and outputs are contiguous."""
    p = _Planner(graph, partition, borders)
    p.source_views(len(graph.inputs) - parameters)
    p.own_storages()
    roles = p.destination_views()
    return p.result(roles)


@dataclass(frozen=True, slots=True)
class _Move:
    """A layout op of one load: element i of its result is element `index`(i) of its source, each entry in normal form."""

    source: Value
    result: Value
    axes: tuple[Axis, ...]
    index: tuple[Linear, ...]


class _Planner:
    def __init__(self, graph: Graph, partition: Partition, borders: Borders | None):
        self.graph, self.groups = graph, partition.groups
        self.borders = borders or Borders(*(tuple(contiguous_strides(v.type.shape) for v in vs) for vs in (graph.inputs, graph.outputs)))
        self.moves: dict[str, _Move] = {}                 # result -> the layout op that makes it
        self.viewed: dict[str, _Move] = {}                # results that are source views
        self.viewers: dict[str, list[_Move]] = {}         # source -> views of it
        self.places: dict[str, Placement] = {}
        self.storages: dict[str, Storage] = {}
        self.claimed: set[str] = set()
        self.users: dict[str, list[Group]] = {}
        self.maker: dict[str, Group] = {}
        for g in self.groups:
            for v in g.inputs:
                self.users.setdefault(v.name, []).append(g)
            for v in g.outputs:
                self.maker[v.name] = g
        self.results = {v.name: k for k, v in reversed(list(enumerate(graph.outputs)))}

    # -- layout ops read their source with other strides --------------------------------------------------------------
    def source_views(self, n_inputs: int) -> None:
        weights = (*self.graph.inputs[n_inputs:], *(c.value for c in self.graph.constants.values()))
        for k, v in enumerate(self.graph.inputs[:n_inputs]):
            self._own(v, "input", k)
        for k, v in enumerate(weights):
            self._own(v, "weight", k)
        for g in self.groups:
            for v in g.outputs:
                self.places[v.name] = Placement(v.name, 0, contiguous_strides(v.type.shape))
            if g.kind != "layout" or len(g.nodes) != 1 or (move := _move_of(g.anchor)) is None:
                continue
            self.moves[move.result.name] = move
            place = compose(move, self.places[move.source.name])
            if place and move.result.name not in self.results and self._readable(move.result, place):
                self.viewed[move.result.name] = move
                self.viewers.setdefault(move.source.name, []).append(move)
                self.places[move.result.name] = place

    def _own(self, v: Value, kind: str, index: int = 0) -> None:
        name = f"out{index}" if kind == "output" else v.name
        name = name if name not in self.storages else f"{name}:{kind}"
        self.storages[name] = Storage(name, v.type.dtype, v.type.size, kind, index)
        known = {"input": self.borders.inputs, "output": self.borders.outputs}.get(kind)
        self.places[v.name] = Placement(name, 0, known[index] if known else contiguous_strides(v.type.shape))

    def _readable(self, v: Value, p: Placement) -> bool:
        """Whether all readers of v take it well at p."""
        if min(p.strides, default=0) < 0:
            return False
        users = self.users.get(v.name, ())
        if innermost(v, p) > 1 and sum(u.outputs[0].type.size for u in users if u.kind == "layout") > v.type.size:
            return False  # one copy now is less than one for each reader
        for g in self.users.get(v.name, ()):
            if _is_irregular(g) and p.strides != contiguous_strides(v.type.shape):
                return False
            if g.kind == "attention" and v != g.anchor.operands[1]:
                continue  # queries, keys and masks are read one element at a time, or transposed in registers
            if g.kind != "layout" and innermost(v, p) not in ((0, 1) if g.kind == "map" else (1,)):
                return False
        return True

    # -- kernels write where layout ops want their results -------------------------------------------------------------
    def own_storages(self) -> None:
        for g in self.groups:
            for v in g.outputs:
                if v.name in self.viewed:
                    continue
                at = self.results.get(v.name)
                if at is not None and _is_irregular(g) and self.borders.outputs[at] != contiguous_strides(v.type.shape):
                    at = None  # copied at the end
                self._own(v, "arena" if at is None else "output", at or 0)
        for name, move in self.viewed.items():       # in order of the graph: sources come first
            place = compose(move, self.places[move.source.name])
            assert place is not None
            self.places[name] = place

    def destination_views(self) -> list[Role]:
        roles: list[Role] = []
        for g in reversed(self.groups):
            roles.append(self._role(g))
        return roles[::-1]

    def _role(self, g: Group) -> Role:
        if g.outputs and all(v.type.size == 0 for v in g.outputs) or not g.outputs:
            return Role("view", "nothing to compute")
        out = g.outputs[0]
        if g.kind != "layout" or len(g.nodes) != 1:
            return Role("kernel")
        if out.name in self.viewed:
            return Role("view", f"%{out.name} is read in the memory of %{self.viewed[out.name].source.name}")
        node, place = g.anchor, self.places[out.name]
        if isinstance(node.attrs, PadAttrs) and node.attrs.mode == "constant":
            return self._pad_role(node, node.attrs, place)
        if node.op == "concat" and isinstance(node.attrs, AxisAttrs):
            return self._concat_role(node, node.attrs.axis, place)
        if node.op == "interleave" and isinstance(node.attrs, FactorAttrs):
            return self._interleave_role(node, node.attrs, place)
        if node.op == "concat_blocked":
            return self._pieces_role(node, place)
        if (move := self.moves.get(out.name)) and (want := uncompose(move, place)) and self._claim(move.source, want):
            return Role("view", f"%{move.source.name} is written where %{out.name} is")
        return Role("kernel", f"%{out.name} is a copy: its readers need other strides than those of its source")

    def _pad_role(self, node: Node, attrs: PadAttrs, place: Placement) -> Role:
        x = node.operands[0]
        inner = place.offset + sum(b * s for b, s in zip(attrs.before, place.strides, strict=True))
        if x.type.size and self._claim(x, Placement(place.storage, inner, place.strides)):
            return Role("border", f"%{x.name} is written inside its padding; only the border is filled")
        return Role("kernel")

    def _concat_role(self, node: Node, axis: int, place: Placement) -> Role:
        left: list[int] = []
        at = place.offset
        for k, x in enumerate(node.operands):
            if x.type.size and not self._claim(x, Placement(place.storage, at, place.strides)):
                left.append(k)
            at += x.type.shape[axis] * place.strides[axis]
        if not left:
            return Role("view", "its parts are written in place")
        return Role("parts", f"{len(node.operands) - len(left)} of {len(node.operands)} parts are written in place", tuple(left))

    def _interleave_role(self, node: Node, attrs: FactorAttrs, place: Placement) -> Role:
        left = [k for k, (x, want) in enumerate(zip(node.operands, phase_places(attrs, place), strict=True)) if not self._claim(x, want)]
        if not left:
            return Role("view", "its phases are written in place")
        return Role("phases", f"{len(node.operands) - len(left)} of {len(node.operands)} phases are written in place", tuple(left))

    def _pieces_role(self, node: Node, place: Placement) -> Role:
        """Parts of whole blocks that begin with a block are written in place; so is a last part that begins with one."""
        assert isinstance(node.attrs, ConcatBlockedAttrs)
        width, left, at = node.outputs[0].type.shape[4], [], 0
        for k, (x, m) in enumerate(zip(node.operands, node.attrs.channels, strict=True)):
            whole = at % width == 0 and m % width == 0 and node.attrs.factors[2 * k:2 * k + 2] == (1, 1)
            want = Placement(place.storage, place.offset + at // width * place.strides[1], place.strides)
            if not (whole and self._claim(x, want)):
                left.append(k)
            at += m
        return Role("pieces", f"{len(node.operands) - len(left)} of {len(node.operands)} parts are written in place", tuple(left))

    def _claim(self, v: Value, want: Placement) -> bool:
        """Places v (through the views it is made by) at `want`, if its producer can write there and its other readers can
        read there."""
        while (move := self.viewed.get(v.name)) is not None:
            back = uncompose(move, want)
            if back is None:
                return False
            v, want = move.source, back
        g = self.maker.get(v.name)
        if g is None or v.name in self.results or v.name in self.claimed:
            return False
        want = Placement(want.storage, want.offset, normal_strides(v.type.shape, want.strides))
        if (innermost(v, want) != 1 or _is_irregular(g) and want.strides != contiguous_strides(v.type.shape)
                or not self._fits(v, want)):
            return False
        self.claimed.add(v.name)
        self.storages.pop(self.places[v.name].storage)
        self._move_to(v, want)
        return True

    def _move_to(self, v: Value, p: Placement) -> None:
        self.places[v.name] = p
        for move in self.viewers.get(v.name, ()):
            q = compose(move, p)
            assert q is not None
            self._move_to(move.result, q)

    def _fits(self, v: Value, p: Placement) -> bool:
        if not self._readable(v, p):
            return False
        for move in self.viewers.get(v.name, ()):
            q = compose(move, p)
            if q is None or not self._fits(move.result, q):
                return False
        return True

    def result(self, roles: list[Role]) -> Views:
        copies = tuple((v, k) for k, v in enumerate(self.graph.outputs)
                       if (s := self.storages[self.places[v.name].storage]).kind != "output" or s.index != k)
        for v, k in copies:
            self.storages[f"out{k}"] = Storage(f"out{k}", v.type.dtype, v.type.size, "output", k)
        return Views(self.places, self.storages, tuple(roles), copies, self.borders.outputs)


def _is_irregular(g: Group) -> bool:
    """Whether the group is an irregular op, whose code knows contiguous memory only."""
    return g.kind == "irregular" and not isinstance(g.anchor.attrs, ScanAttrs)


def _move_of(node: Node) -> _Move | None:
    """The node as a move of elements; None where it is a choice between several loads, guarded, or empty."""
    x, out = node.inputs[0], node.outputs[0]
    if x is None or len(node.operands) != 1 or not out.type.size:
        return None
    made = OPS[node.op].compute(node.attrs, (out.type,), Buffer("x", x.type.dtype, x.type.shape))
    if not made or len(made) != 1 or not isinstance(made[0].body, Load) or made[0].body.where is not None:
        return None
    return _Move(x, out, made[0].axes, tuple(map(linear, made[0].body.index)))


def compose(move: _Move, source: Placement) -> Placement | None:
    """Where the result is when it is read in the source's memory; None where that is no fixed stride a dimension."""
    where = Linear()
    for i, s in zip(move.index, source.strides, strict=True):
        where = where + i.scaled(s)
    if any(not isinstance(a, Axis) for a, _ in where.terms):
        return None
    strides = tuple(where.coefficient(a) for a in move.axes)
    return Placement(source.storage, source.offset + where.const, normal_strides(move.result.type.shape, strides))


def uncompose(move: _Move, result: Placement) -> Placement | None:
    """Where the source must be so that the result, read in its memory, is at `result`; None where there is no such place
    or the result does not hold every element of the source."""
    if move.source.type.size != move.result.type.size:
        return None
    step = dict(zip(move.axes, result.strides, strict=True))
    strides = tuple(_step(i, step) for i in move.index)
    if any(s is None for s in strides):
        return None
    source = Placement(result.storage, 0, normal_strides(move.source.type.shape, tuple(s or 0 for s in strides)))
    got = compose(move, source)
    if got is None or got.strides != normal_strides(move.result.type.shape, result.strides):
        return None
    return Placement(result.storage, result.offset - got.offset, source.strides)


def _step(i: Linear, step: Mapping[Axis, int]) -> int | None:
    """How far the result moves in memory when index `i` of the source grows by one; 0 for a constant index."""
    if not i.terms:
        return 0
    return next((_atom_step(a, step) for a, c in reversed(i.terms) if c == 1), None)


def _atom_step(a: Atom, step: Mapping[Axis, int]) -> int | None:
    if isinstance(a, Axis):
        return step[a]
    if isinstance(a, (Div, Mod)):
        inner = _step(a.arg, step)
        return None if inner is None else inner * a.by if isinstance(a, Div) else inner
    return None


def phase_places(attrs: FactorAttrs, whole: Placement) -> list[Placement]:
    """Where each part of an interleaved tensor is."""
    strides = tuple(s * f for s, f in zip(whole.strides, attrs.factors, strict=True))
    return [Placement(whole.storage, whole.offset + sum(a * s for a, s in zip(at, whole.strides, strict=True)), strides)
            for at in phase_starts(attrs.factors)]


def normal_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides with those of one-element dimensions, which never matter, set as in contiguous memory."""
    out: list[int] = []
    for k in reversed(range(len(shape))):
        out.append(strides[k] if shape[k] > 1 else out[-1] * max(shape[k + 1], 1) if out else 1)
    return tuple(reversed(out))


def innermost(v: Value, p: Placement) -> int:
    """The stride of the last dimension with more than one element; 1 for a single element."""
    return next((s for n, s in zip(reversed(v.type.shape), reversed(p.strides), strict=True) if n > 1), 1)
