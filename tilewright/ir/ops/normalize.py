"""Normalisation by the statistics of a row (layer, instance, group, RMS), of neighbouring channels (LRN) and by a norm. The
numbers of a row come first, so that a fused kernel shares one pass over it. Half floats are computed in f32 and rounded once."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, accumulate_dtype, call, cast, wrap
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute, reduce
from ..samples import tolerance, values
from ..types import BF16, F16, F32, F64, DType, TensorType, broadcast_shapes
from .batch_norm import channel_shape
from .convert import convert, onnx_dtype
from .elementwise import broadcast_load, scalar_like
from .reduce import kept, lp_norm, node_axis, reduced_shape, row_reduce
from .shape import normalize_axis


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


# -- ONNX ------------------------------------------------------------------------------------------------------------
def _stash_type(n: OnnxNode) -> DType:
    return onnx_dtype(n, "stash_type", 1)


@from_onnx("LayerNormalization")
def _layer_normalization(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    """Statistics are taken in f32, of f64 in f64, whatever stash_type says: that only rounds the extra outputs."""
    x = n.need(0)
    axis = node_axis(n, x.type.rank, -1)
    outs = b.emit("layer_norm", (x, n.need(1), n.input(2)), axes=tuple(range(axis, x.type.rank)),
                  epsilon=n.attrs.get("epsilon", 1e-5), statistics=int(n.n_outputs > 1))
    return [outs[0], *(convert(b, v, _stash_type(n)) for v in outs[1:n.n_outputs])]


@from_onnx("RMSNormalization")
def _rms_normalization(n: OnnxNode, b: GraphBuilder) -> Value:
    x, scale = n.need(0), n.need(1)
    axis = node_axis(n, x.type.rank, -1)
    y = b.op("layer_norm", x, scale, None, axes=tuple(range(axis, x.type.rank)), epsilon=n.attrs.get("epsilon", 1e-5), center=0)
    return convert(b, y, scale.type.dtype)


@from_onnx("InstanceNormalization")
def _instance_normalization(n: OnnxNode, b: GraphBuilder) -> Value:
    x = n.need(0)
    scale, bias = (b.op("reshape", n.need(k), shape=channel_shape(x.type.rank, n.need(k).type.size)) for k in (1, 2))
    return b.op("layer_norm", x, scale, bias, axes=tuple(range(2, x.type.rank)), epsilon=n.attrs.get("epsilon", 1e-5))


@from_onnx("GroupNormalization")
def _group_normalization(n: OnnxNode, b: GraphBuilder) -> Value:
    """Scale and bias have an element a group before opset 21, a channel since."""
    x, groups = n.need(0), int(n.attrs.get("num_groups", 0))  # type: ignore[call-overload]
    if x.type.rank < 2 or groups < 1 or x.type.shape[1] % groups:
        raise ShapeError(f"GroupNormalization {n.name!r}: the channels of {x.type} do not form {groups} groups")
    inner = (x.type.shape[1] // groups, *x.type.shape[2:])
    split = b.op("reshape", x, shape=(x.type.shape[0], groups, *inner))
    ones = (1,) * (x.type.rank - 2)
    per_group = 1 if n.opset < 21 and n.need(1).type.size == groups else inner[0]
    affine = [b.op("reshape", n.need(k), shape=(groups, per_group, *ones)) for k in (1, 2)]
    y = b.op("layer_norm", split, *affine, axes=tuple(range(2, x.type.rank + 1)), epsilon=n.attrs.get("epsilon", 1e-5))
    return b.op("reshape", y, shape=x.type.shape)


@from_onnx("MeanVarianceNormalization")
def _mean_variance_normalization(n: OnnxNode, b: GraphBuilder) -> Value:
    """(x - mean) / (deviation + 1e-9), over axes 0, 2 and 3 by default."""
    x = n.need(0)
    given = n.attrs.get("axes", (0, 2, 3))
    axes = tuple(sorted(normalize_axis(int(a), x.type.rank, f"{n.op_type} {n.name!r}") for a in given))  # type: ignore[union-attr]
    w = convert(b, x, F64 if x.type.dtype is F64 else F32)
    centred = b.op("sub", w, b.op("reduce", w, kind="mean", axes=axes, keepdims=1))
    variance = b.op("reduce", b.op("mul", centred, centred), kind="mean", axes=axes, keepdims=1)
    deviation = b.op("sqrt", variance)
    y = b.op("div", centred, b.op("add", deviation, scalar_like(b, deviation, 1e-9)))
    return convert(b, y, x.type.dtype)


@from_onnx("LpNormalization")
def _lp_normalization(n: OnnxNode, b: GraphBuilder) -> Value:
    """x / norm; 0 where the norm is 0."""
    x = n.need(0)
    axis = node_axis(n, x.type.rank, -1)
    norm = lp_norm(b, x, float(n.attrs.get("p", 2)), (axis,))  # type: ignore[arg-type]
    zero = scalar_like(b, x, 0)
    return b.op("where", b.op("eq", norm, zero), zero, b.op("div", x, norm))
