"""The matrices of Winograd's minimal filtering F(m x m, 3 x 3) for tiles of m = 2 and 4 results each way.

    y = A' [ (G w G') * (B' d B) ] A        d: (m+2) x (m+2) inputs, w: 3 x 3 weights, y: m x m results

Lavin and Gray 2015, arXiv:1509.09308, sections 4.1 and 4.2. A channel pair costs 16 products a tile for m = 2 (36 of a
direct sum) and 36 for m = 4 (of 144). Larger tiles need larger constants, and these lose digits: docs/accuracy.md.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..expr import Expr, Table
from ..types import F32

Rows = tuple[tuple[float, ...], ...]
TILES = (2, 4)


@dataclass(frozen=True, slots=True)
class Transform:
    """F(tile x tile, 3 x 3): `span` inputs of a tile each way; b_t [span, span], g [span, 3], a_t [tile, span]."""

    tile: int
    b_t: Rows
    g: Rows
    a_t: Rows

    @property
    def span(self) -> int:
        return self.tile + 2

    @property
    def points(self) -> int:
        """Products of a channel pair and a tile."""
        return self.span * self.span

    def count(self, n: int) -> int:
        """Tiles that cover n results."""
        return -(-n // self.tile)


_F2 = Transform(2, ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
                ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
                ((1, 1, 1, 0), (0, 1, -1, -1)))
_F4 = Transform(4, ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
                    (0, 4, 0, -5, 0, 1)),
                ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6),
                 (0, 0, 1)),
                ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)))


def transform(tile: int) -> Transform:
    """The matrices for tiles of 2 or 4 results each way."""
    return {2: _F2, 4: _F4}[tile]


def entry(rows: Rows, i: Expr, j: Expr) -> Table:
    """rows[i][j] as an expression."""
    return Table(tuple(float(v) for r in rows for v in r), i * len(rows[0]) + j, F32)


def spread(x: np.ndarray, tile: int) -> np.ndarray:
    """G @ x along the first dimension, written out: no matrix library with threads of its own, and half the operations."""
    a, b, c = x
    if tile == 2:
        even, odd = (a + c) / 2, b / 2
        return np.stack((a, even + odd, even - odd, c))
    even, odd = (a + c) / -6, b / 6
    wide, step = a / 24 + c / 6, b / 12
    return np.stack((a / 4, even - odd, even + odd, wide + step, wide - step, c))
