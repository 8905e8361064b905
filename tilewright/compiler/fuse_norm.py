"""Layer norm in the epilogue of the product before it: whole rows of a block are made, then normalised while they are in the cache.

    %t = matmul(%x, @w) + @b + %r   group 0  contraction  matmul + add + add
    %y = layer_norm(%t)             group 1  reduce       layer_norm            ->   group 0  contraction  matmul + add + add + layer_norm

The sum %t, where others need it too (the residual stream of a transformer that normalises first), is written by the same kernel. It
pays where what goes from kernel to kernel does not stay in the second-level cache, and the weights, which every block reads again, do
(`pays`). The schedule is schedule/product_rows.py's.
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
DOUBTFUL = 4      # so many times fewer rows than there are steps are worth a measurement when the model is tuned


def join_norms(f: _Fuser, target: Target) -> None:
    """Joins layer norms over the last dimension with the product that makes their rows, where that pays."""
    for k, n in enumerate(f.nodes):
        if n.op == "layer_norm":
            _join(f, k, target)


def pays(rows: int, steps: int, columns: int, target: Target) -> bool:
    """Whether [rows, steps] @ [steps, columns] should normalise its rows itself. Saved is what the sums wait for on their way back from
    beyond the second-level cache (3137x64x64 and 785x128x128 with 2 MiB of it: x1.2 of two kernels); where they have stayed in it
    nothing is (1024x64x64: x1.02, 1024x128x64: x0.96)."""
    moved = 4 * rows * (steps + 3 * columns)  # operand, residual, sum and result
    return _fits(rows, steps, columns, target) and moved >= target.l2 * 3 // 4


def _fits(rows: int, steps: int, columns: int, target: Target) -> bool:
    """Whether there are rows enough: weights from memory, at 0.04 ns a byte, have less to hide behind in one block than in all. And
    whether the weights stay in the second-level cache while the blocks go by."""
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
    if not joined and not _fits(rows * DOUBTFUL, steps, columns, target):
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
                and f._row_reads(norm, p) and f.fits(p, norm) and not f.cycle(p, norm) and _plain(f, p, norm) and _first(f, p, norm):
            return p
    return None


def _first(f: _Fuser, p: _Cluster, norm: _Cluster) -> bool:
    """Whether nothing of `norm` is computed before the product, and nothing but the product reads its weights, which will be packed."""
    w = f.nodes[p.anchor].operands[1].name
    return p.anchor < min(norm.nodes) and sum(v.name == w for k in (*p.nodes, *norm.nodes) for v in f.nodes[k].operands) == 1


def _by_weights(f: _Fuser, n: Node) -> bool:
    return n.op == "matmul" and len(n.operands[1].type.shape) == 2 and n.operands[1].name in f.static \
        and len(n.operands[0].type.shape) >= 2 and n.operands[0].name not in f.static


def _plain(f: _Fuser, *clusters: _Cluster) -> bool:
    """All values are f32, and each node has one."""
    nodes = [f.nodes[k] for c in clusters for k in c.nodes]
    return all(len(n.outputs) == 1 and v.type.dtype == F32 for n in nodes for v in (*n.operands, *n.outputs))
