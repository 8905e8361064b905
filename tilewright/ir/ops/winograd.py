"""Winograd's minimal filtering F(4x4, 3x3) on blocked images (Lavin and Gray 2015, arXiv:1509.09308, section 4.1).

A 3x3 convolution of stride 1 becomes, for each tile of 4x4 results, 36 products a channel pair instead of 144:

    U = G w G'      once, with the weights        [36, O, I]
    V = B' d B      6x6 inputs of each tile        winograd_input      [36, I/c, T, c]
    M = U V         36 matrix products             winograd_multiply   [36, O/c, T, c]
    y = A' M A      4x4 results of each tile       winograd_output     [N, O/c, H, W, c]

T counts the tiles of all images, rows first. The transforms add error: up to about 3e-5 of the largest result in f32,
against 3e-6 of a direct sum (measured in tests/compiler/test_winograd.py).

The transforms mix the 36 inputs of a tile, so an infinity among them would make NaN of results that do not read it, and
of some that are infinite. So winograd_output reads the image and the weights as well, and computes each result that is
not finite again as the direct sum. No other result needs it: y depends on every input it reads through some product that
an infinity or NaN there makes infinite or NaN, and nothing that is added to one of these makes it finite again.
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..expr import Buffer, Expr, cast
from ..graph import Attrs
from ..op import OPS, Op, Sample, register
from ..program import Compute, compute, reduce, rescue
from ..types import F64, TensorType
from .winograd_tiles import TILES, entry, spread, transform

_CHUNK = 2048  # channel pairs whose weights are transformed at once: temporaries stay in the second-level cache


@dataclass(frozen=True, slots=True)
class TileAttrs(Attrs):
    """tile: results of a tile each way, 2 or 4."""

    tile: int = 4


def spread_weights(w: np.ndarray, tile: int) -> np.ndarray:
    """w [O, I, 3, 3] -> G w G' as [span * span, O, I], by f64: the rounding of U counts in every product."""
    span = transform(tile).span
    u = np.empty((span, span, w.shape[0] * w.shape[1]), w.dtype)
    for at in range(0, u.shape[2], _CHUNK):
        part = np.moveaxis(w.reshape(-1, 3, 3)[at:at + _CHUNK], 0, 2).astype(np.float64, "C")
        u[:, :, at:at + _CHUNK] = spread(spread(part, tile).swapaxes(0, 1), tile).swapaxes(0, 1)
    return u.reshape(span * span, *w.shape[:2])


