"""What kind of computation an op is, derived from its tensor computations; fusion decides on nothing else.

    layout       every element is one element of one input, moved: reshape, transpose, slice, pad, concat
    map          an element from a few elements: arithmetic, select, masks by position, gather; no reduction
    reduce       reductions, with maps around them: sums, pooling, softmax, layer norm
    contraction  a sum of products of two operands over distinct axes: matmul, convolution
    irregular    no computation given: code of an emitter or loops for numba
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from .affine import linear
from .expr import Axis, Buffer, Call, Cast, Expr, Load, Reduce, Var, axes_of, loads, reduces, walk
from .graph import Node
from .op import OPS
from .program import Compute
from .types import TensorType

EXPENSIVE = frozenset({"exp", "log", "expm1", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh",
                       "asinh", "acosh", "atanh", "erf", "pow", "atan2", "fmod", "gelu", "exp_nonpos"})
_MEDIUM = frozenset({"div", "sqrt", "floordiv", "mod"})


def kind(computes: Sequence[Compute] | None) -> str:
    """The kind of an op from its computations (None or empty: irregular)."""
    if not computes:
        return "irregular"
    if any(is_contraction(c) for c in computes):
        return "contraction"
    if any(reduces(c.body) for c in computes):
        return "reduce"
    return "layout" if len(computes) == 1 and is_layout(computes[0].body) and not _masks(computes[0]) else "map"


def is_contraction(c: Compute) -> bool:
    """Sum over a product of two loads, each perhaps cast or guarded, that share a summed axis and differ in the others: a
    matmul, a convolution (grouped and depthwise ones too). A row's sum of squares is not one."""
    for r in reduces(c.body):
        if r.kind == "sum" and (pair := product_loads(r.body)):
            a, b = (set().union(*(axes_of(i) for i in x.index)) if x.index else set() for x in pair)
            if (a & b) & set(r.axes) and a != b:
                return True
    return False


def product_loads(body: Expr) -> tuple[Load, Load] | None:
    """The two loads of a body `f(x) * g(w)`, where f and g are casts or differences with a zero point, else None."""
    while isinstance(body, Cast):
        body = body.arg
    if not (isinstance(body, Call) and body.fn == "mul"):
        return None
    sides = [_factor(a) for a in body.args]
    return None if sides[0] is None or sides[1] is None else (sides[0], sides[1])


def _factor(e: Expr) -> Load | None:
    while isinstance(e, Cast) or isinstance(e, Call) and e.fn == "sub":
        e = e.arg if isinstance(e, Cast) else e.args[0]
    return e if isinstance(e, Load) else None


def is_layout(body: Expr) -> bool:
    """Only loads, guards and choices between loads by position; index arithmetic does not depend on data."""
    found = loads(body)
    inner = {id(n) for x in found for i in (*x.index, *((x.where,) if x.where is not None else ())) for n in walk(i)}
    if not found or any(id(x) in inner for x in found) or len({x.buffer.dtype for x in found}) != 1:
        return False
    return _moves(body)


def _masks(c: Compute) -> bool:
    """A choice between the element in place and others: nothing moves (a triangle, a band of a matrix)."""
    own = tuple(linear(Var(a)) for a in c.axes)
    return isinstance(c.body, Call) and all(tuple(map(linear, x.index)) == own for x in loads(c.body))


def _moves(e: Expr) -> bool:
    match e:
        case Load(_, index, _, _):
            return not any(isinstance(n, (Load, Reduce)) for i in index for n in walk(i))
        case Call("select", (cond, a, b), _):
            return not loads(cond) and all(_moves(x) or not loads(x) for x in (a, b))
    return False


@dataclass(frozen=True, slots=True)
class Access:
    """How the computes of one op read one of its inputs.

    same:      every load is at the result's own index, outside any reduction, in a result of the input's shape.
    pointwise: each dimension is indexed by the result's axis of that place (counted from the right) or is broadcast; no reduction.
    rows:      in every compute, dimension k is indexed by that compute's axis k or by one of its reduce axes.
    evaluations: how many times loads of it are evaluated, all loads and iterations counted.
    """

    same: bool
    pointwise: bool
    rows: bool
    evaluations: int


def accesses(computes: Sequence[Compute], buffers: Sequence[Buffer | None]) -> tuple[Access | None, ...]:
    """How the computes read each of `buffers` (None where that is None)."""
    found: dict[str, list[tuple[Compute, Load, bool]]] = {b.name: [] for b in buffers if b is not None}
    for c in computes:
        red = reduces(c.body)
        inside = {id(n) for r in red for n in walk(r.body)} if red else set()
        for x in loads(c.body):
            if x.buffer.name in found:
                found[x.buffer.name].append((c, x, id(x) not in inside))
    return tuple(None if b is None else _access(b, found[b.name]) for b in buffers)


