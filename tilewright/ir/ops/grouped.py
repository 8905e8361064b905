"""Grouped convolutions whose groups are narrower than a block of channels.

The layout pass puts this op in place of `conv`; no frontend makes it. A block of c channels holds c/q groups of q: the q channels
of a group are the lanes of a (shorter) vector, so no product of channels of different groups is ever formed.
"""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..expr import Buffer, Expr
from ..op import OPS, Op, Sample, register
from ..program import Compute, compute, reduce
from ..types import TensorType
from .blocked import BlockAttrs, DirectConvAttrs
from .conv import ConvAttrs


@register
class GroupedConv(Op):
    """Convolution without padding in groups of q channels, in and out: x [N, B, H, W, c], w [B, c/q, q, q, kh, kw] (groups of a
    block, outputs, inputs), bias [B, c/q, q] or absent, out [N, B, H', W', c/q, q]."""

    name = "conv_grouped"
    Attrs = DirectConvAttrs

    def infer(self, attrs: DirectConvAttrs, x: TensorType, w: TensorType, bias: TensorType | None = None) -> tuple[TensorType, ...]:
        if x.rank != 5 or w.rank != 6 or w.shape[2] != w.shape[3] or (w.shape[0], w.shape[1] * w.shape[2]) != (x.shape[1], x.shape[4]) \
                or (bias is not None and bias.shape != w.shape[:3]):
            raise self.fail(f"input {x}, weight {w} and bias {bias} do not fit")
        h, wd = ((x.shape[2 + k] - (w.shape[4 + k] - 1) * attrs.dilations[k] - 1) // attrs.strides[k] + 1 for k in range(2))
        return (TensorType(x.dtype, (*x.shape[:2], h, wd, *w.shape[1:3])),)

    def reference(self, attrs: DirectConvAttrs, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        (n, blocks, height, width, c), (_, parts, q, _, *kernel) = x.shape, w.shape
        plain = x.transpose(0, 1, 4, 2, 3).reshape(n, blocks * c, height, width)
        conv = ConvAttrs(attrs.strides, (0, 0, 0, 0), attrs.dilations, blocks * parts)
        (y,) = OPS["conv"].reference(conv, plain, w.reshape(blocks * c, q, *kernel), None if bias is None else bias.reshape(-1))
        (y,) = OPS["to_blocked"].reference(BlockAttrs(c), y)
        return (y.reshape(*y.shape[:4], parts, q),)

    def compute(self, attrs: DirectConvAttrs, outs: tuple[TensorType, ...], x: Buffer, w: Buffer,
                bias: Buffer | None = None) -> tuple[Compute, ...]:
        (sh, sw), (dh, dw), q = attrs.strides, attrs.dilations, w.shape[3]

        def body(n: Expr, b: Expr, h: Expr, wd: Expr, p: Expr, lane: Expr) -> Expr:
            total: Expr = reduce("sum", w.shape[3:], lambda k, r, s: (
                x[n, b, h * sh + r * dh, wd * sw + s * dw, p * q + k] * w[b, p, lane, k, r, s]))
            return total if bias is None else total + bias[b, p, lane]
        return (compute("out0", x.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        for x, w, s in (((1, 2, 6, 9, 8), (2, 2, 4, 4, 3, 3), (1, 1)), ((2, 1, 7, 6, 16), (1, 2, 8, 8, 3, 2), (2, 1)),
                        ((1, 3, 5, 5, 16), (3, 4, 4, 4, 1, 1), (2, 2))):
            arrays = tuple(rng.standard_normal(t).astype("f4") for t in (x, w, w[:3]))
            yield Sample(arrays, DirectConvAttrs(s, (1, 1), x[4], x[4]), 1e-5)
