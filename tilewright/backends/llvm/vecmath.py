"""exp, log and their relatives, in double precision; and the f32 forms that run inside fused kernels.

Every function is straight-line code over `V`: no branch, no table, no call. f64 algorithms follow FreeBSD's msun
(fdlibm). Rare f32 functions are evaluated through f64 (scalar.py), which makes them correctly rounded but for ties.
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llvmlite import ir

from .lanes import V, fma, intrinsic, lanes_of, poly

if TYPE_CHECKING:
    from ..target import Target

INF, NAN = math.inf, math.nan
_LN2_HI, _LN2_LO = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # hi has 33 bits: n * hi is exact
_INV_LN2 = 1.44269504088896338700
_EXP_TAIL = tuple(1.0 / math.factorial(k) for k in range(13, 1, -1))  # |r| < 0.347: the next term is below 2^-59
_LG = (1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
       2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01)


def pow2_scale(p: V, n: V) -> V:
    """p * 2^n for integers n in about [-2 * bias, 2 * bias]: two exact steps, so that overflow and denormals are right."""
    shift, bias = (52, 1023) if p.is_f64 else (23, 127)
    half = ((n + 4096) >> 1) - 2048
    first = ((half + bias) << shift).as_float()
    return p * first * (((n - half) + bias) << shift).as_float()


def _reduce_ln2(x: V) -> tuple[V, V, V, V]:
    """x = n ln2 + (hi - lo): n as float and as integer, hi, lo. Needs |x| < 2^20."""
    magic = 1.5 * 2.0**52
    t = fma(x, _INV_LN2, magic)
    n = t - magic
    return n, t.bits() - x.of(magic).bits(), fma(n, -_LN2_HI, x), n * _LN2_LO


def exp64(x: V, extra: int = 0) -> V:
    """e^x * 2^extra."""
    x = x.atmost(800.0).atleast(-800.0)
    _, n, hi, lo = _reduce_ln2(x)
    r = hi - lo
    tail = fma(r * r, poly(r, _EXP_TAIL), (hi - r) - lo)
    return pow2_scale((r + tail) + 1.0, n + extra if extra else n)


def expm1_64(x: V) -> V:
    """e^x - 1."""
    c = x.atmost(800.0).atleast(-50.0)
    _, n, hi, lo = _reduce_ln2(c)
    r = hi - lo
    p = fma(r * r, poly(r, _EXP_TAIL), (hi - r) - lo) + r
    scale = (((n - 1) + 1023) << 52).as_float()  # 2^(n-1): finite for every n up to 1024
    y = (fma(scale, p, scale - 0.5)) * 2.0
    y = n.eq(0).where(p, y)
    y = x.gt(709.79).where(INF, y)
    return x.eq(0.0).where(x, y)


def _split_log(x: V) -> tuple[V, V]:
    """Positive x = 2^k m, m in [sqrt(1/2), sqrt(2)): (k as float, m). Denormals are scaled first."""
    tiny = x.lt(2.0**-1022)
    bits = tiny.where(x * 2.0**54, x).bits() + (0x3FF0000000000000 - 0x3FE6A09E00000000)
    # the biased exponent becomes a float without a 64-bit conversion: or it into 2^52 and subtract
    k = ((bits >> 52) | 0x4330000000000000).as_float() - (2.0**52 + 1023.0)
    k = k - tiny.where(x.of(54.0), 0.0)
    return k, ((bits & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E00000000).as_float()


def _log_core(k: V, f: V, c: V | None = None) -> V:
    """k ln2 + log(1 + f) + c for small f."""
    s = f / (f + 2.0)
    z = s * s
    r = z * poly(z, _LG)
    hfsq = f * f * 0.5
    low = k * _LN2_LO
    if c is not None:
        low = low + c
    return fma(k, _LN2_HI, f - (hfsq - fma(s, hfsq + r, low)))


def _log_edges(x: V, y: V) -> V:
    """log's values at 0, below 0, +inf and NaN."""
    y = x.eq(INF).where(x, y)
    y = x.eq(0.0).where(-INF, y)
    return x.lt(0.0).where(NAN, x.isnan().where(x, y))


def log64(x: V) -> V:
    k, m = _split_log(x)
    return _log_edges(x, _log_core(k, m - 1.0))


def log1p_64(x: V) -> V:
    """log(1 + x): the rounding error of 1 + x goes back in as c / u."""
    u = x + 1.0
    c = x.gt(1.0).where(1.0 - (u - x), x - (u - 1.0)) / u
    k, m = _split_log(u)
    y = _log_edges(u, _log_core(k, m - 1.0, c))
    return x.abs().lt(2.0**-54).where(x, y)