@register
class WinogradWeights(Op):
    """w [O, I, 3, 3] -> G w G' as [36, O, I]."""

    name = "winograd_weights"
    Attrs = TileAttrs

    def infer(self, attrs: TileAttrs, w: TensorType) -> tuple[TensorType, ...]:
        if w.rank != 4 or w.shape[2:] != (3, 3):
            raise self.fail(f"weight {w} is not 3x3")
        if attrs.tile not in TILES:
            raise self.fail(f"tiles have 2 or 4 results each way, not {attrs.tile}")
        return (TensorType(w.dtype, (transform(attrs.tile).points, *w.shape[:2])),)

    def reference(self, attrs: TileAttrs, w: np.ndarray) -> tuple[np.ndarray, ...]:
        return (spread_weights(w, attrs.tile),)

    def compute(self, attrs: TileAttrs, outs: tuple[TensorType, ...], w: Buffer) -> tuple[Compute, ...]:
        f = transform(attrs.tile)

        def body(x: Expr, o: Expr, i: Expr) -> Expr:
            return reduce("sum", (3, 3), lambda r, s: entry(f.g, x // f.span, r) * entry(f.g, x % f.span, s) * w[o, i, r, s])
        return (compute("out0", w.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        for tile in TILES:
            yield Sample((np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype("f4"),), TileAttrs(tile))


@register
class WinogradInput(Op):
    """x [N, B, H + 2, W + 2, c], H and W multiples of 4 -> [36, B, N * H/4 * W/4, c]."""

    name = "winograd_input"
    Attrs = TileAttrs

    def infer(self, attrs: TileAttrs, x: TensorType) -> tuple[TensorType, ...]:
        n, b, h, w, c = x.shape
        m = attrs.tile
        if m not in TILES or (h - 2) % m or (w - 2) % m:
            raise self.fail(f"{x} is not two more than whole tiles of {m} each way")
        return (TensorType(x.dtype, (transform(m).points, b, n * ((h - 2) // m) * ((w - 2) // m), c)),)

    def reference(self, attrs: TileAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        f = transform(attrs.tile)
        d = np.lib.stride_tricks.sliding_window_view(x, (f.span, f.span), (2, 3))[:, :, ::f.tile, ::f.tile]  # n b th tw c r s
        b_t = np.array(f.b_t, x.dtype)
        v = np.einsum("ir,nbhwcrs,js->ijbnhwc", b_t, d, b_t, optimize=True)
        return (np.ascontiguousarray(v.reshape(f.points, x.shape[1], -1, x.shape[4])),)

    def compute(self, attrs: TileAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        f = transform(attrs.tile)
        m, span = f.tile, f.span
        _, blocks, count, c = outs[0].shape
        tw = (x.shape[3] - 2) // m
        per_image = (x.shape[2] - 2) // m * tw

        def rows(b: Expr, t: Expr, i: Expr, s: Expr, lane: Expr) -> Expr:
            at = t % per_image
            return reduce("sum", (span,), lambda r: entry(f.b_t, i, r) * x[t // per_image, b, at // tw * m + r, at % tw * m + s, lane])
        half = compute("half", x.dtype, (blocks, count, span, span, c), rows)

        def body(p: Expr, b: Expr, t: Expr, lane: Expr) -> Expr:
            return reduce("sum", (span,), lambda s: entry(f.b_t, p % span, s) * half.buffer[b, t, p // span, s, lane])
        return (half, compute("out0", x.dtype, outs[0].shape, body))

    def samples(self) -> Iterable[Sample]:
        for tile in TILES:
            yield Sample((np.random.default_rng(0).standard_normal((2, 2, 10, 6, 4)).astype("f4"),), TileAttrs(tile))


@register
class WinogradMultiply(Op):
    """v [36, I/c, T, c] and u [36, O, I], O a multiple of c -> [36, O/c, T, c]: 36 matrix products."""

    name = "winograd_multiply"

    def infer(self, attrs: Attrs, v: TensorType, u: TensorType) -> tuple[TensorType, ...]:
        p, b, t, c = v.shape
        if u.shape[0] != p or u.shape[1] % c or not (b - 1) * c < u.shape[2] <= b * c:
            raise self.fail(f"{v} and {u} do not fit")
        return (TensorType(v.dtype, (p, u.shape[1] // c, t, c)),)

    def reference(self, attrs: Attrs, v: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
        p, b, t, c = v.shape
        plain = v.transpose(0, 1, 3, 2).reshape(p, b * c, t)[:, :u.shape[2]]
        m = u @ plain
        return (np.ascontiguousarray(m.reshape(p, -1, c, t).transpose(0, 1, 3, 2)),)

    def compute(self, attrs: Attrs, outs: tuple[TensorType, ...], v: Buffer, u: Buffer) -> tuple[Compute, ...]:
        c = v.shape[3]

        def body(p: Expr, ob: Expr, t: Expr, lane: Expr) -> Expr:
            return reduce("sum", (u.shape[2],), lambda k: v[p, k // c, t, k % c] * u[p, ob * c + lane, k])
        return (compute("out0", v.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        yield Sample((rng.standard_normal((36, 2, 7, 4)).astype("f4"), rng.standard_normal((36, 8, 7)).astype("f4")))


@dataclass(frozen=True, slots=True)
class ImageAttrs(Attrs):
    """Size of the images, and results of a tile each way."""

    height: int = 0
    width: int = 0
    tile: int = 4

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles of an image, down and across."""
        f = transform(self.tile)
        return f.count(self.height), f.count(self.width)


@register
class WinogradOutput(Op):
    """m [36, B, N * tiles, c], the image x [N, I/c, >= height + 2, >= width + 2, c] that m was made of, its weights
    w [B * c, I, 3, 3], bias [B, c] or absent -> [N, B, height, width, c].

    Results that are not finite are computed again from x and w as direct sums, carried in f64 (see the head of this file)."""

    name = "winograd_output"
    Attrs = ImageAttrs

    def infer(self, attrs: ImageAttrs, m: TensorType, x: TensorType, w: TensorType,
              bias: TensorType | None = None) -> tuple[TensorType, ...]:
        points, blocks, count, c = m.shape
        if attrs.tile not in TILES or points != transform(attrs.tile).points:
            raise self.fail(f"{m} does not hold tiles as {attrs} says")
        per_image = math.prod(attrs.tiles)
        if count % per_image or (bias is not None and bias.shape != (blocks, c)):
            raise self.fail(f"{m} and bias {bias} do not fit {attrs}")
        images = count // per_image
        if x.rank != 5 or x.shape[0] != images or x.shape[2] < attrs.height + 2 or x.shape[3] < attrs.width + 2:
            raise self.fail(f"image {x} does not fit {m} and {attrs}")
        if w.rank != 4 or w.shape[0] != blocks * c or w.shape[2:] != (3, 3) or -(-w.shape[1] // x.shape[4]) != x.shape[1]:
            raise self.fail(f"weight {w} does not fit {m} and image {x}")
        return (TensorType(m.dtype, (images, blocks, attrs.height, attrs.width, c)),)

    def reference(self, attrs: ImageAttrs, m: np.ndarray, x: np.ndarray, w: np.ndarray,
                  bias: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        _, b, t, c = m.shape
        f, (th, tw) = transform(attrs.tile), attrs.tiles
        grid = m.reshape(f.span, f.span, b, t // (th * tw), th, tw, c)
        a_t = np.array(f.a_t, m.dtype)
        y = np.einsum("pi,ijbnhwc,qj->nbhpwqc", a_t, grid, a_t, optimize=True)
        y = np.ascontiguousarray(y.reshape(y.shape[0], b, th * f.tile, tw * f.tile, c)[:, :, :attrs.height, :attrs.width])
        plain_sums(y, x, w)
        return (y if bias is None else y + bias[None, :, None, None, :],)

    def compute(self, attrs: ImageAttrs, outs: tuple[TensorType, ...], m: Buffer, x: Buffer, w: Buffer,
                bias: Buffer | None = None) -> tuple[Compute, ...]:
        n, blocks, _, _, c = outs[0].shape
        f, (th, tw), per_block = transform(attrs.tile), attrs.tiles, x.shape[4]
        tile, span = f.tile, f.span

        def columns(image: Expr, b: Expr, h: Expr, w: Expr, i: Expr, q: Expr, lane: Expr) -> Expr:
            return reduce("sum", (span,), lambda j: entry(f.a_t, q, j) * m[i * span + j, b, (image * th + h) * tw + w, lane])
        half = compute("half", m.dtype, (n, blocks, th, tw, span, tile, c), columns)

        def body(image: Expr, b: Expr, row: Expr, column: Expr, lane: Expr) -> Expr:
            fast = reduce("sum", (span,), lambda i: entry(f.a_t, row % tile, i)
                          * half.buffer[image, b, row // tile, column // tile, i, column % tile, lane])
            y: Expr = rescue(fast, w.shape[1:], lambda k, r, s: cast(x[image, k // per_block, row + r, column + s, k % per_block], F64)
                             * cast(w[b * c + lane, k, r, s], F64))
            return y if bias is None else y + bias[b, lane]
        return (half, compute("out0", m.dtype, outs[0].shape, body))

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype("f4")
        yield Sample((draw(36, 2, 2 * 2 * 3, 4), draw(2, 2, 10, 14, 4), draw(8, 6, 3, 3), draw(2, 4)), ImageAttrs(7, 10), 1e-5)
        yield Sample((draw(36, 1, 4, 16), draw(1, 1, 10, 10, 16), draw(16, 16, 3, 3), None), ImageAttrs(8, 8), 1e-5)
        yield Sample((draw(16, 1, 12, 16), draw(1, 1, 8, 10, 16), draw(16, 16, 3, 3), None), ImageAttrs(5, 8, 2), 1e-5)
        x, w = draw(2, 2, 10, 14, 4), draw(8, 6, 3, 3)
        x[0, 1, 4, 5, 1], x[1, 0, 0, 13, 0], x[1, 1, 8, 0, 3] = np.inf, np.nan, np.inf  # the last is no channel of w
        w[5, 2, 1, 1] = 0
        with np.errstate(all="ignore"):
            v, u = (OPS[name].reference(TileAttrs(), a)[0] for name, a in (("winograd_input", x), ("winograd_weights", w)))
            m = OPS["winograd_multiply"].reference(Attrs(), v, u)[0]
        yield Sample((m, x, w, draw(2, 4)), ImageAttrs(7, 10), 1e-4)


def plain_sums(y: np.ndarray, x: np.ndarray, w: np.ndarray) -> None:
    """Replaces what is not finite in y [N, B, H, W, c] by the direct sum over x [N, I/c, H + 2, W + 2, c] and w [B * c, I, 3, 3]."""
    bad = np.argwhere(~np.isfinite(y).all(axis=(1, 4)))
    c = y.shape[4]
    for image, row, column in bad:
        window = x[image, :, row:row + 3, column:column + 3].astype(np.float64)  # [I/c, 3, 3, c]
        window = np.moveaxis(window, 3, 1).reshape(-1, 3, 3)[:w.shape[1]]
        at = y[image, :, row, column]
        for b, lane in np.argwhere(~np.isfinite(at)):
            at[b, lane] = np.sum(window * w[b * c + lane].astype(np.float64))
