"""Winograd's convolution as one computation, strip by strip: what a strip's transforms make and read stays in a core's cache.

A strip is `rows` rows of tiles of one image. For each, one thread makes V = B' d B, M = U V and y = A' M A in memory of
its own, so threads meet nowhere inside the convolution and only images and weights travel. The weights U are read once a
strip: images are cut where V and M of the whole outgrow the second-level cache (passes/winograd_choice.py), while
ops/winograd.py has the steps apart for few tiles with large weights. Matrices, errors and rescue are those given there.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..expr import Buffer, Expr, cast
from ..graph import Attrs
from ..op import Op, Sample, register
from ..program import Compute, compute, reduce, rescue
from ..types import F64, TensorType
from .winograd import plain_sums, spread_weights
from .winograd_tiles import TILES, entry, transform


@dataclass(frozen=True, slots=True)
class StripAttrs(Attrs):
    """height, width: of the results. tile: results of a tile each way, 2 or 4. rows: tile rows of a strip."""

    height: int = 0
    width: int = 0
    tile: int = 4
    rows: int = 1

    @property
    def strips(self) -> int:
        """Strips of one image."""
        return -(-self.height // (self.tile * self.rows))

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the image that is read: whole strips of whole tiles, and what their windows reach beyond."""
        return self.strips * self.rows * self.tile + 2, transform(self.tile).count(self.width) * self.tile + 2


