"""Threads get even shares of the work where tiles are ragged."""
from __future__ import annotations

from itertools import pairwise

import pytest

from tests.compiler.programs import matmul_relu
from tilewright.backends.llvm.emit import parallel_extent, parallel_loops
from tilewright.backends.target import Target
from tilewright.compiler.schedule.contraction import schedule_contraction
from tilewright.compiler.schedule.contraction_nest import Tile
from tilewright.compiler.shares import shares
from tilewright.ir.expr import Axis
from tilewright.ir.loops import Loop, Scheduled, Split, Stage

V4 = Target.parse("x86-64-v4")


def _points(s: Scheduled) -> list[int]:
    """Elements of the result that each iteration computes, by the definition of splits."""
    (st,) = s.stages
    loops = sorted(parallel_loops(s), key=lambda x: -x.major)
    sizes: list[list[int]] = []
    for x in loops:
        r = next((r for r in st.relations if isinstance(r, Split) and r.outer == x.axis), None)
        sizes.append([size for _, n, size, _ in r.segments() for _ in range(n)] if r else [1] * x.axis.extent)
    out = [1]
    for row in sizes:
        out = [a * b for a in out for b in row]
    return out


@pytest.mark.parametrize("team", [2, 3, 7])
@pytest.mark.parametrize("shape", [(128, 96, 384), (131, 64, 200), (77, 400, 96), (197, 768, 768)])
def test_shares_of_ragged_tiles(shape: tuple[int, int, int], team: int) -> None:
    """No share differs from an even one by more than the largest iteration."""
    s = schedule_contraction(matmul_relu(*shape), V4, frozenset({"w"}), Tile(1, 9, 3))
    assert s is not None
    points = _points(s)
    assert len(points) == parallel_extent(s) and sum(points) == shape[0] * shape[2]
    cuts = shares(s, parallel_loops(s), team) or tuple(len(points) * t // team for t in range(1, team))
    bounds = [0, *cuts, len(points)]
    assert bounds == sorted(bounds) and len(bounds) == team + 1
    for a, b in pairwise(bounds):
        assert abs(sum(points[a:b]) - sum(points) / team) <= max(points)


def test_even_iterations_need_no_cuts() -> None:
    s = schedule_contraction(matmul_relu(128, 64, 384), V4, frozenset({"w"}), Tile(1, 8, 3))
    assert s is not None and shares(s, parallel_loops(s), 2) == ()


def test_one_long_block_and_a_short_one() -> None:
    """100 rows in blocks of 64: the second thread gets more blocks' worth of columns of the first."""
    (c,) = matmul_relu(100, 8, 10).computes
    i, j = c.axes
    cut = Split(i, Axis("o", 2), Axis("i", 64))
    st = Stage(c, (Loop(cut.outer, "parallel"), Loop(j, "parallel"), Loop(cut.inner), Loop(c.reduce_axes[0], reduce=True)), (cut,))
    s = Scheduled(matmul_relu(100, 8, 10), (st,))
    assert shares(s, parallel_loops(s), 2) == (8,)  # 8 * 64 of 1000 elements
