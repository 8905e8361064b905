"""Convolutions over three dimensions (video, volumes) as ones over two, of which the fast kernels are.

Requires: conv pads are attributes. Ensures: no ungrouped conv has three spatial dimensions.

    %y = conv(%x, @w) {strides=(1, 1, 1), pads=(1, 1, 1, 1, 1, 1)} : f32[1,64,8,56,56]      (@w: f32[64,64,3,3,3])
    ->
    %f = the frames of %x with one of zeros before and behind : f32[10,64,56,56]
    %z = concat(%f[0:8], %f[1:9], %f[2:10]) {axis=1} : f32[8,192,56,56]                     (what lies below each output frame)
    %y = conv(%z, @v) {strides=(1, 1), pads=(1, 1, 1, 1)}                                   (@v: f32[64,192,3,3])

The frames are copied as often as the kernel is deep, which costs little beside a sum over its whole window.
"""
from __future__ import annotations

from ...ir.builder import GraphBuilder
from ...ir.graph import Graph, Node, Value
from ...ir.ops.conv import ConvAttrs, conv_window
from ...ir.ops.slices import pad
from .rewriting import Rewriter, rewrite

_SWAP = (0, 2, 1, 3, 4)  # channels and frames


def convolve_frames(g: Graph) -> Graph:
    return rewrite(g, _rule)


def _rule(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
    if n.op != "conv" or not isinstance(n.attrs, ConvAttrs) or n.outputs[0].type.rank != 5 or n.attrs.groups != 1:
        return None
    x, w, a = ins[0], ins[1], n.attrs
    assert x is not None and w is not None
    if 0 in (*x.type.shape, *w.type.shape, *n.outputs[0].type.shape):
        return None
    out, channels, depth, kh, kw = w.type.shape
    kernel = r.b.op("reshape", r.b.op("transpose", w, perm=_SWAP), shape=(out, depth * channels, kh, kw))
    flat = ConvAttrs(a.strides[1:], (*a.pads[1:3], *a.pads[4:]), a.dilations[1:])
    below = _below(r.b, x, a, depth, conv_window(a, x.type.shape, w.type.shape).sizes[0])
    y = r.b.emit("conv", (below, kernel, *ins[2:]), flat)[0]
    frames = r.b.op("reshape", y, shape=(x.type.shape[0], y.type.shape[0] // x.type.shape[0], *y.type.shape[1:]))
    return r.b.op("transpose", frames, perm=_SWAP)


def _below(b: GraphBuilder, x: Value, a: ConvAttrs, depth: int, frames: int) -> Value:
    """[N * frames, depth * C, H, W]: the frames that each output frame sums over, one after another as channels."""
    batch, channels, _, h, w = x.type.shape
    x = pad(b, b.op("transpose", x, perm=_SWAP), (0, a.pads[0], 0, 0, 0), (0, a.pads[3], 0, 0, 0))
    if batch == 1:  # images from here on, which can stay in blocks
        x = b.op("reshape", x, shape=x.type.shape[1:])
    seen = []
    for t in range(depth):
        at, step = t * a.dilations[0], a.strides[0]
        if batch == 1:
            one = b.op("slice", x, starts=(at, 0, 0, 0), steps=(step, 1, 1, 1), sizes=(frames, channels, h, w))
        else:
            one = b.op("slice", x, starts=(0, at, 0, 0, 0), steps=(1, step, 1, 1, 1), sizes=(batch, frames, channels, h, w))
            one = b.op("reshape", one, shape=(batch * frames, channels, h, w))
        seen.append(one)
    return seen[0] if depth == 1 else b.op("concat", *seen, axis=1)
