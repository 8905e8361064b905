"""A dilated convolution as an ordinary one on images of every d-th pixel, so that Winograd can compute it.

    %y = conv(%x, @w) {dilations=(2, 2), pads=(2, 2, 2, 2)}                          (%x: [1,C,32,32])
    ->
    %p = every second pixel of %x, from each of the 2 x 2 places to begin            [4,C,16,16]
    %q = conv(%p, @w) {pads=(1, 1, 1, 1)}                                            [4,O,16,16]
    %y = the pixels of %q where they belong

A window of a dilated convolution sees pixels of one such image alone. The pixels are moved twice; that costs little where there are
many channels, each of which Winograd saves multiplications for. (The space-to-batch transformation of Yu and Koltun, "Multi-scale
context aggregation by dilated convolutions", 2016.)
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.builder import GraphBuilder
from ...ir.graph import Value
from .winograd_choice import FAR, Layer

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Phases:
    """How images are taken apart, for height and width: `dilation`, the input's `size`, the `result`'s, and `skipped` outputs
    before the first. before: pixels of padding before each part. outputs: of each part."""

    dilation: Pair
    size: Pair
    result: Pair
    skipped: Pair
    before: Pair
    outputs: Pair

    @property
    def count(self) -> int:
        """Parts of an image."""
        return self.dilation[0] * self.dilation[1]

    def layer(self, n: int, i: int, o: int) -> Layer:
        """The convolution of all parts of n images."""
        return Layer(n * self.count, i, o, *self.outputs)

    def cycles(self, n: int, channels: int) -> float:
        """To move the pixels of `channels`, read and made ones, there and back; 0 where there is nothing to take apart."""
        return 0.0 if self.count == 1 else 2 * 4 * n * channels * max(self.size[0] * self.size[1], self.result[0] * self.result[1]) / FAR


def phases(size: Pair, result: Pair, dilation: Pair, pads: Sequence[int]) -> Phases:
    """size, result: of the convolution's input and output. pads: before and after, as the convolution has them."""
    before = tuple(-(-p // d) for p, d in zip(pads[:2], dilation, strict=True))
    skipped = tuple(u * d - p for u, d, p in zip(before, dilation, pads[:2], strict=True))
    outputs = tuple(-(-(m + v) // d) for m, v, d in zip(result, skipped, dilation, strict=True))
    return Phases(dilation, size, result, _pair(skipped), _pair(before), _pair(outputs))


def _pair(x: tuple[int, ...]) -> Pair:
    return x[0], x[1]


def take_apart(b: GraphBuilder, x: Value, p: Phases) -> Value:
    """[n, blocks, h, w, c] -> [dh dw n, blocks, h / dh, w / dw, c], rounded up with zeros at the end."""
    if p.count == 1:
        return x
    n, blocks, h, w, c = x.type.shape
    (dh, dw), more = p.dilation, tuple(-size % d for size, d in zip(p.size, p.dilation, strict=True))
    if any(more):
        x = b.op("pad", x, before=(0,) * 5, after=(0, 0, *more, 0))
    down, across = (h + more[0]) // dh, (w + more[1]) // dw
    x = b.op("reshape", x, shape=(n, blocks, down, dh, across, dw, c))
    return b.op("reshape", b.op("transpose", x, perm=(3, 5, 0, 1, 2, 4, 6)), shape=(dh * dw * n, blocks, down, across, c))


def put_together(b: GraphBuilder, y: Value, p: Phases) -> Value:
    """Inverse of `take_apart` for results, without those that belong to no output."""
    if p.count == 1:
        return y
    (dh, dw), (parts, blocks, down, across, c) = p.dilation, y.type.shape
    y = b.op("reshape", y, shape=(dh, dw, parts // (dh * dw), blocks, down, across, c))
    y = b.op("transpose", y, perm=(2, 3, 4, 0, 5, 1, 6))
    y = b.op("reshape", y, shape=(parts // (dh * dw), blocks, down * dh, across * dw, c))
    if (down * dh, across * dw) == p.result:
        return y
    return b.op("slice", y, starts=(0, 0, *p.skipped, 0), steps=(1,) * 5, sizes=(y.type.shape[0], blocks, *p.result, c))
