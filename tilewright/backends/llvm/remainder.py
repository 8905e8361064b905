"""pow, and the remainder family: fmod (C), mod and floordiv (Python).

fmod is exact for all operands, so its time depends on the exponents' distance: it is the one function with a loop, in
an internal function of the module, one for each vector type.
"""
from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from .builder import Builder
from .lanes import V, any_lane, fma, poly, type_suffix
from .vecmath import INF, NAN, exp64, log64, pow2_scale

_L = (2.06975017800338417784e-01, 2.30660745775561754067e-01, 2.72728123808534006489e-01,
      3.33333329818377432918e-01, 4.28571428578550184252e-01, 5.99999999999994648725e-01)
_P = (4.13813679705723846039e-08, -1.65339022054652515390e-06, 6.61375632143793436117e-05,
      -2.77777777770155933842e-03, 1.66666666666666019037e-01)
_CP, _CP_H, _CP_L = 9.61796693925975554329e-01, 9.61796700954437255859e-01, -7.02846165095275826516e-09
_DP_H, _DP_L = 5.84962487220764160156e-01, 1.35003920212974897128e-08  # log2(1.5)
_LG2, _LG2_H, _LG2_L = 6.93147180559945286227e-01, 6.93147182464599609375e-01, -1.90465429995776804525e-09


def _head(v: V) -> V:
    """The upper 32 bits: 21 significant bits, so that products of two heads are exact."""
    return (v.bits() & 0xFFFFFFFF00000000).as_float()


def _log2_pair(a: V) -> tuple[V, V]:
    """log2 of finite a > 0 as head + tail, about 70 bits (fdlibm's e_pow.c)."""
    tiny = a.lt(2.0**-1022)
    bits = tiny.where(a * 2.0**54, a).bits()
    n = ((bits >> 52) | 0x4330000000000000).as_float() - (2.0**52 + 1023.0) - tiny.where(a.of(54.0), 0.0)
    m = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000).as_float()
    top = m.ge(1.7320508)
    m, n = top.where(m * 0.5, m), top.where(n + 1.0, n)
    mid = m.gt(1.2247448) & m.lt(1.7320508)
    bp = mid.where(m.of(1.5), 1.0)
    u, v = m - bp, 1.0 / (m + bp)
    s = u * v
    s_h = _head(s)
    t_h = _head(m + bp)
    t_l = m - (t_h - bp)
    s_l = v * ((u - s_h * t_h) - s_h * t_l)
    s2 = s * s
    r = s2 * s2 * poly(s2, _L) + s_l * (s_h + s)
    s2 = s_h * s_h
    t_h = _head(3.0 + s2 + r)
    t_l = r - ((t_h - 3.0) - s2)
    u, v = s_h * t_h, s_l * t_h + t_l * s
    p_h = _head(u + v)
    p_l = v - (p_h - u)
    z_h = _CP_H * p_h
    z_l = _CP_L * p_h + p_l * _CP + mid.where(m.of(_DP_L), 0.0)
    dp = mid.where(m.of(_DP_H), 0.0)
    t1 = _head(((z_h + z_l) + dp) + n)
    return t1, z_l - (((t1 - n) - dp) - z_h)


def _exp2_pair(p_h: V, p_l: V) -> V:
    """2^(p_h + p_l) for |p_h| <= 1100."""
    magic = 1.5 * 2.0**52
    q = (p_h + p_l) + magic
    n = q - magic
    p_h = p_h - n
    t = _head(p_l + p_h)
    u = t * _LG2_H
    v = (p_l - (t - p_h)) * _LG2 + t * _LG2_L
    z = u + v
    w = v - (z - u)
    t = z * z
    t1 = z - t * poly(t, _P)
    r = (z * t1) / (t1 - 2.0) - fma(z, w, w)
    return pow2_scale(1.0 - (r - z), q.bits() - q.of(magic).bits())


def _magnitude64(a: V, y: V) -> V:
    t1, t2 = _log2_pair(a)
    y = y.atmost(2.0**70).atleast(-(2.0**70))
    y1 = _head(y)
    p_l = (y - y1) * t1 + y * t2
    p_h = y1 * t1
    z = p_h + p_l
    far = z.abs().gt(1100.0)
    return _exp2_pair(far.where(z.atmost(1100.0).atleast(-1100.0), p_h), far.where(0.0, p_l))


def _is_integer(a: V) -> V:
    """For a >= 0; from 2^52 on everything is."""
    return a.ge(2.0**52) | ((a + 2.0**52) - 2.0**52).eq(a)


