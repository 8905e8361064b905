"""Softmax and its kin over rows: the numbers of a row first (maximum, sum), then the row mapped with them, so that a fused
kernel shares one pass over the row. Half floats are computed in f32 and rounded once."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..builder import GraphBuilder
from ..expr import Buffer, Expr, accumulate_dtype, call, cast, eq, select, wrap
from ..graph import Attrs, Value
from ..op import OnnxImporter, OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute
from ..samples import tolerance, values
from ..types import BF16, F16, F32, F64, I64, TensorType
from .reduce import kept, node_axis, row_reduce


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
    """exp(x - max) / sum exp(x - max) along the axis. Subnormal powers count as 0."""

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
        e = compute("powers", wide, x.shape, lambda *f: call("exp_nonpos", shifted(f)))
        scale = row_reduce("scale", "sum", wide, x.shape, axes, lambda *f: e.buffer[f], inverse)
        out = compute("out0", x.dtype, x.shape, lambda *f: cast(e.buffer[f] * scale.buffer[kept(axes, f)], x.dtype))
        return (top, e, scale, out)

    def samples(self) -> Iterable[Sample]:
        yield from super().samples()
        rows = np.array([[-np.inf, -np.inf, -np.inf], [-np.inf, 0, 1], [1, 2, 3]], "f4")
        yield Sample((rows,), SoftmaxAttrs(1, masked=1))
        yield Sample((rows,), SoftmaxAttrs(1, masked=0))
        yield Sample((np.array([[0, -80, -86, -87.5, -100, -104, -200], [-100, 3, 3, 3, -90, -84, -97]], "f4"),), SoftmaxAttrs(1))


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
        log = row_reduce("log_sum", "sum", wide, x.shape, axes, lambda *f: call("exp_nonpos", shifted(f)),
                         lambda s: call("log", s))
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


# -- ONNX ------------------------------------------------------------------------------------------------------------
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
