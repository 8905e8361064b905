"""Transposed convolution, by plain convolutions: one for each phase of the output (its position modulo the stride)."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..types import TensorType
from .conv import wide
from .shape import expand, full, reshape, transpose
from .slices import concat, pad
from .window import attr_ints, extent

NARROW = 8  # output channels below which one convolution for all phases is better than one for each


@dataclass(frozen=True, slots=True)
class ConvTransposeAttrs(Attrs):
    """`begins` output elements are cut off in front of each spatial dimension, `sizes` are kept."""

    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """Outputs q * stride + a of one dimension: out[q] = sum over v < taps of x[q - pad + v * dilation] * w[first - v * step]."""

    taps: int
    first: int
    step: int
    dilation: int
    pad: int
    end: int   # padding behind, so that `count` outputs follow
    empty: bool


def phases(n: int, k: int, stride: int, dilation: int, begin: int, size: int) -> list[Phase]:
    """One phase for each a < stride; each has ceil(size / stride) outputs.

    Output o gathers the taps t with t * dilation = o + begin - i * stride for some input i. For o = q*stride + a these
    are t = t0 + u * step, step = stride / gcd, and i = q + c - u * dilation / gcd.
    """
    g, count, out = math.gcd(stride, dilation), -(-size // stride), []
    step, spread = stride // g, dilation // g
    for a in range(stride):
        t0 = next((t for t in range(min(k, step)) if (a + begin - t * dilation) % stride == 0), None)
        if t0 is None:
            out.append(Phase(0, 0, step, spread, 0, 0, True))
            continue
        taps = (k - 1 - t0) // step + 1
        c = (a + begin - t0 * dilation) // stride
        lead = (taps - 1) * spread - c
        end = count - n - lead + (taps - 1) * spread
        outside = n + lead <= 0 or n + end <= 0 or n == 0
        out.append(Phase(taps, t0 + (taps - 1) * step, step, spread, lead, end, outside))
    return out


@register
class ConvTranspose(Op):
    """y[n, o, i*stride + t*dilation - begin] += x[n, c, i…] * w[c, o, t…]. x [N, C, spatial…], w [C, O/groups, kernel…],
    bias [O] or absent."""

    name = "conv_transpose"
    Attrs = ConvTransposeAttrs

    def infer(self, attrs: ConvTransposeAttrs, x: TensorType, w: TensorType, bias: TensorType | None = None) -> tuple[TensorType, ...]:
        r, outs = x.rank - 2, w.shape[1] * attrs.groups if w.rank > 1 else 0
        if r < 1 or w.rank != x.rank or x.dtype != w.dtype or x.shape[1] != w.shape[0] or x.shape[1] % attrs.groups:
            raise self.fail(f"input {x} and weight {w} do not fit each other or {attrs.groups} groups")
        if not len(attrs.strides) == len(attrs.dilations) == len(attrs.begins) == len(attrs.sizes) == r or min(attrs.sizes) < 0:
            raise self.fail(f"{attrs} does not fit {x}")
        if bias is not None and (bias.shape != (outs,) or bias.dtype != x.dtype):
            raise self.fail(f"bias {bias} does not fit weight {w}")
        return (TensorType(x.dtype, (x.shape[0], outs, *attrs.sizes)),)

    def reference(self, attrs: ConvTransposeAttrs, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        n, c, g, spatial = x.shape[0], x.shape[1], attrs.groups, x.shape[2:]
        o, sums = w.shape[1] * g, wide(x.dtype)
        whole = [max((m - 1) * s + extent(k, d), a + size) if m else a + size for m, s, k, d, a, size in zip(
            spatial, attrs.strides, w.shape[2:], attrs.dilations, (max(b, 0) for b in attrs.begins), attrs.sizes, strict=True)]
        out = np.zeros((n, o, *whole), sums)
        xs = x.astype(sums).reshape(n, g, c // g, math.prod(spatial))
        ws = w.astype(sums).reshape(g, c // g, o // g, *w.shape[2:])
        for t in itertools.product(*map(range, w.shape[2:])) if x.size else ():
            part = ws[(slice(None), slice(None), slice(None), *t)].transpose(0, 2, 1) @ xs
            where = tuple(slice(a * d, a * d + (m - 1) * s + 1, s)
                          for a, d, s, m in zip(t, attrs.dilations, attrs.strides, spatial, strict=True))
            out[(slice(None), slice(None), *where)] += part.reshape(n, o, *spatial)
        front = [(max(-b, 0), 0) for b in attrs.begins]
        out = np.pad(out, [(0, 0), (0, 0), *front])
        out = out[(slice(None), slice(None), *(slice(max(b, 0), max(b, 0) + m) for b, m in zip(attrs.begins, attrs.sizes, strict=True)))]
        if bias is not None:
            out = out + bias.astype(sums).reshape(o, *(1,) * len(spatial))
        return (out.astype(x.dtype),)

    def decompose(self, attrs: ConvTransposeAttrs, b: GraphBuilder, x: Value, w: Value,
                  bias: Value | None = None) -> tuple[Value, ...]:
        spatial, r = x.type.shape[2:], x.type.rank - 2
        per_dim = [phases(*z) for z in zip(spatial, w.type.shape[2:], attrs.strides, attrs.dilations, attrs.begins, attrs.sizes,
                                           strict=True)]
        o = w.type.shape[1]
        alike = all(len({(p.taps, p.pad, p.end) for p in ps}) == 1 and not any(p.empty for p in ps) for ps in per_dim)
        if o < NARROW and attrs.groups == 1 and alike:
            y = self._all_phases(b, x, w, bias, per_dim)
        else:
            sides = [(max(0, *(p.pad for p in ps)), max(0, *(p.end for p in ps))) for ps in per_dim]
            x = pad(b, x, (0, 0, *(before for before, _ in sides)), (0, 0, *(after for _, after in sides)))  # once for all phases
            parts = [self._phase(attrs, b, x, w, bias, ps, sides) for ps in itertools.product(*per_dim)]
            y = parts[0] if len(parts) == 1 else b.op("interleave", *parts, factors=(1, 1, *attrs.strides))
        return (pad(b, y, (0,) * (r + 2), (0, 0, *(m - c for m, c in zip(attrs.sizes, y.type.shape[2:], strict=True)))),)

    def _all_phases(self, b: GraphBuilder, x: Value, w: Value, bias: Value | None, per_dim: Sequence[Sequence[Phase]]) -> Value:
        """Phases that read the same window of x, as the channels of one convolution, then sorted: x is read once."""
        r, o, strides = len(per_dim), w.type.shape[1], tuple(map(len, per_dim))
        kernels = [self._kernel(b, w, 1, ps) for ps in itertools.product(*per_dim)]
        every = None if bias is None else concat(b, [bias] * len(kernels), 0)
        first = tuple(ps[0] for ps in per_dim)
        y = self._conv(b, x, concat(b, kernels, 0), every, 1, first, [(0, 0)] * r)
        n, _, *counts = y.type.shape
        order = [0, r + 1, *(i for k in range(r) for i in (r + 2 + k, 1 + k))]
        y = transpose(b, reshape(b, y, (n, *strides, o, *counts)), order)
        return reshape(b, y, (n, o, *(c * s for c, s in zip(counts, strides, strict=True))))

    def _phase(self, attrs: ConvTransposeAttrs, b: GraphBuilder, x: Value, w: Value, bias: Value | None,
               ps: tuple[Phase, ...], sides: Sequence[tuple[int, int]]) -> Value:
        """One phase of the output: x convolved with every step-th tap, reversed."""
        r, g = len(ps), attrs.groups
        o = w.type.shape[1] * g
        if any(p.empty for p in ps):
            shape = (x.type.shape[0], o, *(-(-m // s) for m, s in zip(attrs.sizes, attrs.strides, strict=True)))
            return full(b, shape, 0, x.type) if bias is None else expand(b, reshape(b, bias, (o, *(1,) * r)), shape)
        return self._conv(b, x, self._kernel(b, w, g, ps), bias, g, ps, sides)

    def _kernel(self, b: GraphBuilder, w: Value, g: int, ps: tuple[Phase, ...]) -> Value:
        """The taps of one phase as the kernel [O, C/g, taps…] of a convolution."""
        c, per_group, taps = w.type.shape[0], w.type.shape[1], tuple(p.taps for p in ps)
        sub = b.op("slice", w, starts=(0, 0, *(p.first for p in ps)), steps=(1, 1, *(-p.step for p in ps)), sizes=(c, per_group, *taps))
        kernel = reshape(b, sub, (g, c // g, per_group, *taps))
        return reshape(b, transpose(b, kernel, (0, 2, 1, *range(3, 3 + len(ps)))), (per_group * g, c // g, *taps))

    def _conv(self, b: GraphBuilder, x: Value, kernel: Value, bias: Value | None, g: int, ps: tuple[Phase, ...],
              sides: Sequence[tuple[int, int]]) -> Value:
        """The window of x, already padded by `sides`, that one phase reads, convolved at stride 1."""
        x = pad(b, x, (0, 0, *(p.pad - before for p, (before, _) in zip(ps, sides, strict=True))),
                (0, 0, *(p.end - after for p, (_, after) in zip(ps, sides, strict=True))))
        return b.op("conv", x, kernel, bias, strides=(1,) * len(ps), dilations=tuple(p.dilation for p in ps), groups=g,
                    pads=(0,) * 2 * len(ps))

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(1)

        def case(x: tuple[int, ...], w: tuple[int, ...], attrs: ConvTransposeAttrs, bias: bool = False) -> Sample:
            o = w[1] * attrs.groups
            return Sample((rng.standard_normal(x).astype("f4"), rng.standard_normal(w).astype("f4"),
                           rng.standard_normal(o).astype("f4") if bias else None), attrs)
        yield case((1, 3, 4, 5), (3, 2, 2, 2), ConvTransposeAttrs((2, 2), (1, 1), (0, 0), (8, 10)), True)
        yield case((2, 3, 5, 4), (3, 2, 4, 3), ConvTransposeAttrs((2, 3), (1, 1), (1, 0), (10, 13)))
        yield case((1, 4, 5), (4, 3, 3), ConvTransposeAttrs((2,), (2,), (1,), (12,), 2), True)
        yield case((1, 2, 5), (2, 3, 3), ConvTransposeAttrs((3,), (2,), (0,), (20,)))
        yield case((1, 2, 3), (2, 1, 2), ConvTransposeAttrs((4,), (1,), (-1,), (15,)), True)
        yield case((1, 3, 6, 6), (3, 2, 3, 3), ConvTransposeAttrs((1, 1), (1, 1), (1, 1), (6, 6)), True)
        yield case((1, 1, 2, 3, 2), (1, 2, 3, 2, 1), ConvTransposeAttrs((1, 2, 2), (1, 1, 1), (0, 0, 0), (4, 7, 3)))
        yield case((0, 1, 3), (1, 1, 3), ConvTransposeAttrs((2,), (1,), (0,), (7,)))


@from_onnx("ConvTranspose")
def _conv_transpose(n: OnnxNode, b: GraphBuilder) -> Value:
    x, w, bias = n.need(0), n.need(1), n.input(2)
    r = x.type.rank - 2
    if r < 1 or w.type.rank != x.type.rank:
        raise ShapeError(f"ConvTranspose {n.name!r}: input {x.type} and weight {w.type} do not fit")
    strides, dilations = attr_ints(n, "strides", (1,) * r), attr_ints(n, "dilations", (1,) * r)
    extra, pads = attr_ints(n, "output_padding", (0,) * r), attr_ints(n, "pads", (0,) * (2 * r))
    auto, wanted = str(n.attrs.get("auto_pad", "NOTSET")), n.attrs.get("output_shape")
    begins, sizes = [], []
    for k in range(r):
        natural = strides[k] * (x.type.shape[2 + k] - 1) + extra[k] + extent(w.type.shape[2 + k], dilations[k])
        if wanted is None and not auto.startswith("SAME"):
            begins.append(pads[k] if auto == "NOTSET" else 0)
            sizes.append(natural - pads[k] - pads[k + r] if auto == "NOTSET" else natural)
            continue
        # SAME never makes an output larger than it is without pads, as ONNX's own shape inference has it
        size = min(x.type.shape[2 + k] * strides[k], natural) if wanted is None else int(tuple(wanted)[len(tuple(wanted)) - r + k])  # type: ignore[arg-type]
        total = max(natural - size, 0)
        begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        sizes.append(size)
    return b.op("conv_transpose", x, w, bias, strides=strides, dilations=dilations, begins=begins, sizes=sizes,
                groups=n.attrs.get("group", 1))
