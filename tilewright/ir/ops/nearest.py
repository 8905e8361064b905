"""The nearest of stored points, without all distances in memory: distances of some rows to some points are compared with the
rows' k-th best while they are in registers (`backends/llvm/nearest.py`)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..graph import Attrs
from ..op import Op, Sample, register
from ..types import F64, I64, TensorType

TILE = 32    # points that lie together, column by column
MOST = 64    # neighbours that are kept in order by insertion


@dataclass(frozen=True, slots=True)
class NearestAttrs(Attrs):
    k: int = 1


def point_tiles(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tiles [tiles, columns, TILE] of -2 p, squares [tiles * TILE] of |p|^2) of points [n, columns]. Points that fill the last
    tile are infinitely far away."""
    n, width = points.shape
    padded = np.zeros((-(-n // TILE) * TILE, width))
    padded[:n] = points
    squares = np.full(len(padded), np.inf)
    squares[:n] = (points * points).sum(1)
    return np.ascontiguousarray(-2 * padded.reshape(-1, TILE, width).swapaxes(1, 2)), squares


@register
class Nearest(Op):
    """Squared distances and positions [rows, k] of the k points nearest to each row, nearest first; of equally distant ones the
    first come first. x [rows, columns], own [rows, 1] = |x|^2, and `point_tiles`; f64:

        distance[r, p] = max(0, sum_c x[r, c] * tiles[p / TILE, c, p % TILE] + squares[p] + own[r])

    Distances that are not finite count as none; what is then missing among the k is infinity, at the position's own number."""

    name, native = "nearest", True
    Attrs = NearestAttrs

    def infer(self, attrs: NearestAttrs, x: TensorType, own: TensorType, tiles: TensorType, squares: TensorType) -> tuple[TensorType, ...]:
        good = (x.rank == 2 and own == TensorType(F64, (x.shape[0], 1)) and tiles == TensorType(F64, (*tiles.shape[:1], x.shape[1], TILE))
                and squares == TensorType(F64, (tiles.shape[0] * TILE,)) and 1 <= attrs.k <= min(MOST, squares.size) and x.dtype == F64)
        if not good:
            raise self.fail(f"{attrs.k} of {squares} {tiles} near {x} {own}")
        shape = (x.shape[0], attrs.k)
        return TensorType(F64, shape), TensorType(I64, shape)

    def reference(self, attrs: NearestAttrs, x: np.ndarray, own: np.ndarray, tiles: np.ndarray,
                  squares: np.ndarray) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            d = np.maximum(np.einsum("rc,tcp->rtp", x, tiles).reshape(len(x), -1) + squares + own, 0)
        d = np.where(np.isfinite(d), d, np.inf)
        order = np.argsort(d, axis=1, kind="stable")[:, :attrs.k]
        near = np.take_along_axis(d, order, axis=1)
        return near, np.where(np.isinf(near), np.arange(attrs.k), order)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        for rows, n, width, k in ((1, 33, 3, 1), (9, 200, 5, 7), (3, 32, 1, 32), (6, 100, 17, 64)):
            points, x = rng.standard_normal((n, width)), rng.standard_normal((rows, width))
            yield Sample((x, (x * x).sum(1, keepdims=True), *point_tiles(points)), NearestAttrs(k), 1e-9)
        points = np.repeat(rng.integers(-2, 3, (30, 4)), 3, 0).astype(float)  # many at the same distance
        x = np.concatenate([points[:5], [[np.nan, 0, 0, 0], [np.inf, 0, 0, 0]]])
        yield Sample((x, (x * x).sum(1, keepdims=True), *point_tiles(points)), NearestAttrs(8), 1e-9)
