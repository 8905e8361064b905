"""Which ops run together: cuts a graph into groups, each of which becomes one kernel.

    %0 = matmul(%x, @w)      group 0  contraction  matmul + add + relu
    %1 = add(%0, @b)           %1: add joins matmul: it reads each element where it is made
    %2 = relu(%1)              %2: relu joins matmul: …
    %3 = reshape(%2)         group 1  layout       reshape (a view or a copy, see compiler/views.py)

Requires: every op has computations or is irregular. Ensures: each node is in one group; groups are in an order of
execution; a value is a group's output only where another group or the caller reads it.

Steps, in order: maps after a contraction or reduction join it (epilogue); reductions over the same rows and the maps
between them join; softmax joins the contractions before and after it (fuse_attention.py), layer norm the product before it
(fuse_norm.py); remaining maps form chains from
their last op backwards, taking cheap producers in; siblings that read the same tensor over the same domain join. Each step
adds a sentence to the group's `why`.
"""
from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..backends.target import Target
from ..ir.graph import Graph, Node, Value
from ..ir.kinds import Access, OpInfo, describe
from ..ir.ops.pool import POOLS
from .fuse_attention import join_attention
from .fuse_norm import join_norms
from .fuse_windows import join_windows
from .sites import Site, Sites, part

MAX_EPILOGUE_NODES = 32
MAX_NODES = 64           # of a group: beyond, kernels run out of registers and compile for long
MAX_INPUTS = 12          # pointers a kernel keeps in registers, about
CHEAP = 4                # simple operations that are worth repeating to save a pass over memory
MAX_ROW = 1 << 16        # elements of a row that stay in a core's own cache


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that become one kernel. `kind` is contraction, attention, reduce, map, layout or irregular; `anchor` the node that
    decides how it is scheduled; `why` the decisions that made it, one sentence each."""

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    anchor: Node
    kind: str
    why: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return "+".join(n.op for n in self.nodes)


@dataclass(frozen=True, slots=True)
class Partition:
    groups: tuple[Group, ...]

    def __str__(self) -> str:
        lines = []
        for k, g in enumerate(self.groups):
            lines.append(f"group {k}  {g.kind:<11} {g.label} -> {', '.join(map(repr, g.outputs))}")
            lines += [f"    {w}" for w in g.why]
        return "\n".join(lines)


@dataclass(eq=False, slots=True)
class _Cluster:
    id: int
    nodes: list[int]
    anchor: int
    kind: str
    shape: tuple[int, ...]                       # iteration domain of its maps
    rows: tuple[tuple[int, ...], int] | None = None
    why: list[str] = field(default_factory=list)


def fuse(graph: Graph, sites: Sites | None = None, weights: Iterable[str] = (),
         target: Target | None = None) -> Partition:
    """The graph's groups in order of execution. `sites`: who chooses where the better way is not certain (default: the rules here).
    `weights`: the inputs that follow from weights alone. `target`: whose caches groups may be made for."""
    f = _Fuser(graph, sites, frozenset(weights))
    f.epilogues("contraction")
    f.epilogues("reduce")
    f.rows()
    join_attention(f)
    if target is not None:
        join_windows(f, target)
        join_norms(f, target)
    f.producers()
    f.siblings()
    return Partition(f.groups())


class _Fuser:
    def __init__(self, graph: Graph, sites: Sites | None, weights: frozenset[str]):
        self.graph, self.nodes = graph, graph.nodes
        self.sites, self.static = sites, weights | set(graph.constants)
        cache: dict[tuple[object, ...], OpInfo] = {}
        self.info = [describe(n, cache) for n in self.nodes]
        self.made = {v.name: k for k, n in enumerate(self.nodes) for v in n.outputs}
        self.users: dict[str, list[int]] = {}
        for k, n in enumerate(self.nodes):
            for v in dict.fromkeys(n.operands):
                self.users.setdefault(v.name, []).append(k)
        self.results = {v.name for v in graph.outputs}
        self.of = [_Cluster(k, [k], k, i.kind, n.outputs[0].type.shape if n.outputs else (),
                            (i.row_shape, i.row_rank) if i.row_shape is not None else None)
                   for k, (n, i) in enumerate(zip(self.nodes, self.info, strict=True))]
        self.succ = [{u for v in n.outputs for u in self.users.get(v.name, ())} for n in self.nodes]
        self.reach = [0] * len(self.nodes)     # by cluster id: bit set of the clusters below it
        for k in reversed(range(len(self.nodes))):
            for u in self.succ[k]:
                self.reach[k] |= self.reach[u] | 1 << u
        self.live = set(range(len(self.nodes)))
        self.post = self._post_dominators()

    def _post_dominators(self) -> list[int]:
        """For each node the first node that all paths to the outputs go through; -1: the end of the graph."""
        post, depth = [-1] * len(self.nodes), [1] * len(self.nodes)
        for k in reversed(range(len(self.nodes))):
            if any(v.name in self.results for v in self.nodes[k].outputs) or not self.succ[k]:
                continue
            a = -2
            for u in self.succ[k]:
                b = u
                while a not in (-2, b):
                    if a == -1 or b == -1:
                        a = b = -1
                    elif depth[a] >= depth[b]:
                        a = post[a]
                    else:
                        b = post[b]
                a = b
            post[k], depth[k] = a, 1 + (depth[a] if a >= 0 else 0)
        return post

    # -- merging -----------------------------------------------------------------------------------------------------
    def successors(self, c: _Cluster) -> set[int]:
        return {self.of[u].id for k in c.nodes for u in self.succ[k]} - {c.id}

    def cycle(self, a: _Cluster, b: _Cluster) -> bool:
        """Whether joining a and b would make a path leave the group and come back."""
        for x, y in ((a, b), (b, a)):
            if self.reach[x.id] >> y.id & 1 and any(s != y.id and self.reach[s] >> y.id & 1 for s in self.successors(x)):
                return True
        return False

    def merge(self, into: _Cluster, other: _Cluster, why: str) -> None:
        self.live.discard(other.id)
        into.nodes = sorted(into.nodes + other.nodes)
        into.why += [*other.why, why]
        for k in other.nodes:
            self.of[k] = into
        both = 1 << into.id | 1 << other.id
        below = (self.reach[into.id] | self.reach[other.id]) & ~both
        self.reach[into.id] = below
        for x in self.live:
            if x != into.id and self.reach[x] & both:
                self.reach[x] |= below | 1 << into.id

    def chosen(self, kind: str, usual: str, other: str, nodes: Iterable[int]) -> bool:
        """Whether some nodes are to be computed the usual way."""
        if self.sites is None:
            return True
        mine = [self.nodes[k] for k in sorted(nodes)]
        return self.sites.choose(Site(kind, (usual, other), usual, lambda: part(mine, self.static))) == usual

    def inputs(self, nodes: Iterable[int]) -> dict[str, Value]:
        nodes = set(nodes)
        return {v.name: v for k in sorted(nodes) for v in self.nodes[k].operands if self.made.get(v.name) not in nodes}

    def fits(self, *clusters: _Cluster) -> bool:
        """Whether all together stay within a kernel's limits."""
        nodes = [k for c in clusters for k in c.nodes]
        return len(nodes) <= MAX_NODES and len(self.inputs(nodes)) <= MAX_INPUTS

    def escapes(self, c: _Cluster) -> list[Value]:
        """Values of c that something outside it reads."""
        return [v for k in c.nodes for v in self.nodes[k].outputs
                if v.name in self.results or any(self.of[u] is not c for u in self.users.get(v.name, ()))]

    def reads(self, k: int, names: set[str]) -> list[Access]:
        """How node k accesses the values in `names`."""
        return [a for v, a in zip(self.nodes[k].inputs, self.info[k].access, strict=True) if v is not None and v.name in names and a]

    def text(self, k: int) -> str:
        n = self.nodes[k]
        return f"{n.op} (%{n.outputs[0].name})"

    # -- maps after an anchor ----------------------------------------------------------------------------------------
    def epilogues(self, kind: str) -> None:
        for k in reversed(range(len(self.nodes))):
            if self.info[k].kind == kind and len(self.nodes[k].outputs) == 1 and len(self.of[k].nodes) == 1:
                self._epilogue(k)

    def _epilogue(self, anchor: int) -> None:
        c, tail = self.of[anchor], anchor
        while (end := self.post[tail]) >= 0:
            region = self._between(tail, end)
            if region is None or len(c.nodes) + len(region) > MAX_EPILOGUE_NODES or len(self.inputs([*c.nodes, *region])) > MAX_INPUTS:
                return
            inside = {v.name for k in [tail, *region] for v in self.nodes[k].outputs}
            if not all(a.same for k in region for a in self.reads(k, inside)):
                return
            if any(self.info[k].cost > CHEAP for k in region) and not self.chosen("epilogue", "joined", "apart", [*c.nodes, *region]):
                return
            for k in sorted(region):
                if self.cycle(c, self.of[k]):
                    return
                self.merge(c, self.of[k], f"{self.text(k)} joins {self.nodes[anchor].op}: it reads each element where it is made")
            tail = end

    def _between(self, start: int, end: int) -> list[int] | None:
        """The nodes on all paths from start to end, end included; None where one is not a map of its own."""
        found, stack = {end}, [u for u in self.succ[start] if u != end]
        while stack:
            k = stack.pop()
            if k not in found:
                found.add(k)
                stack += self.succ[k]
            if len(found) > MAX_EPILOGUE_NODES:
                return None
        ok = all(self.info[k].kind == "map" and len(self.of[k].nodes) == 1 and len(self.nodes[k].outputs) == 1 for k in found)
        return sorted(found) if ok else None

    # -- reductions along rows ---------------------------------------------------------------------------------------
    def rows(self) -> None:
        """Reductions over the last dimensions, with the maps before, between and after them that have the same rows."""
        for k in range(len(self.nodes)):
            if self.info[k].row_shape is not None:
                c, before = self.of[k], -1
                while before != len(c.nodes):
                    before = len(c.nodes)
                    self._row_step(c)

    def _row_step(self, c: _Cluster) -> None:
        assert c.rows is not None
        shape, rank = c.rows
        size = 1
        for n in shape[rank:]:
            size *= n
        if size > MAX_ROW or not size:
            return
        for name in list(self.inputs(c.nodes)):
            p = self.of[self.made[name]] if name in self.made else None
            if p is not None and p is not c and self._row_like(p, c) and self._row_reads(c, p):
                self._join(c, p, "its rows are read again by")
        for v in self.escapes(c):
            for u in self.users.get(v.name, ()):
                d = self.of[u]
                if d is not c and self._row_like(d, c) and self._row_reads(d, c):
                    self._join(c, d, "it reads the same rows as")

    def _row_like(self, d: _Cluster, c: _Cluster) -> bool:
        """d computes over c's rows: a reduction along them, or maps of the rows' shape or one element a row."""
        assert c.rows is not None
        if d.kind == "reduce":
            return d.rows == c.rows
        shape, rank = c.rows
        return d.kind == "map" and (d.shape == shape or d.shape in (shape[:rank], shape[:rank] + (1,) * (len(shape) - rank)))

    def _row_reads(self, d: _Cluster, made_in: _Cluster) -> bool:
        """Every read of made_in's values by d stays within a row."""
        names = {v.name for k in made_in.nodes for v in self.nodes[k].outputs}
        return all(a.same or a.pointwise or a.rows for k in d.nodes for a in self.reads(k, names))

    def _join(self, c: _Cluster, other: _Cluster, why: str) -> None:
        if not self.cycle(c, other) and self.fits(c, other):
            self.merge(c, other, f"{self.text(other.anchor)}: {why} {self.nodes[c.anchor].op}")

    # -- producers into consumers ------------------------------------------------------------------------------------
    def producers(self) -> None:
        """From the last cluster backwards: maps and movements that a cluster alone needs are computed inside it."""
        for k in reversed(range(len(self.nodes))):
            c = self.of[k]
            if c.nodes[-1] != k or c.kind in ("layout", "irregular"):
                continue
            queue = list(self.inputs(c.nodes))
            while queue:
                name = queue.pop()
                p = self.of[self.made[name]] if name in self.made else c
                if p is not c and (why := self._absorbs(c, p)):
                    fresh = list(self.inputs(p.nodes))
                    self.merge(c, p, f"{self.text(p.anchor)}: {why}")
                    queue += fresh

    def _absorbs(self, c: _Cluster, p: _Cluster) -> str:
        """Why c should compute p itself, "" where it should not."""
        if p.kind not in ("map", "layout") or not self.fits(c, p):
            return ""
        names = {v.name for v in self.escapes(p)}
        readers = [k for k in c.nodes if self.reads(k, names)]
        accesses = [(k, a) for k in readers for a in self.reads(k, names)]
        alone = not names & self.results and all(self.of[u] is c for n in names for u in self.users[n])
        if p.kind == "layout":
            fits = c.kind == "map" and alone and all(self.info[k].moved for k in p.nodes) and self._keeps_rows(p)
            return "a movement that only changes where the maps read" if fits else ""
        maps_only = all(self.info[k].kind == "map" for k in readers)
        if not alone:
            same = c.kind == "map" and c.shape == p.shape and all(a.same for _, a in accesses)
            return "also needed elsewhere, stored while it is at hand" if same and not self.cycle(p, c) else ""
        if self.cycle(p, c):
            return ""
        if maps_only and all(a.same for _, a in accesses):
            return "read once, where it is made"
        cheap = sum(self.info[k].cost for k in p.nodes) <= CHEAP and sum(self.info[k].reads for k in p.nodes) <= 2
        if maps_only and (all(a.pointwise for _, a in accesses) and (cheap or c.shape == p.shape)):
            return "cheap enough to repeat for each use"
        once = sum(a.evaluations for _, a in accesses) <= max(self.nodes[p.anchor].outputs[0].type.size, 1)
        if c.kind not in ("map", "reduce") or len(accesses) != 1 or self.info[accesses[0][0]].kind not in ("map", "reduce", "layout"):
            return ""
        if self.nodes[accesses[0][0]].op in POOLS:
            return self._pooled(c, p, once)
        return "each element is read once" if once else ""

    def _pooled(self, c: _Cluster, p: _Cluster, once: bool) -> str:
        """Why the pool in c should compute p itself. Windows that overlap compute some elements several times; a pass of its own
        writes and reads the whole image instead."""
        ways = ("joined", "apart") if once else ("apart", "joined")
        if self.chosen("pool", *ways, [*c.nodes, *p.nodes]) != once:
            return ""
        return "each element is read once" if once else "repeated where windows overlap, which measured faster than a pass of its own"

    def _keeps_rows(self, p: _Cluster) -> bool:
        """Movements whose innermost elements stay neighbours (or are one repeated element): free to read through."""
        n = self.nodes[p.anchor]
        if len(p.nodes) > 1 or n.inputs[0] is None:
            return False
        return innermost_step(n) in (0, 1)

    # -- siblings ----------------------------------------------------------------------------------------------------
    def siblings(self) -> None:
        """Maps over one domain that read the same tensor in the same place share a loop: it is read once."""
        for name, users in self.users.items():
            found: list[_Cluster] = []
            for k in users:
                c = self.of[k]
                if c.kind != "map" or c in found or not all(a.same for m in c.nodes for a in self.reads(m, {name})):
                    continue
                mate = next((d for d in found if self._mates(d, c)), None)
                if mate is None:
                    found.append(c)
                else:
                    self.merge(mate, c, f"{self.text(c.anchor)} runs beside {self.nodes[mate.anchor].op}: both read %{name}")

    def _mates(self, d: _Cluster, c: _Cluster) -> bool:
        apart = not (self.reach[c.id] >> d.id & 1 or self.reach[d.id] >> c.id & 1)
        pointers = len(self.inputs([*d.nodes, *c.nodes])) + len(self.escapes(d)) + len(self.escapes(c))
        return apart and d.shape == c.shape and pointers <= MAX_INPUTS and len(c.nodes) + len(d.nodes) <= MAX_NODES

    # -- result ------------------------------------------------------------------------------------------------------
    def groups(self) -> tuple[Group, ...]:
        clusters = {c.id: c for c in self.of}
        after = {i: self.successors(c) for i, c in clusters.items()}
        waiting = dict.fromkeys(clusters, 0)
        for s in after.values():
            for x in s:
                waiting[x] += 1
        ready = [(c.nodes[0], i) for i, c in clusters.items() if not waiting[i]]
        heapq.heapify(ready)
        out: list[Group] = []
        while ready:
            _, i = heapq.heappop(ready)
            out.append(self._group(clusters[i]))
            for x in after[i]:
                waiting[x] -= 1
                if not waiting[x]:
                    heapq.heappush(ready, (clusters[x].nodes[0], x))
        assert len(out) == len(clusters), "fusion made a cycle"
        return tuple(out)

    def _group(self, c: _Cluster) -> Group:
        nodes = tuple(self.nodes[k] for k in c.nodes)
        outputs = tuple(v for n in nodes for v in n.outputs) if c.kind == "irregular" else tuple(self.escapes(c))
        return Group(nodes, tuple(self.inputs(c.nodes).values()), outputs, self.nodes[c.anchor], c.kind, tuple(c.why))


def innermost_step(n: Node) -> int:
    """How far apart in (contiguous) memory a one-load layout op reads the elements of its last dimension that has more
    than one; -1: not a fixed distance."""
    from ..ir.affine import Div, address, linear
    from ..ir.expr import Axis, Buffer, Load, axes_of
    from ..ir.op import OPS
    x = n.inputs[0]
    assert x is not None
    made = OPS[n.op].compute(n.attrs, tuple(v.type for v in n.outputs), Buffer("x", x.type.dtype, x.type.shape))
    assert made and isinstance(made[0].body, Load)
    last = next((a for a in reversed(made[0].axes) if a.extent > 1), None)
    if last is None:
        return 1
    for i in made[0].body.index:
        odd = [a for a, _ in linear(i).terms if not isinstance(a, Axis)]
        if odd and (last in axes_of(i) or not all(isinstance(a, Div) for a in odd)):  # repeated rows are as good as rows
            return -1
    return address(made[0].body).coefficient(last)
