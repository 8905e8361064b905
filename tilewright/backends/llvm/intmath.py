"""Integer and boolean functions: wrapping arithmetic, division without traps, shifts without undefined amounts."""
from __future__ import annotations

from llvmlite import ir

from ...ir.types import DType
from .builder import Builder
from .lanes import V, any_lane, splat, type_suffix


def boolean(b: ir.IRBuilder, fn: str, args: list[ir.Value]) -> ir.Value:
    """i1 operands: add/max are or, mul/min are and, as in NumPy."""
    match fn:
        case "and" | "mul" | "min":
            return b.and_(*args)
        case "or" | "add" | "max":
            return b.or_(*args)
        case "xor" | "sub":
            return b.xor(*args)
        case "not":
            return b.xor(args[0], splat(args[0].type, 1))
        case "abs" | "sign":
            return args[0]
        case "isnan" | "isinf":
            return splat(args[0].type, 0)
    raise AssertionError(f"{fn} is not defined on bool")


def integer(b: ir.IRBuilder, fn: str, args: list[ir.Value], dtype: DType) -> ir.Value:
    """All functions that integers have; the rounding family is the identity, isnan and isinf are false."""
    x = V(b, args[0])
    signed = dtype.kind == "i"
    if len(args) == 1:
        return _unary(x, fn, signed)
    y = V(b, args[1])
    match fn:
        case "add":
            return (x + y).v
        case "sub":
            return (x - y).v
        case "mul":
            return (x * y).v
        case "and":
            return (x & y).v
        case "or":
            return (x | y).v
        case "xor":
            return (x ^ y).v
        case "min":
            return (x._cmp("<", y, signed)).where(x, y).v
        case "max":
            return (x._cmp(">", y, signed)).where(x, y).v
        case "shl" | "shr":
            return _shift(x, y, fn, dtype)
        case "pow":
            return _pow(x, y, dtype)
        case "div" | "floordiv" | "mod" | "fmod":
            return _divide(x, y, fn, signed)
    raise AssertionError(f"{fn} is not defined on {dtype}")


def _unary(x: V, fn: str, signed: bool) -> ir.Value:
    match fn:
        case "neg":
            return (0 - x).v
        case "not":
            return (~x).v
        case "abs":
            return (x.lt(0).where(0 - x, x) if signed else x).v
        case "sign":
            positive = x.ne(0).where(x.of(1), 0)
            return (x.lt(0).where(-1, positive) if signed else positive).v
        case "floor" | "ceil" | "round" | "trunc":
            return x.v
        case "isnan" | "isinf":
            return (x.ne(x)).v
    raise AssertionError(f"{fn} is not defined on integers")


def _shift(x: V, y: V, fn: str, dtype: DType) -> ir.Value:
    """Amounts at or above the width give 0; so do negative ones (seen as huge)."""
    inside = y.ult(dtype.bits)
    amount = inside.where(y, 0)
    r = x << amount if fn == "shl" else x.ashr(amount) if dtype.kind == "i" else x >> amount
    return inside.where(r, 0).v


def _divide(x: V, y: V, fn: str, signed: bool) -> ir.Value:
    """Division by zero gives 0; INT_MIN / -1 wraps: the dividend is negated instead of divided by -1."""
    b = x.b
    zero = y.eq(0)
    if not signed:
        safe = zero.where(1, y)
        r = V(b, (b.udiv if fn in ("div", "floordiv") else b.urem)(x.v, safe.v))
        return zero.where(0, r).v
    minus = y.eq(-1)
    safe = (zero | minus).where(1, y)
    q = V(b, b.sdiv(x.v, safe.v))
    rem = x - q * safe
    q = minus.where(0 - x, q)
    if fn in ("floordiv", "mod"):
        # the remainder's sign differs from the divisor's: one step down
        off = rem.ne(0) & (rem ^ y).lt(0)
        q = q - off.where(q.of(1), 0)
        rem = rem + off.where(y, 0)
    return zero.where(0, q if fn in ("div", "floordiv") else rem).v


def _pow(x: V, y: V, dtype: DType) -> ir.Value:
    """x^y modulo 2^bits. Negative exponents: 1/x^n truncated, which is 0 unless x is 1 or -1 (0 for x = 0)."""
    result = V(x.b, x.b.call(_pow_function(x.b.module, x.type), [x.v, y.v]))
    if dtype.kind == "i":
        odd = (y & 1).ne(0)
        unit = x.eq(1).where(1, x.eq(-1).where(odd.where(x.of(-1), 1), 0), x)
        result = y.lt(0).where(unit, result)
    return result.v


def _pow_function(module: ir.Module, t: ir.Type) -> ir.Function:
    """Square and multiply, an internal function of the module for each type:

    r = 1; do { r = y odd ? r * x : r; x = x * x; y = y >> 1 } while some lane has y != 0
    """
    name = f"tw.pow.{type_suffix(t)}"
    if (known := module.globals.get(name)) is not None:
        return known
    fn = ir.Function(module, ir.FunctionType(t, [t, t]), name)
    fn.linkage = "internal"
    entry, loop, done = (fn.append_basic_block(n) for n in ("entry", "loop", "done"))
    b = Builder(entry)
    b.branch(loop)
    b.position_at_end(loop)
    phis = [b.phi(t) for _ in range(3)]
    r, x, y = (V(b, p) for p in phis)
    following = ((y & 1).ne(0).where(r * x, r), x * x, y >> 1)
    for phi, first, nxt in zip(phis, (splat(t, 1), *fn.args), following, strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(nxt.v, loop)
    b.cbranch(any_lane(following[2].ne(0)), loop, done)
    b.position_at_end(done)
    b.ret(following[0].v)
    return fn
