"""Scalar functions of ir/functions.py as LLVM IR, for scalars and for vectors of any number of lanes.

`emit_call` works on register values (see convert.py). f16 and bf16 compute in f32 and round after every function.
No emitted code ever calls a library: what hardware lacks is straight-line code here, in vecmath.py, gelu.py and trigmath.py.

Largest errors in units in the last place, as tests/backends/test_scalar.py measures and bounds them (f16 and bf16 add the
rounding of their result; f32 functions at 0.5 are evaluated in f64):

            f32   f64             f32   f64             f32   f64             f32   f64
    exp     0.9   0.9     sin     0.5   0.8     sinh    0.5   2.0     erf     1.1   1.0
    log     0.8   0.8     cos     0.5   0.8     cosh    0.5   1.3     pow     0.5   0.9
    expm1   1.6   1.7     tan     0.5   2.1     tanh    2.4   2.3     atan2   0.5   1.4
    log1p   1.4   0.8     asin    0.5   0.9     asinh   0.5   1.6     fmod    0     0
    sqrt    0.5   0.5     acos    0.5   0.9     acosh   0.5   1.8     atan    0.5   0.9
                                                atanh   0.5   1.9
exp without fused multiply-adds in hardware: 1.0. exp_nonpos is exp for x <= 0, with 0 for subnormal results. gelu in f32 has its
error stated in docs/accuracy.md; in f64 it is its formula with erf.
sin, cos and tan hold for every finite f32; in f64 for |x| <= 2^29, beyond which their error grows. NaN, infinities, signed
zeros and denormals follow C99. Add, subtract and multiply may be contracted to fused multiply-adds, nothing else.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from llvmlite import ir

from ...ir.expr import COMPARISONS
from ...ir.types import BOOL, F64, DType
from . import gelu, intmath, trigmath, vecmath
from .convert import emit_cast, load_convert, memory_type, register_type, round_to, store_convert
from .lanes import V, intrinsic, splat

if TYPE_CHECKING:
    from ..target import Target

__all__ = ["emit_call", "emit_cast", "load_convert", "memory_type", "register_type", "splat", "store_convert"]

_PREDICATES = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
# f32 and f64 forms; where there is no f32 form the function runs in f64
_F64: dict[str, Callable[[V], V]] = {
    "exp": vecmath.exp64, "log": vecmath.log64, "expm1": vecmath.expm1_64, "log1p": vecmath.log1p_64,
    "sinh": vecmath.sinh64, "cosh": vecmath.cosh64, "tanh": vecmath.tanh64, "asinh": vecmath.asinh64,
    "acosh": vecmath.acosh64, "atanh": vecmath.atanh64, "asin": trigmath.asin64, "acos": trigmath.acos64,
    "atan": trigmath.atan64, "erf": trigmath.erf64,
    "exp_nonpos": vecmath.exp_nonpos64, "gelu": lambda x: x * 0.5 * (trigmath.erf64(x * math.sqrt(0.5)) + 1.0)}
_F32: dict[str, Callable[[V], V]] = {"log": vecmath.log32, "tanh": vecmath.tanh32, "erf": vecmath.erf32,
                                     "expm1": vecmath.expm1_32, "log1p": vecmath.log1p_32}
_F32_BY_TARGET: dict[str, Callable[[V, Target], V]] = {
    "exp": vecmath.exp32, "exp_nonpos": vecmath.exp_nonpos32, "gelu": gelu.gelu32}


def emit_call(b: ir.IRBuilder, fn: str, args: list[ir.Value], dtype: DType, target: Target) -> ir.Value:
    """`fn` of register values; `dtype` is the operands' (for select: the values'). The result has that dtype, and
    bool for comparisons, isnan and isinf."""
    if fn == "select":
        return b.select(*args)
    if fn in COMPARISONS:
        return _compare(b, fn, args, dtype)
    if dtype is BOOL:
        return intmath.boolean(b, fn, args)
    if not dtype.is_float:
        return intmath.integer(b, fn, args, dtype)
    if fn in ("isnan", "isinf"):
        x = V(b, args[0])
        return (x.isnan() if fn == "isnan" else x.abs().eq(vecmath.INF)).v
    y = _float(b, fn, args, dtype, target)
    return round_to(b, y, dtype, target) if dtype.bits == 16 and fn not in _EXACT else y


_EXACT = frozenset({"neg", "abs", "sign", "min", "max", "floor", "ceil", "round", "trunc"})  # half in, same half grid out


def _compare(b: ir.IRBuilder, fn: str, args: list[ir.Value], dtype: DType) -> ir.Value:
    op = _PREDICATES[fn]
    if dtype.is_float:
        return (b.fcmp_unordered if fn == "ne" else b.fcmp_ordered)(op, *args)
    return (b.icmp_signed if dtype.kind == "i" else b.icmp_unsigned)(op, *args)


def _float(b: ir.IRBuilder, fn: str, args: list[ir.Value], dtype: DType, target: Target) -> ir.Value:
    flags = ("contract",) if dtype.bits >= 32 else ()  # halves round between the two
    match fn:
        case "add":
            return b.fadd(*args, flags=flags)
        case "sub":
            return b.fsub(*args, flags=flags)
        case "mul":
            return b.fmul(*args, flags=flags)
        case "div":
            return b.fdiv(*args)
        case "neg":
            return b.fneg(args[0])
    x = V(b, args[0])
    match fn:
        case "abs":
            return x.abs().v
        case "sqrt":
            return x.sqrt().v
        case "sign":
            return x.lt(0.0).where(x.of(-1.0), x.gt(0.0).where(x.of(1.0), x.isnan().where(x, 0.0))).v
        case "min" | "max":
            return _minmax(x, V(b, args[1]), fn, target).v
        case "floor" | "ceil" | "round" | "trunc":
            return _to_integral(x, fn, target).v
    if fn in ("pow", "atan2", "fmod", "mod", "floordiv"):
        return _binary(fn, x, V(b, args[1]), dtype, target)
    if dtype is not F64 and fn in _F32_BY_TARGET:
        return _F32_BY_TARGET[fn](x, target).v
    return _unary(fn, x, dtype).v


def _unary(fn: str, x: V, dtype: DType) -> V:
    wide = dtype is F64
    if fn in ("sin", "cos", "tan"):
        d = x if wide else x.f64()
        y = trigmath.tan64(d, not wide) if fn == "tan" else trigmath.sincos64(d, not wide)[fn == "cos"]
        return y if wide else y.f32()
    if not wide and fn in _F32:
        return _F32[fn](x)
    return _F64[fn](x) if wide else _F64[fn](x.f64()).f32()


def _binary(fn: str, x: V, y: V, dtype: DType, target: Target) -> ir.Value:
    from . import remainder
    if fn in ("fmod", "mod", "floordiv"):
        return remainder.emit(fn, x, y, lambda v: _to_integral(v, "floor", target)).v
    f = {"pow": remainder.pow64 if dtype is F64 else remainder.pow32, "atan2": trigmath.atan2_64}[fn]
    return f(x, y).v if dtype is F64 else f(x.f64(), y.f64()).f32().v


def _minmax(x: V, y: V, fn: str, target: Target) -> V:
    """NaN in either operand gives NaN. x86's minps(y, x) returns x when unordered, so a constant y, which is no NaN, needs nothing
    else, and other operands a blend where y is NaN. It depends on y alone: a reduction passes its total as x, whose next value then
    waits for one instruction (with AVX-512 minps itself is masked). LLVM makes two comparisons of the same choice said by `select`."""
    if target.arch == "aarch64":
        return V(x.b, intrinsic(x.b, "minimum" if fn == "min" else "maximum", [x.v, y.v]))
    if isinstance(y.v, ir.Constant):
        r = (x.lt(y) if fn == "min" else x.gt(y)).where(x, y)
        return x.isnan().where(x, r)
    name = "minimum" if fn == "min" else "maximum"
    return V(x.b, intrinsic(x.b, name, [y.v, x.v], flags=("nsz",)))


def _to_integral(x: V, fn: str, target: Target) -> V:
    """floor, ceil, trunc, round (half to even). Without an instruction (SSE2): add and subtract 2^23 / 2^52."""
    if target.arch == "aarch64" or target.has("sse4.1"):
        return V(x.b, intrinsic(x.b, "roundeven" if fn == "round" else fn, [x.v]))
    big = 2.0**52 if x.is_f64 else 2.0**23
    a = x.abs()
    near = (a + big) - big
    if fn == "trunc":
        near = near - near.gt(a).where(near.of(1.0), 0.0)
    r = near.copysign(x)
    if fn == "floor":
        r = (r - r.gt(x).where(r.of(1.0), 0.0)).copysign(x)
    if fn == "ceil":
        r = (r + r.lt(x).where(r.of(1.0), 0.0)).copysign(x)
    return a.lt(big).where(r, x)
