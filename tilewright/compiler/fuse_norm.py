"""Layer norm in the epilogue of the product before it: whole rows of a block are made, then normalised while they are in the cache.

    %t = matmul(%x, @w) + @b + %r   group 0  contraction  matmul + add + add
    %y = layer_norm(%t)             group 1  reduce       layer_norm            ->   group 0  contraction  matmul + add + add + layer_norm

The sum %t, where others need it too (the residual stream of a transformer that normalises first), is written by the same kernel. Blocks
of rows mean that all weights go by for each of them, the first time before there is anything to hide them behind: that pays for many
rows and few weights (`pays`). The schedule is schedule/product_rows.py's.
"""
from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ..backends.target import Target
from ..ir.graph import Node
from ..ir.types import F32

if TYPE_CHECKING:
    from .fuse import _Cluster, _Fuser

LEAST_ROWS = 128  # fewer are not worth the code
DOUBTFUL = 4      # so many times fewer rows than pay by the rule are worth a measurement when the model is tuned


def join_norms(f: _Fuser) -> None:
    """Joins layer norms over the last dimension with the product that makes their rows, where that pays on the target of `f.sites`."""
    if f.sites is None:
        return
    for k, n in enumerate(f.nodes):
        if n.op == "layer_norm":
            _join(f, k, f.sites.target)


def pays(rows: int, steps: int, columns: int, target: Target) -> bool:
    """Whether [rows, steps] @ [steps, columns] should normalise its rows itself. Saved is a trip of rows * columns elements through the
    second-level cache, about 0.2 ns each; it costs 0.04 ns a byte of weights that are read for a part of the rows only when they
    come from memory. They are to stay in that cache while the blocks go by."""
    return rows >= max(steps, columns // 2, LEAST_ROWS) and 4 * steps * columns <= target.l2 // 2


def _join(f: _Fuser, k: int, target: Target) -> None:
    norm = f.of[k]
    if norm.kind != "reduce" or norm.rows is None or norm.rows[1] != len(norm.rows[0]) - 1:
        return
    product = _product(f, norm)
    if product is None:
        return
    x, w = f.nodes[product.anchor].operands[:2]
    rows, steps, columns = prod(x.type.shape[:-1]), *w.type.shape
    joined = pays(rows, steps, columns, target)
    if not joined and not pays(rows * DOUBTFUL, steps, columns, target):
        return
    usual, other = ("joined", "apart") if joined else ("apart", "joined")
    if f.chosen("norm", usual, other, [*product.nodes, *norm.nodes]) == joined:
        f.merge(product, norm, f"{f.text(k)} joins matmul: its rows are normalised where they are made")


def _product(f: _Fuser, norm: _Cluster) -> _Cluster | None:
    """The product by weights whose rows `norm` reads."""
    assert norm.rows is not None
    for name in f.inputs(norm.nodes):
        p = f.of[f.made[name]] if name in f.made else None
        if p is not None and p.kind == "contraction" and p.shape == norm.rows[0] and _by_weights(f, f.nodes[p.anchor]) \
                and f._row_reads(norm, p) and f.fits(p, norm) and not f.cycle(p, norm) and _plain(f, p, norm):
            return p
    return None


def _by_weights(f: _Fuser, n: Node) -> bool:
    return n.op == "matmul" and len(n.operands[1].type.shape) == 2 and n.operands[1].name in f.static \
        and len(n.operands[0].type.shape) >= 2 and n.operands[0].name not in f.static


def _plain(f: _Fuser, *clusters: _Cluster) -> bool:
    """All values are f32, and each node has one."""
    nodes = [f.nodes[k] for c in clusters for k in c.nodes]
    return all(len(n.outputs) == 1 and v.type.dtype == F32 for n in nodes for v in (*n.operands, *n.outputs))