def _access(buffer: Buffer, found: list[tuple[Compute, Load, bool]]) -> Access:
    same = pointwise = rows = True
    evaluations = 0
    for c, x, outside in found:
        evaluations += prod(a.extent for a in (c.axes if outside else (*c.axes, *c.reduce_axes)))
        own = c.axes[len(c.axes) - len(x.index):]
        plain = x.where is None and outside and len(own) == len(x.index)
        hits = [_axis(i) for i in x.index]
        same &= plain and c.buffer.shape == buffer.shape and all(
            h == a or a.extent == 1 and n == 1 for h, a, n in zip(hits, own, buffer.shape, strict=True))
        pointwise &= plain and all(h == a or n == 1 for h, a, n in zip(hits, own, buffer.shape, strict=True))
        rows &= x.where is None and all(n == 1 or h is not None and (h in c.reduce_axes or k < len(c.axes) and h == c.axes[k])
                                        for k, (h, n) in enumerate(zip(hits, buffer.shape, strict=True)))
    return Access(same, pointwise, rows, evaluations)


def _axis(e: Expr) -> Axis | None:
    x = linear(e)
    if x.const == 0 and len(x.terms) == 1 and x.terms[0][1] == 1 and isinstance(x.terms[0][0], Axis):
        return x.terms[0][0]
    return None


def cost(body: Expr) -> int:
    """Rough cost of one element in simple operations: an exp or a gelu counts 16 (they take about as
    many instructions), a division 4, index arithmetic nothing."""
    index = {id(n) for x in loads(body, rare=False) for i in x.index for n in walk(i)}
    total = 0
    for n in walk(body, rare=False):
        if isinstance(n, Call) and id(n) not in index:
            total += 16 if n.fn in EXPENSIVE else 4 if n.fn in _MEDIUM else 1
        elif isinstance(n, Load) and any(isinstance(m, Load) for i in n.index for m in walk(i)):
            total += 4
        elif isinstance(n, Cast):
            total += 1
    return total


@dataclass(frozen=True, slots=True)
class OpInfo:
    """What fusion needs to know of one op at given types. `access` has an entry for each input (None: absent).

    cost:      simple operations for one element of the first result, reductions not counted.
    moved:     a layout op that is one plain load (no guard, no choice between loads).
    row_shape: reductions along the last dimensions of their first input: that input's shape; else None.
    row_rank:  how many leading dimensions of row_shape count rows.
    """

    kind: str
    access: tuple[Access | None, ...]
    cost: int
    reads: int
    moved: bool = False
    row_shape: tuple[int, ...] | None = None
    row_rank: int = 0


def describe(node: Node, cache: dict[tuple[object, ...], OpInfo]) -> OpInfo:
    """The node's OpInfo; equal ops at equal types are analysed once per `cache`."""
    types = tuple(None if v is None else v.type for v in node.inputs)
    key = (node.op, node.attrs, types)
    if key not in cache:
        cache[key] = _describe(node, types)
    return cache[key]


def _describe(node: Node, types: tuple[TensorType | None, ...]) -> OpInfo:
    ins = tuple(None if t is None else Buffer(f"in{k}", t.dtype, t.shape) for k, t in enumerate(types))
    computes = OPS[node.op].compute(node.attrs, tuple(v.type for v in node.outputs), *ins)
    if not computes:
        return OpInfo("irregular", (None,) * len(ins), 0, 0)
    reads = accesses(computes, ins)
    k = kind(computes)
    body = computes[-1].body
    info = OpInfo(k, reads, cost(body), len(loads(body, rare=False)), k == "layout" and isinstance(body, Load) and body.where is None)
    if k == "reduce" and ins and ins[0] is not None and reads[0] is not None and reads[0].rows:
        rank = _row_rank(computes, ins[0])
        if rank is not None:
            return replace(info, row_shape=ins[0].shape, row_rank=rank)
    return info


def _row_rank(computes: Sequence[Compute], x: Buffer) -> int | None:
    """How many leading dimensions of x are never reduced over, where all the others always are; None: mixed."""
    found: set[frozenset[int]] = set()
    for c in computes:
        for r in reduces(c.body):
            for n in loads(r.body):
                if n.buffer.name == x.name:
                    found.add(frozenset(k for k, i in enumerate(n.index) if _axis(i) in r.axes))
    if len(found) != 1:
        return None
    dims = set(next(iter(found))) | {k for k, n in enumerate(x.shape) if n == 1}
    rank = len(x.shape)
    while rank and rank - 1 in dims:
        rank -= 1
    return rank if all(x.shape[k] == 1 for k in dims if k < rank) else None