def sinh64(x: V) -> V:
    a = x.abs()
    t = expm1_64(a.atmost(40.0))
    small = (t + t / (t + 1.0)) * 0.5
    return a.lt(22.0).where(small, exp64(a, -1)).copysign(x)


def cosh64(x: V) -> V:
    a = x.abs()
    e = exp64(a, -1)
    return e + 0.25 / e


def tanh64(x: V) -> V:
    t = expm1_64(x.abs().atmost(22.0) * 2.0)
    return (t / (t + 2.0)).copysign(x)


def asinh64(x: V) -> V:
    a = x.abs()
    c = a.atmost(2.0**28)
    q = c * c
    near = log1p_64(c + q / ((q + 1.0).sqrt() + 1.0))
    return a.gt(2.0**28).where(log64(a) + math.log(2.0), near).copysign(x)


def acosh64(x: V) -> V:
    t = x.atmost(2.0**28) - 1.0
    near = log1p_64(t + fma(t, t, t + t).sqrt())
    y = x.gt(2.0**28).where(log64(x) + math.log(2.0), near)
    return x.lt(1.0).where(NAN, y)


def atanh64(x: V) -> V:
    a = x.abs()
    return (log1p_64((a + a) / (1.0 - a)) * 0.5).copysign(x)


# ---- f32 forms for fused kernels ----
# e^r = 1 + r + r^2 q(r) for |r| < 0.3466, within 4e-9: fitted with the smallest largest error, rounded from the highest power down
_EXP32 = (1.381457899697125e-3, 8.368725888431072e-3, 4.166838899254799e-2, 0.1666652113199234, 0.4999999403953552)
_LEAST = math.log(2.0**-126)


def _exp32_parts(x: V, fused: bool = True) -> tuple[V, V, V]:
    """e^x = p * 2^n with p in [0.7, 1.42]: (p, n, bits whose lowest 9 are n). For |x| < 2^20. Without a fused multiply-add in
    hardware, 1 + r is the last sum, whose rounding error is the smaller."""
    magic = 1.5 * 2.0**23
    t = fma(x, 1.44269504, magic)
    n = t - magic
    r = fma(n, 2.12194440e-4, fma(n, -0.693359375, x))  # hi has 9 bits: exact without FMA too
    p = poly(r, (*_EXP32, 1.0, 1.0)) if fused else fma(poly(r, _EXP32), r * r, r) + 1.0
    return p, n, t.bits()


def _scaled32(p: V, n: V, zero: V | None = None) -> V:
    """p * 2^n in 16 lanes of AVX-512, overflow and denormals included; 0 where `zero` holds."""
    i16 = ir.IntType(16)
    keep = ir.Constant(i16, 0xFFFF) if zero is None else p.b.bitcast(p.b.not_(zero.v), i16)
    args = [p.v, n.v, p.of(0.0).v, keep, ir.Constant(ir.IntType(32), 4)]
    return V(p.b, intrinsic(p.b, "x86.avx512.mask.scalef.ps.512", args, types=()))


def exp32(x: V, target: Target) -> V:
    """e^x: n = round(x / ln2) by the magic-number trick, degree 6 polynomial, and 2^n in two steps so that overflow and
    denormals are right; AVX-512's vscalefps does all of that for a full vector. Results below every denormal (masked scores)
    are chosen, not computed: an underflow costs processors a hundred cycles and more."""
    zero = x.lt(-104.0)
    if target.has("avx512f") and lanes_of(x.type) == 16:
        p, n, _ = _exp32_parts(x.atmost(89.0))
        return _scaled32(p, n, zero)
    p, _, bits = _exp32_parts(zero.where(0.0, x.atmost(89.0)), target.has_fma)
    half = bits >> 1
    first = ((half << 23) + 0x3F800000).as_float()  # what is above the lowest 9 bits is shifted out
    return zero.where(0.0, p * first * (((bits - half) << 23) + 0x3F800000).as_float())


def exp_nonpos32(x: V, target: Target) -> V:
    """e^x for x <= 0, and 0 where that would be subnormal."""
    zero = x.lt(_LEAST)
    p, n, bits = _exp32_parts(x, target.has_fma)
    if target.has("avx512f") and lanes_of(x.type) == 16:
        return _scaled32(p, n, zero)
    return zero.where(0.0, p * ((bits << 23) + 0x3F800000).as_float())


def exp_nonpos64(x: V) -> V:
    """e^x for x <= 0, and 0 where that would be subnormal."""
    return exp64(x.lt(math.log(2.0**-1022)).where(-INF, x))


def exp32_normal(x: V) -> V:
    """e^x for x in [-87, 88], where one step of scaling does."""
    p, _, bits = _exp32_parts(x, fused=False)
    return p * ((bits << 23) + 0x3F800000).as_float()  # a product, not a sum of bits: NaN stays


