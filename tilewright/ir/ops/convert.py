"""Conversions between element types: cast by value, bitcast by bits."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import UnsupportedError
from ..builder import GraphBuilder
from ..expr import Expr, cast
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..samples import values
from ..types import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType, TensorType, dtype_of
from .elementwise import Map, given

# TensorProto.DataType -> our element types. Strings, complex numbers, 8-bit floats and types below a byte have none.
ONNX_TYPES = {1: F32, 2: U8, 3: I8, 4: U16, 5: I16, 6: I32, 7: I64, 9: BOOL, 10: F16, 11: F64, 12: U32, 13: U64, 16: BF16}

_WITHOUT_DTYPE = {8: "string", 14: "complex64", 15: "complex128", 17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2",
                  20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2"}


@dataclass(frozen=True, slots=True)
class CastAttrs(Attrs):
    dtype: DType = F32


def integer_from_float(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Truncation; what does not fit wraps through i64, and NaN or beyond gives the smallest i64, as x86 converts."""
    return x.astype(np.int64).astype(dtype) if dtype.itemsize < 8 else x.astype(dtype)


@register
class Cast(Map):
    """The value in another type. Float to integer truncates; where the value does not fit the result is unspecified."""

    name = "cast"
    Attrs = CastAttrs
    kinds = "fiub"

    def infer(self, attrs: CastAttrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        (x,) = super().infer(attrs, *ins)
        return (TensorType(attrs.dtype, x.shape),)

    def scalar(self, attrs: CastAttrs, *xs: Expr) -> Expr:
        return cast(xs[0], attrs.dtype)

    def reference(self, attrs: CastAttrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        (x,) = given(*ins)
        if attrs.dtype.is_int and dtype_of(x.dtype).is_float:
            return (integer_from_float(x, attrs.dtype.numpy),)
        return (x.astype(attrs.dtype.numpy),)

    def samples(self) -> Iterable[Sample]:
        for src in (F32, F64, F16, BF16, I32, I64, I8, U8, U32, BOOL):
            for dst in (F32, F64, F16, BF16, I8, I32, I64, U8, U64, BOOL):
                special = src.is_float and (dst.is_float or dst is BOOL)
                low = 0 if dst.kind == "u" else -100
                yield Sample((values((3, 7), src, low=low, high=100, special=special),), CastAttrs(dst))
        yield Sample((values((0, 2), F32),), CastAttrs(I32))
        yield Sample((np.array([1e300, -1e300, 1e-300, 65504, 65520, 3.4e38, 1e-45], "f8"),), CastAttrs(F32))
        yield Sample((np.array([65504, 65519.9, 65520, 1e-8, 6e-8, 2049, 2051], "f4"),), CastAttrs(F16))


@register
class BitCast(Op):
    """The same bits as another element type of the same size."""

    name, flat = "bitcast", True
    Attrs = CastAttrs

    def infer(self, attrs: CastAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if attrs.dtype.bits != x.dtype.bits:
            raise self.fail(f"{x} and {attrs.dtype} differ in size")
        return (TensorType(attrs.dtype, x.shape),)

    def reference(self, attrs: CastAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.ascontiguousarray(x).reshape(-1).view(attrs.dtype.numpy).reshape(x.shape),)

    def kernel(self, attrs: CastAttrs, x: TensorType) -> Callable[..., None]:
        def bitcast(x: np.ndarray, out: np.ndarray) -> None:
            source, target = x.view(np.uint8), out.view(np.uint8)
            for i in range(source.size):
                target[i] = source[i]
        return bitcast

    def samples(self) -> Iterable[Sample]:
        for src, dst in ((F32, I32), (I32, F32), (F64, U64), (U8, I8), (I16, U16), (U32, I32), (BOOL, U8)):
            yield Sample((values((3, 5), src),), CastAttrs(dst))
        yield Sample((values((0,), F32),), CastAttrs(I32))
        yield Sample((values((), F64),), CastAttrs(I64))


# -- ONNX ------------------------------------------------------------------------------------------------------------
def onnx_dtype(n: OnnxNode, key: str, default: int = 0) -> DType:
    """The attribute `key` of an ONNX node as an element type. Raises UnsupportedError for types Tilewright has not."""
    code = n.attrs.get(key, default)
    if code not in ONNX_TYPES:
        known = _WITHOUT_DTYPE.get(code, f"number {code}")  # type: ignore[call-overload]
        raise UnsupportedError(f"{n.op_type} {n.name!r}: element type {known} is not supported; supported are "
                               f"{', '.join(t.name for t in ONNX_TYPES.values())}")
    return ONNX_TYPES[code]  # type: ignore[index]


@from_onnx("Cast", since=6)
def _cast(n: OnnxNode, b: GraphBuilder) -> Value:
    """`saturate` and `round_mode` concern only 8-bit floats, which have no dtype here."""
    return convert(b, n.need(0), onnx_dtype(n, "to"))


@from_onnx("CastLike")
def _cast_like(n: OnnxNode, b: GraphBuilder) -> Value:
    return convert(b, n.need(0), n.need(1).type.dtype)


@from_onnx("BitCast")
def _bitcast(n: OnnxNode, b: GraphBuilder) -> Value:
    to = onnx_dtype(n, "to")
    return n.need(0) if n.need(0).type.dtype == to else b.op("bitcast", n.need(0), dtype=to)


def convert(b: GraphBuilder, x: Value, dtype: DType) -> Value:
    """x as `dtype`; x itself where it is that already."""
    return x if x.type.dtype == dtype else b.op("cast", x, dtype=dtype)
