"""Normalisations over rows: softmax and its kin, layer normalisation (also as instance, group and RMS normalisation),
local response normalisation. Each computes the numbers of a row first (maximum, sum, mean …), then maps the row with
them, so that a fused kernel shares one pass over the row. Half floats are computed in f32 and rounded once."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..expr import Buffer, Expr, accumulate_dtype, call, cast, eq, select, wrap
from ..graph import Attrs
from ..op import Op, Sample, register
from ..program import Compute, compute, reduce
from ..samples import tolerance, values
from ..types import BF16, F16, F32, F64, I64, DType, TensorType, broadcast_shapes
from .elementwise import broadcast_load
from .reduce import kept, reduced_shape, row_reduce


@dataclass(frozen=True, slots=True)
class SoftmaxAttrs(Attrs):
    """axis: from the front. masked: a row of nothing but -inf gives zeros instead of NaN (attention, all keys masked)."""

    axis: int = 0
    masked: int = 0


@dataclass(frozen=True, slots=True)
class AxisAttrs(Attrs):
    axis: int = 0


class RowOp(Op):
    """Base: one float tensor in, one of the same type out, rows along `attrs.axis`."""

    def infer(self, attrs: AxisAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if not 0 <= attrs.axis < x.rank or not x.dtype.is_float:
            raise self.fail(f"axis {attrs.axis} does not fit {x}, or it does not hold floats")
        return (x,)

    def samples(self) -> Iterable[Sample]:
        for d in (F32, F64, F16, BF16):
            yield Sample((values((3, 17), d),), self.Attrs(1), rtol=tolerance(d))  # type: ignore[call-arg]
        odd = np.array([[np.nan, 1, 2], [np.inf, 1, 2], [-np.inf, 1, 2], [1000, 1000, -1000]], "f4")
        yield Sample((odd,), self.Attrs(1))  # type: ignore[call-arg]
        for shape, axis in (((2, 197, 3), 1), ((5, 3), 0), ((7, 1), 1), ((0, 3), 1), ((3, 0), 1), ((1, 1, 1), 2), ((2, 2, 3, 65), 3)):
            yield Sample((values(shape, F32),), self.Attrs(axis))  # type: ignore[call-arg]


def _row_max(x: Buffer, axis: int) -> Compute:
    wide = accumulate_dtype(x.dtype)
    return row_reduce("top", "max", wide, x.shape, (axis,), lambda *f: cast(x[f], wide))


@register
class Softmax(RowOp):
    """exp(x - max) / sum exp(x - max) along the axis."""

    name = "softmax"
    Attrs = SoftmaxAttrs

    def reference(self, attrs: SoftmaxAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        w = x.astype(np.float64)
        top = np.max(w, axis=attrs.axis, keepdims=True, initial=-np.inf)
        e = np.exp(w - (np.where(top == -np.inf, 0, top) if attrs.masked else top))
        total = np.sum(e, axis=attrs.axis, keepdims=True)
        return ((e / (np.where(total == 0, 1, total) if attrs.masked else total)).astype(x.dtype),)

    def compute(self, attrs: SoftmaxAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        wide, axes = accumulate_dtype(x.dtype), (attrs.axis,)
        top = _row_max(x, attrs.axis)

        def shifted(f: tuple[Expr, ...]) -> Expr:
            t = top.buffer[kept(axes, f)]
            return cast(x[f], wide) - (select(eq(t, -math.inf), 0, t) if attrs.masked else t)

        def inverse(total: Expr) -> Expr:
            r = call("div", wrap(1, wide), total)
            return select(eq(total, 0), 0, r) if attrs.masked else r
        e = compute("powers", wide, x.shape, lambda *f: call("exp", shifted(f)))
        scale = row_reduce("scale", "sum", wide, x.shape, axes, lambda *f: e.buffer[f], inverse)
        out = compute("out0", x.dtype, x.shape, lambda *f: cast(e.buffer[f] * scale.buffer[kept(axes, f)], x.dtype))
        return (top, e, scale, out)

    def samples(self) -> Iterable[Sample]:
        yield from super().samples()
        rows = np.array([[-np.inf, -np.inf, -np.inf], [-np.inf, 0, 1], [1, 2, 3]], "f4")
        yield Sample((rows,), SoftmaxAttrs(1, masked=1))
        yield Sample((rows,), SoftmaxAttrs(1, masked=0))


@register
class LogSoftmax(RowOp):
    """x - max - log(sum exp(x - max)) along the axis."""

    name = "log_softmax"
    Attrs = AxisAttrs

    def reference(self, attrs: AxisAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        w = x.astype(np.float64)
        w = w - np.max(w, axis=attrs.axis, keepdims=True, initial=-np.inf)
        return ((w - np.log(np.sum(np.exp(w), axis=attrs.axis, keepdims=True))).astype(x.dtype),)

    def compute(self, attrs: AxisAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        wide, axes = accumulate_dtype(x.dtype), (attrs.axis,)
        top = _row_max(x, attrs.axis)

        def shifted(f: tuple[Expr, ...]) -> Expr:
            return cast(x[f], wide) - top.buffer[kept(axes, f)]
        log = row_reduce("log_sum", "sum", wide, x.shape, axes, lambda *f: call("exp", shifted(f)), lambda s: call("log", s))
        return (top, log, compute("out0", x.dtype, x.shape, lambda *f: cast(shifted(f) - log.buffer[kept(axes, f)], x.dtype)))


@register
class Hardmax(RowOp):
    """1 at the first maximum along the axis, 0 elsewhere; NaN counts as the maximum."""

    name = "hardmax"
    Attrs = AxisAttrs

    def reference(self, attrs: AxisAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        out = np.zeros(x.shape, x.dtype)
        if x.size:
            first = np.expand_dims(np.argmax(x.astype(np.float64), axis=attrs.axis), attrs.axis)
            np.put_along_axis(out, first, np.ones((), x.dtype), attrs.axis)
        return (out,)

    def compute(self, attrs: AxisAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        axes, n = (attrs.axis,), x.shape[attrs.axis]
        top = row_reduce("top", "max", x.dtype, x.shape, axes, lambda *f: x[f])

        def position(*f: Expr) -> Expr:
            return select(eq(x[f], top.buffer[kept(axes, f)]) | call("isnan", x[f]), f[attrs.axis], wrap(n, I64))
        first = row_reduce("first", "min", I64, x.shape, axes, position)
        one, zero = wrap(1, x.dtype), wrap(0, x.dtype)
        return (top, first, compute("out0", x.dtype, x.shape, lambda *f: select(eq(f[attrs.axis], first.buffer[kept(axes, f)]), one, zero)))


# -- layer normalisation -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class LayerNormAttrs(Attrs):
    """axes: ascending, from the front; each set of their points is one row. center: 0 leaves the mean in (RMS
    normalisation). statistics: 1 adds two f32 outputs (bf16's too), the mean and 1/deviation with the axes kept as 1."""

    axes: tuple[int, ...] = ()
    epsilon: float = 1e-5
    center: int = 1
    statistics: int = 0


@register
class LayerNorm(Op):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over `axes`; scale and bias are optional and broadcast to x.

    Layer, instance, group and RMS normalisation are this op with other axes and shapes of scale.
    """

    name = "layer_norm"
    Attrs = LayerNormAttrs

    def infer(self, attrs: LayerNormAttrs, x: TensorType, *affine: TensorType | None) -> tuple[TensorType, ...]:
        if any(not 0 <= a < x.rank for a in attrs.axes) or not x.dtype.is_float:
            raise self.fail(f"axes {attrs.axes} do not fit {x}, or it does not hold floats")
        for t in affine:
            if t is not None and (broadcast_shapes(x.shape, t.shape) != x.shape or not t.dtype.is_float):
                raise self.fail(f"scale or bias {t} does not broadcast to {x}")
        row = TensorType(F32, reduced_shape(x.shape, attrs.axes, 1))
        return (x, row, row) if attrs.statistics else (x,)

    def reference(self, attrs: LayerNormAttrs, x: np.ndarray, *affine: np.ndarray | None) -> tuple[np.ndarray, ...]:
        w, axes = x.astype(np.float64), tuple(attrs.axes)
        count = max(math.prod(x.shape[a] for a in axes), 1)
        mean = np.sum(w, axis=axes, keepdims=True) / count if attrs.center else np.zeros(reduced_shape(x.shape, axes, 1))
        inverse = 1 / np.sqrt(np.sum(np.square(w - mean), axis=axes, keepdims=True) / count + attrs.epsilon)
        y = (w - mean) * inverse
        scale, bias = (*affine, None, None)[:2]
        y = y if scale is None else y * scale.astype(np.float64)
        y = y if bias is None else y + bias.astype(np.float64)
        rows = (mean.astype(np.float32), inverse.astype(np.float32)) if attrs.statistics else ()
        return (y.astype(x.dtype), *rows)

    def compute(self, attrs: LayerNormAttrs, outs: tuple[TensorType, ...], x: Buffer, *affine: Buffer | None) -> tuple[Compute, ...]:
        wide, axes = accumulate_dtype(x.dtype), attrs.axes
        part = 1 / max(math.prod(x.shape[a] for a in axes), 1)
        scale, bias = (*affine, None, None)[:2]
        computes: list[Compute] = []
        if attrs.center:
            computes.append(row_reduce("mean", "sum", wide, x.shape, axes, lambda *f: cast(x[f], wide), lambda s: s * part))
        mean = computes[0].buffer if attrs.center else None

        def centred(f: tuple[Expr, ...]) -> Expr:
            v = cast(x[f], wide)
            return v if mean is None else v - mean[kept(axes, f)]

        def square(*f: Expr) -> Expr:
            v = centred(f)
            return v * v
        inverse = row_reduce("inverse", "sum", wide, x.shape, axes, square,
                             lambda s: call("div", wrap(1, wide), call("sqrt", s * part + attrs.epsilon)))

        def value(*f: Expr) -> Expr:
            v = centred(f) * inverse.buffer[kept(axes, f)]
            v = v if scale is None else v * cast(broadcast_load(scale, f), wide)
            return cast(v if bias is None else v + cast(broadcast_load(bias, f), wide), x.dtype)
        computes += [inverse, compute("out0", x.dtype, x.shape, value)]
        if attrs.statistics:
            shape = outs[1].shape
            computes.append(compute("out1", F32, shape, lambda *f: wrap(0.0, F32) if mean is None else cast(mean[kept(axes, f)], F32)))
            computes.append(compute("out2", F32, shape, lambda *f: cast(inverse.buffer[kept(axes, f)], F32)))
        return tuple(computes)

    def samples(self) -> Iterable[Sample]:
        def affine(shape: tuple[int, ...], d: DType = F32) -> tuple[np.ndarray, np.ndarray]:
            return values(shape, d, seed=1), values(shape, d, seed=2)
        for d in (F32, F64, F16, BF16):
            yield Sample((values((3, 17), d), *affine((17,), d)), LayerNormAttrs((1,)), rtol=2 * tolerance(d))
        x = values((2, 3, 5, 7), F32)
        yield Sample((x, *affine((5, 7))), LayerNormAttrs((2, 3), 1e-3, statistics=1))
        yield Sample((x, *affine((3, 1, 1))), LayerNormAttrs((2, 3)))
        yield Sample((x, None, None), LayerNormAttrs((0, 2, 3)))
        yield Sample((x, values((7,), F32), None), LayerNormAttrs((3,), center=0))
        yield Sample((x, values((7,), F32), None), LayerNormAttrs((3,), center=0, statistics=1))
        yield Sample((x.astype(np.float16), *affine((7,), F16)), LayerNormAttrs((1, 2, 3), statistics=1), rtol=4e-3)
        yield Sample((values((4, 197), F32, special=True), *affine((197,))), LayerNormAttrs((1,)))
        yield Sample((values((3, 1), F32), None, None), LayerNormAttrs((1,)))
        yield Sample((values((0, 5), F32), None, None), LayerNormAttrs((1,)))


# -- local response normalisation ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class LrnAttrs(Attrs):
    size: int = 1
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0


@register
class Lrn(Op):
    """x / (bias + alpha / size * sum of squares over `size` channels around)^beta, channels being dimension 1."""

    name, onnx = "lrn", "LRN"
    Attrs = LrnAttrs

    def infer(self, attrs: LrnAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if x.rank < 2 or not x.dtype.is_float or attrs.size < 1:
            raise self.fail(f"takes floats of rank 2 or more and a positive size, not {x} and {attrs.size}")
        return (x,)

    def reference(self, attrs: LrnAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        w, before = x.astype(np.float64), (attrs.size - 1) // 2
        total, channels = np.zeros(w.shape), x.shape[1]
        for c in range(channels):
            total[:, c] = np.sum(np.square(w[:, max(0, c - before):min(channels, c + attrs.size - before)]), axis=1)
        return ((w / (attrs.bias + attrs.alpha / attrs.size * total) ** attrs.beta).astype(x.dtype),)

    def compute(self, attrs: LrnAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        wide, before, channels = accumulate_dtype(x.dtype), (attrs.size - 1) // 2, x.shape[1]

        def square(i: tuple[Expr, ...], r: Expr) -> Expr:
            c = i[1] + r - before
            v = cast(x.at((i[0], c, *i[2:]), (c >= 0) & (c < channels), 0.0), wide)
            return v * v

        def power(s: Expr) -> Expr:
            if attrs.beta == 0.75:
                root = call("sqrt", s)
                return root * call("sqrt", root)
            return s if attrs.beta == 1 else call("sqrt", s) if attrs.beta == 0.5 else call("pow", s, attrs.beta)

        def value(*i: Expr) -> Expr:
            total = reduce("sum", (attrs.size,), lambda r: square(i, r))
            return cast(cast(x[i], wide) / power(total * (attrs.alpha / attrs.size) + attrs.bias), x.dtype)
        return (compute("out0", x.dtype, x.shape, value),)

    def samples(self) -> Iterable[Sample]:
        for d in (F32, F64, F16):
            yield Sample((values((2, 7, 3, 5), d),), LrnAttrs(3, 0.1), rtol=tolerance(d))
        yield Sample((values((1, 5, 4), F32),), LrnAttrs(4, 0.2, 0.6, 2.0))
        yield Sample((values((2, 3), F32),), LrnAttrs(9, 0.2, 1.0, 2.0))
        yield Sample((values((2, 0, 3), F32),), LrnAttrs(3))
