"""Conversions between dtypes, and between registers and memory.

Registers hold bool as i1 and f16/bf16 as float that is always a value of the narrow type; memory holds bool as i8
and half floats as i16 bits. Half conversions use the hardware's instruction where there is one (x86 F16C, AArch64),
else integer code: never `__extendhfsf2` and friends.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from llvmlite import ir

from ...ir.types import BF16, BOOL, F16, F32, F64, I32, I64, DType
from .lanes import V, freeze, like, splat

if TYPE_CHECKING:
    from ..target import Target


def has_half(target: Target) -> bool:
    """Vector conversion between half and float in hardware."""
    return target.arch == "aarch64" or target.f16c


def register_type(dtype: DType, lanes: int | None = None) -> ir.Type:
    """LLVM type of a value in registers; `lanes` None or 0 for a scalar, else <lanes x …> (one lane included)."""
    if dtype.is_float:
        e: ir.Type = ir.DoubleType() if dtype is F64 else ir.FloatType()
    else:
        e = ir.IntType(1 if dtype is BOOL else dtype.bits)
    return ir.VectorType(e, lanes) if lanes else e


def memory_type(dtype: DType, lanes: int | None = None) -> ir.Type:
    """LLVM type of the same value in memory."""
    if dtype.is_float and dtype.bits >= 32:
        return register_type(dtype, lanes)
    e = ir.IntType(8 if dtype is BOOL else dtype.bits)
    return ir.VectorType(e, lanes) if lanes else e


def load_convert(b: ir.IRBuilder, raw: ir.Value, dtype: DType, target: Target) -> ir.Value:
    """memory_type -> register_type. Any nonzero byte is true."""
    if dtype is BOOL:
        return b.icmp_unsigned("!=", raw, splat(raw.type, 0))
    if dtype is BF16:
        wide = b.zext(raw, like(raw.type, ir.IntType(32)))
        return (V(b, wide) << 16).as_float().v
    if dtype is F16:
        return _half_to_float(b, raw, target)
    return raw


def store_convert(b: ir.IRBuilder, v: ir.Value, dtype: DType, target: Target) -> ir.Value:
    """register_type -> memory_type."""
    if dtype is BOOL:
        return b.zext(v, like(v.type, ir.IntType(8)))
    if dtype is BF16:  # registers hold rounded values: the upper half is the value
        return b.trunc((V(b, v).bits() >> 16).v, like(v.type, ir.IntType(16)))
    if dtype is F16:
        return _float_to_half(b, v, target)
    return v


def _half_to_float(b: ir.IRBuilder, raw: ir.Value, target: Target) -> ir.Value:
    if has_half(target):
        return b.fpext(b.bitcast(raw, like(raw.type, ir.HalfType())), like(raw.type, ir.FloatType()))
    h = V(b, b.zext(raw, like(raw.type, ir.IntType(32))))
    x = ((h & 0x7FFF) << 13).as_float() * 2.0**112  # exact, denormals included
    x = x.ge(65536.0).where((x.bits() | 0x7F800000).as_float(), x)
    return (x.bits() | ((h & 0x8000) << 16)).as_float().v


def _float_to_half(b: ir.IRBuilder, v: ir.Value, target: Target) -> ir.Value:
    i16 = like(v.type, ir.IntType(16))
    if has_half(target):
        return b.bitcast(b.fptrunc(v, like(v.type, ir.HalfType())), i16)
    x = V(b, v)
    bits = x.bits() & 0x7FFFFFFF
    small = (bits.as_float() + 0.5).bits() - 0x3F000000  # 0.5's ulp is half's smallest denormal
    normal = (bits - (112 << 23) + 0xFFF + ((bits >> 13) & 1)) >> 13
    special = bits.gt(0x7F800000).where(bits.of(0x7E00), 0x7C00)
    h = bits.lt(113 << 23).where(small, normal)
    h = bits.lt(143 << 23).where(h, special)
    return b.trunc((h | ((x.bits() >> 16) & 0x8000)).v, i16)


def round_to(b: ir.IRBuilder, v: ir.Value, dtype: DType, target: Target) -> ir.Value:
    """A float rounded (half to even) to the nearest value of f16 or bf16, still as float; NaN stays NaN."""
    if dtype is F16:
        return _half_to_float(b, _float_to_half(b, v, target), target)
    assert dtype is BF16, dtype
    x = V(b, v)
    bits = x.bits()
    up = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return x.isnan().where((bits | 0x00400000) & 0xFFFF0000, up).as_float().v


def _narrow_f64(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """f64 -> f32 rounded to odd, so that a second rounding to f16/bf16 is right."""
    x = V(b, v)
    y = x.f32()
    back = y.f64()
    away = back.abs().gt(x.abs())
    i32 = like(v.type, ir.IntType(32))
    bits = y.bits() - V(b, b.zext(away.v, i32))
    inexact = V(b, b.zext(b.fcmp_ordered("!=", back.v, x.v), i32))
    return (bits | inexact).as_float().v


def emit_cast(b: ir.IRBuilder, v: ir.Value, src: DType, dst: DType, target: Target) -> ir.Value:
    """Value conversion with C semantics in register representation.

    float -> bool is x != 0; float -> int truncates, and outside the range gives some value of the type (never
    poison): 8- and 16-bit integers take the low bits of the 32-bit conversion, as NumPy does on x86.
    """
    if src == dst:
        return v
    to = like(v.type, register_type(dst))
    if dst is BOOL:
        zero = splat(v.type, 0)
        return b.fcmp_unordered("!=", v, zero) if src.is_float else b.icmp_unsigned("!=", v, zero)
    if src.is_float:
        return _from_float(b, v, src, dst, to, target) if dst.is_float else _float_to_int(b, v, dst, to)
    unsigned = src is BOOL or src.kind == "u"
    if dst.is_float:
        y = b.uitofp(v, to) if unsigned else b.sitofp(v, to)
        return round_to(b, y, dst, target) if dst.bits == 16 else y
    width = 1 if src is BOOL else src.bits
    if width == dst.bits:
        return v
    return b.trunc(v, to) if dst.bits < width else b.zext(v, to) if unsigned else b.sext(v, to)


def _from_float(b: ir.IRBuilder, v: ir.Value, src: DType, dst: DType, to: ir.Type, target: Target) -> ir.Value:
    if dst is F64:
        return b.fpext(v, to)
    if dst is F32:
        return b.fptrunc(v, to) if src is F64 else v
    return round_to(b, _narrow_f64(b, v) if src is F64 else v, dst, target)


def _float_to_int(b: ir.IRBuilder, v: ir.Value, dst: DType, to: ir.Type) -> ir.Value:
    """The plain conversion is poison out of range; `freeze` makes that some fixed value at no cost."""
    if dst.bits == 64:
        return freeze(b, b.fptoui(v, to) if dst.kind == "u" else b.fptosi(v, to))
    wide = register_type(I64 if dst.kind == "u" and dst.bits == 32 else I32)
    r = freeze(b, b.fptosi(v, like(v.type, wide)))
    return r if r.type == to else b.trunc(r, to)
