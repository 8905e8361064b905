"""Default schedule of attention, softmax(Q K' * scale + mask) V, as one kernel in which scores never leave the cache.

A block of query rows goes through all stages at once. Rows of queries are lanes, so scores stand transposed, keys by
queries: a row's maximum and sum need no shuffles, masks over keys are scalars, and neither keys nor values are rearranged.

    parallel b, h, i.o {                                          a block of up to four vectors of queries
      q_columns[d, i]              = q[i, d]                      transposed in registers, and so are masks over both
      s[j, i]   for j tiles:       microkernel { for d: scalar k[j, d] * vector q_columns[d, i] }, scale, mask
      m[i] = max j: s;  e[j, i] = exp(s - m);  r[i] = 1 / sum j: e
      y[i, d]   for i, d tiles:    microkernel { for j: scalar e[j, i] * vector v[j, d] } * r[i]
    }
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from ...backends.target import Target
from ...ir.expr import Axis, Buffer, Call, Expr, Load, Reduce, Var, axes_of, call, children, loads, reduces, rewrite, substitute, walk
from ...ir.kinds import is_contraction, product_loads
from ...ir.loops import Loop, Relation, Scheduled, Split, Stage
from ...ir.program import Compute, Program
from .parallel import mark_parallel
from .rows import access, lanes_of
from .rows_nest import rename_shared, shared_depth

UNROLLED_FMAS = 64  # as in contraction.py
CHAINS = 4          # independent accumulators of a maximum or a sum: hide the latency of an operation


@dataclass(frozen=True, slots=True)
class Roles:
    """`scores` is Q K' with what follows it element by element; `rows` the computes of the softmax; `out` the product with V.
    All share `lead` (batch axes) and `row`, the axis of queries. `q` is the operand of scores that has it."""

    lead: tuple[Axis, ...]
    row: Axis
    scores: Compute
    q: Load
    rows: tuple[Compute, ...]
    out: Compute


def attention_vectors(p: Program, target: Target) -> tuple[int, int] | None:
    """(vectors of queries in a block by default, vectors that hold all queries); None for a program that is no attention."""
    roles = find_roles(p)
    if roles is None:
        return None
    lanes = lanes_of(roles.scores, target)
    return _block_vectors(roles.row.extent, lanes, target), -(-roles.row.extent // lanes)


def schedule_attention(p: Program, target: Target, vectors: int | None = None) -> Scheduled | None:
    """The schedule of a program that is attention; None for any other. `vectors`: of queries in a block, in place of as many as
    would be chosen."""
    roles = find_roles(p)
    if roles is None:
        return None
    lanes = lanes_of(roles.scores, target)
    roles, columns = _with_columns(_positions_apart(roles))
    roles = _keys_first(roles)
    roles, masks = _with_masks(roles)
    vectors = vectors or _block_vectors(roles.row.extent, lanes, target)
    split = _split(roles.row, vectors * lanes) if roles.row.extent > vectors * lanes else None
    shared = mark_parallel([Loop(a) for a in (*roles.lead, *((split.outer,) if split else ()))], len(roles.lead) + (split is not None))
    block = _Block(shared, split, roles.row, vectors, lanes, target)
    stages = [*map(block.columns, (columns, *masks)), block.scores(roles.scores), *map(block.softmax, roles.rows), block.out(roles.out)]
    stages = [replace(st, shared=len(shared) if k else 0) for k, st in enumerate(stages)]
    return Scheduled(Program(p.name, p.inputs, p.outputs, tuple(st.compute for st in stages)), tuple(stages))


# -- recognition -----------------------------------------------------------------------------------------------------------
def find_roles(p: Program) -> Roles | None:
    """What each compute of an attention program does; its axes are renamed so that shared ones are the same."""
    if len(p.computes) < 3 or len(p.outputs) != 1 or p.computes[-1].buffer != p.outputs[0]:
        return None
    depth = shared_depth(p)
    if depth < 1:
        return None
    scores, *rows, out = rename_shared(p, depth).computes
    out = hoist_factors(out)
    if not (is_contraction(scores) and is_contraction(out)) or any(is_contraction(c) for c in rows):
        return None
    row = out.axes[depth - 1]
    if len(scores.axes) != depth + 1 or len(out.axes) != depth + 1 or any(len(c.axes) not in (depth, depth + 1) for c in rows):
        return None
    q, k = _operands(scores, row)
    e, v = _operands(out, row)
    local = {c.buffer.name for c in (scores, *rows)}
    if q is None or k is None or e is None or v is None or e.buffer.name not in local or v.buffer.name in local:
        return None
    if row in axes_of(k.index[-1]) or access(v).step(out.axes[-1]) != 1 or access(out).step(out.axes[-1]) != 1:
        return None
    return Roles(out.axes[:depth - 1], row, scores, q, tuple(rows), out)


def _operands(c: Compute, row: Axis) -> tuple[Load | None, Load | None]:
    """(the operand of a contraction that has the axis of rows, the one that has the last axis); None where not so."""
    nodes = reduces(c.body)
    pair = product_loads(nodes[0].body) if len(nodes) == 1 and nodes[0].kind == "sum" else None
    for x, y in (pair, pair[::-1]) if pair else ():
        has_x, has_y = (set().union(*map(axes_of, z.index)) if z.index else set() for z in (x, y))
        if row in has_x and row not in has_y and c.axes[-1] in has_y and c.axes[-1] not in has_x and x.where is None and y.where is None:
            return x, y
    return None, None


def hoist_factors(c: Compute) -> Compute:
    """rewrite: sum k: x[k] * s * y[k]  ->  (sum k: x[k] * y[k]) * s, for the factors s of a float product that do not depend on k."""
    def factors(e: Expr) -> list[Expr]:
        return [f for a in e.args for f in factors(a)] if isinstance(e, Call) and e.fn == "mul" else [e]

    def visit(n: Expr) -> Expr | None:
        if not isinstance(n, Reduce) or n.kind != "sum" or not n.dtype.is_float:
            return None
        parts = factors(n.body)
        inside = [f for f in parts if axes_of(f) & set(n.axes)]
        if len(inside) == len(parts) or not inside:
            return None
        out: Expr = Reduce(n.kind, n.axes, _product(inside))
        return _product([out, *(f for f in parts if f not in inside)])
    return replace(c, body=rewrite(c.body, visit))


def _product(factors: list[Expr]) -> Expr:
    out = factors[0]
    for f in factors[1:]:
        out = call("mul", out, f)
    return out


# -- the program that is scheduled -----------------------------------------------------------------------------------------
def _positions_apart(r: Roles) -> Roles:
    """Masks by position (causal ones) in a compute of their own, since a microkernel knows addresses, not positions:
    rewrite s[i, j] = select(j <= i, sum, x)  ->  p[i, j] = sum; s[i, j] = select(j <= i, p[i, j], x)."""
    c = r.scores
    (total,) = reduces(c.body)
    if not _uses_positions(c.body):
        return r
    buffer = Buffer(f"{c.buffer.name}_products", total.dtype, c.buffer.shape)
    key = c.axes[-1]
    own = Axis(f"{key.name}_p", key.extent)
    at = Load(buffer, tuple(map(Var, c.axes)))
    body = substitute(rewrite(c.body, lambda n: at if isinstance(n, Reduce) else None), {key: Var(own)})
    return replace(r, scores=Compute(buffer, c.axes, total), rows=(Compute(c.buffer, (*c.axes[:-1], own), body), *r.rows))


def _uses_positions(body: Expr) -> bool:
    """Whether loop variables are values or conditions, not only indices."""
    stack, seen = [body], set()
    while stack:
        n = stack.pop()
        if isinstance(n, Var):
            return True
        if id(n) not in seen:
            seen.add(id(n))
            stack += [] if isinstance(n, Load) and n.where is None else children(n)
    return False


def _with_columns(r: Roles) -> tuple[Roles, Compute]:
    """The queries through a local copy whose last axis is the row: rewrite q[.., i, .. d] -> q_columns[lead, d, i]."""
    depth = r.scores.reduce_axes
    own = tuple(Axis(f"{a.name}_q", a.extent) for a in depth)
    axes = (*r.lead, *own, r.row)
    buffer = Buffer(f"{r.q.buffer.name}_columns", r.q.dtype, tuple(a.extent for a in axes))
    copy = Compute(buffer, axes, substitute(r.q, {a: Var(b) for a, b in zip(depth, own, strict=True)}))
    at = tuple(map(Var, (*r.lead, *depth, r.row)))

    def visit(n: Expr) -> Expr | None:
        return Load(buffer, at) if isinstance(n, Load) and n.buffer == r.q.buffer and n.index == r.q.index else None
    body = rewrite(r.scores.body, visit)
    return replace(r, scores=replace(r.scores, body=body)), copy


def _keys_first(r: Roles) -> Roles:
    """Locals of rows and keys get the row as their last axis: rewrite t[lead, i, j] -> t[lead, j, i]."""
    new: dict[str, Buffer] = {}

    def one(c: Compute) -> Compute:
        def visit(n: Expr) -> Expr | None:
            if isinstance(n, Load) and n.buffer.name in new:
                return Load(new[n.buffer.name], (*n.index[:-2], n.index[-1], n.index[-2]))
            return None
        body = rewrite(c.body, visit)
        if c is r.out or len(c.axes) == len(r.lead) + 1:
            return replace(c, body=body)
        axes = (*c.axes[:-2], c.axes[-1], c.axes[-2])
        new[c.buffer.name] = Buffer(c.buffer.name, c.buffer.dtype, tuple(a.extent for a in axes))
        return Compute(new[c.buffer.name], axes, body)
    scores = one(r.scores)
    return replace(r, scores=scores, rows=tuple(map(one, r.rows)), out=one(r.out))


def _with_masks(r: Roles) -> tuple[Roles, list[Compute]]:
    """What is read by rows of keys beside the product (masks, position biases), through local copies laid out as the scores:
    rewrite x[.., i, j] -> x_columns[lead, j, i]. Their lanes would be gathered one by one otherwise."""
    copies: list[Compute] = []

    def one(c: Compute) -> Compute:
        if len(c.axes) != len(r.lead) + 2:
            return c
        key, inside = c.axes[-2], {id(n) for x in reduces(c.body) for n in walk(x.body)}
        new: dict[int, Load] = {}
        for x in loads(c.body):
            where = access(x)
            if id(x) not in inside and x.where is None and where.step(key) == 1 and where.step(r.row) not in (0, 1, None):
                buffer = Buffer(f"{x.buffer.name}_columns{len(copies)}", x.dtype, tuple(a.extent for a in c.axes))
                own = Axis(f"{key.name}_m{len(copies)}", key.extent)
                copies.append(Compute(buffer, tuple(own if a == key else a for a in c.axes), substitute(x, {key: Var(own)})))
                new[id(x)] = Load(buffer, tuple(map(Var, c.axes)))
        return replace(c, body=rewrite(c.body, lambda n: new.get(id(n)))) if new else c
    return replace(r, scores=one(r.scores), rows=tuple(map(one, r.rows))), copies


# -- loops -----------------------------------------------------------------------------------------------------------------
def _block_vectors(rows: int, lanes: int, target: Target) -> int:
    """Vectors of queries in a block: as many as the register tile takes, in even blocks."""
    n, most = -(-rows // lanes), 4 if target.vector_registers >= 32 else 2
    return -(-n // -(-n // most))


def _split(a: Axis, size: int, tail: str = "peel") -> Split:
    return Split(a, Axis(f"{a.name}.o", -(-a.extent // size)), Axis(f"{a.name}.i", min(size, a.extent)), tail)


def _tile_rows(vectors: int, target: Target) -> int:
    """Rows of a register tile that is `vectors` wide."""
    return max(1, min(14, (target.vector_registers - 1 - vectors) // vectors))


@dataclass(frozen=True, slots=True)
class _Block:
    """Makes the stages: all have the loops `shared`, and `row` split by `split` (None: the rows are one block)."""

    shared: tuple[Loop, ...]
    split: Split | None
    row: Axis
    vectors: int
    lanes: int
    target: Target

    @property
    def inner(self) -> Axis:
        return self.split.inner if self.split else self.row

    @property
    def relations(self) -> list[Relation]:
        return [self.split] if self.split else []

    def columns(self, c: Compute) -> Stage:
        """The transposing copy, in square tiles where a vector of the source is contiguous."""
        relations, loops, tile, lanes = self.relations, [], [], lanes_of(c, self.target)
        own = [a for a in c.axes if a != self.row and a not in {x.axis for x in self.shared}]
        for a in (*own[-1:], self.inner):
            if a.extent > lanes:
                s = _split(a, lanes)
                relations.append(s)
                loops.append(Loop(s.outer))
                a = s.inner
            tile.append(Loop(a, "unroll"))
        tile[-1] = replace(tile[-1], kind="vector")
        return Stage(c, (*self.shared, *map(Loop, own[:-1]), *loops, *tile), tuple(relations))

    def scores(self, c: Compute) -> Stage:
        relations = self.relations
        key = c.axes[-2]
        rows = _tile_rows(self.vectors, self.target)
        s = _split(key, rows, "balance")
        relations.append(s)
        loops = [*self.shared, Loop(s.outer)]
        steps = self._sum(c, rows * self.vectors, relations)
        return Stage(c, (*loops, *steps, Loop(s.inner, "unroll"), Loop(self.inner, "vector")), tuple(relations), 0, len(loops))

    def softmax(self, c: Compute) -> Stage:
        """Queries as lanes; several accumulators where one chain a vector would wait for itself."""
        if not c.reduce_axes:
            own = [Loop(a) for a in c.axes if a != self.row and a not in {x.axis for x in self.shared}]
            return Stage(c, (*self.shared, *own, Loop(self.inner, "vector")), tuple(self.relations))
        relations = self.relations
        *outer, last = c.reduce_axes
        chains = min(-(-CHAINS // self.vectors), last.extent)
        loops = [Loop(a, reduce=True) for a in outer]
        if chains > 1:
            s = _split(last, chains)
            relations.append(s)
            loops += [Loop(s.outer, reduce=True), Loop(s.inner, "unroll", True, True)]
        else:
            loops.append(Loop(last, reduce=True))
        return Stage(c, (*self.shared, *loops, Loop(self.inner, "vector")), tuple(relations))

    def out(self, c: Compute) -> Stage:
        relations = self.relations
        wide = c.axes[-1]
        lanes = lanes_of(c, self.target)
        n = -(-wide.extent // lanes)
        most = 5 if self.target.vector_registers >= 32 else 2
        vectors = -(-n // -(-n // most))
        loops = [*self.shared]
        vector = wide
        if wide.extent > vectors * lanes:
            s = _split(wide, vectors * lanes)
            relations.append(s)
            loops.append(Loop(s.outer))
            vector = s.inner
        rows = _tile_rows(vectors, self.target)
        s = _split(self.inner, rows, "balance")
        relations.append(s)
        loops.append(Loop(s.outer))
        steps = self._sum(c, min(rows, self.inner.extent) * vectors, relations)
        return Stage(c, (*loops, *steps, Loop(s.inner, "unroll"), Loop(vector, "vector")), tuple(relations), 0, len(loops))

    def _sum(self, c: Compute, per_step: int, relations: list[Relation]) -> list[Loop]:
        """The reduction's loops, the last one partly unrolled."""
        *outer, last = c.reduce_axes
        unroll = max(1, min(16, UNROLLED_FMAS // per_step, last.extent))
        loops = [Loop(a, reduce=True) for a in outer]
        if unroll == 1:
            return [*loops, Loop(last, reduce=True)]
        if unroll == last.extent:
            return [*loops, Loop(last, "unroll", reduce=True)]
        even = [u for u in range(unroll, unroll // 2, -1) if last.extent % u == 0]
        s = Split(last, Axis(f"{last.name}.u.o", -(-last.extent // (even or [unroll])[0])), Axis(f"{last.name}.u.i", (even or [unroll])[0]))
        relations.append(s)
        return [*loops, Loop(s.outer, reduce=True), Loop(s.inner, "unroll", reduce=True)]
