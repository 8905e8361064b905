"""Scalar functions against NumPy (all dtypes, scalars and odd vectors) and against long double (ulp bounds)."""
from __future__ import annotations

import math

import numpy as np
import pytest

from tests.backends.scalar_kernels import TARGETS, Compiled, Kernel, module, runnable, undefined_symbols
from tilewright.ir.expr import COMPARISONS
from tilewright.ir.functions import FUNCTIONS
from tilewright.ir.types import BF16, BOOL, DTYPES, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType

HALVES, FLOATS, INTS = (F16, BF16), (F16, BF16, F32, F64), (I8, I16, I32, I64, U8, U16, U32, U64)
EVERYWHERE = {"add", "sub", "mul", "div", "min", "max", "pow", "fmod", "mod", "floordiv", "neg", "abs", "sign", "isnan", "isinf",
              "select", *COMPARISONS}
BITS = {"and", "or", "xor", "not"}
# largest error in units in the last place: (f32, f64); bounds of what scalar.py's docstring states
ULP = {"exp": (1, 1), "log": (1, 1), "expm1": (1.6, 2), "log1p": (1.4, 1), "sin": (0.51, 1), "cos": (0.51, 1), "tan": (0.51, 2.5),
       "asin": (0.51, 1), "acos": (0.51, 1), "atan": (0.51, 1), "sinh": (0.51, 2.5), "cosh": (0.51, 1.5), "tanh": (2.5, 2.5),
       "asinh": (0.51, 2), "acosh": (0.51, 2), "atanh": (0.51, 2), "erf": (1.1, 1.5), "pow": (0.51, 1), "atan2": (0.51, 1.5),
       "fmod": (0, 0), "sqrt": (0.5, 0.5), "exp_nonpos": (1, 1)}
CLOSE = {*ULP, "gelu"}  # gelu: test_gelu.py
LANES = {"x86-64": 4, "x86-64-v2": 5, "x86-64-v3": 8, "x86-64-v4": 16}
SPECIAL = (0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 1e-40, 1e-38, -1e-38, 3.4e38, 0.5, -0.5, 1.5, 2.0, -2.0, 2.5,
           3.0, 89.0, -89.0, -103.9, 88.72, 88.73, 709.7, 709.8, -745.0, 1e-300, 1e300, 1e22, 2.0**52 + 1, 2.0**51 + 0.5, 8388607.5)
DOMAIN = {"exp": 100, "expm1": 90, "sinh": 91, "cosh": 91, "tanh": 12, "erf": 6.5, "gelu": 8, "exp_nonpos": 100,
          "asin": 1, "acos": 1, "atanh": 1}
NUMPY_NAME = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh",
              "pow": "power", "atan2": "arctan2", "exp_nonpos": "exp"}


def dtypes_of(fn: str) -> tuple[DType, ...]:
    if fn in BITS:
        return (BOOL, *INTS)
    if fn in ("shl", "shr"):
        return INTS
    return (*INTS, *FLOATS) if fn in EVERYWHERE or fn in ("floor", "ceil", "round", "trunc") else FLOATS


def result_of(fn: str, d: DType) -> DType:
    return BOOL if fn in COMPARISONS or fn in ("isnan", "isinf") else d


def samples(fn: str, d: DType, n: int, rng: np.random.Generator) -> np.ndarray:
    """Specials, random bit patterns and values of the function's interesting range."""
    if d is BOOL:
        return rng.integers(0, 2, n).astype(bool)
    bits = rng.integers(0, 1 << 32, n, dtype=np.uint64) << np.uint64(32) | rng.integers(0, 1 << 32, n, dtype=np.uint64)
    raw = bits.astype(f"u{d.bytes}").view(d.numpy)
    if d.is_int:
        info = np.iinfo(d.numpy)
        edges = np.array([0, 1, 2, 3, 5, info.max, info.min, info.max - 1, info.min + 1, 7, d.bits, d.bits - 1,
                          *((-1, -2) if d.kind == "i" else ())], d.numpy)
        small = rng.integers(0 if d.kind == "u" else -9, 10, n).astype(d.numpy)
        return np.concatenate([edges, np.where(rng.random(n) < 0.5, raw, small)])[:n]
    reach = DOMAIN.get(fn, 50) * (8 if d is F64 and fn in ("exp", "sinh", "cosh", "expm1") else 1)
    uniform = rng.uniform(-reach, reach, n)
    near = rng.uniform(-1, 1, n) * 2.0 ** rng.uniform(-30, 3, n)
    with np.errstate(all="ignore"):
        pick = np.choose(rng.integers(0, 3, n), [raw.astype(np.float64), uniform, near]).astype(d.numpy)
        pick = np.where(rng.random(n) < 0.33, raw, pick)
        return np.concatenate([np.array(SPECIAL).astype(d.numpy), pick])[:n]


