"""Batch normalisation, at inference and in training mode."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..builder import GraphBuilder
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..samples import tolerance, values
from ..types import F16, F32, F64, TensorType
from .convert import convert
from .elementwise import scalar_like


@dataclass(frozen=True, slots=True)
class BatchNormAttrs(Attrs):
    epsilon: float = 1e-5


@register
class BatchNorm(Op):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, with one of each a channel (dimension 1); inputs in the order
    x, scale, bias, mean, variance. Decomposes into one multiplication and one addition by what the weights give."""

    name = "batch_norm"
    Attrs = BatchNormAttrs

    def infer(self, attrs: BatchNormAttrs, x: TensorType, *params: TensorType) -> tuple[TensorType, ...]:
        channels = x.shape[1] if x.rank > 1 else 1
        if not x.dtype.is_float or len(params) != 4 or any(p.shape != (channels,) or not p.dtype.is_float for p in params):
            raise self.fail(f"takes floats and four vectors of their {channels} channels, not {x} and {', '.join(map(repr, params))}")
        return (x,)

    def reference(self, attrs: BatchNormAttrs, x: np.ndarray, *params: np.ndarray) -> tuple[np.ndarray, ...]:
        scale, bias, mean, variance = (p.astype(np.float64).reshape(channel_shape(x.ndim, p.size)) for p in params)
        factor = scale / np.sqrt(variance + attrs.epsilon)
        return ((x.astype(np.float64) * factor + (bias - mean * factor)).astype(x.dtype),)

    def decompose(self, attrs: BatchNormAttrs, b: GraphBuilder, x: Value, *params: Value) -> tuple[Value, ...]:
        wide = F64 if x.type.dtype is F64 else F32
        scale, bias, mean, variance = (convert(b, p, wide) for p in params)
        deviation = b.op("sqrt", b.op("add", variance, scalar_like(b, variance, attrs.epsilon)))
        factor = b.op("div", scale, deviation)
        offset = b.op("sub", bias, b.op("mul", mean, factor))
        shape = channel_shape(x.type.rank, scale.type.size)
        y = b.op("mul", convert(b, x, wide), b.op("reshape", factor, shape=shape))
        return (convert(b, b.op("add", y, b.op("reshape", offset, shape=shape)), x.type.dtype),)

    def samples(self) -> Iterable[Sample]:
        for shape, d in (((2, 3, 5, 7), F32), ((3, 17), F32), ((1, 2, 3), F64), ((2, 3, 4), F16), ((5,), F32), ((0, 3, 2), F32)):
            n = shape[1] if len(shape) > 1 else 1
            params = (*(values((n,), d, seed=k) for k in range(3)), values((n,), d, low=0.5))
            yield Sample((values(shape, d), *params), BatchNormAttrs(), rtol=tolerance(d))
        yield Sample((values((2, 3, 2), F16), *(values((3,), F32, low=0.5, seed=k) for k in range(4))), BatchNormAttrs(0.1), rtol=2e-3)


def channel_shape(rank: int, channels: int) -> tuple[int, ...]:
    """The shape in which a vector of channels broadcasts along dimension 1."""
    return (channels,) + (1,) * (rank - 2)


# -- ONNX ------------------------------------------------------------------------------------------------------------
@from_onnx("BatchNormalization")
def _batch_normalization(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    """Training mode, which normalises by the batch's own statistics, is an attribute since opset 14; before, a node is in
    it when it has more than one output (the running mean and variance, then the batch's)."""
    x, scale, bias, mean, variance = (n.need(k) for k in range(5))
    epsilon = float(n.attrs.get("epsilon", 1e-5))  # type: ignore[arg-type]
    if not (n.attrs.get("training_mode", 0) if n.opset >= 14 else n.n_outputs > 1):
        return [b.op("batch_norm", x, scale, bias, mean, variance, epsilon=epsilon)]
    momentum = float(n.attrs.get("momentum", 0.9))  # type: ignore[arg-type]
    axes = tuple(d for d in range(x.type.rank) if d != 1)
    wide = F64 if x.type.dtype is F64 else F32
    w = convert(b, x, wide)
    now = b.op("reduce", w, kind="mean", axes=axes, keepdims=1)
    centred = b.op("sub", w, now)
    spread = b.op("reduce", b.op("mul", centred, centred), kind="mean", axes=axes, keepdims=1)
    now, spread = (b.op("reshape", v, shape=mean.type.shape) for v in (now, spread))

    def running(old: Value, new: Value) -> Value:
        old_w = convert(b, old, wide)
        kept = b.op("mul", old_w, scalar_like(b, old_w, momentum))
        return convert(b, b.op("add", kept, b.op("mul", new, scalar_like(b, new, 1 - momentum))), old.type.dtype)
    y = b.op("batch_norm", x, scale, bias, now, spread, epsilon=epsilon)
    batch = [convert(b, now, mean.type.dtype), convert(b, spread, variance.type.dtype)]
    return [y, running(mean, now), running(variance, spread), *batch][:n.n_outputs]
