"""1x1 convolutions of enlarged images and signals are computed on the small ones, and their results enlarged.

Requires: biases and batch norms have moved into convolutions. Ensures: no 1x1 convolution reads an image that was enlarged for it
alone, where that is worth more than the moving of data it costs.

    %u = repeat(%s) {factors=(1, 1, 2, 2)}   : f32[1,256,40,40]
    %c = concat(%u, %t) {axis=1}             : f32[1,384,40,40]
    %y = conv(%c, @w, @b)                    : f32[1,128,40,40]
    ->
    %p = conv(%s, @w[:, :256])               : f32[1,128,20,20]
    %q = conv(%t, @w[:, 256:], @b)           : f32[1,128,40,40]
    %y = add(%q, repeat(%p))                 : f32[1,128,40,40]

A 1x1 convolution mixes channels and an enlargement mixes points, both are linear, so they commute: a quarter of the products at a
doubled size, a sixty-fourth at eight times (decoders of SegFormer and HRNet, feature pyramids of detectors), hardly any where one
vector is repeated at all points (PointNet, pooled images of DeepLab). Sums are associated otherwise than the model writes them, so
`strict` keeps the order. What an enlargement makes of infinities may be NaN in either
order, but not at the same channels.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Graph, Node, Value
from ...ir.ops.conv import ConvAttrs
from ...ir.ops.slices import concat, slice_axis
from ...ir.types import F32
from .rewriting import Rewriter, rewrite

MIN_CHANNELS = 16  # fewer do not fill a vector
MOVED = 32         # multiplications in the time of moving one element between memory and a register


@dataclass(frozen=True, slots=True)
class Enlarged:
    """`small`, and the nodes that make a value of it, first to last."""

    small: Value
    steps: tuple[Node, ...]


def enlarge_last(g: Graph) -> Graph:
    """`g` with 1x1 convolutions in front of enlargements."""
    return rewrite(g, _rule)


def _rule(r: Rewriter, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
    x, w, bias = ins[0], ins[1] if len(ins) > 1 else None, ins[2] if len(ins) > 2 else None
    if n.op != "conv" or x is None or w is None or not _mixes_channels_only(n.attrs, w) or x.type.dtype != F32 or x.type.size == 0:
        return None
    joined = r.private(x, "concat")
    parts = [x]
    if joined is not None and joined.attrs.axis == 1:  # type: ignore[attr-defined]
        parts = [v for v in joined.inputs if v is not None]
    sources = [_enlarged(r, v, w.type.shape[0]) for v in parts]
    if all(s is None for s in sources):
        return None
    if all(s is not None for s in sources) and bias is not None and not all(_keeps_constants(r, s) for s in sources[:1] if s):
        return None  # a bias has no place
    return _convolved(r, n, parts, sources, w, bias)


def _mixes_channels_only(attrs: object, w: Value) -> bool:
    return (isinstance(attrs, ConvAttrs) and attrs.groups == 1 and math.prod(w.type.shape[2:]) == 1 and not any(attrs.pads)
            and all(s == 1 for s in attrs.strides))


def _enlarged(r: Rewriter, v: Value, outputs: int) -> Enlarged | None:
    """How `v` is made by enlarging a smaller image for one reader, if its convolution is better done before."""
    steps: list[Node] = []
    small = v
    while (n := r.private(small, "repeat", "resample", "gather", "expand")) is not None and _along_points(r, n):
        assert n.inputs[0] is not None
        steps.append(n)
        small = n.inputs[0]
    channels, kept = v.type.shape[1], small.type.size / max(1, v.type.size)
    saved, moved = channels * outputs * (1 - kept), 2 * max(0, outputs - channels)
    if not steps or channels < MIN_CHANNELS or kept > 0.5 or saved < MOVED * moved:
        return None
    return Enlarged(small, tuple(reversed(steps)))


def _along_points(r: Rewriter, n: Node) -> bool:
    """Whether an enlargement leaves channels and images as they are, by tables that do not depend on the data."""
    if n.op == "repeat":
        return n.attrs.factors[:2] == (1, 1)  # type: ignore[attr-defined]
    if n.op == "expand":
        x, y = n.operands[0].type, n.outputs[0].type
        return x.rank == y.rank and x.shape[:2] == y.shape[:2]
    tables = [v for v in n.inputs[1:] if v is not None]
    known = all(r.literal(v) is not None for v in tables) and (n.op == "resample" or tables[0].type.rank == 1)
    return known and n.attrs.axis >= 2  # type: ignore[attr-defined]


def _keeps_constants(r: Rewriter, e: Enlarged) -> bool:
    """Whether enlarging an image of one value gives that value."""
    for n in e.steps:
        weights = r.literal(n.inputs[2]) if n.op == "resample" else None
        if weights is not None and np.abs(weights.astype(np.float64).sum(1) - 1).max(initial=0) > 1e-6:
            return False
    return True


def _convolved(r: Rewriter, n: Node, parts: Sequence[Value], sources: Sequence[Enlarged | None], w: Value, bias: Value | None) -> Value:
    """The sum of the parts' convolutions: of the parts at full size in one, of the others before they are enlarged."""
    b, begins = r.b, np.cumsum([0, *(v.type.shape[1] for v in parts)]).tolist()

    def weights(ks: Sequence[int]) -> Value:
        return concat(b, [slice_axis(b, w, 1, begins[k], parts[k].type.shape[1]) for k in ks], 1)
    full = [k for k, s in enumerate(sources) if s is None]
    total: Value | None = None
    if full:
        total = b.emit("conv", (concat(b, [parts[k] for k in full], 1), weights(full), *([bias] if bias is not None else [])), n.attrs)[0]
        bias = None
    for k, s in enumerate(sources):
        if s is None:
            continue
        y = b.emit("conv", (s.small, weights([k]), *([bias] if bias is not None else [])), n.attrs)[0]
        bias = None
        one = total is not None and math.prod(y.type.shape[2:]) == 1 and _keeps_constants(r, s)  # then the sum repeats it
        for step in () if one else s.steps:
            y = _again(r, step, y)
        total = y if total is None else b.op("add", total, y)
    assert total is not None
    return total


def _again(r: Rewriter, step: Node, y: Value) -> Value:
    """An enlargement of an image of other channels."""
    if step.op == "expand":
        return r.b.op("expand", y, shape=(*y.type.shape[:2], *step.outputs[0].type.shape[2:]))
    return r.b.emit(step.op, (y, *step.inputs[1:]), step.attrs)[0]
