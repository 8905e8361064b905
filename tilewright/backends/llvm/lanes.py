"""`V`: an LLVM value (scalar or vector) with Python's operators, so that math code reads like math.

Numbers on the right are splat to the value's type. Comparisons are methods (`lt`, `eq`, …): ordered on floats except
`ne`; signed on integers except `ult`. `fma(a, b, c)` is `llvm.fmuladd`: fused where the target has it, so code must
be right both ways; no other fast-math freedom is ever taken.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from llvmlite import ir

Num = int | float


def lanes_of(t: ir.Type) -> int | None:
    """Number of lanes of a vector type, None for a scalar type."""
    return t.count if isinstance(t, ir.VectorType) else None


def element_of(t: ir.Type) -> ir.Type:
    return t.element if isinstance(t, ir.VectorType) else t


def like(t: ir.Type, element: ir.Type) -> ir.Type:
    """A type with the lanes of `t` and the given element."""
    return ir.VectorType(element, t.count) if isinstance(t, ir.VectorType) else element


def splat(t: ir.Type, value: Num | bool) -> ir.Constant:
    """The constant `value` in every lane of type `t` (integers are taken modulo their width)."""
    e = element_of(t)
    if isinstance(e, ir.IntType):
        v: Num = int(value) & ((1 << e.width) - 1)
    else:
        v = float(value)
    return _constant(e, lanes_of(t), v, math.copysign(1.0, v))


@lru_cache(maxsize=4096)
def _constant(e: ir.Type, lanes: int | None, v: Num, sign: float) -> ir.Constant:
    """One object for equal constants, 0.0 and -0.0 apart: a polynomial uses the same ones for every vector, and printing takes long."""
    return ir.Constant(e, v) if lanes is None else ir.Constant(ir.VectorType(e, lanes), [v] * lanes)


def type_suffix(t: ir.Type) -> str:
    """The type as intrinsics spell it: v8f32, i64."""
    e = element_of(t)
    name = f"i{e.width}" if isinstance(e, ir.IntType) else {"float": "f32", "double": "f64", "half": "f16"}[str(e)]
    return f"v{t.count}{name}" if isinstance(t, ir.VectorType) else name


def intrinsic(b: ir.IRBuilder, name: str, args: Sequence[ir.Value], result: ir.Type | None = None,
              types: Sequence[ir.Type] | None = None, flags: Sequence[str] = ()) -> ir.Value:
    """Call of `llvm.<name>`, overloaded on `types` (default: the first argument's; none for target intrinsics). flags: what of
    IEEE 754 it may ignore ("nsz": the signs of zeros)."""
    result = args[0].type if result is None else result
    suffixes = [type_suffix(t) for t in ((args[0].type,) if types is None else types)]
    full = ".".join(["llvm", name, *suffixes])
    fn = b.module.globals.get(full)
    if fn is None:
        fn = ir.Function(b.module, ir.FunctionType(result, [a.type for a in args]), full)
    return b.call(fn, list(args), fastmath=flags)


def freeze(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """Poison becomes some fixed value; anything else stays (llvmlite's builder lacks this instruction)."""
    instr = ir.instructions.Instruction(b.block, v.type, "freeze", [v])
    b._insert(instr)
    return instr


class V:
    """A value under construction: builder and LLVM value."""

    __slots__ = ("b", "v")

    def __init__(self, b: ir.IRBuilder, v: ir.Value) -> None:
        self.b, self.v = b, v

    @property
    def type(self) -> ir.Type:
        return self.v.type

    @property
    def is_int(self) -> bool:
        return isinstance(element_of(self.v.type), ir.IntType)

    @property
    def is_f64(self) -> bool:
        return isinstance(element_of(self.v.type), ir.DoubleType)

    def of(self, x: V | Num) -> V:
        """`x` as a value of this type."""
        return x if isinstance(x, V) else V(self.b, splat(self.type, x))

    def __add__(self, o: V | Num) -> V:
        return V(self.b, (self.b.add if self.is_int else self.b.fadd)(self.v, self.of(o).v))

    def __sub__(self, o: V | Num) -> V:
        return V(self.b, (self.b.sub if self.is_int else self.b.fsub)(self.v, self.of(o).v))

    def __mul__(self, o: V | Num) -> V:
        return V(self.b, (self.b.mul if self.is_int else self.b.fmul)(self.v, self.of(o).v))

    def __radd__(self, o: Num) -> V: return self.of(o) + self
    def __rsub__(self, o: Num) -> V: return self.of(o) - self
    def __rmul__(self, o: Num) -> V: return self.of(o) * self

    def __truediv__(self, o: V | Num) -> V:
        return V(self.b, self.b.fdiv(self.v, self.of(o).v))

    def __rtruediv__(self, o: Num) -> V: return self.of(o) / self
    def __neg__(self) -> V: return V(self.b, self.b.neg(self.v) if self.is_int else self.b.fneg(self.v))
    def __and__(self, o: V | Num) -> V: return V(self.b, self.b.and_(self.v, self.of(o).v))
    def __or__(self, o: V | Num) -> V: return V(self.b, self.b.or_(self.v, self.of(o).v))
    def __xor__(self, o: V | Num) -> V: return V(self.b, self.b.xor(self.v, self.of(o).v))
    def __invert__(self) -> V: return self ^ -1
    def __lshift__(self, n: V | Num) -> V: return V(self.b, self.b.shl(self.v, self.of(n).v))

    def __rshift__(self, n: V | Num) -> V:
        """Logical shift."""
        return V(self.b, self.b.lshr(self.v, self.of(n).v))

    def ashr(self, n: V | Num) -> V: return V(self.b, self.b.ashr(self.v, self.of(n).v))

    def _cmp(self, op: str, o: V | Num, signed: bool = True) -> V:
        o = self.of(o)
        if self.is_int:
            return V(self.b, (self.b.icmp_signed if signed else self.b.icmp_unsigned)(op, self.v, o.v))
        return V(self.b, (self.b.fcmp_unordered if op == "!=" else self.b.fcmp_ordered)(op, self.v, o.v))

    def lt(self, o: V | Num) -> V: return self._cmp("<", o)
    def le(self, o: V | Num) -> V: return self._cmp("<=", o)
    def gt(self, o: V | Num) -> V: return self._cmp(">", o)
    def ge(self, o: V | Num) -> V: return self._cmp(">=", o)
    def eq(self, o: V | Num) -> V: return self._cmp("==", o)
    def ne(self, o: V | Num) -> V: return self._cmp("!=", o)
    def ult(self, o: V | Num) -> V: return self._cmp("<", o, signed=False)
    def isnan(self) -> V: return V(self.b, self.b.fcmp_unordered("uno", self.v, self.v))

    def where(self, a: V | Num, c: V | Num, like_: V | None = None) -> V:
        """a where self (a condition) else c; at least one of them, or `like_`, is a V."""
        model = next(x for x in (a, c, like_) if isinstance(x, V))
        return V(self.b, self.b.select(self.v, model.of(a).v, model.of(c).v))

    def bits(self) -> V:
        """The float's bits as integers of the same width."""
        return V(self.b, self.b.bitcast(self.v, like(self.type, ir.IntType(64 if self.is_f64 else 32))))

    def as_float(self) -> V:
        """32- or 64-bit integers taken as the bits of floats."""
        e = element_of(self.type)
        return V(self.b, self.b.bitcast(self.v, like(self.type, ir.DoubleType() if e.width == 64 else ir.FloatType())))

    def f64(self) -> V: return V(self.b, self.b.fpext(self.v, like(self.type, ir.DoubleType())))
    def f32(self) -> V: return V(self.b, self.b.fptrunc(self.v, like(self.type, ir.FloatType())))

    def abs(self) -> V: return V(self.b, intrinsic(self.b, "fabs", [self.v]))
    def sqrt(self) -> V: return V(self.b, intrinsic(self.b, "sqrt", [self.v]))
    def copysign(self, s: V) -> V: return V(self.b, intrinsic(self.b, "copysign", [self.v, s.v]))

    def signbits(self) -> V:
        """The sign bit alone, as integer bits."""
        return self.bits() & (1 << 63 if self.is_f64 else 1 << 31)

    def atmost(self, hi: Num) -> V:
        """min(self, hi); NaN stays (one minps/minpd)."""
        return self.of(hi).lt(self).where(self.of(hi), self)

    def atleast(self, lo: Num) -> V:
        return self.of(lo).gt(self).where(self.of(lo), self)


def fma(a: V, b: V | Num, c: V | Num) -> V:
    """a * b + c, fused where that is fast."""
    return V(a.b, intrinsic(a.b, "fmuladd", [a.v, a.of(b).v, a.of(c).v]))


def poly(x: V, coefficients: Sequence[float]) -> V:
    """Horner's rule; the highest power comes first."""
    acc = x.of(coefficients[0])
    for c in coefficients[1:]:
        acc = fma(acc, x, c)
    return acc


def any_lane(cond: V) -> ir.Value:
    """An i1: whether the condition holds in some lane."""
    if not isinstance(cond.type, ir.VectorType):
        return cond.v
    wide = cond.b.zext(cond.v, like(cond.type, ir.IntType(32)))
    total = intrinsic(cond.b, "vector.reduce.or", [wide], ir.IntType(32))
    return cond.b.icmp_unsigned("!=", total, ir.Constant(ir.IntType(32), 0))
