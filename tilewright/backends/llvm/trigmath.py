"""sin, cos, tan and their inverses, erf and pow in double precision, and f32 sin/cos on an f64 core.

Argument reduction of f32 inputs is exact for every finite value (2/pi in chunks of 28 bits, each product exact in
f64). f64 inputs are reduced with pi/2 in four parts: right up to |x| = 2^29, with growing error beyond.
"""
from __future__ import annotations

from .lanes import V, fma, poly
from .vecmath import INF, NAN, exp64

_TWO_OVER_PI = (0.6366197690367699, 3.3308114738561656e-09, 2.276010047810136e-18, 2.5268260189002822e-26,
                1.6682867657019525e-34, 1.158871328288855e-43, 7.053959174404295e-52, 8.945584461925391e-60)
_PIO2 = (1.570796251296997, 7.549789415861596e-08, 5.390302529957765e-15, 3.2820035428735005e-22)  # three parts of 24 bits and the rest
_PI_HI, _PI_LO = 3.141592653589793, 1.2246467991473532e-16
_SIN = (1.58969099521155010221e-10, -2.50507602534068634195e-08, 2.75573137070700676789e-06,
        -1.98412698298579493134e-04, 8.33333333332248946124e-03, -1.66666666666666324348e-01)
_COS = (-1.13596475577881948265e-11, 2.08757232129817482790e-09, -2.75573143513906633035e-07,
        2.48015872894767294178e-05, -1.38888888888741095749e-03, 4.16666666666666019037e-02)
_SIN32 = (2.724992580305979e-06, -0.00019840086735384846, 0.008333331874710208, -0.1666666666385529)
_COS32 = (-2.730095920390147e-07, 2.480060037715673e-05, -0.001388888767201679, 0.0416666666643212)


def _rint52(t: V) -> V:
    """Nearest integer of |t| < 2^51; larger magnitudes must already be integers (they pass through unchanged)."""
    magic = 1.5 * 2.0**52
    return t.abs().lt(2.0**51).where((t + magic) - magic, t)


def _reduce_f32(x: V) -> tuple[V, V]:
    """f64 copy of an f32: (quadrant as integer, r as f64) with x = quadrant * pi/2 + r, |r| <= pi/4."""
    total = x.of(0.0)
    for c in reversed(_TWO_OVER_PI):
        t = x * c  # 24 + 28 bits: exact
        total = total + (t - 4.0 * _rint52(t * 0.25))  # what is left is in [-2, 2]: quadrants count modulo 4
    q = total + 1.5 * 2.0**52
    return q.bits(), (total - (q - 1.5 * 2.0**52)) * 1.5707963267948966


def _reduce_f64(x: V) -> tuple[V, V, V]:
    """(quadrant, r, low part of r). The products with the first three parts of pi/2 are exact for n < 2^29."""
    t = fma(x, 0.6366197723675814, 1.5 * 2.0**52)
    n = t - 1.5 * 2.0**52
    a = fma(n, -_PIO2[0], x)
    b = n * -_PIO2[1]
    s, e = _two_sum(a, b)
    s, e2 = _two_sum(s, n * -_PIO2[2])
    low = e + e2 - n * _PIO2[3]
    r = s + low
    return t.bits(), r, (s - r) + low


def _two_sum(a: V, b: V) -> tuple[V, V]:
    s = a + b
    z = s - a
    return s, (a - (s - z)) + (b - z)


def _sincos_core(r: V, low: V | None, short: bool) -> tuple[V, V]:
    z = r * r
    s = fma(r * z, poly(z, _SIN32 if short else _SIN), r if low is None else low)
    if low is not None:
        s = s - low * z * 0.5 + r
    c = z * z * poly(z, _COS32 if short else _COS)
    half = z * 0.5
    w = 1.0 - half
    c = w + (((1.0 - w) - half) + (c if low is None else c - r * low))
    return s, c


def sincos64(x: V, f32: bool = False) -> tuple[V, V]:
    """(sin x, cos x) of f64 values; `f32` says that they are f32 values and that f32 accuracy will do."""
    if f32:
        q, r = _reduce_f32(x)
        s, c = _sincos_core(r, None, True)
    else:
        q, r, low = _reduce_f64(x)
        s, c = _sincos_core(r, low, False)
    swap = (q & 1).ne(0)
    sin, cos = swap.where(c, s), swap.where(s, c)
    sin = (sin.bits() ^ ((q & 2) << 62)).as_float()
    cos = (cos.bits() ^ (((q + 1) & 2) << 62)).as_float()
    bad = x.abs().eq(INF)
    return x.eq(0.0).where(x, bad.where(NAN, sin)), bad.where(NAN, cos)


def tan64(x: V, f32: bool = False) -> V:
    s, c = sincos64(x, f32)
    return s / c


_ASIN_P = (3.47933107596021167570e-05, 7.91534994289814532176e-04, -4.00555345006794114027e-02,
           2.01212532134862925881e-01, -3.25565818622400915405e-01, 1.66666666666666657415e-01)
_ASIN_Q = (7.70381505559019352791e-02, -6.88283971605453293030e-01, 2.02094576023350569471e+00,
           -2.40339491173441421878e+00, 1.0)


def _asin_r(z: V) -> V:
    return z * poly(z, _ASIN_P) / poly(z, _ASIN_Q)


