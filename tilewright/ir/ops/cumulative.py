"""Running sums and products, and determinants: loops that carry values from one element to the next."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..builder import GraphBuilder
from ..expr import accumulate_dtype
from ..graph import Attrs, Value
from ..op import OnnxImporter, OnnxNode, Op, Sample, from_onnx, register
from ..samples import tolerance, values
from ..types import BF16, F16, F32, F64, I32, I64, TensorType
from .convert import convert
from .shape import normalize_axis

Kernel = Callable[..., None]


@dataclass(frozen=True, slots=True)
class CumulativeAttrs(Attrs):
    """axis: from the front. exclusive: element i leaves x[i] out. reverse: runs from the end."""

    axis: int = 0
    exclusive: int = 0
    reverse: int = 0


class Cumulative(Op):
    """Base: out[i] = x[0] (+) … (+) x[i] along the axis. Half floats are carried in f32."""

    Attrs = CumulativeAttrs
    flat = True
    start: ClassVar[int]

    def infer(self, attrs: CumulativeAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if not 0 <= attrs.axis < x.rank or x.dtype.kind == "b":
            raise self.fail(f"axis {attrs.axis} does not fit {x}, or it does not hold numbers")
        return (x,)

    def reference(self, attrs: CumulativeAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        w = x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x
        w = np.flip(w, attrs.axis) if attrs.reverse else w
        y = (np.cumsum if self.start == 0 else np.cumprod)(w, axis=attrs.axis, dtype=w.dtype)
        if attrs.exclusive:
            first = np.full_like(np.take(w, [0], attrs.axis), self.start) if x.shape[attrs.axis] else w
            y = np.concatenate((first, np.take(y, range(x.shape[attrs.axis] - 1), attrs.axis)), attrs.axis)
        return ((np.flip(y, attrs.axis) if attrs.reverse else y).astype(x.dtype),)

    def decompose(self, attrs: CumulativeAttrs, b: GraphBuilder, x: Value) -> tuple[Value, ...] | None:
        wide = accumulate_dtype(x.type.dtype)
        if wide == x.type.dtype:
            return None
        return (convert(b, b.emit(self.name, (convert(b, x, wide),), attrs)[0], x.type.dtype),)

    def kernel(self, attrs: CumulativeAttrs, x: TensorType) -> Kernel | None:
        if accumulate_dtype(x.dtype) != x.dtype:
            return None
        outer, n, inner = math.prod(x.shape[:attrs.axis]), x.shape[attrs.axis], math.prod(x.shape[attrs.axis + 1:])
        first, step = (n - 1, -1) if attrs.reverse else (0, 1)
        return self.loop(outer, n, inner, first, step, bool(attrs.exclusive))

    def loop(self, outer: int, n: int, inner: int, first: int, step: int, exclusive: bool) -> Kernel:
        raise NotImplementedError(self.name)

    def samples(self) -> Iterable[Sample]:
        for exclusive in (0, 1):
            for reverse in (0, 1):
                yield Sample((values((2, 5, 3), F32),), CumulativeAttrs(1, exclusive, reverse))
        for d in (F64, F16, BF16, I32, I64):
            yield Sample((values((3, 7), d, low=-2, high=2),), CumulativeAttrs(1), rtol=tolerance(d))
        yield Sample((values((7, 3), F32),), CumulativeAttrs(0))
        yield Sample((values((1,), F32),), CumulativeAttrs(0, 1))
        yield Sample((values((0, 3), F32),), CumulativeAttrs(0, 1))
        yield Sample((values((3, 0), F32),), CumulativeAttrs(0))


@register
class CumSum(Cumulative):
    __doc__ = Cumulative.__doc__

    name = "cumsum"
    start = 0

    def loop(self, outer: int, n: int, inner: int, first: int, step: int, exclusive: bool) -> Kernel:
        def cumsum(x: np.ndarray, out: np.ndarray) -> None:
            for o in range(outer):
                for j in range(inner):
                    total = out.dtype.type(0)
                    for k in range(n):
                        i = (o * n + first + step * k) * inner + j
                        if exclusive:
                            out[i] = total
                        total += x[i]
                        if not exclusive:
                            out[i] = total
        return cumsum


@register
class CumProd(Cumulative):
    """out[i] = x[0] * … * x[i] along the axis. Half floats are carried in f32."""

    name = "cumprod"
    start = 1

    def loop(self, outer: int, n: int, inner: int, first: int, step: int, exclusive: bool) -> Kernel:
        def cumprod(x: np.ndarray, out: np.ndarray) -> None:
            for o in range(outer):
                for j in range(inner):
                    total = out.dtype.type(1)
                    for k in range(n):
                        i = (o * n + first + step * k) * inner + j
                        if exclusive:
                            out[i] = total
                        total *= x[i]
                        if not exclusive:
                            out[i] = total
        return cumprod


@register
class Det(Op):
    """Determinants of a stack of square matrices, by elimination with partial pivoting in f64."""

    name, onnx, flat = "det", "Det", True

    def infer(self, attrs: Attrs, x: TensorType) -> tuple[TensorType, ...]:
        if x.rank < 2 or x.shape[-1] != x.shape[-2] or not x.dtype.is_float:
            raise self.fail(f"takes square matrices of floats, not {x}")
        return (TensorType(x.dtype, x.shape[:-2]),)

    def reference(self, attrs: Attrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.asarray(np.linalg.det(x.astype(np.float64))).astype(x.dtype),)

    def decompose(self, attrs: Attrs, b: GraphBuilder, x: Value) -> tuple[Value, ...] | None:
        wide = accumulate_dtype(x.type.dtype)
        return None if wide == x.type.dtype else (convert(b, b.op("det", convert(b, x, wide)), x.type.dtype),)

    def kernel(self, attrs: Attrs, x: TensorType) -> Kernel | None:
        if accumulate_dtype(x.dtype) != x.dtype:
            return None
        n, stack = x.shape[-1], math.prod(x.shape[:-2])

        def det(x: np.ndarray, out: np.ndarray, a: np.ndarray) -> None:
            for s in range(stack):
                for i in range(n):
                    for j in range(n):
                        a[i, j] = x[(s * n + i) * n + j]
                total = 1.0
                for k in range(n):
                    p = k
                    for i in range(k + 1, n):
                        if abs(a[i, k]) > abs(a[p, k]):
                            p = i
                    if p != k:
                        total = -total
                        for j in range(n):
                            t = a[k, j]
                            a[k, j] = a[p, j]
                            a[p, j] = t
                    pivot = a[k, k]
                    total *= pivot
                    if pivot == 0.0:
                        break
                    for i in range(k + 1, n):
                        f = a[i, k] / pivot
                        for j in range(k, n):
                            a[i, j] -= f * a[k, j]
                out[s] = total
        return det

    def memory(self, attrs: Attrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        """The matrix that is eliminated."""
        (x,) = ins
        assert x is not None
        return (TensorType(F64, x.shape[-2:]),)

    def samples(self) -> Iterable[Sample]:
        for shape, d in (((3, 3), F32), ((2, 5, 7, 7), F64), ((1, 1), F32), ((0, 0), F32), ((0, 2, 2), F32), ((2, 4, 4), F16)):
            yield Sample((values(shape, d),), rtol=max(1e-4, tolerance(d)))
        yield Sample((np.array([[0, 1], [1, 0]], "f4"),))
        yield Sample((np.ones((3, 3), np.float32),))


# -- ONNX ------------------------------------------------------------------------------------------------------------
def _import_cumulative(op: str) -> OnnxImporter:
    def build(n: OnnxNode, b: GraphBuilder) -> Value:
        x, (axis, *_) = n.need(0), n.ints(1) or (0,)
        axis = normalize_axis(axis, x.type.rank, f"{n.op_type} {n.name!r}")
        return b.op(op, x, axis=axis, exclusive=n.attrs.get("exclusive", 0), reverse=n.attrs.get("reverse", 0))
    return build


from_onnx("CumSum")(_import_cumulative("cumsum"))
from_onnx("CumProd")(_import_cumulative("cumprod"))
