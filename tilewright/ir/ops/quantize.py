"""Affine quantisation: q = saturate(round_half_even(x / scale) + zero_point), x = (q - zero_point) * scale."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError, UnsupportedError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, accumulate_dtype, call, cast
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute
from ..types import F32, F64, I32, I64, U8, DType, TensorType, broadcast_shapes
from .conv import conv_node
from .elementwise import broadcast_load
from .generate import element_type
from .shape import expand, normalize_axis, reshape
from .slices import slice_axis


@dataclass(frozen=True, slots=True)
class QuantizeAttrs(Attrs):
    dtype: DType = U8


def limits(dtype: DType) -> tuple[int, int]:
    info = np.iinfo(dtype.numpy)
    return int(info.min), int(info.max)


class Affine(Op):
    """Base: scale and zero point broadcast to x, NumPy style."""

    Attrs = QuantizeAttrs

    def infer(self, attrs: QuantizeAttrs, x: TensorType, scale: TensorType, zero: TensorType | None = None) -> tuple[TensorType, ...]:
        shapes = [t.shape for t in (scale, zero) if t is not None]
        if any(broadcast_shapes(x.shape, s) != x.shape for s in shapes) or not scale.dtype.is_float:
            raise self.fail(f"scale {scale} and zero point {zero} do not fit {x}")
        return (TensorType(attrs.dtype, x.shape),)


@register
class Quantize(Affine):
    """To the integer type `dtype`. Computed in f32 (f64 for a scale of f64); x may be float or i32."""

    name = "quantize"

    def infer(self, attrs: QuantizeAttrs, x: TensorType, scale: TensorType, zero: TensorType | None = None) -> tuple[TensorType, ...]:
        if not attrs.dtype.is_int or attrs.dtype.bits > 16:
            raise self.fail(f"the quantised type {attrs.dtype} is not a small integer")
        return super().infer(attrs, x, scale, zero)

    def reference(self, attrs: QuantizeAttrs, x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        wide = np.float64 if scale.dtype == np.float64 else np.float32
        with np.errstate(all="ignore"):
            q = np.rint(x.astype(wide) / scale.astype(wide)) + (0 if zero is None else zero.astype(wide))
            return (np.nan_to_num(np.clip(q, *limits(attrs.dtype)), nan=0.0).astype(np.int64).astype(attrs.dtype.numpy),)

    def compute(self, attrs: QuantizeAttrs, outs: tuple[TensorType, ...], x: Buffer, scale: Buffer,
                zero: Buffer | None = None) -> tuple[Compute, ...]:
        acc, (low, high) = accumulate_dtype(scale.dtype), limits(attrs.dtype)

        def body(*i: Expr) -> Expr:
            q = call("round", cast(x[i], acc) / cast(broadcast_load(scale, i), acc))
            if zero is not None:
                q = q + cast(broadcast_load(zero, i), acc)
            return cast(call("min", call("max", q, low), high), attrs.dtype)
        return (compute("out0", attrs.dtype, x.shape, body),)

    def samples(self) -> Iterable[Sample]:
        x = np.array([[-300, -1.5, -0.5, 0], [0.5, 1.5, 2.49, np.inf], [1, 254.5, 255.5, -np.inf]], "f4")
        yield Sample((x, np.array(1, np.float32), np.array(3, np.uint8)), QuantizeAttrs(U8))
        yield Sample((x, np.array([[0.5], [2], [3]], "f4"), np.array([[-5], [0], [7]], "i1")), QuantizeAttrs(element_type(3, "")))
        yield Sample((x.astype("f8"), np.array(0.1, np.float64), None), QuantizeAttrs(element_type(4, "")))
        yield Sample((np.array([7, -7], "i4"), np.array(2, np.float32), None), QuantizeAttrs(element_type(3, "")))


@register
class Dequantize(Affine):
    """To the float type `dtype`; the difference to the zero point is exact."""

    name = "dequantize"

    def reference(self, attrs: QuantizeAttrs, x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        d = x.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
        wide = np.float64 if attrs.dtype is F64 else np.float32
        return ((d.astype(wide) * scale.astype(wide)).astype(attrs.dtype.numpy),)

    def compute(self, attrs: QuantizeAttrs, outs: tuple[TensorType, ...], x: Buffer, scale: Buffer,
                zero: Buffer | None = None) -> tuple[Compute, ...]:
        acc, exact = accumulate_dtype(attrs.dtype), I32 if x.dtype.bits < 32 else I64

        def body(*i: Expr) -> Expr:
            d = x[i] if zero is None else cast(x[i], exact) - cast(broadcast_load(zero, i), exact)
            return cast(cast(d, acc) * cast(broadcast_load(scale, i), acc), attrs.dtype)
        return (compute("out0", attrs.dtype, x.shape, body),)

    def samples(self) -> Iterable[Sample]:
        x = np.array([[0, 1, 128], [254, 255, 3]], "u1")
        yield Sample((x, np.array(0.1, np.float32), np.array(128, np.uint8)), QuantizeAttrs(F32))
        yield Sample((x.astype("i1"), np.array([[0.5], [2]], "f4"), None), QuantizeAttrs(F32))
        yield Sample((np.array([2**31 - 1, -2**31], "i4"), np.array(1, np.float32), np.array(-1, np.int32)), QuantizeAttrs(F32))
        yield Sample((x, np.array(0.1, np.float16), None), QuantizeAttrs(element_type(10, "")), 2e-3)


# -- ONNX -------------------------------------------------------------------------------------------------------------
def _fitted(n: OnnxNode, b: GraphBuilder, x: TensorType, p: Value) -> Value:
    """Scale or zero point reshaped (per axis) or repeated (blocks) so that it broadcasts to x."""
    if p.type.size == 1 and p.type.rank <= 1:
        return reshape(b, p, ())
    axis, block = normalize_axis(int(n.attrs.get("axis", 1)), x.rank, n.op_type), int(n.attrs.get("block_size", 0))  # type: ignore[call-overload]
    if p.type.rank == 1:
        if p.type.shape[0] != x.shape[axis]:
            raise ShapeError(f"{n.op_type} {n.name!r}: scale or zero point {p.type} does not fit axis {axis} of {x}")
        return reshape(b, p, (p.type.shape[0], *(1,) * (x.rank - axis - 1)))
    if p.type.rank != x.rank or not block or p.type.shape[axis] != -(-x.shape[axis] // block):
        raise ShapeError(f"{n.op_type} {n.name!r}: scale or zero point {p.type} does not fit {x} in blocks of {block} along axis {axis}")
    s = p.type.shape
    p = expand(b, reshape(b, p, (*s[:axis + 1], 1, *s[axis + 1:])), (*s[:axis + 1], block, *s[axis + 1:]))
    return slice_axis(b, reshape(b, p, (*s[:axis], s[axis] * block, *s[axis + 1:])), axis, 0, x.shape[axis])


@from_onnx("QuantizeLinear")
def _quantize_linear(n: OnnxNode, b: GraphBuilder) -> Value:
    x, scale, zero = n.need(0), n.need(1), n.input(2)
    wanted = int(n.attrs.get("output_dtype", 0))  # type: ignore[call-overload]
    dtype = zero.type.dtype if zero is not None else element_type(wanted, "QuantizeLinear") if wanted else U8
    if not dtype.is_int or dtype.bits > 16:
        raise UnsupportedError(f"QuantizeLinear {n.name!r}: the quantised type {dtype} is not supported")
    if (precision := int(n.attrs.get("precision", 0))):  # type: ignore[call-overload]
        scale = b.op("cast", scale, dtype=element_type(precision, "QuantizeLinear"))
    return b.op("quantize", x, _fitted(n, b, x.type, scale), None if zero is None else _fitted(n, b, x.type, zero), dtype=dtype)


@from_onnx("DequantizeLinear")
def _dequantize_linear(n: OnnxNode, b: GraphBuilder) -> Value:
    x, scale, zero = n.need(0), n.need(1), n.input(2)
    wanted = int(n.attrs.get("output_dtype", 0))  # type: ignore[call-overload]
    return b.op("dequantize", x, _fitted(n, b, x.type, scale), None if zero is None else _fitted(n, b, x.type, zero),
                dtype=element_type(wanted, "DequantizeLinear") if wanted else scale.type.dtype)


@from_onnx("DynamicQuantizeLinear")
def _dynamic_quantize_linear(n: OnnxNode, b: GraphBuilder) -> tuple[Value, ...]:
    x, zero = n.need(0), b.constant(0.0)
    axes = tuple(range(x.type.rank))
    low = b.op("min", b.op("reduce", x, kind="min", axes=axes, keepdims=False), zero)
    high = b.op("max", b.op("reduce", x, kind="max", axes=axes, keepdims=False), zero)
    scale = b.op("div", b.op("sub", high, low), b.constant(255.0))
    scale = b.op("where", b.op("eq", scale, zero), b.constant(1.0), scale)  # all zeros
    point = b.op("quantize", b.op("neg", low), scale, None, dtype=U8)
    return b.op("quantize", x, scale, point, dtype=U8), scale, point


def centred(b: GraphBuilder, x: Value, zero: Value | None) -> Value:
    """x - zero as i32."""
    wide = b.op("cast", x, dtype=I32)
    return wide if zero is None else b.op("sub", wide, b.op("cast", zero, dtype=I32))


def _per_output(b: GraphBuilder, w: Value, p: Value | None) -> Value | None:
    """A parameter of the weight w, one number or one for each output channel, so that it broadcasts to w."""
    if p is None:
        return None
    return reshape(b, p, () if p.type.size == 1 else (p.type.size, *(1,) * (w.type.rank - 1)))


@from_onnx("ConvInteger")
def _conv_integer(n: OnnxNode, b: GraphBuilder) -> Value:
    x, w = n.need(0), n.need(1)
    zero = n.input(2)
    image = centred(b, x, None if zero is None else reshape(b, zero, ()))
    return conv_node(n, b, image, centred(b, w, _per_output(b, w, n.input(3))), None)


@from_onnx("QLinearConv")
def _qlinear_conv(n: OnnxNode, b: GraphBuilder) -> Value:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (n.need(i) for i in range(8))
    acc = conv_node(n, b, centred(b, x, reshape(b, x_zero, ())), centred(b, w, _per_output(b, w, w_zero)), n.input(8))
    ws = reshape(b, w_scale, () if w_scale.type.size == 1 else (w_scale.type.size, *(1,) * (x.type.rank - 2)))
    factor = b.op("div", b.op("mul", reshape(b, x_scale, ()), ws), reshape(b, y_scale, ()))
    scaled = b.op("mul", b.op("cast", acc, dtype=F32), factor)
    return b.op("quantize", scaled, b.constant(1.0), reshape(b, y_zero, ()), dtype=y_zero.type.dtype)
