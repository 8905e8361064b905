"""Convolutions without the products that only meet padding: widely dilated ones on small images (DeepLab's pyramids).

Requires: conv pads are attributes. Ensures: no tap of a convolution's kernel lies in the padding at every output.

    %y = conv(%x, @w) {dilations=(36, 36), pads=(36, 36, 36, 36)} : f32[1,256,14,14]     (%x is 14x14: one tap of nine meets it)
    ->
    %c = slice(@w) {starts=(0, 0, 1, 1), sizes=(256, 960, 1, 1)}
    %y = conv(%x, %c) {pads=(0, 0, 0, 0)} : f32[1,256,14,14]

Where different outputs meet different taps, the image is cut into parts that meet the same ones, each computed without padding, if
that saves enough. A product of padding and a weight that is infinite would be NaN; such products are left out here.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from ...ir.builder import GraphBuilder
from ...ir.graph import Graph, Node, Value
from ...ir.ops.conv import ConvAttrs
from .rewriting import Rewriter, rewrite

MAX_PARTS = 9      # of an image
FEW_POINTS = 25    # reading the weights of a tap from memory takes as long as multiplying them with so many points
WORTH = 0.7        # of the work: parts are kernels of their own, and their weights are read again


@dataclass(frozen=True, slots=True)
class Part:
    """Outputs [first, last) along one dimension, and the taps [tap, end) of the kernel that meet the image at all of them."""

    first: int
    last: int
    tap: int
    end: int


def skip_padding(g: Graph) -> Graph:
    return rewrite(g, _rule)


def _rule(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
    if n.op != "conv" or not isinstance(n.attrs, ConvAttrs) or not any(n.attrs.pads) or not n.outputs[0].type.size:
        return None
    x, w, a = ins[0], ins[1], n.attrs
    assert x is not None and w is not None
    if x.type.size == 0 or w.type.size == 0 or not r.static(w):
        return None
    rank = x.type.rank - 2
    dims = [parts(x.type.shape[2 + k], w.type.shape[2 + k], n.outputs[0].type.shape[2 + k], a.strides[k], a.dilations[k], a.pads[k])
            for k in range(rank)]
    if any(p.tap == p.end for d in dims for p in d):
        return None  # outputs that meet nothing
    if a.groups == 1 and _worth(dims, w.type.shape[2:], x.type.shape[0]):
        return _apart(r.b, dims, x, w, ins[2] if len(ins) > 2 else None, a)
    used = [(min(p.tap for p in d), max(p.end for p in d)) for d in dims]
    if all(u == (0, m) for u, m in zip(used, w.type.shape[2:], strict=True)):
        return None
    pads = [a.pads[k] - used[k][0] * a.dilations[k] for k in range(rank)]
    pads += [a.pads[rank + k] - (w.type.shape[2 + k] - used[k][1]) * a.dilations[k] for k in range(rank)]
    if min(pads) < 0:
        return None  # the window would begin inside of the image
    return r.b.emit("conv", (x, _taps(r.b, w, used), *ins[2:]), ConvAttrs(a.strides, tuple(pads), a.dilations, a.groups))[0]


def parts(size: int, kernel: int, outputs: int, stride: int, dilation: int, pad: int) -> list[Part]:
    """One dimension cut into runs of outputs whose windows meet the image with the same taps."""
    out: list[Part] = []
    for h in range(outputs):
        at = h * stride - pad
        tap = min(kernel, max(0, -(at // dilation)))              # the first one at or after the image's begin
        end = max(tap, min(kernel, -((at - size) // dilation)))   # the first one at or after its end
        if out and (out[-1].tap, out[-1].end) == (tap, end):
            out[-1] = Part(out[-1].first, h + 1, tap, end)
        else:
            out.append(Part(h, h + 1, tap, end))
    return out


def _worth(dims: Sequence[Sequence[Part]], kernel: Sequence[int], images: int) -> bool:
    """Whether parts take clearly less time than the whole with its padding, points times taps."""
    if not 1 < math.prod(map(len, dims)) <= MAX_PARTS:
        return False
    cost = sum(math.prod(p.end - p.tap for p in at) * max(images * math.prod(p.last - p.first for p in at), FEW_POINTS)
               for at in product(*dims))
    return cost <= WORTH * math.prod(kernel) * max(images * math.prod(d[-1].last for d in dims), FEW_POINTS)


def _apart(b: GraphBuilder, dims: Sequence[Sequence[Part]], x: Value, w: Value, bias: Value | None, a: ConvAttrs,
           chosen: tuple[Part, ...] = ()) -> Value:
    """The parts that begin with `chosen`, one a dimension, put together."""
    if len(chosen) < len(dims):
        made = [_apart(b, dims, x, w, bias, a, (*chosen, p)) for p in dims[len(chosen)]]
        return made[0] if len(made) == 1 else b.op("concat", *made, axis=2 + len(chosen))
    starts = [p.first * s + p.tap * d - before for p, s, d, before in zip(chosen, a.strides, a.dilations, a.pads, strict=False)]
    sizes = [(p.last - 1 - p.first) * s + (p.end - 1 - p.tap) * d + 1 for p, s, d in zip(chosen, a.strides, a.dilations, strict=True)]
    piece = b.op("slice", x, starts=(0, 0, *starts), steps=(1,) * x.type.rank, sizes=(*x.type.shape[:2], *sizes))
    kernel = _taps(b, w, [(p.tap, p.end) for p in chosen])
    ins = (piece, kernel) if bias is None else (piece, kernel, bias)
    return b.emit("conv", ins, ConvAttrs(a.strides, (0,) * len(a.pads), a.dilations, a.groups))[0]


def _taps(b: GraphBuilder, w: Value, used: Sequence[tuple[int, int]]) -> Value:
    """w with the taps [begin, end) of each dimension."""
    sizes = tuple(end - begin for begin, end in used)
    if sizes == w.type.shape[2:]:
        return w
    return b.op("slice", w, starts=(0, 0, *(begin for begin, _ in used)), steps=(1,) * w.type.rank, sizes=(*w.type.shape[:2], *sizes))