def _sqrt_tail(z: V, s: V) -> tuple[V, V]:
    """s = sqrt(z) as a head of 21 bits and the rest, so that head + tail is sqrt(z) beyond double precision."""
    head = (s.bits() & 0xFFFFFFFF00000000).as_float()
    return head, s.gt(0.0).where((z - head * head) / (s + head), 0.0)


def asin64(x: V) -> V:
    a = x.abs()
    small = fma(x, _asin_r(x * x), x)
    z = (1.0 - a) * 0.5
    s = z.sqrt()
    head, tail = _sqrt_tail(z, s)
    r = _asin_r(z)
    big = 0.7853981633974483 - (2.0 * s * r - (6.123233995736766e-17 - 2.0 * tail) - (0.7853981633974483 - 2.0 * head))
    y = a.lt(0.5).where(small, big.copysign(x))
    return a.gt(1.0).where(NAN, x.abs().lt(2.0**-27).where(x, y))


def acos64(x: V) -> V:
    a = x.abs()
    small = 1.5707963267948966 - (x - (6.123233995736766e-17 - x * _asin_r(x * x)))
    z = (1.0 - a) * 0.5
    s = z.sqrt()
    head, tail = _sqrt_tail(z, s)
    r = _asin_r(z)
    pos = 2.0 * (head + fma(r, s, tail))
    neg = _PI_HI - 2.0 * (s + (r * s - 6.123233995736766e-17))
    y = a.lt(0.5).where(small, x.lt(0.0).where(neg, pos))
    return a.gt(1.0).where(NAN, y)


_ATAN = (1.62858201153657823623e-02, -3.65315727442169155270e-02, 4.97687799461593236017e-02, -5.83357013379057348645e-02,
         6.66107313738753120669e-02, -7.69187620504482999495e-02, 9.09088713343650656196e-02, -1.11111104054623557880e-01,
         1.42857142725034663711e-01, -1.99999999998764832476e-01, 3.33333333333329318027e-01)


def _atan_ratio(num: V, den: V) -> V:
    """atan(num / den) for num, den >= 0, finite and not both 0. One division for every range."""
    t = num / den
    steps = ((0.4375, 1.0, 0.5, 4.63647609000806093515e-01, 2.26987774529616870924e-17),
             (0.6875, 1.0, 1.0, 7.85398163397448278999e-01, 3.06161699786838301793e-17),
             (1.1875, 1.0, 1.5, 9.82793723247329054082e-01, 1.39033110312309984516e-17))
    hi, lo, at, off = t.of(0.0), t.of(0.0), t.of(0.0), t.of(1.0)
    for low, _, c, h, w in steps:
        far = t.ge(low)
        at, hi, lo = far.where(c, at), far.where(h, hi), far.where(w, lo)
    inf = t.ge(2.4375)
    top = inf.where(-1.0, (t - at))
    bottom = inf.where(t, off + at * t)
    hi, lo = inf.where(1.57079632679489655800e+00, hi), inf.where(6.12323399573676603587e-17, lo)
    r = top / bottom
    z = r * r
    return hi - ((r * (z * poly(z, _ATAN)) - lo) - r)


def atan64(x: V) -> V:
    a = x.abs()
    y = _atan_ratio(a, a.of(1.0)).copysign(x)
    return x.isnan().where(x, a.lt(2.0**-27).where(x, y))


def atan2_64(y: V, x: V) -> V:
    """Quadrants and zeros as C99 says; underflow of y/x is harmless, overflow gives pi/2."""
    ay, ax = y.abs(), x.abs()
    both_inf = (ay.eq(INF)) & (ax.eq(INF))
    base = _atan_ratio(both_inf.where(1.0, ay), both_inf.where(1.0, ax))
    base = ay.eq(0.0).where(0.0, base)
    base = (ax.eq(0.0) & ay.ne(0.0)).where(1.5707963267948966, base)
    left = _PI_HI - (base - _PI_LO)
    negative = x.bits().lt(0)
    r = negative.where(left, base).copysign(y)
    return (x.isnan() | y.isnan()).where(NAN, r)


_ERF_SMALL = (-4.230945824295338e-12, 8.709045129053106e-11, -1.216456005728345e-09, 1.4792401209404813e-08,
              -1.6364642158167616e-07, 1.6462045441468418e-06, -1.4925647567519332e-05, 0.00012055332902888736,
              -0.000854832702193483, 0.0052239776254232985, -0.02686617064512984, 0.1128379167095512,
              -0.37612638903183754, 0.1283791670955126)  # (erf(x)/x - 1) over x^2 in [0, 1]
_ERFCX = (1.3408848717362394e-07, -6.144477167995066e-07, -5.060915438693048e-07, 1.2559897861345693e-06,
          3.7601677167193133e-06, 1.380584247725399e-06, -1.396149006742397e-05, -2.757901311902191e-05,
          2.752476736316505e-05, 0.00017436114311543651, 4.3555644272098927e-05, -0.0009819770269162648,
          -0.0008471432522752253, 0.006997461739228476, 0.0037328924043494834, -0.07897858101573253,
          0.24165819424246632, -0.4271858474139584, 0.25539567631050575)  # e^(x^2) erfc(x) over (x-2)/(x+2), x in [1, 6]


def erf64(x: V) -> V:
    a = x.abs().atmost(6.0)
    small = fma(x, poly(x * x, _ERF_SMALL), x)
    big = 1.0 - exp64(-(a * a)) * poly((a - 2.0) / (a + 2.0), _ERFCX)
    return a.lt(1.0).where(small, big.copysign(x))
