"""Cycles of a contraction's microkernels with their ragged edges: what the counts over whole tiles do not tell."""
from __future__ import annotations

import math

from ...backends.target import Target
from ...compiler.schedule.contraction_nest import Roles

ENTER = 40.0  # cycles to enter and leave a microkernel


def tile_cycles(r: Roles, tile: tuple[int, int, int], lanes: int, target: Target) -> float:
    """Over the whole contraction, from operands in the first cache. `tile`: rows, columns, vectors. Rows and columns are balanced,
    of vectors the last tile has fewer."""
    rows, columns, vectors = tile
    split = r.vector.extent > lanes or not r.n
    n = -(-r.vector.extent // lanes) if split else r.n[-1].extent
    others = (*r.batch, *r.m[:-2], *(r.n if split else r.n[:-1]))
    steps = math.prod(a.extent for a in r.k)
    total = 0.0
    for h, h_count in _balanced(r.m[-2].extent if len(r.m) > 1 else 1, rows):
        for w, w_count in _balanced(r.m[-1].extent if r.m else 1, columns):
            for v, v_count in ((vectors, n // vectors), (n % vectors, 1)):
                if v:
                    total += h_count * w_count * v_count * (_step(h * w, v, target) * steps + ENTER + h * w * v)
    return total * math.prod(a.extent for a in others)


def _step(points: int, vectors: int, target: Target) -> float:
    """One step of the reduction: multiply-add ports, load ports, or the latency of the accumulators' chains."""
    if not target.has_fma:
        return max((2 * points * vectors + points) / 3, 4.0)
    return max(points * vectors / 2, (points + vectors) / 2, 4.0)


def _balanced(extent: int, size: int) -> list[tuple[int, int]]:
    """(block, how many) of a split whose blocks differ by one at most."""
    blocks = -(-extent // size)
    low, more = divmod(extent, blocks)
    return [(s, n) for s, n in ((low + 1, more), (low, blocks - more)) if s and n]
