"""How ONNX's normalisations become ops of normalize.py, reduce.py and elementwise.py; and batch normalisation."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..graph import Attrs, Value
from ..op import OnnxImporter, OnnxNode, Op, Sample, from_onnx, register
from ..samples import tolerance, values
from ..types import F16, F32, F64, DType, TensorType
from .convert import convert
from .elementwise import scalar_like
from .reduce import lp_norm, node_axis
from .shape import normalize_axis


# -- batch normalisation -------------------------------------------------------------------------------------------------
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


# -- rows ----------------------------------------------------------------------------------------------------------------
def _import_rows(op: str) -> OnnxImporter:
    """Before opset 13 a row is everything from `axis` (default 1) on."""
    def build(n: OnnxNode, b: GraphBuilder) -> Value:
        x = n.need(0)
        axis = node_axis(n, x.type.rank, 1 if n.opset < 13 else -1)
        if n.opset >= 13 or axis == x.type.rank - 1:
            return b.op(op, x, axis=axis)
        flat = (math.prod(x.type.shape[:axis]), math.prod(x.type.shape[axis:]))
        return b.op("reshape", b.op(op, b.op("reshape", x, shape=flat), axis=1), shape=x.type.shape)
    return build


for _onnx, _name in {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Hardmax": "hardmax"}.items():
    from_onnx(_onnx)(_import_rows(_name))


def _stash_type(n: OnnxNode) -> DType:
    from .convert import onnx_dtype
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
