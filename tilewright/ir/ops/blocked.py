"""Channel blocks: images as [N, C/c, H, W, c], the layout in which convolutions run at full vector width.

The layout pass puts these ops in place of `conv`; no frontend makes them. Channels that do not fill the last block
leave lanes whose values nobody reads: a convolution sums over the real channels only.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..expr import Buffer, Expr, all_of, select
from ..graph import Attrs
from ..op import OPS, Op, Sample, register
from ..program import Compute, compute, reduce
from ..types import TensorType
from .conv import ConvAttrs


@dataclass(frozen=True, slots=True)
class BlockAttrs(Attrs):
    """`block`: channels in a block. `channels`: the real number of channels (from_blocked)."""

    block: int = 16
    channels: int = 0


@register
class ToBlocked(Op):
    """[N, C, H, W] -> [N, ceil(C/c), H, W, c]; missing channels are zero."""

    name = "to_blocked"
    Attrs = BlockAttrs

    def infer(self, attrs: BlockAttrs, x: TensorType) -> tuple[TensorType, ...]:
        n, c, h, w = x.shape
        return (TensorType(x.dtype, (n, -(-c // attrs.block), h, w, attrs.block)),)

    def reference(self, attrs: BlockAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        n, c, h, w = x.shape
        blocks = -(-c // attrs.block)
        full = np.pad(x, [(0, 0), (0, blocks * attrs.block - c), (0, 0), (0, 0)])
        return (np.ascontiguousarray(full.reshape(n, blocks, attrs.block, h, w).transpose(0, 1, 3, 4, 2)),)

    def compute(self, attrs: BlockAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        def body(n: Expr, cb: Expr, h: Expr, w: Expr, lane: Expr) -> Expr:
            c = cb * attrs.block + lane
            return x.at((n, c, h, w), c < x.shape[1], 0) if x.shape[1] % attrs.block else x[n, c, h, w]
        return (compute("out0", x.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        yield Sample((rng.standard_normal((2, 5, 3, 2)).astype("f4"),), BlockAttrs(4))
        yield Sample((rng.standard_normal((1, 32, 3, 3)).astype("f4"),), BlockAttrs(16))


@register
class FromBlocked(Op):
    """[N, B, H, W, c] -> [N, channels, H, W]"""

    name = "from_blocked"
    Attrs = BlockAttrs

    def infer(self, attrs: BlockAttrs, x: TensorType) -> tuple[TensorType, ...]:
        n, b, h, w, c = x.shape
        if c != attrs.block or not (b - 1) * c < attrs.channels <= b * c:
            raise self.fail(f"{x} does not hold {attrs.channels} channels in blocks of {attrs.block}")
        return (TensorType(x.dtype, (n, attrs.channels, h, w)),)

    def reference(self, attrs: BlockAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        n, b, h, w, c = x.shape
        return (np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3).reshape(n, b * c, h, w)[:, :attrs.channels]),)

    def compute(self, attrs: BlockAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        return (compute("out0", x.dtype, outs[0].shape, lambda n, c, h, w: x[n, c // attrs.block, h, w, c % attrs.block]),)

    def samples(self) -> Iterable[Sample]:
        yield Sample((np.random.default_rng(0).standard_normal((2, 2, 3, 2, 4)).astype("f4"),), BlockAttrs(4, 5))


@dataclass(frozen=True, slots=True)
class ConcatBlockedAttrs(Attrs):
    """`channels`: real channels of each part. `factors`: how often each part's rows and columns repeat, two a part."""

    channels: tuple[int, ...] = ()
    factors: tuple[int, ...] = ()


