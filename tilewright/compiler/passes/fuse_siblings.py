"""Requires: `cse` has run. Ensures: contractions of one input by constant weights are one wider contraction.

    %q = matmul(%x, @wq) : f32[9,8]          %w = concat(@wq, @wk) {axis=1} : f32[4,16]
    %k = matmul(%x, @wk) : f32[9,8]    ->    %y = matmul(%x, %w) : f32[9,16]
                                             %q = slice(%y) {starts=(0, 0), …} : f32[9,8]
                                             %k = slice(%y) {starts=(0, 8), …} : f32[9,8]

Columns that are taken apart into heads afterwards stand head by head: q0 k0 v0 q1 k1 v1 and so on. A thread that computes a part
of the columns then has whole heads, which it goes on with.

Siblings that different maps follow stay apart, since a map can then be applied to each in registers. Fusing reads x once
and gives the kernel longer rows (Q/K/V projections, Inception's 1x1 branches). Convolutions must agree in kernel,
strides, pads and dilations. Biases and maps that follow every sibling alike move in front of the slices.
The slices become views, so no data moves.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Graph, Node, Value
from ...ir.ops.shape import reshape
from ...ir.ops.slices import concat, slice_axis
from ..sites import Site, Sites, part
from .rewriting import Rewriter, is_map, is_pure, rewrite

CHANNEL_BLOCK = 16  # slices of channels stay on blocks of the widest channel layout


@dataclass(frozen=True, slots=True)
class Row:
    """Nodes that follow the siblings alike, one each: maps with common operands, or additions of a bias of their own."""

    nodes: tuple[Node, ...]
    bias: bool


@dataclass(frozen=True, slots=True)
class Siblings:
    """`nodes` side by side, and the rows that follow them."""

    nodes: tuple[Node, ...]
    chain: tuple[Row, ...]

    @property
    def ends(self) -> tuple[Node, ...]:
        return self.chain[-1].nodes if self.chain else self.nodes

    @property
    def names(self) -> set[str]:
        return {n.outputs[0].name for row in (self.nodes, *(c.nodes for c in self.chain)) for n in row}


def fuse_siblings(g: Graph, sites: Sites | None = None) -> Graph:
    g, static = constants_first(g)
    groups = _find(g, static, sites)
    if not groups:
        return g
    order = {n.outputs[0].name: k for k, n in enumerate(g.nodes) if n.outputs}
    first = {min((n.outputs[0].name for n in s.nodes), key=order.__getitem__): s for s in groups}  # readers of any come after it
    inside = {name for s in groups for name in s.names}
    users = g.users()
    slices: dict[str, Value] = {}  # end of a chain -> its part of the wide result

    def visit(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
        name = n.outputs[0].name
        if name in first:
            slices.update(_widen(r, first[name], ins[0], _heads(first[name], users)))
        if name not in inside:
            return None
        return slices.get(name, n.outputs[0])  # what lies inside a chain is read by the chain alone, which is gone
    return rewrite(g, visit)


def constants_first(g: Graph) -> tuple[Graph, frozenset[str]]:
    """`g` with everything that follows from constants alone in front, and the names of these values."""
    static = set(g.constants)
    head: list[Node] = []
    tail: list[Node] = []
    for n in g.nodes:
        if n.operands and is_pure(n) and all(v.name in static for v in n.operands):
            static.update(v.name for v in n.outputs)
            head.append(n)
        else:
            tail.append(n)
    return g.replace(nodes=(*head, *tail)), frozenset(static)


def _find(g: Graph, static: frozenset[str], sites: Sites | None) -> list[Siblings]:
    candidates: dict[tuple[object, ...], list[Node]] = {}
    for n in g.nodes:
        if (key := _key(n, static)) is not None:
            candidates.setdefault(key, []).append(n)
    users, outputs = g.users(), {v.name for v in g.outputs}
    found = []
    for nodes in candidates.values():
        nodes = _aligned(nodes)
        if len(nodes) < 2:
            continue
        s = Siblings(tuple(nodes), _chain(nodes, users, outputs, static))
        fused = not any(_loses_epilogue(users.get(n.outputs[0].name, [])) for n in s.ends)
        if sites is not None:
            fused = sites.choose(_site(s, fused, users, static)) == "joined"
        if fused:
            found.append(s)
    return found


def _site(s: Siblings, fused: bool, users: Mapping[str, Sequence[Node]], static: frozenset[str]) -> Site:
    """The siblings, what follows them alike, and the maps that each may lose."""
    after = [u[0] for n in s.ends if _loses_epilogue(u := users.get(n.outputs[0].name, []))]
    nodes = [*s.nodes, *(n for row in s.chain for n in row.nodes), *dict.fromkeys(after)]
    return Site("siblings", ("joined", "apart") if fused else ("apart", "joined"), "joined" if fused else "apart",
                lambda: part(nodes, static))


def _loses_epilogue(users: Sequence[Node]) -> bool:
    """Whether a map follows that the sibling alone would apply in registers: behind a slice it takes a pass of its own."""
    return len(users) == 1 and is_map(users[0])


def _key(n: Node, static: frozenset[str]) -> tuple[object, ...] | None:
    """Contractions with equal keys can be widened into one."""
    if n.op not in ("matmul", "conv"):
        return None
    x, w, *bias = n.operands
    if x.name in static or any(v.name not in static for v in (w, *bias)):
        return None
    if n.op == "matmul":
        return ("matmul", x.name, w.type.shape[0]) if w.type.rank == 2 and x.type.rank >= 2 else None
    return ("conv", x.name, n.attrs, w.type.shape[1:]) if n.attrs.groups == 1 else None  # type: ignore[attr-defined]


def _aligned(nodes: list[Node]) -> list[Node]:
    """Convolutions: those whose channels fill whole blocks, and at most one other, at the end."""
    if nodes[0].op == "matmul":
        return nodes
    whole = [n for n in nodes if n.outputs[0].type.shape[1] % CHANNEL_BLOCK == 0]
    rest = [n for n in nodes if n.outputs[0].type.shape[1] % CHANNEL_BLOCK]
    return whole + rest[:1]


def _chain(nodes: Sequence[Node], users: Mapping[str, list[Node]], outputs: set[str], static: frozenset[str]) -> tuple[Row, ...]:
    chain: list[Row] = []
    row: tuple[Node, ...] = tuple(nodes)
    while True:
        following = [users.get(n.outputs[0].name, []) for n in row]
        if any(len(f) != 1 or n.outputs[0].name in outputs for f, n in zip(following, row, strict=True)):
            break
        after = tuple(f[0] for f in following)
        keys = {_follow_key(f, n.outputs[0], static, nodes[0].op) for f, n in zip(after, row, strict=True)}
        if len(keys) != 1 or None in keys:
            break
        row = after
        chain.append(Row(row, keys == {("bias",)}))
    return tuple(chain)


def _follow_key(n: Node, x: Value, static: frozenset[str], op: str) -> tuple[object, ...] | None:
    """Nodes with equal keys can be applied to the wide result of `op` instead."""
    if not is_map(n) or len(n.outputs) != 1 or n.outputs[0].type != x.type or n.operands.count(x) != 1:
        return None
    others = [v for v in n.operands if v != x]
    if any(v.name not in static for v in others):
        return None
    if op == "matmul" and n.op == "add" and others[0].type.shape == x.type.shape[-1:]:
        return ("bias",)
    if all(v.type.size == 1 for v in others):
        return (n.op, n.attrs, tuple(None if v is None or v == x else v.name for v in n.inputs))
    return None


def _heads(s: Siblings, users: Mapping[str, Sequence[Node]]) -> int:
    """The number of heads that every reader takes each sibling's columns apart into, where all have as many; else 1. Fewer heads
    of keys than of queries would leave the queries' heads at no fixed distance."""
    if s.nodes[0].op != "matmul":
        return 1
    counts = set()
    for n in s.ends:
        columns = n.outputs[0].type.shape[-1]
        for u in users.get(n.outputs[0].name, ()):
            heads, size = (1, 1, *u.outputs[0].type.shape)[-2:]
            counts.add(heads if u.op == "reshape" and heads * size == columns > 0 else 1)
    return counts.pop() if len(counts) == 1 else 1