def _pow(x: V, y: V, magnitude: Callable[[V, V], V]) -> V:
    """C99's special cases around |x|^y."""
    a = x.abs()
    edge = a.eq(0.0) | a.eq(INF)
    r = magnitude(edge.where(1.0, a), y)
    r = (edge & (a.eq(0.0) ^ y.lt(0.0))).where(0.0, (edge).where(INF, r))
    integral = _is_integer(y.abs())
    odd = integral & ~_is_integer(y.abs() * 0.5)
    r = (odd & x.bits().lt(0)).where(-r, r)
    r = (x.lt(0.0) & ~integral & a.ne(INF)).where(NAN, r)
    r = (x.isnan() | y.isnan()).where(NAN, r)
    return (y.eq(0.0) | x.eq(1.0)).where(1.0, r)


def pow64(x: V, y: V) -> V:
    return _pow(x, y, _magnitude64)


def pow32(x: V, y: V) -> V:
    """For f64 copies of f32 values: a plain f64 logarithm is accurate enough."""
    return _pow(x, y, lambda a, e: exp64(log64(a) * e.atmost(2.0**70).atleast(-(2.0**70))))


def emit(fn: str, x: V, y: V, floor: Callable[[V], V]) -> V:
    """fmod, mod or floordiv with NumPy's rules for zeros, infinities and NaN."""
    m = V(x.b, x.b.call(_fmod_function(x.b.module, x.type), [x.v, y.v]))
    if fn == "fmod":
        return m
    flip = m.ne(0.0) & (y.lt(0.0) ^ m.lt(0.0))
    mod = flip.where(m + y, m.eq(0.0).where(m.of(0.0).copysign(y), m))
    if fn == "mod":
        return mod
    div = (x - m) / y
    div = flip.where(div - 1.0, div)
    q = floor(div)
    q = (div - q).gt(0.5).where(q + 1.0, q)
    q = div.eq(0.0).where(q.of(0.0).copysign(x / y), q)
    return y.eq(0.0).where(x / y, q)


def _exponent(v: V) -> V:
    """Biased exponent of v > 0; denormals count below 1, as if they were normal."""
    shift, tiny, up = (52, 2.0**-1022, 54) if v.is_f64 else (23, 2.0**-126, 25)
    low = v.lt(tiny)
    bits = low.where(v * 2.0**up, v).bits()
    return (bits >> shift) - low.where(bits.of(up), 0)


def _fmod_function(module: ir.Module, t: ir.Type) -> ir.Function:
    """
    fmod(x, y): r = |x|; while any lane has r >= |y|: r -= |y| * 2^k, the largest k that fits; sign of x.
    Each subtraction is exact, as r < 2 |y| 2^k.
    """
    name = f"tw.fmod.{type_suffix(t)}"
    if (known := module.globals.get(name)) is not None:
        return known
    fn = ir.Function(module, ir.FunctionType(t, [t, t]), name)
    fn.linkage = "internal"
    entry, loop, done = (fn.append_basic_block(n) for n in ("entry", "loop", "done"))
    b = Builder(entry)
    x, y = V(b, fn.args[0]), V(b, fn.args[1])
    ax, ay = x.abs(), y.abs()
    bad = x.isnan() | y.isnan() | ax.eq(INF) | ay.eq(0.0)
    ay_safe = (bad | ay.eq(INF)).where(1.0, ay)
    start = (bad | ay.eq(INF)).where(0.0, ax)
    b.branch(loop)
    b.position_at_end(loop)
    phi = b.phi(t)
    phi.add_incoming(start.v, entry)
    r = V(b, phi)
    go = r.ge(ay_safe)
    k = _exponent(r) - _exponent(ay_safe)
    k = k.gt(0).where(k, 0)
    step = _times_pow2(ay_safe, k)
    step = step.gt(r).where(_times_pow2(ay_safe, k.gt(0).where(k - 1, 0)), step)  # not half of it: it may be infinite
    nxt = go.where(r - step, r)
    phi.add_incoming(nxt.v, loop)
    more = nxt.ge(ay_safe)
    b.cbranch(any_lane(more), loop, done)
    b.position_at_end(done)
    out = ay.eq(INF).where(ax, nxt).copysign(x)
    b.ret(bad.where(NAN, out).v)
    return fn


def _times_pow2(y: V, k: V) -> V:
    """y * 2^k for k up to the distance from the smallest denormal to the largest number."""
    half = k >> 1
    return pow2_scale(pow2_scale(y, half), k - half)
