"""Attention as one group: softmax along rows together with the matmul that makes its rows and the one that reads them.

    %s = matmul(%q, %k)      group 0  contraction  matmul + mul + add
    %c = mul(%s, 0.125)                                                    group 0  attention
    %m = add(%c, %mask)                                            ->        matmul + mul + add + softmax + matmul
    %p = softmax(%m)         group 1  reduce       softmax
    %y = matmul(%p, %v)      group 2  contraction  matmul

Whatever maps stand between (scale, masks, soft caps) are in the first group already. The scores then exist for a block of
rows only, in a thread's own cache (schedule/attention.py).
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..ir.ops.softmax import SoftmaxAttrs
from ..ir.types import F32, F64

if TYPE_CHECKING:
    from .fuse import _Cluster, _Fuser

MIN_QUERIES = 8       # fewer rows leave most lanes idle: three kernels are better
MAX_KEYS = 1 << 14    # scores of one vector of rows stay within a second-level cache
MAX_HEAD = 256        # elements of a query or a value


def join_attention(f: _Fuser) -> None:
    """Joins the three groups of every attention in the graph, where the scores are read by nothing else."""
    for k, n in enumerate(f.nodes):
        if n.op == "softmax":
            _join(f, k)


def _join(f: _Fuser, k: int) -> None:
    rows = f.of[k]
    shape = f.nodes[k].outputs[0].type.shape
    attrs = f.nodes[k].attrs
    assert isinstance(attrs, SoftmaxAttrs)
    if rows.kind != "reduce" or attrs.axis != len(shape) - 1 or len(shape) < 2 or f.nodes[k].outputs[0].type.dtype not in (F32, F64):
        return
    if shape[-2] < MIN_QUERIES or not 2 <= shape[-1] <= MAX_KEYS:
        return
    before, after = _scores(f, rows, shape), _product(f, rows, shape)
    if before is None or after is None or before is after or not f.fits(before, rows, after):
        return
    if f.cycle(before, rows) or not f.chosen("attention", "joined", "apart", [*before.nodes, *rows.nodes, *after.nodes]):
        return
    f.merge(rows, before, f"{f.text(before.anchor)} joins softmax: its rows are read where they are made")
    if f.cycle(rows, after):
        return
    f.merge(after, rows, f"{f.text(rows.anchor)} joins matmul: its rows are multiplied where they are made")
    after.kind = "attention"


def _scores(f: _Fuser, rows: _Cluster, shape: tuple[int, ...]) -> _Cluster | None:
    """The matmul, with the maps after it, that makes what `rows` reads, and nothing else reads."""
    found = {f.of[f.made[name]] for name in f.inputs(rows.nodes) if name in f.made}
    found = {c for c in found if c.kind == "contraction" and c.shape == shape}
    if len(found) != 1:
        return None
    c = found.pop()
    n = f.nodes[c.anchor]
    escaped = f.escapes(c)
    alone = all(v.name not in f.results and all(f.of[u] is rows for u in f.users.get(v.name, ())) for v in escaped)
    return c if n.op == "matmul" and alone and len(escaped) == 1 and n.operands[0].type.shape[-1] <= MAX_HEAD else None


def _product(f: _Fuser, rows: _Cluster, shape: tuple[int, ...]) -> _Cluster | None:
    """The matmul whose first operand is all that leaves `rows`."""
    escaped = f.escapes(rows)
    if len(escaped) != 1 or escaped[0].name in f.results or escaped[0].type.shape != shape:
        return None
    users = f.users.get(escaped[0].name, [])
    if len(users) != 1:
        return None
    c, n = f.of[users[0]], f.nodes[users[0]]
    if c.kind != "contraction" or c.anchor != users[0] or n.op != "matmul" or n.operands[0] != escaped[0] or n.operands[1] == escaped[0]:
        return None
    out = n.outputs[0].type.shape
    return c if out[:-1] == shape[:-1] and 2 <= out[-1] <= MAX_HEAD and len(f.escapes(c)) == 1 else None