def log32(x: V) -> V:
    """Natural logarithm (Cephes' logf polynomial)."""
    tiny = x.lt(2.0**-126)
    bits = tiny.where(x * 2.0**25, x).bits() - _ROOT_HALF
    k = V(x.b, x.b.sitofp(bits.ashr(23).v, x.type)) - tiny.where(x.of(25.0), 0.0)
    return _log_edges(x, _log32_core(k, _fraction(bits)))


def log1p_32(x: V) -> V:
    """log(1 + x): what u = 1 + x loses by rounding is known exactly, and goes back into the fraction. Where u is near 1, that makes
    the fraction x itself."""
    u = x + 1.0
    lost = x.gt(1.0).where(1.0 - (u - x), x - (u - 1.0))
    bits = u.bits() - _ROOT_HALF
    exponent = bits.ashr(23)
    inverse = x.of(1.0).bits() - (exponent << 23)
    inverse = inverse.gt(0).where(inverse, 0).as_float()  # 2^-k, or 0 where nothing lost matters
    k = V(x.b, x.b.sitofp(exponent.v, x.type))
    y = _log32_core(k, fma(lost, inverse, _fraction(bits))).copysign(x)
    y = x.eq(INF).where(x, y)
    y = u.eq(0.0).where(-INF, y)
    return x.lt(-1.0).where(NAN, x.isnan().where(x, y))


_ROOT_HALF = 0x3F3504F3  # bits of sqrt(1/2)


def _fraction(bits: V) -> V:
    """m - 1 for the m in [sqrt(1/2), sqrt(2)) of a number 2^k m whose bits less _ROOT_HALF these are."""
    return ((bits & 0x007FFFFF) + _ROOT_HALF).as_float() - 1.0


def _log32_core(k: V, f: V) -> V:
    """k ln2 + log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1)."""
    z = f * f
    p = poly(f, (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
                 -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1))
    y = fma(p * f, z, k * -2.12194440e-4)
    y = fma(z, -0.5, y)
    return fma(k, 0.693359375, f + y)


_EXPM1 = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)  # Cephes' expf


def tanh32(x: V) -> V:
    """m / (m + 2) with m = e^(2|x|) - 1 = 2^n p + (2^n - 1), which keeps small x exact; r is half of what n ln2 leaves of 2|x|."""
    a = x.abs().atmost(9.1)
    magic = 1.5 * 2.0**23
    t = fma(a, 2 * 1.44269504, magic)
    n = t - magic
    r = fma(n, 1.06097220e-4, fma(n, -0.3466796875, a))
    r2 = r * r
    c7, c6, c5, c4, c3, c2 = (c * 2.0**k for c, k in zip(_EXPM1, (7, 6, 5, 4, 3, 2), strict=True))
    q = fma(r2, fma(r2, fma(x.of(c7), r, c6), fma(x.of(c5), r, c4)), fma(x.of(c3), r, c2))
    p = fma(r2, q, r + r)
    s = ((t.bits() << 23) + 0x3F800000).as_float()  # the magic number's own bits are shifted out
    m = fma(s, p, s - 1.0)
    return (m / (m + 2.0)).copysign(x)


def expm1_32(x: V) -> V:
    """e^x - 1 = 2 (2^(n-1) p + 2^(n-1) - 1/2) with p = e^r - 1, and p itself for n = 0, which keeps small x exact. 2^(n-1) is finite
    up to the largest result."""
    c = x.atmost(89.0).atleast(-18.0)
    magic = 1.5 * 2.0**23
    t = fma(c, 1.44269504, magic)
    n = t - magic
    r = fma(n, 2.12194440e-4, fma(n, -0.693359375, c))
    r2 = r * r
    c7, c6, c5, c4, c3, c2 = _EXPM1
    q = fma(r2, fma(r2, fma(x.of(c7), r, c6), fma(x.of(c5), r, c4)), fma(x.of(c3), r, c2))
    p = fma(r2, q, r)
    s = (((t.bits() - 1) << 23) + 0x3F800000).as_float()
    y = fma(s, p, s - 0.5) * 2.0
    return n.eq(0.0).where(p, y).copysign(x)


def erf32(x: V) -> V:
    """Below 0.92 an odd polynomial, above 1 - exp(-q(|x|)) (N. Juffa)."""
    a = x.abs()
    s = x * x
    small = poly(s, (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1))
    small = fma(small, x, x)
    t = a.atmost(4.5)
    q = poly(t, (-1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2, -1.06777877e-1, -6.34846687e-1, -1.28717512e-1))
    q = fma(q, t, -t)
    big = (1.0 - exp32_normal(q)).copysign(x)
    return a.lt(0.921875).where(small, big)