def operands(fn: str, k: Kernel, n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    xs = [samples(fn, k.operand(j), n, rng) for j in range(k.arity)]
    if fn in ("sin", "cos", "tan") and k.dtype is F64:
        xs[0] = np.where(np.abs(xs[0]) > 2.0**29, 1.0, xs[0])  # the stated limit
    if fn == "exp_nonpos":
        xs[0] = -np.abs(xs[0])
    return [xs[0], *(rng.permutation(x) for x in xs[1:])]


def expected(fn: str, xs: list[np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        if fn in ("isnan", "isinf") and xs[0].dtype.kind in "iu":
            return np.zeros(xs[0].shape, bool)
        if fn == "pow" and xs[0].dtype.kind in "iu":
            bits = xs[0].dtype.itemsize * 8
            return np.array([_int_pow(int(a), int(b), bits, xs[0].dtype.kind == "i") for a, b in zip(*xs, strict=True)], xs[0].dtype)
        if fn in ("floor", "ceil", "round", "trunc") and xs[0].dtype.kind in "iu":
            return xs[0]
        half = xs[-1].dtype.itemsize == 2 and xs[-1].dtype.kind not in "iu"
        if half and fn not in COMPARISONS and fn not in ("select", "isnan", "isinf", "neg", "abs"):
            return FUNCTIONS[fn].numpy(*(x.astype(np.float32) for x in xs)).astype(xs[-1].dtype)
        if fn in ("shl", "shr"):
            b = np.where(xs[1] < 0, 127, xs[1]).astype(xs[1].dtype)  # negative amounts count as too large
            return FUNCTIONS[fn].numpy(xs[0], b)
        return FUNCTIONS[fn].numpy(*xs)


def _int_pow(a: int, b: int, bits: int, signed: bool) -> int:
    if b < 0:
        return a if a == 1 else (-1 if b % 2 else 1) if a == -1 else 0
    r = pow(a, b, 1 << bits)
    return r - (1 << bits) if signed and r >> (bits - 1) else r


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return (a == b) | np.isnan(a.astype(np.float64)) & np.isnan(b.astype(np.float64))


def ulp_error(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in ulps of `want`; inf where one of them is not finite, 0 where they agree (signs of zeros included)."""
    t = got.dtype
    with np.errstate(all="ignore"):
        rounded = want.astype(t)
        info = np.finfo(t)
        exponent = np.maximum(np.frexp(np.abs(want))[1] - 1, info.minexp)
        error = np.abs(got.astype(np.longdouble) - want) / np.ldexp(np.longdouble(1), exponent - info.nmant)
        same = (got == rounded) & (np.signbit(got) == np.signbit(rounded)) | np.isnan(got) & np.isnan(rounded)
        error = np.where(same & ~(np.isfinite(rounded) & np.isfinite(want)), 0, error)
        return np.where(~same & ~(np.isfinite(got) & np.isfinite(rounded)) | (want == 0) & ~same, np.inf, error)


def check_ulps(k: Kernel, xs: list[np.ndarray], got: np.ndarray, bound: float) -> None:
    """Against long double (erf: against C's double)."""
    exact = np.vectorize(math.erf, otypes=[float]) if k.fn == "erf" else getattr(np, NUMPY_NAME.get(k.fn, k.fn))
    with np.errstate(all="ignore"):
        want = exact(*(x.astype(float if k.fn == "erf" else np.longdouble) for x in xs)).astype(np.longdouble)
        if k.fn == "exp_nonpos":
            want = np.where(want < np.finfo(k.dtype.numpy).tiny, 0, want)
    error = ulp_error(got, want)
    at = int(np.argmax(error))
    assert error[at] <= bound, f"{k.fn} {k.dtype}: {error[at]} ulp at {[x[at] for x in xs]}"


def check_as_numpy(k: Kernel, xs: list[np.ndarray], got: np.ndarray) -> None:
    """Exact but for the transcendental functions, which are close here and bounded tightly above."""
    want = expected(k.fn, xs)
    assert got.dtype == want.dtype
    if k.fn not in CLOSE or not k.dtype.is_float:
        bad = ~same(got, want)
    else:
        steps = {F16: 1e-3, BF16: 8e-3, F32: 4e-7, F64: 1e-15}[k.dtype]
        g, w = got.astype(np.float64), want.astype(np.float64)
        tiny = float(np.finfo(np.float16).smallest_subnormal) if k.dtype is F16 else 1e-40
        with np.errstate(all="ignore"):
            scale = np.abs(xs[0].astype(np.float64)) if k.fn == "gelu" else np.abs(w)  # 1 + erf cancels
            bad = ~(same(g, w) | (np.abs(g - w) <= steps * scale + tiny))
    assert not bad.any(), f"{k.name}: {[(tuple(x[i] for x in xs), got[i], want[i]) for i in np.nonzero(bad)[0][:4]]}"


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("fn", ULP)
def test_error_in_ulps(fn: str, target: str) -> None:
    kernels = [Kernel(fn, d, d, LANES[target], FUNCTIONS[fn].arity) for d in (F32, F64)]
    code = Compiled(kernels, target)
    for k, bound in zip(kernels, ULP[fn], strict=True):
        n = 40_000 if k.dtype is F32 or fn != "erf" else 8_000
        xs = operands(fn, k, n)
        if fn == "pow":
            half = n // 2
            xs[0][half:] = np.abs(xs[0][half:])
        check_ulps(k, xs, code.run(k, *xs), bound)


@pytest.mark.parametrize("target", sorted({runnable()[0], runnable()[-1]}) if runnable() else [])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_every_dtype_as_numpy(fn: str, target: str) -> None:
    kernels = [Kernel(fn, d, result_of(fn, d), lanes, FUNCTIONS[fn].arity) for d in dtypes_of(fn) for lanes in (0, 5)]
    code = Compiled(kernels, target)
    for k in kernels:
        xs = operands(fn, k, 500)
        check_as_numpy(k, xs, code.run(k, *xs))


@pytest.mark.parametrize("target", sorted({runnable()[0], runnable()[-1]}) if runnable() else [])
@pytest.mark.parametrize("src", DTYPES.values(), ids=str)
def test_casts(src: DType, target: str) -> None:
    kernels = [Kernel("cast", src, dst, lanes) for dst in DTYPES.values() for lanes in (0, 5, 16)]
    code = Compiled(kernels, target)
    x = samples("cast", src, 4000, np.random.default_rng(3))
    for k in kernels:
        with np.errstate(all="ignore"):
            values = x.astype(np.float64) if src.is_float else x
            want = values.astype(k.result.numpy) if k.result is not BOOL else values != 0
        ok = np.ones(x.shape, bool)
        if src.is_float and k.result.is_int:  # out of range: any value, but no crash
            info = np.iinfo(k.result.numpy)
            ok = (values > float(info.min) - 1) & (values < float(info.max) + 1 if info.bits < 64 else values < float(info.max))
        if k.result is BF16 and not src.is_float and src.bits > 32 or k.result is F32 and src in HALVES:
            want = x.astype(np.float32).astype(k.result.numpy)
        got = code.run(k, x)
        bad = ok & ~same(got, want)
        assert not bad.any(), f"{k.name}: {[(x[i], got[i], want[i]) for i in np.nonzero(bad)[0][:4]]}"


@pytest.mark.parametrize("target", TARGETS)
def test_no_library_is_called(target: str) -> None:
    kernels = [Kernel(fn, d, result_of(fn, d), lanes, f.arity) for fn, f in FUNCTIONS.items() for d in dtypes_of(fn)
               for lanes in (5,) if d in (BOOL, I8, I32, U64, F16, F32, F64)]
    kernels += [Kernel("cast", a, b, 5) for a in DTYPES.values() for b in DTYPES.values()]
    assert undefined_symbols(module(kernels, TARGETS[target]), target) == set()
