"""Winograd's minimal filtering F(4x4, 3x3) on blocked images (Lavin and Gray 2015, arXiv:1509.09308, section 4.1).

A 3x3 convolution of stride 1 becomes, for each tile of 4x4 results, 36 products a channel pair instead of 144:

    U = G w G'      once, with the weights        [36, O, I]
    V = B' d B      6x6 inputs of each tile        winograd_input      [36, I/c, T, c]
    M = U V         36 matrix products             winograd_multiply   [36, O/c, T, c]
    y = A' M A      4x4 results of each tile       winograd_output     [N, O/c, H, W, c]

T counts the tiles of all images, rows first. The transforms add error: up to about 3e-5 of the largest result in f32,
against 3e-6 of a direct sum (measured in tests/ir/test_winograd.py).
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..expr import Buffer, Expr, Table
from ..graph import Attrs
from ..op import Op, Sample, register
from ..program import Compute, compute, reduce
from ..types import F32, TensorType

TILE, SPAN = 4, 6  # results and inputs of a tile, each way
B_T = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
G = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
A_T = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_CHUNK = 2048  # channel pairs whose weights are transformed at once: temporaries stay in the second-level cache


def _table(rows: tuple[tuple[float, ...], ...], i: Expr, j: Expr) -> Table:
    return Table(tuple(float(v) for r in rows for v in r), i * len(rows[0]) + j, F32)


def _spread(x: np.ndarray) -> np.ndarray:
    """G @ x along the first dimension, written out: no matrix library with threads of its own, and half the operations."""
    a, b, c = x
    even, odd = (a + c) / -6, b / 6
    wide, step = a / 24 + c / 6, b / 12
    return np.stack((a / 4, even - odd, even + odd, wide + step, wide - step, c))


def tiles(n: int) -> int:
    """Tiles that cover n results."""
    return -(-n // TILE)


@register
class WinogradWeights(Op):
    """w [O, I, 3, 3] -> G w G' as [36, O, I]."""

    name = "winograd_weights"

    def infer(self, attrs: Attrs, w: TensorType) -> tuple[TensorType, ...]:
        if w.rank != 4 or w.shape[2:] != (3, 3):
            raise self.fail(f"weight {w} is not 3x3")
        return (TensorType(w.dtype, (SPAN * SPAN, *w.shape[:2])),)

    def reference(self, attrs: Attrs, w: np.ndarray) -> tuple[np.ndarray, ...]:
        u = np.empty((SPAN, SPAN, w.shape[0] * w.shape[1]), w.dtype)
        for at in range(0, u.shape[2], _CHUNK):  # in f64: the rounding of U counts in every product
            part = np.moveaxis(w.reshape(-1, 3, 3)[at:at + _CHUNK], 0, 2).astype(np.float64, "C")
            u[:, :, at:at + _CHUNK] = _spread(_spread(part).swapaxes(0, 1)).swapaxes(0, 1)
        return (u.reshape(SPAN * SPAN, *w.shape[:2]),)

    def compute(self, attrs: Attrs, outs: tuple[TensorType, ...], w: Buffer) -> tuple[Compute, ...]:
        def body(x: Expr, o: Expr, i: Expr) -> Expr:
            return reduce("sum", (3, 3), lambda r, s: _table(G, x // SPAN, r) * _table(G, x % SPAN, s) * w[o, i, r, s])
        return (compute("out0", w.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        yield Sample((np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype("f4"),))


@register
class WinogradInput(Op):
    """x [N, B, H + 2, W + 2, c], H and W multiples of 4 -> [36, B, N * H/4 * W/4, c]."""

    name = "winograd_input"

    def infer(self, attrs: Attrs, x: TensorType) -> tuple[TensorType, ...]:
        n, b, h, w, c = x.shape
        if (h - 2) % TILE or (w - 2) % TILE:
            raise self.fail(f"{x} is not two more than whole tiles each way")
        return (TensorType(x.dtype, (SPAN * SPAN, b, n * ((h - 2) // TILE) * ((w - 2) // TILE), c)),)

    def reference(self, attrs: Attrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        d = np.lib.stride_tricks.sliding_window_view(x, (SPAN, SPAN), (2, 3))[:, :, ::TILE, ::TILE]  # n b th tw c r s
        b_t = np.array(B_T, x.dtype)
        v = np.einsum("ir,nbhwcrs,js->ijbnhwc", b_t, d, b_t, optimize=True)
        return (np.ascontiguousarray(v.reshape(SPAN * SPAN, x.shape[1], -1, x.shape[4])),)

    def compute(self, attrs: Attrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        _, blocks, count, c = outs[0].shape
        tw = (x.shape[3] - 2) // TILE
        per_image = (x.shape[2] - 2) // TILE * tw

        def rows(b: Expr, t: Expr, i: Expr, s: Expr, lane: Expr) -> Expr:
            at = t % per_image
            return reduce("sum", (SPAN,), lambda r: _table(B_T, i, r) * x[t // per_image, b, at // tw * TILE + r, at % tw * TILE + s, lane])
        half = compute("half", x.dtype, (blocks, count, SPAN, SPAN, c), rows)

        def body(p: Expr, b: Expr, t: Expr, lane: Expr) -> Expr:
            return reduce("sum", (SPAN,), lambda s: _table(B_T, p % SPAN, s) * half.buffer[b, t, p // SPAN, s, lane])
        return (half, compute("out0", x.dtype, outs[0].shape, body))

    def samples(self) -> Iterable[Sample]:
        yield Sample((np.random.default_rng(0).standard_normal((2, 2, 10, 6, 4)).astype("f4"),), rtol=1e-5)


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
    """Size of the images."""

    height: int = 0
    width: int = 0


@register
class WinogradOutput(Op):
    """m [36, B, N * tiles, c], bias [B, c] or absent -> [N, B, height, width, c]."""

    name = "winograd_output"
    Attrs = ImageAttrs

    def infer(self, attrs: ImageAttrs, m: TensorType, bias: TensorType | None = None) -> tuple[TensorType, ...]:
        per_image = tiles(attrs.height) * tiles(attrs.width)
        if m.shape[2] % per_image or (bias is not None and bias.shape != (m.shape[1], m.shape[3])):
            raise self.fail(f"{m} and bias {bias} do not fit {attrs}")
        return (TensorType(m.dtype, (m.shape[2] // per_image, m.shape[1], attrs.height, attrs.width, m.shape[3])),)

    def reference(self, attrs: ImageAttrs, m: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        _, b, t, c = m.shape
        th, tw = tiles(attrs.height), tiles(attrs.width)
        grid = m.reshape(SPAN, SPAN, b, t // (th * tw), th, tw, c)
        a_t = np.array(A_T, m.dtype)
        y = np.einsum("pi,ijbnhwc,qj->nbhpwqc", a_t, grid, a_t, optimize=True)
        y = y.reshape(y.shape[0], b, th * TILE, tw * TILE, c)[:, :, :attrs.height, :attrs.width]
        return (np.ascontiguousarray(y if bias is None else y + bias[None, :, None, None, :]),)

    def compute(self, attrs: ImageAttrs, outs: tuple[TensorType, ...], m: Buffer, bias: Buffer | None = None) -> tuple[Compute, ...]:
        n, blocks, height, width, c = outs[0].shape
        th, tw = tiles(height), tiles(width)

        def columns(image: Expr, b: Expr, h: Expr, w: Expr, i: Expr, q: Expr, lane: Expr) -> Expr:
            return reduce("sum", (SPAN,), lambda j: _table(A_T, q, j) * m[i * SPAN + j, b, (image * th + h) * tw + w, lane])
        half = compute("half", m.dtype, (n, blocks, th, tw, SPAN, TILE, c), columns)

        def body(image: Expr, b: Expr, h: Expr, w: Expr, lane: Expr) -> Expr:
            y: Expr = reduce("sum", (SPAN,), lambda i: _table(A_T, h % TILE, i)
                             * half.buffer[image, b, h // TILE, w // TILE, i, w % TILE, lane])
            return y if bias is None else y + bias[b, lane]
        return (half, compute("out0", m.dtype, outs[0].shape, body))

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        tiled, bias = rng.standard_normal((36, 2, 2 * 2 * 3, 4)).astype("f4"), rng.standard_normal((2, 4)).astype("f4")
        yield Sample((tiled, bias), ImageAttrs(7, 10), 1e-5)
        yield Sample((rng.standard_normal((36, 1, 4, 16)).astype("f4"), None), ImageAttrs(8, 8), 1e-5)