@register
class ConvWinograd(Op):
    """x [N, I/c, *padded, c], w [B * c, I, 3, 3], its transform u [span * span, B * c, I], bias [B, c] or absent
    -> [N, B, height, width, c].

    Results that are not finite are computed again from x and w as direct sums, carried in f64."""

    name = "conv_winograd"
    Attrs = StripAttrs

    def infer(self, attrs: StripAttrs, x: TensorType, w: TensorType, u: TensorType,
              bias: TensorType | None = None) -> tuple[TensorType, ...]:
        if attrs.tile not in TILES or attrs.rows < 1:
            raise self.fail(f"{attrs}: tiles have 2 or 4 results each way, strips at least one row of them")
        if x.rank != 5 or x.shape[2:4] != attrs.padded:
            raise self.fail(f"image {x} is not {attrs.padded[0]} x {attrs.padded[1]}, as {attrs} needs it")
        n, blocks, _, _, c = x.shape
        if w.rank != 4 or w.shape[0] % c or w.shape[2:] != (3, 3) or -(-w.shape[1] // c) != blocks:
            raise self.fail(f"weight {w} does not fit image {x}")
        if u.shape != (transform(attrs.tile).points, *w.shape[:2]) or (bias is not None and bias.shape != (w.shape[0] // c, c)):
            raise self.fail(f"transformed weight {u} and bias {bias} do not fit {w}")
        return (TensorType(x.dtype, (n, w.shape[0] // c, attrs.height, attrs.width, c)),)

    def reference(self, attrs: StripAttrs, x: np.ndarray, w: np.ndarray, u: np.ndarray,
                  bias: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        f = transform(attrs.tile)
        c, m = x.shape[4], f.tile
        d = np.lib.stride_tricks.sliding_window_view(x, (f.span, f.span), (2, 3))[:, :, ::m, ::m]  # n b th tw c r s
        b_t, a_t = np.array(f.b_t, x.dtype), np.array(f.a_t, x.dtype)
        v = np.einsum("ir,nbhwcrs,js->ijnhwbc", b_t, d, b_t, optimize=True)
        v = v.reshape(f.points, -1, x.shape[1] * c)[:, :, :w.shape[1]]
        grid = (v @ u.swapaxes(1, 2)).reshape(f.span, f.span, x.shape[0], *d.shape[2:4], -1, c)
        y = np.einsum("pi,ijnhwbc,qj->nbhpwqc", a_t, grid, a_t, optimize=True)
        y = y.reshape(*y.shape[:2], d.shape[2] * m, d.shape[3] * m, c)[:, :, :attrs.height, :attrs.width]
        y = np.ascontiguousarray(y)
        plain_sums(y, x, w)
        return (y if bias is None else y + bias[None, :, None, None, :],)

    def compute(self, attrs: StripAttrs, outs: tuple[TensorType, ...], x: Buffer, w: Buffer, u: Buffer,
                bias: Buffer | None = None) -> tuple[Compute, ...]:
        f, rows, strips = transform(attrs.tile), attrs.rows, attrs.strips
        n, blocks, _, _, c = outs[0].shape
        m, span, across = f.tile, f.span, f.count(attrs.width)

        def half_in(image: Expr, s: Expr, b: Expr, t: Expr, i: Expr, q: Expr, lane: Expr) -> Expr:
            return reduce("sum", (span,), lambda r: entry(f.b_t, i, r)
                          * x[image, b, (s * rows + t // across) * m + r, t % across * m + q, lane])
        h = compute("half", x.dtype, (n, strips, x.shape[1], rows * across, span, span, c), half_in)

        def transformed(image: Expr, s: Expr, p: Expr, b: Expr, t: Expr, lane: Expr) -> Expr:
            return reduce("sum", (span,), lambda q: entry(f.b_t, p % span, q) * h.buffer[image, s, b, t, p // span, q, lane])
        v = compute("v", x.dtype, (n, strips, f.points, x.shape[1], rows * across, c), transformed)

        def multiplied(image: Expr, s: Expr, p: Expr, b: Expr, t: Expr, lane: Expr) -> Expr:
            return reduce("sum", (w.shape[1],), lambda k: v.buffer[image, s, p, k // c, t, k % c] * u[p, b * c + lane, k])
        z = compute("m", x.dtype, (n, strips, f.points, blocks, rows * across, c), multiplied)

        def half_out(image: Expr, s: Expr, b: Expr, t: Expr, e: Expr, i: Expr, q: Expr, lane: Expr) -> Expr:
            return reduce("sum", (span,), lambda j: entry(f.a_t, q, j) * z.buffer[image, s, i * span + j, b, t * across + e, lane])
        g = compute("half2", x.dtype, (n, strips, blocks, rows, across, span, m, c), half_out)

        def result(image: Expr, b: Expr, row: Expr, column: Expr, lane: Expr) -> Expr:
            fast = reduce("sum", (span,), lambda i: entry(f.a_t, row % m, i)
                          * g.buffer[image, row // (m * rows), b, row // m % rows, column // m, i, column % m, lane])
            y: Expr = rescue(fast, w.shape[1:], lambda k, r, s: cast(x[image, k // c, row + r, column + s, k % c], F64)
                             * cast(w[b * c + lane, k, r, s], F64))
            return y if bias is None else y + bias[b, lane]
        return (h, v, z, g, compute("out0", x.dtype, outs[0].shape, result))

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)

        def sample(attrs: StripAttrs, n: int, c: int, i: int, o: int, bias: bool = True, bad: bool = False) -> Sample:
            x, w, b = (rng.standard_normal(s).astype("f4") for s in ((n, -(-i // c), *attrs.padded, c), (o, i, 3, 3), (o // c, c)))
            if bad:
                x[0, 1, 4, 5, 1], x[1, 0, 0, 11, 0], x[1, 1, 8, 0, 3] = np.inf, np.nan, np.inf  # the last is no channel of w
                w[5, 2, 1, 1] = 0
            return Sample((x, w, spread_weights(w, attrs.tile), b if bias else None), attrs, 1e-4 if bad else 1e-5)
        yield sample(StripAttrs(7, 10, 4, 2), 2, 4, 6, 8)
        yield sample(StripAttrs(9, 13, 4, 1), 1, 16, 16, 16, bias=False)
        yield sample(StripAttrs(5, 6, 2, 2), 1, 4, 7, 8)
        yield sample(StripAttrs(10, 9, 4, 1), 2, 4, 6, 8, bad=True)
