"""Contractions: matmul, its integer form, and what ONNX builds from them (Gemm, quantised products)."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, accumulate_dtype, cast
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute, reduce
from ..samples import tolerance, values
from ..types import BF16, F16, F32, F64, I8, I32, I64, U8, U32, DType, TensorType, broadcast_shapes
from .convert import convert
from .elementwise import broadcast_load, scalar_like

MATRICES = (((2, 3), (3, 5)), ((17, 13), (13, 33)), ((1, 64), (64, 1)), ((4, 1), (1, 4)), ((2, 3, 5), (5, 7)), ((3, 1, 2, 4), (5, 4, 3)),
            ((5, 4), (2, 4, 3)), ((0, 4), (4, 3)), ((2, 0), (0, 3)), ((2, 0, 3), (3, 1)), ((1, 2, 3), (4, 3, 2)))


class MatMulBase(Op):
    """out[..., i, j] = sum k: a[..., i, k] * b[..., k, j], leading dimensions broadcast as in NumPy."""

    def result(self, a: TensorType, b: TensorType) -> DType:
        """The output's dtype; raises ShapeError where the operands' do not fit."""
        raise NotImplementedError(self.name)

    def infer(self, attrs: Attrs, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        dtype = self.result(a, b)
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        if a.rank < 2 or b.rank < 2 or a.shape[-1] != b.shape[-2] or batch is None:
            raise self.fail(f"{a} and {b} are not matrices (or stacks of them) that can be multiplied")
        return (TensorType(dtype, (*batch, a.shape[-2], b.shape[-1])),)

    def compute(self, attrs: Attrs, outs: tuple[TensorType, ...], a: Buffer, b: Buffer) -> tuple[Compute, ...]:
        dtype = outs[0].dtype
        wide = accumulate_dtype(dtype)

        def value(*index: Expr) -> Expr:
            *batch, i, j = index

            def product(k: Expr) -> Expr:
                return cast(broadcast_load(a, (*batch, i, k)), wide) * cast(broadcast_load(b, (*batch, k, j)), wide)
            return cast(reduce("sum", (a.shape[-1],), product), dtype)
        return (compute("out0", dtype, outs[0].shape, value),)


@register
class MatMul(MatMulBase):
    __doc__ = MatMulBase.__doc__

    name = "matmul"

    def result(self, a: TensorType, b: TensorType) -> DType:
        if a.dtype != b.dtype or a.dtype.kind == "b":
            raise self.fail(f"operands must share a numeric element type, not {a} and {b}")
        return a.dtype

    def reference(self, attrs: Attrs, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        wide = np.float32 if a.dtype.itemsize == 2 and a.dtype.kind not in "iu" else a.dtype
        return (np.matmul(a.astype(wide), b.astype(wide)).astype(a.dtype),)

    def samples(self) -> Iterable[Sample]:
        for s, t in MATRICES:
            yield Sample((values(s, F32), values(t, F32, seed=1)))
        for d in (F64, F16, BF16, I32, I64, U32):
            yield Sample((values((5, 19), d), values((19, 7), d, seed=1)), rtol=tolerance(d))
        yield Sample((values((3, 7), F32, special=True), values((7, 3), F32, seed=1)))


@register
class MatMulInteger(MatMulBase):
    """matmul of 8-bit integers, each signed or not, with an i32 result."""

    name = "matmul_integer"

    def result(self, a: TensorType, b: TensorType) -> DType:
        if a.dtype not in (I8, U8) or b.dtype not in (I8, U8):
            raise self.fail(f"takes 8-bit integers, not {a} and {b}")
        return I32

    def reference(self, attrs: Attrs, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        exact = np.matmul(a.astype(np.float64), b.astype(np.float64))  # BLAS, and exact: products are below 2^16
        return (exact.astype(np.int64).astype(np.int32),)

    def samples(self) -> Iterable[Sample]:
        for d, e in ((U8, I8), (I8, I8), (U8, U8), (I8, U8)):
            yield Sample((values((5, 19), d, low=-128, high=127), values((19, 7), e, low=-128, high=127, seed=1)))
        for s, t in MATRICES:
            yield Sample((values(s, U8, high=255), values(t, I8, low=-128, high=127)))


# -- ONNX ------------------------------------------------------------------------------------------------------------
def _matrices(n: OnnxNode, b: GraphBuilder, x: Value, y: Value) -> tuple[Value, Value]:
    """x and y with vectors made into a row and a column."""
    if 0 in (x.type.rank, y.type.rank):
        raise ShapeError(f"{n.op_type} {n.name!r}: takes vectors, matrices or stacks of them, not {x.type} and {y.type}")
    row = b.op("reshape", x, shape=(1, *x.type.shape)) if x.type.rank == 1 else x
    return row, b.op("reshape", y, shape=(*y.type.shape, 1)) if y.type.rank == 1 else y


def _drop(b: GraphBuilder, out: Value, x: Value, y: Value) -> Value:
    """`out` of _matrices(x, y) without the dimensions that were added for vectors."""
    shape = out.type.shape
    shape = shape if y.type.rank > 1 else shape[:-1]
    if x.type.rank == 1:
        at = -2 if y.type.rank > 1 else -1
        shape = shape[:at] + (shape[at + 1:] if at + 1 else ())
    return out if shape == out.type.shape else b.op("reshape", out, shape=shape)


@from_onnx("MatMul")
def _matmul(n: OnnxNode, b: GraphBuilder) -> Value:
    x, y = n.need(0), n.need(1)
    return _drop(b, b.op("matmul", *_matrices(n, b, x, y)), x, y)


@from_onnx("Gemm")
def _gemm(n: OnnxNode, b: GraphBuilder) -> Value:
    """alpha * A' B' + beta * C; factors of 1 and a beta of 0 leave no trace."""
    x, y, c = n.need(0), n.need(1), n.input(2)
    if x.type.rank != 2 or y.type.rank != 2:
        raise ShapeError(f"Gemm {n.name!r}: takes matrices, not {x.type} and {y.type}")
    x = b.op("transpose", x, perm=(1, 0)) if n.attrs.get("transA", 0) else x
    y = b.op("transpose", y, perm=(1, 0)) if n.attrs.get("transB", 0) else y
    out = _scaled(b, b.op("matmul", x, y), float(n.attrs.get("alpha", 1.0)))  # type: ignore[arg-type]
    beta = float(n.attrs.get("beta", 1.0))  # type: ignore[arg-type]
    if c is None or beta == 0:
        return out
    if broadcast_shapes(out.type.shape, c.type.shape) != out.type.shape:
        raise ShapeError(f"Gemm {n.name!r}: C {c.type} does not broadcast to {out.type}")
    return b.op("add", out, _scaled(b, c, beta))


def _scaled(b: GraphBuilder, x: Value, factor: float) -> Value:
    """factor * x; integers go through f64."""
    if factor == 1:
        return x
    if x.type.dtype.is_float:
        return b.op("mul", x, scalar_like(b, x, factor))
    w = convert(b, x, F64)
    return convert(b, b.op("mul", w, scalar_like(b, w, factor)), x.type.dtype)


def _aligned(b: GraphBuilder, p: Value | None, matrix: Value, dim: int) -> Value | None:
    """A zero point or scale that broadcasts to `matrix`: a scalar, one element a row (dim -2), a column (dim -1), or as it is."""
    if p is None or p.type.rank != 1:
        return p
    if p.type.size == 1:
        return b.op("reshape", p, shape=())
    return b.op("reshape", p, shape=(p.type.size, 1)) if dim == -2 and matrix.type.rank > 1 else p


def integer_product(n: OnnxNode, b: GraphBuilder, x: Value, y: Value, x_zero: Value | None, y_zero: Value | None) -> Value:
    """(x - x_zero) @ (y - y_zero) in i32, as x @ y - x_zero * sum_k y - sum_k x * y_zero + K * x_zero * y_zero: the product
    stays one of 8-bit integers, and sums over weights are made once. Zero points that are literally 0 leave no trace."""
    def zero_point(p: Value | None, v: Value, dim: int) -> Value | None:
        known = None if p is None else b.value_of(p)
        p = None if known is not None and not known.any() else _aligned(b, p, v, dim)
        return None if p is None else convert(b, p, I32)
    zx, zy = zero_point(x_zero, x, -2), zero_point(y_zero, y, -1)
    left, right = _matrices(n, b, x, y)
    total = b.op("matmul_integer", left, right)
    if zx is not None:
        columns = b.op("reduce", convert(b, right, I32), kind="sum", axes=(right.type.rank - 2,), keepdims=1)
        total = b.op("sub", total, b.op("mul", columns, zx))
    if zy is not None:
        rows = b.op("reduce", convert(b, left, I32), kind="sum", axes=(left.type.rank - 1,), keepdims=1)
        total = b.op("sub", total, b.op("mul", rows, zy))
    if zx is not None and zy is not None:
        count = b.constant(left.type.shape[-1], I32)
        total = b.op("add", total, b.op("mul", b.op("mul", zx, zy), count))
    return _drop(b, total, x, y)


@from_onnx("MatMulInteger")
def _matmul_integer(n: OnnxNode, b: GraphBuilder) -> Value:
    return integer_product(n, b, n.need(0), n.need(1), n.input(2), n.input(3))


@from_onnx("QLinearMatMul")
def _qlinear_matmul(n: OnnxNode, b: GraphBuilder) -> Value:
    """saturate(round((a - za) @ (b - zb) * (sa * sb / sy)) + zy), rounding half to even."""
    x, x_scale, x_zero, y, y_scale, y_zero, scale, zero = (n.need(k) for k in range(8))
    total = convert(b, integer_product(n, b, x, y, x_zero, y_zero), F32)
    if (0 in (x.type.rank, y.type.rank)) or total.type.rank == 0:
        return requantize(b, total, b.op("div", b.op("mul", _f32(b, x_scale), _f32(b, y_scale)), _f32(b, scale)), zero)
    sx, sy, so = (_aligned(b, _f32(b, p), total, dim) for p, dim in ((x_scale, -2), (y_scale, -1), (scale, -2)))
    factor = b.op("div", b.op("mul", sx, sy), so)
    return requantize(b, total, factor, _aligned(b, zero, total, -2) or zero)


def _f32(b: GraphBuilder, v: Value) -> Value:
    return convert(b, v, F32)


def requantize(b: GraphBuilder, total: Value, factor: Value, zero: Value) -> Value:
    """saturate(round(total * factor) + zero) in zero's type; `total` is f32."""
    limits = np.iinfo(zero.type.dtype.numpy)
    q = b.op("add", b.op("round", b.op("mul", total, factor)), convert(b, zero, F32))
    q = b.op("min", b.op("max", q, scalar_like(b, q, limits.min)), scalar_like(b, q, limits.max))
    return convert(b, q, zero.type.dtype)