def _widen(r: Rewriter, s: Siblings, x: Value | None, heads: int) -> dict[str, Value]:
    """Emits the wide contraction, what follows it and the slices; chain end -> slice. The first heads of all siblings stand side
    by side, then the second ones, and so on: a thread that computes a part of the columns has whole heads for what follows."""
    node = s.nodes[0]
    axis = 1 if node.op == "conv" else node.outputs[0].type.rank - 1
    sizes = [n.outputs[0].type.shape[axis] for n in s.nodes]
    weights = _beside(r, [n.operands[1] for n in s.nodes], 0 if node.op == "conv" else 1, heads)
    y = r.b.emit(node.op, (x, weights, *_biases(r, s.nodes)), node.attrs, hint=f"{node.outputs[0].name}.wide")[0]
    before = s.nodes
    for row in s.chain:
        y = _follow(r, row, [n.outputs[0] for n in before], y, heads)
        before = row.nodes
    if heads > 1:
        y = reshape(r.b, y, (*y.type.shape[:-1], heads, sum(sizes) // heads))
        sizes, axis = [k // heads for k in sizes], axis + 1
    parts = [slice_axis(r.b, y, axis, sum(sizes[:k]), sizes[k]) for k in range(len(sizes))]
    return {n.outputs[0].name: v if heads == 1 else reshape(r.b, v, n.outputs[0].type.shape) for n, v in zip(s.ends, parts, strict=True)}


def _beside(r: Rewriter, parts: Sequence[Value], axis: int, heads: int) -> Value:
    """The parts one after another, or by turns a head of each."""
    if heads == 1:
        return concat(r.b, parts, axis)
    apart = [reshape(r.b, v, (*v.type.shape[:axis], heads, v.type.shape[axis] // heads)) for v in parts]
    whole = concat(r.b, apart, axis + 1)
    return reshape(r.b, whole, (*whole.type.shape[:axis], sum(v.type.shape[axis] for v in parts)))


def _biases(r: Rewriter, nodes: Sequence[Node]) -> tuple[Value, ...]:
    """The joined biases of convolutions; none where no sibling has one."""
    biases = [n.inputs[2] if len(n.inputs) > 2 else None for n in nodes]
    if all(b is None for b in biases):
        return ()
    return (concat(r.b, [b if b is not None else _zeros(r, n) for b, n in zip(biases, nodes, strict=True)], 0),)


def _zeros(r: Rewriter, n: Node) -> Value:
    t = n.outputs[0].type
    return r.b.constant(np.zeros(t.shape[1], t.dtype.numpy))


def _follow(r: Rewriter, row: Row, results: Sequence[Value], y: Value, heads: int) -> Value:
    n = row.nodes[0]
    if row.bias:
        biases = [next(v for v in m.operands if v != x) for m, x in zip(row.nodes, results, strict=True)]
        return r.b.op("add", y, _beside(r, biases, 0, heads))
    return r.b.emit(n.op, [y if v == results[0] else v for v in n.inputs], n.attrs, hint=n.outputs[0].name)[0]