@register
class ConcatBlocked(Op):
    """Parts [N, ceil(C_k/c), H/fh, W/fw, c] joined along their real channels: [N, ceil(sum C_k / c), H, W, c]. Where channels
    do not fill blocks, parts move to other lanes; lanes beyond the last channel hold anything."""

    name = "concat_blocked"
    Attrs = ConcatBlockedAttrs

    def infer(self, attrs: ConcatBlockedAttrs, *parts: TensorType) -> tuple[TensorType, ...]:
        n, _, h, w, c = parts[0].shape
        h, w = h * attrs.factors[0], w * attrs.factors[1]
        for k, (p, channels) in enumerate(zip(parts, attrs.channels, strict=True)):
            fh, fw = attrs.factors[2 * k:2 * k + 2]
            if p.dtype != parts[0].dtype or (p.shape[0], p.shape[2] * fh, p.shape[3] * fw, p.shape[4]) != (n, h, w, c) \
                    or p.shape[1] != -(-channels // c):
                raise self.fail(f"part {k}, {p}, does not hold {channels} channels of an image {h}x{w} in blocks of {c}")
        return (TensorType(parts[0].dtype, (n, -(-sum(attrs.channels) // c), h, w, c)),)

    def reference(self, attrs: ConcatBlockedAttrs, *parts: np.ndarray) -> tuple[np.ndarray, ...]:
        plain = [_plain(p, p.shape[4], channels).repeat(attrs.factors[2 * k], 2).repeat(attrs.factors[2 * k + 1], 3)
                 for k, (p, channels) in enumerate(zip(parts, attrs.channels, strict=True))]
        return OPS["to_blocked"].reference(BlockAttrs(parts[0].shape[4]), np.concatenate(plain, 1))

    def compute(self, attrs: ConcatBlockedAttrs, outs: tuple[TensorType, ...], *parts: Buffer) -> tuple[Compute, ...]:
        width = parts[0].shape[4]
        total = sum(attrs.channels)

        def body(n: Expr, cb: Expr, h: Expr, w: Expr, lane: Expr) -> Expr:
            c, end, value = cb * width + lane, total, None
            for k in reversed(range(len(parts))):
                start = end - attrs.channels[k]
                fh, fw = attrs.factors[2 * k:2 * k + 2]
                own = c - start
                inside = all_of([*([c >= start] if start else []), *([c < end] if end < len_of(outs) else [])])
                at = (n, own // width, h // fh, w // fw, own % width)
                x = parts[k][at] if inside is None else parts[k].at(at, inside, 0)
                value = x if value is None else select(c >= end, value, x)
                end = start
            assert value is not None
            return value
        return (compute("out0", parts[0].dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)

        def case(factors: tuple[int, ...], channels: tuple[int, ...], c: int) -> Sample:
            parts = []
            for k, m in enumerate(channels):
                shape = (1, -(-m // c), 6 // factors[2 * k], 4 // factors[2 * k + 1], c)
                parts.append(OPS["to_blocked"].reference(BlockAttrs(c), rng.standard_normal((1, m, *shape[2:4])).astype("f4"))[0])
            return Sample(tuple(parts), ConcatBlockedAttrs(channels, factors))
        yield case((1, 1, 1, 1), (6, 10), 4)
        yield case((3, 2, 1, 1, 2, 4), (6, 4, 2), 4)
        yield case((1, 1, 2, 2, 1, 1), (24, 24, 16), 16)
        yield case((2, 2), (5,), 8)


def len_of(outs: tuple[TensorType, ...]) -> int:
    """Channels that blocked outputs have room for."""
    return outs[0].shape[1] * outs[0].shape[4]


@dataclass(frozen=True, slots=True)
class Piece:
    """Lanes that move together in a concat: of `part`, blocks from `block` on, `lanes` lanes from `lane` on; in the result the
    first is block `to_block` and lane `to_lane`; `blocks` blocks follow each other on both sides."""

    part: int
    block: int
    blocks: int
    lane: int
    to_block: int
    to_lane: int
    lanes: int


def pieces(channels: Sequence[int], width: int) -> list[Piece]:
    """What a concat along channels in blocks of `width` consists of."""
    out, at = [], 0
    for k, m in enumerate(channels):
        shift = at % width
        full, rest = divmod(m, width)
        runs = [(0, full, width), *([(full, 1, rest)] if rest else [])]
        for block, blocks, valid in runs:
            for lane, lanes in ((0, min(valid, width - shift)), (width - shift, valid - (width - shift))):
                if lanes > 0 and blocks:
                    to = at + block * width + lane
                    out.append(Piece(k, block, blocks, lane, to // width, to % width, lanes))
        at += m
    return out


@dataclass(frozen=True, slots=True)
class DirectConvAttrs(Attrs):
    """`in_block`, `out_block`: channels in a block, 0 for a plain image."""

    strides: tuple[int, ...] = (1, 1)
    dilations: tuple[int, ...] = (1, 1)
    in_block: int = 0
    out_block: int = 0


def _plain(x: np.ndarray, block: int, channels: int) -> np.ndarray:
    return x if not block else x.transpose(0, 1, 4, 2, 3).reshape(x.shape[0], -1, *x.shape[2:4])[:, :channels]


@register
class DirectConv(Op):
    """Convolution without padding, on blocked or plain images. The batch axis holds images times groups.

    x [N*G, I, H, W] or [N*G, I/c, H, W, c]; w [G, O, I, kh, kw], O a multiple of `out_block`; bias [G, O] or absent;
    out [N*G, O, H', W'] or [N*G, O/c, H', W', c]. I is taken from w: lanes of x beyond it are never read."""

    name = "conv_direct"
    Attrs = DirectConvAttrs

    def infer(self, attrs: DirectConvAttrs, x: TensorType, w: TensorType, bias: TensorType | None = None) -> tuple[TensorType, ...]:
        held = x.shape[1] * (attrs.in_block or 1)
        if w.rank != 5 or x.rank != (5 if attrs.in_block else 4) or x.shape[0] % w.shape[0] or held < w.shape[2] \
                or (attrs.out_block and w.shape[1] % attrs.out_block) or (bias is not None and bias.shape != w.shape[:2]):
            raise self.fail(f"input {x}, weight {w} and bias {bias} do not fit {attrs}")
        h, wd = ((x.shape[2 + k] - (w.shape[3 + k] - 1) * attrs.dilations[k] - 1) // attrs.strides[k] + 1 for k in range(2))
        o = w.shape[1]
        blocked = (x.shape[0], o // attrs.out_block, h, wd, attrs.out_block) if attrs.out_block else (x.shape[0], o, h, wd)
        return (TensorType(x.dtype, blocked),)

    def reference(self, attrs: DirectConvAttrs, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        g, o, i = w.shape[:3]
        plain = _plain(x, attrs.in_block, i)
        n = x.shape[0] // g
        conv = ConvAttrs(attrs.strides, (0, 0, 0, 0), attrs.dilations, g)
        (y,) = OPS["conv"].reference(conv, plain.reshape(n, g * i, *plain.shape[2:]), w.reshape(g * o, *w.shape[2:]),
                                     None if bias is None else bias.reshape(-1))
        y = y.reshape(n * g, o, *y.shape[2:])
        return (y if not attrs.out_block else OPS["to_blocked"].reference(BlockAttrs(attrs.out_block), y)[0],)

    def compute(self, attrs: DirectConvAttrs, outs: tuple[TensorType, ...], x: Buffer, w: Buffer,
                bias: Buffer | None = None) -> tuple[Compute, ...]:
        c, d, (sh, sw), (dh, dw) = attrs.in_block, attrs.out_block, attrs.strides, attrs.dilations
        groups, _, channels, kh, kw = w.shape

        def point(n: Expr, o: Expr, h: Expr, wd: Expr) -> Expr:
            g = n % groups

            def term(k: Expr, r: Expr, s: Expr) -> Expr:
                at = (h * sh + r * dh, wd * sw + s * dw)
                return (x[n, k // c, *at, k % c] if c else x[n, k, *at]) * w[g, o, k, r, s]
            total: Expr = reduce("sum", (channels, kh, kw), term)
            return total if bias is None else total + bias[g, o]
        if d:
            return (compute("out0", x.dtype, outs[0].shape, lambda n, ob, h, wd, lane: point(n, ob * d + lane, h, wd)),)
        return (compute("out0", x.dtype, outs[0].shape, point),)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)

        def case(x: tuple[int, ...], w: tuple[int, ...], attrs: DirectConvAttrs) -> Sample:
            return Sample(tuple(rng.standard_normal(s).astype("f4") for s in (x, w, w[:2])), attrs, 1e-5)
        yield case((1, 3, 9, 7), (1, 8, 3, 3, 3), DirectConvAttrs((2, 1), (1, 1), 0, 4))
        yield case((2, 2, 7, 6, 4), (1, 4, 7, 3, 2), DirectConvAttrs((1, 2), (2, 1), 4, 4))
        yield case((4, 1, 5, 5, 4), (2, 4, 4, 1, 1), DirectConvAttrs((1, 1), (1, 1), 4, 4))
        yield case((4, 3, 5, 5), (2, 5, 3, 3, 3), DirectConvAttrs((1, 1), (1, 1), 0, 0))
        yield case((1, 2, 14, 14, 16), (1, 32, 32, 3, 3), DirectConvAttrs((1, 1), (1, 1), 16, 16))


@register
class DepthwiseConv(Op):
    """One filter a channel, on blocked images, without padding: x [N, B, H, W, c], w [B, kh, kw, c], bias [B, c] or absent."""

    name = "conv_depthwise"
    Attrs = DirectConvAttrs

    def infer(self, attrs: DirectConvAttrs, x: TensorType, w: TensorType, bias: TensorType | None = None) -> tuple[TensorType, ...]:
        if x.rank != 5 or w.rank != 4 or (w.shape[0], w.shape[3]) != (x.shape[1], x.shape[4]) or \
                (bias is not None and bias.shape != (x.shape[1], x.shape[4])):
            raise self.fail(f"input {x}, weight {w} and bias {bias} do not fit")
        h, wd = ((x.shape[2 + k] - (w.shape[1 + k] - 1) * attrs.dilations[k] - 1) // attrs.strides[k] + 1 for k in range(2))
        return (TensorType(x.dtype, (*x.shape[:2], h, wd, x.shape[4])),)

    def reference(self, attrs: DirectConvAttrs, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        channels = w.shape[0] * w.shape[3]
        plain = _plain(x, x.shape[4], channels)
        kernel = w.transpose(0, 3, 1, 2).reshape(channels, 1, *w.shape[1:3])
        (y,) = OPS["conv"].reference(ConvAttrs(attrs.strides, (0, 0, 0, 0), attrs.dilations, channels), plain, kernel,
                                     None if bias is None else bias.reshape(-1))
        return OPS["to_blocked"].reference(BlockAttrs(x.shape[4]), y)

    def compute(self, attrs: DirectConvAttrs, outs: tuple[TensorType, ...], x: Buffer, w: Buffer,
                bias: Buffer | None = None) -> tuple[Compute, ...]:
        (sh, sw), (dh, dw) = attrs.strides, attrs.dilations

        def body(n: Expr, cb: Expr, h: Expr, wd: Expr, lane: Expr) -> Expr:
            total: Expr = reduce("sum", w.shape[1:3], lambda r, s: x[n, cb, h * sh + r * dh, wd * sw + s * dw, lane] * w[cb, r, s, lane])
            return total if bias is None else total + bias[cb, lane]
        return (compute("out0", x.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        for x, w, s in (((1, 2, 7, 9, 4), (2, 3, 3, 4), (1, 1)), ((2, 1, 11, 6, 16), (1, 5, 2, 16), (2, 1)),
                        ((1, 1, 9, 14, 16), (1, 7, 5, 16), (1, 1))):
            arrays = tuple(rng.standard_normal(t).astype("f4") for t in (x, w, (w[0], w[3])))
            yield Sample(arrays, DirectConvAttrs(s, (1, 1), x[4], x[4]), 1e-5)


