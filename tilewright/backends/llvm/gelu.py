"""gelu in f32, as fused kernels run it: straight-line code over `V` like vecmath.py.

Where registers can be permuted freely, that serves vectors of the registers' width; others are cut or padded to it, so that an
element's result does not depend on the vector in which it stands.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from llvmlite import ir

from .lanes import V, fma, intrinsic, lanes_of
from .vecmath import erf32

if TYPE_CHECKING:
    from ..target import Target

_I16, _I32 = ir.IntType(16), ir.IntType(32)

# Phi(z), the integral of the normal distribution's density up to z, for z <= 0: a polynomial in z + n h for each n = round(-z / h)
# as many as a register has lanes, so that a coefficient is one permutation of a register. Rows are powers, the highest first;
# columns are n. Interpolated at Chebyshev's nodes, rounded from the highest power down (the others make up for it). Phi(0) is
# exact; the last column stands for everything below.
_PHI_16 = (
    (9.7978655e-3, 6.5834625e-3, -4.0951048e-4, -5.4106405e-3, -5.7061533e-3, -2.961057e-3, -2.1025595e-4, 1.0413883e-3, 1.0565602e-3,
     6.399827e-4, 2.8535575e-4, 1.0000548e-4, 2.8395392e-5, 6.643961e-6, 1.2947464e-6, 0),
    (-4.0307175e-5, -1.6752772e-2, -2.2778697e-2, -1.6542377e-2, -5.199543e-3, 3.3172874e-3, 6.1723506e-3, 5.12768e-3, 2.9913026e-3,
     1.352221e-3, 4.928301e-4, 1.4780802e-4, 3.6926078e-5, 7.745346e-6, 1.3715274e-6, 0),
    (-6.649375e-2, -5.2736692e-2, -2.0525206e-2, 1.0964782e-2, 2.7684402e-2, 2.8358655e-2, 2.033175e-2, 1.1337838e-2, 5.1209093e-3,
     1.9116835e-3, 5.967944e-4, 1.5696768e-4, 3.4960085e-5, 6.6173075e-6, 1.0673322e-6, 0),
    (-1.104669e-7, 7.096367e-2, 1.1392072e-1, 1.1846441e-1, 9.457515e-2, 6.1135415e-2, 3.2766793e-2, 1.4746631e-2, 5.614965e-3,
     1.8176478e-3, 5.019061e-4, 1.1849837e-4, 2.3962753e-5, 4.1559397e-6, 6.188064e-7, 0),
    (3.989423e-1, 3.7075594e-1, 2.9759276e-1, 2.063064e-1, 1.2352622e-1, 6.387954e-2, 2.8531231e-2, 1.1006149e-2, 3.6669623e-3,
     1.0551972e-3, 2.6225095e-4, 5.629331e-5, 1.0436453e-5, 1.6711119e-6, 2.3110795e-7, 0),
    (5e-1, 3.509294e-1, 2.2194973e-1, 1.25394e-1, 6.2853806e-2, 2.7806085e-2, 1.081295e-2, 3.684546e-3, 1.0974824e-3, 2.8519976e-4,
     6.456159e-5, 1.2715655e-5, 2.1767546e-6, 3.2361692e-7, 4.1755175e-8, 0),
)

_PHI_8 = (
    (-1.0345433e-3, 5.442221e-4, 2.3600922e-4, -2.3750823e-4, 1.3084449e-5, 1.5616271e-5, 1.326999e-6, 0),
    (1.2101507e-4, 2.6137757e-3, -1.2054058e-3, -3.8688348e-4, 1.8424685e-4, 4.1206287e-5, 2.3842954e-6, 0),
    (1.0014601e-2, -2.032115e-3, -4.553054e-3, 8.737059e-4, 6.4821925e-4, 7.5852404e-5, 3.0744825e-6, 0),
    (7.029465e-6, -2.232371e-2, -3.0516787e-4, 5.632171e-3, 1.3692216e-3, 1.0799897e-4, 3.3886677e-6, 0),
    (-6.648978e-2, -1.2017798e-2, 2.9664107e-2, 1.352813e-2, 1.9540645e-3, 1.1367504e-4, 2.867899e-6, 0),
    (2.3104954e-8, 1.1849317e-1, 7.8274205e-2, 1.8529536e-2, 1.8630301e-3, 8.391357e-5, 1.734082e-6, 0),
    (3.989423e-1, 2.7576637e-1, 9.108253e-2, 1.4374452e-2, 1.0839521e-3, 3.905631e-5, 6.7240757e-7, 0),
    (5e-1, 1.9506682e-1, 4.2829953e-2, 4.966903e-3, 2.9355535e-4, 8.661141e-6, 1.2597224e-7, 0),
)

_STEP = {16: 0.3828125, 8: 0.859375}  # h: its products with n are exact
_PHI = {16: _PHI_16, 8: _PHI_8}


def in_vectors(x: V, width: int, f: Callable[[V], V]) -> V:
    """f of a scalar or vector of any number of lanes, by vectors of `width` lanes."""
    n = lanes_of(x.type)
    if n == width:
        return f(x)
    none = ir.Constant(ir.VectorType(x.type if n is None else x.type.element, n or width), None)
    if n is None:
        y = f(V(x.b, x.b.insert_element(none, x.v, _I32(0))))
        return V(x.b, x.b.extract_element(y.v, _I32(0)))
    out: ir.Value = none
    for at in range(0, n, width):
        part = f(V(x.b, _lanes(x.b, x.v, none, [min(at + i, n) for i in range(width)])))
        spread = _lanes(x.b, part.v, part.v, [max(0, min(i - at, width - 1)) for i in range(n)])
        out = _lanes(x.b, out, spread, [n + i if at <= i < at + width else i for i in range(n)])
    return V(x.b, out)


def _lanes(b: ir.IRBuilder, a: ir.Value, c: ir.Value, order: list[int]) -> ir.Value:
    return b.shuffle_vector(a, c, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _avx512(target: Target) -> bool:
    return target.vector_bytes == 64 and target.has("avx512dq")


def _below(x: V, limit: float) -> V:
    """-min(|x|, limit) in 16 lanes: vrangeps; -limit for NaN."""
    nearer_to_0, negative = 2, 12
    args = [x.v, x.of(limit).v, _I32(nearer_to_0 | negative), x.of(0.0).v, _I16(0xFFFF), _I32(4)]
    return V(x.b, intrinsic(x.b, "x86.avx512.mask.range.ps.512", args, types=()))


def gelu32(x: V, target: Target) -> V:
    """x Phi(x) = max(x, 0) + min(x, z) Phi(z) with z = -|x|: nothing cancels but the shares of 0.5 <= Phi <= 1. Where
    registers are not permuted freely: with erf, whose sum with 1 cancels for negative x."""
    if _avx512(target):
        return in_vectors(x, 16, lambda v: _gelu(v, _below(v, 15 * _STEP[16]), "x86.avx512.permvar.sf.512"))
    if target.vector_bytes == 32 and target.has("avx2") and target.has_fma:
        return in_vectors(x, 8, lambda v: _gelu(v, (v.bits() | 1 << 31).as_float().atleast(-7 * _STEP[8]), "x86.avx2.permps"))
    return x * 0.5 * (erf32(x * math.sqrt(0.5)) + 1.0)


def _gelu(x: V, z: V, permute: str) -> V:
    width = lanes_of(x.type)
    assert width is not None
    h = _STEP[width]
    magic = 1.5 * 2.0**23
    t = fma(z, -1 / h, magic)
    r = fma(t - magic, h, z)
    place = t.bits().v  # only the lowest bits choose
    phi: V | None = None
    for row in _PHI[width]:
        c = V(x.b, intrinsic(x.b, permute, [ir.Constant(x.type, list(row)), place], types=()))
        phi = c if phi is None else fma(phi, r, c)
    assert phi is not None
    below = z.lt(x).where(z, x)  # -inf * 0 is NaN, as in the formula; NaN comes through the other term
    return fma(below, phi, x.atleast(0.0))
